"""The Python reference: mkdocstrings reads each public name's signature and docstring from the code."""

from __future__ import annotations

import ray_eraser

TITLE = """# Python

The public names. Import them from `ray_eraser`; importing the package imports neither Ray nor PyTorch.
"""

FIRST = ("Coordinator", "Client", "connect", "deploy")


def python_page() -> str:
    """One heading for each name of `ray_eraser.__all__`, the ones that people begin with first."""
    names = [*FIRST, *(name for name in sorted(ray_eraser.__all__, key=str.lower) if name not in FIRST)]
    return "\n".join([TITLE, *(f"\n::: ray_eraser.{name}\n" for name in names)])
