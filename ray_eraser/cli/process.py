"""Carry out everything that waits now, whatever the deployment's plan, and wait for its end.

For a deployment that runs only while a command does: this one goes on with the work that an interrupted command left. Exits
with 1 if requests are set aside for an operator; ray-eraser status shows why.

Examples:
    ray-eraser process --storage-path deployments/shop
"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ray_eraser.cli import inputs
from ray_eraser.cli.options import (
    ConfigOption,
    DeploymentOption,
    JsonOption,
    RayOption,
    SetOption,
    StorageOption,
    TakeOverOption,
)
from ray_eraser.cli.output import print_facts, print_json
from ray_eraser.cli.program import FAILED
from ray_eraser.cli.reaching import deployed
from ray_eraser.cli.submitted import keep
from ray_eraser.cli.waiting import nothing_waits

_Timeout = Annotated[float, typer.Option("--timeout", metavar="SECONDS", help="How long to wait until nothing waits.")]


def process(
    *,
    storage_path: StorageOption = None,
    deployment: DeploymentOption = "default",
    wait_seconds: _Timeout = 7 * 86_400.0,
    config: ConfigOption = None,
    changes: SetOption = None,
    take_over: TakeOverOption = False,
    ray_address: RayOption = None,
    as_json: JsonOption = False,
) -> None:
    ledger = inputs.settings(config, changes).unlearning.ledger
    with deployed(deployment, storage_path, ledger, ray_address, take_over=take_over) as client:
        before = client.describe()
        nothing_waits(client, wait_seconds)
        after = client.describe()
    result: dict[str, Any] = {
        "deployment": deployment,
        "finished": sum(after.requests[state] - before.requests[state] for state in ("erased", "done")),
        "set_aside": sorted(after.set_aside),
        "generation": after.generation,
    }
    keep("process", after.storage_path, result)
    if as_json:
        print_json(result)
    else:
        print_facts("carried out", result)
    if result["set_aside"]:
        raise typer.Exit(FAILED)
