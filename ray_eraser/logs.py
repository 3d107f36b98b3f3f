"""Logs that programs read: one JSON object a line, and no user id in any.

What is logged are events with fields in the project's words: `deployment`, `requests`, `shard`, `pairs`, `seconds`. Who logs
names no user and no item. Of errors only what cannot name one is written: see `named_safely`.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping

from ray_eraser.errors import DataFileError, InvalidIdError, RayEraserError, RequestError, UnknownIdError

_USUAL = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_MAY_NAME_SOMEBODY = (UnknownIdError, InvalidIdError, RequestError, DataFileError)


class JsonFormatter(logging.Formatter):
    """`time` (UTC), `level`, `logger`, `event`, and the fields of the record; of an exception its type, never its text.

    Args:
        always: fields of every line, such as the process that writes it.
    """

    def __init__(self, always: Mapping[str, object] | None = None) -> None:
        super().__init__()
        self._always = dict(always or {})

    def format(self, record: logging.LogRecord) -> str:
        whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        fields: dict[str, object] = {
            "time": f"{whole}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "event": record.getMessage(),
            **self._always,
        }
        fields |= {name: value for name, value in vars(record).items() if name not in _USUAL and name[0] != "_"}
        if record.exc_info and record.exc_info[0] is not None:
            fields["error"] = record.exc_info[0].__name__  # a traceback may quote what was handed in
        return json.dumps(fields, default=str)


def write_json(name: str = "ray_eraser", level: int = logging.INFO, **always: object) -> None:
    """Have a logger and those below it write JSON on stderr, and nothing else; "" is the root of all."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter(always))
    logger = logging.getLogger(name or None)
    logger.handlers[:] = [handler]
    logger.setLevel(level)
    logger.propagate = False


def named_safely(error: Exception) -> str:
    """What an error says, where it cannot name a user or an item; else its type."""
    names_nobody = isinstance(error, RayEraserError) and not isinstance(error, _MAY_NAME_SOMEBODY)
    return str(error) if names_nobody else type(error).__name__
