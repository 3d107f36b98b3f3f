"""What stands before every answer: keys, limits, headers, and no word of a failure that could name somebody."""

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

OPEN = frozenset({"/", "/page.css", "/page.js", "/icon.svg", "/docs", "/openapi.json", "/healthz"})
"""Paths that need no key: they say nothing of anybody."""

HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""Of every answer. Forms have no action: without its script the page cannot put an id or a key into a URL."""

_READING = ("GET", "HEAD", "OPTIONS")
_AGAIN_SECONDS = 1.0


class Guard:
    """ASGI middleware around the whole application.

    What needs no key apart (`OPEN`), reading needs a key with the role read, and everything else one with the role erase. That
    is checked before anything of the body is read. The application gets bodies that are whole, and never waits for one.
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
            # Nothing reads the body of those that only ask, so it is not waited for.
            body = None if hashed is None or scope["method"] in _READING else await self._body(hashed, receive)
            await self._app(scope, receive if body is None else _with(body, receive), stamped)
        except _RefusedError as refused:
            await _say(refused.answer, stamped)
        except _GoneError:
            pass  # nobody is there to be answered
        except Exception as error:  # noqa: BLE001 - whoever is above would log it with a traceback, which names ids
            log.error("request failed", extra={"error": type(error).__name__, "method": scope["method"]})  # noqa: TRY400
            if not started:
                await _say(Answer(500, answers.BROKEN), stamped)

    def _admitted(self, scope: Scope) -> bytes | None:
        """The hash of the key that a request came with; None where it needs none."""
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
        declared = headers.get(b"content-length", b"0")
        # A length that is no number is the server's to refuse; it is measured all the same.
        if declared.isdigit() and int(declared) > self._limits.body:
            raise _RefusedError(self._too_large())
        return hashed

    async def _body(self, hashed: bytes, receive: Receive) -> bytes:
        """The whole body, received in a turn of its key."""
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
    """A request gets an answer before the application sees it."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer)
        self.answer = answer


class _GoneError(Exception):
    """Whoever asked has left."""


def _with(body: bytes, receive: Receive) -> Receive:
    """What the application receives of a request whose body is there."""
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
