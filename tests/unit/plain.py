"""A deployment in plain Python: sets of pairs by shard, and generations that are built from them from scratch.

The module shares no code with the processing of requests, except for the training of submodels and aggregates. Ids are text.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from copy import deepcopy

import numpy as np

from ray_eraser import seeds
from ray_eraser.aggregator import aggregate_of
from ray_eraser.config import EraserConfig
from ray_eraser.coordinator import Coordinator
from ray_eraser.data.dataset import Dataset
from ray_eraser.data.keyed import ShardData
from ray_eraser.data.vocabulary import Vocabulary
from ray_eraser.determinism import environment
from ray_eraser.ids import ShardId
from ray_eraser.partition import Partition
from ray_eraser.store import FileRef, Manifest, ShardRecord, Store
from ray_eraser.training.submodel import train_submodel
from ray_eraser.unlearning.request import UnlearningRequest

Pair = tuple[str, str]
Parts = tuple[set[Pair], set[Pair]]
"""The training pairs and the held-out pairs of a shard."""


def generation_of(
    store: Store,
    shards: Sequence[Parts],
    config: EraserConfig,
    integers: tuple[str, ...] = (),
    chosen: tuple[str, ...] = (),
) -> str:
    """The digest of the generation that results from training on these shards' interactions."""
    data, submodels, records = [], [], []
    for shard, parts in enumerate(shards):
        data.append(shard_data_of(parts, config.seed))
        states: list[FileRef] = []

        def keep(state, shard=shard, states=states) -> None:
            states.append(store.write_checkpoint(shard, state.renamed(data[-1].user_keys, data[-1].item_keys)))

        submodels.append(train_submodel(data[-1], config, ShardId(shard), keep=keep))
        files = store.write_shard_data(shard, data[-1]), store.write_submodel(shard, submodels[-1])
        records.append(ShardRecord(ShardId(shard), *files, *map(len, parts), tuple(states)))
    vocabularies = [
        store.write_vocabulary(
            Vocabulary.of(kind, {pair[side] for parts in shards for part in parts for pair in part}, config.seed)
        )
        for side, kind in enumerate(("user", "item"))
    ]
    model = store.write_aggregate(aggregate_of(submodels, data, config))
    made_under = environment(config.runtime.threads, config.runtime.known_device)
    manifest = Manifest(config, made_under, chosen, integers, *vocabularies, tuple(records), model)
    return store.write_manifest(manifest).digest


def shard_data_of(parts: Parts, seed: int) -> ShardData:
    """Make a shard's interactions from its pairs."""
    log = Dataset.of_pairs("shard", parts[0], seed, parts[1])
    return ShardData(log.users.keys, log.items.keys, log.train, log.valid)


class Plain:
    """The contents of a deployment.

    Attributes:
        config: its settings.
        integers, chosen: the values in its manifest.
        shards: for each shard, the (user id, item id) pairs for training and the held-out pairs.
    """

    def __init__(self, coordinator: Coordinator) -> None:
        loaded = coordinator._serving.loaded
        self.config = loaded.manifest.config
        self.integers, self.chosen = loaded.manifest.integers, loaded.manifest.chosen
        users, items = ({key: text for part in of.parts for key, text in named(part)} for of in (loaded.users, loaded.items))
        self.shards: list[Parts] = []
        for _, data in sorted(loaded.shards.items()):
            train, valid = (
                {
                    (users[int(data.user_keys[u])], items[int(data.item_keys[i])])
                    for u, i in zip(part.users, part.items, strict=True)
                }
                for part in (data.train, data.valid)
            )
            self.shards.append((train, valid))

    def copy(self) -> Plain:
        return deepcopy(self)

    @property
    def pairs(self) -> set[Pair]:
        """All remaining pairs, including held-out pairs."""
        return set().union(*(part for shard in self.shards for part in shard))

    @property
    def users(self) -> list[str]:
        """The users that have a pair, in the order of their keys."""
        return self._in_order(user for user, _ in self.pairs)

    @property
    def items(self) -> list[str]:
        return self._in_order(item for _, item in self.pairs)

    def _in_order(self, ids: Iterable[str]) -> list[str]:
        return sorted(set(ids), key=lambda raw: key_of(raw, self.config.seed))

    def shard_of(self, pair: Pair) -> int:
        (shard,) = [k for k, parts in enumerate(self.shards) if any(pair in part for part in parts)]
        return shard

    # ---- requests

    def erase(self, request: UnlearningRequest) -> set[Pair]:
        """Erase pairs, and return the erased ones."""
        gone = {pair for pair in self.pairs if is_about(request, pair)}
        for parts in self.shards:
            for part in parts:
                part.difference_update(gone)
        return gone

    def learn(self, pairs: Iterable[tuple[object, object]]) -> list[Pair]:
        """Learn a batch, and return the pairs that are new and not held out for a test."""
        seed, data = self.config.seed, self.config.data
        asked = dict.fromkeys((str(user), str(item)) for user, item in pairs)
        new = [pair for pair in asked if pair not in self.pairs and not is_held(pair, "test", data.test_share, seed)]
        for pair, shard in self._owners(new).items():
            self.shards[shard][is_held(pair, "valid", data.valid_share, seed)].add(pair)
        return new

    def _owners(self, new: Sequence[Pair]) -> dict[Pair, int]:
        kind, seed, K = self.config.partition.kind, self.config.seed, len(self.shards)
        if kind == "hashed":
            return {pair: mixed(key_of(pair[0], seed), SHARD) % K for pair in new}
        if kind == "random":
            salt = seeds.derive(seed, "partition", "random")
            return {(u, i): mixed(mixed(mixed(key_of(u, seed), salt), key_of(i, seed)), SHARD) % K for u, i in new}
        side = 1 if kind == "item_based" else 0
        counts = [Counter(pair[side] for pair in train) for train, _ in self.shards]
        sizes = [len(train) for train, _ in self.shards]
        home: dict[str, int] = {}
        for raw, wanted in Counter(pair[side] for pair in new).items():
            if any(count[raw] for count in counts):
                home[raw] = max(range(K), key=lambda k, raw=raw: (counts[k][raw], -k))
                sizes[home[raw]] += wanted
        for raw in self._in_order({pair[side] for pair in new} - set(home)):
            home[raw] = min(range(K), key=lambda k: (sizes[k], k))
            sizes[home[raw]] += sum(pair[side] == raw for pair in new)
        return {pair: home[pair[side]] for pair in new}

    # ---- training

    def digest(self, store: Store) -> str:
        """The digest of the generation that these shards give when trained from scratch."""
        return generation_of(store, self.shards, self.config, self.integers, self.chosen)

    def remaining(self) -> Dataset:
        """The remaining data, as a log that is read for the first time."""
        train, valid = ([pair for parts in self.shards for pair in sorted(parts[side])] for side in (0, 1))
        log = Dataset.of_pairs("left", reversed(train), self.config.seed, reversed(valid))
        for vocabulary in (log.users, log.items):
            object.__setattr__(vocabulary, "integers", vocabulary.kind in self.integers)
        return log

    def owners(self, log: Dataset) -> tuple[Partition, Partition]:
        """The partitions of a log's two sets, for kinds that are learned."""
        users, items = log.users.texts.to_pylist(), log.items.texts.to_pylist()
        train, valid = (
            Partition(
                len(self.shards),
                np.array([self.shard_of((users[u], items[i])) for u, i in zip(part.users, part.items, strict=True)], np.int16),
            )
            for part in (log.train, log.valid)
        )
        return train, valid


def named(part) -> Iterable[tuple[int, str]]:
    return zip(part.keys.tolist(), part.ids.to_pylist(), strict=True)


def is_about(request: UnlearningRequest, pair: tuple[object, object]) -> bool:
    user, item = map(str, pair)
    return user == request.user_id or item == request.item_id or (user, item) in (request.pairs or ())


# ---- keyed hashes by their definition --------------------------------------------------------------------------------------

SHARD = int.from_bytes(b"shard", "big")
_64 = 2**64


def key_of(raw: object, seed: int) -> int:
    digest = hashlib.blake2b(str(raw).encode(), digest_size=8, key=seeds.secret(seed, "ids")).digest()
    return int.from_bytes(digest, "little")


def is_held(pair: tuple[object, object], name: str, share: float, seed: int) -> bool:
    """Whether a pair belongs to the set `test` or `valid`, by the keys of its two ids."""
    user, item = (key_of(raw, seed) for raw in pair)
    drawn = mixed(mixed(user, seeds.derive(seed, "split", name)), item)
    return ((drawn >> 12) + 0.5) * 2.0**-52 < share


def mixed(key: int, salt: int) -> int:
    """The finaliser of splitmix64, of key + (salt + 1) times the golden ratio."""
    z = (key + (salt + 1) * 0x9E3779B97F4A7C15) % _64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % _64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % _64
    return z ^ (z >> 31)
