"""The program `ray-eraser`: lists its commands, and imports only the one that runs.

Importing all commands would take seconds, and so would `--help`. Nothing that is slow to import is imported here.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import NoReturn

import ray_eraser
from ray_eraser.runtime import signals

_BAD_INPUT = 2

GROUPS = {
    "Learn and recommend": {
        "prepare": "read an interaction log in any format and write it as Parquet",
        "train": "divide a log into shards, train them, and store the deployment",
        "recommend": "recommend items to users, or list items that are like another one",
        "learn": "add interactions to a deployment",
        "evaluate": "measure recall and NDCG on held-out interactions",
        "vectors": "write the served vectors with their ids",
    },
    "Forget and prove": {
        "unlearn": "have users, items or interactions forgotten, and get the receipts",
        "receipt": "fetch the receipt of a request that was accepted before",
        "process": "carry out all requests that wait",
        "verify": "check a receipt, or the chain of all receipts",
        "audit": "train again from what remains and compare every bit with what is stored",
        "residue": "search all stored files and logs for erased ids",
        "export": "write the record of a period's requests",
        "keys": "make the key pair that signs receipts, or change to another one",
    },
    "Operate": {
        "status": "show shards, requests, deadlines, and problems",
        "doctor": "warn of dangers to a deployment, and say the way out",
        "serve": "serve a deployment over HTTP",
        "stop": "end a deployment that runs on a cluster",
        "repartition": "train everything from scratch on what remains, with other settings if wanted",
    },
    "Study": {
        "sweep": "train many deployments and find the best settings",
        "simulate": "predict how long requests wait under a plan",
        "reproduce": "measure the tables and figures of the papers",
        "attack": "attack an unlearned model by membership inference",
    },
}
"""By group, every command and its line of help."""

COMMANDS = [name for group in GROUPS.values() for name in group]

_EXAMPLE = """\
  ray-eraser train --data synthetic --storage-path shop     # a generated log; or your own: --data log.csv
  ray-eraser recommend --storage-path shop --user-id 1007
  ray-eraser unlearn --storage-path shop --user-id 1007 --receipt receipt.json
  ray-eraser verify --storage-path shop --receipt receipt.json --user-id 1007
"""


def main(command: str = "") -> None:
    """Run a command, with the arguments of this process.

    Args:
        command: its name. Without one, the first argument names it.
    """
    signals.watch()  # the imports below take time, and a command can be stopped in it
    arguments = sys.argv[1:]
    if not command:
        command, *arguments = arguments or [""]
        if command == "help" and arguments:
            command, arguments = arguments[0], ["--help"]
        _answer_at_once(command)
    if command not in COMMANDS:
        _refuse(command)
    _run(command, arguments)


def _answer_at_once(asked: str) -> None:
    """Answer questions about the program itself, and end it."""
    if asked in ("--help", "-h", "help"):
        sys.stdout.write(overview())
        sys.exit(0)
    if asked == "--version":
        sys.stdout.write(f"ray-eraser {ray_eraser.__version__}\n")
        sys.exit(0)
    if not asked:
        sys.stderr.write(overview())
        sys.exit(_BAD_INPUT)


def overview() -> str:
    """The text of `ray-eraser --help`."""
    width = max(map(len, COMMANDS)) + 2
    lines = ["Usage: ray-eraser COMMAND [OPTIONS]", "", "Exact recommendation unlearning: train, recommend, forget, prove.", ""]
    for title, commands in GROUPS.items():
        lines += [f"{title}:", *(f"  {name:<{width}}{help_}" for name, help_ in commands.items()), ""]
    lines += ["Options:", "  --help     this text; after a command, that command's options", "  --version  the version", ""]
    return "\n".join([*lines, "Example:", _EXAMPLE])


def _refuse(command: str) -> NoReturn:
    if command.startswith("-"):
        problem = f"there is no option {command} before the command: options come after it"
    else:
        likely = get_close_matches(command, COMMANDS, n=1)
        problem = f"there is no command {command!r}" + (f": did you mean {likely[0]!r}?" if likely else "")
    sys.stderr.write(f"error: {problem}\nray-eraser --help lists the commands\n")
    sys.exit(_BAD_INPUT)


def _run(command: str, arguments: Sequence[str]) -> None:
    module = import_module(f"ray_eraser.cli.{command}")

    from ray_eraser.cli.program import run

    run(command, getattr(module, command), arguments)
