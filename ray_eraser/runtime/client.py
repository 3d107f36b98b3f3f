"""The client of a running deployment, for any program that can reach its Ray."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, cast

import ray

from ray_eraser.config import EraserConfig, only_here
from ray_eraser.coordinator import FitReport, Submitted
from ray_eraser.data.dataset import Dataset
from ray_eraser.data.frames import Frame, Pairs, ids_of, pairs_of
from ray_eraser.data.given import dataset_of
from ray_eraser.errors import (
    ConfigError,
    DeploymentError,
    HeldError,
    RayEraserError,
    RequestError,
    SetAsideError,
    StaleEpochError,
    WaitTimeoutError,
)
from ray_eraser.ids import RawId, RequestId, checked_id
from ray_eraser.notebook import ShowProgress, html_table, shown
from ray_eraser.recommend import Scored
from ray_eraser.runtime.actors import CoordinatorActor, Failed
from ray_eraser.runtime.pool import translated
from ray_eraser.runtime.session import NAMESPACE, ensure_ray
from ray_eraser.status import Progress, Status
from ray_eraser.unlearning.receipt import Receipt
from ray_eraser.unlearning.request import Refusal, RequestState, Submission, UnlearningRequest
from ray_eraser.unlearning.request_files import requests_of
from ray_eraser.vectors import Vectors

_CALL_SECONDS = 120.0
_START_SECONDS = 300.0
_MANY_SECONDS = 600.0
_LOOK_SECONDS = 0.5


class Ticket:
    """An accepted request: to forget, to learn, or to partition again.

    Attributes:
        request_id: its name, which any other client can ask about.
        salt: opens the receipt's commitment. Keep it: the system forgets it when the request is finished. None for a request
            that forgets nothing and has no receipt.
        here_again, suppressed, pairs_absent: see `Submitted`.
    """

    def __init__(self, client: Client, submitted: Submitted) -> None:
        self._client, self._submitted = client, submitted
        self.request_id = submitted.request_id
        self.salt = submitted.salt
        self.here_again, self.suppressed = submitted.here_again, submitted.suppressed
        self.pairs_absent = submitted.pairs_absent

    def __repr__(self) -> str:  # without the salt, which is a secret
        return f"Ticket(request_id={self.request_id!r})"

    def _repr_html_(self) -> str:
        return self._submitted._repr_html_()

    def status(self) -> RequestState:
        """The request's state now."""
        return self._client.status(self.request_id)

    def finished(self, timeout: float = 3600.0) -> RequestState:
        """Wait until the request has ended, and return its final state: `erased` or `done`.

        Raises:
            WaitTimeoutError: it did not end within `timeout` seconds. The request goes on.
            SetAsideError: its retraining failed several times, and it waits for an operator.
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
        """Wait until the request is finished, and return its receipt.

        Raises:
            WaitTimeoutError, SetAsideError: as `finished`.
            RequestError: the request forgets nothing, so it has no receipt.
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
    """The client of one deployment, made by `connect` or `deploy`. Several threads may share it.

    Example:
        >>> client = ray_eraser.connect("shop")  # doctest: +SKIP
        >>> client.recommend("alice", 10)  # doctest: +SKIP
        >>> receipt = client.unlearn(user_id="alice").wait()  # doctest: +SKIP
    """

    def __init__(self, deployment: str, actor: Any, timeout: float = _CALL_SECONDS) -> None:
        self.deployment = deployment
        self._actor = actor
        self._timeout = timeout

    def recommend(self, user_id: RawId, n: int = 10) -> list[RawId]:
        """The ids of the `n` best items that the user does not have, best first. Never waits for training.

        Raises:
            InvalidIdError: the user id cannot be one.
            UnknownIdError: the user was never here or has been erased.
            InputError: `n` is less than 1 or no integer.
        """
        return cast(list[RawId], self._get(self._actor.recommend.remote(checked_id("user", user_id), n)))

    def recommend_scored(self, user_id: RawId, n: int = 10) -> list[Scored]:
        """The same with the items' scores, which compare within one user's list only. Raises as `recommend`."""
        return cast(list[Scored], self._get(self._actor.recommend_scored.remote(checked_id("user", user_id), n)))

    def recommend_many(self, user_ids: Sequence[RawId], n: int = 10) -> list[list[Scored] | None]:
        """The lists that `recommend_scored` gives for many users, in their order; None for a user who is not here.

        Raises:
            InvalidIdError: a user id cannot be one.
            InputError: `n` is less than 1 or no integer.
        """
        named = [checked_id("user", user_id) for user_id in ids_of(user_ids)]
        return cast("list[list[Scored] | None]", self._get(self._actor.recommend_many.remote(named, n), _MANY_SECONDS))

    def similar_items(self, item_id: RawId, n: int = 10) -> list[Scored]:
        """The `n` items that the model ranks highest for a user who has this item alone, best first.

        Raises:
            InvalidIdError: the item id cannot be one.
            UnknownIdError: the item was never here or has been erased.
            InputError: `n` is less than 1 or no integer.
        """
        return cast(list[Scored], self._get(self._actor.similar_items.remote(checked_id("item", item_id), n)))

    def unlearn(
        self,
        *,
        user_id: RawId | None = None,
        item_id: RawId | None = None,
        pairs: Pairs | None = None,
        idempotency_key: str | None = None,
        priority: int = 0,
    ) -> Ticket:
        """Have a user, an item, or (user id, item id) pairs forgotten.

        On return the request is recorded and nothing that is served depends on the data. Retraining follows by the plan, or at
        once with a priority above 0. Pairs that are not stored are passed over; `Ticket.pairs_absent` counts them.

        Args:
            user_id: of the user to forget.
            item_id: of the item to forget.
            pairs: tuples, an array of shape (n, 2), or a data frame with the columns `user_id` and `item_id`.
            idempotency_key: a submission repeated with the same key is the same request.
            priority: above 0: the request does not wait for others, whatever the plan.

        Raises:
            UnknownIdError: nothing of the user or the item is here.
            RequestError, QueueFullError: the request cannot be accepted; nothing was changed.
        """
        request = UnlearningRequest(user_id, item_id, cast(Any, pairs))
        submission = Submission(request, idempotency_key, priority)  # refuses what no key or priority can be
        return Ticket(self, self._get(self._actor.submit.remote(request, submission.idempotency_key, submission.priority)))

    def unlearn_many(self, submissions: Iterable[Submission] | Frame, *, partial: bool = False) -> list[Ticket | Refusal]:
        """Have many requests accepted: all, or with `partial` all that can be. The answers have the order of the requests.

        Args:
            submissions: requests, or a data frame with the columns and the rules of a file of requests
                (`request_files.read_frame`): one row asks for the user, the item or the pair that it names.
            partial: accept the sound requests and give a `Refusal` for each of the others.

        Raises:
            RequestError, QueueFullError: one cannot be accepted, the error names its row; nothing was changed.
        """
        asked = requests_of(submissions, partial=partial)
        answers = self._get(self._actor.submit_many.remote(list(asked.submissions), partial), _MANY_SECONDS)
        return asked.in_order([answer if isinstance(answer, Refusal) else Ticket(self, answer) for answer in answers])

    def learn(self, pairs: Pairs, *, idempotency_key: str | None = None, take_back: bool = False) -> Ticket:
        """Have (user id, item id) pairs learned: the shards that they go to are trained again, by the plan.

        Args:
            pairs: as in `unlearn`.
            idempotency_key: as in `unlearn`.
            take_back: also learn pairs that were erased and must not be learned again (`unlearning.suppress_days`).

        Raises:
            RequestError, QueueFullError: the pairs cannot be accepted; nothing was changed.
        """
        named = UnlearningRequest(pairs=pairs_of(pairs)).named_pairs  # refuses values that cannot be ids
        return Ticket(self, self._get(self._actor.learn.remote(named, idempotency_key, take_back), _MANY_SECONDS))

    def repartition(self, *changes: str, idempotency_key: str | None = None) -> Ticket:
        """Have everything made from scratch from the remaining interactions.

        Args:
            changes: settings to change, as `section.key=value`.
            idempotency_key: as in `unlearn`.

        Raises:
            ConfigError: a setting is unknown or out of range.
        """
        return Ticket(self, self._get(self._actor.repartition.remote(list(changes), idempotency_key)))

    def retry(self, request_id: RequestId) -> None:
        """Try a request that was set aside again."""
        self._get(self._actor.retry.remote(request_id))

    def process_now(self) -> None:
        """Have all waiting requests carried out next, whatever the plan says. Returns at once."""
        self._get(self._actor.process_now.remote())

    def reason(self, request_id: RequestId) -> str:
        """Why a request was set aside; empty if it was not."""
        return cast(str, self._get(self._actor.reason.remote(request_id)))

    def status(self, request_id: RequestId) -> RequestState:
        return cast(RequestState, self._get(self._actor.status.remote(request_id)))

    def receipt(self, request_id: RequestId) -> Receipt | None:
        """The receipt of a request; None while it is unfinished."""
        return cast("Receipt | None", self._get(self._actor.receipt.remote(request_id)))

    def describe(self) -> Status:
        """The status of the deployment: generation, guarantee, shards, requests, nodes.

        Raises:
            DeploymentError: nothing has been trained yet.
        """
        return cast(Status, self._get(self._actor.describe.remote()))

    def erasures(self, limit: int = 100, *, finished: bool = False) -> list[dict[str, Any]]:
        """Finished erasures, newest first, or unfinished ones, oldest first, as plain values that name no ids."""
        return cast(list[dict[str, Any]], self._get(self._actor.erasures.remote(limit, finished)))

    def vectors(self) -> Vectors:
        """The vectors that are served now, with their ids, to serve in another system. Copies do not forget: see `Vectors`."""
        return cast(Vectors, self._get(self._actor.vectors.remote(), _MANY_SECONDS))

    def progress(self) -> Progress:
        """How far the current training is."""
        return cast(Progress, self._get(self._actor.progress.remote()))

    def _repr_html_(self) -> str:
        try:
            return self.describe()._repr_html_()
        except RayEraserError as error:
            return html_table(f"Deployment {self.deployment}", {"problem": error})

    def fit(self, log: Dataset | Pairs, progress: ShowProgress = "auto") -> FitReport:
        """Train a new deployment.

        Args:
            log: a `Dataset`, a data frame, or (user id, item id) pairs. Frames and pairs are read and split by the deployment's
                settings, as files are.
            progress: a function that hears of the training about five times a second. By default a line shows it in a
                terminal or a notebook; None shows nothing.

        Raises:
            InputError: a data frame lacks a column, or a value cannot be an id.
            DeploymentError: something is deployed here already.
        """
        if not isinstance(log, Dataset):
            _, config = self._get(self._actor.identity.remote())
            log = dataset_of(log, config.data, config.seed)
        return self._trained(self._actor.fit.remote(log), progress)

    def fit_log(self, source: str, progress: ShowProgress = "auto") -> FitReport:
        """Train a new deployment from a log of Parquet files that need not fit into memory. See `Coordinator.fit_log`.

        Args:
            source: an absolute path that is the same on all nodes.
            progress: as in `fit`.
        """
        return self._trained(self._actor.fit_log.remote(source), progress)

    def _trained(self, result: Any, progress: ShowProgress) -> FitReport:
        with shown(progress) as hear:
            while not ray.wait([result], timeout=0.2)[0]:
                hear(self.progress())
        return cast(FitReport, self._get(result))

    def warm(self) -> None:
        """Wait until every shard's process is up."""
        self._get(self._actor.warm.remote(), _START_SECONDS)

    def shutdown(self) -> None:
        """Stop the deployment's processes. `deploy` with the same storage path continues from the stored state."""
        self._get(self._actor.close.remote())
        ray.kill(self._actor)

    def abandon(self) -> None:
        """End the processes of a deployment that has not been trained yet. A trained deployment goes on."""
        try:
            self.describe()
        except HeldError:
            return  # another coordinator runs the deployment
        except DeploymentError:
            ray.kill(self._actor)  # first, or it would start the others again
            for named in ray.util.list_named_actors(all_namespaces=True):
                if named["namespace"] == NAMESPACE and str(named["name"]).startswith(f"{self.deployment}/"):
                    with suppress(ValueError):  # the actor has ended already
                        ray.kill(ray.get_actor(named["name"], namespace=NAMESPACE))

    def in_force(self, *, take_over: bool = False, patience: float = 0.0) -> tuple[str, EraserConfig]:
        """Wait until the coordinator is in force, and return the deployment's storage path and settings.

        Args:
            take_over: take over from a coordinator that runs elsewhere, which then stops answering.
            patience: seconds to wait until a coordinator elsewhere has ended.

        Raises:
            HeldError, StaleEpochError: a coordinator elsewhere runs the deployment.
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


def connect(deployment: str = "default", *, address: str | None = None, timeout: float = _CALL_SECONDS) -> Client:
    """A client of a deployment that is running.

    Args:
        deployment: its name.
        address: of the Ray cluster, if this process is not connected to one yet.
        timeout: seconds to wait for an answer before a `PoolError`. Training may take longer.

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
    """Start a deployment's coordinator, or connect to it if it is running.

    Args:
        deployment: its name. Its processes are detached from this one.
        storage_path: the folder of its files. On a cluster, every node must reach it.
        config: for a new deployment, which `fit` then trains; None for an existing one.
        ledger_url: of the ledger's database, unless it is SQLite under the storage path.
        address: of the Ray cluster, if this process is not connected to one yet.
        take_over: take over from a coordinator that runs elsewhere, which then stops answering.
        patience: seconds to wait until a coordinator elsewhere has ended.

    Raises:
        HeldError: a coordinator elsewhere runs the deployment.
        ConfigError: the settings name a kind that only this process knows; see `config.register`.
        DeploymentError: no deployment is there and no config is given, or the stored or running one has other settings.
    """
    if "/" in deployment or not deployment:
        raise RequestError(f"deployment name {deployment!r} must not be empty or contain a slash")
    if config is not None and (key := only_here(config)) is not None:
        raise ConfigError(
            key,
            "was registered in this process alone, and Ray's processes do not know it: declare it as an entry point of a "
            "package that every node has, or use Coordinator.local",
        )
    ensure_ray(address)
    options = {"name": f"{deployment}/coordinator", "namespace": NAMESPACE, "lifetime": "detached", "get_if_exists": True}
    is_new = True
    # On the head node: nothing outlives it anyway, and jobs there can read a ledger that is a file.
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
            ray.kill(actor)  # it could not open, so it has accepted nothing
        raise
    if uri != storage_path:
        raise DeploymentError(deployment, f"is running already, at {uri}: choose another name or shut that one down")
    if config is not None and not config.agrees_with(running):
        raise DeploymentError(deployment, "is running already with other settings: choose another name or shut it down")
    return client
