"""Deployments with an open kind of model: the chosen model, the guarantee, and the effect of erasures on both."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Deployments, audited

from ray_eraser import config as config_module
from ray_eraser.config import EraserConfig, LinearConfig, WmfAlsConfig, load_config
from ray_eraser.data.dataset import Dataset
from ray_eraser.errors import DeploymentError
from ray_eraser.unlearning.request import UnlearningRequest

PAIRS = [(100 + u, i) for u in range(20) for i in range(12) if (u * 5 + i * 3) % 7 < 3]
"""A log with about four items for each of twenty users."""
NEW = [(999, item) for item in range(5)]


def plain(**changes) -> EraserConfig:
    """As few settings as possible, and no model setting."""
    return load_config(None, ["partition.n_shards=2", *(f"{name}={value}" for name, value in changes.items())])


@pytest.fixture
def limit(monkeypatch):
    """Set the number of interactions up to which the linear model is chosen."""
    return lambda n_pairs: monkeypatch.setattr(config_module, "LINEAR_UP_TO", n_pairs)


def log_of(pairs) -> Dataset:
    return Dataset.of_pairs("log", pairs)


def claimed(coordinator) -> tuple[str, tuple[str, ...]]:
    status = coordinator.describe()
    return status.guarantee, status.chosen


def erase(coordinator, **request) -> tuple[str, tuple[str, ...]]:
    """Erase, and return the guarantee that the receipt claims."""
    coordinator.submit(UnlearningRequest(**request))
    (receipt,) = coordinator.process_pending()
    return receipt.guarantee, receipt.chosen


def files_of(deployments: Deployments, name: str) -> dict[str, bytes]:
    folder = Path(deployments.path(name))
    files = (file for file in folder.rglob("*") if file.is_file() and not file.name.startswith("ledger"))
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def test_a_default_deployment_is_linear_and_exact_and_reopens_with_the_same_settings(deployments):
    coordinator = deployments.fit("shop", plain(), log_of(PAIRS))
    assert coordinator.config.model == LinearConfig()
    assert claimed(coordinator) == ("exact", ())
    assert erase(coordinator, user_id=103) == ("exact", ())
    assert audited(coordinator).exact
    coordinator.close()
    assert deployments.open("shop", plain()).config.model == LinearConfig()
    with pytest.raises(DeploymentError, match="other settings"):
        deployments.open("shop", load_config(None, ["partition.n_shards=2", "model.kind=wmf"]))


def test_a_default_deployment_has_the_files_of_one_that_names_the_linear_model(deployments):
    deployments.fit("open", plain(), log_of(PAIRS))
    deployments.fit("named", plain(**{"model.kind": "linear"}), log_of(PAIRS))
    assert files_of(deployments, "open") == files_of(deployments, "named")


def test_a_larger_log_gets_vectors_and_keeps_them_after_erasures(deployments, limit):
    limit(len(PAIRS) - 1)
    config = plain(**{"model.kind": "auto", "model.width": 4, "model.epochs": 1})
    coordinator = deployments.fit("shop", config, log_of(PAIRS))
    assert coordinator.config.model == WmfAlsConfig(width=4, epochs=1, alpha0=coordinator.config.model.alpha0)
    assert claimed(coordinator) == ("exact-given-settings", ("model.alpha0",))
    # A fresh training on the remaining data would choose the linear model.
    assert erase(coordinator, user_id=103) == ("exact-given-settings", ("model.kind", "model.alpha0"))
    assert isinstance(coordinator.config.model, WmfAlsConfig)
    assert audited(coordinator).exact
    coordinator.close()
    coordinator = deployments.open("shop", config)
    assert claimed(coordinator) == ("exact-given-settings", ("model.kind", "model.alpha0"))
    coordinator.repartition()
    coordinator.process_pending()
    assert coordinator.config.model == LinearConfig(width=4)
    assert claimed(coordinator) == ("exact", ())
    deployments.fit("today", config, log_of([pair for pair in PAIRS if pair[0] != 103]))
    assert files_of(deployments, "shop") == files_of(deployments, "today")


def test_learning_and_erasing_again_does_not_change_the_guarantee(deployments, limit):
    limit(len(PAIRS))
    coordinator = deployments.fit("shop", plain(), log_of(PAIRS))
    before = files_of(deployments, "shop")
    coordinator.learn(NEW)
    coordinator.process_pending()
    assert claimed(coordinator) == ("exact-given-settings", ("model.kind",))
    assert isinstance(coordinator.config.model, LinearConfig)
    assert erase(coordinator, user_id=999) == ("exact", ())
    assert files_of(deployments, "shop") == before


@pytest.mark.parametrize("kind", ["linear", "wmf"])
def test_a_kind_that_was_set_is_never_reported_as_chosen(deployments, limit, kind):
    limit(len(PAIRS))
    settings = {"model.alpha0": 0.3, "model.width": 4, "model.epochs": 1} if kind == "wmf" else {}
    coordinator = deployments.fit("shop", plain(**{"model.kind": kind, **settings}), log_of(PAIRS))
    coordinator.learn(NEW)
    coordinator.process_pending()
    assert claimed(coordinator) == ("exact", ())


def test_a_re_partition_may_set_the_kind_or_open_it_again(deployments):
    coordinator = deployments.fit("shop", plain(), log_of(PAIRS))
    coordinator.repartition(["model.width=4", "model.epochs=1", "model.alpha0=0.3"])
    coordinator.process_pending()
    assert coordinator.config.model == WmfAlsConfig(width=4, epochs=1, alpha0=0.3)
    assert claimed(coordinator) == ("exact", ())
    coordinator.repartition(["model.kind=auto"])
    coordinator.process_pending()
    assert coordinator.config.model == LinearConfig(width=4)
