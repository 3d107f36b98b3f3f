"""End the processes of a deployment on a cluster, and its lease, so that it can be started on another machine at once.

Its files and the requests that it accepted stay under its storage path. The next command that starts it goes on from there. If
it does not run, nothing is done.

Examples:
    ray-eraser stop --deployment shop
"""

from __future__ import annotations

from typing import Any

from ray_eraser.cli import inputs
from ray_eraser.cli.options import ConfigOption, DeploymentOption, ExistingRayOption, JsonOption, SetOption, StorageOption
from ray_eraser.cli.output import print_json, say
from ray_eraser.cli.reaching import is_there, opened_ledger, place
from ray_eraser.errors import DeploymentError, HeldError, InputError, LedgerError, StaleEpochError


def stop(
    *,
    storage_path: StorageOption = None,
    deployment: DeploymentOption = "default",
    config: ConfigOption = None,
    changes: SetOption = None,
    ray_address: ExistingRayOption = None,
    as_json: JsonOption = False,
) -> None:
    settings = inputs.settings(config, changes)
    found = _ended(deployment, storage_path, ray_address)
    result: dict[str, Any] = {"deployment": deployment, "ended": found is not None, "storage_path": found or None}
    if found is None:
        result["held_by"] = _held_by(deployment, storage_path, settings.unlearning.ledger)
        where = "".join(f"; it runs elsewhere: {holder}" for holder in result["held_by"])
        said = f"deployment {deployment!r} does not run on this Ray{where}"
    elif found:
        said = f"deployment {deployment!r} has ended: it can be started again from {found}"
    else:
        said = f"deployment {deployment!r} has ended before its training did: train again"
    say(said)
    if as_json:
        print_json(result)


def _ended(deployment: str, storage_path: str | None, ray_address: str | None) -> str | None:
    """End a deployment. Returns its storage path; empty where nothing was trained yet, None where none runs."""
    if ray_address == "local":
        raise InputError("a Ray of this command alone has nothing to stop: give the address of the deployment's Ray")
    if not is_there(ray_address):
        return None
    from ray_eraser.runtime.client import connect

    try:
        client = connect(deployment)
    except DeploymentError:
        return None
    try:
        where = client.describe().storage_path
    except (HeldError, StaleEpochError):  # it stands by, while another one runs the deployment
        where = place(storage_path, deployment)
    except DeploymentError:  # not trained yet: shutdown() would wait for the training
        client.abandon()
        return ""
    client.shutdown()
    return where


def _held_by(deployment: str, storage_path: str | None, ledger_url: str) -> list[str]:
    from ray_eraser.observer import holders_of

    try:
        with opened_ledger(place(storage_path, deployment), deployment, ledger_url) as (_, ledger):
            return [str(holder) for holder in holders_of(ledger)]
    except (InputError, LedgerError):
        return []  # nothing is stored there
