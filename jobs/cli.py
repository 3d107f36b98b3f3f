"""What all jobs share: their options, their exit codes, and how they show progress."""

from __future__ import annotations

import csv
import json
import logging
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from ray_eraser.config import EraserConfig, load_config, preset_names
from ray_eraser.errors import ConfigError, DataFileError, DeploymentError, InputError, RayEraserError
from ray_eraser.ids import RawId
from ray_eraser.store import Store
from ray_eraser.unlearning.evidence import ReceiptFile
from ray_eraser.unlearning.ledger import GenerationRow, Ledger, default_ledger

if TYPE_CHECKING:
    from ray_eraser.runtime.client import Client, Ticket
    from ray_eraser.unlearning.request import RequestState

DONE, FAILED, BAD_INPUT = 0, 1, 2

DataOption = Annotated[
    str,
    typer.Option(
        "--data",
        metavar="PATH|synthetic",
        help="An interaction log: a folder with train/valid/test .txt[.gz], MovieLens u.data, ratings.dat or ratings.csv, "
        "CSV, TSV, RecBole .inter, Parquet, or what prepare.py wrote. 'synthetic' generates one.",
    ),
]
StorageOption = Annotated[
    str | None,
    typer.Option(
        "--storage-path",
        metavar="URI",
        help="Where the deployment's files are: a folder, s3://... or gs://... Without it: deployments/NAME.",
    ),
]
DeploymentOption = Annotated[str, typer.Option("--deployment", metavar="NAME", help="The deployment's name on Ray.")]
ConfigOption = Annotated[Path | None, typer.Option("--config", metavar="FILE.toml", help="Settings.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="One setting, over the file's; may be repeated."),
]
PresetOption = Annotated[
    list[str] | None,
    typer.Option("--preset", metavar="NAME", help=f"A method by its name, under --config: {', '.join(preset_names())}."),
]
RayOption = Annotated[
    str | None,
    typer.Option(
        "--ray-address",
        metavar="ADDRESS",
        envvar="RAY_ADDRESS",
        help="The Ray cluster: host:port, 'auto', or 'local' for a Ray of this job alone. "
        "Without it: the one that runs on this machine, else a local one.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line on stdout.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the whole traceback of an error.")]
UserOption = Annotated[str | None, typer.Option("--user-id", metavar="ID", help="A user, as the log names it.")]
ItemOption = Annotated[str | None, typer.Option("--item-id", metavar="ID", help="An item, as the log names it.")]
PairsOption = Annotated[
    Path | None,
    typer.Option("--pairs", metavar="FILE.csv", help="Interactions: one 'user id,item id' a line, no header."),
]

NowOption = Annotated[
    bool, typer.Option("--now", help="Carry out all that waits at once, whatever the deployment's plan (unlearning.plan).")
]

people = Console(stderr=True)
"""What is meant for people; stdout is for results."""


def run(command: Any) -> None:
    """Run a job's function as a program."""
    app = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)
    app.command()(command)
    app()


@contextmanager
def exit_codes(debug: bool) -> Iterator[None]:
    """0 done, 2 bad input, 1 anything else; an error is one line on stderr, and a traceback only with --debug."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        yield
    except RayEraserError as error:
        _say(error, debug)
        raise typer.Exit(BAD_INPUT if isinstance(error, InputError) else FAILED) from None
    except KeyboardInterrupt:
        people.print("interrupted", style="red")
        raise typer.Exit(130) from None
    except (typer.Exit, typer.Abort):
        raise
    except Exception as error:  # noqa: BLE001 - the last place where it can be said in one line
        _say(error, debug)
        raise typer.Exit(FAILED) from None


def _say(error: Exception, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    line = " ".join(str(error).split()) or type(error).__name__
    sys.stderr.write(f"error: {line}\n")


def settings(config: Path | None, changes: list[str] | None, presets: list[str] | None = None) -> EraserConfig:
    """The job's configuration from --preset, --config and --set."""
    return load_config(config, changes or [], presets or [])


def check_known(option: str, given: list[str], known: list[str]) -> None:
    """Raise `ConfigError` for a name that is not among the known ones."""
    for name in given:
        if name not in known:
            raise ConfigError(option, f"{name!r} is not known: choose from {', '.join(known)}")


def place(storage_path: str | None, deployment: str) -> str:
    """Where a deployment's files are, the same place whichever folder another process works in."""
    if storage_path is None:
        storage_path = f"deployments/{deployment}"
    return storage_path if "://" in storage_path else str(Path(storage_path).expanduser().absolute())


def attach(deployment: str, storage_path: str | None, ledger_url: str) -> Client:
    """The deployment that runs under this name on the connected Ray, or else the one that comes back from its storage path.

    Raises:
        DeploymentError: neither is there, or what runs is at another storage path than the one given.
    """
    from ray_eraser.runtime.client import connect, deploy

    if storage_path is None:
        try:
            return connect(deployment)
        except DeploymentError:
            pass  # it does not run; it may be stored
    return deploy(deployment, place(storage_path, deployment), ledger_url=ledger_url)


@contextmanager
def opened_ledger(storage_path: str, deployment: str, ledger_url: str) -> Iterator[tuple[Store, Ledger]]:
    """The store and the ledger, for jobs that only read."""
    store = Store(storage_path)
    ledger = Ledger(ledger_url or default_ledger(store, deployment, must_exist=True))
    try:
        yield store, ledger
    finally:
        ledger.close()


def carried_out(client: Client, ticket: Ticket, seconds: float, *, now: bool) -> RequestState:
    """Wait for the end of something that was accepted, where the plan means it to be carried out at once, or it is made to.

    Gives the state that it is in then: a plan may let it wait for days.
    """
    if now:
        client.process_now()
    elif (described := client.describe())["plan"] != "immediate":
        say(f"it waits for others, by the plan {described['plan']}; --now has all that waits carried out")
        return ticket.status()
    return ticket.finished(seconds)


def published_generation(storage_path: str, deployment: str, ledger_url: str) -> tuple[Store, GenerationRow]:
    """The store and the current generation, for jobs that only read."""
    with opened_ledger(storage_path, deployment, ledger_url) as (store, ledger):
        published = ledger.current()
    if published is None:
        raise DeploymentError(deployment, f"training at {storage_path} was never finished: run train.py with another path")
    return store, published


def read_pairs(file: Path) -> tuple[tuple[RawId, RawId], ...]:
    """(user id, item id) pairs from a CSV file without a header."""
    try:
        with file.open(encoding="utf-8", newline="") as stream:
            rows = list(csv.reader(stream))
    except (OSError, UnicodeDecodeError) as error:
        raise DataFileError(str(file), f"cannot be read ({error}): give a UTF-8 CSV file") from error
    for line, row in enumerate(rows, 1):
        if len(row) != 2 or not all(row):
            raise DataFileError(str(file), f"expected 'user id,item id', got {','.join(row)!r}", line)
    return tuple((user, item) for user, item in rows)


def read_receipt(file: Path) -> ReceiptFile:
    """A receipt as `unlearn.py --receipt` writes it."""
    try:
        return ReceiptFile.from_json(file.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise DataFileError(str(file), f"cannot be read ({error}): give a file that unlearn.py --receipt wrote") from error
    except InputError as error:
        raise DataFileError(str(file), str(error)) from error


def write(file: Path, text: str) -> None:
    """Write a result's file.

    Raises:
        InputError: it cannot be written.
    """
    try:
        file.write_text(text, "utf-8")
    except OSError as error:
        raise InputError(f"{file} cannot be written ({error.strerror}): choose another folder") from error


def say(line: str) -> None:
    """One line for people, on stderr."""
    people.print(line, highlight=False, markup=False, soft_wrap=True)  # ids may look like markup


def print_json(result: dict[str, Any]) -> None:
    """The one line that programs read."""
    sys.stdout.write(json.dumps(result) + "\n")


def print_table(title: str, rows: dict[str, Any]) -> None:
    """Facts for people, on stdout."""
    table = Table(title=Text(title), title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, Text(str(value)))
    Console().print(table)


class TrainingProgress:
    """A bar for each stage on a terminal; in a pipe, one plain line when a stage begins and when a shard is done."""

    _NAMES = {"partition": "dividing", "shards": "training shards", "aggregation": "aggregating"}  # noqa: RUF012 - never changed

    def __init__(self) -> None:
        columns = (TextColumn("{task.description:<16}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._bars = Progress(*columns, TextColumn("{task.fields[note]}"), console=people) if people.is_terminal else None
        self._tasks: dict[str, TaskID] = {}
        self._said: set[str] = set()

    def __enter__(self) -> Self:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            for task in self._tasks.values():
                self._bars.update(task, completed=self._bars.tasks[task].total)
            self._bars.stop()

    def __call__(self, progress: dict[str, Any]) -> None:
        """Show what `Client.progress` gives."""
        stage = progress["stage"]
        if stage not in self._NAMES:
            return
        if self._bars is None:
            line = f"{self._NAMES[stage]} {progress['done']}/{progress['total']} {progress['note']}".rstrip()
            if line not in self._said:
                self._said.add(line)
                say(line)
            return
        for earlier, task in self._tasks.items():
            if earlier != stage:
                self._bars.update(task, completed=self._bars.tasks[task].total)
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(self._NAMES[stage], total=progress["total"], note="")
        self._bars.update(self._tasks[stage], completed=progress["done"], total=progress["total"], note=progress["note"])
