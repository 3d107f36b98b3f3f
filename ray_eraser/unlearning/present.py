"""The data that a request may name, and the refusal of a request of which nothing is here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from ray_eraser.data.keyed import KeyedPairs, ShardData
from ray_eraser.data.vocabulary import Vocabulary
from ray_eraser.errors import InputError, RequestError, UnknownIdError, shortened
from ray_eraser.unlearning.request import UnlearningRequest

_FEW_NAMED = 3
"""Absent pairs that a refusal names as examples."""

Pair = tuple[str, str]


@dataclass(frozen=True, eq=False)
class Present:
    """The data of a deployment without the data of accepted erasures.

    Attributes:
        users, items: the vocabularies.
        shards: every shard's remaining interactions.
        to_come: (user id, item id) pairs that wait to be learned.
    """

    users: Vocabulary
    items: Vocabulary
    shards: Sequence[ShardData]
    to_come: frozenset[Pair]

    @cached_property
    def _users_to_come(self) -> frozenset[str]:
        return frozenset(user for user, _ in self.to_come)

    @cached_property
    def _items_to_come(self) -> frozenset[str]:
        return frozenset(item for _, item in self.to_come)

    def absent(self, request: UnlearningRequest) -> int | None:
        """The number of distinct pairs that are neither stored nor waiting to be learned; 0 for a user or an item.

        None if nothing of the request is here, so that it must be refused.
        """
        if request.user_id is not None:
            return 0 if request.user_id in self._users_to_come or request.user_id in self.users else None
        if request.item_id is not None:
            return 0 if request.item_id in self._items_to_come or request.item_id in self.items else None
        named = list(dict.fromkeys(request.named_pairs))
        rest = [pair for pair in named if pair not in self.to_come]
        # `find`, not `key_of`: a key is a hash, and an id that is not here must not stand for another one with its key.
        users = {user: self.users.find(user) for user in {user for user, _ in rest}}
        items = {item: self.items.find(item) for item in {item for _, item in rest}}
        found = [(users[user], items[item]) for user, item in rest]
        keys = KeyedPairs.of([(user, item) for user, item in found if user is not None and item is not None])
        n_absent = len(rest) - sum(int(data.has(keys).sum()) for data in self.shards)
        return n_absent if n_absent < len(named) else None

    def refusals(self, requests: Mapping[int, UnlearningRequest]) -> dict[int, InputError]:
        """The errors for those of some requests of which nothing is here.

        `UnknownIdError` for a user or an item, `RequestError` for pairs. They name other spellings of the ids that are here.
        """
        refused = {number: request for number, request in requests.items() if self.absent(request) is None}
        if not refused:
            return {}
        asked = list(refused.values())
        few = [pair for request in asked for pair in request.named_pairs[:_FEW_NAMED]]
        users = {str(one.user_id) for one in asked if one.user_id is not None}.union(user for user, _ in few)
        items = {str(one.item_id) for one in asked if one.item_id is not None}.union(item for _, item in few)
        # All at once: each look goes through every id that is here.
        of_users = self.users.other_spellings(user for user in users if user not in self.users)
        of_items = self.items.other_spellings(item for item in items if item not in self.items)

        def error(request: UnlearningRequest) -> InputError:
            if request.user_id is not None:
                return UnknownIdError("user", str(request.user_id), tuple(of_users.get(str(request.user_id), ())))
            if request.item_id is not None:
                return UnknownIdError("item", str(request.item_id), tuple(of_items.get(str(request.item_id), ())))
            return RequestError(_all_absent(request.named_pairs, of_users, of_items))

        return {number: error(request) for number, request in refused.items()}


def _all_absent(pairs: Sequence[Pair], of_users: Mapping[str, Sequence[str]], of_items: Mapping[str, Sequence[str]]) -> str:
    """The refusal of a request whose pairs are all absent, with other spellings of the first pairs' ids that are here."""
    named = list(dict.fromkeys(pairs))
    few = named[:_FEW_NAMED]
    examples = ", ".join(map(shortened, few)) + (", ..." if len(named) > len(few) else "")
    hints = [f"user {shortened(text)}" for user, _ in few for text in of_users.get(user, ())]
    hints += [f"item {shortened(text)}" for _, item in few for text in of_items.get(item, ())]
    hint = f"; did you mean {hints[0]}, which is here?" if hints else ""
    count = "1 pair is absent" if len(named) == 1 else f"all {len(named)} pairs are absent"
    return f"{count} (never learned, held out for the test, or erased already): {examples}{hint}"
