"""A running deployment, from any program that reaches its Ray."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, cast

import numpy as np
import ray

from ray_eraser.config import EraserConfig, only_here
from ray_eraser.coordinator import FitReport, Submitted
from ray_eraser.data.dataset import Dataset
from ray_eraser.errors import (
    ConfigError,
    DeploymentError,
    HeldError,
    RequestError,
    SetAsideError,
    StaleEpochError,
    WaitTimeoutError,
)
from ray_eraser.ids import RawId, RequestId, checked_id
from ray_eraser.runtime.actors import CoordinatorActor, Failed
from ray_eraser.runtime.pool import translated
from ray_eraser.runtime.session import NAMESPACE, ensure_ray
from ray_eraser.status import Progress, Status
from ray_eraser.unlearning.receipt import Receipt
from ray_eraser.unlearning.request import Refusal, RequestState, Submission, UnlearningRequest
from ray_eraser.unlearning.work import Learning
from ray_eraser.vectors import Vectors

OnProgress = Callable[[Progress], None]

_CALL_SECONDS = 120.0
_START_SECONDS = 300.0
_MANY_SECONDS = 600.0
_LOOK_SECONDS = 0.5


class Ticket:
    """Something that was accepted: a request to forget, data to learn from, a new partition.

    Attributes:
        request_id: ask for it again from any other client.
        salt: opens the receipt's commitment; handed out with the request and forgotten by the system when it is finished. None
            where nothing is forgotten, and there is no receipt.
        here_again, suppressed: see `Submitted`.
    """

    def __init__(self, client: Client, submitted: Submitted) -> None:
        self._client = client
        self.request_id = submitted.request_id
        self.salt = submitted.salt
        self.here_again, self.suppressed = submitted.here_again, submitted.suppressed

    def status(self) -> RequestState:
        """Where the request stands now."""
        return self._client.status(self.request_id)

    def finished(self, timeout: float = 3600.0) -> RequestState:
        """The state in which it ended, `erased` or `done`, once it has.

        Raises:
            WaitTimeoutError: not within `timeout` seconds; the request goes on all the same.
            SetAsideError: its retraining failed again and again, and it waits for an operator.
        """
        deadline = time.monotonic() + timeout
        pause = 0.01
        while not (state := self.status()).is_final:
            if state is RequestState.SET_ASIDE:
                raise SetAsideError(self.request_id, self._client.reason(self.request_id))
            if time.monotonic() > deadline:
                raise WaitTimeoutError(f"the end of request {self.request_id}", timeout)
            time.sleep(pause)
            pause = min(1.0, pause * 1.2)
        return state

    def wait(self, timeout: float = 3600.0) -> Receipt:
        """The receipt, once there is one.

        Raises:
            WaitTimeoutError, SetAsideError: as `finished`.
            RequestError: nothing was asked to be forgotten, so that there is no receipt.
        """
        if self.finished(timeout) is not RequestState.ERASED:
            raise RequestError(f"request {self.request_id} asked for no erasure and has no receipt: use finished()")
        receipt = self.receipt()
        assert receipt is not None, "what is erased has a receipt"
        return receipt

    def receipt(self) -> Receipt | None:
        """The receipt; None while the request is unfinished."""
        return self._client.receipt(self.request_id)


class Client:
    """One deployment. Made by `connect` or `deploy`; safe to use from several threads."""

    def __init__(self, deployment: str, actor: Any, timeout: float = _CALL_SECONDS) -> None:
        self.deployment = deployment
        self._actor = actor
        self._timeout = timeout

    def recommend(self, user_id: RawId, n: int = 10) -> list[RawId]:
        """Raw ids of the `n` best items that the user has not seen, best first. Answered while shards retrain.

        Raises:
            InvalidIdError: the user id cannot be one.
            UnknownIdError: the user was never here or has been erased.
            InputError: `n` is less than 1.
        """
        return cast(list[RawId], self._get(self._actor.recommend.remote(checked_id("user", user_id), n)))

    def unlearn(
        self,
        *,
        user_id: RawId | None = None,
        item_id: RawId | None = None,
        pairs: Sequence[tuple[RawId, RawId]] | None = None,
        idempotency_key: str | None = None,
        priority: int = 0,
    ) -> Ticket:
        """Have a user, an item, or (user id, item id) pairs forgotten. An array with two columns is pairs as well.

        On return the request is recorded and nothing that is served depends on the data; retraining follows, by the plan or,
        with a priority above 0, at once.

        Raises:
            RequestError, UnknownIdError, QueueFullError: it cannot be accepted; nothing was changed.
        """
        request = UnlearningRequest(user_id, item_id, _listed(pairs))
        submission = Submission(request, idempotency_key, priority)  # refuses what no key or priority can be
        return Ticket(self, self._get(self._actor.submit.remote(request, submission.idempotency_key, submission.priority)))

    def unlearn_many(self, submissions: Sequence[Submission], *, partial: bool = False) -> list[Ticket | Refusal]:
        """Have many requests accepted: all or, with `partial`, all that can be; answers in their order.

        Raises:
            RequestError, QueueFullError: one cannot be accepted, its row is named; nothing was changed.
        """
        answers = self._get(self._actor.submit_many.remote(list(submissions), partial), _MANY_SECONDS)
        return [answer if isinstance(answer, Refusal) else Ticket(self, answer) for answer in answers]

    def learn(
        self, pairs: Sequence[tuple[RawId, RawId]], *, idempotency_key: str | None = None, take_back: bool = False
    ) -> Ticket:
        """Have (user id, item id) pairs learned from: the shards that they go to are trained again, by the plan.

        `take_back`: also those that were erased and are not to be learned again (`unlearning.suppress_days`).

        Raises:
            RequestError, QueueFullError: they cannot be accepted; nothing was changed.
        """
        named = Learning(_listed(pairs)).named  # refuses what no id can be
        return Ticket(self, self._get(self._actor.learn.remote(named, idempotency_key, take_back), _MANY_SECONDS))

    def repartition(self, *changes: str, idempotency_key: str | None = None) -> Ticket:
        """Have everything made from scratch on what remains, with settings changed (`section.key=value`) if any are given.

        Raises:
            ConfigError: a setting is unknown or out of range.
        """
        return Ticket(self, self._get(self._actor.repartition.remote(list(changes), idempotency_key)))

    def retry(self, request_id: RequestId) -> None:
        """Have a request that was set aside tried again."""
        self._get(self._actor.retry.remote(request_id))

    def process_now(self) -> None:
        """Have everything that waits carried out next, whatever the plan says. Does not wait for it."""
        self._get(self._actor.process_now.remote())

    def reason(self, request_id: RequestId) -> str:
        """Why a request was set aside; empty where it was not."""
        return cast(str, self._get(self._actor.reason.remote(request_id)))

    def status(self, request_id: RequestId) -> RequestState:
        return cast(RequestState, self._get(self._actor.status.remote(request_id)))

    def receipt(self, request_id: RequestId) -> Receipt | None:
        """The receipt of a request; None while it is unfinished."""
        return cast("Receipt | None", self._get(self._actor.receipt.remote(request_id)))

    def describe(self) -> Status:
        """Where the deployment stands: generation, guarantee, shards, requests, nodes.

        Raises:
            DeploymentError: nothing has been trained yet.
        """
        return cast(Status, self._get(self._actor.describe.remote()))

    def erasures(self, limit: int = 100, *, finished: bool = False) -> list[dict[str, Any]]:
        """Finished erasures, the newest first, or unfinished ones, the oldest first, in plain values that name no ids."""
        return cast(list[dict[str, Any]], self._get(self._actor.erasures.remote(limit, finished)))

    def vectors(self) -> Vectors:
        """The vectors that are served now, with their ids, for whoever serves them elsewhere.

        What is handed out does not forget: see `Vectors`.
        """
        return cast(Vectors, self._get(self._actor.vectors.remote(), _MANY_SECONDS))

    def progress(self) -> Progress:
        """What is being trained."""
        return cast(Progress, self._get(self._actor.progress.remote()))

    def fit(self, dataset: Dataset, on_progress: OnProgress = lambda _: None) -> FitReport:
        """Train a new deployment; `on_progress` hears of it about five times a second."""
        return self._trained(self._actor.fit.remote(dataset), on_progress)

    def fit_log(self, source: str, on_progress: OnProgress = lambda _: None) -> FitReport:
        """Train a new deployment from a log of Parquet files that need not fit into memory; see `Coordinator.fit_log`.

        Args:
            source: a path that is the same on all nodes, absolute.
            on_progress: as in `fit`.
        """
        return self._trained(self._actor.fit_log.remote(source), on_progress)

    def _trained(self, result: Any, on_progress: OnProgress) -> FitReport:
        while not ray.wait([result], timeout=0.2)[0]:
            on_progress(self.progress())
        return cast(FitReport, self._get(result))

    def warm(self) -> None:
        """Wait until every shard's process is up."""
        self._get(self._actor.warm.remote(), _START_SECONDS)

    def shutdown(self) -> None:
        """Stop the deployment's processes. What it knows and promised is in its storage path and goes on from there."""
        self._get(self._actor.close.remote())
        ray.kill(self._actor)

    def abandon(self) -> None:
        """End the processes of a deployment that has not been trained yet, whatever they do; one that has been goes on."""
        try:
            self.describe()
        except HeldError:
            return  # it stands by
        except DeploymentError:
            ray.kill(self._actor)  # first, or it would start the others again
            for named in ray.util.list_named_actors(all_namespaces=True):
                if named["namespace"] == NAMESPACE and str(named["name"]).startswith(f"{self.deployment}/"):
                    with suppress(ValueError):  # it went by itself meanwhile
                        ray.kill(ray.get_actor(named["name"], namespace=NAMESPACE))

    def in_force(self, *, take_over: bool = False, patience: float = 0.0) -> tuple[str, EraserConfig]:
        """Storage path and settings of the deployment, once its coordinator is in force.

        Args:
            take_over: also where a coordinator elsewhere runs it, which then answers no more.
            patience: for how many seconds to wait for one elsewhere to end.

        Raises:
            HeldError, StaleEpochError: one elsewhere runs it.
        """
        give_up = time.monotonic() + patience
        while True:
            try:
                return cast(tuple[str, EraserConfig], self._get(self._actor.identity.remote(), _START_SECONDS))
            except (HeldError, StaleEpochError):
                if take_over:
                    self._get(self._actor.take_over.remote(), _START_SECONDS)
                elif time.monotonic() >= give_up:
                    raise
            time.sleep(_LOOK_SECONDS)

    def _get(self, reference: Any, timeout: float | None = None) -> Any:
        with translated(f"deployment {self.deployment!r}"):
            answer = ray.get(reference, timeout=self._timeout if timeout is None else timeout)
        if isinstance(answer, Failed):
            raise answer.error
        return answer


def _listed(pairs: Any) -> Any:
    """The rows of an array as pairs; anything else is left for the request to check."""
    return pairs.tolist() if isinstance(pairs, np.ndarray) else pairs


def connect(deployment: str = "default", *, address: str | None = None, timeout: float = _CALL_SECONDS) -> Client:
    """A client of a deployment that is running.

    Args:
        deployment: its name.
        address: of the Ray cluster, where this process is not connected to one yet.
        timeout: seconds after which an answer is no longer waited for, which is a `PoolError`; training may take longer.

    Raises:
        DeploymentError: no deployment of this name is running there.
    """
    ensure_ray(address)
    try:
        actor = ray.get_actor(f"{deployment}/coordinator", namespace=NAMESPACE)
    except ValueError as error:
        raise DeploymentError(deployment, "is not running on this Ray: start it with deploy(), or check the name") from error
    return Client(deployment, actor, timeout)


def deploy(
    deployment: str,
    storage_path: str,
    config: EraserConfig | None = None,
    *,
    ledger_url: str = "",
    address: str | None = None,
    take_over: bool = False,
    patience: float = 0.0,
) -> Client:
    """Start a deployment's coordinator, or find it running: a new one for `fit`, or one that comes back from its storage path.

    Args:
        deployment: the name under which it will run, detached from this process.
        storage_path: where its files are; on a cluster, a place that every node reaches.
        config: for a new deployment; None for one that exists.
        ledger_url: where the ledger is, if it is not SQLite under the storage path.
        address: of the Ray cluster, where this process is not connected to one yet.
        take_over: also where a coordinator elsewhere runs it, which then answers no more.
        patience: for how many seconds to wait for one elsewhere to end.

    Raises:
        HeldError: one elsewhere runs it.
        ConfigError: a kind is known in this process alone; see `config.register`.
        DeploymentError: nothing is there to come back, or what is there or runs differs from what is asked for.
    """
    if "/" in deployment or not deployment:
        raise RequestError(f"deployment name {deployment!r} must not be empty or contain a slash")
    if config is not None and (key := only_here(config)) is not None:
        raise ConfigError(
            key,
            "was registered in this process, which no process of Ray hears of: declare it as an entry point of a package that "
            "every node has, or use a Coordinator with a LocalShardPool",
        )
    ensure_ray(address)
    options = {"name": f"{deployment}/coordinator", "namespace": NAMESPACE, "lifetime": "detached", "get_if_exists": True}
    is_new = True
    # On the head: when that dies everything does anyway, and a ledger in a file is on the machine where the jobs read it.
    head = {"node:__internal_head__": 0.001}
    with suppress(ValueError):
        ray.get_actor(options["name"], namespace=NAMESPACE)
        is_new = False
    actor = CoordinatorActor.options(**options, num_cpus=0, resources=head, max_restarts=-1).remote(
        deployment, storage_path, config, ledger_url
    )
    client = Client(deployment, actor)
    try:
        uri, running = client.in_force(take_over=take_over, patience=patience)
    except Exception:
        if is_new:
            ray.kill(actor)  # it could not open; nothing was promised by it
        raise
    if uri != storage_path:
        raise DeploymentError(deployment, f"is running already, at {uri}: choose another name or shut that one down")
    if config is not None and not config.agrees_with(running):
        raise DeploymentError(deployment, "is running already with other settings: choose another name or shut it down")
    return client
