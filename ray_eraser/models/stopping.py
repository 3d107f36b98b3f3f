"""When to stop training: once the score on held-out pairs has not improved for a while."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Generic, TypeVar

Weights = TypeVar("Weights")


@dataclass(frozen=True)
class EarlyStopping(Generic[Weights]):
    """The best weights so far and how many checks went by since; a check gives a new value.

    A submodel is scored on its own shard's held-out pairs: what another shard holds must not decide when this one stops.

    Attributes:
        patience: checks without a better score after which training is `exhausted`; at least 1.
        best: the weights of the best check, the earliest of equals; None before the first check.
        best_score: their score.
        waited: checks since then.
    """

    patience: int
    best: Weights | None = None
    best_score: float = float("-inf")
    waited: int = 0

    def after(self, score: float, weights: Weights) -> EarlyStopping[Weights]:
        """What is known after one more check. `weights` are kept as they are: hand in a copy of what training will change."""
        if self.best is None or score > self.best_score:
            return replace(self, best=weights, best_score=score, waited=0)
        return replace(self, waited=self.waited + 1)

    @property
    def exhausted(self) -> bool:
        """Whether training should end with `best`."""
        return self.waited >= self.patience
