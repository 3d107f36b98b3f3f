"""Requests that are accepted but not carried out yet, as a pure value. `Change` (generation.py) applies a batch of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ray_eraser.ids import RequestId
from ray_eraser.unlearning.ledger import Ledger, RequestRow
from ray_eraser.unlearning.request import RequestState, UnlearningRequest
from ray_eraser.unlearning.work import Learning

_WAITING = (RequestState.RECEIVED, RequestState.EXCISED, RequestState.SET_ASIDE)


@dataclass(frozen=True)
class Backlog:
    """Unfinished requests.

    Attributes:
        rows: in the order of asking.
    """

    rows: tuple[RequestRow, ...]

    @classmethod
    def read(cls, ledger: Ledger) -> Backlog:
        """Every unfinished request."""
        return cls(tuple(ledger.unfinished()))

    @classmethod
    def of_learnings(cls, ledger: Ledger) -> Backlog:
        """The requests that `to_come` needs. There may be thousands of other requests, which are slow to read.

        Accepting an erasure removes its pairs from a waiting learning, but not from one in training. So if a learning is in
        training, the requests after it are needed too.
        """
        rows = ledger.unfinished(kind=Learning.kind)
        return cls.read(ledger) if any(row.state is RequestState.ROUTED for row in rows) else cls(tuple(rows))

    def left_to_learn(self) -> dict[RequestId, Learning]:
        """Every learning, without the pairs that later requests erase."""
        left = {}
        for position, row in enumerate(self.rows):
            if isinstance(row.work, Learning):
                left[row.request_id] = row.work
                if row.state is RequestState.ROUTED:
                    later = [other.work for other in self.rows[position:] if isinstance(other.work, UnlearningRequest)]
                    left |= _amended([row], later)
        return left

    def to_come(self) -> frozenset[tuple[str, str]]:
        """The pairs that wait for training or are in training, except pairs that a later request erases."""
        return frozenset(pair for left in self.left_to_learn().values() for pair in left.named)

    def amended_by(self, requests: Iterable[UnlearningRequest]) -> dict[RequestId, Learning]:
        """The waiting learnings that lose pairs to new requests, without these pairs."""
        return _amended([row for row in self.rows if row.state in _WAITING], requests)

    def interrupted(self) -> list[RequestRow]:
        """The batch in training. After a crash, the batch that the crash interrupted."""
        rows = [row for row in self.rows if row.state is RequestState.ROUTED]
        return [row for row in rows if row.generation is not None] or rows

    def next_batch(self) -> list[RequestRow]:
        """The excised requests to train for next. Requests whose training failed before are in batches of their own."""
        parties: dict[int | None, list[RequestRow]] = {}
        for row in self.rows:
            if row.state is RequestState.EXCISED:
                parties.setdefault(row.party, []).append(row)
        batches = (self._in_order(party) for party in sorted(parties.values(), key=lambda party: party[0].attempts))
        return next((batch for batch in batches if batch), [])

    def _in_order(self, party: Sequence[RequestRow]) -> list[RequestRow]:
        """Hold back learnings that overlap an earlier erasure outside the party: it would erase the newer pairs too."""
        names, earlier, batch = {row.request_id for row in party}, list[UnlearningRequest](), []
        for row in self.rows:
            if row.request_id not in names:
                if isinstance(row.work, UnlearningRequest):
                    earlier.append(row.work)
            elif not (earlier and isinstance(row.work, Learning) and _amended([row], earlier)):
                batch.append(row)
        return batch


def _amended(learnings: Iterable[RequestRow], requests: Iterable[UnlearningRequest]) -> dict[RequestId, Learning]:
    """The learnings that lose pairs to later requests, without these pairs."""
    is_forgotten = _are_about(requests)
    amended = {}
    for row in learnings:
        if isinstance(row.work, Learning):
            left = row.work.without(is_forgotten)
            if left != row.work:
                amended[row.request_id] = left
    return amended


def _are_about(requests: Iterable[UnlearningRequest]) -> Callable[[str, str], bool]:
    """A predicate on (user, item): whether any of the requests covers the pair."""
    asked = list(requests)
    users = {request.user_id for request in asked}
    items = {request.item_id for request in asked}
    pairs = {pair for request in asked for pair in request.named_pairs}
    return lambda user, item: user in users or item in items or (user, item) in pairs
