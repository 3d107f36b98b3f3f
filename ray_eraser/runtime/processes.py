"""Shards and an aggregator in processes of their own, with a JSON log and a process priority.

Separate from actors.py, so that these processes do not load the coordinator's modules.
"""

from __future__ import annotations

import os
from functools import partial

from ray_eraser import logs
from ray_eraser.aggregator import Aggregator
from ray_eraser.config import EraserConfig
from ray_eraser.ids import ShardId
from ray_eraser.shard import Shard, ShardOrder, Trained

_LOWEST_PRIORITY = 19


class ShardProcess(Shard):
    """A `Shard` with a JSON log. It computes at the lowest priority, so that an excision does not wait for it."""

    def __init__(self, shard_id: ShardId, store_uri: str, config: EraserConfig) -> None:
        _begin(f"shard-{shard_id}")
        super().__init__(shard_id, store_uri, config)


class SlotProcess:
    """Trains any shard, one after the other, like a `ShardProcess`. A shard's data is in the store."""

    def __init__(self, store_uri: str, config: EraserConfig) -> None:
        _begin("slot")
        self._make = partial(Shard, store_uri=store_uri, config=config, stays=False)
        self._shards: dict[ShardId, Shard] = {}

    def identity(self) -> tuple[str, str]:
        return self._make(ShardId(0)).identity()

    def ready(self) -> None:
        self._make(ShardId(0)).ready()

    def train(self, shard: ShardId, order: ShardOrder) -> Trained:
        return self._shards.setdefault(shard, self._make(shard)).train(order)


class AggregatorProcess(Aggregator):
    """An `Aggregator` with a JSON log."""

    def __init__(self, store_uri: str, config: EraserConfig) -> None:
        logs.write_json(process="aggregator")
        super().__init__(store_uri, config)


def _begin(process: str) -> None:
    logs.write_json(process=process)
    if hasattr(os, "nice"):  # Windows has none
        os.nice(_LOWEST_PRIORITY)
