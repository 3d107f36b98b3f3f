"""A generation in memory, and the change that a batch of requests makes to it: interactions lost and gained by shard.

Reads the store, and writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from ray_eraser.config import EraserConfig
from ray_eraser.data.dataset import Dataset
from ray_eraser.data.interactions import Interactions
from ray_eraser.data.keyed import KeyedPairs, ShardData, places_of
from ray_eraser.data.splits import set_of, split
from ray_eraser.data.vocabulary import Part, Vocabulary
from ray_eraser.embeddings import KeyedEmbeddings
from ray_eraser.ids import Generation, RequestId, ShardId
from ray_eraser.partition import place_learned
from ray_eraser.store import FileRef, Manifest, Store
from ray_eraser.unlearning.ledger import GenerationRow, RequestRow
from ray_eraser.unlearning.request import UnlearningRequest, resolve
from ray_eraser.unlearning.routing import owned_by_shard, together
from ray_eraser.unlearning.work import Learning


@dataclass(frozen=True, eq=False)
class Loaded:
    """A published generation, in memory."""

    number: Generation
    digest: str
    manifest: Manifest
    users: Vocabulary
    items: Vocabulary
    shards: Mapping[ShardId, ShardData]
    model: KeyedEmbeddings

    @classmethod
    def read(cls, store: Store, published: GenerationRow, before: Loaded | None = None) -> Loaded:
        """Load everything except the submodels, reusing the parts shared with the previous generation."""
        manifest = store.read_manifest(published.digest)
        parts: dict[FileRef, Part] = {}
        data: dict[FileRef, ShardData] = {}
        if before is not None:
            for refs, vocabulary in ((before.manifest.users, before.users), (before.manifest.items, before.items)):
                parts |= zip(refs, filter(len, vocabulary.parts), strict=True)
            data = {record.interactions: before.shards[record.shard] for record in before.manifest.shards}

        def interactions(file: FileRef) -> ShardData:
            return data[file] if file in data else store.read_shard_data(file)

        return cls(
            published.number,
            published.digest,
            manifest,
            store.read_vocabulary(manifest.users, "user", manifest, parts),
            store.read_vocabulary(manifest.items, "item", manifest, parts),
            {record.shard: interactions(record.interactions) for record in manifest.shards},
            store.read_embeddings(manifest.aggregate),
        )


@dataclass(frozen=True)
class Gain:
    """Pairs that a shard gains, for training and for validation."""

    train: KeyedPairs
    valid: KeyedPairs


NO_GAIN = Gain(KeyedPairs.none(), KeyedPairs.none())


@dataclass(frozen=True, eq=False)
class Change:
    """The effect of a batch on a generation. Erasures apply first, then learnings.

    The result is the same as in the order of asking, because accepting an erasure removes its pairs from waiting learnings.

    Attributes:
        before: the generation.
        erasures: for every request, in the order of asking, the interactions that each shard loses to it. A pair in several
            requests counts for the first.
        learnings: (user id, item id) pairs to learn, by request.
        rest: the remaining interactions of every shard.
    """

    before: Loaded
    erasures: Mapping[RequestId, Mapping[ShardId, KeyedPairs]] = field(default_factory=dict)
    learnings: Mapping[RequestId, tuple[tuple[str, str], ...]] = field(default_factory=dict)
    rest: Mapping[ShardId, ShardData] = field(default_factory=dict)

    @classmethod
    def nothing(cls, before: Loaded) -> Change:
        return cls(before, rest=dict(before.shards))

    @classmethod
    def of(cls, before: Loaded, rows: Iterable[RequestRow]) -> Change:
        return cls.nothing(before).with_(rows)

    def with_(self, rows: Iterable[RequestRow]) -> Change:
        """Add requests. Ids that the generation does not have are ignored.

        A repeated erasure is ignored, and a repeated learning replaces its earlier version.
        """
        erasures, learnings, rest = dict(self.erasures), dict(self.learnings), dict(self.rest)
        for row in rows:
            if isinstance(row.work, Learning):
                learnings[row.request_id] = row.work.named
            elif isinstance(row.work, UnlearningRequest) and row.request_id not in erasures:
                owned = owned_by_shard(resolve(row.work, self.before.users, self.before.items), rest)
                rest |= {shard: rest[shard].without(pairs) for shard, pairs in owned.items()}
                erasures[row.request_id] = owned
        return replace(self, erasures=erasures, learnings=learnings, rest=rest)

    @cached_property
    def erased(self) -> dict[ShardId, KeyedPairs]:
        """The pairs that each shard loses. Shards that lose none are left out."""
        return together(self.erasures.values())

    @cached_property
    def left_users(self) -> Vocabulary:
        """Users with a remaining interaction, before the learnings."""
        gone = [pairs.users for pairs in self.erased.values()]
        return self.before.users.without(_orphans(gone, [data.user_keys for data in self.rest.values()]))

    @cached_property
    def left_items(self) -> Vocabulary:
        """Items with a remaining interaction, before the learnings."""
        gone = [pairs.items for pairs in self.erased.values()]
        return self.before.items.without(_orphans(gone, [data.item_keys for data in self.rest.values()]))

    @cached_property
    def _learned(self) -> dict[tuple[int, int], tuple[str, str]]:
        """New pairs by their keys: pairs that are neither stored already nor in the test set."""
        asked = dict.fromkeys(pair for pairs in self.learnings.values() for pair in pairs)
        users, items = self.before.users, self.before.items
        named = {(users.key_of(user), items.key_of(item)): (user, item) for user, item in asked}
        pairs = KeyedPairs.of(list(named))
        config = self.before.manifest.config
        test, _ = set_of(pairs.users, pairs.items, config.data, config.seed)
        for data in self.rest.values():
            test |= data.has(pairs)
        return {key: pair for (key, pair), is_out in zip(named.items(), test, strict=True) if not is_out}

    @cached_property
    def users(self) -> Vocabulary:
        """The users of the next generation."""
        return self.left_users.extended(user for user, _ in self._learned.values())

    @cached_property
    def items(self) -> Vocabulary:
        """The items of the next generation."""
        return self.left_items.extended(item for _, item in self._learned.values())

    @cached_property
    def added(self) -> dict[ShardId, Gain]:
        """The pairs that each shard gains. Each pair goes where a fit would put it. Shards that gain none are left out."""
        if not self._learned:
            return {}
        config = self.before.manifest.config
        shards = place_learned(KeyedPairs.of(sorted(self._learned)), list(self.rest.values()), config.partition, config.seed)
        gains = {}
        for shard, pairs in zip(self.rest, shards, strict=True):
            if len(pairs):
                _, held = set_of(pairs.users, pairs.items, config.data, config.seed)
                gains[shard] = Gain(pairs.take(~held), pairs.take(held))
        return gains

    @cached_property
    def after(self) -> dict[ShardId, ShardData]:
        """Every shard's interactions in the next generation."""
        gains = ((shard, self.added.get(shard, NO_GAIN)) for shard in self.rest)
        return {shard: self.rest[shard].with_learned(gain.train, gain.valid) for shard, gain in gains}

    @property
    def touched(self) -> list[ShardId]:
        """The shards that must train."""
        return sorted({*self.erased, *self.added})


def _orphans(gone: Iterable[np.ndarray], left: Iterable[np.ndarray]) -> np.ndarray:
    """Keys that lost interactions and have none left."""
    keys = np.unique(np.concatenate([np.empty(0, np.uint64), *gone]))
    for present in left:
        keys = keys[places_of(keys, present) < 0]
    return keys


def remaining_dataset(change: Change, config: EraserConfig) -> Dataset:
    """The remaining interactions after a change, as a log for a new fit with the given settings.

    The validation set stays the same. If the settings split differently, the log is split again.
    """
    users, items = change.users, change.items
    parts = [data.in_rows_of(users.keys, items.keys) for data in change.after.values()]
    train, valid = (Interactions.union([part[side] for part in parts]) for side in (0, 1))
    log = Dataset("remaining", users, items, train, valid, Interactions.none())
    if _held_by(config) == _held_by(change.before.manifest.config):
        return log
    whole = replace(log, train=Interactions.union([train, valid]), valid=Interactions.none())
    return split(whole.under(config.seed), config.data, config.seed, test=True, valid=True)


def _held_by(config: EraserConfig) -> tuple[float, ...]:
    """The settings that decide the split. Without shares, the log's own split counts and the seed has no effect."""
    shares = config.data.test_share, config.data.valid_share
    return (*shares, config.seed if any(shares) else 0)
