"""The contract of every pool of shards. A test class inherits it and gives a `pool` fixture for three shards."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ray_eraser.aggregator import AggregationOrder, rebuild_aggregate
from ray_eraser.config import EraserConfig, config_from
from ray_eraser.data.dataset import Dataset
from ray_eraser.data.files import read_dataset
from ray_eraser.data.interactions import Interactions
from ray_eraser.data.keyed import KeyedPairs, ShardData
from ray_eraser.errors import StaleEpochError, StoreError
from ray_eraser.ids import Epoch, ShardId
from ray_eraser.partition import divide
from ray_eraser.pool import ShardPool
from ray_eraser.shard import ShardOrder, Trained, rebuild_shard
from ray_eraser.store import Store, embeddings_bytes


class PoolContract:
    """`pool` is a fixture: a pool for the storage path of `store` and the settings of `tiny_config`."""

    @pytest.fixture
    def tiny_config(self) -> EraserConfig:
        """Three shards of a small generated log."""
        sizes = {"synthetic_users": 60, "synthetic_items": 40, "synthetic_per_user": 8, "synthetic_communities": 3}
        model = {"kind": "wmf", "width": 8, "epochs": 3, "alpha0": 0.3}
        return config_from(
            {
                "data": {**sizes, "test_share": 0.2, "valid_share": 0.1},
                "partition": {"n_shards": 3},
                "model": model,
                "runtime": {"timeout_seconds": 60},
            }
        )

    @pytest.fixture
    def tiny(self, tiny_config: EraserConfig) -> Dataset:
        return read_dataset("synthetic", tiny_config.data, tiny_config.seed)

    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        return Store(str(tmp_path / "pool"))

    @pytest.fixture
    def orders(self, store: Store, tiny: Dataset, tiny_config: EraserConfig) -> dict[ShardId, ShardOrder]:
        keys = tiny.users.keys, tiny.items.keys
        partition = divide(tiny.train, *keys, tiny_config.partition, tiny_config.seed)
        owned = [tiny.train.take(partition.owners == shard) for shard in range(3)]
        shards = [ShardData.of(train, Interactions.none(), *keys) for train in owned]
        return {ShardId(k): ShardOrder(Epoch(1), store.write_shard_data(ShardId(k), data)) for k, data in enumerate(shards)}

    def test_every_shard_answers_once_with_files_that_hold_what_training_here_gives(
        self, pool: ShardPool, store: Store, orders: dict[ShardId, ShardOrder], tiny_config: EraserConfig
    ) -> None:
        heard: list[Trained] = []
        trained = pool.train(orders, heard.append)
        assert sorted(answer.record.shard for answer in heard) == [0, 1, 2]
        for shard, answer in trained.items():
            assert answer.record.shard == shard
            assert [store.read(answer.record.submodel)] == rebuild_shard(store.uri, answer.record, tiny_config)

    def test_an_order_that_is_repeated_gives_the_same_files(self, pool: ShardPool, orders: dict[ShardId, ShardOrder]) -> None:
        first = pool.train(orders, lambda _: None)
        second = pool.train(orders, lambda _: None)
        assert {k: answer.record for k, answer in first.items()} == {k: answer.record for k, answer in second.items()}

    def test_a_shard_erases_only_what_it_is_told_to(
        self, pool: ShardPool, store: Store, orders: dict[ShardId, ShardOrder]
    ) -> None:
        before = store.read_shard_data(orders[ShardId(1)].interactions)
        held = before.keyed(before.train)
        is_gone = np.arange(len(held)) < 2
        answer = pool.train({ShardId(1): replace(orders[ShardId(1)], erased=held.take(is_gone))}, lambda _: None)[ShardId(1)]
        after = store.read_shard_data(answer.record.interactions)
        assert after.keyed(after.train).same(held.take(~is_gone))
        assert answer.record.n_train == len(before.train) - 2

    def test_a_shard_learns_and_holds_out_what_it_is_told_to_and_forgets_it_without_a_trace(
        self, pool: ShardPool, store: Store, orders: dict[ShardId, ShardOrder]
    ) -> None:
        order = orders[ShardId(1)]
        before = pool.train({ShardId(1): order}, lambda _: None)[ShardId(1)].record
        come, held = (KeyedPairs.of([pair]) for pair in ((5, 2**64 - 1), (7, 3)))
        wider = pool.train({ShardId(1): replace(order, learned=come, held=held)}, lambda _: None)[ShardId(1)].record
        data = store.read_shard_data(wider.interactions)
        assert data.has(come).all()
        assert data.keyed(data.valid).same(held)
        assert (wider.n_train, wider.n_valid) == (before.n_train + 1, 1)
        assert {5, 7} & set(store.read_embeddings(wider.submodel).user_keys.tolist()) == {5}
        back = replace(order, interactions=wider.interactions, erased=KeyedPairs.union([come, held]))
        assert pool.train({ShardId(1): back}, lambda _: None)[ShardId(1)].record == before

    def test_a_shard_refuses_a_coordinator_that_was_replaced(self, pool: ShardPool, orders: dict[ShardId, ShardOrder]) -> None:
        pool.train({ShardId(0): replace(orders[ShardId(0)], epoch=Epoch(5))}, lambda _: None)
        with pytest.raises(StaleEpochError, match="shard 0 obeys epoch 5 and refuses epoch 4"):
            pool.train({ShardId(0): replace(orders[ShardId(0)], epoch=Epoch(4))}, lambda _: None)

    @pytest.mark.parametrize("begun", ["one of them", "another", "one that fails", "several"])
    def test_what_was_begun_changes_no_answer_and_writes_no_more_afterwards(
        self, pool: ShardPool, store: Store, orders: dict[ShardId, ShardOrder], begun: str
    ) -> None:
        data = store.read_shard_data(orders[ShardId(1)].interactions)
        held = data.keyed(data.train)
        gone = {name: held.take(np.arange(len(held)) < n) for name, n in {"one of them": 2, "another": 3}.items()}
        asked = orders | {ShardId(1): replace(orders[ShardId(1)], erased=gone["one of them"])}
        expected = {shard: answer.record for shard, answer in pool.train(asked, lambda _: None).items()}
        lost = replace(orders[ShardId(1)].interactions, path="shards/1/interactions-lost.safetensors")
        ways: dict[str, dict[str, Any]] = {"another": {"erased": gone["another"]}, "one that fails": {"interactions": lost}}
        wrong = ways.get(begun, {})
        pool.begin(asked if begun == "several" else {ShardId(1): replace(asked[ShardId(1)], **wrong)})
        heard: list[ShardId] = []
        answers = pool.train(asked, lambda answer: heard.append(answer.record.shard))
        files = store.files()
        assert {shard: answer.record for shard, answer in answers.items()} == expected
        assert sorted(heard) == [0, 1, 2]
        pool.abandon()
        assert store.files() == files

    def test_what_was_begun_in_vain_is_over_when_it_is_abandoned(
        self, pool: ShardPool, store: Store, orders: dict[ShardId, ShardOrder]
    ) -> None:
        pool.begin({ShardId(1): orders[ShardId(1)]})
        pool.abandon()
        files = store.files()
        pool.train({ShardId(0): orders[ShardId(0)]}, lambda _: None)
        assert [file for file in store.files() if file not in files and not file.startswith("shards/0/")] == []

    def test_an_error_of_a_shard_arrives_as_what_it_is(self, pool: ShardPool, orders: dict[ShardId, ShardOrder]) -> None:
        lost = replace(orders[ShardId(2)].interactions, path="shards/2/interactions-lost.safetensors")
        with pytest.raises(StoreError, match=r"interactions-lost\.safetensors: is missing"):
            pool.train({ShardId(2): replace(orders[ShardId(2)], interactions=lost)}, lambda _: None)

    def test_the_aggregate_is_what_aggregating_here_gives(
        self, pool: ShardPool, store: Store, orders: dict[ShardId, ShardOrder], tiny_config: EraserConfig
    ) -> None:
        records = tuple(answer.record for answer in pool.train(orders, lambda _: None).values())
        answer = pool.aggregate(AggregationOrder(records, KeyedPairs.none()))
        assert store.read(answer.aggregate) == rebuild_aggregate(store.uri, records, tiny_config)

    def test_an_excision_is_never_stored(self, pool: ShardPool, store: Store, orders: dict[ShardId, ShardOrder]) -> None:
        records = tuple(answer.record for answer in pool.train(orders, lambda _: None).values())
        before = store.files()
        owned = store.read_shard_data(records[0].interactions)
        order = AggregationOrder(records, owned.keyed(owned.train), frozenset({ShardId(0)}))
        pool.prepare_excision(order)
        model = pool.excise(order)
        assert not np.isin(model.user_keys, owned.user_keys).any()
        assert store.files() == before

    def test_calls_come_back_in_their_order(self, pool: ShardPool) -> None:
        assert pool.run([partial(pow, 2, n) for n in range(7)]) == [1, 2, 4, 8, 16, 32, 64]

    def test_the_bytes_of_a_submodel_do_not_depend_on_the_process(
        self, pool: ShardPool, store: Store, orders: dict[ShardId, ShardOrder]
    ) -> None:
        trained = pool.train(orders, lambda _: None)
        for answer in trained.values():
            content = store.read(answer.record.submodel)
            assert embeddings_bytes(store.read_embeddings(answer.record.submodel)) == content
