"""The numbers and names of shards, generations, epochs, requests, users and items."""

from __future__ import annotations

import numbers
from typing import NewType

from ray_eraser.errors import InvalidIdError, shortened

ShardId = NewType("ShardId", int)
"""0 .. K-1."""

Generation = NewType("Generation", int)
"""Counts publications: the first fit is 1, and every finished batch of requests makes the next."""

Epoch = NewType("Epoch", int)
"""Counts the starts of a deployment's coordinator. A shard obeys the highest epoch that it has seen."""

RequestId = NewType("RequestId", str)
"""The random name of one request. It says nothing about the erased data."""

RawId = int | str
"""A user or an item as a caller names it. An id is text. An integer of any kind stands for its decimal digits."""

LONGEST_ID = 1000
"""Maximal number of characters of an id. A longer text is a broken quote or a wrong column."""

_MOST_BITS = 3000  # of an integer: Python refuses to write very long integers as text


def id_problem(raw: object) -> str | None:
    """Why a value cannot be an id, to follow "the user id"; None if it can. Files, requests and reads share this rule.

    An id is a text with at least one character that is not white space, or an integer of any kind (NumPy's too). A bool or a
    float is never an id.
    """
    if isinstance(raw, str):
        return _text_problem(raw)
    if isinstance(raw, bool) or not isinstance(raw, numbers.Integral):
        return f"{shortened(raw)} is a {type(raw).__name__}: give a string or an integer"
    if int(raw).bit_length() > _MOST_BITS:
        return f"has {int(raw).bit_length()} bits, more than {_MOST_BITS}"
    return None


def _text_problem(raw: str) -> str | None:
    if not raw.strip():
        return "is empty"
    if "\0" in raw:
        return f"{shortened(raw)} holds a NUL byte"
    if len(raw) > LONGEST_ID:
        return f"has {len(raw)} characters, more than {LONGEST_ID}: is the column or a quote wrong?"
    try:
        raw.encode()
    except UnicodeEncodeError:
        return f"{shortened(raw)} holds half a surrogate pair and is no text"
    return None


def id_text(raw: RawId) -> str:
    """An id as text: 7, numpy.int64(7) and "7" are one id, "07" is another.

    Raises:
        ValueError: the value cannot be an id; the message follows "the user id".
    """
    if problem := id_problem(raw):
        raise ValueError(problem)
    return str(raw) if isinstance(raw, str) else str(int(raw))  # numpy's strings become Python's


def checked_id(kind: str, raw: RawId) -> str:
    """An id as text, for a user or an item (`kind`) that a caller names.

    Raises:
        InvalidIdError: the value cannot be an id.
    """
    if problem := id_problem(raw):
        raise InvalidIdError(kind, problem)
    return id_text(raw)
