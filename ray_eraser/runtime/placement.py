"""Which node each shard lives on, and how many train at a time on a node. Calls nothing: nodes go in, a placement comes out.

Resident shards hold no CPU, so Ray could put all of them on one node. What is counted here instead is slots: a node has as many
as it has CPUs for training processes, shards are spread in proportion to them, and on no node do more train at a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ray_eraser.config import RuntimeConfig
from ray_eraser.errors import PoolError
from ray_eraser.ids import ShardId


@dataclass(frozen=True)
class Node:
    """A machine of the cluster, as far as placing shards is concerned."""

    node_id: str
    cpus: int
    gpus: float = 0.0
    labels: Mapping[str, str] = field(default_factory=dict)

    def slots(self, threads: int) -> int:
        """Processes of so many threads that the node has CPUs for; one where it has fewer, or shards there never trained."""
        return max(1, self.cpus // threads)

    def holds(self, gpus_per_shard: float) -> int:
        """Shards that its GPUs hold. A share of a GPU lies on one GPU, so what is left of several does not add up."""
        if gpus_per_shard >= 1:
            return int(self.gpus // gpus_per_shard)
        return int(self.gpus) * int(1 / gpus_per_shard + 1e-9)


@dataclass(frozen=True)
class Placement:
    """Where shards are to go.

    Attributes:
        nodes: the node of each shard.
        aggregator: the node for the processes that aggregate: the largest.
        cores: CPUs of that node.
        gpus_per_shard: that a shard's process can reserve.
        notices: what an operator should know, in sentences.
    """

    nodes: Mapping[ShardId, str]
    aggregator: str
    cores: int
    gpus_per_shard: float
    notices: tuple[str, ...]


def labels_of(runtime: RuntimeConfig) -> dict[str, str]:
    """The labels that a node must have to hold shards."""
    return dict(label.split("=", 1) for label in runtime.node_labels)


def slots_of(nodes: Sequence[Node], runtime: RuntimeConfig) -> int:
    """Shards that train at the same time on all nodes that may hold some.

    Raises:
        PoolError: as `spread`.
    """
    return runtime.slots or sum(node.slots(runtime.threads) for node in _able(nodes, runtime))


def spread(n_shards: int, nodes: Sequence[Node], runtime: RuntimeConfig) -> Placement:
    """Shards over nodes in proportion to their slots, so that all have trained theirs at about the same time.

    Nodes without a CPU are left out where others have some: a head that is to run nothing is started that way.

    Raises:
        PoolError: no node has the labels that are asked for.
    """
    able = _able(nodes, runtime)
    gpus_per_shard, notices = _gpus(n_shards, able, runtime.gpus_per_shard)
    room = {node.node_id: node.holds(gpus_per_shard) if gpus_per_shard else n_shards for node in able}
    placed: dict[ShardId, str] = {}
    held: Counter[str] = Counter()
    for shard in map(ShardId, range(n_shards)):
        free = [node for node in able if held[node.node_id] < room[node.node_id]]
        best = min(free, key=lambda node: ((held[node.node_id] + 1) / node.slots(runtime.threads), -node.cpus, node.node_id))
        placed[shard] = best.node_id
        held[best.node_id] += 1
    largest = min(able, key=lambda node: (-node.cpus, held[node.node_id], node.node_id))
    return Placement(placed, largest.node_id, max(1, largest.cpus), gpus_per_shard, notices)


def _able(nodes: Sequence[Node], runtime: RuntimeConfig) -> list[Node]:
    wanted = labels_of(runtime)
    labelled = [node for node in nodes if wanted.items() <= node.labels.items()]
    if not labelled:
        raise PoolError(
            "the shards",
            f"no node has the labels {', '.join(runtime.node_labels) or 'asked for'}: start one with `ray start --labels`, "
            "or change runtime.node_labels",
        )
    return [node for node in labelled if node.cpus] or labelled


def _gpus(n_shards: int, nodes: Sequence[Node], asked: float) -> tuple[float, tuple[str, ...]]:
    """(GPU that every shard can reserve, notices). All or none: what some computed on a GPU the others could not repeat."""
    if not asked:
        return 0.0, ()
    if (held := sum(node.holds(asked) for node in nodes)) >= n_shards:
        return asked, ()
    has = f"room for {held} of {n_shards} shards on its GPUs" if held else "no such GPU"
    return 0.0, (
        f"runtime.gpus_per_shard is {asked:g} and the cluster has {has}: all shards run on CPUs; add GPUs and deploy again",
    )
