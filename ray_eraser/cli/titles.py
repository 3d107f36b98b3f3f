"""Reads the titles of items, for people: a CSV file, or a file that comes with MovieLens."""

from __future__ import annotations

import csv
from pathlib import Path

from ray_eraser.errors import DataFileError

_SEPARATORS = {"movies.dat": "::", "u.item": "|"}
"""Of MovieLens files, which are in Latin-1 and have no header."""


def read_titles(file: Path) -> dict[str, str]:
    """Titles by item id, from the first two columns of a file.

    A CSV file is in UTF-8 and may have a header line, as MovieLens' movies.csv does. `movies.dat` and `u.item` are read as
    MovieLens writes them.

    Raises:
        DataFileError: the file cannot be read, or a line has no title.
    """
    separator = _SEPARATORS.get(file.name)
    try:
        with file.open(encoding="latin-1" if separator else "utf-8-sig", newline="") as stream:
            rows = [line.rstrip("\r\n").split(separator) for line in stream] if separator else list(csv.reader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        problem = f"cannot be read ({error}): give a UTF-8 CSV file with an item id and a title"
        raise DataFileError(str(file), problem, names_nobody=True) from error
    titles = {}
    for line, row in enumerate(rows, 1):
        if not row:
            continue
        if len(row) < 2:
            raise DataFileError(str(file), "expected an item id and a title", line, names_nobody=True)
        titles[row[0].strip()] = row[1].strip()
    return titles
