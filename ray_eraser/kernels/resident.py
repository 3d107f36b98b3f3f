"""A shard's slice on a torch device while it trains, and slice and submodel between requests.

U users and I items of the shard in its compact numbering, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from ray_eraser.data.interactions import Compact, Interactions
from ray_eraser.data.keyed import ShardData
from ray_eraser.embeddings import KeyedEmbeddings
from ray_eraser.kernels.buckets import Buckets


@dataclass(frozen=True, eq=False)
class Slice:
    """A shard's interactions on a device. Both directions are uploaded when they are first used.

    Attributes:
        compact: the interactions in host memory, renumbered.
        device: holds both directions.
    """

    compact: Compact
    device: torch.device

    @cached_property
    def by_user(self) -> Buckets:
        """Each user's items."""
        return self._uploaded(self.compact.matrix())

    @cached_property
    def by_item(self) -> Buckets:
        """Each item's users."""
        return self._uploaded(self.compact.matrix().T.tocsr())

    def _uploaded(self, matrix: sparse.csr_matrix) -> Buckets:
        return Buckets.of_matrix(matrix, self.device)


_slices: WeakKeyDictionary[Interactions, dict[torch.device, Slice]] = WeakKeyDictionary()


def slice_of(interactions: Interactions, device: torch.device) -> Slice:
    """The interactions on a device; the same value as long as the interactions are in memory."""
    known = _slices.setdefault(interactions, {})
    if device not in known:
        known[device] = Slice(interactions.compact(), device)
    return known[device]


def release(interactions: Interactions) -> None:
    """Overwrite and free the interactions on every device."""
    for held in _slices.pop(interactions, {}).values():
        overwrite(held)


def overwrite(value: object) -> None:
    """Fill every tensor in a value with zeros: in its attributes, items and members."""
    for tensor in _tensors(value):
        tensor.zero_()


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for member in value.values():
            yield from _tensors(member)
    elif isinstance(value, list | tuple):
        for member in value:
            yield from _tensors(member)
    elif hasattr(value, "__dict__") and type(value).__module__.startswith("ray_eraser."):
        yield from _tensors(vars(value))


class Resident:
    """The slice and the submodel of one shard on a device, between requests.

    The files in the store are the truth. What is held here has the name of its file, and is used for no other.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._submodel: dict[str, Tensor]
        self._named: str | None
        self._empty()

    def data(self, named: str) -> ShardData | None:
        """The interactions, where they are those of this name."""
        return self._data if named == self._named else None

    def keep(self, named: str, data: ShardData, submodel: KeyedEmbeddings) -> None:
        """Hold these, after overwriting and freeing what was held before.

        Args:
            named: the name of the interactions.
            data: the interactions.
            submodel: what was learned from them.
        """
        self.drop()
        tables = {"users": submodel.users, "items": submodel.items}
        self._submodel = {name: torch.tensor(table, device=self._device) for name, table in tables.items()}
        if len(data.train):
            on_device = slice_of(data.train, self._device)
            _ = on_device.by_user, on_device.by_item
        self._named, self._data, self._keys = named, data, (submodel.user_keys, submodel.item_keys)

    def drop(self) -> None:
        """Overwrite and free everything."""
        release(self._data.train)
        overwrite(self._submodel)
        self._empty()

    def _empty(self) -> None:
        self._named, self._data, self._submodel = None, ShardData.none(), {}
        self._keys = np.empty(0, np.uint64), np.empty(0, np.uint64)

    def submodel(self) -> KeyedEmbeddings | None:
        """The submodel, copied from the device; None where nothing is held."""
        if self._named is None:
            return None
        users, items = (self._submodel[name].cpu().numpy().copy() for name in ("users", "items"))
        user_keys, item_keys = self._keys
        return KeyedEmbeddings(user_keys, users, item_keys, items)
