"""Write the record of a period, for the supervisors of a deployment: one row for each request received in it, finished or not.

A row has the request's state and times. Rows of finished requests also have the guarantee, the generation, and the receipt's
number, digest and signature. The record has no user, no item and no salt.

Keep the record: its numbers and digests show later whether a receipt was altered or left out.

Examples:
    ray-eraser export --deployment shop --since 2026-01-01 --until 2026-03-31 --out q1.csv
"""

from __future__ import annotations

import json
import math
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Annotated

import typer

from ray_eraser.cli import inputs
from ray_eraser.cli.options import ConfigOption, DeploymentOption, JsonOption, SetOption, StorageOption
from ray_eraser.cli.output import print_facts, print_json, write
from ray_eraser.cli.reaching import opened_ledger, place
from ray_eraser.cli.submitted import keep
from ray_eraser.errors import InputError

_Out = Annotated[
    Path, typer.Option("--out", metavar="FILE.json|FILE.csv", help="Where to write the record; the ending says the format.")
]
_Since = Annotated[
    str | None, typer.Option("--since", metavar="YYYY-MM-DD", help="The first day, UTC. Default: from the beginning.")
]
_Until = Annotated[
    str | None, typer.Option("--until", metavar="YYYY-MM-DD", help="The last day, itself included. Default: to now.")
]


def export(
    *,
    out: _Out,
    since: _Since = None,
    until: _Until = None,
    storage_path: StorageOption = None,
    deployment: DeploymentOption = "default",
    config: ConfigOption = None,
    changes: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    if out.suffix not in (".json", ".csv"):
        raise InputError(f"--out {out}: name a .json or a .csv file")
    begin = -math.inf if since is None else _midnight("--since", since)
    end = math.inf if until is None else _midnight("--until", until) + 86400
    if begin >= end:
        raise InputError(f"--since {since} is after --until {until}: give a period")
    from ray_eraser.unlearning.record import RecordRow, to_csv

    ledger_url = inputs.settings(config, changes).unlearning.ledger
    with opened_ledger(place(storage_path, deployment), deployment, ledger_url) as (store, ledger):
        rows = [RecordRow.of(row) for row in ledger.record(begin, end)]
    period = {"deployment": deployment, "since": since, "until": until}
    record = {**period, "requests": [row.to_dict() for row in rows]}
    write(out, to_csv(rows) if out.suffix == ".csv" else json.dumps(record, indent=1) + "\n")
    finished = sum(row.number is not None for row in rows)
    result = {**period, "file": str(out), "requests": len(rows), "finished": finished}
    keep("export", store.uri, result)
    if as_json:
        print_json(result)
    else:
        print_facts("record", {**result, "since": since or "the beginning", "until": until or "now"})


def _midnight(option: str, day: str) -> float:
    try:
        return datetime.combine(date.fromisoformat(day), time(), UTC).timestamp()
    except ValueError as error:
        raise InputError(f"{option} {day!r} is no day: write it as 2026-01-31") from error
