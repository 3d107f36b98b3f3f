"""Learn from an interaction log in shards, and leave a deployment that can be asked and told to forget."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import cli
import typer

from ray_eraser.data.files import read_dataset
from ray_eraser.data.fragments import in_fragments
from ray_eraser.errors import DataFileError


def train(
    data: cli.DataOption = "synthetic",
    storage_path: cli.StorageOption = None,
    deployment: cli.DeploymentOption = "default",
    preset: cli.PresetOption = None,
    config: cli.ConfigOption = None,
    changes: cli.SetOption = None,
    print_settings: Annotated[
        bool,
        typer.Option("--print-settings", help="Print all settings as TOML, as --config and --set leave them, and stop."),
    ] = False,
    ray_address: cli.RayOption = None,
    as_json: cli.JsonOption = False,
    debug: cli.DebugOption = False,
) -> None:
    """Divide a log into shards, train a submodel for each on Ray, aggregate them, and store the result.

    On a cluster the deployment goes on running under its name when this job ends. On a local Ray it ends with the job, and
    the other jobs bring it back from its storage path.

    A folder with several Parquet files is one log in parts. With the partitions hashed and random it is read in fragments, on
    Ray, and need not fit into memory; --data must then be a path that all nodes reach.

    [bold]Example[/bold]: python jobs/train.py --data ml-1m --storage-path deployments/ml-1m --set partition.n_shards=20

    [bold]Settings that matter most[/bold]: partition.kind (hashed, random, user_based, item_based, interaction_based,
    label_propagation, embedding_kmeans, transport), partition.n_shards, model.kind (wmf, bpr, lightgcn), model.solver (als,
    adagrad), model.alpha0, aggregation.kind (spectral, attention, static, mean), aggregation.sweeps.
    """
    with cli.exit_codes(debug):
        settings = cli.settings(config, changes, preset)
        if print_settings:
            print(settings.to_toml(), end="")
            return
        # A big log is read where its shards are trained; what a learned partition is learned from is needed all at once.
        is_big = not settings.partition.is_learned and in_fragments(data)
        dataset = None if is_big else read_dataset(data, settings.data, settings.seed)
        storage = cli.place(storage_path, deployment)

        from ray_eraser.runtime.client import deploy
        from ray_eraser.runtime.session import session

        with session(ray_address) as ray_session:
            client = deploy(deployment, storage, settings, ledger_url=settings.unlearning.ledger)
            with cli.TrainingProgress() as progress:
                try:
                    if dataset is None:
                        report = asdict(client.fit_log(str(Path(data).expanduser().absolute()), progress))
                    else:
                        report = asdict(client.fit(dataset, progress))
                except (KeyboardInterrupt, SystemExit, DataFileError):
                    # Nobody waits for it any more, or its log cannot be used; what it has written the next one clears away.
                    client.abandon()
                    raise
            for notice in client.describe()["notices"]:
                cli.say(f"notice: {notice}")
            if ray_session.local:
                client.shutdown()
        result = {"deployment": deployment, "storage_path": storage, **report}
        cli.keep(storage, cli.lasting(result))
        if as_json:
            cli.print_json(result)
            return
        cli.print_table(f"trained on {Path(data).name if dataset is None else dataset.name}", result)
        if cli.submission_id() is not None:
            return  # its log is no place for a user's id
        where = f"--storage-path {storage}" if ray_session.local else f"--deployment {deployment}"
        user = "USER" if dataset is None else dataset.users.ids[0]
        cli.say(f"next: python jobs/recommend.py {where} --user-id {user}")


if __name__ == "__main__":
    cli.run(train)
