"""What a base model is: one class that trains in stages. A new one passes `tests/contracts/model_contract.py`."""

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
"""About the length of an item's vector before the first ALS sweep: N(0, .1 / sqrt(D)), Rendle et al. 2021."""


@dataclass(frozen=True, eq=False)
class Start:
    """All the randomness that a stage of training may use.

    Attributes:
        seed: derived from the root seed, the shard's id, the purpose and the stage; for everything drawn in sequence.
        items: (I', D) float32, standard normal, one row for each of `interactions.item_rows()`. An item has the same row in
            every shard and stage, because the numbers depend on the root seed and the item's id alone: bases that start alike
            end closer, and nothing of the data is passed between shards.
    """

    seed: int
    items: np.ndarray


@dataclass(frozen=True, eq=False)
class Table:
    """What training keeps of one side, users or items: by name one array with an entry for each row.

    Attributes:
        rows: (R,) int32, ascending rows of the shard; where it is stored, (R,) uint64 keys.
        columns: arrays (R, ...), such as the vectors and an optimiser's accumulators.
    """

    rows: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32))
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __getitem__(self, name: str) -> np.ndarray:
        return self.columns[name]

    def after(self, before: Table) -> Table:
        """The same rows, where those that `before` has too stand as it left them. Of `before` nothing is changed."""
        if not len(before.rows):
            return self
        assert np.isin(before.rows, self.rows).all(), "a stage learns from all that the one before it learned from"
        here = np.searchsorted(self.rows, before.rows)
        merged = self.copy()
        for name, column in merged.columns.items():
            column[here] = before[name]
        return merged

    def renamed(self, names: np.ndarray) -> Table:
        """The same, with what stands at its rows in `names` in their place."""
        return Table(names[self.rows], self.columns)

    def copy(self) -> Table:
        return Table(self.rows, {name: column.copy() for name, column in self.columns.items()})

    def arrays(self, side: str) -> dict[str, np.ndarray]:
        """Rows and columns by names that begin with that of the side, as they are stored."""
        return {side: self.rows} | {f"{side}.{name}": column for name, column in self.columns.items()}

    @classmethod
    def of(cls, side: str, arrays: Mapping[str, np.ndarray]) -> Table:
        """From what `arrays` gives."""
        columns = {name.removeprefix(f"{side}."): array for name, array in arrays.items() if name.startswith(f"{side}.")}
        return cls(arrays[side], columns)


@dataclass(frozen=True, eq=False)
class TrainingState:
    """Where a training stands: all that it needs to go on with more interactions as if it had never stopped.

    Attributes:
        users: of every user so far.
        items: of every item so far.
        stages: how many stages it has behind it.
    """

    users: Table = Table()
    items: Table = Table()
    stages: int = 0

    def after(self, before: TrainingState) -> TrainingState:
        """The beginning of a stage: everything as in this state, which is fresh, unless `before` has it already."""
        return TrainingState(self.users.after(before.users), self.items.after(before.items), before.stages)

    def renamed(self, user_keys: np.ndarray, item_keys: np.ndarray) -> TrainingState:
        """The same with keys for rows, as it is stored."""
        return TrainingState(self.users.renamed(user_keys), self.items.renamed(item_keys), self.stages)

    def in_rows(self, user_keys: np.ndarray, item_keys: np.ndarray) -> TrainingState:
        """A stored state in rows of ascending keys.

        Raises:
            KeyError: it knows an id that is not among them.
        """
        sides = []
        for table, keys in ((self.users, user_keys), (self.items, item_keys)):
            rows = places_of(table.rows.astype(np.uint64), keys)
            if (rows < 0).any():
                raise KeyError("it knows an id that the shard does not")
            sides.append(Table(rows, table.columns))
        return TrainingState(sides[0], sides[1], self.stages)

    def copy(self) -> TrainingState:
        """The same, for training to go on with this one in place."""
        return TrainingState(self.users.copy(), self.items.copy(), self.stages)

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything by name, as it is stored."""
        return {"stages": np.array([self.stages], np.int64)} | self.users.arrays("users") | self.items.arrays("items")

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray]) -> TrainingState:
        """From what `arrays` gives.

        Raises:
            KeyError: something is missing.
        """
        return cls(Table.of("users", arrays), Table.of("items", arrays), int(arrays["stages"][0]))


UNTRAINED = TrainingState()
"""Before the first stage."""


class BaseModel(Protocol):
    """A recommender whose scores are inner products.

    Training has one or more stages, each on what the one before it learned from and more; see training/slices.py. `train` and
    `embeddings` are functions of their arguments and the model's settings: same arguments, same bits. They are given at least
    one interaction.
    """

    config: ModelSettings

    def train(
        self, before: TrainingState, interactions: Interactions, valid: Interactions, start: Start, epochs: int
    ) -> TrainingState:
        """One stage.

        Args:
            before: what the stage before left behind, not to be changed; `UNTRAINED` where this is the first. Its users and
                items are among those of `interactions`.
            interactions: what to train on. The result has rows for its users and items, where the model keeps any, and for
                no others.
            valid: held-out pairs of the shard, for early stopping alone; may be empty.
            start: what users and items that `before` lacks start from, and all else that is drawn.
            epochs: how long.
        """
        ...

    def embeddings(self, state: TrainingState, interactions: Interactions) -> Embeddings:
        """The submodel, once the last stage has trained on `interactions`; covers exactly their users and items."""
        ...

    def fit(self, interactions: Interactions, valid: Interactions, start: Start) -> Embeddings:
        """Train from scratch, in one stage; no interactions give `Embeddings.empty`."""
        if not len(interactions):
            return Embeddings.empty(self.config.width)
        state = self.train(UNTRAINED, interactions, valid, start, self.config.epochs)
        return self.embeddings(state, interactions)
