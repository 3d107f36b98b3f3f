"""Computational kernels that the models and aggregations share."""
