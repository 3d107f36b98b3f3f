"""What a base model is: one class with `fit`. A new one passes `tests/contracts/model_contract.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ray_eraser.data.interactions import Interactions
from ray_eraser.embeddings import Embeddings

START_LENGTH = 0.1
"""About the length of an item's vector before the first ALS sweep: N(0, .1 / sqrt(D)), Rendle et al. 2021."""


@dataclass(frozen=True, eq=False)
class Start:
    """All the randomness that a submodel may use.

    Attributes:
        seed: derived from the root seed, the shard's id and the purpose; for everything drawn in sequence.
        items: (I', D) float32, standard normal, one row for each of `interactions.item_rows()`. An item has the same row in
            every shard, because the numbers depend on the root seed and the item's id alone: bases that start alike end
            closer, and nothing of the data is passed between shards.
    """

    seed: int
    items: np.ndarray


class BaseModel(Protocol):
    """A recommender whose scores are inner products.

    `fit` is a function of its arguments and the model's settings: same arguments, same bits. It trains from scratch and
    covers exactly the users and items that `interactions` has; no interactions give `Embeddings.empty`.
    """

    def fit(self, interactions: Interactions, valid: Interactions, start: Start) -> Embeddings:
        """Train on `interactions`; `valid` are the shard's own held-out pairs, for early stopping alone (may be empty)."""
        ...
