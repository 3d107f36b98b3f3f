"""Print the items that a user has not seen and would like best, best first; or, with --like, the items most like another one.

Asks the deployment that runs under this name, or else reads its files. Starts nothing and disturbs nobody. Data that waits
to be forgotten is left out in either case. Scores compare within one list only.

Examples:
    ray-eraser recommend --storage-path deployments/ml-1m --user-id 42 --user-id 43
    ray-eraser recommend --storage-path deployments/ml-1m --user-id 42 --titles ml-1m/movies.dat
    ray-eraser recommend --storage-path deployments/ml-1m --like 260 --n 5
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from ray_eraser.cli import inputs
from ray_eraser.cli.options import ConfigOption, DeploymentOption, ExistingRayOption, JsonOption, SetOption, StorageOption
from ray_eraser.cli.output import print_json, results, say
from ray_eraser.cli.reaching import reading
from ray_eraser.cli.submitted import for_logs
from ray_eraser.cli.titles import read_titles
from ray_eraser.errors import InputError, UnknownIdError

if TYPE_CHECKING:
    from ray_eraser.recommend import Scored

_NOBODY: dict[str, Any] = {"items": None, "scores": None}
"""The answer for a user who is not here."""

_Users = Annotated[list[str] | None, typer.Option("--user-id", metavar="ID", help="A user, as the log names it. Repeatable.")]
_Like = Annotated[str | None, typer.Option("--like", metavar="ITEM", help="List the items most like this one instead.")]
_N = Annotated[int, typer.Option("--n", min=1, help="How many items.")]
_Titles = Annotated[
    Path | None,
    typer.Option(
        "--titles", metavar="FILE", help="Show titles: CSV with an item id and a title, or MovieLens movies.dat or u.item."
    ),
]


def recommend(
    *,
    user_ids: _Users = None,
    like: _Like = None,
    n: _N = 10,
    titles: _Titles = None,
    storage_path: StorageOption = None,
    deployment: DeploymentOption = "default",
    config: ConfigOption = None,
    changes: SetOption = None,
    ray_address: ExistingRayOption = None,
    as_json: JsonOption = False,
) -> None:
    users = user_ids or []
    if bool(users) == (like is not None):
        raise InputError("give --user-id ID, which may be repeated, or --like ITEM")
    named = read_titles(titles) if titles is not None else {}
    ledger = inputs.settings(config, changes).unlearning.ledger
    with reading(deployment, storage_path, ledger, ray_address) as asked:
        if like is not None:
            answers = [{"like": like} | _fields(asked.similar_items(like, n), named)]
        elif len(users) == 1:
            answers = [{"user_id": users[0]} | _fields(asked.recommend_scored(users[0], n), named)]
        else:
            lists = zip(users, asked.recommend_many(users, n), strict=True)
            answers = [{"user_id": user} | (_fields(found, named) if found is not None else _NOBODY) for user, found in lists]
    if as_json:
        print_json(answers[0] if len(answers) == 1 else {"users": answers})
    else:
        for answer in answers:
            _print(answer, named)
    missing = [UnknownIdError("user", answer["user_id"]) for answer in answers if answer["items"] is None]
    for error in missing[:-1]:
        say(for_logs(str(error)))
    if missing:
        raise missing[-1]


def _fields(found: Sequence[Scored], titles: Mapping[str, str]) -> dict[str, Any]:
    fields: dict[str, Any] = {"items": [item for item, _ in found], "scores": [score for _, score in found]}
    return fields | ({"titles": [titles.get(str(item)) for item, _ in found]} if titles else {})


def _print(answer: Mapping[str, Any], titles: Mapping[str, str]) -> None:
    if answer["items"] is None:
        return
    like = answer.get("like")
    title = f"for user {answer['user_id']}" if like is None else f"like {' '.join(filter(None, (like, titles.get(like))))}"
    table = Table("", "item", *(("title",) if titles else ()), "score", title=Text(title), title_justify="left")
    named = answer.get("titles") or [None] * len(answer["items"])
    for rank, (item, score, name) in enumerate(zip(answer["items"], answer["scores"], named, strict=True), 1):
        table.add_row(str(rank), Text(str(item)), *((Text(name or ""),) if titles else ()), f"{score:.4g}")
    results().print(table)
