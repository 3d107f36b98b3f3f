"""Which shards, partition, model and aggregation: many trials, measured, and the ones that no other beats."""

from __future__ import annotations

import math
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import cli
import typer
from rich import box
from rich.table import Table
from rich.text import Text

from ray_eraser.data.files import read_dataset
from ray_eraser.errors import InputError
from ray_eraser.study.simulation import parse_mix
from ray_eraser.study.sweep import (
    DEFAULT_OVER,
    QUALITY,
    Range,
    Row,
    Sweep,
    at_least,
    choose,
    chosen_toml,
    for_sweeping,
    pareto_front,
    parse_axis,
    shown_rows,
    sweep_markdown,
)

_FIGURES = ("NDCG@10", "Recall@10", "restore s", "forget s", "touched", "train s", "balance")
_SAMPLES = 20
_INTERRUPTED = 130


class Search(StrEnum):
    """Who says what is tried next."""

    grid = "grid"
    optuna = "optuna"


class Choose(StrEnum):
    """Which of those that no other beats."""

    quality = "quality"
    knee = "knee"
    fastest = "fastest"


class Level(StrEnum):
    """Which guarantee the choice must have at least."""

    any = "any"
    exact = "exact"
    exact_given_settings = "exact-given-settings"


def sweep(
    data: cli.DataOption = "synthetic",
    over: Annotated[
        list[str] | None,
        typer.Option(
            "--over",
            metavar="SECTION.KEY=VALUES",
            help="What trials differ in; may be repeated. A list, 5,10,20, is tried in full; log(0.001,0.1), uniform(0,1), "
            "int(2,50) and logint(2,50) are drawn. Without it: " + " ".join(DEFAULT_OVER) + ".",
        ),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            "--samples", min=1, help=f"Draws at every point of the lists; with optuna, all trials. Without it: {_SAMPLES}."
        ),
    ] = None,
    search: Annotated[
        Search, typer.Option("--search", help="optuna: go where quality, time to restore and shards touched are good together.")
    ] = Search.grid,
    stop_early: Annotated[
        bool,
        typer.Option(
            "--stop-early",
            help="Train models of many epochs for a sixteenth and a quarter of them first, and stop the worse three quarters "
            "each time (ASHA, by interactions times epochs). ALS trials are left to finish.",
        ),
    ] = False,
    mix: Annotated[
        str, typer.Option("--mix", metavar="KIND=SHARE,...", help="What requests are about; pairs: a single interaction.")
    ] = "user=0.8,item=0.05,pairs=0.15",
    requests: Annotated[
        int, typer.Option("--requests", min=1, help="Requests that each trial carries out; at least one of each kind.")
    ] = 3,
    choice: Annotated[
        Choose, typer.Option("--choose", help="The point that chosen.toml is written for; knee: a compromise.")
    ] = Choose.quality,
    level: Annotated[
        Level, typer.Option("--level", help="Choose among trials of this guarantee or a stronger one.")
    ] = Level.any,
    name: Annotated[str, typer.Option("--name", help="The sweep's name: the same command goes on where it was.")] = "sweep",
    output: Annotated[Path, typer.Option("--out", metavar="DIR", help="Results are under DIR/NAME.")] = Path("results"),
    preset: cli.PresetOption = None,
    config: cli.ConfigOption = None,
    changes: cli.SetOption = None,
    ray_address: cli.RayOption = None,
    as_json: cli.JsonOption = False,
    debug: cli.DebugOption = False,
) -> None:
    """Train and measure many deployments with Ray Tune, and write the settings of the one to use.

    Of each: quality on the validation set (never the test set), seconds until what is served is free of a request's data
    (forget) and until its retraining is served (restore), shards touched by a request of the mix in the mean, and the
    guarantee. Written: sweep.parquet, sweep.md, a figure, and chosen.toml for train.py. Nothing else of a trial is kept.
    Interrupted or killed, the same command goes on, and what was finished is not done again.

    A log without a validation set of its own needs one to compare trials by: --set data.valid_share=0.1.

    [bold]Example[/bold]: python jobs/sweep.py --data ml-1m --set data.valid_share=0.1 --over partition.n_shards=5,10,20
    --over partition.kind=hashed,user_based --name first
    and then: python jobs/train.py --data ml-1m --config results/first/chosen.toml

    [bold]Settings that matter[/bold]: runtime.slots (processes of one trial, 1 unless set), runtime.threads,
    runtime.timeout_seconds.
    """
    with cli.exit_codes(debug):
        settings = cli.settings(config, changes, preset)
        axes = tuple(parse_axis(text) for text in over or DEFAULT_OVER)
        drawn = search is Search.optuna or any(isinstance(axis, Range) for axis in axes)
        plan = Sweep(settings, axes, parse_mix(mix), requests, samples or (_SAMPLES if drawn else 1), search.value, stop_early)
        dataset = for_sweeping(read_dataset(data, settings.data, settings.seed))
        plan = replace(plan, n_pairs=len(dataset.train))
        folder = output.absolute() / name

        from ray_eraser.runtime.session import session
        from ray_eraser.runtime.tune import run_sweep

        def on_row(row: Row, ended: int) -> None:
            cli.say(_line(row, ended, plan.n_trials))

        with session(ray_address):
            rows, unfinished = run_sweep(plan, dataset, folder, on_row)
        if unfinished:
            cli.say(f"interrupted, {unfinished} of {plan.n_trials} trials are left: run the same command to go on")
            raise typer.Exit(_INTERRUPTED)
        chosen = choose(rows if level is Level.any else at_least(rows, level.value), choice.value)
        title = f"{len(rows)} trials on {dataset.name}"
        files = _write(rows, chosen, choice, title, folder)
        if as_json:
            shown = [{name: _plain(value) for name, value in row.items() if name != "settings"} for row in rows]
            front = [row["key"] for row in pareto_front(rows)]
            cli.print_json({"trials": shown, "front": front, "chosen": chosen["key"], "files": files})
            return
        cli.results().print(_table(rows, title))
        cli.say(f"chosen by {choice}: {chosen['trial']}")
        cli.say(f"written: {', '.join(files)}")
        cli.say(f"next: python jobs/train.py --data {data} --config {folder / 'chosen.toml'}")


def _plain(value: Any) -> Any:
    """As JSON can say it: what was not measured is null."""
    return None if isinstance(value, float) and math.isnan(value) else value


def _line(row: Row, ended: int, total: int) -> str:
    if row["error"]:
        return f"{ended}/{total} {row['trial']}: {row['error']}"
    if row["state"] == "stopped":
        return f"{ended}/{total} {row['trial']}: stopped after {row['epochs']} epochs, NDCG@10 {row[QUALITY]:.4f}"
    return f"{ended}/{total} {row['trial']}: NDCG@10 {row[QUALITY]:.4f}, restored in {row['restore_seconds']:.2f} s"


def _table(rows: list[dict[str, Any]], title: str) -> Table:
    table = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    names, *lines = shown_rows(rows)
    for name in names:
        table.add_column(name, justify="right" if name in _FIGURES else "left", overflow="fold")
    for line in lines:
        table.add_row(*map(Text, line), style="bold" if line[0] else None)
    return table


def _write(rows: list[Row], chosen: Row, choice: Choose, title: str, folder: Path) -> list[str]:
    """The document, the settings, and the figure where matplotlib is there; their paths, the rows' with them."""
    cli.write(folder / "sweep.md", sweep_markdown(rows, chosen, choice.value, title))
    cli.write(folder / "chosen.toml", chosen_toml(chosen, choice.value, folder.name))
    files = [folder / "sweep.parquet", folder / "sweep.md", folder / "chosen.toml"]
    from ray_eraser.study.figures import draw_sweep

    try:
        files += draw_sweep(rows, chosen["key"], title, folder)
    except InputError as error:
        cli.say(f"no figure: {error}")
    return [str(file) for file in files]


if __name__ == "__main__":
    cli.run(sweep)
