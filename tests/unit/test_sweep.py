"""The trials of a sweep, their measurement and the choice, without Ray."""

from __future__ import annotations

import json
import math
import tomllib
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ray_eraser.config import LINEAR_UP_TO, EraserConfig, WmfAlsConfig, changed, config_from, load_config
from ray_eraser.coordinator import Coordinator
from ray_eraser.data.dataset import Dataset
from ray_eraser.data.interactions import Interactions
from ray_eraser.data.keyed import ShardData
from ray_eraser.errors import ConfigError, InputError
from ray_eraser.evaluation import evaluate
from ray_eraser.pool import LocalShardPool
from ray_eraser.study.figures import draw_sweep
from ray_eraser.study.sweep import (
    DEFAULT_OVER,
    Range,
    Sweep,
    Values,
    at_least,
    choose,
    chosen_toml,
    draw_requests,
    embeddings_key,
    empty_row,
    epoch_budgets,
    for_sweeping,
    measured,
    pareto_front,
    parse_axis,
    partition_key,
    shared_alpha0,
    shared_embeddings,
    shared_partition,
    shown_rows,
    sweep_markdown,
    touched_per_request,
)

HUNDREDS = ",".join(map(str, range(1, 200)))
MIX = {"user": 0.8, "item": 0.05, "pairs": 0.15}


def sweep(base: EraserConfig, *over: str, **fields: Any) -> Sweep:
    return Sweep(base, tuple(parse_axis(text) for text in over), MIX, **fields)


def local(storage: str, _: EraserConfig) -> Any:
    return partial(LocalShardPool, storage)


# ---- the space -------------------------------------------------------------------------------------------------------------


def test_a_dimension_is_a_list_or_a_range() -> None:
    assert parse_axis("partition.n_shards=5,10, 20") == Values("partition.n_shards", ("5", "10", "20"))
    assert parse_axis("model.reg=log(0.001,0.1)") == Range("model.reg", "log", 0.001, 0.1)
    assert parse_axis(" partition.n_shards = int(2,50) ") == Range("partition.n_shards", "int", 2, 50)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("partition.n_shards", "varies nothing"),
        ("partition.n_shards=", "varies nothing"),
        ("seed=1,2", "must be the same for all trials"),
        ("data.min_rating=1,2", "must be the same for all trials"),
        ("runtime.threads=1,2", "must be the same for all trials"),
        ("partition.n_shards=5,,10", "not a list of distinct values"),
        ("partition.n_shards=5,5", "not a list of distinct values"),
        ("model.reg=gauss(1,2)", "not a list of distinct values"),
        ("model.reg=log(0,1)", "is not a range"),
        ("model.reg=log(0.1,0.01)", "is not a range"),
        ("model.reg=log(a,b)", "is not a range"),
        ("model.reg=uniform(0,inf)", "is not a range"),
        ("partition.n_shards=int(2,2.5)", "is not a range"),
    ],
)
def test_a_text_that_is_not_a_dimension_is_refused(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_axis(text)


@pytest.mark.parametrize(
    ("over", "fields", "said"),
    [
        (("model.color=red,blue",), {}, r"model\.color: unknown key"),
        (("partition.n_shards=5,0",), {}, r"partition\.n_shards"),
        (("partition.kind=hashed,astrology",), {}, r"partition"),
        (("model.reg=log(0.001,100)",), {}, r"model\.reg"),
        (("model.solver=als,adagrad", "model.alpha0=0.1,0.2"), {}, r"model\.alpha0"),  # only als has it
        (("model.reg=0.1,0.2", "model.reg=0.3"), {}, "given twice"),
        (("partition.n_shards=5,10",), {"samples": 3}, "nothing to draw"),
        (("model.reg=log(0.001,0.1)",), {"search": "optuna", "stop_early": True}, "use one of them"),
        ((f"partition.n_shards={HUNDREDS}", f"model.width={HUNDREDS}"), {}, "39601"),
    ],
)  # fmt: skip
def test_a_sweep_that_cannot_run_is_refused_before_anything_starts(over: tuple[str, ...], fields: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        sweep(EraserConfig(), *over, **fields)


def test_a_point_is_the_base_with_its_settings() -> None:
    base = load_config(None, ["model.reg=0.05"])
    plan = sweep(base, "partition.n_shards=2,3", "partition.kind=hashed,user_based", "model.reg=log(0.001,0.1)", samples=5)
    point = {"partition.n_shards": "3", "partition.kind": "user_based", "model.reg": 0.012345}
    assert plan.config_of(point) == changed(base, ["partition.n_shards=3", "partition.kind=user_based", "model.reg=0.012345"])
    assert plan.label(point) == "partition.n_shards=3 partition.kind=user_based model.reg=0.01235"
    assert plan.n_trials == 2 * 2 * 5
    assert len(plan.corners()) == 2 * 2 * 2


def test_another_model_starts_at_its_own_defaults() -> None:
    plan = sweep(load_config(None, ["model.reg=0.05"]), "model.kind=wmf,bpr")
    assert plan.config_of({"model.kind": "bpr"}).model.reg == EraserConfig.model_validate({"model": {"kind": "bpr"}}).model.reg


def test_an_open_model_is_chosen_by_the_trials_log_and_settings() -> None:
    plan = sweep(EraserConfig(), "partition.n_shards=2,3")
    assert plan.config_of({"partition.n_shards": "2"}).model.kind == "linear"
    assert replace(plan, n_pairs=LINEAR_UP_TO + 1).config_of({"partition.n_shards": "2"}).model.kind == "wmf"
    wide = sweep(EraserConfig(), "model.width=8,16")
    assert wide.config_of({"model.width": "16"}).model == WmfAlsConfig(width=16)


def test_whole_numbers_are_drawn_as_whole_numbers() -> None:
    plan = sweep(EraserConfig(), "partition.n_shards=int(2,50)", samples=4)
    assert plan.config_of({"partition.n_shards": 7}).partition.n_shards == 7
    assert plan.n_trials == 4


def test_the_default_space_has_twenty_four_trials() -> None:
    assert sweep(EraserConfig(), *DEFAULT_OVER).n_trials == 24


def test_a_sweep_of_other_data_or_settings_is_another_sweep(tiny: Dataset, tiny_config: EraserConfig) -> None:
    plan = sweep(tiny_config, "partition.n_shards=2,3")
    same = json.loads(json.dumps(plan.identity(tiny)))
    assert json.loads(json.dumps(sweep(tiny_config, "partition.n_shards=2,3").identity(tiny))) == same
    assert sweep(tiny_config, "partition.n_shards=2,4").identity(tiny) != same
    assert sweep(changed(tiny_config, ["model.width=9"]), "partition.n_shards=2,3").identity(tiny) != same
    assert replace(plan, requests=4).identity(tiny) != same
    fewer = replace(tiny, train=tiny.train.take(np.arange(len(tiny.train)) > 0))
    assert plan.identity(fewer) != same


# ---- measuring -------------------------------------------------------------------------------------------------------------


def test_trials_see_no_test_set(tiny: Dataset) -> None:
    assert len(tiny.test)
    assert len(for_sweeping(tiny).test) == 0
    with pytest.raises(InputError, match=r"no validation set .* set data\.valid_share=0\.1"):
        for_sweeping(replace(tiny, valid=Interactions.none()))


def test_every_kind_of_request_is_drawn_and_counts_by_its_share(tiny: Dataset) -> None:
    drawn = draw_requests(tiny, MIX, 3, seed=0)
    assert [each.request.kind for each in drawn] == ["user", "user", "item", "pairs"]  # 2.4, .15 and .45 of 3
    shares = {kind: sum(each.weight for each in drawn if each.request.kind == kind) for kind in MIX}
    assert shares == pytest.approx(MIX)
    assert [each.request for each in draw_requests(tiny, MIX, 3, seed=0)] == [each.request for each in drawn]
    assert [each.request.kind for each in draw_requests(tiny, {"user": 9.0}, 5, seed=0)] == ["user"] * 5


def test_requests_can_all_be_made_one_after_the_other(tiny: Dataset, tiny_config: EraserConfig, tmp_path: Path) -> None:
    coordinator = Coordinator("all", str(tmp_path), partial(LocalShardPool, str(tmp_path)), tiny_config)
    coordinator.fit(tiny)
    for each in draw_requests(tiny, {"user": 1, "item": 1, "pairs": 1}, 24, seed=3):
        coordinator.submit(each.request)  # no request names erased data
    assert len(coordinator.process_pending()) == 24
    coordinator.close()


def test_more_requests_than_the_data_allows_are_refused(tiny: Dataset) -> None:
    with pytest.raises(InputError, match="--requests"):
        draw_requests(tiny, {"user": 1}, 1000, seed=0)


def test_touched_shards_are_counted_over_all_users_items_and_pairs() -> None:
    # Shard 0 knows users 0, 1 and item 0; shard 1 users 1, 2 and items 0, 1; a held-out pair counts like any other.
    keys = np.arange(3, dtype=np.uint64)
    held = Interactions.of(np.array([1]), np.array([0]))
    first = ShardData.of(Interactions.of(np.array([0]), np.array([0])), held, keys, keys)
    second = ShardData.of(Interactions.of(np.array([1, 2]), np.array([1, 0])), Interactions.none(), keys, keys)
    of_users, of_items = (2 + 2) / 3, (1 + 2) / 2
    assert touched_per_request([first, second], {"user": 1}) == pytest.approx(of_users)
    assert touched_per_request([first, second], {"item": 2}) == pytest.approx(of_items)
    assert touched_per_request([first, second], {"pairs": 1}) == 1
    mixed = 0.5 * of_users + 0.25 * of_items + 0.25
    assert touched_per_request([first, second], {"user": 2, "item": 1, "pairs": 1}) == pytest.approx(mixed)


@pytest.mark.parametrize("kind", ["hashed", "user_based", "interaction_based", "label_propagation"])
def test_shared_results_equal_those_that_a_deployment_makes_itself(
    kind: str, tiny: Dataset, tiny_config: EraserConfig, tmp_path: Path
) -> None:
    config = changed(tiny_config, [f"partition.kind={kind}", "model.alpha0=auto"])
    alone = Coordinator("alone", str(tmp_path / "alone"), partial(LocalShardPool, str(tmp_path / "alone")), config)
    alone.fit(tiny)
    dataset = for_sweeping(tiny)
    settled = config.settled(shared_alpha0(dataset, config))
    partition = shared_partition(dataset, settled, shared_embeddings(dataset, settled))
    told = Coordinator("told", str(tmp_path / "told"), partial(LocalShardPool, str(tmp_path / "told")), settled)
    told.fit(dataset, partition)
    expected, got = (coordinator._serving.loaded.manifest for coordinator in (alone, told))
    told.close()
    alone.close()
    assert expected.chosen == ("model.alpha0",)
    assert replace(got, chosen=expected.chosen) == expected


def test_trials_share_a_partition_if_their_settings_make_the_same_one(tiny_config: EraserConfig) -> None:
    learned = changed(tiny_config, ["partition.kind=user_based"])
    for same in ("aggregation.kind=mean", "aggregation.foldin=false", "model.epochs=9", "training.slices=2"):
        assert partition_key(changed(learned, [same])) == partition_key(learned)
    for other in (
        "partition.n_shards=4",
        "partition.slack=1.5",
        "model.reg=0.05",
        "model.width=4",
        "partition.pretrain_epochs=2",
    ):
        assert partition_key(changed(learned, [other])) != partition_key(learned)
    assert embeddings_key(changed(learned, ["partition.n_shards=4"])) == embeddings_key(learned)
    assert partition_key(changed(tiny_config, ["model.reg=0.05"])) == partition_key(tiny_config)  # hashed needs none


def test_a_trial_is_a_deployment_measured_on_the_validation_set(
    tiny: Dataset, tiny_config: EraserConfig, tmp_path: Path
) -> None:
    dataset = for_sweeping(tiny)
    drawn = draw_requests(dataset, MIX, 3, tiny_config.seed)
    # A trial must not use the configured ledger and signing key.
    given = changed(tiny_config, ['unlearning.ledger="sqlite:////nowhere/at/all.db"', "unlearning.signing_key=nowhere.pem"])
    (row,) = measured(given, dataset, None, drawn, MIX, [3], local, str(tmp_path / "trial"))
    alone = Coordinator("alone", str(tmp_path / "alone"), partial(LocalShardPool, str(tmp_path / "alone")), tiny_config)
    report = alone.fit(tiny)
    model = alone.served_model().in_rows(tiny.users.keys, tiny.items.keys)
    expected = evaluate(model, tiny.train, tiny.valid)
    touched = touched_per_request(list(alone.shard_data().values()), MIX)
    alone.close()
    assert (row["ndcg@10"], row["recall@10"]) == (expected["ndcg@10"], expected["recall@10"])
    assert (row["state"], row["touched"], row["balance"]) == ("finished", touched, report.balance)
    assert 0 < row["forget_seconds"] < row["restore_seconds"]
    assert row["cost"] == 3 * len(tiny.train)
    assert row.keys() <= empty_row("k", "t", tiny_config).keys()


def test_a_trial_that_may_be_stopped_trains_for_a_part_of_its_epochs_first(
    tiny: Dataset, tiny_config: EraserConfig, tmp_path: Path
) -> None:
    config = changed(tiny_config, ["model.kind=bpr", "model.epochs=20", "aggregation.foldin_alpha0=0.3"])
    budgets = epoch_budgets(config, stop_early=True)
    assert budgets == [2, 5, 20]
    assert epoch_budgets(config, stop_early=False) == [20]
    assert epoch_budgets(tiny_config, stop_early=True) == [3]  # ALS
    assert epoch_budgets(changed(config, ["model.epochs=1"]), stop_early=True) == [1]
    dataset = for_sweeping(tiny)
    drawn = draw_requests(dataset, {"pairs": 1}, 1, 0)
    rows = list(measured(config, dataset, None, drawn, {"pairs": 1}, budgets, local, str(tmp_path / "early")))
    assert [(row["state"], row["epochs"]) for row in rows] == [("running", 2), ("running", 5), ("finished", 20)]
    assert [row["cost"] for row in rows] == [len(tiny.train) * epochs for epochs in (2, 7, 27)]
    # The last deployment is the same with and without earlier ones.
    (alone,) = measured(config, dataset, None, drawn, {"pairs": 1}, [20], local, str(tmp_path / "alone"))
    assert alone["ndcg@10"] == rows[-1]["ndcg@10"]


# ---- choosing --------------------------------------------------------------------------------------------------------------


def row(key: str, quality: float, restore: float, touched: float, **fields: Any) -> dict[str, Any]:
    measures = {"ndcg@10": quality, "restore_seconds": restore, "touched": touched, "state": "finished"}
    return {**empty_row(key, f"model.width={key}", EraserConfig()), **measures, **fields}


ROWS = [
    row("best", 0.40, 9.0, 3.0),
    row("good", 0.39, 2.0, 1.2),
    row("quick", 0.20, 0.5, 1.1),
    row("beaten", 0.38, 2.0, 1.2),
    row("narrow", 0.10, 8.0, 1.0),
    row("stopped", 0.99, math.nan, 1.0, state="stopped"),
    row("failed", math.nan, math.nan, math.nan, state="failed", error="it diverged"),
]


def test_the_front_holds_the_trials_that_no_other_beats() -> None:
    assert [row["key"] for row in pareto_front(ROWS)] == ["best", "good", "quick", "narrow"]


def test_equal_trials_do_not_beat_each_other() -> None:
    twins = [row("one", 0.3, 1.0, 1.0), row("two", 0.3, 1.0, 1.0)]
    assert len(pareto_front(twins)) == 2


def test_the_choice_is_the_best_the_fastest_or_the_best_compromise() -> None:
    assert choose(ROWS, "quality")["key"] == "best"
    assert choose(ROWS, "fastest")["key"] == "quick"
    assert choose(ROWS, "knee")["key"] == "good"
    assert choose(ROWS[:1], "knee")["key"] == "best"
    with pytest.raises(InputError, match="no trial was finished"):
        choose(ROWS[-2:], "knee")


@pytest.mark.parametrize("how", ["quality", "knee", "fastest"])
def test_in_a_tie_the_strongest_guarantee_is_chosen(how: Any) -> None:
    levels = {"a": "exact-given-partition", "b": "exact-given-settings", "c": "exact"}
    equals = [row(key, 0.3, 1.0, 1.0, level=level) for key, level in levels.items()]
    assert choose(equals, how)["key"] == "c"
    assert choose(equals[:2], how)["key"] == "b"


def test_a_requested_level_is_met_or_exceeded() -> None:
    levels = ("exact-given-partition", "exact-given-settings", "exact")
    rows = [row(level, 0.3, 1.0, 1.0, level=level) for level in levels]
    assert [row["key"] for row in at_least(rows, "exact-given-settings")] == ["exact-given-settings", "exact"]
    assert [row["key"] for row in at_least(rows, "exact")] == ["exact"]
    with pytest.raises(InputError, match="no finished trial is exact, they are exact-given-settings or exact-given-partition"):
        at_least(rows[:2], "exact")


def test_the_chosen_settings_are_read_back_as_they_were() -> None:
    config = load_config(None, ["partition.n_shards=7", "model.alpha0=0.2", "unlearning.plan=every=6h"])
    text = chosen_toml(row("x", 0.3, 1.0, 1.0, settings=config.model_dump_json()), "knee", "first")
    assert config_from(tomllib.loads(text)) == config
    assert text.startswith("# Chosen by knee of the sweep first: validation NDCG@10 0.3000, restored in 1.00 s")


def test_open_settings_stay_open_in_the_chosen_settings_and_count_in_the_level() -> None:
    config = load_config(None, ["model.kind=wmf"])
    given = empty_row("x", "t", config)
    assert given["level"] == "exact-given-settings"
    text = chosen_toml({**row("x", 0.3, 1.0, 1.0), **{name: given[name] for name in ("level", "settings")}}, "quality", "s")
    assert config_from(tomllib.loads(text)).model.alpha0 == "auto"


def test_the_chosen_settings_say_that_they_hold_out_a_part_of_the_log(tiny_config: EraserConfig) -> None:
    said = "To learn from the whole log, set both shares in [data] to 0."
    chosen = row("x", 0.3, 1.0, 1.0, settings=tiny_config.model_dump_json())
    assert said in chosen_toml(chosen, "knee", "first")
    assert said not in chosen_toml(ROWS[0], "knee", "first")


def test_the_table_has_a_column_for_each_setting_and_a_line_for_each_trial() -> None:
    settings = (
        "partition.kind=hashed model.epochs=2 aggregation.epochs=3",
        "partition.kind=random model.epochs=4 aggregation.epochs=5",
    )
    names, *lines = shown_rows([row("a", 0.1, 2.0, 1.0, trial=settings[0]), row("b", 0.2, 1.0, 1.0, trial=settings[1])])
    assert names[:5] == ["", "partition", "model.epochs", "aggregation.epochs", "level"]
    assert [line[:4] for line in lines] == [["*", "random", "4", "5"], ["", "hashed", "2", "3"]]
    assert all(len(line) == len(names) for line in lines)
    names, *lines = shown_rows(ROWS)
    assert names[-1] == "state"
    assert [line[-1] for line in lines[-2:]] == ["stopped", "failed: it diverged"]


def test_the_document_names_the_choice() -> None:
    text = sweep_markdown(ROWS, choose(ROWS, "knee"), "knee", "7 trials on a log")
    assert text.startswith("# 7 trials on a log\n\n|  | width | level |")
    assert "Chosen by `knee`: model.width=good (`chosen.toml`)." in text


def test_a_figure_is_drawn_for_every_kind_of_dimension(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    many = [row(f"{n}", 0.1 + n / 100, 1.0 + n, 1.0 + n / 10, trial=f"model.reg=0.{n} model.kind=bpr") for n in range(1, 12)]
    for rows in (ROWS, many, ROWS[:1]):
        files = draw_sweep(rows, rows[0]["key"], "a title", tmp_path)
        assert [file.name for file in files] == ["sweep.png", "sweep.svg"]
        assert all(file.stat().st_size > 1000 for file in files)
