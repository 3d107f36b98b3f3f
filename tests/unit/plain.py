"""A deployment as plain Python keeps it: lists of ids, sets of pairs, and generations built from them from scratch.

Nothing here is shared with what carries requests out, but for the training of a submodel and of the aggregate.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from copy import deepcopy

import numpy as np

from ray_eraser import seeds
from ray_eraser.aggregation import aggregate
from ray_eraser.config import EraserConfig
from ray_eraser.coordinator import Coordinator
from ray_eraser.data.dataset import Dataset
from ray_eraser.data.interactions import Interactions
from ray_eraser.data.vocabulary import Vocabulary
from ray_eraser.determinism import environment
from ray_eraser.ids import RawId, ShardId
from ray_eraser.store import FileRef, Manifest, ShardData, ShardRecord, Store
from ray_eraser.training.slices import slices_of_users
from ray_eraser.training.submodel import train_submodel
from ray_eraser.unlearning.request import UnlearningRequest

Pair = tuple[RawId, RawId]


def generation_of(
    store: Store, users: Vocabulary, items: Vocabulary, shards: dict[ShardId, ShardData], config: EraserConfig
) -> str:
    """Digest of the generation that training anew on these shards' interactions gives."""
    item_keys = items.keys(seeds.secret(config.seed, "ids"))
    slices_U = slices_of_users(users, np.arange(len(users)), config)
    submodels, records = [], []
    for shard, data in sorted(shards.items()):
        states: list[FileRef] = []

        def keep(state, shard=shard, states=states) -> None:
            states.append(store.write_checkpoint(shard, state))

        submodels.append(train_submodel(data.train, data.valid, item_keys, config, shard, slices_U, keep=keep))
        files = store.write_shard_data(shard, data), store.write_submodel(shard, submodels[-1])
        records.append(ShardRecord(shard, *files, len(data.train), len(data.valid), tuple(states)))
    model = aggregate(submodels, Interactions.union([data.train for data in shards.values()]), config)
    vocabularies = store.write_vocabulary(users), store.write_vocabulary(items, item_keys)
    manifest = Manifest(
        config, environment(config.runtime.threads), *vocabularies, tuple(records), store.write_aggregate(model)
    )
    return store.write_manifest(manifest).digest


class Plain:
    """What a deployment holds.

    Attributes:
        users, items: ids by row; None where one was erased.
        shards: of each the (user id, item id) pairs that are trained on, and those that are held out.
    """

    def __init__(self, coordinator: Coordinator) -> None:
        loaded = coordinator._loaded()
        self.config = loaded.manifest.config
        self.users, self.items = list(loaded.users.ids), list(loaded.items.ids)
        self.shards = [(self._raw(data.train), self._raw(data.valid)) for _, data in sorted(loaded.shards.items())]

    def _raw(self, interactions: Interactions) -> set[Pair]:
        return {(self.users[u], self.items[i]) for u, i in zip(interactions.users, interactions.items, strict=True)}

    def copy(self) -> Plain:
        return deepcopy(self)

    @property
    def pairs(self) -> set[Pair]:
        """All that are left, held-out ones too."""
        return set().union(*(part for shard in self.shards for part in shard))

    def shard_of(self, pair: Pair) -> int:
        (shard,) = [k for k, parts in enumerate(self.shards) if any(pair in part for part in parts)]
        return shard

    # ---- what is asked

    def erase(self, request: UnlearningRequest) -> set[Pair]:
        """The pairs that went."""
        before = self.pairs
        gone = {pair for pair in before if is_about(request, pair)}
        for parts in self.shards:
            for part in parts:
                part.difference_update(gone)
        self.users = [None if request.user_id is not None and raw == request.user_id else raw for raw in self.users]
        self.items = [None if request.item_id is not None and raw == request.item_id else raw for raw in self.items]
        return gone

    def learn(self, pairs: Iterable[Pair]) -> list[Pair]:
        """All that a batch learns, in the order of asking; those that are new."""
        asked = list(dict.fromkeys(pairs))
        self.users += dict.fromkeys(user for user, _ in asked if user not in self.users)
        self.items += dict.fromkeys(item for _, item in asked if item not in self.items)
        new = [pair for pair in asked if pair not in self.pairs]
        for pair, shard in self._owners(new).items():
            self.shards[shard][0].add(pair)
        return new

    def _owners(self, new: Sequence[Pair]) -> dict[Pair, int]:
        kind, seed, K = self.config.partition.kind, self.config.seed, len(self.shards)
        if kind == "hashed":
            return {pair: mixed(key_of(pair[0], seed), SHARD) % K for pair in new}
        if kind == "random":
            salt = seeds.derive(seed, "partition", "random")
            return {(u, i): mixed(mixed(mixed(key_of(u, seed), salt), key_of(i, seed)), SHARD) % K for u, i in new}
        side = 1 if kind == "item_based" else 0
        rows = (self.users, self.items)[side]
        counts = [Counter(pair[side] for pair in train) for train, _ in self.shards]
        sizes = [len(train) for train, _ in self.shards]
        home: dict[RawId, int] = {}
        for raw, wanted in Counter(pair[side] for pair in new).items():
            if any(count[raw] for count in counts):
                home[raw] = max(range(K), key=lambda k, raw=raw: (counts[k][raw], -k))
                sizes[home[raw]] += wanted
        for raw in sorted({pair[side] for pair in new} - set(home), key=rows.index):
            home[raw] = min(range(K), key=lambda k: (sizes[k], k))
            sizes[home[raw]] += sum(pair[side] == raw for pair in new)
        return {pair: home[pair[side]] for pair in new}

    # ---- what it is trained to

    def digest(self, store: Store) -> str:
        """Of the generation that these shards give when they are trained from scratch."""
        user_row, item_row = ({raw: row for row, raw in enumerate(ids)} for ids in (self.users, self.items))

        def rows(pairs: set[Pair]) -> Interactions:
            numbers = np.array([(user_row[user], item_row[item]) for user, item in pairs], np.int32).reshape(-1, 2)
            return Interactions.of(numbers[:, 0], numbers[:, 1])

        shards = {ShardId(k): ShardData(rows(train), rows(valid)) for k, (train, valid) in enumerate(self.shards)}
        users, items = Vocabulary("user", tuple(self.users)), Vocabulary("item", tuple(self.items))
        return generation_of(store, users, items, shards, self.config)

    def remaining(self) -> Dataset:
        """What is left, as a log that is read for the first time."""
        users = Vocabulary("user", tuple(sorted(raw for raw in self.users if raw is not None)))
        items = Vocabulary("item", tuple(sorted(raw for raw in self.items if raw is not None)))

        def rows(part: int) -> Interactions:
            found = sorted(pair for parts in self.shards for pair in parts[part])
            numbers = np.array([(users.ids.index(u), items.ids.index(i)) for u, i in found], np.int32).reshape(-1, 2)
            return Interactions.of(numbers[:, 0], numbers[:, 1])

        return Dataset("left", users, items, rows(0), rows(1), Interactions.none())


def is_about(request: UnlearningRequest, pair: Pair) -> bool:
    return pair[0] == request.user_id or pair[1] == request.item_id or pair in (request.pairs or ())


# ---- keyed hashes, by the book -------------------------------------------------------------------------------------------

SHARD = int.from_bytes(b"shard", "big")
_64 = 2**64


def key_of(raw: RawId, seed: int) -> int:
    digest = hashlib.blake2b(str(raw).encode(), digest_size=8, key=seeds.secret(seed, "ids")).digest()
    return int.from_bytes(digest, "little")


def mixed(key: int, salt: int) -> int:
    """The finaliser of splitmix64, of key + (salt + 1) times the golden ratio."""
    z = (key + (salt + 1) * 0x9E3779B97F4A7C15) % _64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % _64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % _64
    return z ^ (z >> 31)
