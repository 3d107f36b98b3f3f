"""Where a deployment stands, from its store and its ledger alone: for when no process of it runs. Changes nothing."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from ray_eraser.config import DAY, UnlearningConfig
from ray_eraser.errors import DeploymentError
from ray_eraser.generation import Change, Loaded
from ray_eraser.store import Store
from ray_eraser.unlearning.ledger import Ledger, RequestRow
from ray_eraser.unlearning.plan import CostModel, oldest_pending_seconds, overdue, plan_of
from ray_eraser.unlearning.request import RequestState


def stored_status(deployment: str, store: Store, ledger: Ledger, now: float) -> dict[str, Any]:
    """What `Coordinator.describe` would say if one were started now, but for what is served: nothing is.

    Raises:
        DeploymentError: no generation was ever published there.
    """
    published = ledger.current()
    if published is None:
        raise DeploymentError(deployment, f"training at {store.uri} was never finished: run train.py with another path")
    settings = UnlearningConfig.model_validate_json(ledger.noted("unlearning", UnlearningConfig().model_dump_json()))
    costs = CostModel.from_json(ledger.noted("costs", CostModel().to_json()))
    waiting, unfinished = ledger.waiting(), ledger.unfinished()
    loaded = Loaded.read(store, published)
    change = Change.of(loaded, [row for row in unfinished if not _is_in(row, published.number)])
    sizes = [loaded.manifest.shards[shard].n_train for shard in change.touched]
    predicted = costs.predict(sizes, 1).seconds
    return {
        "deployment": deployment,
        "storage_path": store.uri,
        "generation": published.number,
        "digest": published.digest,
        "guarantee": loaded.manifest.config.guarantee,
        "partition": loaded.manifest.config.partition.kind,
        "n_users": len(loaded.users) - len(loaded.users.tombstones()),
        "n_items": len(loaded.items) - len(loaded.items.tombstones()),
        "n_interactions": loaded.manifest.n_interactions,
        "serving": "nothing",
        "shards": [
            {"shard": r.shard, "interactions": r.n_train, "held_out": r.n_valid, "excised": r.shard in change.erased}
            for r in loaded.manifest.shards
        ],
        "requests": ledger.counts(),
        "plan": settings.plan,
        "due_at": plan_of(settings).next_run(waiting, published.published_at, predicted),
        "predicted_seconds": round(predicted, 3),
        "costs": asdict(costs.costs()),
        "oldest_pending_seconds": round(oldest_pending_seconds(waiting, now), 3),
        "overdue": overdue(waiting, settings.deadline_days * DAY, now),
        "set_aside": {row.request_id: row.reason or "" for row in unfinished if row.state is RequestState.SET_ASIDE},
    }


def pending(ledger: Ledger, limit: int) -> list[dict[str, Any]]:
    """Unfinished erasures, the oldest first, as `Coordinator.erasures` gives them; names no ids."""
    settings = UnlearningConfig.model_validate_json(ledger.noted("unlearning", UnlearningConfig().model_dump_json()))
    return [
        {
            "request_id": row.request_id,
            "kind": row.kind,
            "state": str(row.state),
            "received_at": row.received_at,
            "excised_at": row.excised_at,
            "deadline_at": row.received_at + settings.deadline_days * DAY,
            "finished_at": None,
            "generation": row.generation,
        }
        for row in ledger.erasures(limit, finished=False)
    ]


def _is_in(row: RequestRow, generation: int) -> bool:
    """Whether a request was carried out already and only its receipt is missing."""
    return row.generation is not None and row.generation <= generation
