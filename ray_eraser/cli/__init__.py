"""The commands of `ray-eraser`, each in a file of its own name. A command is imported only when it runs (main.py)."""
