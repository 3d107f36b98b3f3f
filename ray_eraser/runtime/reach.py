"""Whether anybody answers at a Ray's address. Ray itself would find out after a quarter of an hour, without a word."""

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
# How every gRPC connection begins, by the standard of HTTP/2: the client's preface and an empty frame of settings. The server
# answers with settings of its own, whoever asks, and before any token is looked at.
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
_FRAME, _TYPE, _SETTINGS = 9, 3, 4


class NobodyAnswersError(ConnectionError):
    """No Ray answers at an address; says why."""


def find_address() -> str | None:
    """Where the Ray of this machine is, as Ray finds it: one that runs, or the last one that was started; None for neither."""
    try:
        # What `ray.init` asks. The last one is noted in a file, which stays when its machine is switched off.
        return str(services.canonicalize_bootstrap_address("auto"))
    except ConnectionError:
        return None


def check_reached(address: str | None) -> None:
    """Return once a Ray answers at an address, `host:port` or `ray://host:port`; at None none does, and others are left to Ray.

    Raises:
        NobodyAnswersError: none does within seconds.
        ValueError: this is no address of a Ray.
    """
    if address is None:
        raise NobodyAnswersError("none runs on this machine")
    scheme, _, rest = address.rpartition("://")
    if scheme in ("http", "https"):
        raise ValueError("http:// is for 'ray job submit': give host:port as 'ray start' had it, or ray://host:port")
    if scheme not in ("", "ray"):
        return
    # As Ray does: another address of this machine for localhost, where it listens as well.
    parts = urlsplit(f"//{rest if scheme else services.canonicalize_bootstrap_address(address)}")
    port = parts.port or (_CLIENT_PORT if scheme else None)
    if not parts.hostname or port is None:
        raise ValueError("it has no port: give host:port")
    with said_if_slow(_SLOW_SECONDS, "waits for Ray at %s, up to %d seconds", address, _CONNECT_SECONDS + _ANSWER_SECONDS):
        answer = _first_answer(parts.hostname, port)
    # With TLS the other side ends the connection, or complains.
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
            raise NobodyAnswersError(f"connected, and no answer within {_ANSWER_SECONDS:g} seconds") from error
        except OSError:
            return b""


@contextmanager
def said_if_slow(seconds: float, message: str, *values: object) -> Iterator[None]:
    """A block that has a warning logged once it has taken so long."""
    timer = threading.Timer(seconds, log.warning, (message, *values))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
