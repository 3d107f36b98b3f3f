"""Where shards live and work: one protocol with two pools, this process and Ray (runtime/pool.py). Both give the same bits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeVar

from ray_eraser.aggregator import Aggregated, AggregationOrder, Aggregator
from ray_eraser.compute import Compute
from ray_eraser.config import EraserConfig, RuntimeConfig
from ray_eraser.devices import Device
from ray_eraser.embeddings import KeyedEmbeddings
from ray_eraser.ids import ShardId
from ray_eraser.shard import Shard, ShardOrder, Trained

_T = TypeVar("_T")

OnDone = Callable[[Trained], None]


class ShardPool(Compute, Protocol):
    """The shards of a deployment and its aggregator.

    Every method raises `PoolError` if a process died for good, was unreachable or took longer than `runtime.timeout_seconds`;
    otherwise the error that the shard itself raised.
    """

    def warm(self) -> None:
        """Start every shard and the aggregator, so that the first request does not wait for processes."""
        ...

    def train(self, orders: Mapping[ShardId, ShardOrder], on_done: OnDone) -> dict[ShardId, Trained]:
        """Let shards carry out their orders, as many at a time as there are slots. Calls `on_done` for each finished shard."""
        ...

    def begin(self, orders: Mapping[ShardId, ShardOrder]) -> None:
        """Start on the order that `train` will give next, without waiting. Only a single order is started.

        Called at most once before `train` or `abandon`.
        """
        ...

    def abandon(self) -> None:
        """Wait for an order from `begin` that `train` did not ask for: no shard may write while leftover files are listed."""
        ...

    def prepare_excision(self, order: AggregationOrder) -> None:
        """Let the aggregator read a generation ahead of time, without waiting."""
        ...

    def aggregate(self, order: AggregationOrder) -> Aggregated: ...

    def excise(self, order: AggregationOrder) -> KeyedEmbeddings: ...

    def device_for(self, config: EraserConfig) -> Device:
        """The device that `runtime.device` resolves to on the machines of this pool."""
        ...

    def described(self) -> dict[str, str]:
        """The device that the processes compute on; see `devices.described`.

        Raises:
            DeviceError: they need a GPU, and have none.
        """
        ...

    def forget(self, order: AggregationOrder) -> None:
        """Drop from the memory of every process all data that does not belong to a generation."""
        ...

    def tidy(self) -> None:
        """End the processes that this deployment started under earlier settings."""
        ...

    def close(self) -> None:
        """End the processes, if this pool owns them."""
        ...


def own_device(runtime: RuntimeConfig) -> Device:
    """The device that `runtime.device` resolves to in this process. `auto` is the GPU if one is requested and available."""
    if runtime.device != "auto":
        return runtime.device
    if not runtime.gpus_per_shard:
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


class LocalShardPool:
    """All shards in this process, one after the other: for tests, notebooks and machines without Ray."""

    def __init__(self, store_uri: str, config: EraserConfig) -> None:
        self._shards = {ShardId(k): Shard(ShardId(k), store_uri, config) for k in range(config.partition.n_shards)}
        self._aggregator = Aggregator(store_uri, config)

    def warm(self) -> None:
        self._aggregator.ready()

    def train(self, orders: Mapping[ShardId, ShardOrder], on_done: OnDone) -> dict[ShardId, Trained]:
        done = {}
        for shard, order in orders.items():
            done[shard] = self._shards[shard].train(order)
            on_done(done[shard])
        return done

    def begin(self, orders: Mapping[ShardId, ShardOrder]) -> None:  # noqa: ARG002 - one process cannot train alongside an excision
        return

    def abandon(self) -> None:
        return

    def prepare_excision(self, order: AggregationOrder) -> None:
        self._aggregator.warm(order)

    def aggregate(self, order: AggregationOrder) -> Aggregated:
        return self._aggregator.aggregate(order)

    def excise(self, order: AggregationOrder) -> KeyedEmbeddings:
        return self._aggregator.excise(order)

    def run(self, calls: Sequence[Callable[[], _T]]) -> list[_T]:
        return [call() for call in calls]

    def device_for(self, config: EraserConfig) -> Device:
        return own_device(config.runtime)

    def described(self) -> dict[str, str]:
        return self._aggregator.described()

    def forget(self, order: AggregationOrder) -> None:
        self._aggregator.forget(order)
        for record in order.shards:
            if record.shard in self._shards:
                self._shards[record.shard].forget(record.interactions)

    def tidy(self) -> None:
        return

    def close(self) -> None:
        return
