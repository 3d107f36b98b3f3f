"""What may be asked to be forgotten, and the states that a request goes through."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from ray_eraser.data.interactions import Interactions
from ray_eraser.data.vocabulary import Vocabulary
from ray_eraser.errors import IllegalTransitionError, RequestError
from ray_eraser.ids import RawId, RequestId


class RequestState(StrEnum):
    """Where a request stands. A request that cannot be accepted is refused with an error and never gets a state."""

    RECEIVED = "received"
    """Recorded; survives any crash from here on."""
    EXCISED = "excised"
    """Nothing that is served depends on the data any more."""
    ROUTED = "routed"
    """The owning shards are being trained without the data."""
    ERASED = "erased"
    """Published, superseded files deleted, receipt written."""

    def check(self, request_id: RequestId, wanted: RequestState) -> None:
        """Raise `IllegalTransitionError` unless `wanted` may follow this state."""
        if wanted not in _NEXT[self]:
            raise IllegalTransitionError(request_id, self, wanted)


_NEXT = {
    RequestState.RECEIVED: {RequestState.EXCISED},
    RequestState.EXCISED: {RequestState.ROUTED},
    RequestState.ROUTED: {RequestState.ERASED},
    RequestState.ERASED: set[RequestState](),
}


@dataclass(frozen=True)
class UnlearningRequest:
    """A user, an item, or some interactions: exactly one of the three.

    Raises:
        RequestError: none or several are given, or no pair, or what is none.
    """

    user_id: RawId | None = None
    item_id: RawId | None = None
    pairs: tuple[tuple[RawId, RawId], ...] | None = None

    def __post_init__(self) -> None:
        given = [name for name in ("user_id", "item_id", "pairs") if getattr(self, name) is not None]
        if len(given) != 1:
            raise RequestError(f"give exactly one of user_id, item_id and pairs, got {' and '.join(given) or 'none'}")
        if self.pairs is not None:
            if not self.pairs:
                raise RequestError("pairs is empty: name at least one (user id, item id)")
            for pair in self.pairs:
                if isinstance(pair, str) or len(pair) != 2:
                    raise RequestError(f"{pair!r} is no pair: name each as (user id, item id)")
            # Lists, as JSON has them, become tuples: what the ledger gives back must equal what was asked.
            object.__setattr__(self, "pairs", tuple((user, item) for user, item in self.pairs))

    @property
    def kind(self) -> str:
        """`user`, `item` or `pairs`."""
        return "user" if self.user_id is not None else "item" if self.item_id is not None else "pairs"

    def to_json(self) -> str:
        value = self.pairs if self.pairs is not None else self.user_id if self.user_id is not None else self.item_id
        return json.dumps({self.kind: value})

    @classmethod
    def from_json(cls, text: str) -> UnlearningRequest:
        ((kind, value),) = json.loads(text).items()
        if kind == "pairs":
            return cls(pairs=tuple((user, item) for user, item in value))
        return cls(user_id=value) if kind == "user" else cls(item_id=value)


@dataclass(frozen=True)
class Target:
    """A request in rows: whose ids go, and which interactions."""

    user_rows: tuple[int, ...]
    item_rows: tuple[int, ...]
    pairs: Interactions

    def of(self, interactions: Interactions) -> Interactions:
        """The interactions, out of these, that the request is about."""
        if self.user_rows:
            return interactions.of_users(np.array(self.user_rows))
        if self.item_rows:
            return interactions.of_items(np.array(self.item_rows))
        return interactions.common(self.pairs)


def resolve(request: UnlearningRequest, users: Vocabulary, items: Vocabulary) -> Target:
    """The rows that a request means.

    Raises:
        UnknownIdError: an id was never here or has been erased.
    """
    if request.user_id is not None:
        return Target((users.row(request.user_id),), (), Interactions.none())
    if request.item_id is not None:
        return Target((), (items.row(request.item_id),), Interactions.none())
    assert request.pairs is not None
    user_rows = np.array([users.row(user) for user, _ in request.pairs], np.int32)
    item_rows = np.array([items.row(item) for _, item in request.pairs], np.int32)
    return Target((), (), Interactions.of(user_rows, item_rows))
