"""Learn from an interaction log in shards, and leave a deployment that can be asked and told to forget."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import cli
import typer

from ray_eraser.data.files import read_dataset


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
        dataset = read_dataset(data, settings.data, settings.seed)
        storage = cli.place(storage_path, deployment)

        from ray_eraser.runtime.client import deploy
        from ray_eraser.runtime.session import session

        with session(ray_address) as ray_session:
            client = deploy(deployment, storage, settings, ledger_url=settings.unlearning.ledger)
            with cli.TrainingProgress() as progress:
                try:
                    report = asdict(client.fit(dataset, progress))
                except (KeyboardInterrupt, SystemExit):
                    client.abandon()  # nobody waits for it any more; what it has written the next one clears away
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
        cli.print_table(f"trained on {dataset.name}", result)
        if cli.submission_id() is not None:
            return  # its log is no place for a user's id
        where = f"--storage-path {storage}" if ray_session.local else f"--deployment {deployment}"
        cli.say(f"next: python jobs/recommend.py {where} --user-id {dataset.users.ids[0]}")


if __name__ == "__main__":
    cli.run(train)
