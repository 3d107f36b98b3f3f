"""Waits for accepted requests to be carried out, and shows the training meanwhile."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ray_eraser.cli.output import events, say
from ray_eraser.cli.progress import TrainingProgress
from ray_eraser.errors import WaitTimeoutError

if TYPE_CHECKING:
    from ray_eraser.runtime.client import Client, Ticket
    from ray_eraser.unlearning.request import RequestState

_WAITING = ("received", "excised", "routed")
_LOOK_SECONDS = 0.2


def carried_out(client: Client, ticket: Ticket, seconds: float, *, now: bool) -> RequestState:
    """Wait until an accepted request is carried out, if the plan carries it out at once or `now` is given.

    Returns the state that the request is in then: under another plan it may wait for days.
    """
    events.info("accepted", extra={"requests": [ticket.request_id], "deployment": client.deployment})
    if now:
        client.process_now()
    elif (plan := client.describe().plan) != "immediate":
        say(f"the request waits for others, by the plan {plan}; --now carries out everything that waits")
        return ticket.status()
    with TrainingProgress() as progress:
        state = awaited(client, ticket, seconds, progress)
    events.info("finished", extra={"requests": [ticket.request_id], "deployment": client.deployment, "state": str(state)})
    return state


def awaited(client: Client, ticket: Ticket, seconds: float, progress: TrainingProgress) -> RequestState:
    """Wait for the state in which an accepted request ends, and show the training meanwhile.

    Raises:
        WaitTimeoutError, SetAsideError: as `Ticket.finished`.
    """
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        try:
            return ticket.finished(min(_LOOK_SECONDS, left))
        except WaitTimeoutError:
            progress(client.progress())
    return ticket.finished(0)


def nothing_waits(client: Client, seconds: float) -> None:
    """Have everything that waits carried out, wait until nothing waits any more, and show the training meanwhile.

    Raises:
        WaitTimeoutError: a request still waits.
    """
    deadline = time.monotonic() + seconds
    client.process_now()
    with TrainingProgress() as progress:
        while any(client.describe().requests[state] for state in _WAITING):
            if time.monotonic() > deadline:
                raise WaitTimeoutError("the end of all requests that wait", seconds)
            progress(client.progress())
            time.sleep(_LOOK_SECONDS)
