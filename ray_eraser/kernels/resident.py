"""A shard's data on a torch device during training, and its data and submodel between requests.

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
    """A shard's interactions on a device. Each direction is uploaded at its first use.

    Attributes:
        compact: the interactions in host memory, renumbered.
        device: the device for both directions.
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
    """The interactions on a device. The result is cached for as long as the interactions are in memory."""
    known = _slices.setdefault(interactions, {})
    if device not in known:
        known[device] = Slice(interactions.compact(), device)
    return known[device]


def release(interactions: Interactions) -> None:
    """Overwrite and free the interactions on every device."""
    for held in _slices.pop(interactions, {}).values():
        overwrite(held)


def overwrite(value: object) -> None:
    """Fill every tensor in a value with zeros, including tensors in its attributes and members."""
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
    """The data and the submodel of one shard, kept on a device between requests.

    The files in the store are authoritative. The data kept here carries the name of its file and is used only for that file.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._submodel: dict[str, Tensor]
        self._named: str | None
        self._empty()

    def data(self, named: str) -> ShardData | None:
        """The interactions, if they have this name; None otherwise."""
        return self._data if named == self._named else None

    def keep(self, named: str, data: ShardData, submodel: KeyedEmbeddings) -> None:
        """Keep this data and submodel, after overwriting and freeing the previous ones.

        Args:
            named: the name of the interactions.
            data: the interactions.
            submodel: the submodel that was learned from them.
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
        """A copy of the submodel in host memory; None if nothing is kept."""
        if self._named is None:
            return None
        users, items = (self._submodel[name].cpu().numpy().copy() for name in ("users", "items"))
        user_keys, item_keys = self._keys
        return KeyedEmbeddings(user_keys, users, item_keys, items)
