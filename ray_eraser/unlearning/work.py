"""Work in the ledger other than erasures: new data to learn, and a new partition. It is carried out together with erasures."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, cast

from ray_eraser.ids import RawId
from ray_eraser.unlearning.request import UnlearningRequest


@dataclass(frozen=True)
class Learning:
    """Interactions to append to the log. They are served after they have been trained on.

    An erasure accepted meanwhile removes its pairs at once, so a learning may have no pair left. Ids are text.

    Raises:
        RequestError: a value is not a pair, or cannot be an id.
    """

    kind: ClassVar[str] = "learn"

    pairs: tuple[tuple[RawId, RawId], ...]

    def __post_init__(self) -> None:
        if self.pairs:  # `UnlearningRequest` checks pairs and ids
            object.__setattr__(self, "pairs", UnlearningRequest(pairs=self.pairs).pairs)

    @property
    def named(self) -> tuple[tuple[str, str], ...]:
        """The pairs, with their ids as text."""
        return cast("tuple[tuple[str, str], ...]", self.pairs)

    def without(self, is_forgotten: Callable[[str, str], bool]) -> Learning:
        """The learning without the pairs that an accepted erasure covers."""
        return Learning(tuple(pair for pair in self.named if not is_forgotten(*pair)))

    def to_json(self) -> str:
        return json.dumps({self.kind: self.pairs})


@dataclass(frozen=True)
class Repartition:
    """A complete rebuild: the interactions are divided again, and all shards are trained again.

    Attributes:
        changes: settings to change with it, as `section.key=value`.
    """

    kind: ClassVar[str] = "repartition"

    changes: tuple[str, ...] = ()

    def to_json(self) -> str:
        return json.dumps({self.kind: self.changes})


Work = UnlearningRequest | Learning | Repartition
"""The work of a request, which the ledger keeps until it is done."""


def work_from_json(text: str) -> Work:
    """Parse the text that `to_json` wrote."""
    fields: dict[str, Any] = json.loads(text)
    if Learning.kind in fields:
        return Learning(tuple((user, item) for user, item in fields[Learning.kind]))
    if Repartition.kind in fields:
        return Repartition(tuple(fields[Repartition.kind]))
    return UnlearningRequest.from_json(text)
