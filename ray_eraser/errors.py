"""Every error that this package raises on purpose, in one tree.

An error's arguments are its fields, so an error survives pickling between processes. Its text is one line that names the
thing, the value and the way out. Values from the caller are shortened, because an id may be a megabyte long.
"""

from __future__ import annotations

import re

_LONGEST_LINE = 1000
_A = {"user": "a user", "item": "an item"}
_HIVE_FOLDER = re.compile(r"=[^/=]*(?=/)")
"""The value in the name of a folder such as `user_id=7/`, which may be an id."""


def shortened(value: object, limit: int = 60) -> str:
    """The `repr` of a value for an error's text, on one line. A long one loses its middle."""
    if not isinstance(value, str):
        try:
            return _without_middle(repr(value), limit)
        except ValueError:  # an integer of thousands of digits, alone or inside a container
            return f"a {type(value).__name__} too long to show"
    if len(value) <= limit:
        return repr(value)
    # Cut first, so that only the part shown is escaped.
    return f"{_without_middle(value, limit)!r} ({len(value)} characters)"


def one_line(text: str, limit: int = _LONGEST_LINE) -> str:
    """Text with unprintable characters escaped. A long text loses its middle, because both ends of an error matter."""
    cut = _without_middle(text, limit)
    return cut if cut.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in cut)


def _without_middle(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    return f"{text[: (limit + 1) // 2]}...{text[-(limit // 2) :]}"


class RayEraserError(Exception):
    """The root of the tree. Catch it to catch every error that the package raises on purpose."""

    @property
    def safe(self) -> str:
        """The text without values that may be ids, for logs and other outputs that are kept."""
        return str(self)


class InputError(RayEraserError):
    """The caller's input cannot be used. Nothing was changed."""

    @property
    def reason(self) -> str:
        """The text for a list of refusals, where every entry is a request that was refused."""
        return str(self)


class DataFileError(InputError):
    """A data file cannot be read as an interaction log.

    `names_nobody`: whether the problem quotes nothing from the file except column names.
    """

    def __init__(self, path: str, problem: str, line: int | None = None, names_nobody: bool = False) -> None:
        super().__init__(path, problem, line, names_nobody)
        self.path, self.problem, self.line, self.names_nobody = path, problem, line, names_nobody

    def __str__(self) -> str:
        return one_line(f"{self._where}: {self.problem}")

    @property
    def safe(self) -> str:
        hidden = "cannot be used; the reason may quote ids: read the file where the output is not kept to see it"
        text = str(self) if self.names_nobody else one_line(f"{self._where}: {hidden}")
        return _HIVE_FOLDER.sub("=...", text)

    @property
    def _where(self) -> str:
        return self.path if self.line is None else f"{self.path}, line {self.line}"


class ConfigError(InputError):
    """A configuration has an unknown key or a value out of range."""

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(key, problem)
        self.key, self.problem = key, problem

    def __str__(self) -> str:
        return f"config {self.key}: {self.problem}"


class ExtensionError(InputError):
    """A model, partition or aggregator from another package cannot be used."""

    def __init__(self, group: str, kind: str, problem: str) -> None:
        super().__init__(group, kind, problem)
        self.group, self.kind, self.problem = group, kind, problem

    def __str__(self) -> str:
        return f"{self.kind!r} of ray_eraser.{self.group} {self.problem}"


class InvalidIdError(InputError):
    """A value given as a user or an item cannot be an id."""

    def __init__(self, kind: str, problem: str) -> None:
        super().__init__(kind, problem)
        self.kind, self.problem = kind, problem

    def __str__(self) -> str:
        return one_line(f"the {self.kind} id {self.problem}")

    @property
    def safe(self) -> str:
        return f"a value cannot be the id of {_A[self.kind]}" if self.kind in _A else "a value cannot be an id"


class UnknownIdError(InputError):
    """A raw id that is not in the vocabulary: it was never there, or it was erased.

    `similar` are other spellings of the id that are in the vocabulary.
    """

    def __init__(self, kind: str, raw_id: str, similar: tuple[str, ...] = ()) -> None:
        super().__init__(kind, raw_id, similar)
        self.kind, self.raw_id, self.similar = kind, raw_id, similar

    def __str__(self) -> str:
        if self.similar:
            few = " or ".join(map(shortened, self.similar[:3]))
            return f"no {self.kind} {shortened(self.raw_id)} here: did you mean {few}, which is here?"
        return f"no {self.kind} {shortened(self.raw_id)} here: it was never learned from, or it has been erased"

    @property
    def safe(self) -> str:
        why = "another spelling of its id is here" if self.similar else "it was never learned from, or it has been erased"
        return f"no such {self.kind} here: {why}"


class RequestError(InputError):
    """An unlearning request cannot be accepted. Nothing was changed."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem

    def __str__(self) -> str:
        return one_line(f"unlearning request refused: {self.problem}")

    @property
    def reason(self) -> str:
        return one_line(self.problem)

    @property
    def safe(self) -> str:
        return "an unlearning request was refused; the reason may quote ids: repeat it where the output is not kept to see it"


class QueueFullError(InputError):
    """More requests would be waiting than `unlearning.max_pending` allows. Nothing was recorded."""

    def __init__(self, waiting: int, offered: int, limit: int, retry_seconds: float = 0.0) -> None:
        super().__init__(waiting, offered, limit, retry_seconds)
        self.waiting, self.offered, self.limit, self.retry_seconds = waiting, offered, limit, retry_seconds

    def __str__(self) -> str:
        when = f"in about {self.retry_seconds:g} s" if self.retry_seconds else "when some are finished"
        return (
            f"{self.waiting} requests are waiting, and {self.offered} more would exceed "
            f"unlearning.max_pending={self.limit}; nothing was recorded: try again {when}"
        )


class UnknownRequestError(InputError):
    """No unlearning request has this id."""

    def __init__(self, request_id: str) -> None:
        super().__init__(request_id)
        self.request_id = request_id

    def __str__(self) -> str:
        return (
            f"no unlearning request {shortened(self.request_id)} in this deployment's ledger: check the id and the storage path"
        )


class DeploymentError(InputError):
    """A deployment is missing, exists already, or has another configuration."""

    def __init__(self, deployment: str, problem: str) -> None:
        super().__init__(deployment, problem)
        self.deployment, self.problem = deployment, problem

    def __str__(self) -> str:
        return f"deployment {self.deployment!r}: {self.problem}"


class HeldError(DeploymentError):
    """Another coordinator is running this deployment, and the caller did not ask to take over."""

    def __init__(self, deployment: str, holder: str) -> None:
        super().__init__(deployment, holder)

    def __str__(self) -> str:
        return (
            f"{self.problem} is running already: use it, stop it with ray-eraser stop, or take over "
            "(--take-over, take_over=True in Python)"
        )


class StoreError(RayEraserError):
    """A stored file is missing, is unreadable, or does not match its digest."""

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(path, problem)
        self.path, self.problem = path, problem

    def __str__(self) -> str:
        return f"store file {self.path}: {self.problem}"


class LedgerError(RayEraserError):
    """The ledger's database failed.

    If the answer to a commit was lost, nobody knows whether the change was recorded. Then repeat the submission under the same
    idempotency key.
    """

    def __init__(self, problem: str, outcome: str = "nothing was recorded") -> None:
        super().__init__(problem, outcome)
        self.problem, self.outcome = problem, outcome

    def __str__(self) -> str:
        return f"the ledger failed ({self.problem}), and {self.outcome}: check its disk or server, then try again"


class StaleEpochError(RayEraserError):
    """A replaced coordinator gave an order, and a shard or the ledger refused it."""

    def __init__(self, who: str, seen: int, offered: int) -> None:
        super().__init__(who, seen, offered)
        self.who, self.seen, self.offered = who, seen, offered

    def __str__(self) -> str:
        return (
            f"another coordinator has taken over: {self.who} obeys epoch {self.seen} and refuses epoch {self.offered} "
            "(every start of a coordinator begins an epoch); stop this one"
        )


class TrainingError(RayEraserError):
    """Training produced a submodel that cannot be used. Nothing of it was stored."""

    def __init__(self, shard_id: int, problem: str) -> None:
        super().__init__(shard_id, problem)
        self.shard_id, self.problem = shard_id, problem

    def __str__(self) -> str:
        return f"training of shard {self.shard_id}: {self.problem}"


class DeviceError(RayEraserError):
    """A submodel cannot be computed on the device that it needs."""

    def __init__(self, device: str, problem: str) -> None:
        super().__init__(device, problem)
        self.device, self.problem = device, problem

    def __str__(self) -> str:
        return f"device {self.device}: {self.problem}"


class DeviceMemoryError(RayEraserError):
    """A process ran out of GPU memory, or of the share that it may use. Nothing was stored."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what

    def __str__(self) -> str:
        return (
            f"{self.what}: out of GPU memory; raise runtime.gpus_per_shard or runtime.gpu_memory_share, lower "
            "runtime.slots, or use more shards"
        )


_STATES = {"excised": " (no longer served, ready for training)", "routed": " (in training)"}


class IllegalTransitionError(RayEraserError):
    """A request cannot move from its state to the one asked for."""

    def __init__(self, request_id: str, state: str, wanted: str) -> None:
        super().__init__(request_id, state, wanted)
        self.request_id, self.state, self.wanted = request_id, state, wanted

    def __str__(self) -> str:
        wanted = f"{self.wanted}{_STATES.get(self.wanted, '')}"
        return f"request {self.request_id} is {self.state} and cannot become {wanted}: see ray-eraser status"


class PoolError(RayEraserError):
    """A shard's process died, was unreachable, or did not answer in time."""

    def __init__(self, who: str, problem: str) -> None:
        super().__init__(who, problem)
        self.who, self.problem = who, problem

    def __str__(self) -> str:
        return f"{self.who}: {self.problem}"


class UnexpectedError(RayEraserError):
    """Another package's error in a process of the deployment: a bug, or data that a model cannot take."""

    def __init__(self, who: str, kind: str) -> None:
        super().__init__(who, kind)
        self.who, self.kind = who, kind

    def __str__(self) -> str:
        return f"{self.who}: failed with {self.kind}, a bug in ray_eraser or in an extension: see Ray's logs, and report it"


class SetAsideError(RayEraserError):
    """The retraining for a request failed too often. Its data stays out of the served model; other requests proceed."""

    def __init__(self, request_id: str, reason: str) -> None:
        super().__init__(request_id, reason)
        self.request_id, self.reason = request_id, reason

    def __str__(self) -> str:
        return (
            f"request {self.request_id} was set aside because its retraining failed ({self.reason}): fix the cause, then run "
            f"ray-eraser status --retry {self.request_id}"
        )


class WaitTimeoutError(RayEraserError):
    """An event did not happen within the time given."""

    def __init__(self, what: str, seconds: float) -> None:
        super().__init__(what, seconds)
        self.what, self.seconds = what, seconds

    def __str__(self) -> str:
        return f"{self.what} did not happen within {self.seconds:g} s: it may still happen; check its status, or wait longer"
