"""The questions that a coordinator answers. None of them changes anything or waits for training.

A coordinator that is out of force answers none of them, because another one may have erased data that it still holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ray_eraser.building import Builder
from ray_eraser.clock import SteadyClock
from ray_eraser.config import DAY, EraserConfig, UnlearningConfig
from ray_eraser.data.keyed import ShardData
from ray_eraser.errors import RayEraserError
from ray_eraser.force import Force
from ray_eraser.ids import RawId, RequestId, ShardId
from ray_eraser.notebook import html_table
from ray_eraser.pool import ShardPool
from ray_eraser.recommend import Scored
from ray_eraser.served import Served
from ray_eraser.serving import Serving
from ray_eraser.status import Progress, Status, pending, predicted_seconds, received_seconds
from ray_eraser.store import Store
from ray_eraser.unlearning.ledger import GenerationRow, Ledger
from ray_eraser.unlearning.plan import overdue, plan_of
from ray_eraser.unlearning.receipt import Receipt
from ray_eraser.unlearning.request import RequestState
from ray_eraser.vectors import Vectors


class Reading:
    """The questions that a `Coordinator` answers.

    Attributes:
        deployment: its name.
        settings: the `unlearning` settings, such as the plan.
    """

    deployment: str
    settings: UnlearningConfig
    _store: Store
    _ledger: Ledger
    _serving: Serving
    _builder: Builder
    _force: Force
    _clock: SteadyClock

    @property
    def config(self) -> EraserConfig:
        """The settings of the served generation."""
        return self._serving.config

    @property
    def pool(self) -> ShardPool:
        """The pool of the served generation."""
        return self._serving.pool

    def _repr_html_(self) -> str:
        try:
            return self.describe()._repr_html_()
        except RayEraserError as error:
            return html_table(f"Deployment {self.deployment}", {"problem": error})

    # ---- what is served --------------------------------------------------------------------------------------------------

    def recommend(self, user_id: RawId, n: int = 10) -> list[RawId]:
        """See `Snapshot.recommend`. Never waits for training."""
        with self._force.answering():
            return self._serving.snapshot.recommend(user_id, n)

    def recommend_scored(self, user_id: RawId, n: int = 10) -> list[Scored]:
        """See `Snapshot.recommend_scored`."""
        with self._force.answering():
            return self._serving.snapshot.recommend_scored(user_id, n)

    def recommend_many(self, user_ids: Sequence[RawId], n: int = 10) -> list[list[Scored] | None]:
        """See `Snapshot.recommend_many`."""
        with self._force.answering():
            return self._serving.snapshot.recommend_many(user_ids, n)

    def similar_items(self, item_id: RawId, n: int = 10) -> list[Scored]:
        """See `Snapshot.similar_items`."""
        with self._force.answering():
            return self._serving.snapshot.similar_items(item_id, n)

    def shard_data(self) -> dict[ShardId, ShardData]:
        """The interactions of every shard of the current generation, including those that are being erased."""
        with self._force.answering():
            return dict(self._serving.loaded.shards)

    def served_model(self) -> Served:
        """The model behind the current recommendations."""
        with self._force.answering():
            return self._serving.snapshot.served

    def vectors(self) -> Vectors:
        """The served vectors, for use in another system. See `Vectors`: copies do not forget.

        While shards retrain, these are the vectors of the excision, which does not depend on the erased data.
        """
        with self._force.answering():
            return self._serving.vectors()

    def status(self, request_id: RequestId) -> RequestState:
        with self._force.answering():
            return self._ledger.request(request_id).state

    def receipt(self, request_id: RequestId) -> Receipt | None:
        """The receipt of a finished request; None while it is unfinished."""
        with self._force.answering():
            row = self._ledger.request(request_id)
            return row.receipt if row.state is RequestState.ERASED else None

    def set_aside(self) -> dict[RequestId, str]:
        """The requests that need an operator, with the reasons why their training failed."""
        with self._force.answering():
            return {row.request_id: row.reason or "" for row in self._ledger.unfinished(RequestState.SET_ASIDE)}

    def erasures(self, limit: int = 100, *, finished: bool) -> list[dict[str, Any]]:
        """See `status.pending`."""
        with self._force.answering():
            return pending(self._ledger, limit, finished=finished)

    def progress(self) -> Progress:
        """The current stage of work."""
        with self._force.answering():
            return self._builder.progress

    def describe(self) -> Status:
        """The status of the deployment.

        Raises:
            DeploymentError: nothing has been trained yet.
        """
        with self._force.answering():
            return Status.of(
                self.deployment,
                self._store.uri,
                self._serving.change,
                self._ledger,
                self.settings,
                self._builder.costs,
                self.config.runtime.slots,
                self._clock(),
                runs=True,
                notices=self._notices(),
            )

    def _notices(self) -> tuple[str, ...]:
        behind = self._clock.behind
        return (f"the machine's clock is {behind:.0f} s behind what is recorded: set it",) if behind >= 1 else ()

    # ---- when ----------------------------------------------------------------------------------------------------------

    def due_at(self) -> float | None:
        """When the plan wants `process_pending` to be called, in seconds since 1970; None if nothing waits."""
        waiting = self._ledger.waiting()
        if not waiting or self._serving.is_empty:
            return None
        return plan_of(self.settings).next_run(waiting, self._published().published_at, self._predicted_seconds())

    def is_due(self) -> bool:
        """Whether the plan wants `process_pending` to be called now."""
        due_at = self.due_at()
        return due_at is not None and due_at <= self._clock()

    def has_pending(self) -> bool:
        """Whether `process_pending` would have something to do."""
        return bool(self._ledger.waiting())

    def overdue(self) -> int:
        """Number of requests that have waited longer than the law allows."""
        return overdue(self._ledger.waiting(), self.settings.deadline_days * DAY, self._clock())

    def received_seconds(self) -> float:
        """How long the oldest recorded request has waited whose data is still served."""
        return received_seconds(self._ledger, self._clock())

    def _predicted_seconds(self) -> float:
        """Predicted duration of a run for all waiting requests."""
        return predicted_seconds(self._serving.change, self._builder.costs, self.config.runtime.slots)

    def _published(self) -> GenerationRow:
        published = self._ledger.current()
        assert published is not None, "a request was carried out, so a generation was published"
        return published
