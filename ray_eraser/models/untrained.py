"""The base model behind models without training. Its submodels are empty."""

from __future__ import annotations

from ray_eraser.config import ModelSettings
from ray_eraser.data.interactions import Interactions
from ray_eraser.embeddings import Embeddings
from ray_eraser.models.base import BaseModel, Start, TrainingState


class Untrained(BaseModel):
    """A base model that learns nothing, for models whose only state is the interactions."""

    def __init__(self, config: ModelSettings) -> None:
        self.config = config

    def train(
        self,
        before: TrainingState,
        interactions: Interactions,  # noqa: ARG002
        valid: Interactions,  # noqa: ARG002
        start: Start,  # noqa: ARG002
        epochs: int,  # noqa: ARG002
    ) -> TrainingState:
        return before

    def embeddings(self, state: TrainingState, interactions: Interactions) -> Embeddings:  # noqa: ARG002
        return Embeddings.empty(self.config.width)
