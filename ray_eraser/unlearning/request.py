"""What may be asked to be forgotten, and the states that a request goes through."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from ray_eraser.data.interactions import Interactions
from ray_eraser.data.vocabulary import Vocabulary
from ray_eraser.errors import IllegalTransitionError, RequestError, shortened
from ray_eraser.ids import RawId, RequestId

LONGEST_ID = 4096
"""Bytes of a string id as UTF-8, bits of an integer one."""
LONGEST_KEY = 200
"""Characters of an idempotency key."""
_PRIORITIES = range(-(2**31), 2**31)


class RequestState(StrEnum):
    """Where a request stands. A request that cannot be accepted is refused with an error and never gets a state.

    received -> excised -> routed -> erased, or done; routed -> excised where the training failed and is tried again, routed ->
    set_aside where it failed too often, set_aside -> excised when an operator says so.
    """

    RECEIVED = "received"
    """Recorded; survives any crash from here on."""
    EXCISED = "excised"
    """Nothing that is served depends on the data any more."""
    ROUTED = "routed"
    """The owning shards are being trained without the data."""
    ERASED = "erased"
    """Published, superseded files deleted, receipt written."""
    DONE = "done"
    """Published: the end of what asks for no erasure (new data, a new partition)."""
    SET_ASIDE = "set_aside"
    """Its retraining failed again and again; others go on, its data stay out of what is served. For an operator to look at."""

    @property
    def is_final(self) -> bool:
        """Whether nothing is left to be done."""
        return self in (RequestState.ERASED, RequestState.DONE)

    def check(self, request_id: RequestId, wanted: RequestState) -> None:
        """Raise `IllegalTransitionError` unless `wanted` may follow this state."""
        if wanted not in _NEXT[self]:
            raise IllegalTransitionError(request_id, self, wanted)


_NEXT = {
    RequestState.RECEIVED: {RequestState.EXCISED},
    RequestState.EXCISED: {RequestState.ROUTED},
    RequestState.ROUTED: {RequestState.ERASED, RequestState.DONE, RequestState.EXCISED, RequestState.SET_ASIDE},
    RequestState.ERASED: set[RequestState](),
    RequestState.DONE: set[RequestState](),
    RequestState.SET_ASIDE: {RequestState.EXCISED},
}


@dataclass(frozen=True)
class UnlearningRequest:
    """A user, an item, or some interactions: exactly one of the three.

    Raises:
        RequestError: none or several are given, or no pair, or what is none, or an id that cannot be one (`id_problem`).
    """

    user_id: RawId | None = None
    item_id: RawId | None = None
    pairs: tuple[tuple[RawId, RawId], ...] | None = None

    def __post_init__(self) -> None:
        given = [name for name in ("user_id", "item_id", "pairs") if getattr(self, name) is not None]
        if len(given) != 1:
            raise RequestError(f"give exactly one of user_id, item_id and pairs, got {' and '.join(given) or 'none'}")
        if self.pairs is None:
            _check_id(given[0].removesuffix("_id"), getattr(self, given[0]))
            return
        try:
            pairs = () if isinstance(self.pairs, str | bytes) else tuple(self.pairs)
        except TypeError:
            pairs = ()
        if not pairs:
            raise RequestError("pairs is empty: name at least one (user id, item id)")
        for pair in pairs:
            if not isinstance(pair, tuple | list) or len(pair) != 2:
                raise RequestError(f"{shortened(pair)} is no pair: name each as (user id, item id)")
            for kind, raw in zip(("user", "item"), pair, strict=True):
                _check_id(kind, raw)
        # Lists, as JSON has them, become tuples: what the ledger gives back must equal what was asked.
        object.__setattr__(self, "pairs", tuple((user, item) for user, item in pairs))

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


def id_problem(raw: object) -> str | None:
    """Why something cannot be an id, to follow 'the user id'; None where it can. No log that is learned from has such ids."""
    if isinstance(raw, bool) or not isinstance(raw, int | str):
        return f"{shortened(raw)} is a {type(raw).__name__}: give a string or an integer"
    if isinstance(raw, int):
        return None if raw.bit_length() <= LONGEST_ID else f"has {raw.bit_length()} bits, more than {LONGEST_ID}"
    if "\0" in raw:
        return f"{shortened(raw)} holds a NUL character"
    try:
        n_bytes = len(raw.encode())
    except UnicodeEncodeError:
        return f"{shortened(raw)} holds half a surrogate pair and is no text"
    return None if n_bytes <= LONGEST_ID else f"{shortened(raw)} has {n_bytes} bytes as UTF-8, more than {LONGEST_ID}"


def _check_id(kind: str, raw: object) -> None:
    problem = id_problem(raw)
    if problem is not None:
        raise RequestError(f"the {kind} id {problem}")


@dataclass(frozen=True)
class Submission:
    """One of many requests that are handed in together.

    Attributes:
        request: what is to be forgotten.
        idempotency_key: a submission repeated with the same key is the same request.
        priority: above 0: is not to wait for others.
        row: where it stands in the file that it comes from.

    Raises:
        RequestError: the key or the priority cannot be one.
    """

    request: UnlearningRequest
    idempotency_key: str | None = None
    priority: int = 0
    row: int | None = None

    def __post_init__(self) -> None:
        if self.idempotency_key is not None and (problem := key_problem(self.idempotency_key)):
            raise RequestError(f"the idempotency key {problem}")
        if isinstance(self.priority, bool) or not isinstance(self.priority, int) or self.priority not in _PRIORITIES:
            raise RequestError(f"priority {shortened(self.priority)} is no integer of 32 bits")


def key_problem(key: object) -> str | None:
    """Why something cannot be an idempotency key, to follow 'the idempotency key'; None where it can."""
    if not isinstance(key, str):
        return f"{shortened(key)} is a {type(key).__name__}: give a string"
    if not 0 < len(key) <= LONGEST_KEY:
        return f"has {len(key)} characters: give 1 to {LONGEST_KEY}"
    return id_problem(key)


@dataclass(frozen=True)
class Refusal:
    """One of many that was not accepted.

    Attributes:
        row: where it stands in the file that it comes from.
        reason: why not, for whoever asked.
    """

    row: int | None
    reason: str


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
    """The rows that a request means; ids that are not here are passed over, there is nothing of them to forget."""
    user_rows = () if request.user_id is None or request.user_id not in users else (users.row(request.user_id),)
    item_rows = () if request.item_id is None or request.item_id not in items else (items.row(request.item_id),)
    known = [(users.row(user), items.row(item)) for user, item in request.pairs or () if user in users and item in items]
    rows_n2 = np.array(known, np.int32).reshape(-1, 2)
    return Target(user_rows, item_rows, Interactions.of(rows_n2[:, 0], rows_n2[:, 1]))
