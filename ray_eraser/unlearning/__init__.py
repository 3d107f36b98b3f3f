"""Unlearning requests: their record in the ledger, their route to the shards, and their evidence."""
