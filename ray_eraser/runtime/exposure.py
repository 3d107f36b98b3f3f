"""Facts about the exposure of a running Ray, for `ray-eraser doctor`."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from typing import Any

import ray

from ray_eraser.doctor import RayFacts
from ray_eraser.runtime.reach import check_reached, find_address


def look_at_ray(address: str | None = None) -> RayFacts | None:
    """Look at the Ray at an address, or on this machine; None if none answers. Never starts a Ray."""
    quiet: dict[str, Any] = {"ignore_reinit_error": True, "log_to_driver": False, "logging_level": "ERROR"}
    was_connected = ray.is_initialized()
    try:
        if not was_connected:
            check_reached(find_address() if address in (None, "auto") else address)
        context: Any = ray.init(address=address or "auto", **quiet)
    except (ConnectionError, ValueError, RuntimeError):
        return None
    dashboard, gpus = context.dashboard_url or "", float(ray.cluster_resources().get("GPU", 0))
    if not was_connected:
        ray.shutdown()
    return RayFacts(dashboard, _asks_for_token(dashboard), os.environ.get("RAY_AUTH_MODE", "").lower() == "token", gpus)


def _asks_for_token(dashboard: str) -> bool | None:
    """Ask the dashboard without a token. None if this gives no answer."""
    if not dashboard:
        return None
    try:
        with urllib.request.urlopen(f"http://{dashboard}/api/version", timeout=5):
            return False
    except urllib.error.HTTPError as error:
        return True if error.code in (401, 403) else None
    except OSError:
        return None
