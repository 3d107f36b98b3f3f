"""Query a served model of any kind as an attacker does: by rows of a log, and by items that a user claims to have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from ray_eraser.aggregation import folding
from ray_eraser.config import EraserConfig
from ray_eraser.data.keyed import ShardData
from ray_eraser.errors import ConfigError
from ray_eraser.served import Served, ServedLinear, ServedVectors


def asked_by(served: Served, own: Sequence[ShardData], config: EraserConfig) -> Served:
    """The same model, which scores users by their items in `own`, even if it does not know the users.

    Use only its scores: the result of `same_bits` has no meaning.

    Raises:
        ConfigError: a model of this kind cannot score unknown users.
    """
    vectors = served.vectors()
    if vectors is not None:
        return ServedVectors(vectors, folding(vectors.in_rows(vectors.user_keys, vectors.item_keys), config), own)
    if isinstance(served, ServedLinear):
        return replace(served, shards=own)  # the solver still holds the pairs of the model
    problem = f"a {config.model.kind} model cannot score users that it does not know: erase pairs, not users"
    raise ConfigError("model.kind", problem)


@dataclass(frozen=True, eq=False)
class InLog:
    """A served model in the rows of a log, whose keys may be in any order.

    Attributes:
        served: the model.
        user_keys, item_keys: the key of each row of the log.
    """

    served: Served
    user_keys: np.ndarray
    item_keys: np.ndarray

    @cached_property
    def _rows(self) -> np.ndarray:
        return rows_of(self.served.item_keys, self.item_keys)

    @cached_property
    def _order(self) -> np.ndarray:
        return np.argsort(self._rows)

    @property
    def item_rows(self) -> np.ndarray:
        return np.sort(self._rows)

    def scores(self, rows_U: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        known, scores = self.served.scores(self.user_keys[rows_U])
        return known, scores[:, self._order]


def rows_of(keys: np.ndarray, key_of_row: np.ndarray) -> np.ndarray:
    """The row of every key, (n,) int32, given the keys of all rows in any order."""
    order = np.argsort(key_of_row)
    rows: np.ndarray = order[np.searchsorted(key_of_row, keys, sorter=order)].astype(np.int32)
    return rows
