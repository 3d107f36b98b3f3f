"""The placement of shards on nodes."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_eraser.config import RuntimeConfig
from ray_eraser.errors import PoolError
from ray_eraser.runtime.placement import Node, settled_device, spread

NODES = st.lists(st.integers(1, 64), min_size=1, max_size=8).map(
    lambda cpus: [Node(f"n{number}", count) for number, count in enumerate(cpus)]
)


def _held(n_shards: int, nodes: list[Node], **runtime: object) -> dict[str, int]:
    return dict(Counter(spread(n_shards, nodes, RuntimeConfig(**runtime)).nodes.values()))


def test_equal_nodes_hold_equal_numbers_of_shards() -> None:
    assert _held(8, [Node(name, 4) for name in "abcd"]) == {"a": 2, "b": 2, "c": 2, "d": 2}


def test_a_large_node_is_filled_and_a_small_one_is_not_overloaded() -> None:
    assert _held(18, [Node("small", 2), Node("large", 16)]) == {"small": 2, "large": 16}


@given(NODES, st.integers(1, 60), st.integers(1, 4))
def test_all_nodes_have_trained_their_shards_within_one_round_of_each_other(nodes: list[Node], n_shards: int, threads: int):
    held = _held(n_shards, nodes, threads=threads)
    assert sum(held.values()) == n_shards
    rounds = -(-n_shards // sum(node.slots(threads) for node in nodes))
    assert all(held.get(node.node_id, 0) <= rounds * node.slots(threads) for node in nodes)


def test_threads_share_the_cpus() -> None:
    assert _held(5, [Node("a", 8), Node("b", 2)], threads=2) == {"a": 4, "b": 1}
    assert Node("c", 2).slots(threads=4) == 1


def test_the_aggregator_gets_the_cores_of_the_largest_node() -> None:
    placement = spread(3, [Node("small", 2), Node("large", 16), Node("gpus", 4, gpus=8)], RuntimeConfig())
    assert (placement.aggregator, placement.excisor, placement.cores) == ("large", "large", 16)
    assert spread(1, [Node("only", 0)], RuntimeConfig()).cores == 1


def test_a_head_without_cpus_holds_nothing_unless_it_is_alone() -> None:
    head = Node("head", 0)
    assert _held(4, [head, Node("a", 2), Node("b", 2)]) == {"a": 2, "b": 2}
    assert _held(4, [head]) == {"head": 4}


def test_only_nodes_with_all_labels_hold_shards() -> None:
    nodes = [Node("a", 8), Node("b", 2, labels={"pool": "shards", "zone": "1"}), Node("c", 2, labels={"pool": "other"})]
    assert _held(3, nodes, node_labels=("pool=shards", "zone=1")) == {"b": 3}
    with pytest.raises(PoolError, match=r"no node has the labels pool=none: start one with `ray start --labels`"):
        _held(3, nodes, node_labels=("pool=none",))


def test_all_processes_are_placed_on_nodes_with_gpus() -> None:
    nodes = [Node("cpu", 64), Node("one", 4, gpus=1), Node("two", 8, gpus=2)]
    placement = spread(5, nodes, RuntimeConfig(device="cuda", gpus_per_shard=0.5))
    held = Counter([*placement.nodes.values(), placement.aggregator])
    assert held == {"one": 2, "two": 4}
    assert (placement.gpus, placement.notices) == (0.5, ())
    assert placement.excisor == "cpu"  # it needs no GPU
    assert placement.cores == {"one": 4, "two": 8}[placement.aggregator]


@pytest.mark.parametrize(
    ("n_shards", "gpus", "each"), [(10, 1, 0.0833), (1, 1, 0.3333), (6, 8, 1), (7, 8, 0.5), (21, 8, 0.3333)]
)
def test_without_a_share_the_gpus_are_divided_equally_with_one_share_to_spare(n_shards: int, gpus: int, each: float) -> None:
    placement = spread(n_shards, [Node("a", 8, gpus=gpus)], RuntimeConfig(device="cuda"))
    assert placement.gpus == pytest.approx(each, abs=0.004)
    each = placement.gpus
    assert Node("a", 8, gpus=gpus).holds(each) >= n_shards + 2


@pytest.mark.parametrize(
    ("gpus", "has"), [(0, "no such GPU"), (1, "room for 3 of 5 processes on its GPUs"), (0.5, "no such GPU")]
)
def test_with_too_few_gpus_auto_reports_it_and_uses_cpus(gpus: float, has: str) -> None:
    nodes, runtime = [Node("a", 2, gpus=gpus), Node("b", 2)], RuntimeConfig(gpus_per_shard=0.3)
    assert settled_device(4, nodes, runtime) == "cpu"
    placement = spread(4, nodes, runtime)
    assert placement.gpus == 0
    assert Counter(placement.nodes.values()) == {"a": 2, "b": 2}
    (notice,) = placement.notices
    assert f"runtime.gpus_per_shard is 0.3, but the cluster has {has}: all shards run on CPUs; add GPUs and train" in notice


def test_auto_uses_gpus_if_a_share_is_set_and_suffices_for_all_processes() -> None:
    nodes = [Node("a", 4, gpus=2)]
    assert settled_device(3, nodes, RuntimeConfig(gpus_per_shard=0.5)) == "cuda"
    assert settled_device(4, nodes, RuntimeConfig(gpus_per_shard=0.5)) == "cpu"
    assert settled_device(2, nodes, RuntimeConfig()) == "cpu"
    assert settled_device(2, nodes, RuntimeConfig(device="cpu", gpus_per_shard=0.5)) == "cpu"
    assert settled_device(2, [Node("a", 4)], RuntimeConfig(device="cuda")) == "cuda"


def test_a_deployment_trained_on_cpus_stays_there_and_says_how_to_use_gpus() -> None:
    (notice,) = spread(2, [Node("a", 4, gpus=4)], RuntimeConfig(device="cpu", gpus_per_shard=1)).notices
    assert "repartition with --set runtime.device=cuda" in notice


@pytest.mark.parametrize(
    ("runtime", "problem"),
    [
        (RuntimeConfig(device="cuda", node_labels=("pool=a",)), "no node with the labels pool=a has a GPU"),
        (RuntimeConfig(device="cuda", gpus_per_shard=0.5), "hold 2 of 3 processes: set it to 0.25 or less"),
    ],
)
def test_missing_gpus_that_a_deployment_needs_are_reported(runtime: RuntimeConfig, problem: str) -> None:
    """The processes still start, because reads need no GPU."""
    placement = spread(2, [Node("a", 4, labels={"pool": "a"}), Node("b", 4, gpus=1)], runtime)
    assert placement.gpus == 0
    assert problem in placement.notices[0]


def test_shares_of_several_gpus_do_not_add_up() -> None:
    assert Node("a", 4, gpus=2).holds(0.6) == 2
    assert Node("a", 4, gpus=2).holds(0.1) == 20
    assert Node("a", 4, gpus=4).holds(2) == 2
