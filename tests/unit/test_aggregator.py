"""The aggregation as a part of a deployment: its caches change no bit of its results."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_eraser.aggregator import AggregationOrder, Aggregator, _Numbering, aggregate_of, folded_in, rebuild_aggregate
from ray_eraser.config import config_from
from ray_eraser.data.keyed import KeyedPairs, ShardData
from ray_eraser.ids import Epoch, ShardId
from ray_eraser.shard import Shard, ShardOrder
from ray_eraser.store import FileRef, ShardRecord, Store

KEYS = st.sampled_from([0, 1, 5, 2**31, 2**63, 2**64 - 1, *range(10, 20)])
MODELS = st.dictionaries(st.integers(0, 6), st.sets(KEYS), max_size=5)
N_SHARDS = 3


@given(st.lists(MODELS, min_size=1, max_size=5))
def test_rows_are_positions_among_the_keys_of_all_models_whatever_models_came_before(generations):
    numbering, known = _Numbering(), {}
    for models in generations:
        for number, keys in models.items():  # a file's content never changes
            known.setdefault(number, np.array(sorted(keys), np.uint64))
        here = {FileRef(str(number), "x"): known[number] for number in models}
        rows = numbering.rows_of(here)
        expected = sorted({int(key) for keys in here.values() for key in keys})
        assert numbering.keys.tolist() == expected
        assert rows.keys() == here.keys()
        for ref, keys in here.items():
            assert rows[ref].dtype == np.int32
            assert [expected[row] for row in rows[ref]] == keys.tolist()


def configured(kind: str, *, foldin: bool, sweeps: int = 0):
    return config_from(
        {
            "model": {"kind": "wmf", "width": 4, "epochs": 2, "alpha0": 0.3},
            "partition": {"n_shards": N_SHARDS},
            "aggregation": {"kind": kind, "foldin": foldin, "sweeps": sweeps, "epochs": 2, "attention_width": 2},
        }
    )


def random_pairs(generator: np.random.Generator, n: int) -> list[tuple[int, int]]:
    users, items = generator.integers(0, 40, n).tolist(), generator.integers(0, 25, n).tolist()
    return sorted({(user * 2**58, item * 2**59 + 7) for user, item in zip(users, items, strict=True)})


def trained(folder: str, shard: int, config, data: ShardData) -> ShardRecord:
    store = Store(folder)
    order = ShardOrder(Epoch(1), store.write_shard_data(ShardId(shard), data))
    return Shard(ShardId(shard), folder, config).train(order).record


@pytest.mark.parametrize(
    "config",
    [
        configured("spectral", foldin=True),
        configured("spectral", foldin=False),
        configured("spectral", foldin=True, sweeps=1),
        configured("mean", foldin=False),
        configured("attention", foldin=False),
    ],
    ids=["spectral", "with users", "swept", "mean", "attention"],
)
def test_an_aggregator_that_saw_other_generations_gives_the_bytes_of_a_new_one(tmp_path, config):
    folder, generator = str(tmp_path), np.random.default_rng(2)
    nothing = KeyedPairs.none()
    shards = [ShardData.none().with_learned(KeyedPairs.of(random_pairs(generator, 60)), nothing) for _ in range(N_SHARDS)]
    records = [trained(folder, shard, config, data) for shard, data in enumerate(shards)]
    long_lived = Aggregator(folder, config)
    for changed in (0, 1, 2, 1):
        order = AggregationOrder(tuple(records), nothing)
        new = Aggregator(folder, config)
        content = Store(folder).read(long_lived.aggregate(order).aggregate)
        assert new.aggregate(order).aggregate == long_lived.aggregate(order).aggregate
        assert rebuild_aggregate(folder, records, config) == content
        excised = replace(order, excised=frozenset([ShardId(changed)]))
        assert long_lived.excise(excised).same_bits(Aggregator(folder, config).excise(excised))
        # Users and items leave and join, so that almost all rows move.
        gone = KeyedPairs.of(random_pairs(generator, 60))
        come = KeyedPairs.of(random_pairs(generator, 20))
        data = shards[changed].without(gone)
        shards[changed] = data.with_learned(come.take(~data.has(come)), nothing)
        records[changed] = trained(folder, changed, config, shards[changed])


def test_with_all_shards_excised_the_served_model_depends_only_on_the_remaining_data(tmp_path):
    config, folder, generator = configured("spectral", foldin=True), str(tmp_path), np.random.default_rng(3)
    pairs = [random_pairs(generator, 60) for _ in range(N_SHARDS)]
    gone = KeyedPairs.of([pair for some in pairs for pair in some if pair[0] == some[0][0]])
    everything = [ShardData.none().with_learned(KeyedPairs.of(some), KeyedPairs.none()) for some in pairs]
    records = tuple(trained(folder, shard, config, data) for shard, data in enumerate(everything))
    rest = tuple(trained(folder, shard, config, data.without(gone)) for shard, data in enumerate(everything))
    all_of_them = frozenset(map(ShardId, range(N_SHARDS)))
    served = Aggregator(folder, config).excise(AggregationOrder(records, gone, all_of_them))
    never_had = Aggregator(folder, config).excise(AggregationOrder(rest, KeyedPairs.none(), all_of_them))
    assert served.same_bits(never_had)
    assert served.item_keys.tolist() == sorted({int(key) for data in everything for key in data.without(gone).item_keys})


@pytest.mark.parametrize("device", ["cpu", "torch-cpu"])
def test_an_aggregator_that_forgets_keeps_no_erased_key_and_continues_like_a_new_one(tmp_path, device):
    config, folder = configured("spectral", foldin=False).with_device(device), str(tmp_path)
    generator = np.random.default_rng(5)
    shards = [
        ShardData.none().with_learned(KeyedPairs.of(random_pairs(generator, 60)), KeyedPairs.none()) for _ in range(N_SHARDS)
    ]
    shards[0] = shards[0].with_learned(KeyedPairs.of([(10**6, 10**7)]), KeyedPairs.none())
    records = tuple(trained(folder, shard, config, data) for shard, data in enumerate(shards))
    aggregator = Aggregator(folder, config)
    aggregator.aggregate(AggregationOrder(records, KeyedPairs.none()))
    assert (10**6 in aggregator._users.keys, 10**7 in aggregator._items.keys) == (True, True)
    rest = shards[0].without(KeyedPairs.of([(10**6, 10**7)]))
    order = AggregationOrder((trained(folder, 0, config, rest), *records[1:]), KeyedPairs.none())
    aggregator.forget(order)
    assert (10**6 in aggregator._users.keys, 10**7 in aggregator._items.keys) == (False, False)
    assert records[0].submodel not in aggregator._submodels
    assert aggregator.aggregate(order).aggregate == Aggregator(folder, config).aggregate(order).aggregate


def test_a_stored_aggregate_is_served_with_the_users_of_its_shards_folded_in(tiny, tiny_config, deployments):
    coordinator = deployments.fit("a", tiny_config, tiny)
    loaded = coordinator._serving.loaded
    shards = list(loaded.shards.values())
    submodels = [deployments.store("a").read_embeddings(record.submodel) for record in loaded.manifest.shards]
    stored = aggregate_of(submodels, shards, tiny_config)
    assert stored.same_bits(loaded.model)
    assert len(stored.user_keys) == 0
    assert folded_in(stored, shards, tiny_config).same_bits(coordinator.served_model().vectors())
    without = tiny_config.model_copy(update={"aggregation": tiny_config.aggregation.model_copy(update={"foldin": False})})
    assert folded_in(stored, shards, without) is stored


def test_users_and_items_with_only_held_out_pairs_have_no_vector(tmp_path):
    config, folder = configured("spectral", foldin=True, sweeps=1), str(tmp_path)
    data = [
        ShardData.none().with_learned(KeyedPairs.of([(1, 2), (1, 4), (3, 4)]), KeyedPairs.of([(1, 9), (7, 2)])),
        ShardData.none().with_learned(KeyedPairs.of([(2, 2), (2, 4)]), KeyedPairs.none()),
        ShardData.none().with_learned(KeyedPairs.none(), KeyedPairs.of([(8, 2)])),
    ]
    learned_alone = [ShardData.none().with_learned(one.keyed(one.train), KeyedPairs.none()) for one in data]
    served, plain = (
        Store(folder).read(
            Aggregator(folder, config)
            .aggregate(
                AggregationOrder(tuple(trained(folder, n, config, one) for n, one in enumerate(some)), KeyedPairs.none())
            )
            .aggregate
        )
        for some in (data, learned_alone)
    )
    assert served == plain
