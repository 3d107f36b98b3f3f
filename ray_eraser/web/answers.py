"""What an error is over HTTP."""

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
TOO_OFTEN = "this key asks too often: wait as long as Retry-After says"
TOO_SLOW = "the body did not arrive within {seconds:g} seconds: send it at once"
TOO_MANY_BODIES = "too many bodies of this key are on their way: send each at once, and fewer at a time"
BODIES_WAIT = "too many bodies are on their way: try again after Retry-After"
NO_KEY = "give an API key in the header 'Authorization: Bearer KEY'"
WRONG_ROLE = "this key has the role read, asking for erasures needs the role erase"
BROKEN = "something failed that should not have: the operator finds its kind in the log"
UNAVAILABLE = "the deployment gave no answer: try again, an erasure under the same Idempotency-Key as it may be recorded"
NOT_THERE = "the deployment is not running, or was never trained: try again once it is"


@dataclass(frozen=True)
class Answer:
    """A refusal or a failure, as the asker gets it."""

    status: int
    error: str
    retry_after: float | None = None
    closes: bool = False
    """Whether the connection ends with it: who sends half a body would hold it."""

    @property
    def headers(self) -> dict[str, str]:
        """Those that go with it; Retry-After in whole seconds, never too early."""
        headers = {} if self.retry_after is None else {"Retry-After": str(max(1, math.ceil(self.retry_after)))}
        headers |= {"Connection": "close"} if self.closes else {}
        return headers | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})


def answer_to(error: Exception) -> Answer:
    """4xx for what the asker can mend, 503 for what passes, 500 for the rest.

    What the asker did wrong is said in the error's own words. Of what failed inside only that it did: its words may name files
    and machines.
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
