"""One local Ray for all tests that need one; never automatic, never anybody else's."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
import uuid
import warnings
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
def ray_session() -> Iterator[None]:
    """A Ray of this test run alone: own token, own temporary folder, no dashboard."""
    import ray

    assert not ray.is_initialized(), "another test has started a Ray"
    folder = tempfile.mkdtemp(prefix="re", dir="/tmp")  # noqa: S108 - short, because it holds the paths of sockets
    before = {name: os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_ADDRESS")}
    os.environ.pop("RAY_ADDRESS", None)
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Ray's own about its coming versions
        ray.init(
            address="local",
            namespace="ray_eraser",
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            _temp_dir=folder,
        )
    yield
    ray.shutdown()
    for name, value in before.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def tiny_config() -> EraserConfig:
    """Three shards of a small generated log."""
    return config_from(
        {
            "data": {"synthetic_users": 60, "synthetic_items": 40, "synthetic_per_user": 8, "synthetic_communities": 3},
            "partition": {"n_shards": 3},
            "model": {"width": 8, "epochs": 3},
            "runtime": {"timeout_seconds": 60},
        }
    )


@pytest.fixture(scope="session")
def tiny(tiny_config: EraserConfig) -> Dataset:
    return read_dataset("synthetic", tiny_config.data, tiny_config.seed)


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
