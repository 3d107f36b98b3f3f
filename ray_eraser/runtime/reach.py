"""Checks within seconds whether Ray answers at an address. Ray itself needs a quarter of an hour, and prints nothing."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from ray._private import services

log = logging.getLogger(__name__)

_CONNECT_SECONDS, _ANSWER_SECONDS, _SLOW_SECONDS = 5.0, 10.0, 2.0
_CLIENT_PORT = 10001
# Every gRPC connection begins like this, by the HTTP/2 standard: the client's preface and an empty SETTINGS frame. The server
# answers every client with its own settings, before it checks any token.
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
_FRAME, _TYPE, _SETTINGS = 9, 3, 4


class NobodyAnswersError(ConnectionError):
    """No Ray answers at an address. The text gives the reason."""


def find_address() -> str | None:
    """Address of this machine's Ray, as Ray finds it: a running cluster, or the last started one; None if there is neither."""
    try:
        # `ray.init` calls the same function. Ray notes the last cluster in a file, which outlives a power-off of the machine.
        return str(services.canonicalize_bootstrap_address("auto"))
    except ConnectionError:
        return None


def was_started_here() -> bool:
    """Whether `ray start` began a cluster on this machine. Ray notes no cluster that a program began for itself alone."""
    return services.find_bootstrap_address(None) is not None


def check_reached(address: str | None) -> None:
    """Return when a Ray answers at an address, `host:port` or `ray://host:port`. Other schemes are left to Ray.

    Raises:
        NobodyAnswersError: the address is None, or no Ray answers within seconds.
        ValueError: this is not an address of a Ray.
    """
    if address is None:
        raise NobodyAnswersError("no Ray is running on this machine")
    scheme, _, rest = address.rpartition("://")
    if scheme in ("http", "https"):
        raise ValueError("http:// is for 'ray job submit': give host:port as 'ray start' printed it, or ray://host:port")
    if scheme not in ("", "ray"):
        return
    # As Ray does: localhost becomes another address of this machine, at which Ray listens too.
    parts = urlsplit(f"//{rest if scheme else services.canonicalize_bootstrap_address(address)}")
    port = parts.port or (_CLIENT_PORT if scheme else None)
    if not parts.hostname or port is None:
        raise ValueError("it has no port: give host:port")
    with said_if_slow(_SLOW_SECONDS, "waiting for Ray at %s, up to %d seconds", address, _CONNECT_SECONDS + _ANSWER_SECONDS):
        answer = _first_answer(parts.hostname, port)
    # With TLS, the server closes the connection or sends an alert.
    if answer[_TYPE : _TYPE + 1] != bytes([_SETTINGS]) and os.environ.get("RAY_USE_TLS", "").lower() not in ("1", "true"):
        raise NobodyAnswersError("another program listens there")


def _first_answer(host: str, port: int) -> bytes:
    try:
        connection = socket.create_connection((host, port), timeout=_CONNECT_SECONDS)
    except TimeoutError as error:
        raise NobodyAnswersError(f"no connection within {_CONNECT_SECONDS:g} seconds") from error
    except OSError as error:
        raise NobodyAnswersError(error.strerror or str(error)) from error
    with connection:
        connection.settimeout(_ANSWER_SECONDS)
        try:
            connection.sendall(_HELLO)
            return connection.recv(_FRAME, socket.MSG_WAITALL)
        except TimeoutError as error:
            raise NobodyAnswersError(f"connected, but no answer within {_ANSWER_SECONDS:g} seconds") from error
        except OSError:
            return b""


@contextmanager
def said_if_slow(seconds: float, message: str, *values: object) -> Iterator[None]:
    """Log a warning if the block takes longer than this."""
    timer = threading.Timer(seconds, log.warning, (message, *values))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
