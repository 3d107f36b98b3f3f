"""The jobs as a person or a script runs them: real processes, their output and exit codes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import environment, refusal, result, run

SMALL = """
[data]
synthetic_users = 60
synthetic_items = 40
synthetic_per_user = 8
synthetic_communities = 3
test_share = 0.2
valid_share = 0.1
[partition]
n_shards = 3
[model]
kind = "wmf"
width = 8
epochs = 3
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "small.toml").write_text(SMALL)
    return tmp_path


@pytest.mark.ray
@pytest.mark.slow
def test_on_a_cluster_a_deployment_outlives_its_job_and_forgets_for_another(folder: Path, ray_session: None) -> None:
    import ray

    import ray_eraser

    address = ray.get_runtime_context().gcs_address
    here = {"folder": folder, "ray_address": address}
    trained = result("train", "--config", "small.toml", "--deployment", "outlives", **here)
    expected = {
        "deployment", "storage_path", "generation", "n_users", "n_items", "n_interactions",
        "n_shards", "shard_sizes", "partition", "guarantee", "seconds", "model", "model_chosen_by",
    }  # fmt: skip
    assert expected <= set(trained)
    assert set(trained["seconds"]) == {"partition", "shards", "aggregation", "total"}
    assert trained["generation"] == 1
    assert (trained["guarantee"], trained["chosen"]) == ("exact-given-settings", ["model.alpha0"])
    assert (trained["model"], trained["model_chosen_by"]) == ("wmf", "settings")
    assert trained["held_out"] > 0
    assert sum(trained["shard_sizes"]) == trained["n_interactions"]

    assert len(result("recommend", "--deployment", "outlives", "--user-id", "1003", "--n", "4", **here)["items"]) == 4
    erased = result("unlearn", "--deployment", "outlives", "--user-id", "1003", "--receipt", "receipt.json", **here)
    expected = {
        "request_id", "state", "guarantee", "shards_touched", "pairs_erased", "seconds", "generation", "purged",
    }  # fmt: skip
    assert expected <= set(erased)
    assert set(erased["seconds"]) == {"to_forget", "to_restore", "to_purge"}
    assert (erased["state"], erased["generation"], len(erased["shards_touched"])) == ("erased", 2, 1)
    assert json.loads((folder / "receipt.json").read_text())["commitment"] == erased["commitment"]
    assert result("verify", "--deployment", "outlives", "--receipt", "receipt.json", "--user-id", "1003", **here)["holds"]

    gone = run("recommend", "--deployment", "outlives", "--user-id", "1003", **here)
    assert "no user '1003' here" in refusal(gone)

    (folder / "pairs.csv").write_text("1004,99999\n")
    refused = run("unlearn", "--deployment", "outlives", "--pairs", "pairs.csv", **here)
    assert "1 pair is absent (never learned, held out for the test, or erased already): ('1004', '99999')" in refusal(refused)

    client = ray_eraser.connect("outlives")
    assert client.describe().generation == 2
    client.shutdown()


@pytest.mark.ray
@pytest.mark.slow
def test_with_a_ray_of_its_own_each_job_goes_on_from_storage(folder: Path) -> None:
    here = {"folder": folder}
    alone = ("--storage-path", "kept", "--ray-address", "local")
    assert result("train", "--config", "small.toml", *alone, **here)["generation"] == 1
    assert result("unlearn", "--user-id", "1005", *alone, **here)["state"] == "erased"
    audited = result("audit", "--user-id", "1005", *alone, **here)
    assert (audited["exact"], audited["mismatches"], audited["found_erased_pairs"]) == (True, [], 0)
    assert audited["compared"] >= 7

    measured = result("evaluate", "--storage-path", "kept", **here)
    assert {f"{name}@{n}" for name in ("recall", "ndcg") for n in (10, 20, 50)} | {"n_users"} <= set(measured)
    assert 0 < measured["recall@10"] <= measured["recall@20"] <= measured["recall@50"] <= 1
    assert measured["unknown_users"] <= 1

    (damaged,) = (folder / "kept" / "shards" / "0").glob("submodel-*.safetensors")
    content = damaged.read_bytes()
    damaged.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    failed = run("audit", "--json", *alone, **here)
    assert failed.returncode == 1
    assert json.loads(failed.stdout.splitlines()[-1])["exact"] is False
    assert damaged.name in failed.stdout


@pytest.mark.ray
@pytest.mark.slow
def test_a_folder_of_parquet_parts_is_trained_on_in_fragments_and_evaluated_as_one_log(folder: Path) -> None:
    (folder / "log").mkdir()
    users, items = (column.ravel() for column in np.mgrid[100:140, 1:31])
    some = (users * 7 + items * 11) % 4 > 0
    for part in range(3):
        chosen = some & (users % 3 == part)
        table = pa.table({"user_id": users[chosen], "item_id": items[chosen]})
        pq.write_table(table, folder / "log" / f"part-{part}.parquet")
    alone = ("--storage-path", "kept", "--ray-address", "local")
    done = run("train", "--config", "small.toml", "--data", "log", *alone, folder=folder)
    assert done.returncode == 0, done.stderr
    assert "dividing 0/3" in done.stderr
    assert "trained on log" in done.stdout
    (n_learned, n_held), n_test = (
        map(int, re.search(r"^learned from (\d+) interactions, (\d+) are held out", done.stderr, re.MULTILINE).groups()),
        int(re.search(r"^notice: (\d+) interactions are held out for a test", done.stderr, re.MULTILINE)[1]),
    )
    assert n_learned + n_held + n_test == some.sum()
    assert f"read {some.sum()} rows: 0 merged" in done.stderr.splitlines()
    assert re.search(
        r"^model\.alpha0 = [0-9.]+ was chosen from the log: receipts claim 'exact-given-settings'$", done.stderr, re.MULTILINE
    )
    assert re.search(r"^model: wmf \(as set\)$", done.stderr, re.MULTILINE)
    measured = result("evaluate", "--storage-path", "kept", "--data", "log", folder=folder)
    assert 30 < measured["n_users"] <= 40
    assert measured["unknown_users"] == 0
    (folder / "log" / "part-1.parquet").write_bytes(b"nothing")
    refused = run("train", "--data", "log", "--storage-path", "other", "--ray-address", "local", folder=folder)
    assert "part-1.parquet" in refusal(refused)


def test_prepared_data_is_what_was_read(folder: Path) -> None:
    log = "".join(f"{user}\t{item}\t{1 + (user + item) % 5}\t0\n" for user in range(1, 31) for item in range(1, 21))
    (folder / "u.data").write_text(log)
    prepared = result("prepare", "--data", "u.data", "--output", "ready", "--set", "data.min_rating=3", folder=folder)
    assert prepared["n_users"] == 30
    assert prepared["n_items"] == 20
    assert prepared["below_rating"] == 30 * 20 * 2 // 5
    assert prepared["train"] + prepared["valid"] + prepared["test"] == 30 * 20 * 3 // 5
    again = result("prepare", "--data", "ready", "--output", "twice", folder=folder)
    assert {key: again[key] for key in ("train", "valid", "test")} == {key: prepared[key] for key in ("train", "valid", "test")}


def test_the_newest_rows_are_named_by_the_time_from_which_they_are_the_test_set(folder: Path) -> None:
    (folder / "u.data").write_text("".join(f"{n % 3 + 1}\t{n}\t5\t{1000 + n}\n" for n in range(1, 11)))
    done = run("prepare", "--data", "u.data", "--newest", "0.2", folder=folder)
    assert (done.returncode, done.stdout) == (0, "data.test_from=1009\n")
    ready = result("prepare", "--data", "u.data", "--output", "ready", "--set", done.stdout.strip(), folder=folder)
    assert (ready["rows_read"], ready["train"], ready["test"], ready["left_out"]) == (10, 8, 2, {})


@pytest.mark.parametrize(
    ("job", "arguments", "said"),
    [
        ("prepare", ("--data", "synthetic"), "name the folder that the prepared log goes to"),
        ("prepare", ("--download", "1m", "--newest", "0.2"), "name the log with --data"),
        ("recommend", (), "give --user-id ID, which may be repeated, or --like ITEM"),
        ("recommend", ("--user-id", "1", "--like", "2"), "give --user-id ID, which may be repeated, or --like ITEM"),
        ("train", ("--data", "nowhere"), "nowhere"),
        ("train", ("--set", "model.color=red"), "config model.color: unknown key"),
        ("train", ("--set", "partition.n_shards=0"), "config partition.n_shards"),
        ("train", ("--config", "missing.toml"), "missing.toml"),
        ("unlearn", (), "give one of --user-id, --item-id, --pairs and --requests"),
        ("unlearn", ("--user-id", "1", "--item-id", "2"), "give one of --user-id, --item-id, --pairs and --requests"),
        ("unlearn", ("--pairs", "bad.csv"), "bad.csv, line 2"),
        ("evaluate", ("--storage-path", "nowhere"), "nothing is deployed at"),
        ("audit", ("--storage-path", "nowhere"), "nothing is deployed at"),
        ("prepare", ("--output", "x"), "give either --data or --download"),
    ],
)
def test_bad_input_is_one_line_exit_code_two_and_no_file(
    job: str, arguments: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    (tmp_path / "bad.csv").write_text("1,2\n3\n")
    assert said in refusal(run(job, *arguments, folder=tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["bad.csv"]


def test_an_error_of_a_submitted_job_names_the_place_and_quotes_nothing(tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_text("1,2\nsecret-user\n")
    submitted = environment(RAY_JOB_CONFIG_JSON_ENV_VAR='{"metadata": {"job_submission_id": "raysubmit_1"}}')
    where = ("--storage-path", str(tmp_path / "kept"))
    done = run("unlearn", "--pairs", "bad.csv", *where, folder=tmp_path, env=submitted)
    assert refusal(done).startswith("error: bad.csv, line 2: cannot be used")
    assert "secret-user" not in done.stderr
    assert "secret-user" in run("unlearn", "--pairs", "bad.csv", *where, folder=tmp_path).stderr
    unknown = run("train", "--set", "model.color=red", *where, folder=tmp_path, env=submitted)
    assert refusal(unknown) == "error: config model.color: unknown key"


def test_debug_shows_where_an_error_came_from(tmp_path: Path) -> None:
    assert "Traceback" in run("train", "--data", "nowhere", "--debug", folder=tmp_path).stderr


def test_printed_settings_can_be_read_back(tmp_path: Path) -> None:
    first = run("train", "--set", "model.solver=adagrad", "--print-settings", folder=tmp_path).stdout
    (tmp_path / "all.toml").write_text(first)
    assert 'solver = "adagrad"' in first
    assert run("train", "--config", "all.toml", "--print-settings", folder=tmp_path).stdout == first
