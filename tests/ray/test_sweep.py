"""Sweeps on the tests' own Ray: what trials share, how they fail, and that nothing is left of them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from leftovers import left_since, living

from ray_eraser.config import EraserConfig, changed, config_from
from ray_eraser.data.dataset import Dataset
from ray_eraser.errors import InputError
from ray_eraser.pool import ShardPool
from ray_eraser.store import Store
from ray_eraser.study.sweep import Sweep, for_sweeping, parse_axis, shared_alpha0, shared_partition
from ray_eraser.testing.pool_contract import PoolContract

pytestmark = pytest.mark.ray

MIX = {"user": 0.5, "pairs": 0.5}


@pytest.fixture
def nothing_left(ray_session: None) -> Iterator[None]:
    before = living()
    yield
    assert left_since(before) == set()


def run(sweep: Sweep, dataset: Dataset, folder: Path, on_row: Callable[[Any, int], None] = lambda *_: None) -> dict[str, Any]:
    from ray_eraser.runtime.tune import run_sweep

    rows, unfinished = run_sweep(sweep, for_sweeping(dataset), folder, on_row)
    assert unfinished == 0
    assert not (folder / "scratch").exists()
    return {row["trial"]: row for row in rows}


class TestTrialShardPool(PoolContract):
    @pytest.fixture
    def pool(self, ray_session: None, nothing_left: None, store: Store, tiny_config: EraserConfig) -> Iterator[ShardPool]:
        from ray_eraser.runtime.tune import TrialShardPool

        pool = TrialShardPool(store.uri, changed(tiny_config, ["runtime.slots=2"]))
        yield pool
        pool.close()


@pytest.mark.slow
def test_a_trial_that_fails_is_a_row_and_the_others_go_on(
    nothing_left: None, tiny: Dataset, tiny_config: EraserConfig, tmp_path: Path
) -> None:
    base = changed(tiny_config, ["model.kind=bpr", "model.epochs=3", "aggregation.foldin_alpha0=0.3"])
    heard: list[str] = []
    rows = run(
        Sweep(base, (parse_axis("model.lr=1e30,0.05"),), MIX, 1),
        tiny,
        tmp_path / "some-fail",
        lambda row, _: heard.append(row["trial"]),
    )
    assert sorted(heard) == ["model.lr=0.05", "model.lr=1e30"]
    assert rows["model.lr=0.05"]["state"] == "finished"
    assert rows["model.lr=1e30"]["state"] == "failed"
    assert "vectors are not finite" in rows["model.lr=1e30"]["error"]


@pytest.mark.slow
def test_drawn_settings_and_early_stops(nothing_left: None, tiny: Dataset, tiny_config: EraserConfig, tmp_path: Path) -> None:
    base = changed(
        tiny_config, ["model.kind=bpr", "model.epochs=32", "aggregation.foldin_alpha0=0.3", "aggregation.foldin=false"]
    )
    plan = Sweep(base, (parse_axis("model.lr=log(0.001,0.5)"),), MIX, 1, samples=4, stop_early=True)
    rows = run(plan, tiny, tmp_path / "early")
    assert len(rows) == 4
    assert {row["state"] for row in rows.values()} <= {"finished", "stopped"}
    for row in rows.values():
        assert row["epochs"] == 32 if row["state"] == "finished" else row["epochs"] in (2, 8)


@pytest.mark.slow
def test_a_trial_whose_settings_were_chosen_from_the_log_says_so(
    nothing_left: None, tiny: Dataset, tiny_config: EraserConfig, tmp_path: Path
) -> None:
    plan = Sweep(changed(tiny_config, ["model.alpha0=auto"]), (parse_axis("partition.n_shards=2,3"),), MIX, 1)
    for row in run(plan, tiny, tmp_path / "open").values():
        assert (row["state"], row["level"]) == ("finished", "exact-given-settings")
        assert row["alpha0"] == shared_alpha0(for_sweeping(tiny), plan.base)["model.alpha0"]
        assert config_from(json.loads(row["settings"])).model.alpha0 == "auto"


def test_what_trials_share_is_made_once(nothing_left: None, tiny: Dataset, tiny_config: EraserConfig) -> None:
    import ray

    from ray_eraser.runtime.tune import Shared

    dataset = for_sweeping(tiny)
    shared = ray.remote(Shared).options(num_cpus=0).remote([ray.put(dataset)])
    config = changed(tiny_config, ["partition.kind=user_based"])
    changes = ("aggregation.kind=mean", "aggregation.foldin=false", "partition.n_shards=2")
    asked = [ray.get(shared.partition.remote(changed(config, [change])), timeout=60)[0] for change in changes]
    assert asked[0] == asked[1] != asked[2]
    assert ray.get(shared.made.remote(), timeout=60) == {"alpha0": 0, "embeddings": 1, "partitions": 2}
    hashed = ray.get(ray.get(shared.partition.remote(tiny_config), timeout=60)[0], timeout=60)
    assert (hashed.owners == shared_partition(dataset, tiny_config, None).owners).all()
    ray.kill(shared)


def test_a_trial_that_no_node_can_hold_is_refused(
    nothing_left: None, tiny: Dataset, tiny_config: EraserConfig, tmp_path: Path
) -> None:
    base = changed(tiny_config, ["runtime.slots=64"])
    with pytest.raises(InputError, match=r"no node has the 64 CPU of one trial: lower runtime\.slots"):
        run(Sweep(base, (parse_axis("partition.n_shards=2,3"),), MIX), tiny, tmp_path / "large")


def test_the_folder_of_another_sweep_is_refused(
    nothing_left: None, tiny: Dataset, tiny_config: EraserConfig, tmp_path: Path
) -> None:
    from ray_eraser.runtime.tune import _claim

    plan = Sweep(tiny_config, (parse_axis("partition.n_shards=2,3"),), MIX)
    _claim(plan, tiny, tmp_path)
    _claim(plan, tiny, tmp_path)
    with pytest.raises(InputError, match="choose another --name"):
        _claim(replace(plan, requests=9), tiny, tmp_path)


def test_without_optuna_its_search_is_refused_with_the_way_out(
    tiny: Dataset, tiny_config: EraserConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    plan = Sweep(tiny_config, (parse_axis("partition.n_shards=int(2,4)"),), MIX, samples=2, search="optuna")
    with pytest.raises(InputError, match=r"pip install 'ray-eraser\[sweep\]'"):
        run(plan, tiny, tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_optuna_searches_for_several_objectives(
    nothing_left: None, tiny: Dataset, tiny_config: EraserConfig, tmp_path: Path
) -> None:
    pytest.importorskip("optuna")
    axes = (parse_axis("partition.n_shards=int(2,4)"), parse_axis("aggregation.kind=mean,spectral"))
    rows = run(Sweep(tiny_config, axes, MIX, 1, samples=3, search="optuna"), tiny, tmp_path / "optuna")
    assert 1 <= len(rows) <= 3  # a point that is drawn twice is one row
    assert {row["state"] for row in rows.values()} == {"finished"}
