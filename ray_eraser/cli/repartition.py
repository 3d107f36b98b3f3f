"""Divide and train everything from scratch on what remains, as a first training would, and serve the result as a whole.

A learned partition shows traces of erased interactions in where it put others; a new partition has none. With --set, this is
also the way to another number of shards, model or aggregation. The deployment goes on serving and accepting requests meanwhile.

Examples:
    ray-eraser repartition --storage-path deployments/shop --set partition.n_shards=20
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ray_eraser.cli.options import DeploymentOption, JsonOption, RayOption, StorageOption, TakeOverOption
from ray_eraser.cli.output import print_facts, print_json, say
from ray_eraser.cli.reaching import deployed, opened_ledger, place
from ray_eraser.cli.submitted import keep, lasting
from ray_eraser.cli.waiting import carried_out
from ray_eraser.errors import InputError

if TYPE_CHECKING:
    from ray_eraser.observer import Observer

_Timeout = Annotated[float, typer.Option("--timeout", metavar="SECONDS", help="How long to wait for the new generation.")]
_Ledger = Annotated[
    str, typer.Option("--ledger", metavar="URL", help="The ledger, if it is not SQLite under the storage path.")
]
_Changes = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="A setting of the deployment to change. Repeatable."),
]


def repartition(
    *,
    storage_path: StorageOption = None,
    deployment: DeploymentOption = "default",
    wait_seconds: _Timeout = 7 * 86_400.0,
    ledger: _Ledger = "",
    changes: _Changes = None,
    take_over: TakeOverOption = False,
    ray_address: RayOption = None,
    as_json: JsonOption = False,
) -> None:
    if any(change.startswith("unlearning.") for change in changes or []):
        raise InputError(
            "unlearning.* says when requests are carried out and needs no new partition: give it to ray-eraser train"
        )

    def check(_: Observer) -> None:
        from ray_eraser.opening import settings_with

        with opened_ledger(place(storage_path, deployment), deployment, ledger) as (store, opened):
            if (published := opened.current()) is not None:
                settings_with(opened, store.read_manifest(published.digest).config, changes or [])

    with deployed(deployment, storage_path, ledger, ray_address, take_over=take_over, check=check) as client:
        before = client.describe()
        ticket = client.repartition(*(changes or []))
        say(f"request {ticket.request_id} is accepted; generation {before.generation} serves meanwhile")
        state = carried_out(client, ticket, wait_seconds, now=True)
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
    keep("repartition", after.storage_path, lasting(result))
    if as_json:
        print_json(result)
    else:
        print_facts("new partition", result)
