"""Requests, their record, their route and their proof."""
