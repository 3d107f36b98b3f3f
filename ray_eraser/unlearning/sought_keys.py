"""The keys of erased ids in the store's own files, and the keys that have an interaction there."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from ray_eraser import seeds
from ray_eraser.config import EraserConfig
from ray_eraser.data.keyed import KeyedPairs, all_keys
from ray_eraser.errors import StoreError
from ray_eraser.store import Store, manifest_ref
from ray_eraser.unlearning.erased import Erased, key_of
from ray_eraser.unlearning.sought_ids import Target, add_target

INTERACTIONS = re.compile(r"shards/\d+/interactions-")
_MANIFEST = re.compile(r"generations/([0-9a-f]{64})\.json")


_LONGEST_HEADER = 100_000_000
"""Bytes of the header of a safetensors file, by its format."""


@dataclass(frozen=True, eq=False)
class SoughtKeys:
    """The keys of the ids and pairs to look for, under the seed of every generation in the store.

    Attributes:
        ids: for each kind, the targets of every key.
        pairs: the targets of every pair of a user's and an item's key.
    """

    ids: Mapping[str, Mapping[int, list[Target]]]
    pairs: Mapping[tuple[int, int], list[Target]]

    @classmethod
    def of(cls, erased: Erased, roots: Iterable[int]) -> SoughtKeys:
        ids: dict[str, dict[int, list[Target]]] = {"user": {}, "item": {}}
        pairs: dict[tuple[int, int], list[Target]] = {}
        for root in sorted(roots):
            secret = seeds.secret(root, "ids")
            for kind, given in (("user", erased.user_ids), ("item", erased.item_ids)):
                for position, raw in enumerate(given):
                    if (key := key_of(raw, secret)) is not None:
                        add_target(ids[kind], [key], (kind, position))
            for position, pair in enumerate(erased.pairs):
                user, item = (key_of(raw, secret) for raw in pair)
                if user is not None and item is not None:
                    add_target(pairs, [(user, item)], ("pair", position))
        return cls(ids, pairs)

    def among(self, kind: str, keys: np.ndarray) -> Iterator[tuple[int, Target]]:
        """(position, target) of every sought key of one kind."""
        sought = self.ids[kind]
        if sought:
            for place in np.flatnonzero(np.isin(keys, np.array(list(sought), np.uint64))).tolist():
                for target in sought[int(keys[place])]:
                    yield place, target

    def among_pairs(self, pairs: KeyedPairs) -> Iterator[tuple[int, Target]]:
        """(position, target) of every sought pair."""
        if self.pairs:
            sought = np.array(list(self.pairs), np.uint64)
            likely = np.isin(pairs.users, sought[:, 0]) & np.isin(pairs.items, sought[:, 1])
            for place in np.flatnonzero(likely).tolist():
                for target in self.pairs.get((int(pairs.users[place]), int(pairs.items[place])), ()):
                    yield place, target


class Generations:
    """The generations in a store: one, or two while the second replaces the first.

    Attributes:
        roots: their root seeds, and the default seed, for files of a training that never finished.
        unread: paths of interactions that could not be read.
    """

    def __init__(self, store: Store, files: Mapping[str, Callable[[], Any]]) -> None:
        self._files = files
        self._present: dict[str, Mapping[str, np.ndarray] | None] = {}
        self._united: dict[tuple[str, ...], Mapping[str, np.ndarray] | None] = {}
        self._named: dict[str, tuple[str, ...]] = {}
        self.roots = {EraserConfig().seed}
        self.unread: list[str] = []
        for path in files:
            # An audit names a damaged manifest. Its bytes are searched anyway.
            if match := _MANIFEST.fullmatch(path):
                with suppress(StoreError, ValueError, KeyError, TypeError):
                    self._note(json.loads(store.read(manifest_ref(match[1]))))
        self._all = tuple(path for path in files if INTERACTIONS.match(path) and ".partial-" not in path)

    def _note(self, manifest: Mapping[str, Any]) -> None:
        self.roots.add(int(manifest["config"]["seed"]))
        shards = manifest["shards"]
        refs = [*manifest["users"], *manifest["items"], manifest["aggregate"]]
        for shard in shards:
            refs += [shard["interactions"], shard["submodel"], *shard["checkpoints"]]
        interactions = [shard["interactions"]["path"] for shard in shards]
        for ref in refs:
            path = ref["path"]
            self._named[path] = tuple(sorted({*self._named.get(path, ()), *interactions}))

    def present(self, path: str) -> Mapping[str, np.ndarray] | None:
        """For each kind the ascending keys that have an interaction in the generations of a file.

        For a file of no generation, all interactions count. None if they cannot be read.
        """
        wanted = self._named.get(path, self._all)
        if wanted not in self._united:
            parts = [self._of(interactions) for interactions in wanted]
            known = [part for part in parts if part is not None]
            united = {kind: all_keys([part[kind] for part in known]) for kind in ("user", "item")}
            self._united[wanted] = united if len(known) == len(parts) else None
        return self._united[wanted]

    def _of(self, path: str) -> Mapping[str, np.ndarray] | None:
        if path not in self._present:
            try:
                with closing(self._files[path]()) as stream:
                    arrays = dict(key_arrays(stream, ("U64", "I32")))
                pairs = [pairs_of(arrays, name) for name in ("train", "valid")]
                users, items = (
                    np.unique(np.concatenate([getattr(part, side) for part in pairs])) for side in ("users", "items")
                )
                self._present[path] = {"user": users, "item": items}
            except (KeyError, OSError, IndexError, TypeError, ValueError):
                self._present[path] = None
                self.unread.append(path)
        return self._present[path]


def key_arrays(stream: Any, kinds: Sequence[str]) -> Iterator[tuple[str, np.ndarray]]:
    """(name, content) of every array of some types, `U64` and `I32`, in a safetensors file. Other arrays are not read.

    Raises:
        ValueError: the file is of another kind, or is truncated. The arrays before the fault have been yielded.
    """
    n_header = int.from_bytes(stream.read(8), "little")
    if not 2 <= n_header <= _LONGEST_HEADER:
        raise ValueError("no header")
    header = json.loads(stream.read(n_header))
    try:
        places = [
            (name, entry["dtype"], *map(int, entry["data_offsets"])) for name, entry in header.items() if name != "__metadata__"
        ]
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError("no header") from error
    for name, kind, begin, end in places:
        if kind in kinds:
            stream.seek(8 + n_header + begin)
            content = stream.read(max(0, end - begin))
            dtype = np.dtype("<u8" if kind == "U64" else "<i4")
            yield name, np.frombuffer(content[: len(content) - len(content) % dtype.itemsize], dtype)
            if len(content) < end - begin:
                raise ValueError("it ends too early")


def pairs_of(arrays: Mapping[str, np.ndarray], name: str) -> KeyedPairs:
    """The pairs of one set in a file of interactions."""
    return KeyedPairs(np.repeat(arrays["user_keys"], arrays[name]), arrays["item_keys"][arrays[f"{name}_items"]])
