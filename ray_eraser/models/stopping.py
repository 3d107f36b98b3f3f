"""Early stopping: end the training when the score on held-out pairs stops improving."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Generic, TypeVar

Weights = TypeVar("Weights")


@dataclass(frozen=True)
class EarlyStopping(Generic[Weights]):
    """The best weights so far, and the number of checks since. Each check returns a new value.

    A submodel is scored on held-out pairs of its own shard, because another shard's data must not affect it.

    Attributes:
        patience: the number of checks without a better score after which training is `exhausted`; at least 1.
        best: the weights of the best check, or of the earliest one in a tie; None before the first check.
        best_score: the score of these weights.
        waited: the number of checks since then.
    """

    patience: int
    best: Weights | None = None
    best_score: float = float("-inf")
    waited: int = 0

    def after(self, score: float, weights: Weights) -> EarlyStopping[Weights]:
        """The state after one more check. `weights` are not copied: pass a copy if training will change them."""
        if self.best is None or score > self.best_score:
            return replace(self, best=weights, best_score=score, waited=0)
        return replace(self, waited=self.waited + 1)

    @property
    def exhausted(self) -> bool:
        """Whether training should end with `best`."""
        return self.waited >= self.patience
