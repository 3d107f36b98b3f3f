"""Deployments on the tests' own Ray."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

import ray_eraser
from ray_eraser.config import EraserConfig, config_from
from ray_eraser.coordinator import Coordinator
from ray_eraser.data.dataset import Dataset
from ray_eraser.data.files import read_dataset
from ray_eraser.pool import LocalShardPool
from ray_eraser.runtime.client import Client, deploy


@pytest.fixture(scope="session")
def running(
    ray_session: None, tiny: Dataset, tiny_config: EraserConfig, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Client]:
    """A trained deployment on Ray that tests share: each erases other users than the others."""
    client = deploy("shared", str(tmp_path_factory.mktemp("shared")), tiny_config)
    client.fit(tiny)
    yield client
    client.shutdown()


@pytest.fixture
def fresh(ray_session: None, tiny: Dataset, tiny_config: EraserConfig, tmp_path: Path) -> Iterator[Client]:
    """A trained deployment on Ray that one test may do with as it likes, its storage under `tmp_path`."""
    client = deploy(f"fresh-{uuid.uuid4().hex[:8]}", str(tmp_path / "storage"), tiny_config)
    client.fit(tiny)
    yield client
    ray_eraser.connect(client.deployment).shutdown()


@pytest.fixture
def local(tiny: Dataset, tiny_config: EraserConfig, tmp_path: Path) -> Iterator[Coordinator]:
    """The same deployment without Ray."""
    place = str(tmp_path / "local")
    coordinator = Coordinator("local", place, partial(LocalShardPool, place), tiny_config)
    coordinator.fit(tiny)
    yield coordinator
    coordinator.close()


@pytest.fixture
def slow_running(ray_session: None, tmp_path: Path) -> Iterator[Callable[[], Client]]:
    """Starts a deployment whose shards train for about a second, so that there is a time to look at and to kill in."""
    clients = []

    def start() -> Client:
        config = config_from(
            {
                "data": {"synthetic_users": 300, "synthetic_items": 100, "synthetic_per_user": 20},
                "partition": {"n_shards": 2},
                "aggregation": {"foldin_alpha0": 0.3},
                "model": {"solver": "adagrad", "width": 16, "epochs": 400},
                "runtime": {"timeout_seconds": 60},
            }
        )
        client = deploy(f"slow-{uuid.uuid4().hex[:8]}", str(tmp_path / "slow"), config)
        client.fit(read_dataset("synthetic", config.data, config.seed))
        clients.append(client)
        return client

    yield start
    for client in clients:
        client.shutdown()
