"""From requests to what every shard must remove."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ray_eraser.data.interactions import Interactions
from ray_eraser.ids import ShardId
from ray_eraser.store import ShardData
from ray_eraser.unlearning.request import Target


def owned_by_shard(target: Target, shards: Mapping[ShardId, ShardData]) -> dict[ShardId, Interactions]:
    """The interactions that a request is about, by the shard that owns them; shards that own none are left out."""
    owned = {shard: Interactions.union([target.of(data.train), target.of(data.valid)]) for shard, data in shards.items()}
    return {shard: pairs for shard, pairs in owned.items() if len(pairs)}


def together(erasures: Iterable[Mapping[ShardId, Interactions]]) -> dict[ShardId, Interactions]:
    """Several requests as one: every shard is trained once for all of them."""
    parts: dict[ShardId, list[Interactions]] = {}
    for erasure in erasures:
        for shard, pairs in erasure.items():
            parts.setdefault(shard, []).append(pairs)
    return {shard: Interactions.union(parts[shard]) for shard in sorted(parts)}
