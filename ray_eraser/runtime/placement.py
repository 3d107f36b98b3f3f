"""Which node each shard lives on, and how many train at a time on a node. Calls nothing: nodes go in, a placement comes out.

Resident shards hold no CPU, so Ray could put all of them on one node. What is counted here instead is slots: a node has as many
as it has CPUs for training processes, shards are spread in proportion to them, and on no node do more train at a time.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ray_eraser.config import RuntimeConfig
from ray_eraser.devices import Device
from ray_eraser.errors import PoolError
from ray_eraser.ids import ShardId

_AGGREGATING = 1
"""Processes with a GPU besides the shards': the one that aggregates."""

_SPARE = 1
"""Shares of a GPU that an equal division leaves free, for audits."""


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

    def holds(self, gpus: float) -> int:
        """Processes that its GPUs hold, each reserving so much. A share of a GPU lies on one GPU: remainders do not add up."""
        if gpus >= 1:
            return int(self.gpus // gpus)
        return int(self.gpus) * int(1 / gpus + 1e-9)


@dataclass(frozen=True)
class Placement:
    """Where shards are to go.

    Attributes:
        nodes: the node of each shard.
        aggregator: the node of the process that aggregates: the largest, on GPUs the largest with room.
        excisor: the node of the process that aggregates for excisions, on the CPU: the largest.
        cores: CPUs of the smaller of these two nodes.
        gpus: that each process reserves; 0 on CPUs, and where a deployment of GPUs finds too few of them.
        notices: what an operator should know, in sentences.
    """

    nodes: Mapping[ShardId, str]
    aggregator: str
    excisor: str
    cores: int
    gpus: float
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


def settled_device(n_shards: int, nodes: Sequence[Node], runtime: RuntimeConfig) -> Device:
    """What `runtime.device` comes to: `auto` is a GPU where `gpus_per_shard` is set and all processes get theirs.

    Raises:
        PoolError: as `spread`.
    """
    if runtime.device != "auto":
        return runtime.device
    asked = runtime.gpus_per_shard
    return "cuda" if asked and _room(_able(nodes, runtime), asked) >= n_shards + _AGGREGATING else "cpu"


def spread(n_shards: int, nodes: Sequence[Node], runtime: RuntimeConfig) -> Placement:
    """Shards over nodes in proportion to their slots, so that all have trained theirs at about the same time.

    Nodes without a CPU are left out where others have some: a head that is to run nothing is started that way.

    Raises:
        PoolError: no node has the labels that are asked for.
    """
    able = _able(nodes, runtime)
    gpus, notice = _gpus_each(n_shards, able, runtime)
    room = {node.node_id: node.holds(gpus) if gpus else n_shards + _AGGREGATING for node in able}
    placed: dict[ShardId, str] = {}
    held: Counter[str] = Counter()
    for shard in map(ShardId, range(n_shards)):
        free = [node for node in able if held[node.node_id] < room[node.node_id]]
        best = min(free, key=lambda node: ((held[node.node_id] + 1) / node.slots(runtime.threads), -node.cpus, node.node_id))
        placed[shard] = best.node_id
        held[best.node_id] += 1
    largest = sorted(able, key=lambda node: (-node.cpus, held[node.node_id], node.node_id))
    with_room = [node for node in largest if held[node.node_id] < room[node.node_id]]
    cores = max(1, min(with_room[0].cpus, largest[0].cpus))
    return Placement(placed, with_room[0].node_id, largest[0].node_id, cores, gpus, (notice,) if notice else ())


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


def _room(nodes: Sequence[Node], gpus: float) -> int:
    return sum(node.holds(gpus) for node in nodes)


def _gpus_each(n_shards: int, nodes: Sequence[Node], runtime: RuntimeConfig) -> tuple[float, str]:
    """(GPU that each process reserves, a notice). All or none: a generation must not mix devices."""
    if runtime.known_device != "cuda":
        return 0.0, _unused(n_shards, nodes, runtime)
    n_gpus, wanted = sum(int(node.gpus) for node in nodes), n_shards + _AGGREGATING
    if not n_gpus:
        return 0.0, f"runtime.device is cuda and {_labelled(runtime)} has a GPU: add GPUs, or set runtime.device=cpu"
    equal = math.floor(1e4 / -(-(wanted + _SPARE) // n_gpus)) / 1e4
    asked = runtime.gpus_per_shard or equal
    if (held := _room(nodes, asked)) < wanted:
        return 0.0, (
            f"with runtime.gpus_per_shard={asked:g} the cluster's GPUs hold {held} of {wanted} processes: set it to {equal:g} "
            "or less, set runtime.process_per=slot, or add GPUs"
        )
    return asked, ""


def _unused(n_shards: int, nodes: Sequence[Node], runtime: RuntimeConfig) -> str:
    """What to say of GPUs that were asked for and are not used; nothing where there are none such."""
    asked = runtime.gpus_per_shard
    if not asked:
        return ""
    held, wanted = _room(nodes, asked), n_shards + _AGGREGATING
    if held >= wanted:
        seen = "all shards run on CPUs, where the deployment was trained"
        return f"runtime.gpus_per_shard is {asked:g} and {seen}: repartition with --set runtime.device=cuda to use the GPUs"
    has = f"room for {held} of {wanted} processes on its GPUs" if held else "no such GPU"
    way_out = "add GPUs and train or repartition again"
    return f"runtime.gpus_per_shard is {asked:g} and the cluster has {has}: all shards run on CPUs; {way_out}"


def _labelled(runtime: RuntimeConfig) -> str:
    return f"no node with the labels {', '.join(runtime.node_labels)}" if runtime.node_labels else "no node"
