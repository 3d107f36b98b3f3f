"""Machine-readable logs: one JSON object per line, without user ids.

Log records are events with fields in the project's words: `deployment`, `requests`, `shard`, `pairs`, `seconds`. No record
names a user or an item. Of an error, only text that cannot name one is written: see `named_safely`.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping

from ray_eraser.errors import RayEraserError

_USUAL = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """Format a record with `time` (UTC), `level`, `logger`, `event` and its fields. Exceptions appear by type, never by text.

    Args:
        always: fields to add to every line, such as the name of the process.
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
            fields["error"] = record.exc_info[0].__name__  # only the type, because a traceback may quote user input
        return json.dumps(fields, default=str)


def write_json(name: str = "ray_eraser", level: int = logging.INFO, **always: object) -> None:
    """Make a logger and its children write JSON to stderr, and nothing else. "" is the root logger."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter(always))
    logger = logging.getLogger(name or None)
    logger.handlers[:] = [handler]
    logger.setLevel(level)
    logger.propagate = False


def named_safely(error: Exception) -> str:
    """The text of an error without values that may be ids; of an error of another package, the name of its type."""
    return error.safe if isinstance(error, RayEraserError) else type(error).__name__
