"""Errors about data files whose text quotes no id, so that logs and submitted jobs may show it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ray_eraser.errors import DataFileError


def some_of(names: Sequence[str], most: int) -> str:
    """The first `most` names for one line of a message, and the number of the others."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def unusable(path: str | Path, problem: str, line: int | None = None) -> DataFileError:
    """The error for a file. `problem` quotes nothing from the file but names of columns."""
    return DataFileError(str(path), problem, line, names_nobody=True)


def unnamed(error: DataFileError) -> DataFileError:
    """The same error, declared to quote no id."""
    return DataFileError(error.path, error.problem, error.line, names_nobody=True)
