"""`ray-eraser unlearn --requests`: hands in all requests of a file at once, and says what became of each."""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ray_eraser.cli.output import print_facts, print_json, say
from ray_eraser.cli.program import FAILED, say_when_stopped
from ray_eraser.cli.progress import TrainingProgress
from ray_eraser.cli.reaching import storage_of
from ray_eraser.cli.submitted import for_logs, keep, submission_id
from ray_eraser.cli.unlearn import HERE_AGAIN, Orders
from ray_eraser.cli.waiting import awaited
from ray_eraser.errors import InputError, RequestError, SetAsideError, WaitTimeoutError
from ray_eraser.unlearning.receipt_files import Accepted, accepted_in, check_free, complete, make
from ray_eraser.unlearning.request import Refusal, Submission
from ray_eraser.unlearning.request_files import RequestsRead

if TYPE_CHECKING:
    from ray_eraser.observer import Observer
    from ray_eraser.runtime.client import Client, Ticket
    from ray_eraser.unlearning.receipt import Receipt


def unlearn_many(asked: RequestsRead, orders: Orders, folder: Path | None, *, partial: bool, as_json: bool) -> None:
    """Hand in the requests, write their receipts into `folder` if one is given, and report.

    Run again with the same idempotency keys, it fetches the receipts that were not there before.
    """
    if folder is not None:
        _make_private(folder)  # before anything is accepted: the salts are given out once
    with orders.client(lambda observer: _check(observer, asked, partial=partial)) as client:
        accepted, refused = _submit(client, asked, partial=partial)
        if folder is not None:
            _keep_salts(folder, accepted, orders.deployment)
        again = "the same command fetches the receipts" if folder is not None else "ray-eraser receipt fetches each receipt"
        say_when_stopped(f"{len(accepted)} requests were accepted and are carried out wherever the deployment runs; {again}")
        say(f"{len(accepted)} requests accepted, {len(refused)} refused; retraining the shards that had the data")
        if orders.now:
            client.process_now()
        is_immediate = client.describe().plan == "immediate"
        finished = _receipts(
            client, [ticket for _, ticket in accepted], orders.wait_seconds if orders.now or is_immediate else 0.0
        )
        stored = storage_of(client)
    done = [(submission, ticket, receipt) for (submission, ticket), receipt in zip(accepted, finished, strict=True)]
    if folder is not None:
        _hand_out(folder, done)
    counts = {
        "rows": asked.rows,
        "accepted": len(accepted),
        "erased": len(finished) - finished.count(None),
        "pairs_absent": sum(ticket.pairs_absent or 0 for _, ticket in accepted),
    }
    fates = [_fate(*one) for one in done]
    back = [submission for submission, ticket, _ in done if ticket.here_again]
    keep("unlearn", stored, {**counts, "refused": [refusal.row for refusal in refused], "requests": fates})
    if as_json:
        rows = [{"row": refusal.row, "reason": for_logs(refusal.reason)} for refusal in refused]
        print_json({**counts, "refused": rows, "requests": fates})
    else:
        _print(counts, refused, back)
    if refused or back or None in finished:
        raise typer.Exit(FAILED)


def _check(observer: Observer, asked: RequestsRead, *, partial: bool) -> None:
    """Raise the error that the deployment would, if it is sure before Ray is started that nothing will be accepted.

    Requests with a key may repeat earlier ones, which are answered again.
    """
    new = [submission for submission in asked.submissions if submission.idempotency_key is None]
    errors = observer.refusals([submission.request for submission in new])
    if errors and not partial:
        first = min(errors)
        taken = "nothing was taken (with --partial the other rows are)"
        raise RequestError(f"row {new[first].row}: {errors[first].reason}; {taken}")


def _submit(client: Client, asked: RequestsRead, *, partial: bool) -> tuple[list[tuple[Submission, Ticket]], list[Refusal]]:
    """(accepted, refused): a request is refused for its row in the file alone, or by the deployment."""
    answers = client.unlearn_many(asked.submissions, partial=partial) if asked.submissions else ()
    both = list(zip(asked.submissions, answers, strict=True))
    accepted = [(submission, answer) for submission, answer in both if not isinstance(answer, Refusal)]
    refused = [*asked.refused, *(answer for answer in answers if isinstance(answer, Refusal))]
    return accepted, sorted(refused, key=lambda refusal: refusal.row or 0)


def _receipts(client: Client, tickets: Sequence[Ticket], wait_seconds: float) -> list[Receipt | None]:
    """The receipt of every request that is finished within so many seconds."""
    deadline = time.monotonic() + wait_seconds
    with TrainingProgress() as progress:
        for ticket in tickets:
            try:
                awaited(client, ticket, max(0.0, deadline - time.monotonic()), progress)
            except SetAsideError as error:
                say(str(error))
            except WaitTimeoutError:
                break
    return [ticket.receipt() for ticket in tickets]


def _fate(submission: Submission, ticket: Ticket, receipt: Receipt | None) -> dict[str, Any]:
    named = {"row": submission.row, "request_id": ticket.request_id, "kind": submission.request.kind}
    named["pairs_absent"] = ticket.pairs_absent
    if ticket.here_again:
        named["here_again"] = True
    if receipt is None:
        return named | {"erased": False}
    return named | {"erased": True, "pairs_erased": receipt.pairs_erased, "commitment": receipt.commitment}


def _print(counts: dict[str, int], refused: Sequence[Refusal], back: Sequence[Submission]) -> None:
    print_facts("requests", {**counts, "refused": len(refused)})
    for refusal in refused:
        sys.stdout.write(f"row {refusal.row}: {for_logs(refusal.reason)}\n")
    for submission in back:
        sys.stdout.write(f"row {submission.row}: was finished before, and {HERE_AGAIN}\n")


def _file(folder: Path, submission: Submission, ticket: Ticket) -> Path:
    return folder / f"row{submission.row}-{ticket.request_id}.json"


def _keep_salts(folder: Path, accepted: Sequence[tuple[Submission, Ticket]], deployment: str) -> None:
    for submission, ticket in accepted:
        if ticket.salt is None:
            continue  # an earlier run handed the request in, and its file has the salt
        try:
            make(_file(folder, submission, ticket), Accepted(ticket.request_id, ticket.salt, deployment).to_json())
        except InputError as error:
            kept = "" if submission_id() is not None else f"; keep its salt, {ticket.salt}"  # Ray keeps a job's output
            say(f"notice: {error}; request {ticket.request_id} was accepted and goes on{kept}")


def _hand_out(folder: Path, done: Sequence[tuple[Submission, Ticket, Receipt | None]]) -> None:
    """Put the receipts into the files that were made at acceptance, by this run or an earlier one."""
    for submission, ticket, receipt in done:
        file = _file(folder, submission, ticket)
        if receipt is not None and (not file.exists() or accepted_in(file) is not None):  # else the receipt is there
            complete(file, receipt)


def _make_private(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be made a folder ({error.strerror}): choose another") from error
    check_free(folder / f"{secrets.token_hex(4)}.json")
