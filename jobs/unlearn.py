"""Have a user, an item or interactions forgotten, and get the receipt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import cli
import typer

from ray_eraser.unlearning.request import UnlearningRequest


def unlearn(
    user_id: cli.UserOption = None,
    item_id: cli.ItemOption = None,
    pairs: cli.PairsOption = None,
    storage_path: cli.StorageOption = None,
    deployment: cli.DeploymentOption = "default",
    key: Annotated[
        str | None,
        typer.Option("--idempotency-key", metavar="KEY", help="A submission repeated with the same key is the same request."),
    ] = None,
    receipt_file: Annotated[
        Path | None, typer.Option("--receipt", metavar="FILE.json", help="Write the receipt there, with its salt.")
    ] = None,
    wait_seconds: Annotated[float, typer.Option("--timeout", help="Seconds to wait for the receipt.")] = 3600.0,
    config: cli.ConfigOption = None,
    changes: cli.SetOption = None,
    ray_address: cli.RayOption = None,
    as_json: cli.JsonOption = False,
    debug: cli.DebugOption = False,
) -> None:
    """Remove a user, an item, or single interactions from everything that a deployment stores and serves.

    From the moment the request is accepted nothing that is served depends on the data; then the owning shards are trained
    anew from what remains, superseded files are deleted, and the receipt is printed.

    [bold]Example[/bold]: python jobs/unlearn.py --storage-path deployments/ml-1m --user-id 42 --receipt receipt.json
    """
    with cli.exit_codes(debug):
        settings = cli.settings(config, changes)
        request = UnlearningRequest(user_id, item_id, cli.read_pairs(pairs) if pairs is not None else None)

        from ray_eraser.runtime.session import session

        with session(ray_address) as ray_session:
            client = cli.attach(deployment, storage_path, settings.unlearning.ledger)
            ticket = client.unlearn(user_id=request.user_id, item_id=request.item_id, pairs=request.pairs, idempotency_key=key)
            cli.say(f"request {ticket.request_id} is {ticket.status()}; retraining what owned the data")
            receipt = ticket.wait(wait_seconds)
            state = str(ticket.status())
            if ray_session.local:
                client.shutdown()
        if receipt_file is not None:
            receipt_file.write_text(json.dumps({**receipt.to_dict(), "salt": ticket.salt}, indent=1) + "\n", "utf-8")
        result = {
            "request_id": receipt.request_id,
            "state": state,
            "guarantee": receipt.guarantee,
            "shards_touched": list(receipt.shards_touched),
            "pairs_erased": receipt.pairs_erased,
            "seconds": receipt.seconds,
            "generation": receipt.generation,
            "purged": list(receipt.purged),
            "commitment": receipt.commitment,
            "salt": ticket.salt,
        }
        if as_json:
            cli.print_json(result)
        else:
            cli.print_table("receipt", {**result, "purged": "\n".join(receipt.purged)})


if __name__ == "__main__":
    cli.run(unlearn)
