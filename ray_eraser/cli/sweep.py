"""Train and measure many deployments with Ray Tune, and write the settings of the one to use.

Each trial measures its quality on the validation set, never the test set. It also measures the seconds until a request's data
is out of service (forget) and until the retrained model serves (restore), the mean number of shards that a request touches,
and the guarantee.

The results are sweep.parquet, sweep.md, a figure, and chosen.toml for ray-eraser train. Nothing else of a trial is
kept. After an interruption, the same command continues and does not repeat finished trials.

A log without a validation set of its own needs one to compare trials by: --set data.valid_share=0.1.

[bold]Settings that matter[/bold]: runtime.slots (processes of one trial, 1 unless set), runtime.threads,
runtime.timeout_seconds.

Examples:
    ray-eraser sweep --data ml-1m --set data.valid_share=0.1 --over partition.n_shards=5,10,20 --name first
    ray-eraser train --data ml-1m --config results/first/chosen.toml
"""

from __future__ import annotations

import math
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from ray_eraser.cli import inputs
from ray_eraser.cli.options import ConfigOption, DataOption, JsonOption, PresetOption, RayOption, SetOption
from ray_eraser.cli.output import print_json, results, say, write
from ray_eraser.cli.reaching import on_ray
from ray_eraser.errors import InputError

if TYPE_CHECKING:
    from ray_eraser.data.dataset import Dataset
    from ray_eraser.study.sweep import Row, Sweep

DEFAULT_OVER = (
    "partition.n_shards=5,10,20,50",
    "partition.kind=hashed,user_based,interaction_based",
    "aggregation.foldin=true,false",
)
"""The settings that trials differ in by default."""

_FIGURES = ("NDCG@10", "Recall@10", "restore s", "forget s", "touched", "train s", "balance")
_SAMPLES = 20
_INTERRUPTED = 130


class Search(StrEnum):
    """The method that chooses the next trial."""

    grid = "grid"
    optuna = "optuna"


class Choose(StrEnum):
    """Which trial is chosen among those that no other beats."""

    quality = "quality"
    knee = "knee"
    fastest = "fastest"


class Level(StrEnum):
    """The guarantee that the choice must have at least."""

    any = "any"
    exact = "exact"
    exact_given_settings = "exact-given-settings"


_Over = Annotated[
    list[str] | None,
    typer.Option(
        "--over",
        metavar="SECTION.KEY=VALUES",
        help="A setting that trials differ in. Repeatable. A list, 5,10,20, is tried in full; log(0.001,0.1), uniform(0,1), "
        "int(2,50) and logint(2,50) are drawn. Default: " + " ".join(DEFAULT_OVER) + ".",
    ),
]
_Samples = Annotated[
    int | None,
    typer.Option("--samples", min=1, help=f"Draws at every point of the lists; with optuna, all trials. Default: {_SAMPLES}."),
]
_Search = Annotated[
    Search, typer.Option("--search", help="optuna: go where quality, time to restore and shards touched are good together.")
]
_StopEarly = Annotated[
    bool,
    typer.Option(
        "--stop-early",
        help="Train models of many epochs for a sixteenth and a quarter of them first, and stop the worse three quarters "
        "each time (ASHA, by interactions times epochs). ALS trials are left to finish.",
    ),
]
_Mix = Annotated[
    str, typer.Option("--mix", metavar="KIND=SHARE,...", help="The subjects of requests; pairs: a single interaction.")
]
_Requests = Annotated[
    int, typer.Option("--requests", min=1, help="Requests that each trial carries out; at least one of each kind.")
]
_Choice = Annotated[Choose, typer.Option("--choose", help="The trial that chosen.toml is written for; knee: a compromise.")]
_Level = Annotated[Level, typer.Option("--level", help="Choose among trials of this guarantee or a stronger one.")]
_Name = Annotated[str, typer.Option("--name", help="The sweep's name: the same command goes on where it was.")]
_Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Results are under DIR/NAME.")]


def sweep(
    *,
    data: DataOption = "synthetic",
    over: _Over = None,
    samples: _Samples = None,
    search: _Search = Search.grid,
    stop_early: _StopEarly = False,
    mix: _Mix = "user=0.8,item=0.05,pairs=0.15",
    requests: _Requests = 3,
    choice: _Choice = Choose.quality,
    level: _Level = Level.any,
    name: _Name = "sweep",
    output: _Out = Path("results"),
    preset: PresetOption = None,
    config: ConfigOption = None,
    changes: SetOption = None,
    ray_address: RayOption = None,
    as_json: JsonOption = False,
) -> None:
    from ray_eraser.study.simulation import parse_mix
    from ray_eraser.study.sweep import Range, Sweep, at_least, choose, for_sweeping, parse_axis

    settings = inputs.settings(config, changes, preset)
    axes = tuple(parse_axis(text) for text in over or DEFAULT_OVER)
    drawn = search is Search.optuna or any(isinstance(axis, Range) for axis in axes)
    plan = Sweep(settings, axes, parse_mix(mix), requests, samples or (_SAMPLES if drawn else 1), search.value, stop_early)
    dataset = for_sweeping(inputs.read_log(data, settings.data, settings.seed))
    plan = replace(plan, n_pairs=len(dataset.train))
    folder = output.absolute() / name
    rows, unfinished = _run(plan, dataset, folder, ray_address)
    if unfinished:
        say(f"interrupted, {unfinished} of {plan.n_trials} trials are left: run the same command to go on")
        raise typer.Exit(_INTERRUPTED)
    chosen = choose(rows if level is Level.any else at_least(rows, level.value), choice.value)
    title = f"{len(rows)} trials on {dataset.name}"
    files = _write(rows, chosen, choice, title, folder)
    if as_json:
        _print_json(rows, chosen, files)
        return
    results().print(_table(rows, title))
    say(f"chosen by {choice}: {chosen['trial']}")
    say(f"written: {', '.join(files)}")
    say(f"next: ray-eraser train --data {data} --config {folder / 'chosen.toml'}")


def _run(plan: Sweep, dataset: Dataset, folder: Path, ray_address: str | None) -> tuple[list[Row], int]:
    """(the rows of all trials, how many trials are left)."""

    def on_row(row: Row, ended: int) -> None:
        say(_line(row, ended, plan.n_trials))

    with on_ray(ray_address):
        from ray_eraser.runtime.tune import run_sweep

        return run_sweep(plan, dataset, folder, on_row)


def _line(row: Row, ended: int, total: int) -> str:
    from ray_eraser.study.sweep import QUALITY

    if row["error"]:
        return f"{ended}/{total} {row['trial']}: {row['error']}"
    if row["state"] == "stopped":
        return f"{ended}/{total} {row['trial']}: stopped after {row['epochs']} epochs, NDCG@10 {row[QUALITY]:.4f}"
    return f"{ended}/{total} {row['trial']}: NDCG@10 {row[QUALITY]:.4f}, restored in {row['restore_seconds']:.2f} s"


def _print_json(rows: list[Row], chosen: Row, files: list[str]) -> None:
    from ray_eraser.study.sweep import pareto_front

    shown = [{name: _plain(value) for name, value in row.items() if name != "settings"} for row in rows]
    front = [row["key"] for row in pareto_front(rows)]
    print_json({"trials": shown, "front": front, "chosen": chosen["key"], "files": files})


def _plain(value: Any) -> Any:
    """A value as JSON can say it: null for what was not measured."""
    return None if isinstance(value, float) and math.isnan(value) else value


def _table(rows: list[Row], title: str) -> Table:
    from ray_eraser.study.sweep import shown_rows

    table = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    names, *lines = shown_rows(rows)
    for name in names:
        table.add_column(name, justify="right" if name in _FIGURES else "left", overflow="fold")
    for line in lines:
        table.add_row(*map(Text, line), style="bold" if line[0] else None)
    return table


def _write(rows: list[Row], chosen: Row, choice: Choose, title: str, folder: Path) -> list[str]:
    """Write the document, the settings, and a figure if matplotlib is installed; returns all paths, with that of the rows."""
    from ray_eraser.study.figures import draw_sweep
    from ray_eraser.study.sweep import chosen_toml, sweep_markdown

    write(folder / "sweep.md", sweep_markdown(rows, chosen, choice.value, title))
    write(folder / "chosen.toml", chosen_toml(chosen, choice.value, folder.name))
    files = [folder / "sweep.parquet", folder / "sweep.md", folder / "chosen.toml"]
    try:
        files += draw_sweep(rows, chosen["key"], title, folder)
    except InputError as error:
        say(f"no figure: {error}")
    return [str(file) for file in files]
