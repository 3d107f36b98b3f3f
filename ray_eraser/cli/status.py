"""Show where a deployment stands: shards and nodes, requests and deadlines, the next run, and what an operator must look at.

Asks the deployment that runs under this name, or else reads its storage path and says who runs it elsewhere. A running
deployment is not disturbed. No user and no item is shown. Only --retry starts the deployment where none runs.

Examples:
    ray-eraser status --deployment shop --watch 5
    ray-eraser status --storage-path deployments/shop --retry 5d0c...
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group
from rich.table import Table
from rich.text import Text

from ray_eraser.cli import inputs
from ray_eraser.cli.options import (
    ConfigOption,
    DeploymentOption,
    JsonOption,
    RayOption,
    SetOption,
    StorageOption,
    TakeOverOption,
)
from ray_eraser.cli.output import print_json, results, say, seconds
from ray_eraser.cli.reaching import deployed, place, running
from ray_eraser.ids import RequestId

if TYPE_CHECKING:
    from ray_eraser.runtime.client import Client
    from ray_eraser.status import Status

Row = Mapping[str, Any]
"""An unfinished erasure; see `status.pending`."""

_MOST_REQUESTS = 1000
_SHOWN_REQUESTS = 20
_ALARM_SECONDS = 60.0

_Retry = Annotated[
    str | None, typer.Option("--retry", metavar="REQUEST_ID", help="First have a request that was set aside tried again.")
]
_Watch = Annotated[
    float | None, typer.Option("--watch", min=0.1, metavar="SECONDS", help="Show it again and again, until interrupted.")
]


@dataclass(frozen=True)
class Shown:
    """A deployment at one moment, as it is shown.

    Attributes:
        status: of the deployment.
        running: whether it answers.
        processes: by role, the node of each process, and the node's address.
        pending: unfinished erasures, the oldest first.
        now: when it was looked at, in seconds since 1970.
        held_by: where it does not answer here, who may be running it elsewhere.
    """

    status: Status
    running: bool
    processes: Mapping[str, Mapping[str, str]]
    pending: Sequence[Row]
    now: float
    held_by: tuple[str, ...] = ()

    @property
    def alarms(self) -> tuple[str, ...]:
        """What an operator must look at now."""
        stuck = sum(row["state"] == "received" and self.now - row["received_at"] > _ALARM_SECONDS for row in self.pending)
        if not stuck:
            return ()
        way_out = (
            "see the coordinator's log" if self.running else "start the deployment" if not self.held_by else "see where it runs"
        )
        return (f"accepted more than {_ALARM_SECONDS:g} s ago, and not left out of what is served: {stuck} ({way_out})",)

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain JSON values."""
        fields = self.status.to_dict()
        del fields["nodes"]  # the processes say it
        return {
            "running": self.running,
            "held_by": list(self.held_by),
            "alarms": list(self.alarms),
            **fields,
            "processes": self.processes,
            "pending": self.pending,
        }


def status(
    *,
    storage_path: StorageOption = None,
    deployment: DeploymentOption = "default",
    retry: _Retry = None,
    watch: _Watch = None,
    config: ConfigOption = None,
    changes: SetOption = None,
    take_over: TakeOverOption = False,
    ray_address: RayOption = None,
    as_json: JsonOption = False,
) -> None:
    ledger = inputs.settings(config, changes).unlearning.ledger
    if retry is not None:
        _retry(RequestId(retry), deployed(deployment, storage_path, ledger, ray_address, take_over=take_over))
    client = running(deployment, storage_path, ray_address)
    while True:
        shown = _asked(client) if client is not None else _read(deployment, storage_path, ledger)
        if as_json:
            print_json(shown.to_dict())
        else:
            console = results()
            if watch is not None:
                console.clear()  # in a pipe it does nothing
            console.print(_tables(shown))
        if watch is None:
            return
        time.sleep(watch)


def _retry(request_id: RequestId, deployment: AbstractContextManager[Client]) -> None:
    with deployment as client:
        client.retry(request_id)
    say(f"request {request_id} is to be tried again, where the deployment runs or by ray-eraser process")


def _asked(client: Client) -> Shown:
    from ray_eraser.runtime.session import addresses

    described, known = client.describe(), addresses()
    places = {
        role: {"node": node, "address": known.get(node, "down")} for node, roles in described.nodes.items() for role in roles
    }
    return Shown(described, True, places, client.erasures(_MOST_REQUESTS), time.time())


def _read(deployment: str, storage_path: str | None, ledger_url: str) -> Shown:
    from ray_eraser.observer import Observer

    with Observer(deployment, place(storage_path, deployment), ledger_url) as observer:
        described, unfinished = observer.describe(), observer.erasures(_MOST_REQUESTS)
        held_by = tuple(str(holder) for holder in observer.holders())
    return Shown(described, False, {}, unfinished, time.time(), held_by)


def _tables(shown: Shown) -> Group:
    return Group(_summary(shown), _shards(shown), *_requests(shown, shown.now))


def _summary(shown: Shown) -> Table:
    status, costs = shown.status, shown.status.costs
    rows = {
        "storage path": status.storage_path,
        "serving": status.serving if shown.running else "nothing: it does not run here",
        "generation": f"{status.generation} ({status.digest[:16]}...)",
        "guarantee": status.guarantee,
        "chosen from the log": ", ".join(status.chosen) or "nothing",
        "partition": status.partition,
        "computed on": status.device,
        "learned from": f"{status.n_interactions:,} interactions, {status.n_users:,} users, {status.n_items:,} items",
        "requests": ", ".join(f"{count} {state}" for state, count in status.requests.items() if count) or "none yet",
        "plan": status.plan,
        "next run": _next_run(shown, shown.now),
        "oldest pending": seconds(status.oldest_pending_seconds) if shown.pending else "none",
        "overdue": str(status.overdue),
        "costs": f"{costs.shard_seconds:.2g} s a shard and {costs.seconds_per_interaction * 1e6:.3g} s a million "
        f"interactions, aggregation {costs.aggregation_seconds:.2g} s",
    }
    for number, holder in enumerate(shown.held_by, 1):
        rows["runs elsewhere" if number == 1 else f"runs elsewhere {number}"] = holder
    for number, alarm in enumerate(shown.alarms, 1):
        rows[f"alarm {number}"] = alarm
    if status.last_error:
        rows["last error"] = status.last_error
    for number, notice in enumerate(status.notices, 1):
        rows[f"notice {number}"] = notice
    table = Table(title=Text(f"deployment {status.deployment}"), title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in rows.items():
        bad = (name == "overdue" and status.overdue) or name == "last error" or name.startswith("alarm")
        table.add_row(name, Text(value, "red" if bad else ""))
    return table


def _next_run(shown: Shown, now: float) -> str:
    due_at = shown.status.due_at
    if due_at is None:
        return "nothing waits"
    when = "now" if due_at <= now else f"in {seconds(due_at - now)}"
    return f"{when if shown.running else 'once it runs'}, about {seconds(shown.status.predicted_seconds)} long"


def _shards(shown: Shown) -> Table:
    memory = ("GPU memory",) if shown.status.gpu_bytes else ()
    table = Table("shard", "interactions", "held out", "node", *memory, "", title="shards", title_justify="left")
    for shard in shown.status.shards:
        process = shown.processes.get(f"shard-{shard.shard}")
        where = "" if process is None else f"{process['address']} ({process['node'][:8]})"
        numbers = (str(shard.shard), f"{shard.interactions:,}", f"{shard.held_out:,}")
        held = shown.status.gpu_bytes.get(f"shard-{shard.shard}")
        gib = ("" if held is None else f"{held / 2**30:.2f} GiB",) if memory else ()
        table.add_row(*numbers, where, *gib, Text("left out, to be trained" if shard.excised else "", "yellow"))
    return table


def _requests(shown: Shown, now: float) -> list[Table]:
    tables = []
    if shown.pending:
        table = Table("request", "kind", "state", "waits since", "deadline", title="pending erasures", title_justify="left")
        for row in shown.pending[:_SHOWN_REQUESTS]:
            left = row["deadline_at"] - now
            deadline = Text(f"in {seconds(left)}") if left > 0 else Text(f"{seconds(-left)} ago", "red")
            table.add_row(row["request_id"], row["kind"], row["state"], seconds(now - row["received_at"]), deadline)
        if (more := len(shown.pending) - _SHOWN_REQUESTS) > 0:
            table.add_row(f"and {more} more (--json shows up to {_MOST_REQUESTS})")
        tables.append(table)
    if shown.status.set_aside:
        table = Table("request", "failed of", title="set aside: --retry REQUEST_ID", title_justify="left", title_style="red")
        for request_id, reason in shown.status.set_aside.items():
            table.add_row(request_id, Text(reason))
        tables.append(table)
    return tables
