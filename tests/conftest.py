"""Fixtures for all test folders."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from ray_eraser.config import EraserConfig, config_from
from ray_eraser.data.dataset import Dataset
from ray_eraser.data.files import read_dataset

# The same examples in every run, so that no change fails by chance; `make fuzz` draws new ones each time. There are no
# deadlines, because the time of an example depends on the machine.
settings.register_profile("fixed", deadline=None, derandomize=True)
settings.register_profile("fuzz", deadline=None, print_blob=True)
settings.load_profile(os.environ.get("RAY_ERASER_EXAMPLES", "fixed"))


@pytest.fixture(scope="session", autouse=True)
def _state_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the secrets of idempotency keys in a folder of the test run, also for processes that tests start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder with the papers' data sets; for tests marked `data`."""
    folder = Path(os.environ.get("RAY_ERASER_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no data sets at {folder}: set RAY_ERASER_DATA to the folder that holds ml-1m, ml-100k and yelp2018")
    return folder


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A Ray of this test run only, with its own token and temporary folder, and without a dashboard. It is not autouse."""
    import ray

    assert not ray.is_initialized(), "another test has started a Ray"
    # A short path, because it holds sockets, whose paths have a length limit.
    folder = tempfile.mkdtemp(prefix="re", dir="/tmp")
    before = {name: os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_ADDRESS")}
    os.environ.pop("RAY_ADDRESS", None)
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's own warnings about its coming versions
        ray.init(
            address="local",
            namespace="ray_eraser",
            num_cpus=2,
            # Without a GPU, Ray is told of two GPUs that do not exist, which is enough for placement.
            num_gpus=None if Path("/dev/nvidia0").exists() else 2,
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
            "data": {
                "synthetic_users": 60,
                "synthetic_items": 40,
                "synthetic_per_user": 8,
                "synthetic_communities": 3,
                "test_share": 0.2,
                "valid_share": 0.1,
            },
            "partition": {"n_shards": 3},
            "model": {"kind": "wmf", "width": 8, "epochs": 3, "alpha0": 0.3},
            "runtime": {"timeout_seconds": 60},
        }
    )


@pytest.fixture(scope="session")
def tiny(tiny_config: EraserConfig) -> Dataset:
    return read_dataset("synthetic", tiny_config.data, tiny_config.seed)
