"""How good a deployment's lists are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import cli
import typer

from ray_eraser.config import EraserConfig
from ray_eraser.data.files import read_dataset
from ray_eraser.data.keyed import KeyedPairs, ShardData
from ray_eraser.errors import InputError
from ray_eraser.evaluation import Wanted, evaluate_deployment, wanted_from
from ray_eraser.observer import Observer


def evaluate(
    data: cli.DataOption = "synthetic",
    storage_path: cli.StorageOption = None,
    deployment: cli.DeploymentOption = "default",
    split: Annotated[
        Literal["test", "valid"],
        typer.Option("--split", help="'test' is read from --data and never stored; 'valid' is the deployment's own."),
    ] = "test",
    config: cli.ConfigOption = None,
    changes: cli.SetOption = None,
    as_json: cli.JsonOption = False,
    debug: cli.DebugOption = False,
) -> None:
    """Recall and NDCG at 10, 20 and 50 of the current generation, without the data of requests that wait.

    Every item is ranked for every user with held-out items, the user's training items left out. Test pairs of users that the
    deployment does not know (any more) do not count (unknown_users), nor do those that it has learned since (learned_since).
    Needs no Ray.

    A log without a test set of its own must be trained on with one held out: train.py --set data.test_share=0.2.

    [bold]Example[/bold]: python jobs/evaluate.py --data ml-1m --storage-path deployments/ml-1m
    """
    with cli.exit_codes(debug):
        settings = cli.settings(config, changes)
        place = cli.place(storage_path, deployment)
        with Observer(deployment, place, settings.unlearning.ledger) as observer:
            view = observer.view()
        shards = list(view.shards.values())
        wanted = _validation(shards) if split == "valid" else _test(data, view.config, shards)
        if view.excised:
            cli.say("notice: requests wait to be carried out, and what is measured is the model without their data")
        result: dict[str, Any] = {
            **evaluate_deployment(view.served, shards, wanted.pairs),
            "generation": view.generation,
            "unknown_users": wanted.unknown_users,
            "learned_since": wanted.learned_since,
            "split": split,
        }
        cli.keep(place, result)
        if as_json:
            cli.print_json(result)
        else:
            shown = {name: f"{value:.4f}" if "@" in name else value for name, value in result.items()}
            cli.print_table(f"quality of generation {view.generation}", shown)


def _validation(shards: Sequence[ShardData]) -> Wanted:
    """What the deployment holds out itself.

    Raises:
        InputError: it holds out nothing.
    """
    pairs = KeyedPairs.union([data.keyed(data.valid) for data in shards])
    if not len(pairs):
        raise InputError(
            "no validation set: the deployment holds nothing out; train with data.valid_share=0.1, or evaluate --split test"
        )
    return Wanted(pairs, 0, 0)


def _test(data: str, config: EraserConfig, shards: Sequence[ShardData]) -> Wanted:
    """What `data` holds out of the log that the deployment was trained on.

    Raises:
        InputError: it has no test set, or none of it counts.
    """
    dataset = read_dataset(data, config.data, config.seed)
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


if __name__ == "__main__":
    cli.run(evaluate)
