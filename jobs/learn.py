"""Have a deployment learn from interactions that came after it was trained."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import cli
import typer

from ray_eraser.data.files import read_dataset
from ray_eraser.data.interactions import Interactions
from ray_eraser.status import Status


def learn(
    data: cli.DataOption,
    storage_path: cli.StorageOption = None,
    deployment: cli.DeploymentOption = "default",
    key: Annotated[
        str | None,
        typer.Option("--idempotency-key", metavar="KEY", help="A submission repeated with the same key is the same one."),
    ] = None,
    take_back: Annotated[
        bool,
        typer.Option(
            "--take-back", help="Learn also what was erased and must not be learned again (unlearning.suppress_days)."
        ),
    ] = False,
    now: cli.NowOption = False,
    wait_seconds: Annotated[float, typer.Option("--timeout", help="Seconds to wait until it is learned.")] = 3600.0,
    config: cli.ConfigOption = None,
    changes: cli.SetOption = None,
    take_over: cli.TakeOverOption = False,
    ray_address: cli.RayOption = None,
    as_json: cli.JsonOption = False,
    debug: cli.DebugOption = False,
) -> None:
    """Append interactions to what a deployment has learned from, and train the shards that they go to.

    All of --data is handed in, whatever split it comes with. Each interaction goes where a training on everything would put it:
    to the shard that the partition says, or out of the deployment where its data.test_share holds it out for a test. With a
    learned partition, it goes to the shard of its user or item, or to the one with the fewest interactions. Interactions that
    are known already are passed over. What is learned can be unlearned like everything else, also while it still waits.

    A log that still has what was erased brings it back. Where the deployment was trained with unlearning.suppress_days, that is
    left out, and --take-back learns it.

    [bold]Example[/bold]: python jobs/learn.py --storage-path deployments/shop --data today.csv
    """
    with cli.exit_codes(debug):
        settings = cli.settings(config, changes)
        whole = settings.data.model_copy(update={"test_share": 0.0, "valid_share": 0.0})
        log = read_dataset(data, whole, settings.seed)
        found = Interactions.union([log.train, log.valid, log.test])
        pairs = list(zip(log.users.raw(found.users), log.items.raw(found.items), strict=True))

        ledger = settings.unlearning.ledger
        with cli.deployed(deployment, storage_path, ledger, ray_address, take_over=take_over) as client:
            before = client.describe()
            ticket = client.learn(pairs, idempotency_key=key, take_back=take_back)
            cli.say(f"request {ticket.request_id} is {ticket.status()}; {len(pairs)} interactions in {data}")
            for line in _about_the_erased(ticket.suppressed, before, take_back=take_back):
                cli.say(f"notice: {line}")
            state = cli.carried_out(client, ticket, wait_seconds, now=now)
            described = client.describe()
        result = {
            "request_id": ticket.request_id,
            "state": str(state),
            "interactions_given": len(pairs),
            "suppressed": ticket.suppressed,
            "taken_back": take_back and ticket.suppressed > 0,
            "generation": described.generation,
            "digest": described.digest,
            "n_users": described.n_users,
            "n_items": described.n_items,
            "n_interactions": described.n_interactions,
        }
        cli.keep(described.storage_path, cli.lasting(result))
        if as_json:
            cli.print_json(result)
        else:
            cli.print_table("learned" if state.is_final else "accepted", result)


def _about_the_erased(suppressed: int, before: Status, *, take_back: bool) -> Iterator[str]:
    """What becomes of interactions that were erased before, for people."""
    if suppressed and take_back:
        yield f"{suppressed} of the interactions were erased before, and are taken back"
    elif suppressed:
        yield f"{suppressed} of the interactions were erased before, and are left out: --take-back learns them"
    elif before.requests["erased"] and not before.suppress_days:
        yield (
            f"this deployment remembers nothing of what it erased ({before.requests['erased']} requests so far): what the log "
            "still has of it is taken back. Take it out of the log, or set unlearning.suppress_days"
        )


if __name__ == "__main__":
    cli.run(learn)
