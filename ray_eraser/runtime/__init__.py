"""The deployment on Ray. No other folder imports Ray."""
