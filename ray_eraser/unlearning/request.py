"""Requests to forget, and the states that a request goes through."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import cast

import numpy as np

from ray_eraser.data.frames import pairs_of
from ray_eraser.data.interactions import Interactions
from ray_eraser.data.keyed import KeyedPairs, ShardData, places_of
from ray_eraser.data.vocabulary import Vocabulary
from ray_eraser.errors import IllegalTransitionError, InputError, RequestError, shortened
from ray_eraser.ids import RawId, RequestId, id_problem, id_text

LONGEST_KEY = 200
"""Characters of an idempotency key."""
_PRIORITIES = range(-(2**31), 2**31)


class RequestState(StrEnum):
    """The state of a request. A request that cannot be accepted raises an error and never gets a state.

    received -> excised -> routed -> erased, or done. If the training fails: routed -> excised, to try again; after too many
    failures routed -> set_aside; set_aside -> excised when an operator retries it.
    """

    RECEIVED = "received"
    """Recorded; survives any crash from here on."""
    EXCISED = "excised"
    """No served model depends on the data any more."""
    ROUTED = "routed"
    """The shards that own the data are being trained without it."""
    ERASED = "erased"
    """Published, superseded files deleted, receipt written."""
    DONE = "done"
    """Published: the final state of a request that erases nothing (new data, a new partition)."""
    SET_ASIDE = "set_aside"
    """The retraining failed several times. Its data is still not served, other requests go on, and an operator must look."""

    @property
    def is_final(self) -> bool:
        """Whether the request is finished."""
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
    """A user, an item, or some (user id, item id) pairs to forget: exactly one of the three.

    Ids become text, so that 7 and "7" ask for the same. `pairs` may be a data frame (`frames.pairs_of`); they become tuples.

    Raises:
        RequestError: none or several are given, there is no pair, or an id cannot be one (`id_problem`).
    """

    user_id: RawId | None = None
    item_id: RawId | None = None
    pairs: tuple[tuple[RawId, RawId], ...] | None = None

    def __post_init__(self) -> None:
        given = [name for name in ("user_id", "item_id", "pairs") if getattr(self, name) is not None]
        if len(given) != 1:
            raise RequestError(f"give exactly one of user_id, item_id and pairs, got {' and '.join(given) or 'none'}")
        if self.pairs is None:
            (name,) = given
            object.__setattr__(self, name, _checked_id(name.removesuffix("_id"), getattr(self, name)))
            return
        try:
            pairs = () if isinstance(self.pairs, str | bytes) else tuple(pairs_of(self.pairs))
        except TypeError:
            pairs = ()
        except InputError as error:  # of a data frame
            raise RequestError(str(error)) from error
        if not pairs:
            raise RequestError("pairs is empty: name at least one (user id, item id)")
        for pair in pairs:
            if not isinstance(pair, tuple | list) or len(pair) != 2:
                raise RequestError(f"{shortened(pair)} is no pair: name each as (user id, item id)")
        # Lists, as JSON has them, become tuples: what the ledger gives back must equal what was asked.
        checked = tuple((_checked_id("user", user), _checked_id("item", item)) for user, item in pairs)
        object.__setattr__(self, "pairs", checked)

    @property
    def kind(self) -> str:
        """`user`, `item` or `pairs`."""
        return "user" if self.user_id is not None else "item" if self.item_id is not None else "pairs"

    @property
    def named_pairs(self) -> tuple[tuple[str, str], ...]:
        """The pairs, with ids as text; empty if a user or an item is asked for."""
        return cast("tuple[tuple[str, str], ...]", self.pairs or ())

    def to_json(self) -> str:
        value = self.pairs if self.pairs is not None else self.user_id if self.user_id is not None else self.item_id
        return json.dumps({self.kind: value})

    @classmethod
    def from_json(cls, text: str) -> UnlearningRequest:
        ((kind, value),) = json.loads(text).items()
        if kind == "pairs":
            return cls(pairs=tuple((user, item) for user, item in value))
        return cls(user_id=value) if kind == "user" else cls(item_id=value)


def _checked_id(kind: str, raw: object) -> str:
    """An id as text."""
    if problem := id_problem(raw):
        raise RequestError(f"the {kind} id {problem}")
    return id_text(cast(RawId, raw))


@dataclass(frozen=True)
class Submission:
    """One of many requests that are submitted together.

    Attributes:
        request: the user, item or pairs to forget.
        idempotency_key: a submission repeated with the same key is the same request.
        priority: above 0: the request does not wait for others.
        row: its row in the file or data frame that it comes from.

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
    """Why a value cannot be an idempotency key, to follow 'the idempotency key'; None if it can."""
    if not isinstance(key, str):
        return f"{shortened(key)} is a {type(key).__name__}: give a string"
    if not 0 < len(key) <= LONGEST_KEY:
        return f"has {len(key)} characters: give 1 to {LONGEST_KEY}"
    return id_problem(key)


@dataclass(frozen=True)
class Refusal:
    """One of many requests, refused.

    Attributes:
        row: its row in the file or data frame that it comes from.
        reason: the reason, for the asker.
    """

    row: int | None
    reason: str


@dataclass(frozen=True)
class Target:
    """A request by keys: the user, the item, or the pairs. Without any of them, nothing of the request is here."""

    user: int | None
    item: int | None
    pairs: KeyedPairs

    def of(self, data: ShardData) -> KeyedPairs:
        """The interactions of a shard that the request is about, held out or not."""
        # Set by set: joining the two sets first would sort all interactions of the shard.
        return KeyedPairs.union([data.keyed(self._among(part, data)) for part in (data.train, data.valid)])

    def _among(self, part: Interactions, data: ShardData) -> Interactions:
        if self.user is not None:
            row = places_of(np.array([self.user], np.uint64), data.user_keys)
            return part.of_users(row) if row[0] >= 0 else Interactions.none()
        if self.item is not None:
            row = places_of(np.array([self.item], np.uint64), data.item_keys)
            return part.of_items(row) if row[0] >= 0 else Interactions.none()
        return part.common(self.pairs.in_rows(data.user_keys, data.item_keys))


def resolve(request: UnlearningRequest, users: Vocabulary, items: Vocabulary) -> Target:
    """The keys of a request. Ids and pairs that are not here are passed over: there is nothing of them to forget."""
    found = [(users.find(user), items.find(item)) for user, item in request.named_pairs]
    return Target(
        None if request.user_id is None else users.find(request.user_id),
        None if request.item_id is None else items.find(request.item_id),
        KeyedPairs.of(list(dict.fromkeys((user, item) for user, item in found if user is not None and item is not None))),
    )
