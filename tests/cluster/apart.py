"""A cluster of several Ray nodes on this machine, and a program that uses it, in a process of their own.

Every function here is called in that process: which Ray the tests' own process uses is other tests' business, and a program
whose head is killed under it is killed, too.
"""

from __future__ import annotations

import os
import secrets
import time
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

    from ray_eraser.runtime.client import Client

_clusters: list[Cluster] = []
_client: Client

# That a node is gone is noticed in two seconds instead of twenty.
_SOON = {"health_check_period_ms": 500, "health_check_failure_threshold": 4, "health_check_initial_delay_ms": 0}


def prepare(folder: str) -> None:
    """Before anything of Ray is imported: a token, and a place that no other Ray uses."""
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        del os.environ[name]
    os.environ |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_TMPDIR": folder,
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    warnings.simplefilter("ignore")


def start(head_cpus: int, worker_cpus: Sequence[int]) -> list[str]:
    """Start a cluster and connect to it; the ids of its nodes, the head's first."""
    import ray
    from ray.cluster_utils import Cluster

    common = {"include_dashboard": False, "temp_dir": f"{os.environ['RAY_TMPDIR']}/ray"}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": head_cpus, "_system_config": _SOON, **common})
    _clusters.append(cluster)
    for cpus in worker_cpus:
        cluster.add_node(wait=False, num_cpus=cpus, labels={"pool": "shards"}, **common)
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, namespace="ray_eraser", log_to_driver=False, logging_level="ERROR")
    wanted = head_cpus + sum(worker_cpus)
    while ray.available_resources().get("CPU", 0) < wanted:  # until then none is placed on the newest
        time.sleep(0.1)
    return [node.node_id for node in cluster.list_all_nodes()]


def stop() -> None:
    """Kill all nodes of all clusters."""
    import ray

    ray.shutdown()
    for cluster in _clusters:
        for node in cluster.list_all_nodes():
            node.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)
    _clusters.clear()


def open_deployment(storage_path: str, settings: dict[str, Any] | None) -> None:
    """Train a deployment, or bring it back where no settings are given."""
    from ray_eraser.config import config_from
    from ray_eraser.data.files import read_dataset
    from ray_eraser.runtime.client import deploy

    global _client  # noqa: PLW0603 - this process' one client
    config = None if settings is None else config_from(settings)
    _client = deploy("nodes", storage_path, config)
    if config is not None:
        _client.fit(read_dataset("synthetic", config.data, config.seed))


def describe() -> dict[str, Any]:
    """The deployment's status in plain values, which cross every border between processes."""
    return _client.describe().to_dict()


def describe_without(node: str, seconds: float = 60) -> dict[str, Any]:
    """Once no process is said to be on a node that died, or time is up: they are asked every few seconds."""
    deadline = time.monotonic() + seconds
    while node in (described := describe())["nodes"] and time.monotonic() < deadline:
        time.sleep(0.5)
    return described


def unlearn(item_id: int) -> str:
    """Have an item forgotten, which all shards own; returns when they train."""
    request = _client.unlearn(item_id=item_id).request_id
    while _client.progress().stage != "shards":
        time.sleep(0.01)
    return request


def wait_for(request: str, seconds: float = 100) -> int:
    """The generation in which a request was carried out."""
    from ray_eraser.errors import RayEraserError

    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            receipt = _client.receipt(request)
        except RayEraserError:  # its process is coming up again
            receipt = None
        if receipt is not None:
            return receipt.generation
        time.sleep(0.2)
    raise TimeoutError(f"not carried out within {seconds} s: {_client.describe()}")


def kill_worker(node_id: str) -> None:
    """The machine's power goes."""
    (node,) = [node for node in _clusters[-1].worker_nodes if node.node_id == node_id]
    _clusters[-1].remove_node(node, allow_graceful=False)


def kill_head() -> None:
    import ray

    ray.shutdown()
    head = _clusters[-1].head_node
    head.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)
    _clusters[-1].head_node = None


def course_of_calls(nodes: Sequence[str], calls: int) -> list[tuple[str, str]]:
    """(`started` or `ended`, node) of calls that are fixed to nodes in turn, in the order in which `RayTasks` lets them run."""
    import ray

    from ray_eraser.config import RuntimeConfig
    from ray_eraser.runtime.pool import RayTasks

    @ray.remote(num_cpus=0)
    def here() -> str:
        time.sleep(0.1)
        return ray.get_runtime_context().get_node_id()

    course = []

    def start(node: str) -> Any:
        course.append(("started", node))
        return here.options(label_selector={"ray.io/node-id": node}).remote()

    where = {number: nodes[number % len(nodes)] for number in range(calls)}
    starts = {number: partial(start, node) for number, node in where.items()}
    for _, node in RayTasks(RuntimeConfig()).windowed(starts, "call", where):
        course.append(("ended", node))
    return course


def audit(storage_path: str) -> list[str]:
    """What differs from training from scratch."""
    from ray_eraser.pool import LocalShardPool
    from ray_eraser.store import Store
    from ray_eraser.unlearning.audit import audit as prove
    from ray_eraser.unlearning.ledger import Ledger

    ledger = Ledger(f"sqlite:///{Path(storage_path) / 'ledger.db'}")
    store = Store(storage_path)
    published = ledger.current()
    pool = LocalShardPool(store.uri, store.read_manifest(published.digest).config)
    report = prove(store, published, pool)
    ledger.close()
    return list(report.mismatches)
