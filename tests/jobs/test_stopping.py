"""Jobs that are stopped, and what submitted ones leave behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pytest
from commands import words

from ray_eraser.store import Store

LINE = "{}: stored and recorded data is complete, and the next command continues from it\n"

# In each, `up` is printed where the job is stopped.
WAITING = """
import time
from ray_eraser.cli.program import exit_codes
with exit_codes(debug=False):
    print("up", flush=True)
    time.sleep(60)
"""
# A package that takes its time, in the place of one that commands import.
IMPORTING = """
import sys, types
from ray_eraser.cli.main import main

class Slow:
    def find_spec(self, name, *_):
        if name == "typer":
            print("up", flush=True)
            while True:
                pass

sys.meta_path.insert(0, Slow())
sys.argv = ["ray-eraser", "train"]
main()
"""
# numpy's threads are there before anything is said of signals.
IN_C = """
import ctypes, numpy
from ray_eraser.cli.program import exit_codes
with exit_codes(debug=False):
    numpy.ones((500, 500)) @ numpy.ones((500, 500))
    print("up", flush=True)
    ctypes.CDLL(None).sleep(60)
"""
ANOTHERS_HANDLER = """
import signal, sys, time
from ray_eraser.cli.program import exit_codes
with exit_codes(debug=False):
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(15))  # as Ray does while it starts
    print("up", flush=True)
    time.sleep(60)
"""
CLEANING = """
import pathlib, tempfile, time
from ray_eraser.cli.program import exit_codes
with exit_codes(debug=False), tempfile.TemporaryDirectory(dir=".") as folder:
    pathlib.Path(folder, "of-a-user").touch()
    print("up", flush=True)
    try:
        while True:
            time.sleep(0.01)
    finally:
        raise RuntimeError("as Ray's connections do then")
"""
HANDED_OVER = """
import threading, time
from ray_eraser.cli.program import exit_codes
from ray_eraser.runtime import signals
with exit_codes(debug=False):
    asked = threading.Event()
    with signals.handed_to(asked.set):
        print("up", flush=True)
        asked.wait()
    print("closed in good order")
"""
WITH_CHILDREN = """
import multiprocessing, subprocess, time
from ray_eraser.cli.program import exit_codes
with exit_codes(debug=False):
    forked = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    forked.start()
    started = subprocess.Popen(["sleep", "60"], preexec_fn=lambda: None)
    for child in (forked, started):
        child.terminate()
    forked.join()
    print(forked.exitcode, started.wait(), flush=True)
"""
DONE = """
import atexit, time
from ray_eraser.cli.program import exit_codes
atexit.register(time.sleep, 60)
with exit_codes(debug=False):
    print("the result")
print("up", flush=True)
"""

ANSWERS = """
import json, os
from ray_eraser.cli.reaching import place as stored_at
from ray_eraser.cli.submitted import keep
from ray_eraser.errors import InputError

def is_refused(place):
    try:
        stored_at(place, "shop")
    except InputError as error:
        assert "a copy that Ray deletes" in str(error)
        return True
    return False

places = [None, "kept", "/srv/kept", "~/kept", "s3://bucket/kept"]
answers = []
for submission in (None, "raysubmit_1", "../a b"):
    os.environ["RAY_JOB_CONFIG_JSON_ENV_VAR"] = json.dumps({"metadata": {"job_submission_id": submission}})
    keep("train", "kept", {"answer": 42})
    answers.append([is_refused(place) for place in places])
print(json.dumps(answers))
"""


def _job(code: str, folder: Path) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", code], cwd=folder, stdout=pipe, stderr=pipe, text=True)


def _stopped(code: str, folder: Path, number: int = signal.SIGTERM, within: float = 30) -> tuple[int, str, str]:
    job = _job(code, folder)
    assert job.stdout is not None
    while (line := job.stdout.readline()) != "up\n":
        assert line, job.communicate()[1]
    job.send_signal(number)
    try:
        out, said = job.communicate(timeout=within)
    finally:
        job.kill()
        job.communicate()
    return job.returncode, out, said


@pytest.mark.parametrize(
    "code",
    [WAITING, IMPORTING, IN_C, ANOTHERS_HANDLER, DONE],
    ids=["asleep", "importing", "in-c", "under-another-handler", "after-its-end"],
)
def test_a_stopped_job_says_so_in_one_line_and_exits_with_143(code: str, tmp_path: Path) -> None:
    assert _stopped(code, tmp_path) == (143, "", LINE.format("stopped"))


def test_an_interrupted_job_exits_with_130_and_at_once_when_asked_twice(tmp_path: Path) -> None:
    assert _stopped(CLEANING, tmp_path, signal.SIGINT) == (130, "", LINE.format("interrupted"))
    job = _job(WAITING, tmp_path)
    assert job.stdout.readline() == "up\n"
    job.send_signal(signal.SIGINT)
    assert job.stderr.readline() == LINE.format("interrupted")
    job.send_signal(signal.SIGINT)
    job.wait(30)
    job.communicate()
    assert job.returncode == 130


def test_a_stopped_job_cleans_up_and_its_exit_code_stays_whatever_is_raised_then(tmp_path: Path) -> None:
    assert _stopped(CLEANING, tmp_path) == (143, "", LINE.format("stopped"))
    assert list(tmp_path.iterdir()) == []


def test_a_job_can_end_in_good_order_when_it_is_stopped(tmp_path: Path) -> None:
    assert _stopped(HANDED_OVER, tmp_path) == (0, "closed in good order\n", "")


def test_what_a_job_has_started_can_be_stopped(tmp_path: Path) -> None:
    job = _job(WITH_CHILDREN, tmp_path)
    out, _ = job.communicate(timeout=30)
    assert out == "-15 -15\n"


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("seconds", [1, 2, 4, 6, 9, 13])
def test_a_training_can_be_stopped_at_any_time_and_leaves_no_ray(seconds: float, tmp_path: Path) -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    # By this all that it starts is known again.
    marked = clean | {"STOPPED_BY_A_TEST": str(tmp_path), "RAY_TMPDIR": tempfile.mkdtemp(prefix="re", dir="/tmp")}
    where = ("--storage-path", str(tmp_path / "t"), "--ray-address", "local", "--set", "data.synthetic_users=4000")
    command = words("train", "--data", "synthetic", "--set", "model.kind=wmf", *where)
    with subprocess.Popen(command, env=marked, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as job:
        time.sleep(seconds)
        job.send_signal(signal.SIGTERM)
        job.wait(30)
        assert job.returncode == 143
        assert job.stderr is not None
        assert job.stderr.read().endswith(LINE.format("stopped"))
    shutil.rmtree(marked["RAY_TMPDIR"], ignore_errors=True)
    end = time.monotonic() + 20
    while left := _marked(str(tmp_path)):
        assert time.monotonic() < end, left
        time.sleep(0.2)


def _marked(mark: str) -> list[str]:
    """What runs with the mark in its environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"STOPPED_BY_A_TEST={mark}".encode() in (process / "environ").read_bytes().split(b"\0"):
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return found


def test_only_a_submitted_job_keeps_its_result_and_may_not_store_in_its_own_folder(tmp_path: Path) -> None:
    job = _job(ANSWERS, tmp_path)
    answers, said = job.communicate(timeout=60)
    assert job.returncode == 0, said
    refused = [True, True, False, False, False]
    assert json.loads(answers) == [[False] * 5, refused, refused]
    store = Store(str(tmp_path / "kept"))
    assert store.everything() == ["results/.._a_b.json", "results/raysubmit_1.json"]
    assert store.files() == [], "a sweep or an audit would take a result for a part of a generation"
    assert json.loads((tmp_path / "kept" / "results" / "raysubmit_1.json").read_text())["result"] == {"answer": 42}
