"""A coordinator in the test's own process, as the HTTP API and its page use a deployment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ray_eraser.coordinator import Coordinator
from ray_eraser.ids import RawId, RequestId
from ray_eraser.unlearning.request import UnlearningRequest


class InProcess:
    """A coordinator with the methods of a client, and the way to it. `process_now` returns at the end of the run."""

    def __init__(self, coordinator: Coordinator) -> None:
        self.coordinator = coordinator
        self.broken: Exception | None = None

    def __call__(self, call: Callable[[Any], Any]) -> Any:
        if self.broken is not None:
            raise self.broken
        return call(self)

    def process_now(self) -> None:
        self.coordinator.process_pending()

    def unlearn(
        self,
        *,
        user_id: RawId | None = None,
        item_id: RawId | None = None,
        pairs: Sequence[tuple[RawId, RawId]] | None = None,
        idempotency_key: str | None = None,
    ) -> Any:
        request = UnlearningRequest(user_id, item_id, None if pairs is None else tuple(pairs))
        return self.coordinator.submit(request, idempotency_key)

    def reason(self, request_id: RequestId) -> str:
        return self.coordinator.set_aside().get(request_id, "")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.coordinator, name)
