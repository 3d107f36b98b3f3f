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
from ray_eraser.notebook import html_table, moment
from ray_eraser.opening import unlearning_settings
from ray_eraser.store import Store
from ray_eraser.unlearning.ledger import Ledger, RequestRow
from ray_eraser.unlearning.plan import CostModel, Costs, oldest_pending_seconds, overdue, plan_of
from ray_eraser.unlearning.request import RequestState


@dataclass(frozen=True)
class Progress:
    """The current stage of work.

    Attributes:
        stage: `idle`, `partition`, `shards` or `aggregation`.
        done, total: steps of the stage.
        note: text for people.
    """

    stage: str = "idle"
    done: int = 0
    total: int = 0
    note: str = ""


@dataclass(frozen=True)
class ShardStatus:
    """A shard: its training and held-out interactions, and whether it is left out of the served model (`excised`)."""

    shard: ShardId
    interactions: int
    held_out: int
    excised: bool


@dataclass(frozen=True)
class Status:
    """The status of a deployment.

    Attributes:
        deployment, storage_path: its name and place.
        generation, digest: number and manifest digest of the published generation.
        guarantee: the level that its receipts claim; see docs/decisions/0007.
        chosen: the settings that were chosen from the log.
        partition: its kind.
        device: the device that computed its vectors, in words.
        n_users, n_items, n_interactions: size of the log.
        serving: `generation`; `excision` while accepted erasures wait for their training; `nothing` if it is not running.
        shards: every shard.
        requests: number of requests in each state.
        plan: when requests are carried out.
        suppress_days: for how many days erased data is not learned again.
        due_at: time of the next run, in seconds since 1970; None if no request waits.
        predicted_seconds: predicted duration of that run.
        costs: the basis of that prediction.
        oldest_pending_seconds, overdue: age of the oldest waiting request, and how many wait longer than the law allows.
        oldest_received_seconds: age of the oldest recorded request whose data is still served. It should be seconds; 0 if
            there is none.
        set_aside: requests that need an operator, each with the reason why its training failed.
        nodes, notices: on Ray, the processes on each node, and messages for the operator.
        gpu_bytes: on Ray with GPUs, the GPU memory that each process holds.
        last_error: the last failure since requests were last carried out; empty if there was none.
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
        """Describe a generation, the pending change to it, and the ledger."""
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

    def _repr_html_(self) -> str:
        return html_table(
            f"Deployment {self.deployment}",
            {
                "storage path": self.storage_path,
                "generation": self.generation,
                "guarantee": self.guarantee,
                "serving": self.serving,
                "users": f"{self.n_users:,}",
                "items": f"{self.n_items:,}",
                "interactions": f"{self.n_interactions:,}",
                "shards": len(self.shards),
                "partition": self.partition,
                "requests": ", ".join(f"{n} {state}" for state, n in self.requests.items() if n) or "none",
                "next run": moment(self.due_at),
                "overdue": self.overdue or None,
                "set aside": len(self.set_aside) or None,
                "notices": "; ".join(self.notices),
            },
        )

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        fields: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return fields


def received_seconds(ledger: Ledger, now: float) -> float:
    """Age of the oldest recorded request whose data is still served; 0 if there is none."""
    received_at = ledger.oldest_received()
    return 0.0 if received_at is None else max(0.0, now - received_at)


def predicted_seconds(change: Change, costs: CostModel, slots: int) -> float:
    """Predicted duration of a run for all waiting requests, if `slots` shards train at a time."""
    sizes = [change.before.manifest.shards[shard].n_train for shard in change.touched]
    return costs.predict(sizes, max(1, slots)).seconds


def stored_status(deployment: str, store: Store, ledger: Ledger, now: float, loaded: Loaded | None = None) -> Status:
    """The status of a deployment that is not running. Changes nothing.

    Args:
        deployment: its name.
        store: its files.
        ledger: its ledger.
        now: seconds since 1970.
        loaded: the published generation, if the caller has read it.

    Raises:
        DeploymentError: no generation was ever published there.
    """
    published = ledger.current()
    if published is None:
        raise DeploymentError(deployment, f"training at {store.uri} was never finished: run ray-eraser train with another path")
    if loaded is None or loaded.digest != published.digest:
        loaded = Loaded.read(store, published)
    settings = unlearning_settings(ledger, None)
    costs = CostModel.from_json(ledger.noted("costs", CostModel().to_json()))
    change = Change.of(loaded, [row for row in ledger.unfinished() if not is_in(row, published.number)])
    return Status.of(deployment, store.uri, change, ledger, settings, costs, 1, now, runs=False)


def pending(ledger: Ledger, limit: int, *, finished: bool = False) -> list[dict[str, Any]]:
    """Unfinished erasures, oldest first, or finished ones, newest first, as plain values without ids.

    Times are seconds since 1970: `deadline_at` is the legal deadline, `restored_at` the time when the new generation was
    served, and `finished_at` the time of completion. `shards` are the shards that owned the data.
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
            "restored_at": row.receipt.restored_at if finished and row.receipt is not None else None,
            "finished_at": row.receipt.purged_at if finished and row.receipt is not None else None,
            "generation": row.generation,
            "shards": list(row.receipt.shards_touched) if finished and row.receipt is not None else None,
        }
        for row in ledger.erasures(limit, finished=finished)
    ]


def is_in(row: RequestRow, generation: int) -> bool:
    """Whether a request is part of a generation already and lacks only its receipt."""
    return row.generation is not None and row.generation <= generation
