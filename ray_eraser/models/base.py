"""The interface of base models: one class that trains in stages. Test a new one with `ray_eraser.testing.model_contract`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from ray_eraser.config import ModelSettings
from ray_eraser.data.interactions import Interactions
from ray_eraser.data.keyed import places_of
from ray_eraser.embeddings import Embeddings

START_LENGTH = 0.1
"""Approximate length of an item's vector before the first ALS sweep: N(0, .1 / sqrt(D)), Rendle et al. 2021."""


@dataclass(frozen=True, eq=False)
class Start:
    """All the randomness that a stage of training may use.

    Attributes:
        seed: the seed of all numbers that are drawn in sequence. It is derived from the root seed, the shard's id, the purpose
            and the stage.
        items: (I', D) float32, standard normal, one row for each of `interactions.item_rows()`. The row of an item depends only
            on the root seed and the item's id, so it is the same in every shard and stage. Submodels that start alike end
            closer to each other, and no data passes between shards.
    """

    seed: int
    items: np.ndarray


@dataclass(frozen=True, eq=False)
class Table:
    """The training state of one side, users or items: named arrays with one entry for each row.

    Attributes:
        rows: (R,) int32, ascending rows of the shard. A stored table has (R,) uint64 keys instead.
        columns: arrays (R, ...), such as the vectors and an optimiser's accumulators.
    """

    rows: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32))
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __getitem__(self, name: str) -> np.ndarray:
        return self.columns[name]

    def after(self, before: Table) -> Table:
        """Return this table with the values of `before` in the rows that both have. `before` is not changed."""
        if not len(before.rows):
            return self
        assert np.isin(before.rows, self.rows).all(), "a stage must learn from everything that the previous stage learned from"
        here = np.searchsorted(self.rows, before.rows)
        merged = self.copy()
        for name, column in merged.columns.items():
            column[here] = before[name]
        return merged

    def renamed(self, names: np.ndarray) -> Table:
        """Return this table with each row replaced by its entry in `names`."""
        return Table(names[self.rows], self.columns)

    def copy(self) -> Table:
        return Table(self.rows, {name: column.copy() for name, column in self.columns.items()})

    def arrays(self, side: str) -> dict[str, np.ndarray]:
        """The arrays to store, by name. Each name begins with the name of the side."""
        return {side: self.rows} | {f"{side}.{name}": column for name, column in self.columns.items()}

    @classmethod
    def of(cls, side: str, arrays: Mapping[str, np.ndarray]) -> Table:
        """Make a table from the result of `arrays`."""
        columns = {name.removeprefix(f"{side}."): array for name, array in arrays.items() if name.startswith(f"{side}.")}
        return cls(arrays[side], columns)


@dataclass(frozen=True, eq=False)
class TrainingState:
    """The state of a training: everything that it needs to continue with more interactions as if it had never stopped.

    Attributes:
        users: the table of all users so far.
        items: the table of all items so far.
        stages: the number of completed stages.
    """

    users: Table = Table()
    items: Table = Table()
    stages: int = 0

    def after(self, before: TrainingState) -> TrainingState:
        """The state at the start of a stage: this fresh state, with the rows that `before` has taken from `before`."""
        return TrainingState(self.users.after(before.users), self.items.after(before.items), before.stages)

    def renamed(self, user_keys: np.ndarray, item_keys: np.ndarray) -> TrainingState:
        """Return this state with keys instead of rows, as it is stored."""
        return TrainingState(self.users.renamed(user_keys), self.items.renamed(item_keys), self.stages)

    def in_rows(self, user_keys: np.ndarray, item_keys: np.ndarray) -> TrainingState:
        """A stored state in the rows of these ascending keys.

        Raises:
            KeyError: the state has an id that is not among the keys.
        """
        sides = []
        for table, keys in ((self.users, user_keys), (self.items, item_keys)):
            rows = places_of(table.rows.astype(np.uint64), keys)
            if (rows < 0).any():
                raise KeyError("the state has an id that the shard does not have")
            sides.append(Table(rows, table.columns))
        return TrainingState(sides[0], sides[1], self.stages)

    def copy(self) -> TrainingState:
        """A copy, which training may change in place."""
        return TrainingState(self.users.copy(), self.items.copy(), self.stages)

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays to store, by name."""
        return {"stages": np.array([self.stages], np.int64)} | self.users.arrays("users") | self.items.arrays("items")

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray]) -> TrainingState:
        """Make a state from the result of `arrays`.

        Raises:
            KeyError: an array is missing.
        """
        return cls(Table.of("users", arrays), Table.of("items", arrays), int(arrays["stages"][0]))


UNTRAINED = TrainingState()
"""The state before the first stage."""


class BaseModel(Protocol):
    """A recommender whose scores are inner products.

    Training has one or more stages. Each stage learns from all data of the previous stage and from more: see
    training/slices.py. The results of `train` and `embeddings` depend only on their arguments and the model's settings, and the
    same arguments give the same bits. Both are called with at least one interaction.
    """

    config: ModelSettings

    def train(
        self, before: TrainingState, interactions: Interactions, valid: Interactions, start: Start, epochs: int
    ) -> TrainingState:
        """Train one stage.

        Args:
            before: the state after the previous stage, or `UNTRAINED` for the first stage. It must not be changed. Its users
                and items are among those of `interactions`.
            interactions: the data to train on. The tables of the result cover these users and items and no others.
            valid: held-out pairs of the shard, used only for early stopping; may be empty.
            start: the initial vectors of the users and items that `before` lacks, and the seed of everything else drawn.
            epochs: the number of epochs.
        """
        ...

    def embeddings(self, state: TrainingState, interactions: Interactions) -> Embeddings:
        """The submodel after the last stage, which trained on `interactions`. It covers exactly their users and items."""
        ...

    def fit(self, interactions: Interactions, valid: Interactions, start: Start) -> Embeddings:
        """Train from scratch in one stage. Without interactions, the result is `Embeddings.empty`."""
        if not len(interactions):
            return Embeddings.empty(self.config.width)
        state = self.train(UNTRAINED, interactions, valid, start, self.config.epochs)
        return self.embeddings(state, interactions)
