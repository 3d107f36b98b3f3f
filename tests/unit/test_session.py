"""Which Ray is used, and how soon it is known that none answers. Nothing here starts a Ray."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from ray_eraser.errors import InputError
from ray_eraser.runtime import reach, session

SETTINGS = b"\0\0\0\4\0\0\0\0\0"


@pytest.fixture(autouse=True)
def tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What Ray would have been asked to connect to, on a machine where no Ray runs and with less patience than usual."""
    asked: list[str] = []
    monkeypatch.setattr(session.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(session, "_init", lambda address, **_: asked.append(address))
    monkeypatch.setattr(reach.services, "find_gcs_addresses", frozenset)
    monkeypatch.setattr(reach, "_CONNECT_SECONDS", 0.5)
    monkeypatch.setattr(reach, "_ANSWER_SECONDS", 0.5)
    monkeypatch.setattr(reach, "_SLOW_SECONDS", 0.1)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (tmp_path / "ray").mkdir()
    return asked


def left_behind(folder: Path, address: str) -> None:
    (folder / "ray" / "ray_current_cluster").write_text(address)


@pytest.fixture
def nobody() -> Iterator[int]:
    """A port where nobody listens."""
    with socket.socket() as taken:
        taken.bind(("", 0))
        yield taken.getsockname()[1]


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    """A program that accepts connections, or whose kernel does so for it, and says nothing."""
    with socket.create_server(("", 0)) as listener:
        yield listener


def answering(listener: socket.socket, answer: bytes) -> int:
    def serve() -> None:
        connection, _ = listener.accept()
        with connection, suppress(ConnectionError):
            connection.recv(100)
            connection.sendall(answer)
            connection.recv(1)

    threading.Thread(target=serve, daemon=True).start()
    return int(listener.getsockname()[1])


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "localhost:{}"])
@pytest.mark.parametrize("by", ["argument", "RAY_ADDRESS"])
def test_an_address_where_nobody_answers_is_refused_at_once(form, by, nobody, tried, monkeypatch):
    address = form.format(nobody)
    if by == "RAY_ADDRESS":
        monkeypatch.setenv("RAY_ADDRESS", address)
    began = time.monotonic()
    with pytest.raises(InputError, match=f"no Ray answers at '{address}' .*refused.*: check the address, or use 'local'"):
        session.ensure_ray(address if by == "argument" else None)
    assert time.monotonic() - began < 5
    assert tried == []


def test_a_head_that_accepts_and_does_not_answer_is_named_and_then_refused(listening, tried, caplog):
    address = f"127.0.0.1:{listening.getsockname()[1]}"
    with pytest.raises(InputError, match=r"no answer within 0\.5 seconds"):
        session.ensure_ray(address)
    assert f"waiting for Ray at {address}, up to 1 seconds" in caplog.text
    assert tried == []


def test_another_program_at_the_address_is_no_ray(listening, tried):
    port = answering(listening, b"HTTP/1.1 400 Bad Request\r\n\r\n")
    with pytest.raises(InputError, match="another program listens there"):
        session.ensure_ray(f"127.0.0.1:{port}")
    assert tried == []


def test_a_ray_with_tls_is_left_to_ray(listening, tried, monkeypatch):
    monkeypatch.setenv("RAY_USE_TLS", "1")
    port = answering(listening, b"\x15\x03\x03\x00\x02\x02\x46\x00\x00")
    assert session.find_ray(f"127.0.0.1:{port}")
    assert tried == [f"127.0.0.1:{port}"]


def test_a_ray_that_answers_is_connected_to_and_nothing_is_said(listening, tried, caplog):
    address = f"127.0.0.1:{answering(listening, SETTINGS)}"
    assert session.ensure_ray(address) == session.Session(local=False)
    assert tried == [address]
    assert caplog.text == ""


def test_what_a_crashed_head_left_behind_gives_way_to_a_ray_of_ones_own(nobody, tried, caplog, tmp_path):
    left_behind(tmp_path, f"127.0.0.1:{nobody}")
    with caplog.at_level(logging.WARNING):
        assert session.ensure_ray() == session.Session(local=True)
    assert tried == ["local"]
    assert [record.getMessage().partition(" (")[0] for record in caplog.records] == [
        f"no Ray answers at {reach.find_address()}, where one ran before"
    ]


def test_who_asks_for_a_cluster_by_auto_gets_no_ray_of_their_own(nobody, tried, tmp_path):
    with pytest.raises(InputError, match=r"no Ray answers at 'auto' \(no Ray is running on this machine\)"):
        session.ensure_ray("auto")
    left_behind(tmp_path, f"127.0.0.1:{nobody}")
    with pytest.raises(InputError, match=f"no Ray answers at 'auto', which is .*:{nobody} "):
        session.ensure_ray("auto")
    assert tried == []


def test_a_ray_of_this_machine_is_found_by_its_file(listening, tried, tmp_path):
    left_behind(tmp_path, f"127.0.0.1:{answering(listening, SETTINGS)}")
    assert session.find_ray()
    assert tried == ["auto"]  # by its address, Ray would not look for the token of this machine


@pytest.mark.parametrize("noted", [True, False])
def test_a_new_deployment_joins_no_ray_that_another_program_began_for_itself(listening, tried, tmp_path, monkeypatch, noted):
    address = f"127.0.0.1:{answering(listening, SETTINGS)}"
    monkeypatch.setattr(reach.services, "find_gcs_addresses", lambda: frozenset({address}))
    if noted:  # as `ray start` does
        left_behind(tmp_path, address)
    assert session.find_ray(lasting=True) is noted
    assert tried == ["auto"] * noted


def test_a_reader_finds_the_ray_that_another_program_began_for_itself(listening, tried, monkeypatch):
    address = f"127.0.0.1:{answering(listening, SETTINGS)}"
    monkeypatch.setattr(reach.services, "find_gcs_addresses", lambda: frozenset({address}))
    assert session.find_ray()
    assert tried == ["auto"]


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("http://127.0.0.1:8265", "http:// is for 'ray job submit'"),
        ("https://127.0.0.1:8265", "http:// is for 'ray job submit'"),
        ("nowhere", "Invalid address format"),
        ("ray://:10001", "no port|no host|give host:port"),
        ("127.0.0.1:port", "Port could not be cast"),
    ],
)
def test_what_is_no_address_of_a_ray_is_refused(address, said, tried):
    with pytest.raises(InputError, match=said):
        session.ensure_ray(address)
    assert tried == []


def test_local_in_the_environment_is_a_ray_of_this_process(tried, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert session.ensure_ray() == session.Session(local=True)
    assert tried == ["local"]


def test_another_signal_handler_than_rays_stays_where_starting_it_fails(monkeypatch):
    monkeypatch.undo()
    import signal

    def own(*_):
        pass

    def failing(**_):
        signal.signal(signal.SIGTERM, lambda *_: None)
        raise ConnectionError("no Ray")

    before = signal.signal(signal.SIGTERM, own)
    monkeypatch.setattr(session.ray, "init", failing)
    try:
        with pytest.raises(ConnectionError):
            session._init("local")
        assert signal.getsignal(signal.SIGTERM) is own
    finally:
        signal.signal(signal.SIGTERM, before)
