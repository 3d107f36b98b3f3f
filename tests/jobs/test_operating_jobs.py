"""Progress, status, logs for programs, and vectors: the jobs as an operator runs them, against one deployment."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from commands import environment, refusal, result, run, words
from rich.console import Console
from test_jobs import SMALL

from ray_eraser.cli import inputs, output
from ray_eraser.cli.progress import TrainingProgress
from ray_eraser.config import EraserConfig, config_from
from ray_eraser.coordinator import Coordinator
from ray_eraser.data.dataset import Dataset
from ray_eraser.data.files import read_dataset
from ray_eraser.errors import StaleEpochError
from ray_eraser.pool import LocalShardPool
from ray_eraser.status import Progress
from ray_eraser.unlearning.request import UnlearningRequest


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_operators_day(tmp_path: Path, ray_session: None) -> None:
    """One deployment for all, because each job takes seconds to start."""
    import ray

    import ray_eraser

    (tmp_path / "small.toml").write_text(SMALL)
    here = {"folder": tmp_path, "ray_address": ray.get_runtime_context().gcs_address}
    there = ("--deployment", "day", "--storage-path", "day")
    longer = ("--set", "model.solver=adagrad", "--set", "model.epochs=10000", "--set", "aggregation.foldin_alpha0=0.3")
    trained = run("train", "--config", "small.toml", *there, *longer, "--json", **here)
    _says_what_was_learned(trained)

    running = result("status", "--deployment", "day", **here)
    assert (running["running"], running["serving"], running["pending"]) == (True, "generation", [])
    assert set(running["processes"]) >= {"shard-0", "shard-1", "shard-2"}
    assert all(process["address"] != "down" for process in running["processes"].values())

    # Text for people: plain lines in a pipe, each stage as it comes.
    erased = run("unlearn", *there, "--user-id", "1003", **here)
    assert erased.returncode == 0, erased.stderr
    assert re.search(r"^training shards 0/1", erased.stderr, re.MULTILINE), erased.stderr
    assert "\x1b" not in erased.stderr
    # Some of them belong to the test set, where a training on everything would put them.
    (tmp_path / "new.csv").write_text("user_id,item_id\n" + "".join(f"5000,{item}\n" for item in range(1, 21)))
    assert "training shards" in run("learn", *there, "--data", "new.csv", **here).stderr
    assert "training shards" in run("repartition", *there, **here).stderr

    # JSON for programs: every line of stderr is an object, and none names the user.
    logged = run("unlearn", *there, "--user-id", "1004", "--json", "--log-format", "json", **here)
    lines = [json.loads(line) for line in logged.stderr.splitlines()]
    asked = json.loads(logged.stdout)["request_id"]
    assert [line["event"] for line in lines if line.get("requests") == [asked]] == ["accepted", "finished"]
    assert "1004" not in re.sub(asked, "", logged.stderr)
    refused = run("recommend", *there, "--user-id", "1004", "--log-format", "json", **here)
    (line,) = [json.loads(line) for line in refused.stderr.splitlines()]
    assert (refused.returncode, line["error"]) == (2, "UnknownIdError")
    assert line["problem"] == "no such user here: it was never learned from, or it has been erased"

    exported = result("vectors", *there, "--out", "vectors", **here)
    assert (exported["generation"], exported["serving"]) == (5, "generation")
    ids = pq.read_table(tmp_path / "vectors" / "users.parquet")["id"].to_pylist()
    assert 5000 in ids
    assert {1003, 1004}.isdisjoint(ids)
    with np.load(tmp_path / "vectors" / "vectors.npz") as arrays:
        assert arrays["users"].shape == (len(ids), exported["width"])

    shown = run("status", "--deployment", "day", **here).stdout
    assert "deployment day" in shown
    assert "2 erased" in shown
    assert re.search(r"guarantee +│ exact ", shown)
    assert re.search(r"chosen from the log +│ nothing ", shown)

    ray_eraser.connect("day").shutdown()
    stored = result("status", *there, **here)  # nothing of this name runs any more
    assert (stored["running"], stored["generation"]) == (False, 5)
    assert stored["requests"] == {**running["requests"], "erased": 2, "done": 2}
    unknown = run("status", *there, "--retry", "nothing", **here)
    assert "no unlearning request 'nothing'" in refusal(unknown)
    ray_eraser.connect("day").shutdown()  # it was started to be told so


def _says_what_was_learned(trained: subprocess.CompletedProcess[str]) -> None:
    fields, lines = json.loads(trained.stdout), trained.stderr.splitlines()
    assert "training shards 0/3" in lines
    n_learned, n_held, n_test = fields["n_interactions"], fields["held_out"], fields["held_for_test"]
    assert fields["rows_read"] == fields["merged"] + sum(fields["left_out"].values()) + n_learned + n_held + n_test
    assert f"read {fields['rows_read']} rows: {fields['merged']} merged" in lines
    assert f"learned from {n_learned} interactions, {n_held} are held out for validation and stored" in lines
    (notice,) = [line for line in lines if line.startswith("notice: ")]
    assert re.fullmatch(r"notice: \d+ interactions are held out for a test: .* stored nowhere", notice)
    assert (fields["guarantee"], fields["chosen"]) == ("exact", [])


@pytest.fixture
def people() -> Iterator[None]:
    """Whatever a test has put in the place of the console for people, the next one has the usual one."""
    usual = output.people
    yield
    output.people = usual


def test_a_deployment_remembers_where_its_secrets_are_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = inputs.settings(None, ["unlearning.key_folder=keys", "unlearning.signing_key=shop.pem"]).unlearning
    assert (given.key_folder, given.signing_key) == (str(tmp_path / "keys"), str(tmp_path / "shop.pem"))
    usual = inputs.settings(None, []).unlearning
    assert (usual.key_folder, usual.signing_key) == ("", "")


ALONE = ("--storage-path", "kept", "--ray-address", "local")


@pytest.fixture
def kept(tiny: Dataset, tiny_config: EraserConfig, tmp_path: Path) -> Callable[..., Coordinator]:
    """Trains a deployment in the folder `kept`, in this process, which runs it until it is closed."""

    def train(**unlearning: Any) -> Coordinator:
        settings = tiny_config.unlearning.model_copy(update=unlearning)
        path = str(tmp_path / "kept")
        coordinator = Coordinator(
            "kept", path, partial(LocalShardPool, path), tiny_config.model_copy(update={"unlearning": settings})
        )
        coordinator.fit(tiny)
        return coordinator

    return train


@contextmanager
def in_force(coordinator: Coordinator) -> Iterator[list[Exception]]:
    """Renew its lease, as its service does, until it is refused, or the end; the error that it was refused with."""
    refused, ended = list[Exception](), threading.Event()

    def keep() -> None:
        while not ended.wait(0.2):
            try:
                coordinator.keep_in_force()
            except StaleEpochError as error:
                refused.append(error)
                return

    keeper = threading.Thread(target=keep)
    keeper.start()
    yield refused
    ended.set()
    keeper.join()


def started(job: str, *arguments: str, folder: Path) -> subprocess.Popen[str]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(words(job, *arguments), cwd=folder, env=environment(), **pipes)


def heard(job: subprocess.Popen[str], words: str) -> list[str]:
    """What a job says on stderr up to some words."""
    lines = []
    for line in job.stderr:
        lines.append(line)
        if words in line:
            return lines
    pytest.fail(f"{words!r} was not said: {''.join(lines)}")


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_jobs_at_once_each_with_a_ray_of_its_own_both_succeed(kept: Callable[..., Coordinator], tmp_path: Path) -> None:
    kept().close()
    jobs = [started("unlearn", *ALONE, "--user-id", user, "--json", folder=tmp_path) for user in ("1003", "1004")]
    ends = [job.communicate(timeout=500) for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], ends
    assert sorted(json.loads(said)["number"] for said, _ in ends) == [1, 2]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_job_waits_for_who_runs_the_deployment_and_says_so(kept: Callable[..., Coordinator], tmp_path: Path) -> None:
    coordinator = kept()
    with in_force(coordinator) as refused:
        job = started("unlearn", *ALONE, "--user-id", "1003", "--json", folder=tmp_path)
        *_, line = heard(job, "waits for")
    assert re.fullmatch(rf"waits for deployment 'kept' on .* \(process {os.getpid()}\), up to 60 s\n", line)
    assert refused == []
    coordinator.close()
    said, problem = job.communicate(timeout=400)
    assert job.returncode == 0, problem
    assert json.loads(said)["state"] == "erased"


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_who_does_not_end_is_not_disturbed_unless_taken_over(kept: Callable[..., Coordinator], tmp_path: Path) -> None:
    coordinator = kept(lease_seconds=15.0)
    with in_force(coordinator) as refused:
        waited = run("repartition", *ALONE, folder=tmp_path)
        assert refused == []
        assert waited.returncode == 2
        *_, last = waited.stderr.splitlines()
        assert last.startswith("error: deployment 'kept' on ")
        assert last.endswith("ask it there, end it with ray-eraser stop, or take it over with --take-over")
        taken = run("process", *ALONE, "--take-over", "--json", folder=tmp_path)
        assert taken.returncode == 0, taken.stderr
        assert "takes over from deployment 'kept' on" in taken.stderr
    assert len(refused) == 1
    coordinator.close()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_receipt_that_comes_later_is_fetched_with_the_salt_of_the_acceptance(
    kept: Callable[..., Coordinator], tmp_path: Path
) -> None:
    kept(plan="deadline=20d").close()
    accepted = run("unlearn", *ALONE, "--user-id", "1003", "--receipt", "r.json", "--json", folder=tmp_path)
    assert accepted.returncode == 0, accepted.stderr
    told, file = json.loads(accepted.stdout), tmp_path / "r.json"
    begun = json.loads(file.read_text())
    assert (begun["state"], begun["request_id"], begun["salt"]) == ("accepted", told["request_id"], told["salt"])
    assert file.stat().st_mode & 0o777 == 0o600
    assert f"request {told['request_id']}, salt {told['salt']}" in accepted.stderr.splitlines()
    later = f"ray-eraser receipt --storage-path kept --request-id {told['request_id']} --receipt r.json"
    assert later in accepted.stderr
    early = run("receipt", *ALONE, "--receipt", "r.json", folder=tmp_path)
    assert (early.returncode, f"request {told['request_id']} waits, and its data is not served" in early.stderr) == (1, True)

    done = result("process", *ALONE, folder=tmp_path)
    assert (done["finished"], done["set_aside"], done["generation"]) == (1, [], 2)
    assert result("receipt", *ALONE, "--receipt", "r.json", folder=tmp_path)["state"] == "erased"
    audited = result("verify", *ALONE[:2], "--receipt", "r.json", "--user-id", "1003", folder=tmp_path)
    assert {finding["outcome"] for finding in audited["findings"]} == {"holds", "unchecked"}
    assert [one["check"] for one in audited["findings"] if one["outcome"] == "unchecked"] == ["signature"]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_log_that_still_has_the_erased_is_taken_back_only_where_that_is_said(
    kept: Callable[..., Coordinator], tmp_path: Path
) -> None:
    coordinator = kept(suppress_days=30.0)
    coordinator.submit(UnlearningRequest(user_id=1003), "case")
    coordinator.process_pending()
    coordinator.close()
    rows = ["1003,1", "1003,2", *(f"5000,{item}" for item in range(9)), "5000,1", "user_id,item_id"]
    (tmp_path / "log.csv").write_text("\n".join(["user_id,item_id", *rows]) + "\n")
    learned = run("learn", *ALONE, "--data", "log.csv", "--json", folder=tmp_path)
    assert learned.returncode == 0, learned.stderr
    assert "notice: 2 of the interactions were erased before, and are left out: --take-back learns them" in learned.stderr
    assert "read 13 rows: 1 merged, 1 header line in the middle left out" in learned.stderr
    told = json.loads(learned.stdout)
    assert (told["rows_read"], told["merged"], told["left_out"]) == (13, 1, {"header line in the middle": 1})
    assert (told["suppressed"], told["taken_back"], told["n_users"]) == (2, False, 60)
    back = run("learn", *ALONE, "--data", "log.csv", "--take-back", "--json", folder=tmp_path)
    assert back.returncode == 0, back.stderr
    assert "notice: 2 of the interactions were erased before, and are taken back" in back.stderr
    assert json.loads(back.stdout)["n_users"] == 61
    again = run("unlearn", *ALONE, "--user-id", "1003", "--idempotency-key", "case", "--json", folder=tmp_path)
    assert (again.returncode, json.loads(again.stdout)["here_again"]) == (1, True)
    assert "its data was learned again since: hand it in under a new idempotency key" in again.stderr
    assert "nothing that is served depends" not in again.stderr


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_stopped_it_can_be_started_elsewhere_at_once(
    kept: Callable[..., Coordinator], tmp_path: Path, ray_session: None
) -> None:
    import ray

    kept().close()
    here = {"folder": tmp_path, "ray_address": ray.get_runtime_context().gcs_address}
    there = ("--deployment", "kept", "--storage-path", "kept")
    assert result("process", *there, **here)["finished"] == 0  # it runs from here on
    running = result("status", "--deployment", "kept", **here)
    assert (running["running"], running["held_by"]) == (True, [])
    stopped = run("stop", "--deployment", "kept", "--json", **here)
    assert stopped.returncode == 0, stopped.stderr
    assert json.loads(stopped.stdout) == {"deployment": "kept", "ended": True, "storage_path": str(tmp_path / "kept")}
    assert f"can be started again from {tmp_path / 'kept'}" in stopped.stderr
    assert result("status", *there, **here)["held_by"] == []
    again = run("stop", *there, "--json", **here)
    assert (again.returncode, json.loads(again.stdout)["ended"]) == (0, False)
    assert "deployment 'kept' does not run on this Ray" in again.stderr


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_interrupted_after_the_acceptance_it_says_how_to_get_the_receipt(tmp_path: Path) -> None:
    config = config_from(
        {
            "data": {"synthetic_users": 300, "synthetic_items": 100, "synthetic_per_user": 20},
            "partition": {"n_shards": 2},
            "aggregation": {"foldin_alpha0": 0.3},
            "model": {"solver": "adagrad", "width": 16, "epochs": 3},
        }
    )
    path = str(tmp_path / "kept")
    coordinator = Coordinator("kept", path, partial(LocalShardPool, path), config)
    coordinator.fit(read_dataset("synthetic", config.data, config.seed))
    coordinator.repartition(["model.epochs=100000"])  # goes with the request, and takes long
    coordinator.close()
    job = started("unlearn", *ALONE, "--user-id", "1003", "--receipt", "r.json", folder=tmp_path)
    heard(job, "training shards")
    job.send_signal(signal.SIGINT)
    _, said = job.communicate(timeout=60)
    assert job.returncode == 130, said
    begun = json.loads((tmp_path / "r.json").read_text())
    assert f"ray-eraser receipt --storage-path kept --request-id {begun['request_id']} --receipt r.json" in said


STAGES = [
    Progress(),
    Progress("shards", 0, 2),
    Progress("shards", 0, 2),
    Progress("shards", 2, 2, "shard 1 in 0.1 s"),
    Progress("aggregation", 0, 1),
    Progress("shards", 0, 1),
]


def test_in_a_pipe_progress_is_a_line_for_each_change_also_of_a_second_run(people: None) -> None:
    output.people = Console(file=io.StringIO())
    with TrainingProgress() as progress:
        for stage in STAGES:
            progress(stage)
    assert output.people.file.getvalue().splitlines() == [
        "training shards 0/2", "training shards 2/2 shard 1 in 0.1 s", "aggregating 0/1", "training shards 0/1",
    ]  # fmt: skip


def test_in_a_pipe_what_is_long_stays_in_one_piece(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    digest = "ab" * 100
    output.print_facts("receipt", {"digest": digest})
    assert digest in capsys.readouterr().out
    monkeypatch.setenv("COLUMNS", "60")  # a width that was set is kept
    output.print_facts("receipt", {"digest": digest})
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 60
    assert digest not in "".join(lines)


def test_on_a_terminal_progress_is_a_bar_for_each_stage(people: None) -> None:
    output.people = Console(file=io.StringIO(), force_terminal=True, width=100)
    with TrainingProgress() as progress:
        for stage in STAGES[:5]:
            progress(stage)
    shown = output.people.file.getvalue()
    assert "\x1b[" in shown
    assert "training shards" in shown
    assert "2/2" in shown
