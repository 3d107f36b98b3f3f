"""Jobs that are stopped, and what submitted ones leave behind, without a Ray."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from ray_eraser.store import Store

JOBS = Path(__file__).parents[2] / "jobs"

WAITING = """
import cli, time
with cli.exit_codes(debug=False):
    print("up", flush=True)
    time.sleep(60)
"""


ANSWERS = """
import cli, json, os, sys
from ray_eraser.errors import InputError

def is_refused(place):
    try:
        cli.place(place, "shop")
    except InputError as error:
        assert "a copy that Ray deletes" in str(error)
        return True
    return False

places = [None, "kept", "/srv/kept", "~/kept", "s3://bucket/kept"]
answers = []
for submission in (None, "raysubmit_1", "../a b"):
    os.environ["RAY_JOB_CONFIG_JSON_ENV_VAR"] = json.dumps({"metadata": {"job_submission_id": submission}})
    cli.keep("kept", {"answer": 42})
    answers.append([is_refused(place) for place in places])
print(json.dumps(answers))
"""


def _job(code: str, folder: Path) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(JOBS)}
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", code], env=environment, cwd=folder, stdout=pipe, stderr=pipe, text=True)


def test_a_stopped_job_says_so_in_one_line_and_exits_with_143(tmp_path: Path) -> None:
    job = _job(WAITING, tmp_path)
    assert job.stdout.readline() == "up\n"
    job.send_signal(signal.SIGTERM)
    _, said = job.communicate(timeout=3)  # as long as Ray waits
    assert job.returncode == 143
    assert said == "stopped: what is stored and recorded is whole, and the next job goes on from it\n"


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
