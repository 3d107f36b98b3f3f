"""Serving and the doctor as a person runs them: real processes, their output and exit codes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from functools import partial
from pathlib import Path

import commands
import pytest

from ray_eraser.config import EraserConfig
from ray_eraser.coordinator import Coordinator
from ray_eraser.data.dataset import Dataset
from ray_eraser.pool import LocalShardPool

READER, ERASER = "r" * 32, "e" * 32


def run(command: str, *arguments: str, folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a command that finds no Ray in its environment, and has the folder as its user's."""
    return commands.run(command, *arguments, folder=folder, env=commands.without_ray(HOME=str(folder), **more))


@pytest.fixture
def stored(tiny: Dataset, tiny_config: EraserConfig, tmp_path: Path) -> Path:
    """A folder with a deployment in `kept` and API keys in `api.keys`."""
    place = str(tmp_path / "kept")
    coordinator = Coordinator("default", place, partial(LocalShardPool, place), tiny_config)
    coordinator.fit(tiny)
    coordinator.close()
    keys = tmp_path / "api.keys"
    keys.write_text(f"read {READER}\nerase {ERASER}\n")
    keys.chmod(0o600)
    (tmp_path / "kept").chmod(0o700)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "give --keys FILE: without keys nothing is served"),
        (("--keys", "none"), "key file none cannot be read"),
        (("--keys", "open"), "key file open can be read by others: chmod 600 open"),
        (("--keys", "short"), "short, line 1: the key has 5 characters"),
    ],
)
def test_without_good_keys_nothing_is_served(arguments: tuple[str, ...], said: str, tmp_path: Path) -> None:
    (tmp_path / "open").write_text(f"read {READER}\n")
    (tmp_path / "open").chmod(0o644)
    (tmp_path / "short").write_text("read abcde\n")
    (tmp_path / "short").chmod(0o600)
    done = run("serve", *arguments, folder=tmp_path)
    assert commands.refusal(done).startswith(f"error: {said}")


def test_without_the_extra_an_error_names_it(stored: Path) -> None:
    (stored / "fastapi.py").write_text("raise ImportError('not here')\n")
    done = run("serve", "--storage-path", "kept", "--keys", "api.keys", folder=stored, PYTHONPATH=str(stored))
    assert commands.refusal(done).startswith("error: serving needs Ray Serve and FastAPI: pip install ")


def test_the_parts_without_a_server_import_without_the_extra(stored: Path) -> None:
    (stored / "fastapi.py").write_text("raise ImportError('not here')\n")
    code = "import ray_eraser.runtime.serve, ray_eraser.web.answers, ray_eraser.web.keys, ray_eraser.web.limits"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(stored)}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.ray
@pytest.mark.slow
def test_a_stored_deployment_is_served_until_it_is_asked_to_stop(stored: Path) -> None:
    pytest.importorskip("fastapi", reason="the extra serve is not installed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    clean = commands.without_ray(HOME=str(stored))
    where = ("--storage-path", "kept", "--keys", "api.keys", "--ray-address", "local", "--port", str(port), "--json")
    command = commands.words("serve", *where)
    with subprocess.Popen(command, cwd=stored, env=clean, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as serving:
        assert serving.stdout is not None
        url = json.loads(next(line for line in serving.stdout if line.startswith("{")))["url"]
        asked = urllib.request.Request(f"{url}/users/1003/recommendations?n=2", headers={"Authorization": f"Bearer {READER}"})
        with urllib.request.urlopen(asked, timeout=60) as answer:
            assert len(json.load(answer)["items"]) == 2
        serving.send_signal(signal.SIGTERM)
        _, said = serving.communicate(timeout=60)
    assert serving.returncode == 0
    assert "Traceback" not in said
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"{url}/healthz", timeout=5)


def test_a_deployment_in_order_passes_the_doctor(stored: Path) -> None:
    done = run("doctor", "--storage-path", "kept", "--keys", "api.keys", "--ray-address", "local", "--json", folder=stored)
    found = json.loads(done.stdout.splitlines()[-1])
    seen = {check["check"]: check["outcome"] for check in found["checks"]}
    expected = {"storage path", "stored files", "ledger", "disk space", "clock", "device", "deadlines", "set aside"}
    expected |= {"access to stored files", "access to the ledger", "files of the generation", "excisions"}
    assert set(seen) == {"API keys"} | expected
    # Where tests run may be in memory or nearly full.
    own = {name: outcome for name, outcome in seen.items() if name not in ("stored files", "ledger", "disk space")}
    assert set(own.values()) == {"OK"}
    assert (done.returncode == 0) is found["ok"]


def test_the_doctor_warns_with_exit_code_1_and_says_the_way_out(stored: Path) -> None:
    (stored / "api.keys").chmod(0o644)
    done = run("doctor", "--storage-path", "kept", "--keys", "api.keys", "--ray-address", "local", folder=stored)
    assert done.returncode == 1
    assert "WARN" in done.stdout
    assert "chmod 600 api.keys" in done.stdout


def test_the_doctor_needs_a_deployment(tmp_path: Path) -> None:
    done = run("doctor", "--storage-path", "nowhere", folder=tmp_path)
    assert done.returncode == 2
    assert "nothing is deployed at" in done.stderr
    assert list(tmp_path.iterdir()) == []
