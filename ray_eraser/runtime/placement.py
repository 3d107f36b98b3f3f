"""Which node each shard is placed on, and how many shards train at a time on a node. Pure functions from nodes to placements.

Resident shards reserve no CPU, so Ray might put all of them on one node. Slots are counted instead. A node has one slot for
every training process that its CPUs can run. Shards are spread in proportion to slots, and no node trains more shards at a
time than it has slots.
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
"""Processes with a GPU besides the shards' processes: the aggregator."""

_SPARE = 1
"""GPU shares that an equal division leaves free for audits."""


@dataclass(frozen=True)
class Node:
    """A machine of the cluster: its id, CPUs, GPUs and labels."""

    node_id: str
    cpus: int
    gpus: float = 0.0
    labels: Mapping[str, str] = field(default_factory=dict)

    def slots(self, threads: int) -> int:
        """Number of processes with this many threads that its CPUs can run, at least one. Otherwise its shards never train."""
        return max(1, self.cpus // threads)

    def holds(self, gpus: float) -> int:
        """Number of processes that its GPUs hold, each with this share. A share is on one GPU, so remainders do not add up."""
        if gpus >= 1:
            return int(self.gpus // gpus)
        return int(self.gpus) * int(1 / gpus + 1e-9)


@dataclass(frozen=True)
class Placement:
    """The placement of the shards and of the aggregating processes.

    Attributes:
        nodes: the node of each shard.
        aggregator: the node of the aggregator: the largest node; on GPUs, the largest node with room.
        excisor: the node of the process that aggregates for excisions, on the CPU: the largest node.
        cores: number of CPUs of the smaller of these two nodes.
        gpus: the GPU share that each process reserves; 0 on CPUs, and if there are too few GPUs.
        notices: sentences for the operator.
    """

    nodes: Mapping[ShardId, str]
    aggregator: str
    excisor: str
    cores: int
    gpus: float
    notices: tuple[str, ...]


def labels_of(runtime: RuntimeConfig) -> dict[str, str]:
    """The labels that a node needs to hold shards."""
    return dict(label.split("=", 1) for label in runtime.node_labels)


def slots_of(nodes: Sequence[Node], runtime: RuntimeConfig) -> int:
    """Number of shards that can train at the same time on all suitable nodes.

    Raises:
        PoolError: as `spread`.
    """
    return runtime.slots or sum(node.slots(runtime.threads) for node in _able(nodes, runtime))


def settled_device(n_shards: int, nodes: Sequence[Node], runtime: RuntimeConfig) -> Device:
    """The device that `runtime.device` resolves to. `auto` is a GPU if `gpus_per_shard` is set and the GPUs hold all processes.

    Raises:
        PoolError: as `spread`.
    """
    if runtime.device != "auto":
        return runtime.device
    asked = runtime.gpus_per_shard
    return "cuda" if asked and _room(_able(nodes, runtime), asked) >= n_shards + _AGGREGATING else "cpu"


def spread(n_shards: int, nodes: Sequence[Node], runtime: RuntimeConfig) -> Placement:
    """Spread shards over nodes in proportion to slots, so that all nodes finish training at about the same time.

    Nodes without CPUs are left out if other nodes have some: a head node that must run nothing is started that way.

    Raises:
        PoolError: no node has the required labels.
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
    """(GPU share that each process reserves, notice). All processes get a GPU or none does: a generation has one device."""
    if runtime.known_device != "cuda":
        return 0.0, _unused(n_shards, nodes, runtime)
    n_gpus, wanted = sum(int(node.gpus) for node in nodes), n_shards + _AGGREGATING
    if not n_gpus:
        return 0.0, f"runtime.device is cuda, but {_labelled(runtime)} has a GPU: add GPUs, or set runtime.device=cpu"
    equal = math.floor(1e4 / -(-(wanted + _SPARE) // n_gpus)) / 1e4
    asked = runtime.gpus_per_shard or equal
    if (held := _room(nodes, asked)) < wanted:
        return 0.0, (
            f"with runtime.gpus_per_shard={asked:g} the cluster's GPUs hold {held} of {wanted} processes: set it to {equal:g} "
            "or less, set runtime.process_per=slot, or add GPUs"
        )
    return asked, ""


def _unused(n_shards: int, nodes: Sequence[Node], runtime: RuntimeConfig) -> str:
    """A notice about requested GPUs that are not used; empty if there are none."""
    asked = runtime.gpus_per_shard
    if not asked:
        return ""
    held, wanted = _room(nodes, asked), n_shards + _AGGREGATING
    if held >= wanted:
        seen = "all shards run on CPUs, because the deployment was trained on CPUs"
        return f"runtime.gpus_per_shard is {asked:g}, but {seen}: repartition with --set runtime.device=cuda to use the GPUs"
    has = f"room for {held} of {wanted} processes on its GPUs" if held else "no such GPU"
    way_out = "add GPUs and train or repartition again"
    return f"runtime.gpus_per_shard is {asked:g}, but the cluster has {has}: all shards run on CPUs; {way_out}"


def _labelled(runtime: RuntimeConfig) -> str:
    return f"no node with the labels {', '.join(runtime.node_labels)}" if runtime.node_labels else "no node"
