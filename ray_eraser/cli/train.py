"""Divide a log into shards, train a submodel for each on Ray, aggregate them, and store the result.

On a cluster the deployment goes on running under its name when this command ends. On a local Ray it ends with the command, and
other commands bring it back from its storage path.

A folder with several Parquet files is one log in parts. With the partitions hashed and random it is read in fragments, on
Ray, and need not fit into memory; --data must then be a path that all nodes reach.

The model is chosen by the size of the log: linear, which is never trained, up to two million interactions, and wmf above.
Set model.kind to choose it yourself. A setting such as model.width or aggregation.kind chooses a model that has a use for it.

[bold]Settings that matter most[/bold]: partition.kind (hashed, random, user_based, item_based, interaction_based,
label_propagation, embedding_kmeans, transport), partition.n_shards, model.kind (auto, linear, wmf, bpr, lightgcn),
model.solver (als, adagrad), model.alpha0, aggregation.kind (spectral, attention, static, mean), aggregation.sweeps.

Examples:
    ray-eraser train --data log.csv --storage-path deployments/shop
    ray-eraser train --data ml-1m --set partition.n_shards=20 --set data.test_share=0.2
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ray_eraser.cli import inputs
from ray_eraser.cli.options import (
    ConfigOption,
    DataOption,
    DeploymentOption,
    JsonOption,
    PresetOption,
    RayOption,
    SetOption,
    StorageOption,
    TakeOverOption,
)
from ray_eraser.cli.output import durations, print_facts, print_json, say
from ray_eraser.cli.progress import TrainingProgress
from ray_eraser.cli.reaching import attach, on_ray, place
from ray_eraser.cli.submitted import keep, lasting, submission_id
from ray_eraser.errors import DataFileError

if TYPE_CHECKING:
    from ray_eraser.building import FitReport
    from ray_eraser.config import EraserConfig
    from ray_eraser.data.dataset import Dataset
    from ray_eraser.runtime.client import Client

_PrintSettings = Annotated[
    bool, typer.Option("--print-settings", help="Print all settings as TOML, as the other options leave them, and stop.")
]


def train(
    *,
    data: DataOption = "synthetic",
    storage_path: StorageOption = None,
    deployment: DeploymentOption = "default",
    preset: PresetOption = None,
    config: ConfigOption = None,
    changes: SetOption = None,
    print_settings: _PrintSettings = False,
    take_over: TakeOverOption = False,
    ray_address: RayOption = None,
    as_json: JsonOption = False,
) -> None:
    settings = inputs.settings(config, changes, preset)
    if print_settings:
        sys.stdout.write(settings.to_toml())
        return
    storage = place(storage_path, deployment)
    dataset = _read(data, settings)
    with on_ray(ray_address) as ray_session:
        ledger = settings.unlearning.ledger
        client = attach(deployment, storage, ledger, config=settings, take_over=take_over)
        report = _fit(client, data, dataset)
        for notice in (*client.describe().notices, *report.notices, *_test_notice(report)):
            say(f"notice: {notice}")
        if ray_session.local:
            client.shutdown()
    from ray_eraser.store import Store

    made = Store(storage).read_manifest(report.digest).config
    for line in _learned(report, settings, made):
        say(line)
    by = "auto" if "model.kind" in settings.open_settings else "settings"
    model = {"model": made.model.kind, "model_chosen_by": by}
    result = {"deployment": deployment, "storage_path": storage, **model, **asdict(report)}
    keep("train", storage, lasting(result))
    if as_json:
        print_json(result)
        return
    _print(result, Path(data).name if dataset is None else dataset.name)
    if submission_id() is None:  # the log of a submitted job is no place for a user's id
        where = ["--storage-path", storage] if ray_session.local else ["--deployment", deployment]
        user = "USER" if dataset is None else str(dataset.users.raw(dataset.train.users[:1])[0])
        say(f"next: {shlex.join(['ray-eraser', 'recommend', *where, '--user-id', user])}")


def _read(data: str, settings: EraserConfig) -> Dataset | None:
    """The log; None if shards read it themselves, in fragments. A learned partition needs the whole log at once."""
    from ray_eraser.data.fragments import in_fragments

    if not settings.partition.is_learned and in_fragments(data):
        return None
    return inputs.read_log(data, settings.data, settings.seed)


def _fit(client: Client, data: str, dataset: Dataset | None) -> FitReport:
    with TrainingProgress() as progress:
        try:
            if dataset is None:
                return client.fit_log(str(Path(data).expanduser().absolute()), progress)
            return client.fit(dataset, progress)
        except (KeyboardInterrupt, SystemExit, DataFileError):
            # Nobody waits for it, or its log cannot be used. The next training clears away what it has written.
            client.abandon()
            raise


def _learned(report: FitReport, asked: EraserConfig, made: EraserConfig) -> Iterator[str]:
    """Say what was learned from, by which model, and which settings the log chose."""
    yield inputs.rows(report.rows_read, report.merged, report.left_out)
    held = f", {report.held_out:,} are held out for validation and stored" if report.held_out else ""
    yield f"learned from {report.n_interactions:,} interactions{held}"
    yield f"model: {made.model.kind} ({asked.why_kind(report.n_interactions)})"
    for name in report.chosen:
        section, _, key = name.partition(".")
        value = getattr(getattr(made, section), key)
        yield f"{name} = {value:g} was chosen from the log: receipts claim {report.guarantee!r}"


def _test_notice(report: FitReport) -> Iterator[str]:
    if report.held_for_test:
        yield (
            f"{report.held_for_test:,} interactions are held out for a test: nothing is learned from them, and they are stored "
            "nowhere"
        )


def _print(result: dict[str, Any], name: str) -> None:
    from ray_eraser.data.account import listed

    sizes = result["shard_sizes"]
    print_facts(
        f"trained on {name}",
        {
            "rows read": result["rows_read"],
            "merged": f"{result['merged']:,} that repeat an interaction",
            "left out": listed(result["left_out"]) or "none",
            "held out": f"{result['held_out']:,} for validation, {result['held_for_test']:,} for the test",
            "learned from": f"{result['n_interactions']:,} interactions",
            "users, items": f"{result['n_users']:,}, {result['n_items']:,}",
            "model": result["model"],
            "shards": f"{len(sizes)} ({result['partition']}), of {min(sizes):,} to {max(sizes):,} interactions",
            "guarantee": result["guarantee"],
            "chosen from the log": ", ".join(result["chosen"]) or "nothing",
            "generation": result["generation"],
            "stored at": result["storage_path"],
            "took": durations(result["seconds"]),
        },
    )
