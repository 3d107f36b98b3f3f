"""Two nodes with a network between them that fails while shards train: for a moment, and for good as far as Ray can tell.

Opt-in, because only root can cut a network: RAY_ERASER_NETNS=1.
"""

from __future__ import annotations

import json
import os
import secrets
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster import apart
from cluster.netns import ADDRESSES, Network, why_not
from ray_eraser.config import config_from
from ray_eraser.coordinator import Coordinator
from ray_eraser.data.files import read_dataset
from ray_eraser.ids import ShardId
from ray_eraser.pool import LocalShardPool
from ray_eraser.store import Store
from ray_eraser.unlearning.ledger import Ledger
from ray_eraser.unlearning.request import UnlearningRequest

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.skipif(why_not() != "", reason=why_not()),
]

REPOSITORY = Path(__file__).parents[2]
SETTINGS: dict[str, Any] = {
    "data": {"synthetic_users": 300, "synthetic_items": 100, "synthetic_per_user": 20},
    "partition": {"n_shards": 3},
    "model": {"solver": "adagrad", "width": 16, "epochs": 4000},
    "aggregation": {"foldin_alpha0": 0.3, "sweeps": 0},
    "runtime": {"timeout_seconds": 150},
}
"""A shard trains for some seconds, so that there is a time to cut in."""

HEALTH = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 8,
    "raylet_liveness_self_check_interval_ms": 5000,
}
"""A node that cannot be reached is dead after twelve seconds, and one that is reached again learns within five that it is."""

DEAD_SECONDS = 12.0

SHORT_SECONDS = 3.0
"""A cut that Ray is to sit out. With the pauses that TCP makes before it tries again, it may seem twice as long."""

CPUS = {"head": 1, "worker": 2}
"""So the worker has two of the shards and, being the largest, the processes that aggregate."""


@dataclass(frozen=True)
class Cluster:
    """A head and a worker in a network each, and a client beside the head."""

    folder: Path
    network: Network
    environment: dict[str, str] = field(repr=False)

    def start_node(self, machine: str) -> subprocess.Popen[str]:
        where = (
            ["--head", "--port", "6379", "--include-dashboard", "false", "--system-config", json.dumps(HEALTH)]
            if machine == "head"
            else ["--address", f"{ADDRESSES['head']}:6379"]
        )
        common = ["--block", "--node-ip-address", ADDRESSES[machine], "--num-cpus", str(CPUS[machine])]
        command = ["ray", "start", *where, *common, "--temp-dir", f"{self.folder}/ray", "--object-store-memory", "100000000"]
        log = self.folder / f"{machine}.log"
        node = self.network.start(machine, command, self.environment, log)
        deadline = time.monotonic() + 90
        while "Ray runtime started" not in log.read_text():
            assert node.poll() is None, log.read_text()
            assert time.monotonic() < deadline, f"{machine} did not come up: {log.read_text()}"
            time.sleep(0.1)
        return node


Ask = Callable[..., Any]
"""Calls a function of `inside` by its name, beside the head."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Networks, without nodes yet."""
    # A short path, because sockets lie in it and theirs are limited.
    folder = Path(tempfile.mkdtemp(prefix="rl", dir="/tmp"))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'tests'}",
        "RAY_ADDRESS": f"{ADDRESSES['head']}:6379",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_TMPDIR": str(folder),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    network = Network()
    try:
        try:
            network.open()
        except subprocess.CalledProcessError as error:
            pytest.skip(f"this machine makes no such networks: {' '.join(error.cmd)}: {error.stderr.strip()}")
        yield Cluster(folder, network, environment)
    finally:
        try:
            network.close()
        finally:
            shutil.rmtree(folder)


@pytest.fixture(scope="module")
def worker(cluster: Cluster) -> subprocess.Popen[str]:
    """The worker's `ray start`, once both nodes are up."""
    cluster.start_node("head")
    return cluster.start_node("worker")


@pytest.fixture(scope="module")
def ask(cluster: Cluster, worker: subprocess.Popen[str]) -> Ask:
    log = cluster.folder / "client.log"
    client = cluster.network.start_talking("head", [sys.executable, "-m", "cluster.inside"], cluster.environment, log)

    def asked(name: str, *arguments: Any) -> Any:
        assert client.stdin is not None
        assert client.stdout is not None
        client.stdin.write(json.dumps([name, arguments]) + "\n")
        client.stdin.flush()
        ready, _, _ = select.select([client.stdout], [], [], 150)
        assert ready, f"no answer from {name}"
        said = client.stdout.readline()
        assert said, log.read_text()
        answer = json.loads(said)
        assert "error" not in answer, answer["error"]
        return answer["answer"]

    _until(lambda: asked("alive") == sorted(ADDRESSES.values()), 60)
    return asked


@pytest.fixture(scope="module")
def place(ask: Ask, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The storage path of a deployment on both nodes: a folder that both see, cut or not."""
    place = str(tmp_path_factory.mktemp("link") / "storage")
    ask("open_deployment", place, SETTINGS)
    return place


@dataclass(frozen=True)
class Uncut:
    """The same run in one process without Ray: three users are erased, one after the other, all from the worker's shards.

    Attributes:
        users: raw ids.
        digests: of the generations, the first training's first.
    """

    users: list[Any]
    digests: list[str]


@pytest.fixture(scope="module")
def uncut(tmp_path_factory: pytest.TempPathFactory) -> Uncut:
    place = str(tmp_path_factory.mktemp("local") / "storage")
    config = config_from(SETTINGS)
    coordinator = Coordinator("local", place, partial(LocalShardPool, place), config)
    digests = [coordinator.fit(read_dataset("synthetic", config.data, config.seed)).digest]
    store = Store(place)
    manifest = store.read_manifest(digests[0])
    keys = [coordinator.shard_data()[ShardId(shard)].user_keys[at] for shard, at in ((0, 0), (1, 0), (1, -1))]
    users = store.read_vocabulary(manifest.users, "user", manifest).raw_of(np.array(keys))
    for user in users:
        coordinator.submit(UnlearningRequest(user_id=user))
        (receipt,) = coordinator.process_pending()
        assert len(receipt.shards_touched) == 1
        digests.append(coordinator.describe().digest)
    coordinator.close()
    return Uncut(users, digests)


def test_the_worker_holds_two_shards_and_what_aggregates(ask: Ask, place: str, uncut: Uncut) -> None:
    assert ask("describe")["digest"] == uncut.digests[0]
    held = ask("held")
    assert held[ADDRESSES["worker"]] == ["aggregator", "excisor", "shard-0", "shard-1"]
    assert held[ADDRESSES["head"]] == ["shard-2"]


def test_a_cut_of_seconds_while_shards_train_is_sat_out_and_changes_no_bit(
    cluster: Cluster, ask: Ask, place: str, uncut: Uncut
) -> None:
    before = ask("held")
    request = ask("unlearn_user", uncut.users[0])
    cluster.network.cut()
    time.sleep(SHORT_SECONDS)
    assert ask("standing", request) == ["shards", "routed"], "the worker cannot have answered"
    cluster.network.mend()
    assert ask("wait_for", request) == 2
    assert ask("describe")["digest"] == uncut.digests[1]
    time.sleep(DEAD_SECONDS)  # the checks of its health may have to wait for TCP, too
    assert ask("alive") == sorted(ADDRESSES.values())
    assert ask("held") == before
    assert _finished(place) == [(request, 2)]


def test_a_worker_that_is_cut_off_until_it_is_taken_for_dead_changes_no_bit(
    cluster: Cluster, worker: subprocess.Popen[str], ask: Ask, place: str, uncut: Uncut
) -> None:
    request = ask("unlearn_user", uncut.users[1])
    cluster.network.cut()
    _until(lambda: ask("alive") == [ADDRESSES["head"]], 60)
    assert worker.poll() is None, "it lives and trains; only nobody hears of it"
    time.sleep(1)
    cluster.network.mend()
    assert ask("wait_for", request) == 3
    assert ask("describe")["digest"] == uncut.digests[2]
    assert ask("held") == {ADDRESSES["head"]: ["aggregator", "excisor", "shard-0", "shard-1", "shard-2"]}
    worker.wait(timeout=60)  # it has heard what it is taken for; until then its shards could write
    assert [generation for _, generation in _finished(place)] == [2, 3]


def test_a_worker_that_is_started_again_is_there_and_the_next_erasure_is_as_ever(
    cluster: Cluster, worker: subprocess.Popen[str], ask: Ask, place: str, uncut: Uncut
) -> None:
    assert worker.poll() is not None
    cluster.start_node("worker")
    _until(lambda: ask("alive") == sorted(ADDRESSES.values()), 60)
    request = ask("unlearn_user", uncut.users[2])
    assert ask("wait_for", request) == 4
    assert ask("describe")["digest"] == uncut.digests[3]
    assert [generation for _, generation in _finished(place)] == [2, 3, 4]
    assert apart.audit(place) == []


def _finished(place: str) -> list[tuple[str, int]]:
    """(request, generation) of every receipt, in the order of finishing; no file is there that no generation needs."""
    ledger = Ledger(f"sqlite:///{Path(place) / 'ledger.db'}")
    receipts, published = ledger.receipts(), ledger.current()
    ledger.close()
    assert published is not None
    store = Store(place)
    needed = {ref.path for ref in store.read_manifest(published.digest).files()}
    assert [path for path in store.files() if path not in needed and published.digest not in path] == []
    return [(receipt.request_id, receipt.generation) for receipt in receipts]


def _until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.2)
