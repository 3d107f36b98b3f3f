"""Compare methods under one protocol: measure the paper's tables and figures."""
