"""Which Ray to use: the one that is there, or one of our own that ends with the process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray

from ray_eraser.errors import InputError

NAMESPACE = "ray_eraser"
"""All named actors of all deployments live in it."""


@dataclass(frozen=True)
class Session:
    """A connection to Ray. `local`: it was started by this process and what runs on it ends with this process."""

    local: bool


def ensure_ray(address: str | None = None) -> Session:
    """Connect to Ray, unless this process is connected already.

    Args:
        address: of a cluster (`host:port`, `auto`), or `local` for a Ray of this process alone. None takes the cluster that
            RAY_ADDRESS names or that runs on this machine, and starts a local one where there is none.

    Raises:
        InputError: no Ray answers at the address.
    """
    if ray.is_initialized():
        return Session(local=False)
    quiet: dict[str, Any] = {"namespace": NAMESPACE, "log_to_driver": False, "logging_level": "ERROR"}
    if address != "local":
        try:
            ray.init(address=address or "auto", **quiet)
        except (ConnectionError, ValueError, RuntimeError) as error:
            if address is not None:
                first_line = str(error).splitlines()[0]
                raise InputError(f"no Ray answers at {address!r} ({first_line}): check the address, or use 'local'") from error
        else:
            return Session(local=False)
    ray.init(address="local", include_dashboard=False, **quiet)
    return Session(local=True)


@contextmanager
def session(address: str | None = None) -> Iterator[Session]:
    """`ensure_ray` for the length of a block; a local Ray that was started for it is stopped after it."""
    opened = ensure_ray(address)
    try:
        yield opened
    finally:
        if opened.local:
            ray.shutdown()
