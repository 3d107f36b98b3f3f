"""The reference of commands, from the options and the help of `ray_eraser.cli`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import import_module
from typing import Any, get_args

from ray_eraser.cli.main import GROUPS
from ray_eraser.cli.program import command_of

TITLE = """# Commands

`ray-eraser COMMAND --help` shows the same text in a terminal. Most commands take `--json` and then print one JSON object as the last line on
stdout. Progress and notices go to stderr.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | a check failed, or something broke |
| 2 | the input is at fault, and nothing was changed |
| 130 | interrupted (Ctrl-C) |
| 143 | stopped (SIGTERM) |
"""
SHARED = ("--debug", "--log-format", "--help")
"""Options of every command, which are described once."""


def commands_page() -> str:
    """One heading for each command, in the groups of `ray-eraser --help`."""
    parts = [TITLE]
    for title, commands in GROUPS.items():
        parts.append(f"\n## {title}\n")
        parts += [_command(name) for name in commands]
    parts.append("\n## Options of every command\n")
    parts.append(_table(option for option in _options("status") if option.opts[-1] in SHARED))
    return "\n".join(parts)


def _command(name: str) -> str:
    about, _, examples = _text(name).partition("\n\n**Examples**\n\n")
    shell = "\n".join(line for line in examples.splitlines() if line)
    parts = [f"### `ray-eraser {name}` {{ #{name} }}", about]
    parts += [f"```sh\n{shell}\n```"] if shell else []
    options = [option for option in _options(name) if option.opts[-1] not in SHARED]
    return "\n\n".join([*parts, _table(options)]) + "\n"


def _text(name: str) -> str:
    """A command's help and examples, with the terminal's markup as Markdown's."""
    command = _made(name)
    text = "\n\n".join(part for part in (command.help, command.epilog) if part)
    return re.sub(r"\[(bold|/bold)\]", "**", text)


def _options(name: str) -> list[Any]:
    return list(_made(name).params)


def _made(name: str) -> Any:
    return command_of(getattr(import_module(f"ray_eraser.cli.{name}"), name))


def _table(options: Iterator[Any] | list[Any]) -> str:
    rows = ["| option | meaning |", "|---|---|"]
    for option in options:
        value = "" if getattr(option, "is_flag", False) else f" {option.metavar or _value(option)}"
        names = ", ".join(f"`{one}{value}`" for one in option.opts)
        rows.append(f"| {names} | {' '.join((option.help or '').split())}{_default(option)} |")
    return "\n".join(rows) + "\n"


def _value(option: Any) -> str:
    """What stands for the value of an option that names nothing itself: its choices, or N, a number."""
    return " or ".join(map(str, get_args(option.type_descriptor.annotation))) or "N"


def _default(option: Any) -> str:
    if getattr(option, "required", False):
        return " Required."
    if option.default in (None, False, "", (), []) or "Default" in (option.help or ""):
        return ""
    return f" Default: `{option.default}`."
