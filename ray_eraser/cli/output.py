"""What commands write: results on stdout, everything else on stderr, for people or for programs."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ray_eraser.errors import InputError

_WIDEST = 1_000

people = Console(stderr=True)
"""Lines for people. Quiet with --log-format json."""

events = logging.getLogger("ray_eraser.cli")
"""The same for programs, without a user's or an item's id. Silent unless --log-format json."""
events.addHandler(logging.NullHandler())
events.propagate = False


def say(line: str) -> None:
    """Write one line for people, on stderr."""
    people.print(line, highlight=False, markup=False, soft_wrap=True)  # ids may look like markup


@contextmanager
def working(line: str, *, in_a_pipe: bool = True) -> Iterator[None]:
    """Say what takes time: on a terminal by a spinner, in a pipe by a line, unless `in_a_pipe` is false."""
    if people.is_terminal and not people.quiet:
        with people.status(escape(line)):
            yield
    else:
        if in_a_pipe:
            say(line)
        yield


def print_json(result: Mapping[str, Any]) -> None:
    """Write the one line that programs read."""
    sys.stdout.write(json.dumps(result) + "\n")


def results() -> Console:
    """The console of tables: stdout. In a pipe it is as wide as they are, so that digests and file names stay in one piece."""
    console = Console()
    in_a_pipe = not console.is_terminal and "COLUMNS" not in os.environ
    return Console(width=_WIDEST) if in_a_pipe else console


def print_facts(title: str, facts: Mapping[str, Any]) -> None:
    """Write a result for people, on stdout: a line for each fact. Values are written by `in_words`."""
    table = Table(title=Text(title), title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in facts.items():
        shown = seconds(value) if name.endswith("seconds") and isinstance(value, float) else in_words(value)
        table.add_row(name.replace("_", " "), Text(shown))
    results().print(table)


def explain(text: str) -> None:
    """Write a paragraph for people below a result."""
    results().print(text, highlight=False, markup=False)


def in_words(value: Any) -> str:
    """A value as a person reads it: 1,000 for a thousand, four digits of a fraction, parts of a mapping by name."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
    if isinstance(value, Mapping):
        value = [f"{str(name).replace('_', ' ')} {in_words(part)}" for name, part in value.items()]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(in_words, value)) or "none"
    return str(value)


def seconds(value: float) -> str:
    """A length of time as a person reads it."""
    for size, unit in ((86_400, "days"), (3_600, "h"), (60, "min")):
        if value >= 2 * size:
            return f"{value / size:.1f} {unit}"
    return f"{value:.1f} s" if value >= 1 else f"{value:.2g} s"


def durations(named: Mapping[str, float]) -> str:
    """Several lengths of time by name, in one line."""
    return ", ".join(f"{name.replace('_', ' ')} {seconds(value)}" for name, value in named.items())


def write(file: Path, text: str) -> None:
    """Write a result's file.

    Raises:
        InputError: it cannot be written.
    """
    try:
        file.write_text(text, "utf-8")
    except OSError as error:
        raise InputError(f"{file} cannot be written ({error.strerror}): choose another folder") from error
