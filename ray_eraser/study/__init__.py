"""Comparing methods under one protocol: the paper's tables and figures, measured."""
