"""Tight loops that models and aggregations share."""
