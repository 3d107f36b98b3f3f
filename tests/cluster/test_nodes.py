"""Four nodes on one machine: where shards live, and what happens when a node dies."""

from __future__ import annotations

import multiprocessing
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

import pytest

from cluster import apart
from ray_eraser.config import config_from
from ray_eraser.coordinator import Coordinator
from ray_eraser.data.files import read_dataset
from ray_eraser.pool import LocalShardPool
from ray_eraser.unlearning.request import UnlearningRequest

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

SETTINGS: dict[str, Any] = {
    "data": {"synthetic_users": 300, "synthetic_items": 100, "synthetic_per_user": 20},
    "partition": {"n_shards": 6},
    "model": {"solver": "adagrad", "width": 16, "epochs": 600},
    "aggregation": {"foldin_alpha0": 0.3, "sweeps": 0},
    "runtime": {"timeout_seconds": 100, "gpus_per_shard": 0.5, "node_labels": ["pool=shards"]},
}
"""A shard trains for about a second, so that there is a time to kill in."""

Apart = Callable[..., Any]


@pytest.fixture(scope="module")
def there() -> Iterator[Apart]:
    """Calls a function of `apart` in its process."""
    folder = tempfile.mkdtemp(prefix="rc", dir="/tmp")
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), apart.prepare, (folder,)) as process:
        yield lambda function, *arguments: process.submit(function, *arguments).result(timeout=150)
        process.submit(apart.stop).result(timeout=60)
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def nodes(there: Apart) -> list[str]:
    return there(apart.start, 1, [1, 1, 1])


@pytest.fixture(scope="module")
def place(there: Apart, nodes: list[str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The storage path of a deployment on the cluster."""
    place = str(tmp_path_factory.mktemp("nodes") / "storage")
    there(apart.open_deployment, place, SETTINGS)
    return place


@pytest.fixture(scope="module")
def digests(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Of the generations that the tests make, one after the other, in one process without Ray."""
    place = str(tmp_path_factory.mktemp("local") / "storage")
    config = config_from(SETTINGS)
    coordinator = Coordinator("local", place, partial(LocalShardPool, place), config)
    found = [coordinator.fit(read_dataset("synthetic", config.data, config.seed)).digest]
    for item_id in (_item(config, 0), _item(config, 1)):
        coordinator.submit(UnlearningRequest(item_id=item_id))
        coordinator.process_pending()
        found.append(coordinator.describe().digest)
    coordinator.close()
    return found


def _item(config: Any, number: int) -> Any:
    return read_dataset("synthetic", config.data, config.seed).items.ids[number]


ITEMS = [_item(config_from(SETTINGS), number) for number in range(2)]


def test_shards_are_spread_over_the_nodes_that_are_meant_for_them(
    there: Apart, nodes: list[str], place: str, digests: list[str]
) -> None:
    described = there(apart.describe)
    assert described["digest"] == digests[0]
    held = {node: [role for role in roles if role.startswith("shard-")] for node, roles in described["nodes"].items()}
    assert {node: len(roles) for node, roles in held.items() if roles} == dict.fromkeys(nodes[1:], 2)


def test_a_cluster_without_gpus_says_so_instead_of_waiting_for_one(there: Apart, place: str) -> None:
    (notice,) = there(apart.describe)["notices"]
    assert notice.startswith("runtime.gpus_per_shard is 0.5, but the cluster has no such GPU: all shards run on CPUs; add GPUs")


def test_no_node_works_on_more_at_a_time_than_it_has_slots_and_all_work(there: Apart, nodes: list[str]) -> None:
    course = there(apart.course_of_calls, nodes[1:], 6)
    assert {node for what, node in course[:3] if what == "started"} == set(nodes[1:])
    for node in nodes[1:]:
        assert [what for what, at in course if at == node] == ["started", "ended"] * 2


def test_a_node_that_dies_while_its_shards_train_changes_no_bit(
    there: Apart, nodes: list[str], place: str, digests: list[str]
) -> None:
    request = there(apart.unlearn, ITEMS[0])
    there(apart.kill_worker, nodes[3])
    assert there(apart.wait_for, request) == 2
    described = there(apart.describe_without, nodes[3])
    assert described["digest"] == digests[1]
    assert nodes[3] not in described["nodes"], "the processes of the dead node are elsewhere"
    left = [node for node, roles in described["nodes"].items() if any(role.startswith("shard-") for role in roles)]
    assert nodes[0] not in left, "the head has not the label"


def test_a_head_that_dies_while_shards_train_is_replaced_and_changes_no_bit(
    there: Apart, nodes: list[str], place: str, digests: list[str]
) -> None:
    request = there(apart.unlearn, ITEMS[1])
    there(apart.kill_head)
    there(apart.start, 1, [1])
    there(apart.open_deployment, place, None)
    assert there(apart.wait_for, request) == 3
    assert there(apart.describe)["digest"] == digests[2]
    assert there(apart.audit, place) == []
