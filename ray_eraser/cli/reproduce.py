"""Measure every cell of a table or figure of the papers on a data set, each as a Ray task. Writes results, table and figure.

A cell that is in the results already is not measured again: an interrupted run goes on where it was. A log without a test
set of its own, such as the generated one, needs one held out: --set data.test_share=0.2.

Examples:
    ray-eraser reproduce table3 --data ml-1m --models wmf,bpr --output results/ml-1m
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum
from operator import methodcaller
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from ray_eraser.cli.inputs import check_known
from ray_eraser.cli.options import DataOption, JsonOption, RayOption, SetOption
from ray_eraser.cli.output import print_json, say, working
from ray_eraser.cli.reaching import on_ray

if TYPE_CHECKING:
    from ray_eraser.study.cells import Cell
    from ray_eraser.study.protocols import Protocol
    from ray_eraser.study.references import Reference

AnyCell: TypeAlias = "Cell | Protocol | Reference"

_CELL_SECONDS = 6 * 3600.0

MODELS = ("wmf", "wmf-als", "bpr", "lightgcn", "linear")
TRAINED = ("wmf", "wmf-als", "bpr", "lightgcn")
REFERENCES = ("ease", "gf-cf")
METHODS = ("retrain", "sisa", "grapheraser", "receraser", "ours")
"""The names in `ray_eraser.study`, which takes too long to import for --help."""
_ALL_TRAINED, _ALL_METHODS = ",".join(TRAINED), ",".join(METHODS)


class What(StrEnum):
    """A table or figure of Chen et al. 2022, or a protocol of erasures."""

    table3 = "table3"
    table4 = "table4"
    figure2 = "figure2"
    figure3 = "figure3"
    figure4 = "figure4"
    cure4rec = "cure4rec"
    sequence = "sequence"


_What = Annotated[
    What,
    typer.Argument(
        help="table3: quality by method. table4: seconds of one request. "
        "figure2: partitions. figure3: aggregations. figure4: number of shards. "
        "cure4rec: 5 % of the users erased, and the quality of those who stay. sequence: a stream of small requests."
    ),
]
_Models = Annotated[
    str,
    typer.Option(
        "--models",
        help=f"Some of {','.join(MODELS)}. With table3 also {','.join(REFERENCES)}: no deployment serves them, they are for "
        "comparison.",
    ),
]
_Methods = Annotated[str, typer.Option("--methods", help=f"Some of {_ALL_METHODS}.")]
_Epochs = Annotated[
    int | None, typer.Option("--epochs-budget", min=1, help="No model trains longer than this; the table says so.")
]
_Requests = Annotated[
    int | None, typer.Option("--requests", min=1, help="Interactions that table4 and figure4 erase, instead of 20 and 3.")
]
_Output = Annotated[Path, typer.Option("--output", metavar="FOLDER", help="Results, table and figures.")]


def reproduce(
    *,
    what: _What,
    data: DataOption = "synthetic",
    models: _Models = _ALL_TRAINED,
    methods: _Methods = _ALL_METHODS,
    epochs_budget: _Epochs = None,
    requests: _Requests = None,
    output: _Output = Path("results"),
    changes: SetOption = None,
    ray_address: RayOption = None,
    as_json: JsonOption = False,
) -> None:
    chosen, wanted = _names(models), _names(methods)
    check_known("--models", chosen, (*MODELS, *(REFERENCES if what is What.table3 else ())))
    check_known("--methods", wanted, METHODS)
    cells = _cells(what, data, chosen, wanted, changes or [], epochs_budget, requests)
    if cells:
        with working(f"reading {data}"):
            cells[0].dataset()  # a problem with the log is said before anything is made
    from ray_eraser.study.tables import markdown, plain_markdown

    output.mkdir(parents=True, exist_ok=True)
    erasures = what in (What.cure4rec, What.sequence)
    rows = _measured(cells, output / ("protocols.parquet" if erasures else "results.parquet"), ray_address)
    # Cells with the same settings share a row, whichever table measured it; their names in this table are its own.
    shown = [{**rows[cell.key()], **cell.named()} for cell in cells]
    table = plain_markdown(shown) if erasures else markdown(shown)
    (output / f"{what}.md").write_text(table, "utf-8")
    files = [str(output / f"{what}.md")]
    if what.startswith("figure"):
        from ray_eraser.study.figures import draw

        files += map(str, draw(what, shown, output))
    if as_json:
        print_json({"what": what, "cells": shown, "files": files})
    else:
        sys.stdout.write(f"{table}\n")
        say(f"written: {', '.join(files)}")


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def _cells(
    what: What,
    data: str,
    models: Sequence[str],
    methods: Sequence[str],
    changes: Sequence[str],
    epochs_budget: int | None,
    requests: int | None,
) -> list[AnyCell]:
    """The cells of a table or figure."""
    from ray_eraser.study.cells import Cell
    from ray_eraser.study.plans import PLANS
    from ray_eraser.study.references import Reference

    where = data if data == "synthetic" else str(Path(data).absolute())
    own = [name for name in models if name in MODELS]
    cells = [cell for cell in PLANS[what](where, own, changes) if cell.method in methods]
    if epochs_budget is not None:
        cells = [cell.within(epochs_budget) for cell in cells]
    if requests is not None:
        cells = [replace(cell, requests=requests) if isinstance(cell, Cell) and cell.requests else cell for cell in cells]
    return [*cells, *(Reference.of(where, name, changes) for name in models if name in REFERENCES)]


def _measured(cells: Sequence[AnyCell], file: Path, ray_address: str | None) -> dict[str, dict[str, Any]]:
    """The rows of all cells by their keys. Measures each cell that is not in the file yet, and adds it there."""
    from ray_eraser.config import RuntimeConfig
    from ray_eraser.study.tables import read_results, write_results

    rows = {row["key"]: row for row in read_results(file)}
    missing = [cell for cell in cells if cell.key() not in rows]
    if not missing:
        return rows
    with on_ray(ray_address):
        from ray_eraser.runtime.pool import RayTasks

        measured = RayTasks(RuntimeConfig(timeout_seconds=_CELL_SECONDS)).each(methodcaller("row"), missing)
        for number, (cell, row) in enumerate(measured, len(cells) - len(missing) + 1):
            rows[row["key"]] = row
            write_results(file, list(rows.values()))
            say(f"{number}/{len(cells)} {cell.label()}")
    return rows
