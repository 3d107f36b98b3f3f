"""A coordinator in operation, without Ray: it comes into force, stands by, and then keeps no data."""

from __future__ import annotations

import gc
import weakref
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import Deployments, digest_of

from ray_eraser.config import EraserConfig
from ray_eraser.coordinator import Coordinator
from ray_eraser.data.dataset import Dataset
from ray_eraser.errors import DeploymentError, StaleEpochError
from ray_eraser.pool import LocalShardPool
from ray_eraser.runtime.operating import Operation
from ray_eraser.unlearning.ledger import Ledger
from ray_eraser.unlearning.request import UnlearningRequest


def operation_of(deployments: Deployments) -> Operation:
    path = deployments.path("shop")

    def opening(config: EraserConfig | None, **options: Any) -> Coordinator:
        return Coordinator("shop", path, partial(LocalShardPool, path), config, **options)

    return Operation("shop", opening, None, None, lambda _: None)  # type: ignore[arg-type]


def superseded(operation: Operation) -> None:
    """Notice that another coordinator has taken over, as the thread that renews the lease does."""
    coordinator = operation.coordinator
    try:
        coordinator.keep_in_force()
    except StaleEpochError as error:
        operation._stand_by(coordinator, error)


def test_one_that_stands_by_keeps_nothing_of_what_it_served(deployments: Deployments, trained: Path, tiny: Dataset) -> None:
    deployments.copy(trained, "shop").close()
    operation = operation_of(deployments)
    operation.open()
    generation = weakref.ref(operation.coordinator._serving.loaded)
    assert generation() is not None
    deployments.open("shop")
    with pytest.raises(StaleEpochError):
        operation.coordinator.recommend(tiny.users.ids[0])
    superseded(operation)
    for _ in range(3):
        with pytest.raises(StaleEpochError, match="another coordinator has taken over"):
            _ = operation.coordinator
    assert generation() is None  # freed at once, before Python's garbage collection


def test_one_that_was_closed_does_not_come_into_force_again(deployments: Deployments, trained: Path) -> None:
    deployments.copy(trained, "shop").close()
    operation = operation_of(deployments)
    operation.open()
    operation.close()
    operation.open(take_over=True)
    with pytest.raises(DeploymentError, match="was stopped"):
        _ = operation.coordinator
    deployments.open("shop")
    with closing(Ledger(f"sqlite:///{deployments.path('shop')}/ledger.db")) as ledger:
        assert ledger.open_epochs()[-1].epoch == 4


def test_verifying_holds_no_generation_and_goes_on_with_the_next_one(
    deployments: Deployments, trained: Path, tiny: Dataset
) -> None:
    coordinator = deployments.copy(trained, "shop")
    generation = weakref.ref(coordinator._serving.loaded)
    verified = []

    def pause() -> None:
        if not verified:
            coordinator.submit(UnlearningRequest(user_id=tiny.users.ids[0]))
            coordinator.process_pending()
            gc.collect()
            verified.append(generation() is None)
            manifest = deployments.store("shop").read_manifest(digest_of(coordinator))
            (Path(deployments.path("shop")) / manifest.shards[0].submodel.path).write_bytes(b"damaged")

    assert coordinator.verify(pause) == ("the submodel of shard 0",)
    assert verified == [True]
    assert coordinator.verify() == ()
