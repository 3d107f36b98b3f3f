"""How good a deployment's lists are."""

from __future__ import annotations

from typing import Annotated, Literal

import cli
import typer

from ray_eraser.aggregation import with_users
from ray_eraser.data.files import read_dataset
from ray_eraser.data.interactions import Interactions
from ray_eraser.evaluation import evaluate as measure
from ray_eraser.evaluation import in_rows_of


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
    """Recall and NDCG at 10, 20 and 50 of the current generation.

    Every item is ranked for every user with held-out items, the user's training items left out. Erased users are not counted.
    Needs no Ray.

    [bold]Example[/bold]: python jobs/evaluate.py --data ml-1m --storage-path deployments/ml-1m
    """
    with cli.exit_codes(debug):
        settings = cli.settings(config, changes)
        store, published = cli.published_generation(cli.place(storage_path, deployment), deployment, settings.unlearning.ledger)
        manifest = store.read_manifest(published.digest)
        shards = [store.read_shard_data(record.interactions) for record in manifest.shards]
        train = Interactions.union([shard.train for shard in shards])
        if split == "valid":
            held, unknown = Interactions.union([shard.valid for shard in shards]), 0
        else:
            dataset = read_dataset(data, manifest.config.data, manifest.config.seed)
            users, items = store.read_vocabulary(manifest.users, "user"), store.read_vocabulary(manifest.items, "item")
            held, unknown = in_rows_of(dataset.test, dataset.users, dataset.items, users, items)
        model = with_users(store.read_embeddings(manifest.aggregate), train, manifest.config)
        result = measure(model, train, held)
        result |= {"generation": published.number, "unknown_users": unknown, "split": split}
        cli.keep(store.uri, result)
        if as_json:
            cli.print_json(result)
        else:
            shown = {name: f"{value:.4f}" if "@" in name else value for name, value in result.items()}
            cli.print_table(f"quality of generation {published.number}", shown)


if __name__ == "__main__":
    cli.run(evaluate)
