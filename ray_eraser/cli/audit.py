"""Train every submodel and the aggregate again from the remaining interactions and compare every bit with what is stored.

Every other file must be as a deployment writes it, and name only users and items that have an interaction. Also looks for
files of earlier generations, and for the ids that --user-id, --item-id and --pairs name. Exits with 1 if it finds anything, or
if such an id is here under another spelling.

With --against it trains on a log that you hold, and the storage path must have the same files, bit for bit, whatever was
learned and erased before. Settings are those of the deployment; --set data.user_column=... and the like say how to read the
log. Deployments with learned partitions cannot be compared with a log.

Trains on the Ray that runs, or else in this process. Starts no Ray.

Examples:
    ray-eraser audit --storage-path deployments/ml-1m --user-id 42
    ray-eraser audit --storage-path deployments/ml-1m --against logs/without-42.csv
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ray_eraser.cli import inputs
from ray_eraser.cli.options import (
    ConfigOption,
    DeploymentOption,
    ItemOption,
    JsonOption,
    PairsOption,
    RayOption,
    SetOption,
    StorageOption,
    UserOption,
)
from ray_eraser.cli.output import print_facts, print_json, working
from ray_eraser.cli.program import FAILED
from ray_eraser.cli.reaching import is_there, place, published_generation
from ray_eraser.cli.sought import erased, say_what_is_not_here
from ray_eraser.cli.submitted import keep, lasting
from ray_eraser.errors import InputError

if TYPE_CHECKING:
    from ray_eraser.compute import Compute
    from ray_eraser.config import RuntimeConfig
    from ray_eraser.data.dataset import Dataset
    from ray_eraser.store import Manifest

_TASK_GPUS = 0.01
"""GPUs that a training reserves on Ray: even the smallest share that a deployment leaves will do."""

_Against = Annotated[
    str | None,
    typer.Option("--against", metavar="LOG", help="Train on this log instead. A log as for ray-eraser train --data."),
]


def audit(
    *,
    storage_path: StorageOption = None,
    deployment: DeploymentOption = "default",
    user_id: UserOption = None,
    item_id: ItemOption = None,
    pairs: PairsOption = None,
    against: _Against = None,
    config: ConfigOption = None,
    changes: SetOption = None,
    ray_address: RayOption = None,
    as_json: JsonOption = False,
) -> None:
    where = place(storage_path, deployment)
    settings = inputs.settings(config, changes)
    sought = erased(user_id, item_id, pairs)
    if against is not None and sought:
        raise InputError("--against compares all files and looks for no ids: leave them out, or leave out --against")
    store, published = published_generation(where, deployment, settings.unlearning.ledger)
    manifest = store.read_manifest(published.digest)
    log = _log_of(against, manifest, changes or []) if against is not None else None
    compute = _compute(manifest.config.runtime.model_copy(update={"slots": settings.runtime.slots}), ray_address)
    if log is not None:
        from ray_eraser.unlearning.against import audit_against

        with working(f"training {manifest.config.partition.n_shards} shards on the log"):
            compared = audit_against(store, published, log, compute)
        _report(where, "comparison with the log", compared.to_dict(), passed=compared.equal, as_json=as_json)
    else:
        from ray_eraser.unlearning.audit import audit as prove

        with working(f"training {manifest.config.partition.n_shards} shards again from what remains"):
            report = prove(store, published, compute, sought)
        say_what_is_not_here(sought, report.not_here, report.spelled_otherwise)
        _report(where, "audit", report.to_dict(), passed=report.passed, as_json=as_json)


def _compute(runtime: RuntimeConfig, ray_address: str | None) -> Compute:
    """Where an audit trains: on the Ray that is there, else in this process."""
    from ray_eraser.compute import InThisProcess

    if not is_there(ray_address):
        return InThisProcess()
    from ray_eraser.runtime.pool import RayTasks

    return RayTasks(runtime, _TASK_GPUS if runtime.known_device == "cuda" else 0)


def _log_of(source: str, manifest: Manifest, changes: Sequence[str]) -> Dataset:
    """A log as the deployment would have read it, except for the names of columns and the like that are given."""
    from ray_eraser.config import changed
    from ray_eraser.unlearning.against import refuse_learned

    refuse_learned(manifest.config)
    reading = changed(manifest.config, [change for change in changes if change.strip().startswith("data.")]).data
    return inputs.read_log(source, reading, manifest.config.seed)


def _report(where: str, title: str, report: dict[str, Any], *, passed: bool, as_json: bool) -> None:
    result = report | {"chosen": list(report["chosen"]), "mismatches": list(report["mismatches"])}
    keep("audit", where, lasting(result))
    if as_json:
        print_json(result)
    else:
        print_facts(title, result | {"mismatches": "\n".join(report["mismatches"]) or "none"})
    if not passed:
        raise typer.Exit(FAILED)
