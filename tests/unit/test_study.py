"""Cells, protocols and tables: the study measures real deployments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from ray_eraser.config import BprConfig, EraserConfig, WmfAlsConfig, load_config, preset_names
from ray_eraser.coordinator import Coordinator
from ray_eraser.data.dataset import Dataset
from ray_eraser.data.files import read_dataset
from ray_eraser.data.interactions import Interactions
from ray_eraser.errors import DataFileError
from ray_eraser.evaluation import evaluate
from ray_eraser.ids import RawId
from ray_eraser.pool import LocalShardPool
from ray_eraser.prepare import keyed, settle
from ray_eraser.study.cells import MODELS, TRAINED, Cell, measure
from ray_eraser.study.plans import METHODS, PLANS
from ray_eraser.study.protocols import Protocol, Who, chosen_users
from ray_eraser.study.tables import markdown, plain_markdown, read_results, write_results
from ray_eraser.training.weights import CANDIDATES
from ray_eraser.unlearning.request import UnlearningRequest

OF_ONE_MODEL = {"bpr-large-batches"}
"""Presets that name a model, and so cannot be combined with another one."""

SMALL = (
    "data.synthetic_users=60",
    "data.synthetic_items=40",
    "data.synthetic_per_user=8",
    "data.test_share=0.2",
    "model.width=6",
    "model.epochs=2",
    "aggregation.foldin_alpha0=0.3",
)
THREE = (*SMALL, "partition.n_shards=3", "model.alpha0=0.3")


def test_a_cell_measures_what_a_deployment_with_its_settings_gives(tmp_path: Path) -> None:
    cell = Cell("synthetic", "wmf-als", "sisa", THREE, requests=4)
    result = measure(cell)
    config = cell.config()
    dataset = read_dataset("synthetic", config.data, config.seed)
    coordinator = Coordinator("same", str(tmp_path), partial(LocalShardPool, str(tmp_path)), config)
    coordinator.fit(dataset)
    model = coordinator.served_model().in_rows(dataset.users.keys, dataset.items.keys)
    expected = evaluate(model, dataset.train, dataset.test)
    coordinator.close()
    assert result.quality == {name: value for name, value in expected.items() if "@" in name}
    assert result.touched == 1  # a pair sits in one shard
    assert result.n_shards == 3
    assert result.key == cell.key()


@pytest.mark.parametrize("method", sorted({*preset_names()} - OF_ONE_MODEL))
@pytest.mark.parametrize("model", MODELS)
def test_every_method_runs_with_every_model(method: str, model: str) -> None:
    changes = [change for change in SMALL if model in TRAINED or not change.startswith("model.epochs")]
    changes += ["model.alpha0=0.3"] if model == "wmf-als" else []
    changes += [] if method == "retrain" else ["partition.n_shards=3"]
    quality = measure(Cell("synthetic", model, method, tuple(changes))).quality
    assert all(0 <= value <= 1 for value in quality.values())
    assert quality["recall@50"] > 0


def test_another_setting_is_another_cell_and_a_path_is_not() -> None:
    first = Cell("/a/ml-1m", "wmf", "sisa")
    assert first.key() == Cell("/b/ml-1m", "wmf", "sisa").key()
    others = [Cell("/a/ml-1m", "wmf", "ours"), Cell("/a/ml-1m", "bpr", "sisa"), Cell("/a/ml-1m", "wmf", "sisa", ("seed=1",))]
    assert len({cell.key() for cell in [first, *others]}) == 4


def test_a_budget_caps_the_epochs_and_the_cell_says_so() -> None:
    capped = Cell("synthetic", "wmf", "retrain").within(7)
    assert capped.config().model.epochs == 7
    assert "model.epochs=7" in capped.changes
    assert Cell("synthetic", "wmf-als", "retrain").within(1000).changes == ()


def test_table_three_has_every_method_once_for_each_model() -> None:
    cells = PLANS["table3"]("synthetic", ["wmf", "bpr"], [])
    assert sorted((cell.model, cell.method) for cell in cells) == sorted((m, k) for m in ("wmf", "bpr") for k in METHODS)


def test_table_three_has_one_row_for_a_model_that_is_not_trained() -> None:
    cells = PLANS["table3"]("synthetic", ["wmf", "linear"], [])
    assert [cell.method for cell in cells if cell.model == "linear"] == ["ours"]


@pytest.mark.parametrize("what", PLANS)
def test_every_cell_names_its_model(what: str) -> None:
    for cell in PLANS[what]("synthetic", list(MODELS), []):
        own = cell.cell if isinstance(cell, Protocol) else cell
        assert own.config().model.kind == own.model.removesuffix("-als")


def test_the_presets_of_the_papers_methods_have_their_settings() -> None:
    sisa, receraser = load_config(presets=["sisa"]), load_config(presets=["receraser"])
    assert (sisa.partition.kind, sisa.aggregation.kind, sisa.aggregation.foldin) == ("random", "mean", False)
    assert (receraser.partition.kind, receraser.aggregation.kind) == ("interaction_based", "attention")
    assert load_config(presets=["retrain"]).partition.n_shards == 1


@pytest.mark.parametrize("name", sorted({*preset_names()} - OF_ONE_MODEL))
def test_a_method_uses_trained_models_unless_another_is_named(name: str) -> None:
    assert load_config(presets=[name]).model == WmfAlsConfig()
    assert load_config(changes=["model.kind=bpr"], presets=[name]).model == BprConfig()


def test_active_users_are_the_users_with_most_interactions() -> None:
    activity = {"ann": 5, "bob": 1, "cy": 3, "dan": 2}
    dataset = Dataset.of_pairs("four", [(user, item) for user, n in activity.items() for item in range(n)])

    def chosen(who: Who, share: float) -> list[RawId]:
        return dataset.users.raw(chosen_users(dataset, who, share, 0))

    assert sorted(map(str, chosen("most_active", 0.5))) == ["ann", "cy"]
    assert chosen("least_active", 0.25) == ["bob"]
    assert len(set(chosen("random", 0.5))) == 2


@pytest.mark.parametrize("batches", [1, 3])
def test_a_protocol_erases_its_users_and_reports_on_the_others(batches: int) -> None:
    row = Protocol(Cell("synthetic", "wmf-als", "ours", THREE), "most_active", 0.1, batches).row()
    assert row["users_erased"] == 6
    assert 1 <= row["shards_retrained"] <= 3 * batches
    assert 0 < row["recall@10"] < 1
    assert row["seconds"] >= row["seconds_shards"]


@pytest.mark.parametrize("measured", [Cell, lambda *cell: Protocol(Cell(*cell), "random")])
def test_without_a_test_set_the_error_names_the_way_out(measured: Callable[..., Cell | Protocol]) -> None:
    wanted = measured("synthetic", "wmf-als", "ours", (*THREE, "data.test_share=0"))
    with pytest.raises(DataFileError, match=r"no test set: set data\.test_share=0\.2"):
        wanted.row()


def test_results_are_kept_and_tables_show_the_papers_figure(tmp_path: Path) -> None:
    row = measure(Cell("synthetic", "wmf", "sisa", (*SMALL, "partition.n_shards=3"))).to_row() | {"data": "ml-1m"}
    write_results(tmp_path / "r.parquet", [row])
    assert read_results(tmp_path / "r.parquet") == [row]
    assert read_results(tmp_path / "none.parquet") == []
    assert "0.0759 / 0.2058" in markdown([row])
    assert plain_markdown([{"key": "x", "a": 1, "b": 0.12345}]) == "| a | b |\n|---|---|\n| 1 | 0.1235 |\n"


def chosen_alpha0(log: Dataset, config: EraserConfig) -> float:
    pool = LocalShardPool("/nowhere", config)
    settled, chosen = settle(config, log.train.of_users, len(log.train), log.users.keys, log.items.keys, pool)
    assert chosen == ("model.alpha0",)
    return settled.model.alpha0


def two_kinds_of_users(n_users: int, n_items: int, per_user: int) -> Dataset:
    rng = np.random.default_rng(0)
    # Two kinds of users, each with half of the items.
    items = rng.integers(0, n_items // 2, (n_users, per_user)) + (np.arange(n_users) % 2 * (n_items // 2))[:, None]
    return Dataset.of_pairs("two kinds", zip(np.repeat(np.arange(n_users), per_user), items.ravel(), strict=True))


def test_the_choice_of_alpha0_is_reproducible_and_one_of_the_candidates() -> None:
    log = two_kinds_of_users(60, 40, 8)
    config = load_config(changes=["model.width=6"])
    chosen = chosen_alpha0(log, config)
    assert chosen in CANDIDATES
    assert chosen_alpha0(log, config) == chosen


def test_without_pairs_to_choose_by_the_default_value_is_used() -> None:
    log = two_kinds_of_users(60, 40, 8)
    for nothing in (replace(log, train=Interactions.none()), Dataset.of_pairs("nobody", [])):
        assert chosen_alpha0(nothing, load_config(changes=["model.width=6"])) == 0.3


def test_a_chosen_setting_is_recorded_and_kept_by_an_erasure(tmp_path: Path) -> None:
    config = load_config(changes=[*SMALL, "partition.n_shards=2"])
    dataset = read_dataset("synthetic", config.data, config.seed)
    coordinator = Coordinator("auto", str(tmp_path), partial(LocalShardPool, str(tmp_path)), config)
    report = coordinator.fit(dataset)
    assert config.model.alpha0 == "auto"
    assert coordinator.config.model.alpha0 == report.alpha0
    coordinator.submit(UnlearningRequest(user_id=dataset.users.ids[0]))
    coordinator.process_pending()
    coordinator.close()
    # The settings with the open value still open the deployment that was trained with them.
    again = Coordinator("auto", str(tmp_path), partial(LocalShardPool, str(tmp_path)), config)
    assert again.config.model.alpha0 == report.alpha0
    again.close()


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize(("name", "best"), [("ml-1m", 0.3), ("yelp2018", 0.02)])
def test_the_weight_of_unobserved_pairs_is_found_on_both_logs_of_the_paper(data_folder: Path, name: str, best: float) -> None:
    config = load_config(changes=["model.kind=wmf"])
    dataset = read_dataset(str(data_folder / name), config.data, config.seed)
    assert chosen_alpha0(keyed(dataset, config), config) == best
