"""Routes requests to shards: finds the interactions that each shard must remove."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ray_eraser.data.keyed import KeyedPairs, ShardData
from ray_eraser.ids import ShardId
from ray_eraser.unlearning.request import Target


def owned_by_shard(target: Target, shards: Mapping[ShardId, ShardData]) -> dict[ShardId, KeyedPairs]:
    """The interactions that a request covers, by owning shard. Shards that own none are left out."""
    owned = {shard: target.of(data) for shard, data in shards.items()}
    return {shard: pairs for shard, pairs in owned.items() if len(pairs)}


def together(erasures: Iterable[Mapping[ShardId, KeyedPairs]]) -> dict[ShardId, KeyedPairs]:
    """Merge several requests, so that every shard is trained once for all of them. No pair may be in two requests."""
    parts: dict[ShardId, list[KeyedPairs]] = {}
    for erasure in erasures:
        for shard, pairs in erasure.items():
            parts.setdefault(shard, []).append(pairs)
    return {shard: KeyedPairs.union(parts[shard]) for shard in sorted(parts)}
