"""Jobs that only read: they start no Ray, take nothing over, and show nothing of what an accepted request forgot."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from test_jobs import JOBS, run

from ray_eraser.config import EraserConfig
from ray_eraser.coordinator import Coordinator
from ray_eraser.data.dataset import Dataset
from ray_eraser.pool import LocalShardPool
from ray_eraser.unlearning.evidence import ReceiptFile
from ray_eraser.unlearning.receipt_files import Accepted, make
from ray_eraser.unlearning.request import UnlearningRequest

ERASED, WAITING, LEFT = 1003, 1004, 1005
HERE = ("--storage-path", "kept", "--ray-address", "local")


class Shop:
    """A deployment that this process runs: it has forgotten one user, and is asked to forget another."""

    def __init__(self, folder: Path, dataset: Dataset, config: EraserConfig) -> None:
        self.folder = folder
        path = str(folder / "kept")
        self.coordinator = Coordinator("kept", path, partial(LocalShardPool, path), config)
        self.coordinator.fit(dataset)
        self.done = self.coordinator.submit(UnlearningRequest(user_id=ERASED))
        self.coordinator.process_pending()
        self.waiting = self.coordinator.submit(UnlearningRequest(user_id=WAITING))


@pytest.fixture(scope="module")
def shop(tiny: Dataset, tiny_config: EraserConfig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    opened = Shop(tmp_path_factory.mktemp("shop"), tiny, tiny_config)
    yield opened
    opened.coordinator.close()


def ask(job: str, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a job in a process that cannot import Ray."""
    (folder / "without" / "ray").mkdir(parents=True, exist_ok=True)
    (folder / "without" / "ray" / "__init__.py").write_text("raise SystemExit('Ray was imported')")
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment["PYTHONPATH"] = str(folder / "without")
    command = [sys.executable, str(JOBS / f"{job}.py"), *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=250, check=False)


def told(job: str, *arguments: str, folder: Path) -> dict[str, Any]:
    done = ask(job, *arguments, "--json", folder=folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_recommendations_are_those_of_the_coordinator_that_runs_and_goes_on(shop: Shop) -> None:
    answer = told("recommend", *HERE, "--user-id", str(LEFT), "--n", "5", folder=shop.folder)
    assert answer["items"] == shop.coordinator.recommend(LEFT, 5)
    shop.coordinator.keep_in_force()
    assert shop.coordinator.recommend(LEFT, 5) == answer["items"]


@pytest.mark.parametrize("user", [ERASED, WAITING, 77])
def test_who_is_forgotten_or_waits_to_be_is_unknown(shop: Shop, user: int) -> None:
    done = ask("recommend", *HERE, "--user-id", str(user), folder=shop.folder)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: no user '{user}' here: it was never learned from, or it has been erased\n"


def test_vectors_are_those_of_the_excision(shop: Shop) -> None:
    exported = told("export_vectors", *HERE, "--out", "vectors", folder=shop.folder)
    served = shop.coordinator.vectors()
    assert (exported["serving"], exported["n_users"]) == ("excision", len(served.user_ids))


def test_an_evaluation_leaves_out_what_waits_and_says_so(shop: Shop) -> None:
    done = ask("evaluate", "--storage-path", "kept", "--split", "valid", "--json", folder=shop.folder)
    assert done.returncode == 0, done.stderr
    assert "notice: requests wait to be carried out" in done.stderr
    held = sum(len(set(data.valid.users.tolist())) for data in shop.coordinator.shard_data().values())
    assert 0 < json.loads(done.stdout)["n_users"] <= held


def test_the_status_says_who_runs_the_deployment(shop: Shop) -> None:
    stored = told("status", *HERE, folder=shop.folder)
    assert (stored["running"], stored["requests"]["excised"], stored["alarms"]) == (False, 1, [])
    (holder,) = stored["held_by"]
    assert f"(process {os.getpid()})" in holder
    shown = ask("status", *HERE, folder=shop.folder).stdout
    assert "nothing: it does not run here" in shown
    assert f"(process {os.getpid()})" in shown


def test_a_request_that_is_not_left_out_after_a_minute_is_an_alarm(
    tiny: Dataset, tiny_config: EraserConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "kept")
    coordinator = Coordinator("kept", path, partial(LocalShardPool, path), tiny_config, clock=lambda: 1000.0)
    coordinator.fit(tiny)
    monkeypatch.setattr(coordinator._intake, "excise", lambda: None)  # it dies between the two
    coordinator.submit(UnlearningRequest(user_id=ERASED))
    coordinator.close()
    stored = told("status", *HERE, folder=tmp_path)
    assert stored["alarms"] == ["accepted more than 60 s ago, and not left out of what is served: 1 (start the deployment)"]
    assert "alarm 1" in ask("status", *HERE, folder=tmp_path).stdout
    # Nor is it shown meanwhile.
    assert ask("recommend", *HERE, "--user-id", str(ERASED), folder=tmp_path).returncode == 2


def test_the_record_is_read_from_the_ledger(shop: Shop) -> None:
    assert told("export", "--storage-path", "kept", "--out", "all.csv", folder=shop.folder)["requests"] == 2


def test_an_audit_trains_in_its_own_process(shop: Shop) -> None:
    audited = told("audit", *HERE, "--user-id", str(ERASED), folder=shop.folder)
    assert (audited["exact"], audited["found_erased_pairs"]) == (True, 0)


# ---- receipts that come later ------------------------------------------------------------------------------------------------


def test_a_receipt_is_fetched_later_into_the_file_that_has_the_salt(shop: Shop, tmp_path: Path) -> None:
    file, other = tmp_path / "r.json", tmp_path / "other.json"
    make(file, Accepted(shop.done.request_id, shop.done.salt, "kept").to_json())
    early = ask("audit", *HERE[:2], "--receipt", str(file), folder=shop.folder)
    assert early.returncode == 2
    assert f"request {shop.done.request_id} was accepted: fetch it with receipt.py --receipt {file}" in early.stderr

    fetched = told("receipt", *HERE, "--receipt", str(file), folder=shop.folder)
    assert (fetched["request_id"], fetched["state"]) == (shop.done.request_id, "erased")
    assert ReceiptFile.from_json(file.read_text()).salt == shop.done.salt
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert told("audit", *HERE[:2], "--receipt", str(file), "--user-id", str(ERASED), folder=shop.folder)["holds"]

    again = ask("receipt", *HERE, "--request-id", shop.done.request_id, "--receipt", str(file), folder=shop.folder)
    assert (again.returncode, again.stderr) == (2, f"error: {file} exists and is never written over: choose another name\n")
    told("receipt", *HERE, "--request-id", shop.done.request_id, "--receipt", str(other), folder=shop.folder)
    assert ReceiptFile.from_json(other.read_text()).salt is None


def test_while_there_is_no_receipt_it_says_so_with_exit_code_one(shop: Shop, tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    make(file, Accepted(shop.waiting.request_id, shop.waiting.salt).to_json())
    before = file.read_text()
    done = ask("receipt", *HERE, "--receipt", str(file), "--json", folder=shop.folder)
    assert done.returncode == 1
    assert json.loads(done.stdout) == {"request_id": shop.waiting.request_id, "state": "excised"}
    assert "its receipt comes when it has been carried out" in done.stderr
    assert file.read_text() == before


@pytest.mark.parametrize(
    ("job", "arguments", "said"),
    [
        ("receipt", (), "give --request-id ID, or --receipt FILE"),
        ("receipt", ("--request-id", "none"), "no unlearning request 'none'"),
        ("receipt", ("--request-id", "a", "--receipt", "none/r.json"), "none/r.json cannot be written (No such file"),
        ("unlearn", ("--user-id", str(LEFT), "--receipt", "there.json"), "there.json exists and is never written over"),
        ("unlearn", ("--user-id", str(LEFT), "--receipt", "none/r.json"), "none/r.json cannot be written (No such file"),
    ],
)
def test_a_place_or_a_request_that_cannot_be_used_is_said_before_anything_is_asked(
    shop: Shop, job: str, arguments: tuple[str, ...], said: str
) -> None:
    (shop.folder / "there.json").write_text("mine")
    before = shop.coordinator.describe().requests
    done = ask(job, *HERE, *arguments, folder=shop.folder)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert said in done.stderr
    assert (shop.folder / "there.json").read_text() == "mine"
    assert shop.coordinator.describe().requests == before


@pytest.mark.parametrize("job", ["recommend", "export_vectors", "status"])
def test_where_nothing_is_stored_nothing_is_made(job: str, tmp_path: Path) -> None:
    more = {"recommend": ("--user-id", "1"), "export_vectors": ("--out", "vectors"), "status": ()}[job]
    done = run(job, "--storage-path", "kept", "--ray-address", "local", *more, folder=tmp_path)
    assert done.returncode == 2
    assert "nothing is deployed at" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("job", ["stop", "process", "receipt"])
def test_help_says_what_a_job_does_and_gives_an_example(job: str, tmp_path: Path) -> None:
    done = run(job, "--help", folder=tmp_path)
    assert done.returncode == 0
    assert f"python jobs/{job}.py" in done.stdout
