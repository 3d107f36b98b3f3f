"""Fetch the receipt of a request from the deployment that runs, or else from its ledger. Starts nothing.

The salt is handed out at acceptance alone. A file that ray-eraser unlearn --receipt began has it, and gets the receipt. Exits
with 1 while there is no receipt yet.

Examples:
    ray-eraser receipt --deployment shop --receipt alice.json
    ray-eraser receipt --deployment shop --request-id 5d0c... --receipt new.json
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ray_eraser.cli import inputs
from ray_eraser.cli.options import ConfigOption, DeploymentOption, ExistingRayOption, JsonOption, SetOption, StorageOption
from ray_eraser.cli.output import print_json, say
from ray_eraser.cli.program import FAILED
from ray_eraser.cli.reaching import reading
from ray_eraser.cli.receipts import STANDS, print_receipt, receipt_fields
from ray_eraser.errors import InputError
from ray_eraser.ids import RequestId

_Request = Annotated[
    str | None,
    typer.Option("--request-id", metavar="ID", help="The request, as ray-eraser unlearn named it. Default: that of --receipt."),
]
_File = Annotated[
    Path | None,
    typer.Option(
        "--receipt", metavar="FILE.json", help="Write the receipt there, or complete a file that ray-eraser unlearn began."
    ),
]


def receipt(
    *,
    request_id: _Request = None,
    file: _File = None,
    storage_path: StorageOption = None,
    deployment: DeploymentOption = "default",
    config: ConfigOption = None,
    changes: SetOption = None,
    ray_address: ExistingRayOption = None,
    as_json: JsonOption = False,
) -> None:
    from ray_eraser.unlearning.receipt_files import complete

    settings = inputs.settings(config, changes)
    asked = _asked(request_id, file)
    with reading(deployment, storage_path, settings.unlearning.ledger, ray_address) as seen:
        state, found = seen.status(asked), seen.receipt(asked)
    if found is None:
        kind = "it has no receipt" if state.is_final else "its receipt comes when the request has been carried out"
        say(f"request {asked} {STANDS[state]}: {kind}")
        if as_json:
            print_json({"request_id": asked, "state": str(state)})
        raise typer.Exit(FAILED)
    if file is not None:
        complete(file, found)
    result = receipt_fields(found, state)
    if as_json:
        print_json(result)
    else:
        print_receipt(result)


def _asked(request_id: str | None, file: Path | None) -> RequestId:
    """The request, after a look at whether its receipt can be written.

    Raises:
        InputError: no request is named, or the file is about something else.
    """
    from ray_eraser.unlearning.receipt_files import accepted_in, check_free

    begun = None if file is None else accepted_in(file)
    if file is not None and begun is None:
        check_free(file)
    if begun is None:
        if request_id is None:
            raise InputError("give --request-id ID, or --receipt FILE with the file that ray-eraser unlearn --receipt began")
        return RequestId(request_id)
    if request_id not in (None, begun.request_id):
        raise InputError(f"{file} is about request {begun.request_id}, and not about {request_id}: choose another name")
    return begun.request_id
