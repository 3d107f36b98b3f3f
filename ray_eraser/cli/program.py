"""Runs a command's function as a program: its options, its help, its exit codes, and how it says an error."""

from __future__ import annotations

import inspect
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

import typer

from ray_eraser import logs
from ray_eraser.cli import output
from ray_eraser.cli.options import DebugOption, LogFormatOption
from ray_eraser.cli.submitted import submission_id
from ray_eraser.errors import InputError, RayEraserError
from ray_eraser.runtime import signals

DONE, FAILED, BAD_INPUT = 0, 1, 2

Command = Callable[..., None]

_VALUES: dict[object, str] = {str: "TEXT", int: "NUMBER", int | None: "NUMBER", float: "NUMBER"}
"""What the help calls the value of an option that names it in no other way, by its type."""

_UsageError: Any = typer.BadParameter.__bases__[0]  # click's own class, which newer versions of typer bring along


def run(name: str, function: Command, arguments: Sequence[str]) -> None:
    """Run a command and end the process with its exit code."""
    try:
        code = command_of(function).main(list(arguments), prog_name=f"ray-eraser {name}", standalone_mode=False)
    except _UsageError as error:
        sys.stderr.write(f"error: {_problem_of(error)}\nray-eraser {name} --help lists the options\n")
        code = BAD_INPUT
    except typer.Abort:
        code = FAILED
    sys.exit(code or DONE)


def _problem_of(error: Any) -> str:
    """What is wrong with the options, in words like those of other errors."""
    if hasattr(error, "possibilities"):
        likely = get_close_matches(error.option_name, error.possibilities or (), n=1, cutoff=0)
        return f"there is no option {error.option_name}" + (f": did you mean {likely[0]}?" if likely else "")
    problem = str(error.format_message()).rstrip(".")
    return f"{problem[:1].lower()}{problem[1:]}"


def command_of(function: Command) -> Any:
    """A command's function with its own options and the options that all commands have.

    The help is the docstring of the function's module, and the examples are the lines after "Examples:" there.
    """

    def command(*, debug: bool, log_format: str, **options: Any) -> None:
        if log_format == "json":
            logs.write_json("", logging.WARNING)
            logs.write_json(output.events.name)
            output.people.quiet = True
        with exit_codes(debug):
            function(**options)

    own = inspect.signature(function, eval_str=True)
    named = inspect.Parameter.KEYWORD_ONLY
    more = [
        inspect.Parameter("debug", named, default=False, annotation=DebugOption),
        inspect.Parameter("log_format", named, default="text", annotation=LogFormatOption),
    ]
    parameters = [one.replace(kind=named) for one in own.parameters.values()]
    command.__signature__ = own.replace(parameters=[*parameters, *more])  # type: ignore[attr-defined]
    app = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)
    text, _, examples = inspect.cleandoc(sys.modules[function.__module__].__doc__ or "").partition("\n\nExamples:\n")
    about = "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))
    shown = "\n\n".join(["[bold]Examples[/bold]", *(line.strip() for line in examples.splitlines())])
    app.command(help=about, epilog=shown if examples else None)(command)
    made = typer.main.get_command(app)
    ask = made.get_help_option(typer.Context(made))
    for option in (*made.params, *([ask] if ask else [])):
        if getattr(option, "is_flag", False):
            option.metavar = ""  # it takes no value
        elif option.metavar is None and option.name in own.parameters:
            option.metavar = _VALUES.get(own.parameters[option.name].annotation.__origin__)
    return made


@contextmanager
def exit_codes(debug: bool) -> Iterator[None]:
    """Turn errors into one line on stderr and an exit code. A traceback is shown only with --debug.

    The codes are 0 done, 2 bad input, 143 stopped, 130 interrupted, and 1 anything else.
    """
    if not output.people.quiet:
        logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    signals.watch(_say_stopped)
    with signals.unwound():
        try:
            yield
        except RayEraserError as error:
            _say(error, debug)
            raise typer.Exit(BAD_INPUT if isinstance(error, InputError) else FAILED) from None
        except (typer.Exit, typer.Abort):
            raise
        except Exception as error:  # noqa: BLE001 - the last place where it can be said in one line
            _say(error, debug)
            raise typer.Exit(FAILED) from None


def say_when_stopped(line: str) -> None:
    """Have the command say one more line if it is stopped from here on."""

    def both(number: int) -> None:
        _say_stopped(number)
        if not output.people.quiet:
            os.write(sys.stderr.fileno(), f"{line}\n".encode())

    signals.watch(both)


def _say_stopped(number: int) -> None:
    line = signals.line_of(number)
    if output.people.quiet:
        output.events.error(line.partition(":")[0])
        return
    if output.people.is_terminal:
        line = "\x1b[?25h\n" + line  # a progress bar hides the cursor, and stands in this line
    # Not through a buffer: the main thread may be writing to it just now.
    os.write(sys.stderr.fileno(), line.encode())


def _say(error: Exception, debug: bool) -> None:
    if signals.stopping():
        return  # the stop caused this error, and its line was said
    if debug:
        traceback.print_exc()
    if output.people.quiet:
        output.events.error("failed", extra={"error": type(error).__name__, "problem": logs.named_safely(error)})
        return
    # Ray keeps the output of a submitted job, so an error must name nobody there either.
    text = str(error) if submission_id() is None else logs.named_safely(error)
    line = " ".join(text.split()) or type(error).__name__
    sys.stderr.write(f"error: {line}\n")
