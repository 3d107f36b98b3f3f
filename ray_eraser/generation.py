"""A generation in memory, and what a batch of waiting requests makes of it: which interactions go, which come, and where.

Pure: reads the store, writes nothing, decides nothing about when.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from ray_eraser import seeds
from ray_eraser.data.dataset import Dataset
from ray_eraser.data.interactions import Interactions
from ray_eraser.data.vocabulary import Vocabulary
from ray_eraser.embeddings import Embeddings
from ray_eraser.ids import Generation, RawId, RequestId, ShardId
from ray_eraser.partition import place_learned
from ray_eraser.store import FileRef, Manifest, ShardData, Store
from ray_eraser.unlearning.ledger import GenerationRow, RequestRow
from ray_eraser.unlearning.request import Target, UnlearningRequest, resolve
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
    model: Embeddings

    @classmethod
    def read(cls, store: Store, published: GenerationRow, before: Loaded | None = None) -> Loaded:
        """All of it but the submodels. What it has in common with the generation before is taken from there."""
        manifest = store.read_manifest(published.digest)
        vocabularies: dict[FileRef, Vocabulary] = {}
        data: dict[FileRef, ShardData] = {}
        if before is not None:
            vocabularies = {before.manifest.users: before.users, before.manifest.items: before.items}
            data = {record.interactions: before.shards[record.shard] for record in before.manifest.shards}

        def vocabulary(file: FileRef, kind: str) -> Vocabulary:
            return vocabularies[file] if file in vocabularies else store.read_vocabulary(file, kind)

        def interactions(file: FileRef) -> ShardData:
            return data[file] if file in data else store.read_shard_data(file)

        return cls(
            published.number,
            published.digest,
            manifest,
            vocabulary(manifest.users, "user"),
            vocabulary(manifest.items, "item"),
            {record.shard: interactions(record.interactions) for record in manifest.shards},
            store.read_embeddings(manifest.aggregate),
        )

    def interactions(self) -> Interactions:
        """All that it holds, held-out pairs too."""
        return Interactions.union([part for data in self.shards.values() for part in (data.train, data.valid)])


@dataclass(frozen=True)
class Erasure:
    """One request against a generation: its rows, and the interactions that each shard owns of it."""

    target: Target
    owned: Mapping[ShardId, Interactions]


@dataclass(frozen=True, eq=False)
class Change:
    """What a batch makes of a generation. First all that is asked to be forgotten goes, then what is to be learned comes.

    What waits to be learned loses at once what is asked to be forgotten after it, so that this order is that of the asking.

    Attributes:
        before: the generation.
        erasures: by request, in the order of asking. A pair that several name counts for the first of them.
        learnings: (user id, item id) pairs to learn from, by request, in the order in which they came.
        rest: what is left of every shard's interactions.
    """

    before: Loaded
    erasures: Mapping[RequestId, Erasure] = field(default_factory=dict)
    learnings: Mapping[RequestId, tuple[tuple[RawId, RawId], ...]] = field(default_factory=dict)
    rest: Mapping[ShardId, ShardData] = field(default_factory=dict)

    @classmethod
    def nothing(cls, before: Loaded) -> Change:
        return cls(before, rest=dict(before.shards))

    @classmethod
    def of(cls, before: Loaded, rows: Iterable[RequestRow]) -> Change:
        return cls.nothing(before).with_(rows)

    def with_(self, rows: Iterable[RequestRow]) -> Change:
        """The same, and more requests. An id that the generation does not have is nothing to forget in it.

        An erasure that is here already is passed over; a learning that is takes the place of what it was.
        """
        erasures, learnings, rest = dict(self.erasures), dict(self.learnings), dict(self.rest)
        for row in rows:
            if isinstance(row.work, Learning):
                learnings[row.request_id] = row.work.pairs
            elif isinstance(row.work, UnlearningRequest) and row.request_id not in erasures:
                target = resolve(row.work, self.before.users, self.before.items)
                owned = owned_by_shard(target, rest)
                rest |= {shard: rest[shard].without(pairs) for shard, pairs in owned.items()}
                erasures[row.request_id] = Erasure(target, owned)
        return replace(self, erasures=erasures, learnings=learnings, rest=rest)

    @cached_property
    def learned(self) -> tuple[tuple[RawId, RawId], ...]:
        """All pairs to learn from, in the order in which they came."""
        return tuple(pair for pairs in self.learnings.values() for pair in pairs)

    @cached_property
    def erased(self) -> dict[ShardId, Interactions]:
        """What every shard loses; shards that lose nothing are left out."""
        return together(erasure.owned for erasure in self.erasures.values())

    @cached_property
    def erased_user_rows(self) -> list[int]:
        return [row for erasure in self.erasures.values() for row in erasure.target.user_rows]

    @cached_property
    def erased_item_rows(self) -> list[int]:
        return [row for erasure in self.erasures.values() for row in erasure.target.item_rows]

    @cached_property
    def users(self) -> Vocabulary:
        """With tombstones for those that go, and those that come at the end."""
        return self.before.users.without(self.erased_user_rows).extended([user for user, _ in self.learned])

    @cached_property
    def items(self) -> Vocabulary:
        return self.before.items.without(self.erased_item_rows).extended([item for _, item in self.learned])

    @cached_property
    def added(self) -> dict[ShardId, Interactions]:
        """What every shard gains; shards that gain nothing are left out."""
        if not self.learned:
            return {}
        named = Interactions.of(
            np.array([self.users.row(user) for user, _ in self.learned], np.int32),
            np.array([self.items.row(item) for _, item in self.learned], np.int32),
        )
        new = named.without(Interactions.union([part for data in self.rest.values() for part in (data.train, data.valid)]))
        config = self.before.manifest.config
        key = seeds.secret(config.seed, "ids")
        trained = [data.train for data in self.rest.values()]
        owners = place_learned(new, trained, self.users.keys(key), self.items.keys(key), config.partition, config.seed)
        return {shard: new.take(owners == shard) for shard in self.rest if (owners == shard).any()}

    @property
    def touched(self) -> list[ShardId]:
        """The shards that must be trained anew."""
        return sorted({*self.erased, *self.added})


def remaining_dataset(change: Change) -> Dataset:
    """What remains once a batch is carried out, numbered as a new log is; what was held out stays held out."""
    users = Vocabulary.of("user", [raw for raw in change.users.ids if raw is not None])
    items = Vocabulary.of("item", [raw for raw in change.items.ids if raw is not None])
    user_rows, item_rows = _renumbered(change.users, users), _renumbered(change.items, items)

    def moved(parts: Iterable[Interactions]) -> Interactions:
        old = Interactions.union(list(parts))
        return Interactions.of(user_rows[old.users], item_rows[old.items])

    train = moved([*(data.train for data in change.rest.values()), *change.added.values()])
    return Dataset("remaining", users, items, train, moved(data.valid for data in change.rest.values()), Interactions.none())


def _renumbered(old: Vocabulary, new: Vocabulary) -> np.ndarray:
    """(U,) int32, the new row of every old one; -1 for tombstones."""
    return np.array([-1 if raw is None else new.row(raw) for raw in old.ids], np.int32)
