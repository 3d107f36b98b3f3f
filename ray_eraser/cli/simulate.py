"""Replay a stream of requests against plans and shard counts, with known training times. Trains nothing.

For each plan and shard count it shows how long requests wait for their retraining (p50 to max) and how many miss the legal
deadline. It also shows the number of shard trainings, the machine hours, and the share of the time that a run takes (busy:
near 100 % you need more machines). Under any plan, a request's data leaves service at once.

[bold]Settings that matter[/bold]: partition.kind, unlearning.deadline_days, unlearning.margin_days, seed.

Examples:
    ray-eraser simulate --plan immediate --plan every=6h --plan deadline=30d --shards 10 --shards 50
    ray-eraser simulate --interactions 1000000000 --users 20000000 --items 500000 --aggregation-seconds 600
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Table

from ray_eraser.cli import inputs
from ray_eraser.cli.options import ConfigOption, JsonOption, SetOption
from ray_eraser.cli.output import print_json, results, say
from ray_eraser.errors import InputError

if TYPE_CHECKING:
    from ray_eraser.config import EraserConfig
    from ray_eraser.study.simulation import Arrival, Division
    from ray_eraser.unlearning.plan import Costs

_MEASURED = "Measured with the default settings on MovieLens-1M, one thread"

_Plans = Annotated[
    list[str] | None,
    typer.Option("--plan", metavar="PLAN", help="immediate, every=6h or deadline=30d; repeat to compare. Default: all three."),
]
_Shards = Annotated[
    list[int] | None,
    typer.Option("--shards", metavar="K", min=1, max=10_000, help="Shard count; repeat to compare. Default: 5, 10, 20 and 50."),
]
_PerDay = Annotated[float, typer.Option("--requests-per-day", min=0, help="Requests a day, at random times.")]
_Days = Annotated[float, typer.Option("--days", min=0, help="For how many days requests come.")]
_Mix = Annotated[str, typer.Option("--mix", metavar="KIND=SHARE,...", help="Their subjects; pairs: a single interaction.")]
_Stream = Annotated[
    Path | None,
    typer.Option(
        "--stream",
        metavar="FILE.csv",
        help="Past requests instead: 'time,kind' a line, no header; seconds or ISO 8601, and user, item or pairs.",
    ),
]
_Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="PATH|synthetic",
        help="Draw the users, items and interactions from this log, divided by partition.kind hashed or random. "
        "Default: from the three sizes below.",
    ),
]
_Interactions = Annotated[int, typer.Option("--interactions", min=1, help="Interactions to learn from.")]
_Users = Annotated[int, typer.Option("--users", min=1, help="Users.")]
_Items = Annotated[int, typer.Option("--items", min=1, help="Items.")]
_PerMillion = Annotated[
    float, typer.Option("--seconds-per-million", min=0, help=f"Training a shard, per million interactions. {_MEASURED}.")
]
_PerShard = Annotated[float, typer.Option("--shard-seconds", min=0, help=f"Training a shard, however small. {_MEASURED}.")]
_Aggregation = Annotated[
    float,
    typer.Option(
        "--aggregation-seconds",
        min=0,
        help=f"One aggregation. {_MEASURED}; it grows with the log: ray-eraser train --json has yours as seconds.aggregation.",
    ),
]
_AggregationShard = Annotated[
    float,
    typer.Option("--aggregation-shard-seconds", min=0, help=f"What each shard adds to it. {_MEASURED}, 5 to 50 shards."),
]
_Slots = Annotated[int, typer.Option("--slots", min=1, help="Shards that train at the same time.")]
_Output = Annotated[Path, typer.Option("--output", metavar="FOLDER", help="Table, JSON and figure.")]


def simulate(
    *,
    plans: _Plans = None,
    shards: _Shards = None,
    requests_per_day: _PerDay = 100.0,
    days: _Days = 90.0,
    mix: _Mix = "user=90,item=2,pairs=8",
    stream: _Stream = None,
    data: _Data = None,
    interactions: _Interactions = 1_000_000,
    users: _Users = 6_000,
    items: _Items = 3_700,
    seconds_per_million: _PerMillion = 4.0,
    shard_seconds: _PerShard = 0.04,
    aggregation_seconds: _Aggregation = 0.4,
    aggregation_shard_seconds: _AggregationShard = 0.03,
    slots: _Slots = 4,
    output: _Output = Path("results"),
    config: ConfigOption = None,
    changes: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    settings = inputs.settings(config, changes)
    usual = ["immediate", "every=6h", f"deadline={settings.unlearning.deadline_days:g}d"]
    chosen = [inputs.settings(config, [*(changes or []), f"unlearning.plan={plan}"]) for plan in plans or usual]

    from ray_eraser.study.simulation import parse_mix, poisson_stream, read_stream
    from ray_eraser.unlearning.plan import Costs

    arrivals = read_stream(stream) if stream else poisson_stream(requests_per_day, days, parse_mix(mix), settings.seed)
    rows: list[dict[str, Any]] = []
    for n_shards, division in _divisions(settings, shards or [5, 10, 20, 50], data, (interactions, users, items)):
        aggregation = aggregation_seconds + aggregation_shard_seconds * n_shards
        costs = Costs(shard_seconds, seconds_per_million / 1e6, aggregation)
        replayed = _replayed(chosen, arrivals, division, costs, slots)
        rows += [{"plan": plan, "shards": n_shards, **row} for plan, row in replayed.items()]
    rows.sort(key=lambda row: [planned.unlearning.plan for planned in chosen].index(row["plan"]))
    files = _write(rows, settings.unlearning.deadline_days, output)
    if as_json:
        print_json({"partition": settings.partition.kind, "outcomes": rows, "files": files})
    else:
        results().print(_table(rows, f"{len(arrivals)} requests, partition {settings.partition.kind}"))
        say(f"written: {', '.join(files)}")


def _divisions(
    settings: EraserConfig, shards: Sequence[int], data: str | None, sizes: tuple[int, int, int]
) -> Iterator[tuple[int, Division]]:
    """(number of shards, a log in so many shards): of `data`, or of a log of which only the sizes are known."""
    from ray_eraser.study.simulation import EvenDivision, LogDivision

    dataset = inputs.read_log(data, settings.data, settings.seed) if data is not None else None
    for n_shards in shards:
        partition = settings.partition.model_copy(update={"n_shards": n_shards})
        if dataset is None:
            yield n_shards, EvenDivision(partition.kind, n_shards, *sizes)
        else:
            yield n_shards, LogDivision(dataset, partition, settings.seed)


def _replayed(
    chosen: Sequence[EraserConfig], arrivals: Sequence[Arrival], division: Division, costs: Costs, slots: int
) -> dict[str, dict[str, Any]]:
    """The outcome of every plan, by its name. The settings differ in their plans alone."""
    from ray_eraser.config import DAY
    from ray_eraser.study.simulation import replay, route
    from ray_eraser.unlearning.plan import plan_of

    requests = route(arrivals, division, chosen[0].seed)
    outcomes = {}
    for settings in chosen:
        outcome = replay(requests, plan_of(settings.unlearning), division.sizes, costs, slots)
        outcomes[settings.unlearning.plan] = outcome.to_row(settings.unlearning.deadline_days * DAY)
    return outcomes


def _table(rows: list[dict[str, Any]], title: str) -> Table:
    from ray_eraser.study.simulation import shown_rows

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    names, *lines = shown_rows(rows)
    for name in names:
        table.add_column(name, justify="left" if name == "plan" else "right")
    for line in lines:
        table.add_row(*line)
    return table


def _write(rows: list[dict[str, Any]], deadline_days: float, output: Path) -> list[str]:
    """Write the table, the rows, and a figure if matplotlib is installed; returns their paths."""
    from ray_eraser.study.figures import draw_plans
    from ray_eraser.study.simulation import shown_rows

    output.mkdir(parents=True, exist_ok=True)
    names, *lines = shown_rows(rows)
    table = [names, ["---"] * len(names), *lines]
    (output / "simulate.md").write_text("".join(f"| {' | '.join(line)} |\n" for line in table), "utf-8")
    (output / "simulate.json").write_text(json.dumps(rows, indent=1) + "\n", "utf-8")
    files = [output / "simulate.md", output / "simulate.json"]
    try:
        files += draw_plans(rows, deadline_days, output)
    except InputError as error:
        say(f"no figure: {error}")
    return [str(file) for file in files]
