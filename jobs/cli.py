"""What all jobs share: their options, their exit codes, and how they show progress."""

from __future__ import annotations

import csv
import inspect
import json
import logging
import os
import re
import shlex
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from ray_eraser.runtime import signals

# What is imported next takes seconds, in which a job can be stopped. Only in a job, and not in a test of one.
if Path(sys.argv[0]).resolve().parent == Path(__file__).resolve().parent:
    signals.watch()

import typer
from rich import progress as bars
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ray_eraser import logs
from ray_eraser.config import EraserConfig, load_config, preset_names
from ray_eraser.errors import (
    ConfigError,
    DataFileError,
    DeploymentError,
    HeldError,
    InputError,
    LedgerError,
    RayEraserError,
    StaleEpochError,
    WaitTimeoutError,
)
from ray_eraser.force import Holder
from ray_eraser.ids import RawId
from ray_eraser.observer import Observer, existing_ledger
from ray_eraser.status import Progress
from ray_eraser.store import Store
from ray_eraser.unlearning.evidence import ReceiptFile
from ray_eraser.unlearning.ledger import GenerationRow, Ledger
from ray_eraser.unlearning.receipt_files import Accepted

if TYPE_CHECKING:
    from ray_eraser.runtime.client import Client, Ticket
    from ray_eraser.unlearning.receipt import Receipt
    from ray_eraser.unlearning.request import RequestState

DONE, FAILED, BAD_INPUT = 0, 1, 2

DataOption = Annotated[
    str,
    typer.Option(
        "--data",
        metavar="PATH|synthetic",
        help="An interaction log: a folder with train/valid/test .txt[.gz], MovieLens u.data, ratings.dat or ratings.csv, "
        "CSV, TSV, RecBole .inter, Parquet (also several files in a folder, parts of one log), or what prepare.py wrote. "
        "'synthetic' generates one.",
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
    typer.Option(
        "--preset",
        metavar="NAME",
        help=f"A method, or settings of a model, by name, under --config: {', '.join(preset_names())}.",
    ),
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
ExistingRayOption = Annotated[
    str | None,
    typer.Option(
        "--ray-address",
        metavar="ADDRESS",
        envvar="RAY_ADDRESS",
        help="The Ray cluster where the deployment may be running: host:port, 'auto', or 'local' for none. Without it: the one "
        "that runs on this machine, if one does. None is started.",
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
TakeOverOption = Annotated[
    bool,
    typer.Option(
        "--take-over",
        help="Where another Ray or machine runs the deployment: take it over at once. Without it, this job waits for a minute "
        "for the other one to end.",
    ),
]

_WAITING = ("received", "excised", "routed")
_LOOK_SECONDS = 0.2
_HELD_SECONDS, _SLOW_SECONDS = 60.0, 4.0
_WIDEST = 1_000

_LogFormatOption = Annotated[
    Literal["text", "json"],
    typer.Option(
        "--log-format",
        help="What stderr is: text for people, or json for programs, one object a line, and no user id in any.",
    ),
]

people = Console(stderr=True)
"""What is meant for people; stdout is for results. Quiet with --log-format json."""

_events = logging.getLogger("ray_eraser.jobs")
"""The same for programs, where it names nobody. Silent unless --log-format json."""
_events.addHandler(logging.NullHandler())
_events.propagate = False


def run(command: Any) -> None:
    """Run a job's function as a program."""
    job = typer.main.get_command(app_of(command))
    for option in job.params:
        if getattr(option, "is_flag", False):
            option.metavar = ""  # it takes no value
    job()


def app_of(command: Any) -> typer.Typer:
    """A job's function with its options and those that all jobs have."""

    def job(*, log_format: str, **options: Any) -> None:
        if log_format == "json":
            logs.write_json("", logging.WARNING)
            logs.write_json(_events.name)
            people.quiet = True
        command(**options)

    own = inspect.signature(command, eval_str=True)
    more = inspect.Parameter("log_format", inspect.Parameter.KEYWORD_ONLY, default="text", annotation=_LogFormatOption)
    job.__signature__ = own.replace(parameters=[*own.parameters.values(), more])  # type: ignore[attr-defined]
    app = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)
    paragraphs = inspect.cleandoc(command.__doc__).split("\n\n")
    app.command(help="\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs))(job)
    return app


@contextmanager
def exit_codes(debug: bool) -> Iterator[None]:
    """0 done, 2 bad input, 143 stopped, 130 interrupted, 1 anything else; an error is one line on stderr.

    A traceback comes only with --debug.
    """
    if not people.quiet:
        logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    signals.watch(_say_stopped)
    with signals.unwound():
        try:
            yield
        except RayEraserError as error:
            _say(error, debug)
            raise typer.Exit(BAD_INPUT if isinstance(error, InputError) else FAILED) from None
        except (typer.Exit, typer.Abort):
            raise
        except Exception as error:  # noqa: BLE001 - the last place where it can be said in one line
            _say(error, debug)
            raise typer.Exit(FAILED) from None


def _say_stopped(number: int) -> None:
    line = signals.line_of(number)
    if people.quiet:
        _events.error(line.partition(":")[0])
        return
    if people.is_terminal:
        line = "\x1b[?25h\n" + line  # a progress bar hides the cursor, and stands in this line
    # Not through a buffer, which may be being written to just now.
    os.write(sys.stderr.fileno(), line.encode())


def _say(error: Exception, debug: bool) -> None:
    if signals.stopping():
        return  # it comes of that, and one line was said
    if debug:
        traceback.print_exc()
    if people.quiet:
        _events.error("failed", extra={"error": type(error).__name__, "problem": logs.named_safely(error)})
        return
    # What a submitted job says stays in Ray's logs, so that it must name nobody there either.
    text = str(error) if submission_id() is None else logs.named_safely(error)
    line = " ".join(text.split()) or type(error).__name__
    sys.stderr.write(f"error: {line}\n")


def settings(config: Path | None, changes: list[str] | None, presets: list[str] | None = None) -> EraserConfig:
    """The job's configuration from --preset, --config and --set.

    A deployment remembers where its secrets are: the same places whichever folder it is started from next.
    """
    loaded = load_config(config, changes or [], presets or [])
    given = {name: getattr(loaded.unlearning, name) for name in ("signing_key", "key_folder")}
    places = {name: str(Path(path).expanduser().absolute()) for name, path in given.items() if path}
    return loaded.model_copy(update={"unlearning": loaded.unlearning.model_copy(update=places)})


def check_known(option: str, given: list[str], known: list[str]) -> None:
    """Raise `ConfigError` for a name that is not among the known ones."""
    for name in given:
        if name not in known:
            raise ConfigError(option, f"{name!r} is not known: choose from {', '.join(known)}")


def place(storage_path: str | None, deployment: str) -> str:
    """Where a deployment's files are, the same place whichever folder another process works in.

    Raises:
        InputError: this is a submitted job, and the place is in its own folder.
    """
    if storage_path is None:
        storage_path = f"deployments/{deployment}"
    if "://" in storage_path:
        return storage_path
    folder = Path(storage_path).expanduser()
    if submission_id() is not None and not folder.is_absolute():
        raise InputError(
            f"storage path {storage_path!r} is in the submitted job's folder, a copy that Ray deletes: give --storage-path as "
            "an absolute path that all nodes reach, or as s3://... or gs://..."
        )
    return str(folder.absolute())


def submission_id() -> str | None:
    """The id that `ray job submit` gave this job; None for one that was started by hand."""
    # Ray hands a job's metadata to its process in this variable, and to nobody who asks the runtime context.
    metadata = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}").get("metadata") or {}
    return metadata.get("job_submission_id")


def keep(storage_path: str, result: dict[str, Any]) -> None:
    """Where this is a submitted job, store its result as `results/SUBMISSION.json` under the storage path.

    It stays when Ray and its logs are gone. So it must name no user and no item, and hold no salt: what is forgotten later
    would still be there. Of digests of what is current, see `lasting`.
    """
    submission = submission_id()
    if submission is not None:
        name = re.sub(r"[^A-Za-z0-9._-]", "_", submission)
        fields = {"submission_id": submission, "job": Path(sys.argv[0]).stem, "finished_at": round(time.time(), 3)}
        say(f"result: {Store(storage_path).write_result(name, fields | {'result': result})} under {storage_path}")


def for_logs(reason: str) -> str:
    """Why something was refused; in a submitted job, whose output Ray keeps, not in words that may name somebody."""
    return reason if submission_id() is None else "refused: run this where its output is not kept, to see why"


def lasting(result: dict[str, Any]) -> dict[str, Any]:
    """What may be kept of a result that says what is current: no digest of a generation, nor of its files.

    With the rest of the data at hand, it would give away what was erased since.
    """
    kept = {name: value for name, value in result.items() if name != "digest"}
    if "mismatches" in kept:
        kept["mismatches"] = [re.sub(r"[0-9a-f]{64}", "...", line) for line in kept["mismatches"]]
    return kept


def storage_of(client: Client) -> str:
    """The storage path of a deployment that may have been found by its name."""
    return client.describe().storage_path if submission_id() is not None else ""


def running(deployment: str, storage_path: str | None, ray_address: str | None) -> Client | None:
    """The deployment on a Ray that is there, at this storage path if one is given. Starts nothing, and waits for nobody."""
    from ray_eraser.runtime.presence import may_run_here

    if ray_address == "local" or (ray_address is None and not may_run_here()):
        return None

    from ray_eraser.runtime.client import connect
    from ray_eraser.runtime.session import find_ray

    if not find_ray(ray_address):
        return None
    try:
        client = connect(deployment)
        found = client.describe().storage_path
    except (DeploymentError, StaleEpochError):  # it does not run, is untrained, or another one has taken over
        return None
    return client if storage_path is None or found == place(storage_path, deployment) else None


@contextmanager
def reading(deployment: str, storage_path: str | None, ledger_url: str, ray_address: str | None) -> Iterator[Client | Observer]:
    """Answers questions: the deployment that runs, or else its files. Starts nothing, and takes nothing over.

    Raises:
        DeploymentError: neither is there.
    """
    client = running(deployment, storage_path, ray_address)
    if client is not None:
        yield client
        return
    with Observer(deployment, place(storage_path, deployment), ledger_url) as observer:
        yield observer


@contextmanager
def deployed(
    deployment: str,
    storage_path: str | None,
    ledger_url: str,
    ray_address: str | None,
    *,
    config: EraserConfig | None = None,
    take_over: bool = False,
) -> Iterator[Client]:
    """The deployment to give orders to; see `attach`. On a Ray of this job alone it ends with the block.

    Raises:
        as `attach`.
    """
    from ray_eraser.runtime.session import session

    with session(ray_address) as ray_session:
        client = attach(deployment, storage_path, ledger_url, config=config, take_over=take_over)
        try:
            yield client
        finally:
            if ray_session.local:
                end(client)


def end(client: Client) -> None:
    """End a deployment on a Ray of this job alone. Else the next start would wait until its lease has run out."""
    try:
        client.shutdown()
    except RayEraserError as error:
        logging.getLogger(__name__).debug("not ended: %s", logs.named_safely(error))


def attach(
    deployment: str,
    storage_path: str | None,
    ledger_url: str,
    *,
    config: EraserConfig | None = None,
    take_over: bool = False,
) -> Client:
    """The deployment that runs under this name on the connected Ray, or else the one that comes back from its storage path.

    Where another coordinator runs it, this one waits for up to a minute; see also `TakeOverOption`.

    Args:
        deployment: its name.
        storage_path: where its files are; None: wherever those of the running one are, else the usual place.
        ledger_url: where the ledger is, if it is not SQLite under the storage path.
        config: for a new deployment.
        take_over: do not wait for another coordinator to end.

    Raises:
        DeploymentError: neither is there, or what runs is at another storage path than the one given.
        InputError: another coordinator runs it, and goes on.
    """
    from ray_eraser.runtime.client import connect, deploy

    try:
        client = connect(deployment)
    except DeploymentError:
        client = None  # it does not run; it may be stored
    waits = partial(_say_who_is_waited_for, deployment, storage_path, ledger_url, take_over=take_over)
    is_said = (client is None or not _is_in_force(client)) and waits()
    try:
        with nullcontext() if is_said else _once_slow(waits):  # another job may have begun in the same moment
            if client is not None and storage_path is None:
                client.in_force(take_over=take_over, patience=_HELD_SECONDS)
                return client
            where = place(storage_path, deployment)
            return deploy(deployment, where, config, ledger_url=ledger_url, take_over=take_over, patience=_HELD_SECONDS)
    except (HeldError, StaleEpochError) as error:
        who = error.problem if isinstance(error, HeldError) else f"deployment {deployment!r}, in another place,"
        raise InputError(
            f"{who} runs and goes on: ask it there, end it with stop.py, or take it over with --take-over"
        ) from error


def _is_in_force(client: Client) -> bool:
    try:
        client.in_force()
    except (HeldError, StaleEpochError):
        return False
    return True


@contextmanager
def _once_slow(call: Callable[[], object]) -> Iterator[None]:
    timer = threading.Timer(_SLOW_SECONDS, call)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _say_who_is_waited_for(deployment: str, storage_path: str | None, ledger_url: str, *, take_over: bool) -> bool:
    """One line, where somebody is; whether there was one."""
    import ray

    here = ray.get_runtime_context().gcs_address
    try:
        with opened_ledger(place(storage_path, deployment), deployment, ledger_url) as (_, ledger):
            rows = [(Holder.from_json(row.holder), row.lease_seconds) for row in ledger.open_epochs()]
    except (InputError, LedgerError):
        return False  # there is none, or only the machine where the deployment will run reaches it
    for holder, lease in rows:
        if holder.deployment and holder.place != here and not holder.is_gone():
            if take_over:
                say(f"takes over from {holder}: waits until it can answer no more, about {lease:g} s")
            else:
                say(f"waits for {holder}, up to {_HELD_SECONDS:g} s")
            return True
    return False


@contextmanager
def opened_ledger(storage_path: str, deployment: str, ledger_url: str) -> Iterator[tuple[Store, Ledger]]:
    """The store and the ledger, for jobs that only read."""
    store = Store(storage_path)
    ledger = existing_ledger(store, deployment, ledger_url)
    try:
        yield store, ledger
    finally:
        ledger.close()


def carried_out(client: Client, ticket: Ticket, seconds: float, *, now: bool) -> RequestState:
    """Wait for the end of something that was accepted, where the plan means it to be carried out at once, or it is made to.

    Gives the state that it is in then: a plan may let it wait for days.
    """
    _events.info("accepted", extra={"requests": [ticket.request_id], "deployment": client.deployment})
    if now:
        client.process_now()
    elif (plan := client.describe().plan) != "immediate":
        say(f"it waits for others, by the plan {plan}; --now has all that waits carried out")
        return ticket.status()
    with TrainingProgress() as progress:
        state = awaited(client, ticket, seconds, progress)
    _events.info("finished", extra={"requests": [ticket.request_id], "deployment": client.deployment, "state": str(state)})
    return state


def awaited(client: Client, ticket: Ticket, seconds: float, progress: TrainingProgress) -> RequestState:
    """The state in which something that was accepted ended; shows what is being trained meanwhile.

    Raises:
        WaitTimeoutError, SetAsideError: as `Ticket.finished`.
    """
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        try:
            return ticket.finished(min(_LOOK_SECONDS, left))
        except WaitTimeoutError:
            progress(client.progress())
    return ticket.finished(0)


def nothing_waits(client: Client, seconds: float) -> None:
    """Have all that waits carried out, and return when nothing waits any more; shows what is being trained.

    Raises:
        WaitTimeoutError: something still does.
    """
    deadline = time.monotonic() + seconds
    client.process_now()
    with TrainingProgress() as progress:
        while any(client.describe().requests[state] for state in _WAITING):
            if time.monotonic() > deadline:
                raise WaitTimeoutError("the end of all requests that wait", seconds)
            progress(client.progress())
            time.sleep(_LOOK_SECONDS)


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
        text = file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataFileError(str(file), f"cannot be read ({error}): give a file that unlearn.py --receipt wrote") from error
    if (accepted := Accepted.from_json(text)) is not None:
        way_out = f"fetch it with receipt.py --receipt {file}"
        raise DataFileError(str(file), f"has no receipt yet, request {accepted.request_id} was accepted: {way_out}")
    try:
        return ReceiptFile.from_json(text)
    except InputError as error:
        raise DataFileError(str(file), str(error)) from error


def receipt_fields(receipt: Receipt, state: RequestState) -> dict[str, Any]:
    """What jobs show of a receipt. Without the salt, and naming nobody."""
    return {
        "request_id": receipt.request_id,
        "state": str(state),
        "guarantee": receipt.guarantee,
        "chosen": list(receipt.chosen),
        "shards_touched": list(receipt.shards_touched),
        "pairs_erased": receipt.pairs_erased,
        "seconds": receipt.seconds,
        "generation": receipt.generation,
        "purged": list(receipt.purged),
        "commitment": receipt.commitment,
        "number": receipt.number,
        "digest": receipt.digest(),
        "key_id": receipt.key_id,
        "signature": receipt.signature,
    }


def where_to_ask(deployment: str, storage_path: str | None) -> str:
    """The options with which another job finds the same deployment."""
    options = [] if deployment == "default" else ["--deployment", deployment]
    options += [] if storage_path is None else ["--storage-path", storage_path]
    return shlex.join(options)


def say_when_stopped(line: str) -> None:
    """Have the job say one more line if it is stopped from here on."""

    def both(number: int) -> None:
        _say_stopped(number)
        if not people.quiet:
            os.write(sys.stderr.fileno(), f"{line}\n".encode())

    signals.watch(both)


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


def results() -> Console:
    """Where tables go: stdout, in a pipe as wide as they are, so that digests and names of files stay in one piece."""
    console = Console()
    in_a_pipe = not console.is_terminal and "COLUMNS" not in os.environ
    return Console(width=_WIDEST) if in_a_pipe else console


def print_table(title: str, rows: dict[str, Any]) -> None:
    """Facts for people, on stdout."""
    table = Table(title=Text(title), title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, Text(str(value)))
    results().print(table)


class TrainingProgress:
    """A bar for each stage on a terminal; in a pipe, one plain line when a stage begins and when a shard is done.

    With --log-format json, an event in the place of a line. What is done in several runs begins again with each.
    """

    _NAMES = {"partition": "dividing", "shards": "training shards", "aggregation": "aggregating"}  # noqa: RUF012 - never changed

    def __init__(self) -> None:
        named, noted = bars.TextColumn("{task.description:<16}"), bars.TextColumn("{task.fields[note]}")
        columns = (named, bars.BarColumn(), bars.MofNCompleteColumn(), bars.TimeElapsedColumn(), noted)
        self._bars = bars.Progress(*columns, console=people) if people.is_terminal else None
        self._tasks: dict[str, bars.TaskID] = {}
        self._last: Progress | None = None

    def __enter__(self) -> Self:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            for task in self._tasks.values():
                self._bars.update(task, completed=self._bars.tasks[task].total)
            self._bars.stop()

    def __call__(self, progress: Progress) -> None:
        """Show what `Client.progress` gives."""
        stage, done, total, note = progress.stage, progress.done, progress.total, progress.note
        if stage not in self._NAMES:
            return
        if progress == self._last:
            return
        self._last = progress
        _events.info(self._NAMES[stage], extra={"done": done, "total": total, "note": note})
        if self._bars is None:
            say(f"{self._NAMES[stage]} {done}/{total} {note}".rstrip())
            return
        for earlier, task in self._tasks.items():
            if earlier != stage:
                self._bars.update(task, completed=self._bars.tasks[task].total)
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(self._NAMES[stage], total=total, note="")
        self._bars.update(self._tasks[stage], completed=done, total=total, note=note)
