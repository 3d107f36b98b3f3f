"""What waits in the ledger beside requests to forget, and is carried out together with them: new data, and a new partition."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, cast

from ray_eraser.ids import RawId
from ray_eraser.unlearning.request import UnlearningRequest


@dataclass(frozen=True)
class Learning:
    """Interactions to learn from, appended to the log; part of what is served once they have been trained on.

    What is asked to be forgotten while it waits leaves it at once, so that no pair may be left. Ids are text.

    Raises:
        RequestError: a pair is none, or an id cannot be one.
    """

    kind: ClassVar[str] = "learn"

    pairs: tuple[tuple[RawId, RawId], ...]

    def __post_init__(self) -> None:
        if self.pairs:  # what is a pair, and what an id, is said in one place
            object.__setattr__(self, "pairs", UnlearningRequest(pairs=self.pairs).pairs)

    @property
    def named(self) -> tuple[tuple[str, str], ...]:
        """The pairs as the text that their ids have become."""
        return cast("tuple[tuple[str, str], ...]", self.pairs)

    def without(self, is_forgotten: Callable[[str, str], bool]) -> Learning:
        """What is left to learn once a request to forget has been accepted."""
        return Learning(tuple(pair for pair in self.named if not is_forgotten(*pair)))

    def to_json(self) -> str:
        return json.dumps({self.kind: self.pairs})


@dataclass(frozen=True)
class Repartition:
    """Everything from scratch: ids numbered, interactions divided, and all shards trained anew.

    Attributes:
        changes: settings to change on the way, as `section.key=value`.
    """

    kind: ClassVar[str] = "repartition"

    changes: tuple[str, ...] = ()

    def to_json(self) -> str:
        return json.dumps({self.kind: self.changes})


Work = UnlearningRequest | Learning | Repartition
"""All that the ledger keeps until it is done."""


def work_from_json(text: str) -> Work:
    """What `to_json` wrote."""
    fields: dict[str, Any] = json.loads(text)
    if Learning.kind in fields:
        return Learning(tuple((user, item) for user, item in fields[Learning.kind]))
    if Repartition.kind in fields:
        return Repartition(tuple(fields[Repartition.kind]))
    return UnlearningRequest.from_json(text)
