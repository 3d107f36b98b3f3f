"""Have a user, an item or interactions forgotten, and get the receipt."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import cli
import typer

from ray_eraser.config import EraserConfig
from ray_eraser.errors import InputError, SetAsideError, WaitTimeoutError
from ray_eraser.unlearning.evidence import ReceiptFile
from ray_eraser.unlearning.receipt import Receipt
from ray_eraser.unlearning.request import Refusal, Submission, UnlearningRequest
from ray_eraser.unlearning.request_files import RequestsRead, read_requests

if TYPE_CHECKING:
    from ray_eraser.runtime.client import Client, Ticket


def unlearn(
    user_id: cli.UserOption = None,
    item_id: cli.ItemOption = None,
    pairs: cli.PairsOption = None,
    storage_path: cli.StorageOption = None,
    deployment: cli.DeploymentOption = "default",
    requests: Annotated[
        Path | None,
        typer.Option(
            "--requests",
            metavar="FILE",
            help="Many requests: CSV or TSV, also with .gz, or Parquet, with columns user_id, item_id, and if wanted "
            "idempotency_key and priority. All rows with both ids of one user make one request.",
        ),
    ] = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="With --requests: take what can be accepted, though other rows are at fault.")
    ] = False,
    receipts: Annotated[
        Path | None,
        typer.Option("--receipts", metavar="DIR", help="With --requests: write each receipt there, with its salt."),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option("--idempotency-key", metavar="KEY", help="A submission repeated with the same key is the same request."),
    ] = None,
    receipt_file: Annotated[
        Path | None, typer.Option("--receipt", metavar="FILE.json", help="Write the receipt there, with its salt.")
    ] = None,
    now: cli.NowOption = False,
    wait_seconds: Annotated[float, typer.Option("--timeout", help="Seconds to wait for the receipt.")] = 3600.0,
    config: cli.ConfigOption = None,
    changes: cli.SetOption = None,
    ray_address: cli.RayOption = None,
    as_json: cli.JsonOption = False,
    debug: cli.DebugOption = False,
) -> None:
    """Remove a user, an item, or single interactions from everything that a deployment stores and serves.

    From the moment the request is accepted nothing that is served depends on the data; then the owning shards are trained
    from scratch on what remains, superseded files are deleted, and the receipt is printed.

    [bold]Example[/bold]: python jobs/unlearn.py --storage-path deployments/ml-1m --user-id 42 --receipt receipt.json

    [bold]Example[/bold]: python jobs/unlearn.py --storage-path deployments/ml-1m --requests march.csv --receipts march
    """
    with cli.exit_codes(debug):
        settings = cli.settings(config, changes)
        if requests is not None:
            if any(one is not None for one in (user_id, item_id, pairs, key, receipt_file)):
                raise InputError(
                    "--requests says all itself: give no --user-id, --item-id, --pairs, --idempotency-key, --receipt"
                )
            place = deployment, storage_path, ray_address
            _unlearn_many(requests, settings, place, receipts, wait_seconds, partial=partial, now=now, as_json=as_json)
            return
        if partial or receipts is not None:
            raise InputError("--partial and --receipts are for --requests: give it, too")
        request = UnlearningRequest(user_id, item_id, cli.read_pairs(pairs) if pairs is not None else None)

        from ray_eraser.runtime.session import session

        if cli.submission_id() is not None and pairs is None:
            cli.say("notice: Ray keeps this job's command in its logs, and the id is in it; --requests FILE leaves it out")
        with session(ray_address) as ray_session:
            client = cli.attach(deployment, storage_path, settings.unlearning.ledger)
            ticket = client.unlearn(user_id=request.user_id, item_id=request.item_id, pairs=request.pairs, idempotency_key=key)
            cli.say(f"request {ticket.request_id} is {ticket.status()}; nothing that is served depends on the data")
            state = cli.carried_out(client, ticket, wait_seconds, now=now)
            receipt, stored = ticket.receipt(), cli.storage_of(client)
            if ray_session.local:
                client.shutdown()
        if receipt is None:
            waiting = {"request_id": ticket.request_id, "state": str(state)}
            cli.keep(stored, waiting)
            waiting["salt"] = ticket.salt
            if as_json:
                cli.print_json(waiting)
            else:
                cli.print_table("accepted: keep the salt, it is given out once", waiting)
            return
        if receipt_file is not None:
            _write_private(receipt_file, ReceiptFile.of(receipt, ticket.salt).to_json())
        result = {
            "request_id": receipt.request_id,
            "state": str(state),
            "guarantee": receipt.guarantee,
            "chosen": list(receipt.chosen),
            "shards_touched": list(receipt.shards_touched),
            "pairs_erased": receipt.pairs_erased,
            "seconds": receipt.seconds,
            "generation": receipt.generation,
            "purged": list(receipt.purged),
            "commitment": receipt.commitment,
            "number": receipt.number,
            "digest": receipt.digest(),
            "key_id": receipt.key_id,
            "signature": receipt.signature,
        }
        cli.keep(stored, result)
        result["salt"] = ticket.salt
        if as_json:
            cli.print_json(result)
        else:
            cli.print_table("receipt", {**result, "purged": "\n".join(receipt.purged)})


def _unlearn_many(
    file: Path,
    settings: EraserConfig,
    place: tuple[str, str | None, str | None],
    folder: Path | None,
    wait_seconds: float,
    *,
    partial: bool,
    now: bool,
    as_json: bool,
) -> None:
    """Hand in all requests of a file at once, and say what became of each."""
    asked = read_requests(file, limit=settings.unlearning.max_pending, partial=partial)
    if folder is not None:
        _make_private(folder)  # before anything is accepted: the salts are given out once
    deployment, storage_path, ray_address = place

    from ray_eraser.runtime.session import session

    with session(ray_address) as ray_session:
        client = cli.attach(deployment, storage_path, settings.unlearning.ledger)
        accepted, refused = _submit(client, asked, partial=partial)
        if folder is not None:
            _put_salts_aside(folder, accepted)
        cli.say(f"{len(accepted)} requests accepted, {len(refused)} refused; retraining what owned the data")
        if now:
            client.process_now()
        finished = _receipts(client, [ticket for _, ticket in accepted], wait_seconds if now or _is_immediate(client) else 0.0)
        stored = cli.storage_of(client)
        if ray_session.local:
            client.shutdown()
    done = [(submission, ticket, receipt) for (submission, ticket), receipt in zip(accepted, finished, strict=True)]
    if folder is not None:
        _hand_out(folder, done)
    counts = {"rows": asked.rows, "accepted": len(accepted), "erased": len(finished) - finished.count(None)}
    fates = [_fate(*one) for one in done]
    cli.keep(stored, {**counts, "refused": [refusal.row for refusal in refused], "requests": fates})
    if as_json:
        rows = [{"row": refusal.row, "reason": cli.for_logs(refusal.reason)} for refusal in refused]
        cli.print_json({**counts, "refused": rows, "requests": fates})
    else:
        cli.print_table("requests", {**counts, "refused": len(refused)})
        for refusal in refused:
            print(f"row {refusal.row}: {cli.for_logs(refusal.reason)}")
    if refused or None in finished:
        raise typer.Exit(cli.FAILED)


def _submit(client: Client, asked: RequestsRead, *, partial: bool) -> tuple[list[tuple[Submission, Ticket]], list[Refusal]]:
    """(what was accepted, what was not: by the file's rows alone, or by the deployment)."""
    answers = client.unlearn_many(asked.submissions, partial=partial) if asked.submissions else ()
    both = list(zip(asked.submissions, answers, strict=True))
    accepted = [(submission, answer) for submission, answer in both if not isinstance(answer, Refusal)]
    refused = [*asked.refused, *(answer for answer in answers if isinstance(answer, Refusal))]
    return accepted, sorted(refused, key=lambda refusal: refusal.row or 0)


def _fate(submission: Submission, ticket: Ticket, receipt: Receipt | None) -> dict[str, Any]:
    named = {"row": submission.row, "request_id": ticket.request_id, "kind": submission.request.kind}
    if receipt is None:
        return named | {"erased": False}
    return named | {"erased": True, "pairs_erased": receipt.pairs_erased, "commitment": receipt.commitment}


def _is_immediate(client: Client) -> bool:
    return client.describe().plan == "immediate"


def _receipts(client: Client, tickets: Sequence[Ticket], wait_seconds: float) -> list[Receipt | None]:
    """Of every request that is finished within so many seconds."""
    deadline = time.monotonic() + wait_seconds
    with cli.TrainingProgress() as progress:
        for ticket in tickets:
            try:
                cli.awaited(client, ticket, max(0.0, deadline - time.monotonic()), progress)
            except SetAsideError as error:
                cli.say(str(error))
            except WaitTimeoutError:
                break
    return [ticket.receipt() for ticket in tickets]


def _files(folder: Path, submission: Submission, ticket: Ticket) -> tuple[Path, Path]:
    """(where the receipt goes, where the salt is until there is a receipt to put it into)."""
    stem = f"row{submission.row}-{ticket.request_id}"
    return folder / f"{stem}.json", folder / f"{stem}.pending.json"


def _put_salts_aside(folder: Path, accepted: Sequence[tuple[Submission, Ticket]]) -> None:
    for submission, ticket in accepted:
        if ticket.salt is not None:  # else it was handed in before, and its salt given out then
            _, pending = _files(folder, submission, ticket)
            _write_private(pending, json.dumps({"request_id": ticket.request_id, "salt": ticket.salt}) + "\n")


def _hand_out(folder: Path, done: Sequence[tuple[Submission, Ticket, Receipt | None]]) -> None:
    """Write the receipts with their salts, which were put aside when the requests were accepted, now or by an earlier run."""
    for submission, ticket, receipt in done:
        file, pending = _files(folder, submission, ticket)
        if receipt is not None and pending.exists():
            _write_private(file, ReceiptFile.of(receipt, json.loads(pending.read_text("utf-8"))["salt"]).to_json())
            pending.unlink()
        elif receipt is not None and not file.exists():  # one that is there has the salt
            _write_private(file, ReceiptFile.of(receipt, None).to_json())


def _make_private(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be made a folder ({error.strerror}): choose another") from error


def _write_private(file: Path, text: str) -> None:
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(text)
    except OSError as error:
        raise InputError(f"{file} cannot be written ({error.strerror}): choose another folder") from error


if __name__ == "__main__":
    cli.run(unlearn)
