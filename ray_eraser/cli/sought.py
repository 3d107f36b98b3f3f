"""The ids that a command looks for: those of --user-id, --item-id, --pairs and a file of requests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ray_eraser.cli.inputs import read_pairs
from ray_eraser.cli.output import say
from ray_eraser.cli.submitted import submission_id

if TYPE_CHECKING:
    from ray_eraser.unlearning.erased import Erased, SpelledOtherwise

_MOST_IDS = 1_000_000


def erased(user_id: str | None, item_id: str | None, pairs: Path | None, requests: Path | None = None) -> Erased:
    """All ids that were named; empty if none was. `requests` is a file as for `ray-eraser unlearn --requests`."""
    from ray_eraser.unlearning.erased import Erased
    from ray_eraser.unlearning.request_files import read_requests

    submissions = read_requests(requests, limit=_MOST_IDS).submissions if requests is not None else ()
    asked = [submission.request for submission in submissions]
    users = [one.user_id for one in asked if one.user_id is not None]
    items = [one.item_id for one in asked if one.item_id is not None]
    listed = [pair for one in asked for pair in one.pairs or ()]
    return Erased(
        (*(() if user_id is None else (user_id,)), *users),
        (*(() if item_id is None else (item_id,)), *items),
        (*(() if pairs is None else read_pairs(pairs)), *listed),
    )


def say_what_is_not_here(sought: Erased, not_here: int, spelled_otherwise: Sequence[SpelledOtherwise]) -> None:
    """Say how many of the ids are not here, and which of them may be misspelled."""
    if not_here:
        say(f"ids that are not here: {not_here:,} (erased, never learned, or misspelled)")
    if submission_id() is not None:  # Ray keeps what a job says; the report has the positions of the ids
        return
    asked = {"user": sought.user_ids, "item": sought.item_ids, "pair": sought.pairs}
    for one in spelled_otherwise:
        here = " and ".join(map(repr, one.here))
        say(f"no {one.kind} {asked[one.kind][one.position]!r} is here, but {here}: did you mean that?")
