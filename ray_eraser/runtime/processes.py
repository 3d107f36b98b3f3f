"""A shard and an aggregator in a process of their own. What they add is a log that programs can read, and their priority.

Apart from actors.py, so that their processes do not load what the coordinator needs.
"""

from __future__ import annotations

import os

from ray_eraser import logs
from ray_eraser.aggregator import Aggregator
from ray_eraser.config import EraserConfig
from ray_eraser.ids import ShardId
from ray_eraser.shard import Shard

_LOWEST_PRIORITY = 19


class ShardProcess(Shard):
    """A `Shard` whose log is JSON, and that computes at the lowest priority: who asks to be forgotten does not wait for it."""

    def __init__(self, shard_id: ShardId, store_uri: str, config: EraserConfig) -> None:
        logs.write_json(process=f"shard-{shard_id}")
        if hasattr(os, "nice"):  # Windows has none
            os.nice(_LOWEST_PRIORITY)
        super().__init__(shard_id, store_uri, config)


class AggregatorProcess(Aggregator):
    """An `Aggregator` whose log is JSON."""

    def __init__(self, store_uri: str, config: EraserConfig) -> None:
        logs.write_json(process="aggregator")
        super().__init__(store_uri, config)
