"""Errors as HTTP answers."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ray_eraser.errors import (
    DeploymentError,
    IllegalTransitionError,
    InputError,
    LedgerError,
    PoolError,
    QueueFullError,
    StaleEpochError,
    StoreError,
    UnknownIdError,
    UnknownRequestError,
    WaitTimeoutError,
)

_AGAIN_SECONDS = 5.0
_QUEUE_SECONDS = 60.0

TOO_LARGE = "the body is larger than {limit} bytes: name fewer pairs at a time"
TOO_OFTEN = "this key asks too often: wait for the seconds in Retry-After"
TOO_SLOW = "the body did not arrive within {seconds:g} seconds: send it at once"
TOO_MANY_BODIES = "this key has too many unfinished uploads: send each body at once, and fewer at a time"
BODIES_WAIT = "the server receives too many bodies at the moment: try again after Retry-After"
NO_KEY = "give an API key in the header 'Authorization: Bearer KEY'"
WRONG_ROLE = "this key has the role read: erasures, runs and retries need a key with the role erase"
BROKEN = "an unexpected error occurred: the server's log names its type"
UNAVAILABLE = "the deployment did not answer: try again; repeat an erasure with the same Idempotency-Key, it may be recorded"
NOT_THERE = "the deployment is not running, or was never trained: start it, then try again"


@dataclass(frozen=True)
class Answer:
    """A refusal or a failure, as the client gets it.

    Attributes:
        status: the HTTP status.
        error: the message.
        retry_after: seconds until another try makes sense; None sends no header.
        closes: whether to close the connection. A client that sent half a body would hold it open.
    """

    status: int
    error: str
    retry_after: float | None = None
    closes: bool = False

    @property
    def headers(self) -> dict[str, str]:
        """The answer's headers. Retry-After is in whole seconds, rounded up."""
        headers = {} if self.retry_after is None else {"Retry-After": str(max(1, math.ceil(self.retry_after)))}
        headers |= {"Connection": "close"} if self.closes else {}
        return headers | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})


def answer_to(error: Exception) -> Answer:
    """Choose the answer to an error: 4xx if the client can correct it, 503 if it passes by itself, 500 otherwise.

    A 4xx answer repeats the error's message. The others do not: messages of internal errors may name files and machines.
    """
    match error:
        case UnknownIdError() | UnknownRequestError():
            answer = Answer(404, str(error))
        case QueueFullError():
            answer = Answer(503, str(error), error.retry_seconds or _QUEUE_SECONDS)
        case DeploymentError():
            answer = Answer(503, NOT_THERE, _AGAIN_SECONDS)
        case InputError():
            answer = Answer(422, str(error))
        case IllegalTransitionError():
            answer = Answer(409, str(error))
        case PoolError() | WaitTimeoutError() | LedgerError() | StoreError() | StaleEpochError():
            answer = Answer(503, UNAVAILABLE, _AGAIN_SECONDS)
        case _:
            answer = Answer(500, BROKEN)
    return answer
