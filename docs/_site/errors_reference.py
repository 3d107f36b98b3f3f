"""The reference of errors, from the classes of `ray_eraser.errors`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

from ray_eraser.errors import InputError, RayEraserError
from ray_eraser.web.answers import answer_to

TITLE = """# Errors

Every error that the package raises on purpose derives from [`RayEraserError`](python.md#ray_eraser.RayEraserError). Its fields are its
arguments. Its message names the thing, the value and the way out. In the messages below, words in CAPITALS stand for the fields.

A command that ends with an `InputError` has exit code 2 and has changed nothing. Every other error gives exit code 1.
"""

WAYS_OUT = {
    "RayEraserError": "Read the message of the class that was raised. `--debug` shows the traceback of a command.",
    "InputError": "Correct the input and try again.",
    "DataFileError": "The message names the file, the line and the column or value. Correct the file, or change the "
    "[settings of `data`](settings.md#data) that it names.",
    "ConfigError": "Correct the key that the message names. [Settings](settings.md) lists all keys and their ranges.",
    "ExtensionError": "Correct the class that the message names. [Extend](../extend.md) says what it must have.",
    "InvalidIdError": "Give an id that is a text or a whole number, as the log has it.",
    "UnknownIdError": "Check the spelling against the log. The message names ids that are spelled almost alike. If the id was erased, there "
    "is nothing left to do.",
    "RequestError": "Name one user, one item, or interactions that the deployment stores.",
    "QueueFullError": "Wait as long as the message says, and submit again. A higher "
    "[`unlearning.max_pending`](settings.md#unlearning.max_pending) lets more requests wait.",
    "UnknownRequestError": "Check the request's id, and that `--storage-path` or `--deployment` is that of the deployment which accepted it.",
    "DeploymentError": "Check the name and the storage path. To change settings, use `ray-eraser repartition`. To begin, use `ray-eraser train`.",
    "HeldError": "Use the deployment where it runs, end it there with `ray-eraser stop`, or take it over with `--take-over`.",
    "StoreError": "Check the disk or bucket. A running deployment makes damaged files again. If it does not start, restore a "
    "[backup](../operate.md#backup-and-coming-back).",
    "LedgerError": "Check the ledger's disk or server. Then repeat the submission under the same idempotency key.",
    "StaleEpochError": "Another coordinator is in force: use that one. A service stands by and comes back when the other ends.",
    "TrainingError": "Lower the learning rate (`model.lr`) or raise the regularisation (`model.reg`), and retry the request or train again.",
    "DeviceError": "Bring back a device of the kind that the message names, or move to another one with "
    "`ray-eraser repartition --set runtime.device=cpu`.",
    "DeviceMemoryError": "Change one of the settings that the message names, and retry the request.",
    "IllegalTransitionError": "Ask for the request's state with `ray-eraser status`. Only a request that was set aside can be retried.",
    "PoolError": "Nothing: Ray starts the process again, and the request is tried again. If it happens often, look for a lack of memory in Ray's logs.",
    "UnexpectedError": "Look for the traceback in Ray's logs, and report it.",
    "SetAsideError": "Mend the cause that the message names, then run `ray-eraser status --retry REQUEST_ID`. The served model stays free of its data.",
    "WaitTimeoutError": "Ask for the state with `ray-eraser status`, or wait longer with `--timeout`. The request is recorded and goes on.",
}
"""By class, the way out. A class without one stops the build."""

EXAMPLES = {"str": None, "int": 3, "float": 30.0, "int | None": None}
"""By a field's type, the value that stands for it in a message; a text is its own name in capitals."""


def errors_page() -> str:
    """One heading for each class."""
    return "\n".join([TITLE, *(_entry(kind) for kind in _all(RayEraserError))])


def _all(kind: type[RayEraserError]) -> Iterator[type[RayEraserError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from _all(below)


def _entry(kind: type[RayEraserError]) -> str:
    title = f"\n## `{kind.__name__}` {{ #{kind.__name__} }}"
    parts = [title, inspect.cleandoc(kind.__doc__ or "")]
    if "__init__" in vars(kind):
        error = _example(kind)
        exit_code = 2 if isinstance(error, InputError) else 1
        codes = f"Exit code {exit_code}. Over HTTP: status {answer_to(error).status}."
        parts += [f"```text\n{error}\n```", f"**Way out.** {WAYS_OUT[kind.__name__]}", codes]
    else:
        parts.append(f"**Way out.** {WAYS_OUT[kind.__name__]}")
    return "\n\n".join(parts) + "\n"


def _example(kind: type[RayEraserError]) -> RayEraserError:
    """An error of this kind whose fields are their own names."""
    parameters = list(inspect.signature(kind).parameters.values())
    needed = [one for one in parameters if one.default is inspect.Parameter.empty]
    return kind(
        *(one.name.upper() if EXAMPLES.get(str(one.annotation)) is None else EXAMPLES[str(one.annotation)] for one in needed)
    )
