"""The plain classes as Ray actors. Nothing is decided here.

An actor is given names, paths and settings, never interactions or vectors: Ray runs a constructor again after a crash, and what
was passed by value would come back from the dead.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

import ray

from ray_eraser import logs
from ray_eraser.config import EraserConfig
from ray_eraser.coordinator import Coordinator, FitReport, Submitted
from ray_eraser.data.dataset import Dataset
from ray_eraser.errors import DeploymentError, DeviceError, LedgerError, PoolError, RayEraserError, StaleEpochError, StoreError
from ray_eraser.ids import RawId, RequestId
from ray_eraser.logs import named_safely
from ray_eraser.runtime.metrics import DeploymentMetrics
from ray_eraser.runtime.pool import RayShardPool
from ray_eraser.runtime.processes import AggregatorProcess, ShardProcess
from ray_eraser.status import Progress, Status
from ray_eraser.unlearning.receipt import Receipt
from ray_eraser.unlearning.request import Refusal, RequestState, Submission, UnlearningRequest
from ray_eraser.vectors import Vectors

log = logging.getLogger(__name__)

_RETRY_SECONDS = 5.0
_LOOK_SECONDS = 1.0
_ALARM_SECONDS = 60.0
_MEASURE_SECONDS = 5.0

ShardActor: Any = ray.remote(ShardProcess)
AggregatorActor: Any = ray.remote(AggregatorProcess)


class CoordinatorService:
    """A `Coordinator` with a thread that carries out requests as they come. Reads have threads of their own.

    Args:
        deployment, storage_path, config, ledger_url, on_step: the coordinator's.
        shard_actor, aggregator_actor: what its processes are made of.
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
        self._metrics = DeploymentMetrics(deployment)
        self._coordinator: Coordinator | None = None
        self._failure: RayEraserError | None = None
        self._last_error = ""
        self._wake = threading.Event()
        self._hurry = threading.Event()
        actors = (shard_actor, aggregator_actor)
        make_pool = partial(RayShardPool, deployment, storage_path, *actors, on_trained=self._metrics.trained)
        self._on_step = on_step
        self._open = partial(Coordinator, deployment, storage_path, make_pool, config, ledger_url, on_step=self._stepped)
        self._try_to_open()
        threading.Thread(target=self._work, daemon=True, name="process-pending").start()

    def _stepped(self, name: str) -> None:
        if name == "received":
            self._wake.set()  # whoever carries requests out may begin beside the excision
        self._on_step(name)

    def _try_to_open(self) -> None:
        try:
            self._coordinator = self._open()
        except RayEraserError as error:
            # Ray would pass on a constructor's error as text only; `identity` raises it as what it is.
            self._failure = error

    def identity(self) -> tuple[str, EraserConfig]:
        """(storage path, settings): what whoever attaches must agree with. Raises what opening raised."""
        opened = self._opened()
        return opened.storage_path, opened.config

    @ray.method(concurrency_group="work")
    def fit(self, dataset: Dataset) -> FitReport:
        return self._opened().fit(dataset)

    @ray.method(concurrency_group="work")
    def fit_log(self, source: str) -> FitReport:
        return self._opened().fit_log(source)

    @ray.method(concurrency_group="work")
    def warm(self) -> None:
        self._opened().pool.warm()

    @ray.method(concurrency_group="requests")
    def submit(self, request: UnlearningRequest, idempotency_key: str | None, priority: int) -> Submitted:
        submitted = self._opened().submit(request, idempotency_key, priority)
        self._wake.set()
        return submitted

    @ray.method(concurrency_group="requests")
    def submit_many(self, submissions: Sequence[Submission], partial: bool) -> list[Submitted | Refusal]:
        answers = self._opened().submit_many(submissions, partial=partial)
        self._wake.set()
        return answers

    @ray.method(concurrency_group="requests")
    def learn(self, pairs: Sequence[tuple[RawId, RawId]], idempotency_key: str | None) -> Submitted:
        submitted = self._opened().learn(pairs, idempotency_key)
        self._wake.set()
        return submitted

    @ray.method(concurrency_group="requests")
    def repartition(self, changes: Sequence[str], idempotency_key: str | None) -> Submitted:
        submitted = self._opened().repartition(changes, idempotency_key)
        self._wake.set()
        return submitted

    @ray.method(concurrency_group="requests")
    def retry(self, request_id: RequestId) -> None:
        self._opened().retry(request_id)
        self._wake.set()

    @ray.method(concurrency_group="requests")
    def process_now(self) -> None:
        """Whatever the plan says: all that waits is carried out next."""
        self._opened()
        self._hurry.set()
        self._wake.set()

    @ray.method(concurrency_group="reads")
    def recommend(self, user_id: RawId, n: int) -> list[RawId]:
        return self._opened().recommend(user_id, n)

    @ray.method(concurrency_group="reads")
    def status(self, request_id: RequestId) -> RequestState:
        return self._opened().status(request_id)

    @ray.method(concurrency_group="reads")
    def receipt(self, request_id: RequestId) -> Receipt | None:
        return self._opened().receipt(request_id)

    @ray.method(concurrency_group="reads")
    def reason(self, request_id: RequestId) -> str:
        return self._opened().set_aside().get(request_id, "")

    @ray.method(concurrency_group="reads")
    def erasures(self, limit: int, finished: bool) -> list[dict[str, Any]]:
        return self._opened().erasures(limit, finished=finished)

    @ray.method(concurrency_group="reads")
    def vectors(self) -> Vectors:
        return self._opened().vectors()

    @ray.method(concurrency_group="reads")
    def progress(self) -> Progress:
        return self._opened().progress()

    @ray.method(concurrency_group="reads")
    def describe(self) -> Status:
        opened = self._opened()
        pool = cast(RayShardPool, opened.pool).describe()
        return replace(
            opened.describe(),
            nodes=pool.nodes,
            gpu_bytes=pool.gpu_bytes,
            notices=pool.notices,
            last_error=self._last_error,
        )

    @ray.method(concurrency_group="work")
    def close(self) -> None:
        """Stop the shards' processes; what they know is in the store."""
        if self._coordinator is not None:
            self._coordinator.close()

    def _opened(self) -> Coordinator:
        if self._coordinator is None:
            assert self._failure is not None
            raise self._failure
        return self._coordinator

    def _work(self) -> None:
        """Process requests for ever, when they are due. What fails is tried again: it is recorded, and a promise."""
        while self._coordinator is None:
            if isinstance(self._failure, DeploymentError):
                return
            # After a restart, the ledger's server or the store may not be up yet.
            time.sleep(_RETRY_SECONDS)
            self._try_to_open()
        threading.Thread(target=self._measure, daemon=True, name="measure").start()
        coordinator = self._opened()
        self._wake.set()  # a crash may have left requests behind
        alarmed_at = 0.0
        while True:
            self._wake.wait(_LOOK_SECONDS)
            self._wake.clear()
            hurried = self._hurry.is_set()
            self._hurry.clear()  # before looking at what waits: who hurries after that is not passed over
            try:
                coordinator.check_in_force()
                if time.monotonic() > alarmed_at + _ALARM_SECONDS and (overdue := coordinator.overdue()):
                    log.error("requests are overdue", extra={"deployment": coordinator.deployment, "requests": overdue})
                    alarmed_at = time.monotonic()
                if (hurried and coordinator.has_pending()) or coordinator.is_due():
                    self._metrics.finished(coordinator.process_pending())
                    self._last_error = ""
                    self._wake.set()  # there may be a second batch
                    if hurried and coordinator.has_pending():
                        self._hurry.set()
            except StaleEpochError as error:
                self._failure, self._coordinator = error, None  # nothing more is served from here
                return
            except Exception as error:  # noqa: BLE001 - whatever it is, the promise stands
                self._last_error = named_safely(error)
                if hurried:
                    self._hurry.set()
                log.error("processing failed, it is tried again", extra={"reason": self._last_error})  # noqa: TRY400 - a traceback names users
                # What the machine fails of may pass; what a batch fails of is recorded, and others can go on at once.
                self._wake.wait(_RETRY_SECONDS if isinstance(error, PoolError | StoreError | LedgerError | DeviceError) else 0)

    def _measure(self) -> None:
        """Keep the gauges as they stand, also while shards train, and notice shards whose process is another than before."""
        known: dict[str, str] = {}
        while (coordinator := self._coordinator) is not None:
            try:
                self._metrics.described(coordinator.describe())
                pool = cast(RayShardPool, coordinator.pool)
                answered = pool.processes().items()
                self._metrics.memory_held(pool.describe().gpu_bytes)
                for shard, process in answered:
                    if known.setdefault(shard, process) != process:
                        known[shard] = process
                        self._metrics.restarted(shard)
                        log.warning("shard restarted", extra={"deployment": coordinator.deployment, "shard": shard})
            except DeploymentError:
                pass  # not trained yet
            except Exception as error:  # noqa: BLE001 - what cannot be measured now can be later
                log.warning("not measured", extra={"deployment": coordinator.deployment, "reason": named_safely(error)})
            time.sleep(_MEASURE_SECONDS)


CoordinatorActor: Any = ray.remote(concurrency_groups={"reads": 8, "requests": 4, "work": 1})(CoordinatorService)
