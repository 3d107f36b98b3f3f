"""What plans and shard counts would cost, and how long requests would wait, before machines are bought."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import cli
import typer
from rich import box
from rich.table import Table

from ray_eraser.config import DAY
from ray_eraser.data.files import read_dataset
from ray_eraser.errors import InputError
from ray_eraser.study.simulation import (
    EvenDivision,
    LogDivision,
    parse_mix,
    poisson_stream,
    read_stream,
    replay,
    route,
    shown_rows,
)
from ray_eraser.unlearning.plan import Costs, plan_of

_MEASURED = "Measured with the default settings on MovieLens-1M, one thread"


def simulate(
    plans: Annotated[
        list[str] | None,
        typer.Option(
            "--plan", metavar="PLAN", help="immediate, every=6h or deadline=30d; repeat to compare. Without it: all three."
        ),
    ] = None,
    shards: Annotated[
        list[int] | None,
        typer.Option(
            "--shards", metavar="K", min=1, max=10_000, help="Shard count; repeat to compare. Without it: 5, 10, 20 and 50."
        ),
    ] = None,
    requests_per_day: Annotated[
        float, typer.Option("--requests-per-day", min=0, help="Requests a day, at random times.")
    ] = 100.0,
    days: Annotated[float, typer.Option("--days", min=0, help="For how many days requests come.")] = 90.0,
    mix: Annotated[
        str, typer.Option("--mix", metavar="KIND=SHARE,...", help="What they are about; pairs: a single interaction.")
    ] = "user=90,item=2,pairs=8",
    stream: Annotated[
        Path | None,
        typer.Option(
            "--stream",
            metavar="FILE.csv",
            help="Requests that came, instead: 'time,kind' a line, no header; seconds or ISO 8601, and user, item or pairs.",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="PATH|synthetic",
            help="Draw the users, items and interactions from this log, as it is divided by partition.kind hashed or random. "
            "Without it: from the three sizes below.",
        ),
    ] = None,
    interactions: Annotated[int, typer.Option("--interactions", min=1, help="Interactions to learn from.")] = 1_000_000,
    users: Annotated[int, typer.Option("--users", min=1, help="Users.")] = 6_000,
    items: Annotated[int, typer.Option("--items", min=1, help="Items.")] = 3_700,
    seconds_per_million: Annotated[
        float, typer.Option("--seconds-per-million", min=0, help=f"Training a shard, per million interactions. {_MEASURED}.")
    ] = 4.0,
    shard_seconds: Annotated[
        float, typer.Option("--shard-seconds", min=0, help=f"Training a shard, however small. {_MEASURED}.")
    ] = 0.04,
    aggregation_seconds: Annotated[
        float,
        typer.Option(
            "--aggregation-seconds",
            min=0,
            help=f"One aggregation. {_MEASURED}; it grows with the log: train.py --json has yours as seconds.aggregation.",
        ),
    ] = 0.4,
    aggregation_shard_seconds: Annotated[
        float,
        typer.Option("--aggregation-shard-seconds", min=0, help=f"What each shard adds to it. {_MEASURED}, 5 to 50 shards."),
    ] = 0.03,
    slots: Annotated[int, typer.Option("--slots", min=1, help="Shards that train at the same time.")] = 4,
    output: Annotated[Path, typer.Option("--output", metavar="FOLDER", help="Table, JSON and figure.")] = Path("results"),
    config: cli.ConfigOption = None,
    changes: cli.SetOption = None,
    as_json: cli.JsonOption = False,
    debug: cli.DebugOption = False,
) -> None:
    """Replay a stream of requests against plans and shard counts, by what training is known to take. Nothing is trained.

    For each plan and shard count: how long requests wait until they are carried out (p50 to max; what is served is free of
    their data at once under any plan), how many miss the legal deadline, how often shards are trained, for how many machine
    hours, and for which part of the time a run goes on (busy: near 100 % the machines are too few).

    [bold]Example[/bold]: python jobs/simulate.py --plan immediate --plan every=6h --plan deadline=30d --shards 10 --shards 50
    --interactions 1000000000 --users 20000000 --items 500000 --aggregation-seconds 600 --requests-per-day 400

    [bold]Settings that matter[/bold]: partition.kind, unlearning.deadline_days, unlearning.margin_days, seed.
    """
    with cli.exit_codes(debug):
        settings = cli.settings(config, changes)
        usual = ["immediate", "every=6h", f"deadline={settings.unlearning.deadline_days:g}d"]
        chosen = [cli.settings(config, [*(changes or []), f"unlearning.plan={plan}"]) for plan in plans or usual]
        arrivals = read_stream(stream) if stream else poisson_stream(requests_per_day, days, parse_mix(mix), settings.seed)
        dataset = read_dataset(data, settings.data, settings.seed) if data else None
        rows: list[dict[str, Any]] = []
        for n_shards in shards or [5, 10, 20, 50]:
            partition = settings.partition.model_copy(update={"n_shards": n_shards})
            division = (
                EvenDivision(partition.kind, n_shards, interactions, users, items)
                if dataset is None
                else LogDivision(dataset, partition, settings.seed)
            )
            requests = route(arrivals, division, settings.seed)
            aggregation = aggregation_seconds + aggregation_shard_seconds * n_shards
            costs = Costs(shard_seconds, seconds_per_million / 1e6, aggregation)
            for planned in chosen:
                outcome = replay(requests, plan_of(planned.unlearning), division.sizes, costs, slots)
                row = outcome.to_row(planned.unlearning.deadline_days * DAY)
                rows.append({"plan": planned.unlearning.plan, "shards": n_shards, **row})
        rows.sort(key=lambda row: [planned.unlearning.plan for planned in chosen].index(row["plan"]))
        files = _write(rows, settings.unlearning.deadline_days, output)
        if as_json:
            cli.print_json({"partition": settings.partition.kind, "outcomes": rows, "files": files})
        else:
            cli.results().print(_table(rows, f"{len(arrivals)} requests, partition {settings.partition.kind}"))
            cli.say(f"written: {', '.join(files)}")


def _table(rows: list[dict[str, Any]], title: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    names, *lines = shown_rows(rows)
    for name in names:
        table.add_column(name, justify="left" if name == "plan" else "right")
    for line in lines:
        table.add_row(*line)
    return table


def _write(rows: list[dict[str, Any]], deadline_days: float, output: Path) -> list[str]:
    """The table, the rows, and the figure where matplotlib is there; their paths."""
    output.mkdir(parents=True, exist_ok=True)
    names, *lines = shown_rows(rows)
    table = [names, ["---"] * len(names), *lines]
    (output / "simulate.md").write_text("".join(f"| {' | '.join(line)} |\n" for line in table), "utf-8")
    (output / "simulate.json").write_text(json.dumps(rows, indent=1) + "\n", "utf-8")
    files = [output / "simulate.md", output / "simulate.json"]
    from ray_eraser.study.figures import draw_plans

    try:
        files += draw_plans(rows, deadline_days, output)
    except InputError as error:
        cli.say(f"no figure: {error}")
    return [str(file) for file in files]


if __name__ == "__main__":
    cli.run(simulate)
