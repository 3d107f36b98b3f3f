"""The plain classes as Ray actors. This module decides nothing.

A constructor gets names, paths and settings, never interactions or vectors. Ray runs it again after a crash, and arguments that
were passed by value would bring erased data back.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial, wraps
from typing import Any, ParamSpec, TypeVar, cast

import ray

from ray_eraser import logs
from ray_eraser.config import EraserConfig
from ray_eraser.coordinator import Coordinator, FitReport, Submitted
from ray_eraser.data.dataset import Dataset
from ray_eraser.errors import RayEraserError, UnexpectedError
from ray_eraser.ids import RawId, RequestId
from ray_eraser.logs import named_safely
from ray_eraser.recommend import Scored
from ray_eraser.runtime.metrics import DeploymentMetrics
from ray_eraser.runtime.operating import Operation
from ray_eraser.runtime.pool import RayShardPool
from ray_eraser.runtime.processes import AggregatorProcess, ShardProcess
from ray_eraser.status import Progress, Status
from ray_eraser.unlearning.receipt import Receipt
from ray_eraser.unlearning.request import Refusal, RequestState, Submission, UnlearningRequest
from ray_eraser.vectors import Vectors

log = logging.getLogger(__name__)

_P = ParamSpec("_P")
_T = TypeVar("_T")

ShardActor: Any = ray.remote(ShardProcess)
AggregatorActor: Any = ray.remote(AggregatorProcess)


@dataclass(frozen=True)
class Failed:
    """An error as a value. Ray keeps the text of exceptions among its events, and some of our errors name users."""

    error: RayEraserError


def as_value(method: Callable[_P, _T]) -> Callable[_P, _T | Failed]:
    """Let a method of an actor return its errors as `Failed`. Put it above `ray.method`: Ray looks below all wrappers."""

    @wraps(method)
    def answering(*args: _P.args, **options: _P.kwargs) -> _T | Failed:
        try:
            return method(*args, **options)
        except RayEraserError as error:
            return Failed(error)
        except Exception as error:  # noqa: BLE001 - its text may name users
            log.error("a call failed", extra={"call": method.__name__, "reason": named_safely(error)})  # noqa: TRY400 - likewise
            return Failed(UnexpectedError("the coordinator", type(error).__name__))

    return answering


class CoordinatorService:
    """A `Coordinator` with a thread that carries out requests. Reads have their own threads.

    Args:
        deployment, storage_path, config, ledger_url, on_step: see `Coordinator`.
        shard_actor, aggregator_actor: the actor classes of its processes.
    """

    def __init__(
        self,
        deployment: str,
        storage_path: str,
        config: EraserConfig | None,
        ledger_url: str,
        *,
        on_step: Callable[[str], None] = lambda _: None,
        shard_actor: Any = ShardActor,
        aggregator_actor: Any = AggregatorActor,
    ) -> None:
        logs.write_json(process="coordinator")
        metrics = DeploymentMetrics(deployment)
        actors = (shard_actor, aggregator_actor)
        make_pool = partial(RayShardPool, deployment, storage_path, *actors, on_trained=metrics.trained)

        def opening(config: EraserConfig | None, **options: Any) -> Coordinator:
            return Coordinator(deployment, storage_path, make_pool, config, ledger_url, **options)

        self._operation = Operation(deployment, opening, config, metrics, on_step)
        self._operation.start()

    @as_value
    def take_over(self) -> None:
        """Take over from a coordinator that runs elsewhere: refuse it from now on, and wait until it has ended."""
        self._operation.open(take_over=True)
        self._opened()
        self._operation.wake()

    @as_value
    def identity(self) -> tuple[str, EraserConfig]:
        """(storage path, settings), which every new client must agree with. Raises the errors of opening."""
        opened = self._opened()
        return opened.storage_path, opened.config

    @as_value
    @ray.method(concurrency_group="work")
    def fit(self, dataset: Dataset) -> FitReport:
        return self._opened().fit(dataset)

    @as_value
    @ray.method(concurrency_group="work")
    def fit_log(self, source: str) -> FitReport:
        return self._opened().fit_log(source)

    @as_value
    @ray.method(concurrency_group="work")
    def warm(self) -> None:
        self._opened().pool.warm()

    @as_value
    @ray.method(concurrency_group="requests")
    def submit(self, request: UnlearningRequest, idempotency_key: str | None, priority: int) -> Submitted:
        submitted = self._opened().submit(request, idempotency_key, priority)
        self._operation.wake()
        return submitted

    @as_value
    @ray.method(concurrency_group="requests")
    def submit_many(self, submissions: Sequence[Submission], partial: bool) -> list[Submitted | Refusal]:
        answers = self._opened().submit_many(submissions, partial=partial)
        self._operation.wake()
        return answers

    @as_value
    @ray.method(concurrency_group="requests")
    def learn(self, pairs: Sequence[tuple[RawId, RawId]], idempotency_key: str | None, take_back: bool) -> Submitted:
        submitted = self._opened().learn(pairs, idempotency_key, take_back=take_back)
        self._operation.wake()
        return submitted

    @as_value
    @ray.method(concurrency_group="requests")
    def repartition(self, changes: Sequence[str], idempotency_key: str | None) -> Submitted:
        submitted = self._opened().repartition(changes, idempotency_key)
        self._operation.wake()
        return submitted

    @as_value
    @ray.method(concurrency_group="requests")
    def retry(self, request_id: RequestId) -> None:
        self._opened().retry(request_id)
        self._operation.wake()

    @as_value
    @ray.method(concurrency_group="requests")
    def process_now(self) -> None:
        """Carry out all waiting requests next, whatever the plan says."""
        self._opened()
        self._operation.hurry()

    @as_value
    @ray.method(concurrency_group="reads")
    def recommend(self, user_id: RawId, n: int) -> list[RawId]:
        return self._opened().recommend(user_id, n)

    @as_value
    @ray.method(concurrency_group="reads")
    def recommend_scored(self, user_id: RawId, n: int) -> list[Scored]:
        return self._opened().recommend_scored(user_id, n)

    @as_value
    @ray.method(concurrency_group="reads")
    def recommend_many(self, user_ids: Sequence[RawId], n: int) -> list[list[Scored] | None]:
        return self._opened().recommend_many(user_ids, n)

    @as_value
    @ray.method(concurrency_group="reads")
    def similar_items(self, item_id: RawId, n: int) -> list[Scored]:
        return self._opened().similar_items(item_id, n)

    @as_value
    @ray.method(concurrency_group="reads")
    def status(self, request_id: RequestId) -> RequestState:
        return self._opened().status(request_id)

    @as_value
    @ray.method(concurrency_group="reads")
    def receipt(self, request_id: RequestId) -> Receipt | None:
        return self._opened().receipt(request_id)

    @as_value
    @ray.method(concurrency_group="reads")
    def reason(self, request_id: RequestId) -> str:
        return self._opened().set_aside().get(request_id, "")

    @as_value
    @ray.method(concurrency_group="reads")
    def erasures(self, limit: int, finished: bool) -> list[dict[str, Any]]:
        return self._opened().erasures(limit, finished=finished)

    @as_value
    @ray.method(concurrency_group="reads")
    def vectors(self) -> Vectors:
        return self._opened().vectors()

    @as_value
    @ray.method(concurrency_group="reads")
    def progress(self) -> Progress:
        return self._opened().progress()

    @as_value
    @ray.method(concurrency_group="reads")
    def describe(self) -> Status:
        opened = self._opened()
        described, pool = opened.describe(), cast(RayShardPool, opened.pool).describe()
        return replace(
            described,
            nodes=pool.nodes,
            gpu_bytes=pool.gpu_bytes,
            notices=(*described.notices, *pool.notices),
            last_error=self._operation.last_error,
        )

    @as_value
    @ray.method(concurrency_group="work")
    def close(self) -> None:
        """Stop answering, and stop the shards' processes. Everything that they know is in the store."""
        self._operation.close()

    def _opened(self) -> Coordinator:
        return self._operation.coordinator


CoordinatorActor: Any = ray.remote(concurrency_groups={"reads": 8, "requests": 4, "work": 1})(CoordinatorService)
