"""Fetch the receipt of a request that was accepted before."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import cli
import typer

from ray_eraser.errors import InputError
from ray_eraser.ids import RequestId
from ray_eraser.unlearning.receipt_files import accepted_in, check_free, complete


def receipt(
    request_id: Annotated[
        str | None,
        typer.Option(
            "--request-id", metavar="ID", help="The request, as unlearn.py named it. Without it: the one in --receipt."
        ),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            "--receipt", metavar="FILE.json", help="Write the receipt there, or complete what unlearn.py --receipt began there."
        ),
    ] = None,
    storage_path: cli.StorageOption = None,
    deployment: cli.DeploymentOption = "default",
    config: cli.ConfigOption = None,
    changes: cli.SetOption = None,
    ray_address: cli.ExistingRayOption = None,
    as_json: cli.JsonOption = False,
    debug: cli.DebugOption = False,
) -> None:
    """Ask the deployment that runs under this name for a receipt; where none runs, read its ledger. Starts nothing.

    The salt is handed out at acceptance alone. A file that unlearn.py --receipt began has it, and gets the receipt. Exits
    with 1 while there is no receipt yet.

    [bold]Example[/bold]: python jobs/receipt.py --deployment shop --request-id 5d0c... --receipt alice.json
    """
    with cli.exit_codes(debug):
        settings = cli.settings(config, changes)
        asked = _asked(request_id, file)
        with cli.reading(deployment, storage_path, settings.unlearning.ledger, ray_address) as seen:
            state, found = seen.status(asked), seen.receipt(asked)
        if found is None:
            kind = "its receipt comes when it has been carried out" if not state.is_final else "it has no receipt"
            cli.say(f"request {asked} is {state}: {kind}")
            if as_json:
                cli.print_json({"request_id": asked, "state": str(state)})
            raise typer.Exit(cli.FAILED)
        if file is not None:
            complete(file, found)
        result = cli.receipt_fields(found, state)
        if as_json:
            cli.print_json(result)
        else:
            cli.print_table("receipt", {**result, "purged": "\n".join(found.purged)})


def _asked(request_id: str | None, file: Path | None) -> RequestId:
    """The request, after a look at whether its receipt can be written.

    Raises:
        InputError: no request is named, or the file is about something else.
    """
    begun = None if file is None else accepted_in(file)
    if file is not None and begun is None:
        check_free(file)
    if begun is None:
        if request_id is None:
            raise InputError("give --request-id ID, or --receipt FILE with the file that unlearn.py --receipt began")
        return RequestId(request_id)
    if request_id not in (None, begun.request_id):
        raise InputError(f"{file} is about request {begun.request_id}, and not about {request_id}: choose another name")
    return begun.request_id


if __name__ == "__main__":
    cli.run(receipt)
