"""Connects to a running Ray, or starts a local one that ends with the process."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray

from ray_eraser.errors import InputError
from ray_eraser.runtime.reach import check_reached, find_address, said_if_slow, was_started_here

log = logging.getLogger(__name__)

NAMESPACE = "ray_eraser"
"""The namespace of all named actors of all deployments."""

_SLOW_SECONDS = 10.0
_QUIET: dict[str, Any] = {"namespace": NAMESPACE, "log_to_driver": False, "logging_level": "ERROR"}


@dataclass(frozen=True)
class Session:
    """A connection to Ray. If `local`, this process started that Ray, and everything on it ends with this process."""

    local: bool


def ensure_ray(address: str | None = None) -> Session:
    """Connect to Ray, unless this process is connected already.

    Args:
        address: of a cluster (`host:port`, `ray://host:port`, `auto`), or `local` for a Ray of this process alone. None takes
            the cluster that RAY_ADDRESS names or that is running on this machine, and starts a local one if there is none.

    Raises:
        InputError: no Ray answers at the address within seconds.
    """
    if find_ray(address):
        return Session(local=False)
    _init("local", include_dashboard=False)
    return Session(local=True)


def find_ray(address: str | None = None, *, lasting: bool = False) -> bool:
    """Connect as `ensure_ray`, but never start a Ray. Returns whether there is one; False for `local`.

    Args:
        address: as for `ensure_ray`.
        lasting: without an address, pass over a Ray that another program began for itself: it ends with that program.

    Raises:
        InputError: no Ray answers at the given address.
    """
    if ray.is_initialized():
        return True
    wanted = os.environ.get("RAY_ADDRESS") or address if address in (None, "auto") else address
    if wanted == "local" or (lasting and wanted is None and not was_started_here()):
        return False
    found = find_address() if wanted in (None, "auto") else wanted
    if found is None and wanted is None:
        return False
    try:
        check_reached(found)
        with said_if_slow(_SLOW_SECONDS, "Ray at %s answers slowly: still connecting to it", found):
            _init(wanted or "auto")
    except (ConnectionError, ValueError, RuntimeError) as error:
        first_line = str(error).splitlines()[0]
        if wanted is None:
            # The address is left from a crashed head node. The caller did not ask for it, so it is no error.
            log.warning("no Ray answers at %s, where one ran before (%s): starting a local one instead", found, first_line)
            return False
        where = repr(wanted) + (f", which is {found}" if wanted == "auto" and found else "")
        raise InputError(f"no Ray answers at {where} ({first_line}): check the address, or use 'local'") from error
    return True


def _init(address: str, **options: Any) -> None:
    """Call `ray.init`, and restore this program's SIGTERM handler. Ray's handler would print a stack trace."""
    own = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, **_QUIET, **options)
    finally:
        if own not in (None, signal.SIG_DFL) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, own)


def addresses() -> dict[str, str]:
    """The address of every live node, by its id."""
    return {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}


def connected_address() -> str:
    """The address of the cluster that this process is connected to."""
    address: str = ray.get_runtime_context().gcs_address
    return address


@contextmanager
def session(address: str | None = None) -> Iterator[Session]:
    """`ensure_ray` for the length of a block. A local Ray started for the block is stopped after it."""
    opened = ensure_ray(address)
    try:
        yield opened
    finally:
        if opened.local:
            ray.shutdown()
