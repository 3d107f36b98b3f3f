"""The middleware before every answer: it checks keys and limits, sets headers, and keeps ids out of error messages and logs."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from ray_eraser.web import answers
from ray_eraser.web.answers import Answer
from ray_eraser.web.keys import Keys, Role
from ray_eraser.web.limits import Limits, TokenBuckets, Turns

log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = frozenset({"/", "/page.css", "/page.js", "/pictures.js", "/icon.svg", "/docs", "/openapi.json", "/healthz"})
"""Paths that need no key. Their answers depend on no data."""

HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""Headers of every answer. `form-action 'none'` keeps ids and keys out of URLs when the page's script does not run."""

_READING = ("GET", "HEAD", "OPTIONS")
_AGAIN_SECONDS = 1.0


class Guard:
    """ASGI middleware around the whole application.

    Paths in `OPEN` need no key. Reading needs a key with the role `read`, every other method one with the role `erase`. The
    guard checks the key before it reads the body, and gives its role to the application as `request.state.role`. The
    application gets complete bodies only, so a slow sender never blocks it.
    """

    def __init__(self, app: App, keys: Keys, limits: Limits) -> None:
        self._app, self._keys, self._limits = app, keys, limits
        self._buckets = TokenBuckets(limits.rate, limits.burst)
        self._turns = Turns(limits.receiving, limits.receiving_in_all)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def stamped(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                given = {name for name, _ in message["headers"]}
                stamps = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message["headers"], *(stamp for stamp in stamps if stamp[0] not in given)]
            await send(message)

        try:
            hashed = self._admitted(scope)
            # The application never reads the body of a GET, so the guard does not wait for it.
            body = None if hashed is None or scope["method"] in _READING else await self._body(hashed, receive)
            await self._app(scope, receive if body is None else _with(body, receive), stamped)
        except _RefusedError as refused:
            await _say(refused.answer, stamped)
        except _GoneError:
            pass  # the client has left, so there is no one to answer
        except Exception as error:  # noqa: BLE001 - the server above would log it with a traceback, which names ids
            log.error("request failed", extra={"error": type(error).__name__, "method": scope["method"]})  # noqa: TRY400
            if not started:
                await _say(Answer(500, answers.BROKEN), stamped)

    def _admitted(self, scope: Scope) -> bytes | None:
        """Check the key, the rate and the declared size. Gives the key's hash, or None for paths that need no key."""
        headers = dict(scope["headers"])
        hashed = None
        if scope["path"] not in OPEN:
            scheme, _, presented = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
            found = self._keys.find(presented.strip()) if scheme.lower() == "bearer" else None
            if found is None:
                raise _RefusedError(Answer(401, answers.NO_KEY))
            role, hashed = found
            if not role.allows(Role.READ if scope["method"] in _READING else Role.ERASE):
                raise _RefusedError(Answer(403, answers.WRONG_ROLE))
            if seconds := self._buckets.take(hashed):
                raise _RefusedError(Answer(429, answers.TOO_OFTEN, seconds))
            scope.setdefault("state", {})["role"] = role
        declared = headers.get(b"content-length", b"0")
        # The server refuses a length that is not a number. `_received` measures the size in any case.
        if declared.isdigit() and int(declared) > self._limits.body:
            raise _RefusedError(self._too_large())
        return hashed

    async def _body(self, hashed: bytes, receive: Receive) -> bytes:
        """Receive the whole body while holding one of the key's turns."""
        if not await self._turns.take(hashed):
            if self._turns.is_full(hashed):
                raise _RefusedError(Answer(429, answers.TOO_MANY_BODIES, _AGAIN_SECONDS, closes=True))
            raise _RefusedError(Answer(503, answers.BODIES_WAIT, _AGAIN_SECONDS, closes=True))
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                return await self._received(receive)
        except TimeoutError:
            too_slow = answers.TOO_SLOW.format(seconds=self._limits.body_seconds)
            raise _RefusedError(Answer(408, too_slow, closes=True)) from None
        finally:
            self._turns.give_back(hashed)

    async def _received(self, receive: Receive) -> bytes:
        parts, size, more = [], 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _GoneError
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self._limits.body:
                raise _RefusedError(self._too_large())
            more = message.get("more_body", False)
        return b"".join(parts)

    def _too_large(self) -> Answer:
        return Answer(413, answers.TOO_LARGE.format(limit=self._limits.body))


class _RefusedError(Exception):
    """The guard answers this request itself; the application does not see it."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer)
        self.answer = answer


class _GoneError(Exception):
    """The client closed the connection."""


def _with(body: bytes, receive: Receive) -> Receive:
    """A `receive` that hands the application a body which has already arrived."""
    waiting = [body]

    async def received() -> Message:
        return {"type": "http.request", "body": waiting.pop(), "more_body": False} if waiting else await receive()

    return received


async def _say(answer: Answer, send: Send) -> None:
    body = json.dumps({"error": answer.error}).encode()
    sized = {"Content-Type": "application/json", "Content-Length": str(len(body)), **answer.headers}
    headers = [(name.lower().encode(), value.encode()) for name, value in sized.items()]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
