"""Progress, status, logs for programs, and vectors: the jobs as an operator runs them, against one deployment."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from test_jobs import JOBS, SMALL, result, run

from ray_eraser.status import Progress

NAMES = ("status", "export_vectors")


@pytest.mark.parametrize("job", NAMES)
def test_help_says_what_a_job_does_and_gives_an_example(job: str, tmp_path: Path) -> None:
    done = run(job, "--help", folder=tmp_path)
    assert done.returncode == 0
    assert f"python jobs/{job}.py" in done.stdout
    assert "--log-format" in done.stdout


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
    assert (refused.returncode, line["error"], line["problem"]) == (2, "UnknownIdError", "UnknownIdError")

    exported = result("export_vectors", *there, "--out", "vectors", **here)
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
    assert (unknown.returncode, unknown.stderr.count("\n")) == (2, 1)
    assert "no unlearning request 'nothing'" in unknown.stderr


def _says_what_was_learned(trained: subprocess.CompletedProcess[str]) -> None:
    fields, lines = json.loads(trained.stdout), trained.stderr.splitlines()
    assert "training shards 0/3" in lines
    n_learned, n_held = fields["n_interactions"], fields["held_out"]
    assert f"learned from {n_learned} interactions, {n_held} are held out for validation and stored" in lines
    (notice,) = [line for line in lines if line.startswith("notice: ")]
    assert re.fullmatch(r"notice: \d+ interactions are held out for a test: .* stored nowhere", notice)
    assert (fields["guarantee"], fields["chosen"]) == ("exact", [])


@pytest.fixture
def cli() -> Iterator[ModuleType]:
    sys.path.insert(0, str(JOBS))
    import cli

    people = cli.people
    yield cli
    cli.people = people
    sys.path.remove(str(JOBS))


def test_a_deployment_remembers_where_its_secrets_are_from_any_folder(
    cli: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = cli.settings(None, ["unlearning.key_folder=keys", "unlearning.signing_key=shop.pem"]).unlearning
    assert (given.key_folder, given.signing_key) == (str(tmp_path / "keys"), str(tmp_path / "shop.pem"))
    usual = cli.settings(None, []).unlearning
    assert (usual.key_folder, usual.signing_key) == ("", "")


STAGES = [
    Progress(),
    Progress("shards", 0, 2),
    Progress("shards", 0, 2),
    Progress("shards", 2, 2, "shard 1 in 0.1 s"),
    Progress("aggregation", 0, 1),
    Progress("shards", 0, 1),
]


def test_in_a_pipe_progress_is_a_line_for_each_change_also_of_a_second_run(cli: ModuleType) -> None:
    cli.people = Console(file=io.StringIO())
    with cli.TrainingProgress() as progress:
        for stage in STAGES:
            progress(stage)
    assert cli.people.file.getvalue().splitlines() == [
        "training shards 0/2", "training shards 2/2 shard 1 in 0.1 s", "aggregating 0/1", "training shards 0/1",
    ]  # fmt: skip


def test_in_a_pipe_what_is_long_stays_in_one_piece(
    cli: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    digest = "ab" * 100
    cli.print_table("receipt", {"digest": digest})
    assert digest in capsys.readouterr().out
    monkeypatch.setenv("COLUMNS", "60")  # whoever says how wide it is has it so
    cli.print_table("receipt", {"digest": digest})
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 60
    assert digest not in "".join(lines)


def test_on_a_terminal_progress_is_a_bar_for_each_stage(cli: ModuleType) -> None:
    cli.people = Console(file=io.StringIO(), force_terminal=True, width=100)
    with cli.TrainingProgress() as progress:
        for stage in STAGES[:5]:
            progress(stage)
    shown = cli.people.file.getvalue()
    assert "\x1b[" in shown
    assert "training shards" in shown
    assert "2/2" in shown
