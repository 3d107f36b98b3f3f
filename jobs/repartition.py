"""Have a deployment made from scratch on what remains, and swapped in while it goes on serving."""

from __future__ import annotations

from typing import Annotated

import cli
import typer

from ray_eraser.errors import InputError


def repartition(
    storage_path: cli.StorageOption = None,
    deployment: cli.DeploymentOption = "default",
    wait_seconds: Annotated[float, typer.Option("--timeout", help="Seconds to wait for the new generation.")] = 7 * 86_400.0,
    ledger: Annotated[
        str, typer.Option("--ledger", metavar="URL", help="The ledger, where it is not SQLite under the storage path.")
    ] = "",
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="A setting of the deployment to change; may be repeated."),
    ] = None,
    take_over: cli.TakeOverOption = False,
    ray_address: cli.RayOption = None,
    as_json: cli.JsonOption = False,
    debug: cli.DebugOption = False,
) -> None:
    """Divide and train everything from scratch on what remains, as a first training would, and let it take over as a whole.

    A learned partition remembers what was erased in where other interactions were put: this makes it forget that, too. With
    --set it is also the way to another number of shards, model or aggregation. What is served and asked meanwhile goes on.

    [bold]Example[/bold]: python jobs/repartition.py --storage-path deployments/shop --set partition.n_shards=20
    """
    with cli.exit_codes(debug):
        if any(change.startswith("unlearning.") for change in changes or []):
            raise InputError("unlearning.* says when requests are carried out and needs no new partition: give it to train.py")

        with cli.deployed(deployment, storage_path, ledger, ray_address, take_over=take_over) as client:
            before = client.describe()
            ticket = client.repartition(*(changes or []))
            cli.say(f"request {ticket.request_id} is {ticket.status()}; generation {before.generation} serves meanwhile")
            state = cli.carried_out(client, ticket, wait_seconds, now=True)
            after = client.describe()
        result = {
            "request_id": ticket.request_id,
            "state": str(state),
            "generation": after.generation,
            "digest": after.digest,
            "partition": after.partition,
            "guarantee": after.guarantee,
            "n_shards": len(after.shards),
            "shard_sizes": [shard.interactions for shard in after.shards],
            "n_interactions": after.n_interactions,
        }
        cli.keep(after.storage_path, cli.lasting(result))
        if as_json:
            cli.print_json(result)
        else:
            cli.print_table("new partition", result)


if __name__ == "__main__":
    cli.run(repartition)
