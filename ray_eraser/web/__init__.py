"""A deployment over HTTP: who may ask what, how often, and what is answered. Knows nothing of Ray; see `runtime/serve.py`."""
