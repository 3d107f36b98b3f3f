"""Training one submodel."""
