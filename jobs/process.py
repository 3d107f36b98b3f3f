"""Carry out all requests that wait."""

from __future__ import annotations

from typing import Annotated, Any

import cli
import typer


def process(
    storage_path: cli.StorageOption = None,
    deployment: cli.DeploymentOption = "default",
    wait_seconds: Annotated[float, typer.Option("--timeout", help="Seconds to wait until nothing waits.")] = 7 * 86_400.0,
    config: cli.ConfigOption = None,
    changes: cli.SetOption = None,
    take_over: cli.TakeOverOption = False,
    ray_address: cli.RayOption = None,
    as_json: cli.JsonOption = False,
    debug: cli.DebugOption = False,
) -> None:
    """Have everything that waits carried out now, whatever the deployment's plan, and wait for its end.

    For a deployment that runs only while jobs do: it goes on with what an interrupted job left. Exits with 1 where requests are
    set aside for an operator; status.py shows why.

    [bold]Example[/bold]: python jobs/process.py --storage-path deployments/shop
    """
    with cli.exit_codes(debug):
        settings = cli.settings(config, changes)
        ledger = settings.unlearning.ledger
        with cli.deployed(deployment, storage_path, ledger, ray_address, take_over=take_over) as client:
            before = client.describe()
            cli.nothing_waits(client, wait_seconds)
            after = client.describe()
        result: dict[str, Any] = {
            "deployment": deployment,
            "finished": sum(after.requests[state] - before.requests[state] for state in ("erased", "done")),
            "set_aside": sorted(after.set_aside),
            "generation": after.generation,
        }
        cli.keep(after.storage_path, result)
        if as_json:
            cli.print_json(result)
        else:
            cli.print_table("carried out", {**result, "set_aside": ", ".join(result["set_aside"]) or "none"})
        if result["set_aside"]:
            raise typer.Exit(cli.FAILED)


if __name__ == "__main__":
    cli.run(process)
