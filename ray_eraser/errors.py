"""Every error that this package raises on purpose, in one tree.

An error's arguments are its fields, so it survives pickling and crosses process borders whole. Its text names the thing, the
value and the way out, in one line. What was handed in is shown shortened: an id may be a megabyte long.
"""

from __future__ import annotations

_LONGEST_LINE = 1000


def shortened(value: object, limit: int = 60) -> str:
    """A value as the text of an error names it: as Python writes it, on one line, without its middle where it is long."""
    if not isinstance(value, str):
        try:
            return _without_middle(repr(value), limit)
        except ValueError:  # an integer of thousands of digits, alone or within
            return f"a {type(value).__name__} too long to show"
    if len(value) <= limit:
        return repr(value)
    # Cut first: of a long text, only what is shown is escaped.
    return f"{_without_middle(value, limit)!r} ({len(value)} characters)"


def one_line(text: str, limit: int = _LONGEST_LINE) -> str:
    """Text with what is not printable escaped, and without its middle where it is long: both ends of an error's text matter."""
    cut = _without_middle(text, limit)
    return cut if cut.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in cut)


def _without_middle(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    return f"{text[: (limit + 1) // 2]}...{text[-(limit // 2) :]}"


class RayEraserError(Exception):
    """The root: catch this to catch everything that the package raises on purpose."""


class InputError(RayEraserError):
    """Something that was handed in cannot be used. Nothing was changed."""


class DataFileError(InputError):
    """A data file cannot be read as an interaction log."""

    def __init__(self, path: str, problem: str, line: int | None = None) -> None:
        super().__init__(path, problem, line)
        self.path, self.problem, self.line = path, problem, line

    def __str__(self) -> str:
        where = self.path if self.line is None else f"{self.path}, line {self.line}"
        return one_line(f"{where}: {self.problem}")


class ConfigError(InputError):
    """A configuration has an unknown key or a value out of range."""

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(key, problem)
        self.key, self.problem = key, problem

    def __str__(self) -> str:
        return f"config {self.key}: {self.problem}"


class ExtensionError(InputError):
    """A model, partition or aggregator of another package cannot be used as it is."""

    def __init__(self, group: str, kind: str, problem: str) -> None:
        super().__init__(group, kind, problem)
        self.group, self.kind, self.problem = group, kind, problem

    def __str__(self) -> str:
        return f"{self.kind!r} of ray_eraser.{self.group} {self.problem}"


class InvalidIdError(InputError):
    """Something that was given as a user or an item cannot be an id."""

    def __init__(self, kind: str, problem: str) -> None:
        super().__init__(kind, problem)
        self.kind, self.problem = kind, problem

    def __str__(self) -> str:
        return one_line(f"the {self.kind} id {self.problem}")


class UnknownIdError(InputError):
    """A raw id that the vocabulary does not hold: it never did, or it was erased."""

    def __init__(self, kind: str, raw_id: str) -> None:
        super().__init__(kind, raw_id)
        self.kind, self.raw_id = kind, raw_id

    def __str__(self) -> str:
        return f"no {self.kind} {shortened(self.raw_id)} here: it was never learned from, or it has been erased"


class RequestError(InputError):
    """An unlearning request that cannot be accepted. Nothing was changed."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem

    def __str__(self) -> str:
        return one_line(f"unlearning request refused: {self.problem}")


class QueueFullError(InputError):
    """More requests would wait than `unlearning.max_pending` allows. Nothing was recorded."""

    def __init__(self, waiting: int, offered: int, limit: int, retry_seconds: float = 0.0) -> None:
        super().__init__(waiting, offered, limit, retry_seconds)
        self.waiting, self.offered, self.limit, self.retry_seconds = waiting, offered, limit, retry_seconds

    def __str__(self) -> str:
        when = f"in about {self.retry_seconds:g} s" if self.retry_seconds else "once some are done"
        return (
            f"{self.waiting} requests wait and {self.offered} more would be over the {self.limit} of unlearning.max_pending, "
            f"nothing was recorded: try again {when}"
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
    """A deployment is missing, exists already, or was made with another configuration."""

    def __init__(self, deployment: str, problem: str) -> None:
        super().__init__(deployment, problem)
        self.deployment, self.problem = deployment, problem

    def __str__(self) -> str:
        return f"deployment {self.deployment!r}: {self.problem}"


class HeldError(DeploymentError):
    """Another coordinator runs this deployment, and was not to be taken over."""

    def __init__(self, deployment: str, holder: str) -> None:
        super().__init__(deployment, holder)

    def __str__(self) -> str:
        return f"{self.problem} runs already and goes on: ask that one, stop it, or take over (take_over)"


class StoreError(RayEraserError):
    """A stored file is missing, unreadable, or not what its digest says."""

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(path, problem)
        self.path, self.problem = path, problem

    def __str__(self) -> str:
        return f"store file {self.path}: {self.problem}"


class LedgerError(RayEraserError):
    """The ledger's database failed. Where its answer to a commit was lost, whether it recorded something is not known: a
    submission is then best repeated under the same idempotency key.
    """

    def __init__(self, problem: str, outcome: str = "nothing was recorded") -> None:
        super().__init__(problem, outcome)
        self.problem, self.outcome = problem, outcome

    def __str__(self) -> str:
        return f"the ledger failed ({self.problem}), {self.outcome}: check its disk or server, and try again"


class StaleEpochError(RayEraserError):
    """A coordinator that has been replaced still gives orders; a shard or the ledger refused one."""

    def __init__(self, who: str, seen: int, offered: int) -> None:
        super().__init__(who, seen, offered)
        self.who, self.seen, self.offered = who, seen, offered

    def __str__(self) -> str:
        return (
            f"{self.who} obeys epoch {self.seen} and refuses epoch {self.offered}: "
            "another coordinator has taken over, stop this one"
        )


class TrainingError(RayEraserError):
    """A submodel came out of training as nonsense. Nothing of it was stored."""

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
    """A GPU's memory, or the share of it that a process may take, is used up. Nothing was stored."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what

    def __str__(self) -> str:
        return (
            f"{self.what}: out of GPU memory; raise runtime.gpus_per_shard or runtime.gpu_memory_share, lower "
            "runtime.slots, or use more shards"
        )


class IllegalTransitionError(RayEraserError):
    """A request was moved to a state that does not follow its present one."""

    def __init__(self, request_id: str, state: str, wanted: str) -> None:
        super().__init__(request_id, state, wanted)
        self.request_id, self.state, self.wanted = request_id, state, wanted

    def __str__(self) -> str:
        return f"request {self.request_id} is {self.state} and cannot become {self.wanted}"


class PoolError(RayEraserError):
    """A shard's process died, was unreachable, or did not answer in time."""

    def __init__(self, who: str, problem: str) -> None:
        super().__init__(who, problem)
        self.who, self.problem = who, problem

    def __str__(self) -> str:
        return f"{self.who}: {self.problem}"


class UnexpectedError(RayEraserError):
    """Something that is no error of ours was raised in a shard's process: a bug, or data that a model cannot take."""

    def __init__(self, who: str, kind: str) -> None:
        super().__init__(who, kind)
        self.who, self.kind = who, kind

    def __str__(self) -> str:
        return f"{self.who}: failed with {self.kind}, which is a bug here or in an extension: see Ray's logs, and report it"


class SetAsideError(RayEraserError):
    """A request's retraining failed again and again; its data stay out of what is served, others go on."""

    def __init__(self, request_id: str, reason: str) -> None:
        super().__init__(request_id, reason)
        self.request_id, self.reason = request_id, reason

    def __str__(self) -> str:
        return f"request {self.request_id} was set aside ({self.reason}): mend what it failed of, then have it retried"


class WaitTimeoutError(RayEraserError):
    """Something that was waited for did not happen within the time given."""

    def __init__(self, what: str, seconds: float) -> None:
        super().__init__(what, seconds)
        self.what, self.seconds = what, seconds

    def __str__(self) -> str:
        return f"{self.what} did not happen within {self.seconds:g} s: it may still; ask for its status or wait longer"
