"""Learn from an interaction log in shards, and leave a deployment that can be asked and told to forget."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import cli
import typer

from ray_eraser.data.files import read_dataset
from ray_eraser.data.fragments import in_fragments
from ray_eraser.errors import DataFileError
from ray_eraser.store import Store

if TYPE_CHECKING:
    from ray_eraser.config import EraserConfig
    from ray_eraser.coordinator import FitReport
    from ray_eraser.data.dataset import Dataset


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
    take_over: cli.TakeOverOption = False,
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

    The model is chosen by the size of the log: linear, which is never trained, up to two million interactions, and wmf above.
    Set model.kind to choose it yourself. A setting such as model.width or aggregation.kind chooses a model that has a use for
    it.

    [bold]Settings that matter most[/bold]: partition.kind (hashed, random, user_based, item_based, interaction_based,
    label_propagation, embedding_kmeans, transport), partition.n_shards, model.kind (auto, linear, wmf, bpr, lightgcn),
    model.solver (als, adagrad), model.alpha0, aggregation.kind (spectral, attention, static, mean), aggregation.sweeps.
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

        from ray_eraser.runtime.session import session

        with session(ray_address) as ray_session:
            ledger = settings.unlearning.ledger
            client = cli.attach(deployment, storage, ledger, config=settings, take_over=take_over)
            with cli.TrainingProgress() as progress:
                try:
                    if dataset is None:
                        report = client.fit_log(str(Path(data).expanduser().absolute()), progress)
                    else:
                        report = client.fit(dataset, progress)
                except (KeyboardInterrupt, SystemExit, DataFileError):
                    # Nobody waits for it, or its log cannot be used. The next training clears away what it has written.
                    client.abandon()
                    raise
            for notice in (*client.describe().notices, *_test_notice(dataset, settings.data.test_share)):
                cli.say(f"notice: {notice}")
            if ray_session.local:
                client.shutdown()
        made = Store(storage).read_manifest(report.digest).config
        for line in _learned(report, settings, made):
            cli.say(line)
        by = "auto" if "model.kind" in settings.open_settings else "settings"
        model = {"model": made.model.kind, "model_chosen_by": by}
        result = {"deployment": deployment, "storage_path": storage, **model, **asdict(report)}
        cli.keep(storage, cli.lasting(result))
        if as_json:
            cli.print_json(result)
            return
        shown = result | {"chosen": ", ".join(report.chosen) or "nothing"}
        cli.print_table(f"trained on {Path(data).name if dataset is None else dataset.name}", shown)
        if cli.submission_id() is not None:
            return  # its log is no place for a user's id
        where = f"--storage-path {storage}" if ray_session.local else f"--deployment {deployment}"
        user = "USER" if dataset is None else dataset.users.raw(dataset.train.users[:1])[0]
        cli.say(f"next: python jobs/recommend.py {where} --user-id {user}")


def _learned(report: FitReport, asked: EraserConfig, made: EraserConfig) -> Iterator[str]:
    """What was learned from, by which model, and what the log decided, for people."""
    held = f", {report.held_out} are held out for validation and stored" if report.held_out else ""
    yield f"learned from {report.n_interactions} interactions{held}"
    yield f"model: {made.model.kind} ({asked.why_kind(report.n_interactions)})"
    for name in report.chosen:
        section, _, key = name.partition(".")
        value = getattr(getattr(made, section), key)
        yield f"{name} = {value:g} was chosen from the log: receipts claim {report.guarantee!r}"


def _test_notice(dataset: Dataset | None, share: float) -> Iterator[str]:
    """Say that a test set is held out, if one is. Of a log that is read in fragments only its share is known."""
    some = f"about {share:.0%} of the" if dataset is None else str(len(dataset.test))
    if share if dataset is None else len(dataset.test):
        yield f"{some} interactions are held out for a test: nothing is learned from them, and they are stored nowhere"


if __name__ == "__main__":
    cli.run(train)
