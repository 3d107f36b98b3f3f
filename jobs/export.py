"""Write the record of a period's requests, for the supervisors of a deployment."""

from __future__ import annotations

import json
import math
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Annotated

import cli
import typer

from ray_eraser.errors import InputError
from ray_eraser.unlearning.record import RecordRow, to_csv


def export(
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE.json|FILE.csv", help="Where to write it; the ending says in which form.")
    ],
    since: Annotated[
        str | None, typer.Option("--since", metavar="YYYY-MM-DD", help="The first day, UTC. Without it: from the beginning.")
    ] = None,
    until: Annotated[
        str | None, typer.Option("--until", metavar="YYYY-MM-DD", help="The last day, itself included. Without it: to now.")
    ] = None,
    storage_path: cli.StorageOption = None,
    deployment: cli.DeploymentOption = "default",
    config: cli.ConfigOption = None,
    changes: cli.SetOption = None,
    as_json: cli.JsonOption = False,
    debug: cli.DebugOption = False,
) -> None:
    """Write one row for each request received in a period, finished or not: its state and times. Rows of finished requests also
    have the guarantee, the generation, and the receipt's number, digest and signature. No user, no item and no salt is in it.

    The record has the numbers and digests of the receipts. So it shows later whether one of them was altered or left out.

    [bold]Example[/bold]: python jobs/export.py --deployment shop --since 2026-01-01 --until 2026-03-31 --out q1.csv
    """
    with cli.exit_codes(debug):
        if out.suffix not in (".json", ".csv"):
            raise InputError(f"--out {out}: name a .json or a .csv file")
        begin = -math.inf if since is None else _midnight("--since", since)
        end = math.inf if until is None else _midnight("--until", until) + 86400
        if begin >= end:
            raise InputError(f"--since {since} is after --until {until}: give a period")
        settings = cli.settings(config, changes)
        with cli.opened_ledger(cli.place(storage_path, deployment), deployment, settings.unlearning.ledger) as (store, ledger):
            rows = [RecordRow.of(row) for row in ledger.record(begin, end)]
        period = {"deployment": deployment, "since": since, "until": until}
        record = {**period, "requests": [row.to_dict() for row in rows]}
        cli.write(out, to_csv(rows) if out.suffix == ".csv" else json.dumps(record, indent=1) + "\n")
        finished = sum(row.number is not None for row in rows)
        result = {**period, "file": str(out), "requests": len(rows), "finished": finished}
        cli.keep(store.uri, result)
        if as_json:
            cli.print_json(result)
        else:
            cli.print_table("record", {**result, "since": since or "the beginning", "until": until or "now"})


def _midnight(option: str, day: str) -> float:
    try:
        return datetime.combine(date.fromisoformat(day), time(), UTC).timestamp()
    except ValueError as error:
        raise InputError(f"{option} {day!r} is no day: write it as 2026-01-31") from error


if __name__ == "__main__":
    cli.run(export)
