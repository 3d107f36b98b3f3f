"""The status of a deployment, from its running coordinator or from its files. No value names a user or an item."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ray_eraser.config import DAY, UnlearningConfig
from ray_eraser.devices import named
from ray_eraser.errors import DeploymentError
from ray_eraser.generation import Change, Loaded
from ray_eraser.ids import Generation, RequestId, ShardId
from ray_eraser.opening import unlearning_settings
from ray_eraser.store import Store
from ray_eraser.unlearning.ledger import Ledger, RequestRow
from ray_eraser.unlearning.plan import CostModel, Costs, oldest_pending_seconds, overdue, plan_of
from ray_eraser.unlearning.request import RequestState


@dataclass(frozen=True)
class Progress:
    """The present stage of work.

    Attributes:
        stage: `idle`, `partition`, `shards` or `aggregation`.
        done, total: how many steps of the stage.
        note: for people.
    """

    stage: str = "idle"
    done: int = 0
    total: int = 0
    note: str = ""


@dataclass(frozen=True)
class ShardStatus:
    """A shard: interactions that it learns from, those held out, and whether it is out of what is served."""

    shard: ShardId
    interactions: int
    held_out: int
    excised: bool


@dataclass(frozen=True)
class Status:
    """A deployment.

    Attributes:
        deployment, storage_path: its name and place.
        generation, digest: what is published.
        guarantee: what its receipts claim; see docs/decisions/0007.
        chosen: the settings that were chosen from the log.
        partition: the kind.
        device: where its vectors were computed, in words.
        n_users, n_items, n_interactions: size of the log.
        serving: `generation`, `excision` while accepted erasures wait for their training, `nothing` where it does not run.
        shards: every shard.
        requests: how many there are in each state.
        plan: when requests are carried out.
        suppress_days: for how many days what was erased is not learned again.
        due_at: when the next run is, in seconds since 1970; None where nothing waits.
        predicted_seconds: how long it will take.
        costs: what that is predicted from.
        oldest_pending_seconds, overdue: how long the oldest request waits, and how many wait longer than the law allows.
        oldest_received_seconds: how long the oldest request waits that is recorded and not out of what is served yet. These
            should be seconds; 0 where there is none.
        set_aside: requests for an operator to look at, and what their training failed of.
        nodes, notices: on Ray, which processes are on which node, and what an operator should know.
        gpu_bytes: on Ray with GPUs, the GPU memory that each process holds.
        last_error: what failed since requests were last carried out; empty where nothing did.
    """

    deployment: str
    storage_path: str
    generation: Generation
    digest: str
    guarantee: str
    chosen: tuple[str, ...]
    partition: str
    device: str
    n_users: int
    n_items: int
    n_interactions: int
    serving: str
    shards: tuple[ShardStatus, ...]
    requests: Mapping[str, int]
    plan: str
    suppress_days: float
    due_at: float | None
    predicted_seconds: float
    costs: Costs
    oldest_pending_seconds: float
    overdue: int
    oldest_received_seconds: float
    set_aside: Mapping[RequestId, str]
    nodes: Mapping[str, list[str]] = field(default_factory=dict)
    gpu_bytes: Mapping[str, int] = field(default_factory=dict)
    notices: tuple[str, ...] = ()
    last_error: str = ""

    @classmethod
    def of(
        cls,
        deployment: str,
        storage_path: str,
        change: Change,
        ledger: Ledger,
        settings: UnlearningConfig,
        costs: CostModel,
        slots: int,
        now: float,
        *,
        runs: bool,
        notices: tuple[str, ...] = (),
    ) -> Status:
        """From a generation, what is being forgotten of it, and the ledger."""
        current, waiting = change.before, ledger.waiting()
        published = ledger.current()
        predicted = predicted_seconds(change, costs, slots)
        serving = "excision" if change.erased else "generation"
        last_run = None if published is None else published.published_at
        return cls(
            deployment=deployment,
            storage_path=storage_path,
            generation=current.number,
            digest=current.digest,
            guarantee=current.manifest.guarantee,
            chosen=current.manifest.chosen,
            partition=current.manifest.config.partition.kind,
            device=named(current.manifest.environment),
            n_users=len(current.users),
            n_items=len(current.items),
            n_interactions=current.manifest.n_interactions,
            serving=serving if runs else "nothing",
            shards=tuple(
                ShardStatus(record.shard, record.n_train, record.n_valid, record.shard in change.erased)
                for record in current.manifest.shards
            ),
            requests=ledger.counts(),
            plan=settings.plan,
            suppress_days=settings.suppress_days,
            due_at=plan_of(settings).next_run(waiting, last_run, predicted),
            predicted_seconds=round(predicted, 3),
            costs=costs.costs(),
            oldest_pending_seconds=round(oldest_pending_seconds(waiting, now), 3),
            overdue=overdue(waiting, settings.deadline_days * DAY, now),
            oldest_received_seconds=round(received_seconds(ledger, now), 3),
            set_aside={row.request_id: row.reason or "" for row in ledger.unfinished(RequestState.SET_ASIDE)},
            notices=notices,
        )

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        fields: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return fields


def received_seconds(ledger: Ledger, now: float) -> float:
    """How long the oldest request waits that is recorded and not out of what is served yet; 0 where there is none."""
    received_at = ledger.oldest_received()
    return 0.0 if received_at is None else max(0.0, now - received_at)


def predicted_seconds(change: Change, costs: CostModel, slots: int) -> float:
    """Predicted duration of a run for all waiting requests, with this many shards training at a time."""
    sizes = [change.before.manifest.shards[shard].n_train for shard in change.touched]
    return costs.predict(sizes, max(1, slots)).seconds


def stored_status(deployment: str, store: Store, ledger: Ledger, now: float) -> Status:
    """The status of a deployment of which no process runs. Changes nothing.

    Raises:
        DeploymentError: no generation was ever published there.
    """
    published = ledger.current()
    if published is None:
        raise DeploymentError(deployment, f"training at {store.uri} was never finished: run train.py with another path")
    settings = unlearning_settings(ledger, None)
    costs = CostModel.from_json(ledger.noted("costs", CostModel().to_json()))
    unfinished = [row for row in ledger.unfinished() if not is_in(row, published.number)]
    change = Change.of(Loaded.read(store, published), unfinished)
    return Status.of(deployment, store.uri, change, ledger, settings, costs, 1, now, runs=False)


def pending(ledger: Ledger, limit: int, *, finished: bool = False) -> list[dict[str, Any]]:
    """Unfinished erasures, the oldest first, or finished ones, the newest first, in plain values that name no ids.

    Times are seconds since 1970: `deadline_at` is when the law wants it done, `finished_at` when it was.
    """
    settings = unlearning_settings(ledger, None)
    return [
        {
            "request_id": row.request_id,
            "kind": row.kind,
            "state": str(row.state),
            "received_at": row.received_at,
            "excised_at": row.excised_at,
            "deadline_at": row.received_at + settings.deadline_days * DAY,
            "finished_at": row.receipt.purged_at if finished and row.receipt is not None else None,
            "generation": row.generation,
        }
        for row in ledger.erasures(limit, finished=finished)
    ]


def is_in(row: RequestRow, generation: int) -> bool:
    """Whether a request was carried out already and only its receipt is missing."""
    return row.generation is not None and row.generation <= generation
