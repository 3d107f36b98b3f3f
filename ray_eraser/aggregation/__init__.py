"""From submodels to one model."""
