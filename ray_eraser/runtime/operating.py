"""A coordinator in operation: it comes into force and stays in force, carries out due requests, and verifies its files."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import cast

import ray

from ray_eraser.config import EraserConfig
from ray_eraser.coordinator import Coordinator
from ray_eraser.errors import (
    DeploymentError,
    DeviceError,
    HeldError,
    LedgerError,
    PoolError,
    RayEraserError,
    StaleEpochError,
    StoreError,
)
from ray_eraser.force import Claim
from ray_eraser.logs import named_safely
from ray_eraser.runtime.metrics import DeploymentMetrics
from ray_eraser.runtime.pool import RayShardPool

log = logging.getLogger(__name__)

_RETRY_SECONDS = 5.0
_LOOK_SECONDS = 1.0
_ALARM_SECONDS = 60.0
_MEASURE_SECONDS = 5.0
_KEEP_SECONDS = 0.5
_SWEEP_SECONDS = 60.0


class Operation:
    """Opens a coordinator and works for it in threads, for as long as the process lives.

    Args:
        deployment: its name.
        opening: makes the coordinator; takes its settings, `on_step` and `claim`.
        config: the settings for the first opening. A later opening takes the recorded settings.
        metrics: the metrics to update.
        on_step: as for `Coordinator`.

    Attributes:
        last_error: the last failure since requests were last carried out; empty if there was none.
    """

    def __init__(
        self,
        deployment: str,
        opening: Callable[..., Coordinator],
        config: EraserConfig | None,
        metrics: DeploymentMetrics,
        on_step: Callable[[str], None],
    ) -> None:
        self._deployment, self._make, self._metrics, self._on_step = deployment, opening, metrics, on_step
        self._config = config
        self._coordinator: Coordinator | None = None
        self._failure: RayEraserError | None = None
        self._opening = threading.Lock()
        self._wake, self._hurry = threading.Event(), threading.Event()
        self._closed = False
        self.last_error = ""

    @property
    def coordinator(self) -> Coordinator:
        """The coordinator while it is in force. Otherwise raises the reason why it is not."""
        if (coordinator := self._coordinator) is None:
            assert self._failure is not None
            raise _alone(self._failure)  # a new object each time, because a raised error collects stack frames
        return coordinator

    def start(self) -> None:
        """Open the coordinator and start to work for it. `coordinator` raises any error later."""
        self.open()
        threading.Thread(target=self._run, daemon=True, name="process-pending").start()

    def open(self, *, take_over: bool = False) -> None:
        """Open the coordinator unless it is open. An error is kept, because Ray returns a constructor's error as text only."""
        with self._opening:
            if self._coordinator is not None or self._closed:
                return
            try:
                claim = Claim(take_over=take_over, place=_ray_address())
                self._coordinator = self._make(self._config, on_step=self._stepped, claim=claim)
                self._config = None
            except RayEraserError as error:
                self._failure = _alone(error)

    def wake(self) -> None:
        """Check the waiting requests now."""
        self._wake.set()

    def hurry(self) -> None:
        """Carry out all waiting requests, whatever the plan."""
        self._hurry.set()
        self._wake.set()

    def close(self) -> None:
        """Stop answering. The threads end with the process."""
        with self._opening:
            self._closed = True
            coordinator, self._coordinator = self._coordinator, None
            self._failure = DeploymentError(self._deployment, "was stopped: start it again with deploy()")
        if coordinator is not None:
            coordinator.close()

    def _stepped(self, name: str) -> None:
        if name == "received":
            self._wake.set()  # the working thread may start alongside the excision
        self._on_step(name)

    def _run(self) -> None:
        """Loop until closed: come into force, carry out requests, and stand by after another coordinator has taken over."""
        threading.Thread(target=self._keep, daemon=True, name="keep-in-force").start()
        threading.Thread(target=self._measure, daemon=True, name="measure").start()
        while True:
            while self._coordinator is None:
                if self._closed:
                    return
                # The ledger's server or the store may not be up yet, or another coordinator may end. Waiting does not help if
                # the settings are missing, or if the files belong to another deployment.
                if isinstance(self._failure, HeldError) or not isinstance(self._failure, DeploymentError):
                    self.open()
                if self._coordinator is None:
                    self._wake.wait(_RETRY_SECONDS)
                    self._wake.clear()
            if (coordinator := self._coordinator) is None:
                continue  # another coordinator took over meanwhile
            self._wake.set()  # a crash may have left requests behind
            threading.Thread(target=self._verify, args=(coordinator,), daemon=True, name="verify").start()
            self._work(coordinator)
            del coordinator  # while standing by, no served data stays in memory

    def _keep(self) -> None:
        """Keep renewing the lease, also during training."""
        while True:
            if (coordinator := self._coordinator) is not None:
                try:
                    coordinator.keep_in_force()
                except StaleEpochError as error:
                    self._stand_by(coordinator, error)
                except RayEraserError as error:
                    log.warning("the lease could not be renewed", extra=self._said(error))
            time.sleep(_KEEP_SECONDS)

    def _stand_by(self, coordinator: Coordinator, error: RayEraserError) -> None:
        """Stop serving, because another coordinator has taken over."""
        with self._opening:
            if self._coordinator is not coordinator:
                return
            self._failure, self._coordinator = _alone(error), None
        log.error("another coordinator has taken over; this one stands by", extra={"deployment": self._deployment})
        try:
            coordinator.close()
        except Exception as problem:  # noqa: BLE001 - it no longer answers, which is enough
            log.warning("the coordinator could not be closed", extra=self._said(problem))

    def _said(self, error: Exception) -> dict[str, str]:
        return {"deployment": self._deployment, "reason": named_safely(error)}

    def _work(self, coordinator: Coordinator) -> None:
        """Carry out requests when they are due. Failures are retried, because a recorded request is a promise."""
        alarmed_at, swept_at = 0.0, time.monotonic()
        while self._coordinator is coordinator:
            self._wake.wait(_LOOK_SECONDS)
            self._wake.clear()
            hurried = self._hurry.is_set()
            self._hurry.clear()  # cleared before the check, so that no later call of `hurry` is lost
            try:
                if time.monotonic() > alarmed_at + _ALARM_SECONDS:
                    self._alarm(coordinator)
                    alarmed_at = time.monotonic()
                if (hurried and coordinator.has_pending()) or coordinator.is_due():
                    self._metrics.finished(coordinator.process_pending())
                    self.last_error = ""
                    self._wake.set()  # there may be a second batch
                    if hurried and coordinator.has_pending():
                        self._hurry.set()
                elif time.monotonic() > swept_at + _SWEEP_SECONDS:
                    swept_at = time.monotonic()
                    coordinator.sweep()
            except Exception as error:  # noqa: BLE001 - the promise stands whatever the error
                if hurried:
                    self._hurry.set()
                if isinstance(error, StaleEpochError):
                    self._stand_by(coordinator, error)
                else:
                    self._failed(coordinator, error)

    def _failed(self, coordinator: Coordinator, error: Exception) -> None:
        if self._coordinator is not coordinator:
            return  # its pool was closed meanwhile
        self.last_error = named_safely(error)
        log.error("carrying out requests failed and is tried again", extra={"reason": self.last_error})
        # A failure of the machine may pass, so wait. A failure of a batch is recorded, and other requests can proceed at once.
        self._wake.wait(_RETRY_SECONDS if isinstance(error, PoolError | StoreError | LedgerError | DeviceError) else 0)

    def _alarm(self, coordinator: Coordinator) -> None:
        if overdue := coordinator.overdue():
            log.error("requests are overdue", extra={"deployment": self._deployment, "requests": overdue})
        if (seconds := coordinator.received_seconds()) > _ALARM_SECONDS:
            log.error(
                "the data of an accepted request is still served",
                extra={"deployment": self._deployment, "seconds": round(seconds)},
            )

    def _verify(self, coordinator: Coordinator) -> None:
        """Verify all files once and make damaged ones again. The disk is left to others for four fifths of the time."""
        began = time.monotonic()

        def pause() -> None:
            nonlocal began
            if self._coordinator is not coordinator:
                raise StaleEpochError(self._deployment, 0, 0)
            time.sleep(4 * (time.monotonic() - began))
            began = time.monotonic()

        try:
            coordinator.verify(pause)
        except StaleEpochError:
            pass
        except Exception as error:  # noqa: BLE001 - raises an alarm; serving continues
            self.last_error = named_safely(error)
            log.error("stored files are damaged", extra=self._said(error))  # noqa: TRY400 - a traceback names users

    def _measure(self) -> None:
        """Keep the gauges current, also while shards train, and notice shards whose process was replaced."""
        known: dict[str, str] = {}
        while True:
            if (coordinator := self._coordinator) is not None:
                self._measured(coordinator, known)
            time.sleep(_MEASURE_SECONDS)

    def _measured(self, coordinator: Coordinator, known: dict[str, str]) -> None:
        try:
            self._metrics.described(coordinator.describe())
            pool = cast(RayShardPool, coordinator.pool)
            answered = pool.processes().items()
            self._metrics.memory_held(pool.describe().gpu_bytes)
            for shard, process in answered:
                if known.setdefault(shard, process) != process:
                    known[shard] = process
                    self._metrics.restarted(shard)
                    log.warning("shard restarted", extra={"deployment": self._deployment, "shard": shard})
        except (DeploymentError, StaleEpochError):
            pass  # not trained yet, or no longer in force
        except Exception as error:  # noqa: BLE001 - the next measurement may succeed
            log.warning("metrics could not be measured", extra=self._said(error))


def _alone(error: RayEraserError) -> RayEraserError:
    """An equal error without stack frames, whose variables hold a deployment's data."""
    return type(error)(*error.args)


def _ray_address() -> str:
    """Address of the Ray that this process works for; empty if there is none."""
    return str(ray.get_runtime_context().gcs_address) if ray.is_initialized() else ""
