"""An interaction log, read, numbered and split."""

from __future__ import annotations

from dataclasses import dataclass

from ray_eraser.data.interactions import Interactions
from ray_eraser.data.vocabulary import Vocabulary


@dataclass(frozen=True, eq=False)
class Dataset:
    """Three disjoint sets of interactions over one pair of vocabularies.

    Attributes:
        name: where it came from, for people.
        users, items: the vocabularies of all three sets.
        train: what is learned from.
        valid: what stopping and sweeps may look at; may be empty.
        test: looked at once, at the end; never stored with a deployment; may be empty.
        merged: how many repeated pairs of the log were merged.
        below_rating: how many rows were left out because their rating was under the minimum.
    """

    name: str
    users: Vocabulary
    items: Vocabulary
    train: Interactions
    valid: Interactions
    test: Interactions
    merged: int = 0
    below_rating: int = 0
