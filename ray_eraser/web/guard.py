"""What stands before every answer: keys, limits, headers, and no word of a failure that could name somebody."""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.exceptions import HTTPException

from ray_eraser.web import answers
from ray_eraser.web.answers import Answer
from ray_eraser.web.keys import Keys, Role
from ray_eraser.web.limits import Limits, TokenBuckets

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


class Guard:
    """ASGI middleware around the whole application.

    What needs no key apart (`OPEN`), reading needs a key with the role read, and everything else one with the role erase. That
    is checked before anything of the body is read.
    """

    def __init__(self, app: App, keys: Keys, limits: Limits) -> None:
        self._app, self._keys, self._largest = app, keys, limits.body
        self._buckets = TokenBuckets(limits.rate, limits.burst)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False
        read = 0

        async def measured() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._largest:
                raise HTTPException(413, self._too_large().error)  # of all errors, FastAPI passes on only this kind
            return message

        async def stamped(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                given = {name for name, _ in message["headers"]}
                stamps = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message["headers"], *(stamp for stamp in stamps if stamp[0] not in given)]
            await send(message)

        refusal = self._refusal(scope)
        if refusal is not None:
            await _say(refusal, stamped)
            return
        try:
            await self._app(scope, measured, stamped)
        except Exception as error:  # noqa: BLE001 - whoever is above would log it with a traceback, which names ids
            log.error("request failed", extra={"error": type(error).__name__, "method": scope["method"]})  # noqa: TRY400
            if not started:
                await _say(Answer(500, answers.BROKEN), stamped)

    def _refusal(self, scope: Scope) -> Answer | None:
        headers = dict(scope["headers"])
        if scope["path"] not in OPEN:
            scheme, _, presented = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
            found = self._keys.find(presented.strip()) if scheme.lower() == "bearer" else None
            if found is None:
                return Answer(401, answers.NO_KEY)
            role, hashed = found
            if not role.allows(Role.READ if scope["method"] in ("GET", "HEAD", "OPTIONS") else Role.ERASE):
                return Answer(403, answers.WRONG_ROLE)
            if seconds := self._buckets.take(hashed):
                return Answer(429, answers.TOO_OFTEN, seconds)
        declared = headers.get(b"content-length", b"0")
        # A length that is no number is the server's to refuse; it is measured all the same.
        return self._too_large() if declared.isdigit() and int(declared) > self._largest else None

    def _too_large(self) -> Answer:
        return Answer(413, answers.TOO_LARGE.format(limit=self._largest))


async def _say(answer: Answer, send: Send) -> None:
    body = json.dumps({"error": answer.error}).encode()
    sized = {"Content-Type": "application/json", "Content-Length": str(len(body)), **answer.headers}
    headers = [(name.lower().encode(), value.encode()) for name, value in sized.items()]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
