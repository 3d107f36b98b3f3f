"""The paper's tables and figures, measured."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from operator import methodcaller
from pathlib import Path
from typing import Annotated

import cli
import typer

from ray_eraser.config import RuntimeConfig
from ray_eraser.study.cells import MODELS, TRAINED, Cell
from ray_eraser.study.plans import METHODS, PLANS
from ray_eraser.study.references import REFERENCES, Reference
from ray_eraser.study.tables import markdown, plain_markdown, read_results, write_results

_CELL_SECONDS = 6 * 3600.0
_MODELS_HELP = (
    f"Some of {','.join(MODELS)}. With table3 also {','.join(REFERENCES)}: no deployment serves them, they are for comparison."
)


class What(StrEnum):
    """A table or figure of Chen et al. 2022, or a protocol of erasures."""

    table3 = "table3"
    table4 = "table4"
    figure2 = "figure2"
    figure3 = "figure3"
    figure4 = "figure4"
    cure4rec = "cure4rec"
    sequence = "sequence"


def reproduce(
    what: Annotated[
        What,
        typer.Argument(
            help="table3: quality by method. table4: seconds of one request. "
            "figure2: partitions. figure3: aggregations. figure4: number of shards. "
            "cure4rec: 5 % of the users erased, and the quality of those who stay. sequence: a stream of small requests."
        ),
    ],
    data: cli.DataOption = "synthetic",
    models: Annotated[str, typer.Option("--models", help=_MODELS_HELP)] = ",".join(TRAINED),
    methods: Annotated[str, typer.Option("--methods", help=f"Some of {','.join(METHODS)}.")] = ",".join(METHODS),
    epochs_budget: Annotated[
        int | None, typer.Option("--epochs-budget", min=1, help="No model trains longer than this; the table says so.")
    ] = None,
    requests: Annotated[
        int | None, typer.Option("--requests", min=1, help="Interactions that table4 and figure4 erase, instead of 20 and 3.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", metavar="FOLDER", help="Results, table and figures.")] = Path("results"),
    changes: cli.SetOption = None,
    ray_address: cli.RayOption = None,
    as_json: cli.JsonOption = False,
    debug: cli.DebugOption = False,
) -> None:
    """Measure every cell of a table or figure on a data set, each as a Ray task, and write results, table and figure.

    A cell that is in the results already is not measured again: an interrupted run goes on where it was. A log without a test
    set of its own, such as the generated one, needs one held out: --set data.test_share=0.2.

    [bold]Example[/bold]: python jobs/reproduce.py table3 --data ml-1m --models wmf,bpr --output results/ml-1m
    """
    with cli.exit_codes(debug):
        chosen = [name.strip() for name in models.split(",")]
        known = [*MODELS, *(REFERENCES if what is What.table3 else ())]
        cli.check_known("--models", chosen, known)
        wanted = [name.strip() for name in methods.split(",")]
        cli.check_known("--methods", wanted, list(METHODS))
        where = data if data == "synthetic" else str(Path(data).absolute())
        own = [name for name in chosen if name in MODELS]
        cells = [cell for cell in PLANS[what](where, own, changes or []) if cell.method in wanted]
        if epochs_budget is not None:
            cells = [cell.within(epochs_budget) for cell in cells]
        if requests is not None:
            cells = [replace(cell, requests=requests) if isinstance(cell, Cell) and cell.requests else cell for cell in cells]
        cells = [*cells, *(Reference.of(where, name, changes or []) for name in chosen if name in REFERENCES)]
        if cells:
            cells[0].dataset()  # what is wrong with the log is said before anything is made
        output.mkdir(parents=True, exist_ok=True)
        erasures = what in (What.cure4rec, What.sequence)
        file = output / ("protocols.parquet" if erasures else "results.parquet")
        rows = {row["key"]: row for row in read_results(file)}
        missing = [cell for cell in cells if cell.key() not in rows]

        from ray_eraser.runtime.pool import RayTasks
        from ray_eraser.runtime.session import session

        if missing:
            with session(ray_address):
                results = RayTasks(RuntimeConfig(timeout_seconds=_CELL_SECONDS)).each(methodcaller("row"), missing)
                for number, (cell, row) in enumerate(results, len(cells) - len(missing) + 1):
                    rows[row["key"]] = row
                    write_results(file, list(rows.values()))
                    cli.say(f"{number}/{len(cells)} {cell.label()}")
        # Cells with the same settings share a row, whichever table measured it; what tells them apart is this table's own.
        shown = [{**rows[cell.key()], **cell.named()} for cell in cells]
        table = plain_markdown(shown) if erasures else markdown(shown)
        (output / f"{what}.md").write_text(table, "utf-8")
        files = [str(output / f"{what}.md")]
        if what.startswith("figure"):
            from ray_eraser.study.figures import draw

            files += map(str, draw(what, shown, output))
        if as_json:
            cli.print_json({"what": what, "cells": shown, "files": files})
        else:
            typer.echo(table)
            cli.say(f"written: {', '.join(files)}")


if __name__ == "__main__":
    cli.run(reproduce)
