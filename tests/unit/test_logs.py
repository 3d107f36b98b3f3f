from __future__ import annotations

import io
import json
import logging

import pytest

from ray_eraser.errors import ConfigError, InvalidIdError, PoolError, RequestError, UnknownIdError
from ray_eraser.logs import JsonFormatter, named_safely, write_json


def line_of(formatter: JsonFormatter, log) -> dict:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    logger = logging.Logger("ray_eraser.shard")  # noqa: LOG001 - of this test alone
    logger.addHandler(handler)
    log(logger)
    assert stream.getvalue().count("\n") == 1
    return json.loads(stream.getvalue())


def test_an_event_is_one_object_with_its_fields():
    line = line_of(JsonFormatter({"process": "shard-3"}), lambda log: log.info("trained\nwell", extra={"shard": 3, "pairs": 7}))
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "INFO", "logger": "ray_eraser.shard", "event": "trained\nwell", "process": "shard-3", "shard": 3, "pairs": 7,
    }  # fmt: skip


def test_only_the_type_of_an_exception_is_written():
    def fails(log) -> None:
        try:
            {}["alice"]
        except KeyError:
            log.exception("not carried out")

    line = line_of(JsonFormatter(), fails)
    assert line["error"] == "KeyError"
    assert "alice" not in json.dumps(line)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (UnknownIdError("user", "alice"), UnknownIdError("user", "bob").safe),
        (InvalidIdError("user", "'alice\\x00' holds a NUL byte"), "a value cannot be the id of a user"),
        (RequestError("pair ('alice', 3)"), RequestError("").safe),
        (ValueError("alice"), "ValueError"),
        (PoolError("shard 3", "died"), "shard 3: died"),
        (ConfigError("model.width", "too small"), "config model.width: too small"),
    ],
)
def test_the_text_of_an_error_is_written_only_if_it_cannot_name_a_user(error, said):
    assert named_safely(error) == said


def test_a_logger_that_writes_json_writes_nothing_else(capsys):
    name = "ray_eraser.of_this_test"
    write_json(name, level=logging.WARNING, process="a")
    log = logging.getLogger(name)
    try:
        log.info("passed over")
        log.getChild("below").warning("said", extra={"n": 1})
        (line,) = capsys.readouterr().err.splitlines()
        assert json.loads(line)["event"] == "said"
        assert json.loads(line)["logger"] == f"{name}.below"
    finally:
        log.handlers.clear()
