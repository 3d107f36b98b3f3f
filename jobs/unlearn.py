"""Have a user, an item or interactions forgotten, and get the receipt."""

from __future__ import annotations

import json
import os
import secrets
import shlex
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import cli
import typer

from ray_eraser.errors import InputError, RayEraserError, SetAsideError, WaitTimeoutError
from ray_eraser.unlearning.evidence import ReceiptFile
from ray_eraser.unlearning.receipt import Receipt
from ray_eraser.unlearning.receipt_files import Accepted, check_free, complete, make
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
        Path | None,
        typer.Option(
            "--receipt",
            metavar="FILE.json",
            help="A file to be made: the salt is written there at acceptance, and the receipt when it is there.",
        ),
    ] = None,
    now: cli.NowOption = False,
    wait_seconds: Annotated[float, typer.Option("--timeout", help="Seconds to wait for the receipt.")] = 3600.0,
    config: cli.ConfigOption = None,
    changes: cli.SetOption = None,
    take_over: cli.TakeOverOption = False,
    ray_address: cli.RayOption = None,
    as_json: cli.JsonOption = False,
    debug: cli.DebugOption = False,
) -> None:
    """Remove a user, an item, or single interactions from everything that a deployment stores and serves.

    From the moment the request is accepted nothing that is served depends on the data; then the owning shards are trained
    from scratch on what remains, superseded files are deleted, and the receipt is printed.

    The salt that opens a receipt is given out once, at acceptance: with --receipt FILE it is in FILE from then on, whatever
    becomes of this job, and receipt.py puts a receipt there that came later. No file is written over.

    [bold]Example[/bold]: python jobs/unlearn.py --storage-path deployments/ml-1m --user-id 42 --receipt receipt.json

    [bold]Example[/bold]: python jobs/unlearn.py --storage-path deployments/ml-1m --requests march.csv --receipts march
    """
    with cli.exit_codes(debug):
        settings = cli.settings(config, changes)
        orders = _Orders(deployment, storage_path, settings.unlearning.ledger, ray_address, take_over, now, wait_seconds)
        if requests is not None:
            if any(one is not None for one in (user_id, item_id, pairs, key, receipt_file)):
                raise InputError(
                    "--requests says all itself: give no --user-id, --item-id, --pairs, --idempotency-key, --receipt"
                )
            limit = settings.unlearning.max_pending
            _unlearn_many(
                read_requests(requests, limit=limit, partial=partial), orders, receipts, partial=partial, as_json=as_json
            )
            return
        if partial or receipts is not None:
            raise InputError("--partial and --receipts are for --requests: give it, too")
        request = UnlearningRequest(user_id, item_id, cli.read_pairs(pairs) if pairs is not None else None)
        if receipt_file is not None:
            check_free(receipt_file)
        if cli.submission_id() is not None and pairs is None:
            cli.say("notice: Ray keeps this job's command in its logs, and the id is in it; --requests FILE leaves it out")
        _unlearn_one(request, key, orders, receipt_file, as_json=as_json)


_HERE_AGAIN = "its data was learned again since: hand it in under a new idempotency key"


@dataclass(frozen=True)
class _Orders:
    """Whom to ask, and how long to wait."""

    deployment: str
    storage_path: str | None
    ledger_url: str
    ray_address: str | None
    take_over: bool
    now: bool
    wait_seconds: float

    def client(self) -> AbstractContextManager[Client]:
        return cli.deployed(self.deployment, self.storage_path, self.ledger_url, self.ray_address, take_over=self.take_over)

    def later(self, request_id: str, file: Path | None) -> str:
        """How to get a receipt that is not there yet."""
        where = cli.where_to_ask(self.deployment, self.storage_path)
        into = "" if file is None else f" --receipt {shlex.quote(str(file))}"
        words = ["python jobs/receipt.py", where, f"--request-id {request_id}{into}"]
        return (
            f"request {request_id} was accepted and is carried out where the deployment runs, or by process.py; its receipt, "
            f"later: {' '.join(filter(None, words))}"
        )


def _unlearn_one(request: UnlearningRequest, key: str | None, orders: _Orders, file: Path | None, *, as_json: bool) -> None:
    """Hand in one request, keep what is handed out once, and wait for the receipt."""
    with orders.client() as client:
        ticket = client.unlearn(user_id=request.user_id, item_id=request.item_id, pairs=request.pairs, idempotency_key=key)
        later = orders.later(ticket.request_id, file)
        cli.say_when_stopped(later)
        kept = _keep_salt(ticket, file, orders.deployment)
        if ticket.here_again:
            cli.say(f"notice: request {ticket.request_id} was finished before, and {_HERE_AGAIN}")
        else:
            cli.say(f"request {ticket.request_id} is {ticket.status()}; nothing that is served depends on the data")
        try:
            state = cli.carried_out(client, ticket, orders.wait_seconds, now=orders.now)
        except RayEraserError:
            cli.say(later)
            raise
        receipt, stored = ticket.receipt(), cli.storage_of(client)
    if receipt is None:
        waiting: dict[str, Any] = {"request_id": ticket.request_id, "state": str(state)}
        cli.keep(stored, waiting)
        waiting["salt"] = ticket.salt
        cli.say(later)
        if as_json:
            cli.print_json(waiting)
        else:
            cli.print_table("accepted" if kept else "accepted: keep the salt, it is given out once", waiting)
        return
    if file is not None:
        complete(file, receipt, ticket.salt)
    result = cli.receipt_fields(receipt, state)
    cli.keep(stored, result)
    result |= {"salt": ticket.salt, "here_again": ticket.here_again}
    if as_json:
        cli.print_json(result)
    else:
        cli.print_table("receipt", {**result, "purged": "\n".join(receipt.purged)})
    if ticket.here_again:
        raise typer.Exit(cli.FAILED)


def _keep_salt(ticket: Ticket, file: Path | None, deployment: str) -> bool:
    """Write the salt down at once: whatever comes between now and the receipt, the system gives it out no second time."""
    if ticket.salt is not None and cli.submission_id() is None:  # Ray keeps what a submitted job says
        cli.say(f"request {ticket.request_id}, salt {ticket.salt}")
    if file is None:
        return False
    try:
        make(file, Accepted(ticket.request_id, ticket.salt, deployment).to_json())
    except InputError as error:
        cli.say(f"notice: {error}; the request was accepted and goes on")
        return False
    return True


def _unlearn_many(asked: RequestsRead, orders: _Orders, folder: Path | None, *, partial: bool, as_json: bool) -> None:
    """Hand in all requests of a file at once, and say what became of each."""
    if folder is not None:
        _make_private(folder)  # before anything is accepted: the salts are given out once
    with orders.client() as client:
        accepted, refused = _submit(client, asked, partial=partial)
        if folder is not None:
            _put_salts_aside(folder, accepted)
        again = "the same command fetches the receipts" if folder is not None else "receipt.py fetches each receipt"
        cli.say_when_stopped(
            f"{len(accepted)} requests were accepted and are carried out wherever the deployment runs; {again}"
        )
        cli.say(f"{len(accepted)} requests accepted, {len(refused)} refused; retraining what owned the data")
        if orders.now:
            client.process_now()
        seconds = orders.wait_seconds if orders.now or _is_immediate(client) else 0.0
        finished = _receipts(client, [ticket for _, ticket in accepted], seconds)
        stored = cli.storage_of(client)
    done = [(submission, ticket, receipt) for (submission, ticket), receipt in zip(accepted, finished, strict=True)]
    if folder is not None:
        _hand_out(folder, done)
    counts = {"rows": asked.rows, "accepted": len(accepted), "erased": len(finished) - finished.count(None)}
    fates = [_fate(*one) for one in done]
    back = [one for one in done if one[1].here_again]
    cli.keep(stored, {**counts, "refused": [refusal.row for refusal in refused], "requests": fates})
    if as_json:
        rows = [{"row": refusal.row, "reason": cli.for_logs(refusal.reason)} for refusal in refused]
        cli.print_json({**counts, "refused": rows, "requests": fates})
    else:
        cli.print_table("requests", {**counts, "refused": len(refused)})
        for refusal in refused:
            print(f"row {refusal.row}: {cli.for_logs(refusal.reason)}")
        for submission, _, _ in back:
            print(f"row {submission.row}: was finished before, and {_HERE_AGAIN}")
    if refused or back or None in finished:
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
    if ticket.here_again:
        named["here_again"] = True
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
    check_free(folder / f"{secrets.token_hex(4)}.json")


def _write_private(file: Path, text: str) -> None:
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(text)
    except OSError as error:
        raise InputError(f"{file} cannot be written ({error.strerror}): choose another folder") from error


if __name__ == "__main__":
    cli.run(unlearn)
