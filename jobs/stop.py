"""End a deployment that runs on a cluster."""

from __future__ import annotations

from typing import Any

import cli

from ray_eraser.errors import DeploymentError, HeldError, InputError, LedgerError, StaleEpochError
from ray_eraser.observer import holders_of


def stop(
    storage_path: cli.StorageOption = None,
    deployment: cli.DeploymentOption = "default",
    config: cli.ConfigOption = None,
    changes: cli.SetOption = None,
    ray_address: cli.ExistingRayOption = None,
    as_json: cli.JsonOption = False,
    debug: cli.DebugOption = False,
) -> None:
    """End the processes of a deployment, and its lease, so that it can be started on another machine at once.

    What it has stored and accepted stays under its storage path. The next job that starts it goes on from there. Where it does
    not run, nothing is done.

    [bold]Example[/bold]: python jobs/stop.py --deployment shop
    """
    with cli.exit_codes(debug):
        settings = cli.settings(config, changes)
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
        cli.say(said)
        if as_json:
            cli.print_json(result)


def _ended(deployment: str, storage_path: str | None, ray_address: str | None) -> str | None:
    """The storage path of the deployment that was ended; empty where nothing was trained yet, None where none runs."""
    from ray_eraser.runtime.presence import may_run_here

    if ray_address == "local":
        raise InputError("a Ray of this job alone has nothing to stop: give the address of the one where the deployment runs")
    if ray_address is None and not may_run_here():
        return None

    from ray_eraser.runtime.client import connect
    from ray_eraser.runtime.session import find_ray

    if not find_ray(ray_address):
        return None
    try:
        client = connect(deployment)
    except DeploymentError:
        return None
    try:
        where = client.describe().storage_path
    except (HeldError, StaleEpochError):  # it stands by, while another one runs the deployment
        where = cli.place(storage_path, deployment)
    except DeploymentError:  # it has not been trained yet: what it does would have to be waited for
        client.abandon()
        return ""
    client.shutdown()
    return where


def _held_by(deployment: str, storage_path: str | None, ledger_url: str) -> list[str]:
    try:
        with cli.opened_ledger(cli.place(storage_path, deployment), deployment, ledger_url) as (_, ledger):
            return [str(holder) for holder in holders_of(ledger)]
    except (InputError, LedgerError):
        return []  # nothing is stored there


if __name__ == "__main__":
    cli.run(stop)
