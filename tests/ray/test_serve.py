"""The HTTP API on a real Ray Serve, on loopback."""

from __future__ import annotations

import json
import socket
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import ray_eraser
from ray_eraser.config import EraserConfig
from ray_eraser.data.dataset import Dataset
from ray_eraser.errors import InputError
from ray_eraser.ids import RequestId
from ray_eraser.runtime.client import Client, deploy
from ray_eraser.unlearning.evidence import ReceiptFile
from ray_eraser.unlearning.receipt import commitment
from ray_eraser.unlearning.request import UnlearningRequest
from ray_eraser.web.keys import Keys, Role
from ray_eraser.web.limits import Limits

pytestmark = [pytest.mark.ray, pytest.mark.timeout(120)]

READER, ERASER, SLOW, HALF = "r" * 32, "e" * 32, "s" * 32, "h" * 32
KEYS = Keys.of([(Role.READ, READER), (Role.ERASE, ERASER), (Role.READ, SLOW), (Role.ERASE, HALF)])


class Served(NamedTuple):
    url: str
    client: Client
    config: EraserConfig
    storage_path: str


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def served(
    ray_session: None, tiny: Dataset, tiny_config: EraserConfig, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """A deployment over HTTP that the tests share. Each test erases its own users."""
    pytest.importorskip("fastapi", reason="the extra serve is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's own use of pydantic warns
        import ray.serve  # noqa: F401
    from ray_eraser.runtime import serve

    place = str(tmp_path_factory.mktemp("served"))
    client = deploy("over-http", place, tiny_config)
    client.fit(tiny)
    url = serve.start("over-http", KEYS, Limits(rate=20, burst=100), port=free_port())
    yield Served(url, client, tiny_config, place)
    serve.stop("over-http")
    ray_eraser.connect("over-http").shutdown()


class Call:
    def __init__(self, url: str) -> None:
        self._url = url

    def __call__(
        self, method: str, path: str, body: Any = None, key: str | None = ERASER, **headers: str
    ) -> tuple[int, Any, dict[str, str]]:
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        if key is not None:
            given["Authorization"] = f"Bearer {key}"
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        if data is not None:
            given["Content-Type"] = "application/json"
        request = urllib.request.Request(self._url + path, data, given, method=method)
        try:
            answer = urllib.request.urlopen(request, timeout=40)
        except urllib.error.HTTPError as error:
            answer = error
        with answer:
            content, sent = answer.read(), {name.lower(): value for name, value in answer.headers.items()}
            as_json = sent.get("content-type") == "application/json"
            return answer.status, json.loads(content) if as_json else content.decode(), sent


@pytest.fixture
def call(served: Served) -> Call:
    return Call(served.url)


def until(condition: Callable[[], Any], seconds: float = 30) -> Any:
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.05)
    return value


def test_recommendations_are_those_of_the_client(served: Served, call: Call) -> None:
    status, body, _ = call("GET", "/users/1003/recommendations?n=3", key=READER)
    assert (status, body["items"]) == (200, [str(item) for item in served.client.recommend(1003, 3)])
    assert call("GET", "/users/nobody/recommendations", key=READER)[0] == 404


def test_an_erasure_is_accepted_carried_out_and_attested(call: Call) -> None:
    status, accepted, headers = call("POST", "/erasures", {"user_id": 1004}, Idempotency_Key="first")
    assert status == 202
    assert call("GET", "/users/1004/recommendations")[0] == 404
    again = call("POST", "/erasures", {"user_id": 1004}, Idempotency_Key="first")
    assert (again[0], again[1]["id"]) == (202, accepted["id"])
    assert call("POST", "/erasures", {"user_id": 1004})[0] == 404

    place = headers["location"]
    first = call("GET", f"{place}/receipt", key=READER)
    assert first[0] in (200, 409)
    until(lambda: call("GET", place, key=READER)[1]["state"] == "erased")
    status, receipt, _ = call("GET", f"{place}/receipt", key=READER)
    assert status == 200
    assert receipt["commitment"] == commitment(UnlearningRequest(user_id=1004), accepted["salt"])
    assert accepted["id"] in [row["id"] for row in call("GET", "/erasures?finished=true", key=READER)[1]]
    assert call("GET", "/erasures/none/receipt")[0] == 404


def test_a_key_may_do_what_its_role_says(call: Call) -> None:
    for path in ("/status", "/erasures", "/users/1003/recommendations"):
        assert call("GET", path, key=None)[0] == 401
        assert call("GET", path, key="x" * 32)[0] == 401
        assert call("GET", path, key=READER)[0] == 200
        assert call("GET", path, key=ERASER)[0] == 200
    assert call("POST", "/erasures", {"user_id": 1005}, key=None)[0] == 401
    assert call("POST", "/erasures", {"user_id": 1005}, key=READER)[0] == 403
    assert call("GET", "/users/1005/recommendations")[0] == 200
    assert call("GET", "/key", key=READER)[1] == {"role": "read"}
    assert call("POST", "/run", key=READER)[0] == 403
    assert call("POST", "/run")[0] == 202
    assert call("POST", "/erasures/none/retry", key=READER)[0] == 403
    assert call("POST", "/erasures/none/retry")[0] == 404


def test_pages_and_health_need_no_key(call: Call) -> None:
    for path in ("/", "/docs", "/openapi.json", "/healthz", "/page.js", "/pictures.js", "/page.css"):
        status, _, headers = call("GET", path, key=None)
        assert status == 200
        assert headers["content-security-policy"].startswith("default-src 'self'")


def test_what_is_too_large_or_no_request_is_refused(call: Call) -> None:
    assert call("POST", "/erasures", b" " * ((1 << 20) + 1))[0] == 413
    assert call("POST", "/erasures", {"user_id": 1, "item_id": 2})[0] == 422
    assert call("POST", "/erasures", b"{")[0] == 422
    assert call("POST", "/erasures", {"user_id": 2**53})[0] == 400
    assert call("GET", "/users/1003/recommendations?n=0")[0] == 422
    assert call("PUT", "/erasures", {})[0] == 405


def test_a_key_that_asks_too_often_waits_and_others_do_not(call: Call) -> None:
    for _ in range(1000):
        status, _, headers = call("GET", "/erasures/none", key=SLOW)
        if status == 429:
            break
    assert status == 429
    assert int(headers["retry-after"]) >= 1
    assert call("GET", "/erasures/none", key=READER)[0] == 404


def test_half_bodies_end_and_keep_nobody_from_being_answered(served: Served, call: Call) -> None:
    address, _, port = served.url.removeprefix("http://").rpartition(":")
    head = f"POST /erasures HTTP/1.1\r\nHost: here\r\nAuthorization: Bearer {HALF}\r\nContent-Type: application/json\r\n"
    with ExitStack() as open_ones:
        halves = [open_ones.enter_context(socket.create_connection((address, int(port)))) for _ in range(90)]
        for half in halves:
            half.sendall(f'{head}Content-Length: 100\r\n\r\n{{"user'.encode())
        for path, key in (("/healthz", None), ("/users/1003/recommendations", READER), ("/status", ERASER)):
            began = time.monotonic()
            assert call("GET", path, key=key)[0] == 200
            assert time.monotonic() - began < 5
        assert call("POST", "/erasures", {"user_id": "nobody"})[0] == 404
        answers = []
        for half in halves:
            half.settimeout(60)
            answers.append(b"".join(iter(lambda half=half: half.recv(4096), b"")))  # until the server closes
    statuses = {int(answer.split()[1]) for answer in answers}
    assert statuses <= {408, 429}
    assert 408 in statuses


def test_an_address_or_a_path_that_is_anothers_is_refused(served: Served) -> None:
    from ray_eraser.runtime import serve

    with pytest.raises(InputError, match="Serve already runs on this Ray and does not listen at"):
        serve.start("over-http", KEYS, port=free_port())
    with pytest.raises(InputError, match="a Ray serves one deployment"):
        serve.start("over-http-2", KEYS, port=int(served.url.rpartition(":")[2]))
    assert Call(served.url)("GET", "/healthz", key=None)[0] == 200


def test_nothing_that_is_logged_names_anybody(call: Call, served: Served) -> None:
    import ray

    call("GET", "/users/whoever-this-is/recommendations")
    call("GET", "/whoever-this-is")
    call("POST", "/erasures", {"user_id": "whoever-this-is"}, Idempotency_Key="whoever-this-is")
    call("POST", "/erasures", b'{"user_id": "whoever-this-is"')
    time.sleep(0.5)
    logs = Path(ray._private.worker._global_node.get_logs_dir_path())
    texts = [(file, file.read_bytes()) for file in logs.rglob("*") if file.is_file()]
    assert any("replica" in file.name for file, _ in texts)
    assert [file for file, text in texts if b"whoever-this-is" in text] == []
    assert [file for file, text in texts if READER.encode() in text or ERASER.encode() in text] == []


@pytest.mark.slow
def test_an_operator_can_use_the_page(served: Served, tmp_path: Path) -> None:
    from browser import Browser, find_chromium

    program = find_chromium()
    if program is None:
        pytest.skip("there is no Chromium here to open the page with")
    with Browser(program, tmp_path / "profile") as browser:
        browser.open(f"{served.url}/")
        browser.write("#key", "x" * 32)
        browser.click("#key-button")
        browser.wait_for("!document.querySelector('#problem').hidden")
        assert browser.text("#problem") == "This key is not known here."
        assert browser.look("document.querySelector('#open').hidden")
        browser.complaints.clear()  # about the status 401

        browser.write("#key", ERASER)
        browser.click("#key-button")
        browser.wait_for("!document.querySelector('#open').hidden")
        assert browser.look("document.querySelectorAll('#shards li').length") == 3

        browser.write("#raw-id", "nobody")
        browser.click("#erase-form button")
        browser.click("#confirm-yes")
        browser.wait_for("document.querySelector('#problem').innerText.startsWith(\"no user 'nobody' here\")")
        browser.complaints.clear()  # about the status 404
        browser.look("document.querySelector('#raw-id').value = ''")
        browser.write("#raw-id", "1020")
        browser.click("#erase-form button")
        browser.click("#confirm-yes")
        browser.wait_for("!document.querySelector('#accepted').hidden")
        erasure, salt = browser.text("#accepted-id"), browser.text("#accepted-salt")
        assert len(erasure) == 32
        browser.wait_for("document.querySelector('#accepted-state').innerText === 'erased'")
        browser.wait_for(f"document.querySelector('#finished').innerText.includes('{erasure}')")

        browser.click("#receipt-form button")
        browser.wait_for("!document.querySelector('#receipt-file').hidden")
        assert "interactions erased" in browser.text("#receipt-said")
        assert commitment(UnlearningRequest(user_id="1020"), salt) in browser.text("#receipt-fields")
        assert browser.text("#receipt-file") == "Save receipt with salt"
        browser.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
        browser.click("#receipt-file")
        file = until(lambda: next(tmp_path.glob("receipt-*.json"), None))
        saved = ReceiptFile.from_json(file.read_text())
        assert (saved.receipt, saved.salt) == (ray_eraser.connect("over-http").receipt(RequestId(erasure)), salt)

        browser.click("#forget-key")
        assert browser.look("document.querySelector('#open').hidden")
        for _ in range(2):
            assert ERASER not in browser.look(
                "document.documentElement.outerHTML + JSON.stringify({...sessionStorage, ...localStorage})"
            )
            browser.open(f"{served.url}/")
        assert browser.look("document.querySelector('#open').hidden")
        browser.open(f"{served.url}/docs")
        assert "POST /erasures" in browser.text("main")
        assert browser.complaints == []


def test_what_is_stopped_is_503_until_it_runs_again_and_so_is_a_full_queue(served: Served, call: Call) -> None:
    # This must be the last test: from here on, erasures wait for a month.
    ray_eraser.connect("over-http").shutdown()
    status, _, headers = call("GET", "/status")
    assert (status, "retry-after" in headers) == (503, True)
    until(lambda: call("GET", "/healthz", key=None)[0] == 503)

    late = {"plan": "deadline=30d", "max_pending": 1}
    config = served.config.model_copy(update={"unlearning": served.config.unlearning.model_copy(update=late)})
    deploy("over-http", served.storage_path, config)
    until(lambda: call("GET", "/healthz", key=None)[0] == 200)
    assert call("POST", "/erasures", {"user_id": 1010})[0] == 202
    status, body, headers = call("POST", "/erasures", {"user_id": 1011})
    assert (status, "unlearning.max_pending" in body["error"]) == (503, True)
    assert int(headers["retry-after"]) >= 1
    (pending,) = call("GET", "/erasures")[1]
    assert call("GET", f"/erasures/{pending['id']}/receipt")[0] == 409
