"""Bodies that arrive slowly, in part, or never get an answer, and no other request waits for them."""

from __future__ import annotations

import asyncio
import json
import time

import pytest

from ray_eraser.web.guard import Guard
from ray_eraser.web.keys import Keys, Role
from ray_eraser.web.limits import Limits, Turns

READER, ERASER, OTHER = "r" * 32, "e" * 32, "o" * 32
KEYS = Keys.of([(Role.READ, READER), (Role.ERASE, ERASER), (Role.ERASE, OTHER)])
FAST = Limits(rate=1e6, burst=1e6, body_seconds=0.3, receiving=4, receiving_in_all=6)


async def echo(scope, receive, send):
    """Answers with the body. Like our application, it reads none of a GET."""
    body, more = b"", scope["method"] == "POST"
    while more:
        message = await receive()
        body, more = body + message["body"], message["more_body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


class Request:
    """Calls the guard as a server does for one request. The body comes in parts; without `whole`, its end never comes."""

    def __init__(self, guard, method="POST", path="/erasures", key=ERASER, parts=(b"{",), *, whole=True, leaves=False):
        self._guard, self._parts, self._whole, self._leaves = guard, list(parts), whole, leaves
        headers = [(b"authorization", f"Bearer {key}".encode())] if key else []
        self._scope = {"type": "http", "method": method, "path": path, "headers": headers}
        self._sent = []

    async def _receive(self):
        if self._parts:
            part = self._parts.pop(0)
            return {"type": "http.request", "body": part, "more_body": bool(self._parts) or not self._whole}
        if not self._leaves:
            await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    async def _send(self, message):
        self._sent.append(message)

    async def answer(self):
        await self._guard(self._scope, self._receive, self._send)
        if not self._sent:
            return None
        headers = {name.decode(): value.decode() for name, value in self._sent[0]["headers"]}
        return self._sent[0]["status"], b"".join(message.get("body", b"") for message in self._sent[1:]), headers


def answer(request):
    return asyncio.run(request.answer())


@pytest.fixture
def guard():
    return Guard(echo, KEYS, FAST)


@pytest.mark.parametrize("parts", [[b""], [b"one"], [b"a", b"", b"b", b"c" * 1000]])
def test_a_body_comes_to_the_application_whole(guard, parts):
    assert answer(Request(guard, parts=parts))[:2] == (200, b"".join(parts))


def test_half_a_body_is_408_and_the_connection_ends(guard):
    status, body, headers = answer(Request(guard, whole=False))
    assert (status, headers["connection"]) == (408, "close")
    assert json.loads(body) == {"error": "the body did not arrive within 0.3 seconds: send it at once"}


def test_a_body_that_trickles_in_is_408_however_often_something_comes(guard):
    request = Request(guard, parts=[b"x"] * 1000)
    at_once = request._receive

    async def slowly():
        await asyncio.sleep(0.05)
        return await at_once()

    request._receive = slowly
    assert answer(request)[0] == 408


def test_who_only_asks_is_answered_while_hundreds_of_half_bodies_are_open(guard):
    async def both():
        halves = [asyncio.create_task(Request(guard, whole=False).answer()) for _ in range(130)]
        await asyncio.sleep(0.05)
        began = time.monotonic()
        asked = [
            await Request(guard, "GET", "/healthz", key=None).answer(),
            await Request(guard, "GET", "/status", key=READER).answer(),
            await Request(guard, "GET", "/status", whole=False).answer(),
            await Request(guard, key=OTHER).answer(),
        ]
        seconds = time.monotonic() - began
        return seconds, [status for status, *_ in asked], await asyncio.gather(*halves)

    seconds, asked, halves = asyncio.run(both())
    assert asked == [200, 200, 200, 200]
    assert seconds < 0.2
    assert {status for status, *_ in halves} == {408, 429}
    assert all(headers["connection"] == "close" for _, _, headers in halves)
    assert all(headers["retry-after"] == "1" for status, _, headers in halves if status == 429)


def test_several_keys_together_leave_room_in_the_process(guard):
    async def both():
        halves = [Request(guard, key=key, whole=False).answer() for key in (ERASER, OTHER) for _ in range(200)]
        return [status for status, *_ in await asyncio.gather(*halves)]

    guard._turns = Turns(each=4, in_all=4, patience=0.1)
    assert set(asyncio.run(both())) == {408, 429, 503}


def test_a_burst_of_bodies_that_are_there_waits_for_its_turns_and_is_accepted(guard):
    async def burst():
        return await asyncio.gather(*(Request(guard, parts=[b"a", b"b"]).answer() for _ in range(200)))

    assert {status for status, *_ in asyncio.run(burst())} == {200}


def test_a_turn_is_given_back_however_it_ends(guard):
    for _ in range(10):
        assert answer(Request(guard, parts=[b"x" * (FAST.body + 1)]))[0] == 413
        assert answer(Request(guard, whole=False, leaves=True)) is None
        assert answer(Request(guard))[0] == 200

    async def cancelled():
        task = asyncio.create_task(Request(guard, whole=False).answer())
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait([task])

    for _ in range(10):
        asyncio.run(cancelled())
    assert guard._turns._taken.total() == 0


def test_what_no_key_allows_is_refused_before_anything_is_received(guard):
    for key, status in ((None, 401), ("x" * 32, 401), (READER, 403)):
        assert answer(Request(guard, key=key, parts=(), whole=False))[0] == status
