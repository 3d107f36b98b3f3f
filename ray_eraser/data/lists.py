"""Files such as `train.txt`: a user and the user's items on each line, or one interaction on each line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from ray_eraser.config import DataConfig
from ray_eraser.data.columns import Columns, Log
from ray_eraser.data.content import content
from ray_eraser.data.problems import unusable
from ray_eraser.data.raw import Raw, log_of
from ray_eraser.data.text import is_number, looks_like_header
from ray_eraser.errors import DataFileError

_SEPARATORS = ("::", ",", ";", "|")
_ENOUGH = 10
"""From this many lines on, the same number of fields on every line is no accident."""

_MOST = 0.9
"""The share of lines of interactions that have the same number of fields, if a few are damaged."""


@dataclass(frozen=True)
class Lines:
    """The lines of one file that are not blank.

    Attributes:
        path: of the file.
        fields: of every line.
        numbers: the number of every line.
        header: the fields of the header line; empty if there is none.
        notices: remarks so far.
    """

    path: Path
    fields: Sequence[Sequence[str]]
    numbers: Sequence[int]
    header: Sequence[str]
    notices: tuple[str, ...]


def read_lists(paths: dict[str, Path], config: DataConfig, *, times: bool = False) -> dict[str, Log]:
    """Read the sets of a log, which are all of one format.

    Lines are `user item item ...`, `user:item item ...`, `user item rating` or `user item rating time`. Ratings and times are
    recognised by the form of the file: each line has the same three or four fields, and users are on several lines.

    Args:
        paths: of the files, by the name of the set; the training set's comes first.
        config: ratings are read only for `min_rating`, times only for `test_from`.
        times: read the times in any case.

    Raises:
        DataFileError: names the line where there is one, and what is wrong.
    """
    files = {name: _lines(path) for name, path in paths.items()}
    n_fields = _n_fields(next(iter(files.values())))
    logs = {}
    for name, lines in files.items():
        if n_fields is not None:
            logs[name] = _interactions(lines, n_fields, config, times=times)
        else:
            if config.min_rating is not None:
                raise unusable(lines.path, "has no ratings: leave data.min_rating out")
            if times or config.test_from is not None:
                raise unusable(lines.path, "has no times: leave data.test_from out")
            logs[name] = _user_lines(lines, config)
    return logs


def _lines(path: Path) -> Lines:
    # Split as bytes: there are spaces beyond ASCII that an id may have.
    numbered = [(number, line) for number, line in enumerate(content(path).split(b"\n"), start=1) if line.split()]
    numbers = [number for number, _ in numbered]
    fields = [[field.decode() for field in line.split()] for _, line in numbered]
    notices = []
    separator = next((one for one in _SEPARATORS if any(one in own[0] for own in fields)), None)
    if separator is not None and all(len(own) == 1 for own in fields):
        fields = [own[0].split(separator) for own in fields]
        notices.append(f"the fields are separated by {separator!r}")
    elif _has_user_colons(path, fields):
        fields = [[user, *([item] if item else []), *items] for (user, _, item), items in _parted(fields)]
        notices.append("each line is read as user:items")
    if len(fields) < 2 or not _is_header(fields):
        return Lines(path, fields, numbers, (), tuple(notices))
    if "item" in fields[0][0].lower():
        raise unusable(path, "its header line names items first: put the users first", numbers[0])
    return Lines(path, fields[1:], numbers[1:], fields[0], (*notices, "the first line is read as a header"))


def _parted(fields: list[list[str]]) -> list[tuple[tuple[str, str, str], list[str]]]:
    return [(own[0].partition(":"), own[1:]) for own in fields]


def _has_user_colons(path: Path, fields: list[list[str]]) -> bool:
    """Whether every line is `user:item item ...`. Ids such as `user:7` have a colon too, but few different words before it.

    Raises:
        DataFileError: both are possible.
    """
    parted = _parted(fields)
    users = [user for (user, colon, rest), _ in parted if user and colon and ":" not in rest]
    if len(users) < len(fields) or any(":" in item for _, items in parted for item in items):
        return False
    n_users = len(set(users))
    if len(users) // 2 < n_users < len(users):
        raise unusable(path, "may have user:items on each line, or ids with a colon: separate users and items by a blank")
    return n_users == len(users)


def _is_header(fields: list[list[str]]) -> bool:
    """Whether the first line has names where all others have numbers, or names that columns usually have."""
    first = fields[0]
    if looks_like_header(first):
        return True
    words = not any(map(is_number, first))
    return words and len(first) > 1 and all(is_number(field) for own in fields[1:] for field in own[:2])


def _n_fields(lines: Lines) -> int | None:
    """3 or 4 if every line is one interaction with its rating, and perhaps its time; None if a line lists a user's items.

    Raises:
        DataFileError: both are possible.
    """
    lengths = Counter(len(own) for own in lines.fields)
    n_fields, count = lengths.most_common(1)[0] if lengths else (0, 0)
    n_lines, n_users = len(lines.fields), len({own[0] for own in lines.fields})
    if n_fields < 3:
        return None  # a user and one item is the same either way
    if count < n_lines:
        if n_lines >= _ENOUGH and count >= _MOST * n_lines and 2 * n_users <= n_lines:
            odd = next(place for place, own in enumerate(lines.fields) if len(own) != n_fields)
            found = len(lines.fields[odd])
            raise unusable(lines.path, f"has {found} fields here and {n_fields} on most lines: mend it", lines.numbers[odd])
        return None
    numeric = all(is_number(field) for own in lines.fields for field in own[2:])
    if n_users < n_lines and numeric and n_fields <= 4:
        return n_fields
    if n_users < n_lines or (n_fields <= 4 and numeric and n_lines >= _ENOUGH and _few_values(lines)):
        raise unusable(
            lines.path,
            f"every line has {n_fields} fields: is it a user with items, or one interaction with its rating? Write the log as "
            "a CSV file with a header such as user_id,item_id,rating",
            lines.numbers[0],
        )
    return None


def _few_values(lines: Lines) -> bool:
    """Whether the third fields are as few as ratings are, and the second ones are not."""
    items, ratings = ({own[place] for own in lines.fields} for place in (1, 2))
    return len(ratings) <= 11 and len(items) > len(ratings)


def _interactions(lines: Lines, n_fields: int, config: DataConfig, *, times: bool) -> Log:
    """One interaction on each line."""
    for number, own in zip(lines.numbers, lines.fields, strict=True):
        if len(own) != n_fields:
            raise unusable(lines.path, f"malformed row: {len(own)} fields, expected {n_fields} (user item rating)", number)

    def column(place: int) -> pa.Array:
        return pa.array([own[place] for own in lines.fields], pa.string())

    has_time = times or config.test_from is not None
    if has_time and n_fields < 4:
        raise unusable(lines.path, "has no times: leave data.test_from out")
    rating = None if config.min_rating is None else column(2)
    names = replace(_names(lines), rating=None if rating is None else "rating", time="time" if has_time else None)
    fields = "user item rating time" if n_fields == 4 else "user item rating"
    return log_of(
        Raw(
            lines.path,
            names,
            column(0),
            column(1),
            rating,
            column(3) if has_time else None,
            lambda row, problem: DataFileError(str(lines.path), problem, lines.numbers[row]),
            header=lines.header,
            typed=False,
            notices=(*lines.notices, f"each line is read as {fields}"),
        ),
        config,
    )


def _names(lines: Lines) -> Columns:
    return Columns(*lines.header[:2]) if len(set(lines.header[:2])) == 2 else Columns("user", "item")


def _user_lines(lines: Lines, config: DataConfig) -> Log:
    """A user and the user's items on each line; a user without items has no row."""
    counts = [len(own) - 1 for own in lines.fields]
    of_line = np.repeat(np.arange(len(counts)), counts)
    users = pa.array([own[0] for own in lines.fields], pa.string()).take(pa.array(of_line))
    items = pa.array([item for own in lines.fields for item in own[1:]], pa.string())
    return log_of(
        Raw(
            lines.path,
            _names(lines),
            users,
            items,
            None,
            None,
            lambda row, problem: DataFileError(str(lines.path), problem, lines.numbers[of_line[row]]),
            header=lines.header,
            typed=False,
            notices=lines.notices,
        ),
        config,
    )
