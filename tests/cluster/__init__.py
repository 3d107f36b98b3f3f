"""A package, so that its files may be called what files elsewhere are called, and are not looked for in `cluster/`."""
