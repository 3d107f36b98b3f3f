"""Training one submodel, always from scratch."""
