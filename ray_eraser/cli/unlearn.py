"""Remove a user, an item, or single interactions from everything that a deployment stores and serves.

From the moment the request is accepted, nothing that is served depends on the data. Then the shards that had it are trained
from scratch on what remains, old files are deleted, and the receipt is printed.

Pairs that are not stored, such as those held out for a test, are passed over and counted (pairs_absent). A request of which
nothing is stored is refused.

The salt that opens a receipt is given out once, at acceptance. With --receipt FILE it is in FILE from then on, whatever happens
to this command, and ray-eraser receipt adds a receipt that comes later. No file is overwritten.

Examples:
    ray-eraser unlearn --storage-path deployments/ml-1m --user-id 42 --receipt receipt.json
    ray-eraser unlearn --storage-path deployments/ml-1m --requests march.csv --receipts march
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ray_eraser.cli import inputs
from ray_eraser.cli.options import (
    ConfigOption,
    DeploymentOption,
    IdempotencyOption,
    ItemOption,
    JsonOption,
    NowOption,
    PairsOption,
    RayOption,
    SetOption,
    StorageOption,
    TakeOverOption,
    UserOption,
)
from ray_eraser.cli.output import print_facts, print_json, say
from ray_eraser.cli.program import FAILED, say_when_stopped
from ray_eraser.cli.reaching import deployed, storage_of, where_to_ask
from ray_eraser.cli.receipts import print_receipt, receipt_fields
from ray_eraser.cli.submitted import keep, submission_id
from ray_eraser.cli.waiting import carried_out
from ray_eraser.errors import InputError, RayEraserError

if TYPE_CHECKING:
    from ray_eraser.observer import Observer
    from ray_eraser.runtime.client import Client, Ticket
    from ray_eraser.unlearning.request import UnlearningRequest

_Requests = Annotated[
    Path | None,
    typer.Option(
        "--requests",
        metavar="FILE",
        help="Many requests: CSV or TSV, also with .gz, or Parquet, with columns user_id, item_id, and if wanted "
        "idempotency_key and priority. All rows with both ids of one user make one request.",
    ),
]
_Partial = Annotated[
    bool, typer.Option("--partial", help="With --requests: take what can be accepted, though other rows are at fault.")
]
_Receipts = Annotated[
    Path | None,
    typer.Option("--receipts", metavar="DIR", help="With --requests: write each receipt there, with its salt."),
]
_Receipt = Annotated[
    Path | None,
    typer.Option(
        "--receipt",
        metavar="FILE.json",
        help="A new file for the receipt. The salt is written at acceptance, and the receipt when it is there.",
    ),
]
_Timeout = Annotated[float, typer.Option("--timeout", metavar="SECONDS", help="How long to wait for the receipt.")]

HERE_AGAIN = "its data was learned again since: hand it in under a new idempotency key"


@dataclass(frozen=True)
class Orders:
    """How to reach the deployment, and how long to wait."""

    deployment: str
    storage_path: str | None
    ledger_url: str
    ray_address: str | None
    take_over: bool
    now: bool
    wait_seconds: float

    def client(self, check: Callable[[Observer], object]) -> AbstractContextManager[Client]:
        """The deployment, started if it does not run and a look at its files finds no mistake."""
        where = (self.deployment, self.storage_path, self.ledger_url, self.ray_address)
        return deployed(*where, take_over=self.take_over, check=check)

    def later(self, request_id: str, file: Path | None) -> str:
        """Say how to get a receipt that is not there yet."""
        where = where_to_ask(self.deployment, self.storage_path)
        into = "" if file is None else f" --receipt {shlex.quote(str(file))}"
        words = ["ray-eraser receipt", where, f"--request-id {request_id}{into}"]
        return (
            f"request {request_id} was accepted and is carried out where the deployment runs, or by ray-eraser process; its "
            f"receipt, later: {' '.join(filter(None, words))}"
        )


def unlearn(
    *,
    user_id: UserOption = None,
    item_id: ItemOption = None,
    pairs: PairsOption = None,
    storage_path: StorageOption = None,
    deployment: DeploymentOption = "default",
    requests: _Requests = None,
    partial: _Partial = False,
    receipts: _Receipts = None,
    key: IdempotencyOption = None,
    receipt_file: _Receipt = None,
    now: NowOption = False,
    wait_seconds: _Timeout = 3600.0,
    config: ConfigOption = None,
    changes: SetOption = None,
    take_over: TakeOverOption = False,
    ray_address: RayOption = None,
    as_json: JsonOption = False,
) -> None:
    settings = inputs.settings(config, changes)
    orders = Orders(deployment, storage_path, settings.unlearning.ledger, ray_address, take_over, now, wait_seconds)
    if requests is not None:
        if any(one is not None for one in (user_id, item_id, pairs, key, receipt_file)):
            raise InputError("--requests says all itself: give no --user-id, --item-id, --pairs, --idempotency-key, --receipt")
        from ray_eraser.cli.unlearning_many import unlearn_many
        from ray_eraser.unlearning.request_files import read_requests

        asked = read_requests(requests, limit=settings.unlearning.max_pending, partial=partial)
        unlearn_many(asked, orders, receipts, partial=partial, as_json=as_json)
        return
    if partial or receipts is not None:
        raise InputError("--partial and --receipts are for --requests: give it, too")
    if sum(one is not None for one in (user_id, item_id, pairs)) != 1:
        raise InputError("give one of --user-id, --item-id, --pairs and --requests")
    from ray_eraser.unlearning.receipt_files import check_free
    from ray_eraser.unlearning.request import UnlearningRequest

    request = UnlearningRequest(user_id, item_id, inputs.read_pairs(pairs) if pairs is not None else None)
    if receipt_file is not None:
        check_free(receipt_file)
    if submission_id() is not None and pairs is None:
        say("notice: Ray keeps this job's command in its logs, and the id is in it; --requests FILE leaves it out")
    _unlearn_one(request, key, orders, receipt_file, as_json=as_json)


def _unlearn_one(request: UnlearningRequest, key: str | None, orders: Orders, file: Path | None, *, as_json: bool) -> None:
    """Hand in one request, keep its salt, and wait for the receipt."""

    def check(observer: Observer) -> None:
        if key is None:  # else an earlier request under this key may have erased the data, and is answered again
            for error in observer.refusals([request]).values():
                raise error

    with orders.client(check) as client:
        ticket = client.unlearn(user_id=request.user_id, item_id=request.item_id, pairs=request.pairs, idempotency_key=key)
        later = orders.later(ticket.request_id, file)
        say_when_stopped(later)
        kept = _keep_salt(ticket, file, orders.deployment)
        _say_accepted(ticket)
        try:
            state = carried_out(client, ticket, orders.wait_seconds, now=orders.now)
        except RayEraserError:
            say(later)
            raise
        receipt, stored = ticket.receipt(), storage_of(client)
    if receipt is None:
        say(later)
        waiting = {"request_id": ticket.request_id, "state": str(state), "pairs_absent": ticket.pairs_absent}
        _report_waiting(waiting, ticket, stored, kept=kept, as_json=as_json)
        return
    if file is not None:
        from ray_eraser.unlearning.receipt_files import complete

        complete(file, receipt, ticket.salt)
    result = receipt_fields(receipt, state) | {"pairs_absent": ticket.pairs_absent}
    keep("unlearn", stored, result)
    result |= {"salt": _shown_salt(ticket), "here_again": ticket.here_again}
    if as_json:
        print_json(result)
    else:
        print_receipt(result)
    if ticket.here_again:
        raise typer.Exit(FAILED)


def _say_accepted(ticket: Ticket) -> None:
    if ticket.here_again:
        say(f"notice: request {ticket.request_id} was finished before, and {HERE_AGAIN}")
    else:
        say(f"request {ticket.request_id} is accepted; nothing that is served depends on the data")
    if ticket.pairs_absent:
        say(f"notice: {ticket.pairs_absent:,} of the pairs are not stored (never learned, or held out for a test)")


def _report_waiting(waiting: dict[str, Any], ticket: Ticket, stored: str, *, kept: bool, as_json: bool) -> None:
    keep("unlearn", stored, waiting)
    waiting["salt"] = _shown_salt(ticket)
    if as_json:
        print_json(waiting)
    else:
        known = {name: value for name, value in waiting.items() if value is not None}  # a repeated submission lacks some
        to_be_kept = not kept and _shown_salt(ticket) is not None
        print_facts("accepted: keep the salt, it is given out once" if to_be_kept else "accepted", known)


def _shown_salt(ticket: Ticket) -> str | None:
    """The salt, unless Ray keeps what is printed: with it and the receipt, anyone can test a guess of the id."""
    return ticket.salt if submission_id() is None else None


def _keep_salt(ticket: Ticket, file: Path | None, deployment: str) -> bool:
    """Write the salt down at once: the deployment does not give it out a second time."""
    from ray_eraser.unlearning.receipt_files import Accepted, make

    if (salt := _shown_salt(ticket)) is not None:
        say(f"request {ticket.request_id}, salt {salt}")
    elif ticket.salt is not None and file is None:
        say("notice: Ray keeps a submitted job's output, so the salt is not shown; --receipt FILE keeps it")
    if file is None:
        return False
    try:
        make(file, Accepted(ticket.request_id, ticket.salt, deployment).to_json())
    except InputError as error:
        say(f"notice: {error}; the request was accepted and goes on")
        return False
    return True
