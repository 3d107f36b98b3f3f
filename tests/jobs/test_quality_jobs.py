"""What is measured of a deployment's lists, and where nothing is held out, as a person or a script hears it. No Ray."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from commands import refusal, run

from ray_eraser.config import EraserConfig, config_from
from ray_eraser.coordinator import Coordinator
from ray_eraser.data.files import read_dataset
from ray_eraser.evaluation import evaluate
from ray_eraser.ids import RawId
from ray_eraser.pool import LocalShardPool
from ray_eraser.unlearning.request import UnlearningRequest


def measured(*arguments: str, folder: Path) -> dict[str, Any]:
    done = run("evaluate", "--storage-path", "kept", *arguments, "--json", folder=folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def own(result: dict[str, Any]) -> dict[str, Any]:
    """The result without the measures of the popularity list."""
    return {name: value for name, value in result.items() if not name.startswith("popularity_")}


def refused(job: str, *arguments: str, folder: Path) -> str:
    """What a job says in the one line with which it ends."""
    return refusal(run(job, *arguments, folder=folder))


def config_of(**data: Any) -> EraserConfig:
    return config_from({"data": data, "partition": {"n_shards": 2}, "model": {"width": 4, "epochs": 2, "alpha0": 0.3}})


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A folder with a split of its own: user n has the items n to n + 7, of 20 in a ring; the last two are the test set."""
    folder = tmp_path / "log"
    folder.mkdir()
    for name, first, last in (("train", 0, 6), ("test", 6, 8)):
        lines = (f"u{user} " + " ".join(f"i{(user + n) % 20}" for n in range(first, last)) for user in range(40))
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def deployed(tmp_path: Path, log: Path) -> Callable[..., dict[str, float]]:
    """Train in `kept`, learn, forget, and give the figures of what is served on some of the test pairs."""

    def deploy(
        config: EraserConfig,
        learned: Sequence[tuple[RawId, RawId]] = (),
        erased: RawId | None = None,
        without: Sequence[tuple[RawId, RawId]] = (),
    ) -> dict[str, float]:
        path = str(tmp_path / "kept")
        dataset = read_dataset(str(log), config.data, config.seed)
        coordinator = Coordinator("default", path, partial(LocalShardPool, path), config)
        coordinator.fit(dataset)
        if learned:
            coordinator.learn(learned)
        if erased is not None:
            coordinator.submit(UnlearningRequest(user_id=erased))
        coordinator.process_pending()
        keys = dataset.users.keys, dataset.items.keys
        train, _ = coordinator.shard_data()[0].in_rows_of(*keys)
        for data in list(coordinator.shard_data().values())[1:]:
            train = train.union([train, data.in_rows_of(*keys)[0]])
        pairs = zip(dataset.users.raw(dataset.test.users), dataset.items.raw(dataset.test.items), strict=True)
        wanted = [pair not in without and pair[0] != erased for pair in pairs]
        figures = evaluate(coordinator.served_model().in_rows(*keys), train, dataset.test.take(wanted))
        coordinator.close()
        return figures

    return deploy


def test_a_test_set_is_read_from_the_log_and_measured_on_what_is_served(tmp_path: Path, deployed, log: Path) -> None:
    expected = deployed(config_of())
    said = {"generation": 1, "unknown_users": 0, "learned_since": 0, "split": "test"}
    found = measured("--data", str(log), folder=tmp_path)
    assert own(found) == {**expected, **said}
    assert 0 < expected["ndcg@10"] < 1
    told = run("evaluate", "--storage-path", "kept", "--data", str(log), folder=tmp_path).stdout
    (line,) = [line for line in told.splitlines() if "NDCG@10" in line]
    assert f"{found['ndcg@10']:.4f}" in line
    assert f"{found['popularity_ndcg@10']:.4f}" in line


def test_what_was_learned_since_is_not_counted_as_missed_nor_who_was_erased(tmp_path: Path, deployed, log: Path) -> None:
    learned = [("u3", "i9"), ("u3", "i10"), ("u5", "i11"), ("new", "i1")]  # all that is wanted of u3, half of u5
    expected = deployed(config_of(), learned, "u7", without=learned)
    assert expected["n_users"] == 40 - 2
    said = {"generation": 2, "unknown_users": 1, "learned_since": 3, "split": "test"}
    assert own(measured("--data", str(log), folder=tmp_path)) == {**expected, **said}


def test_where_nothing_is_held_out_evaluation_is_an_error_that_says_what_to_do(tmp_path: Path, deployed, log: Path) -> None:
    deployed(config_of())
    (tmp_path / "log.csv").write_text("user_id,item_id\nu1,i1\nu2,i2\n")
    said = refused("evaluate", "--storage-path", "kept", "--data", "log.csv", folder=tmp_path)
    assert said.startswith("error: no test set: log.csv has none of its own")
    assert "train with data.test_share=0.2, or give a log with a test set as --data" in said
    said = refused("evaluate", "--storage-path", "kept", "--split", "valid", folder=tmp_path)
    assert said.startswith("error: no validation set")
    assert "data.valid_share=0.1" in said
    # Nor is a log of other people measured as if they had been missed.
    other = (log / "test.txt").read_text().replace("u", "other")
    (log / "test.txt").write_text(other)
    said = refused("evaluate", "--storage-path", "kept", "--data", str(log), folder=tmp_path)
    assert "none of the 80 test pairs of log counts" in said
    assert "40 users that the deployment does not know" in said


def test_a_validation_set_is_the_deployments_own(tmp_path: Path, deployed) -> None:
    deployed(config_of(valid_share=0.2))
    result = measured("--split", "valid", folder=tmp_path)
    assert 0 < result["recall@10"] < 1
    assert (result["split"], result["learned_since"]) == ("valid", 0)


def test_without_a_test_set_no_table_is_measured(tmp_path: Path) -> None:
    said = refused("reproduce", "table3", "--output", "results", folder=tmp_path)
    assert said == "error: synthetic: no test set: set data.test_share=0.2, or use a log that has one"
    assert list(tmp_path.iterdir()) == []
