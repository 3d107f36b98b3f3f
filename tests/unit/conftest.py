"""Deployments in this process on small data, which a test may kill and reopen."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ray_eraser.config import EraserConfig
from ray_eraser.coordinator import Coordinator
from ray_eraser.data.dataset import Dataset
from ray_eraser.partition import Partition
from ray_eraser.pool import LocalShardPool
from ray_eraser.store import Store, manifest_ref
from ray_eraser.unlearning.audit import AuditReport, Erased, audit

SMALL_LOG = {"synthetic_users": 40, "synthetic_items": 30, "synthetic_per_user": 7, "synthetic_communities": 3}
"""Settings of a generated log on which training is fast."""


class Deployments:
    """Deployments under one folder. A name is a storage path; to reopen it is to recover from a crash."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.honest = True
        self._opened: list[Coordinator] = []

    def path(self, name: str) -> str:
        return str(self.folder / name)

    def store(self, name: str) -> Store:
        return Store(self.path(name))

    def open(self, name: str, config: EraserConfig | None = None, **settings: Any) -> Coordinator:
        path = self.path(name)
        coordinator = Coordinator(name, path, partial(LocalShardPool, path), config, **{"clock": lambda: 1000.0, **settings})
        self._opened.append(coordinator)
        return coordinator

    def fit(
        self,
        name: str,
        config: EraserConfig,
        dataset: Dataset,
        partition: Partition | None = None,
        held: Partition | None = None,
        **settings: Any,
    ) -> Coordinator:
        coordinator = self.open(name, config, **settings)
        coordinator.fit(dataset, partition, held)
        return coordinator

    def copy(self, template: Path, name: str, **settings: Any) -> Coordinator:
        """Open a copy of a deployment that is not open."""
        shutil.copytree(template, self.path(name))
        return self.open(name, **settings)

    def close(self) -> None:
        for coordinator in self._opened:
            coordinator.close()

    def check(self) -> None:
        """Check an invariant of every idle deployment: its files belong to one generation."""
        for coordinator in self._opened:
            if coordinator._ledger.is_closed:
                continue
            published = coordinator._ledger.current()
            if published is not None and not coordinator.has_pending():
                assert coordinator._store.files() == files_of(coordinator._store, published.digest)


def files_of(store: Store, digest: str) -> list[str]:
    return sorted({ref.path for ref in store.read_manifest(digest).files()} | {manifest_ref(digest).path})


def digest_of(coordinator: Coordinator) -> str:
    return coordinator.describe().digest


def audited(coordinator: Coordinator, erased: Erased | None = None) -> AuditReport:
    published = coordinator._ledger.current()
    assert published is not None
    return audit(coordinator._store, published, coordinator.pool, erased or Erased())


@pytest.fixture
def deployments(tmp_path: Path) -> Iterator[Deployments]:
    opened = Deployments(tmp_path)
    yield opened
    try:
        if opened.honest:
            opened.check()
    finally:
        opened.close()


@pytest.fixture(scope="session")
def trained(tiny: Dataset, tiny_config: EraserConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A closed deployment of the tiny log, to be copied and never opened."""
    folder = tmp_path_factory.mktemp("trained") / "template"
    coordinator = Coordinator("template", str(folder), partial(LocalShardPool, str(folder)), tiny_config, clock=lambda: 0.0)
    coordinator.fit(tiny)
    coordinator.close()
    return folder


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Request ids and salts that count up; calling it starts over."""
    numbers: list[int] = []

    def token_hex(n_bytes: int) -> str:
        numbers.append(len(numbers) + 1)
        return f"{numbers[-1]:0{2 * n_bytes}x}"

    monkeypatch.setattr("ray_eraser.intake.secrets", SimpleNamespace(token_hex=token_hex))
    return numbers.clear
