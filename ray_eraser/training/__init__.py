"""Training of submodels."""
