"""Measure recall and NDCG at 10, 20 and 50 of the current generation, without the data of requests that wait.

Beside them are the measures of the popularity list, which recommends the items that most users have to everyone. For each user
with held-out items, it ranks all items except the user's training items. Test pairs of unknown or erased users do not count
(unknown_users). Nor do test pairs that the deployment has learned since (learned_since). Needs no Ray.

A log without a test set of its own must be trained on with one held out: ray-eraser train --set data.test_share=0.2.

Examples:
    ray-eraser evaluate --data ml-1m --storage-path deployments/ml-1m
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table

from ray_eraser.cli import inputs
from ray_eraser.cli.options import ConfigOption, DataOption, DeploymentOption, JsonOption, SetOption, StorageOption
from ray_eraser.cli.output import explain, print_json, results, say, working
from ray_eraser.cli.reaching import place
from ray_eraser.cli.submitted import keep
from ray_eraser.errors import InputError

if TYPE_CHECKING:
    from ray_eraser.config import EraserConfig
    from ray_eraser.data.keyed import ShardData
    from ray_eraser.evaluation import Wanted

_Split = Annotated[
    Literal["test", "valid"],
    typer.Option("--split", help="'test' is read from --data and never stored; 'valid' is the deployment's own."),
]


def evaluate(
    *,
    data: DataOption = "synthetic",
    storage_path: StorageOption = None,
    deployment: DeploymentOption = "default",
    split: _Split = "test",
    config: ConfigOption = None,
    changes: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    where = place(storage_path, deployment)
    with working(f"reading the deployment at {where}"):
        from ray_eraser.evaluation import evaluate_deployment
        from ray_eraser.observer import Observer

        settings = inputs.settings(config, changes)
        with Observer(deployment, where, settings.unlearning.ledger) as observer:
            view = observer.view()
    shards = list(view.shards.values())
    wanted = _validation(shards) if split == "valid" else _test(data, view.config, shards)
    if view.excised:
        say("notice: requests wait to be carried out; this measures the model without their data")
    result: dict[str, Any] = {
        **evaluate_deployment(view.served, shards, wanted.pairs),
        "generation": view.generation,
        "unknown_users": wanted.unknown_users,
        "learned_since": wanted.learned_since,
        "split": split,
    }
    keep("evaluate", where, result)
    if as_json:
        print_json(result)
    else:
        _print(result)


def _print(result: Mapping[str, Any]) -> None:
    """Show the measures beside those of the popularity list, which recommends every user the items that most users have."""
    table = Table("", "this model", "popularity", title=f"quality of generation {result['generation']}", title_justify="left")
    for name, value in result.items():
        if "@" in name and not name.startswith("popularity_"):
            table.add_row(name.replace("ndcg", "NDCG"), f"{value:.4f}", f"{result[f'popularity_{name}']:.4f}")
    results().print(table)
    about = f"{int(result['n_users']):,} users with held-out items ({result['split']})"
    left_out = f"{result['unknown_users']:,} users are unknown, {result['learned_since']:,} pairs were learned since"
    explain(f"{about}. Not counted: {left_out}.")


def _validation(shards: Sequence[ShardData]) -> Wanted:
    """The pairs that the deployment holds out itself.

    Raises:
        InputError: it holds out nothing.
    """
    from ray_eraser.data.keyed import KeyedPairs
    from ray_eraser.evaluation import Wanted

    pairs = KeyedPairs.union([data.keyed(data.valid) for data in shards])
    if not len(pairs):
        raise InputError(
            "no validation set: the deployment holds nothing out; train with data.valid_share=0.1, or evaluate --split test"
        )
    return Wanted(pairs, 0, 0)


def _test(data: str, config: EraserConfig, shards: Sequence[ShardData]) -> Wanted:
    """The pairs that `data` holds out of the log that the deployment was trained on.

    Raises:
        InputError: it has no test set, or none of it counts.
    """
    from ray_eraser.data.keyed import KeyedPairs
    from ray_eraser.evaluation import wanted_from

    dataset = inputs.read_log(data, config.data, config.seed)
    if not len(dataset.test):
        raise InputError(
            f"no test set: {dataset.name} has none of its own, and the deployment holds none out of it (data.test_share="
            f"{config.data.test_share:g}); train with data.test_share=0.2, or give a log with a test set as --data"
        )
    wanted = wanted_from(KeyedPairs.in_keys(dataset.test, dataset.users.keys, dataset.items.keys), shards)
    if not len(wanted.pairs):
        raise InputError(
            f"none of the {len(dataset.test)} test pairs of {dataset.name} counts: {wanted.learned_since} have been learned "
            f"since, the others are of {wanted.unknown_users} users that the deployment does not know: is --data the log that "
            "it was trained on?"
        )
    return wanted
