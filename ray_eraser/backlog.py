"""What is accepted and not carried out yet, as a value: what waits to be learned, and what later requests take from it.

Pure; beside `Change`, which says what a batch of it makes of a generation.
"""

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
        """All of it."""
        return cls(tuple(ledger.unfinished()))

    @classmethod
    def of_learnings(cls, ledger: Ledger) -> Backlog:
        """What says what is left to learn: thousands of other requests may wait, and reading them takes its time.

        A learning that waits has lost what was asked to be forgotten since. One that is being trained on cannot lose it any
        more, so that what came after it must be looked at.
        """
        rows = ledger.unfinished(kind=Learning.kind)
        return cls.read(ledger) if any(row.state is RequestState.ROUTED for row in rows) else cls(tuple(rows))

    def left_to_learn(self) -> dict[RequestId, Learning]:
        """What is left of every learning after the requests that came after it."""
        left = {}
        for position, row in enumerate(self.rows):
            if isinstance(row.work, Learning):
                left[row.request_id] = row.work
                if row.state is RequestState.ROUTED:
                    later = [other.work for other in self.rows[position:] if isinstance(other.work, UnlearningRequest)]
                    left |= _amended([row], later)
        return left

    def to_come(self) -> frozenset[tuple[str, str]]:
        """The pairs that wait to be learned or are being trained on, but for those that go again right afterwards."""
        return frozenset(pair for left in self.left_to_learn().values() for pair in left.named)

    def amended_by(self, requests: Iterable[UnlearningRequest]) -> dict[RequestId, Learning]:
        """Those of the waiting learnings that lose something to new requests, as they are without it."""
        return _amended([row for row in self.rows if row.state in _WAITING], requests)

    def interrupted(self) -> list[RequestRow]:
        """The batch that is being carried out; after a crash it is the one that the crash interrupted."""
        rows = [row for row in self.rows if row.state is RequestState.ROUTED]
        return [row for row in rows if row.generation is not None] or rows

    def next_batch(self) -> list[RequestRow]:
        """All that wait and were taken out of what is served, but for those whose training failed: these go by themselves."""
        parties: dict[int | None, list[RequestRow]] = {}
        for row in self.rows:
            if row.state is RequestState.EXCISED:
                parties.setdefault(row.party, []).append(row)
        batches = (self._in_order(party) for party in sorted(parties.values(), key=lambda party: party[0].attempts))
        return next((batch for batch in batches if batch), [])

    def _in_order(self, party: Sequence[RequestRow]) -> list[RequestRow]:
        """Hold back learnings that overlap an earlier erasure outside the party: it would take what it must not."""
        names, earlier, batch = {row.request_id for row in party}, list[UnlearningRequest](), []
        for row in self.rows:
            if row.request_id not in names:
                if isinstance(row.work, UnlearningRequest):
                    earlier.append(row.work)
            elif not (earlier and isinstance(row.work, Learning) and _amended([row], earlier)):
                batch.append(row)
        return batch


def _amended(learnings: Iterable[RequestRow], requests: Iterable[UnlearningRequest]) -> dict[RequestId, Learning]:
    """Those of the learnings that lose something to requests which came after them, as they are without it."""
    is_forgotten = _are_about(requests)
    amended = {}
    for row in learnings:
        if isinstance(row.work, Learning):
            left = row.work.without(is_forgotten)
            if left != row.work:
                amended[row.request_id] = left
    return amended


def _are_about(requests: Iterable[UnlearningRequest]) -> Callable[[str, str], bool]:
    """Whether any of the requests is about a pair."""
    asked = list(requests)
    users = {request.user_id for request in asked}
    items = {request.item_id for request in asked}
    pairs = {pair for request in asked for pair in request.named_pairs}
    return lambda user, item: user in users or item in items or (user, item) in pairs
