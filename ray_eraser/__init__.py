"""ray_eraser: the recommender that can forget."""

from __future__ import annotations

__version__ = "0.1.0"
