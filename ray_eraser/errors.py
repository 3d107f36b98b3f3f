"""Every error that this package raises on purpose, in one tree.

An error's arguments are its fields, so it survives pickling and crosses process borders whole. Its text names the thing, the
value and the way out, in one line.
"""

from __future__ import annotations


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
        return f"{where}: {self.problem}"


class ConfigError(InputError):
    """A configuration has an unknown key or a value out of range."""

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(key, problem)
        self.key, self.problem = key, problem

    def __str__(self) -> str:
        return f"config {self.key}: {self.problem}"


class UnknownIdError(InputError):
    """A raw id that the vocabulary does not hold: it never did, or it was erased."""

    def __init__(self, kind: str, raw_id: str) -> None:
        super().__init__(kind, raw_id)
        self.kind, self.raw_id = kind, raw_id

    def __str__(self) -> str:
        return f"no {self.kind} {self.raw_id!r} here: it was never learned from, or it has been erased"


class RequestError(InputError):
    """An unlearning request that cannot be accepted. Nothing was changed."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem

    def __str__(self) -> str:
        return f"unlearning request refused: {self.problem}"


class UnknownRequestError(InputError):
    """No unlearning request has this id."""

    def __init__(self, request_id: str) -> None:
        super().__init__(request_id)
        self.request_id = request_id

    def __str__(self) -> str:
        return f"no unlearning request {self.request_id!r} in this deployment's ledger: check the id and the storage path"


class DeploymentError(InputError):
    """A deployment is missing, exists already, or was made with another configuration."""

    def __init__(self, deployment: str, problem: str) -> None:
        super().__init__(deployment, problem)
        self.deployment, self.problem = deployment, problem

    def __str__(self) -> str:
        return f"deployment {self.deployment!r}: {self.problem}"


class StoreError(RayEraserError):
    """A stored file is missing, unreadable, or not what its digest says."""

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(path, problem)
        self.path, self.problem = path, problem

    def __str__(self) -> str:
        return f"store file {self.path}: {self.problem}"


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


class WaitTimeoutError(RayEraserError):
    """Something that was waited for did not happen within the time given."""

    def __init__(self, what: str, seconds: float) -> None:
        super().__init__(what, seconds)
        self.what, self.seconds = what, seconds

    def __str__(self) -> str:
        return f"{self.what} did not happen within {self.seconds:g} s: it may still; ask for its status or wait longer"
