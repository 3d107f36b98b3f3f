"""Add interactions to what a deployment has learned from, and train the shards that they go to.

The log is read as the deployment read its own (columns, data.min_rating and the like); --set data.KEY=VALUE changes that.
Each interaction goes where a training on everything would put it: to the shard that the partition says, or out of the
deployment where data.test_share or data.test_from holds it out for a test. With a learned partition, it goes to the shard of
its user or item, or to the one with the fewest interactions. Interactions that are known already are passed over. New
interactions can be unlearned like all others, also while they still wait.

A log that still has erased interactions brings them back. Where the deployment was trained with unlearning.suppress_days, they
are left out, and --take-back learns them.

Examples:
    ray-eraser learn --storage-path deployments/shop --data today.csv
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from ray_eraser.cli import inputs
from ray_eraser.cli.options import (
    ConfigOption,
    DataOption,
    DeploymentOption,
    IdempotencyOption,
    JsonOption,
    NowOption,
    RayOption,
    SetOption,
    StorageOption,
    TakeOverOption,
)
from ray_eraser.cli.output import print_facts, print_json, say
from ray_eraser.cli.reaching import deployed, settings_of
from ray_eraser.cli.submitted import keep, lasting
from ray_eraser.cli.waiting import carried_out
from ray_eraser.ids import RawId

if TYPE_CHECKING:
    from ray_eraser.config import EraserConfig
    from ray_eraser.data.dataset import Dataset
    from ray_eraser.data.interactions import Interactions
    from ray_eraser.status import Status

_TakeBack = Annotated[
    bool,
    typer.Option(
        "--take-back", help="Also learn interactions that were erased and must not be learned again (unlearning.suppress_days)."
    ),
]
_Timeout = Annotated[float, typer.Option("--timeout", metavar="SECONDS", help="How long to wait until it is learned.")]


def learn(
    *,
    data: DataOption,
    storage_path: StorageOption = None,
    deployment: DeploymentOption = "default",
    key: IdempotencyOption = None,
    take_back: _TakeBack = False,
    now: NowOption = False,
    wait_seconds: _Timeout = 3600.0,
    config: ConfigOption = None,
    changes: SetOption = None,
    take_over: TakeOverOption = False,
    ray_address: RayOption = None,
    as_json: JsonOption = False,
) -> None:
    settings = inputs.settings(config, changes)
    log = log_to_learn(data, settings, settings_of(deployment, storage_path, settings.unlearning.ledger, ray_address))
    pairs = [pair for part in (log.train, log.valid) for pair in _pairs(log, part)]
    with deployed(deployment, storage_path, settings.unlearning.ledger, ray_address, take_over=take_over) as client:
        before = client.describe()
        ticket = client.learn(pairs, idempotency_key=key, take_back=take_back)
        say(f"request {ticket.request_id} is accepted; {len(pairs):,} interactions in {data}")
        for line in _about_the_erased(ticket.suppressed, before, take_back=take_back):
            say(f"notice: {line}")
        state = carried_out(client, ticket, wait_seconds, now=now)
        described = client.describe()
    result = {
        "request_id": ticket.request_id,
        "state": str(state),
        "rows_read": log.rows_read,
        "merged": log.merged,
        "left_out": dict(log.left_out),
        "interactions_given": len(pairs),
        "suppressed": ticket.suppressed,
        "taken_back": take_back and ticket.suppressed > 0,
        "generation": described.generation,
        "digest": described.digest,
        "n_users": described.n_users,
        "n_items": described.n_items,
        "n_interactions": described.n_interactions,
    }
    keep("learn", described.storage_path, lasting(result))
    if as_json:
        print_json(result)
    else:
        print_facts("learned" if state.is_final else "accepted", result)


def log_to_learn(data: str, given: EraserConfig, deployed: EraserConfig) -> Dataset:
    """Read all of a log as the deployment read its own, except for the data settings that are given.

    The deployment decides which interactions it holds out for validation, and by `data.test_share`.
    """
    read_as = inputs.data_settings(given.data, deployed.data)
    log = inputs.read_log(data, read_as.model_copy(update={"test_share": 0.0, "valid_share": 0.0}), deployed.seed)
    for notice in log.notices:
        say(f"notice: {notice}")
    say(inputs.rows(log.rows_read, log.merged, log.left_out))
    if len(log.test):
        say(f"notice: {len(log.test):,} interactions are of the test set (data.test_from): nothing is learned from them")
    return log


def _pairs(log: Dataset, part: Interactions) -> Iterator[tuple[RawId, RawId]]:
    return zip(log.users.raw(part.users), log.items.raw(part.items), strict=True)


def _about_the_erased(suppressed: int, before: Status, *, take_back: bool) -> Iterator[str]:
    """Say what happens to interactions that were erased before."""
    if suppressed and take_back:
        yield f"{suppressed} of the interactions were erased before, and are taken back"
    elif suppressed:
        yield f"{suppressed} of the interactions were erased before, and are left out: --take-back learns them"
    elif before.requests["erased"] and not before.suppress_days:
        count = before.requests["erased"]
        erasures = "1 erasure" if count == 1 else f"{count:,} erasures"
        yield (
            f"this deployment keeps no list of what it erased ({erasures} so far): if the log still has erased interactions, "
            "they are taken back. Take them out of the log, or set unlearning.suppress_days"
        )
