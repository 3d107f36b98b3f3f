"""What the asker gets: evidence of an erasure without a trace of what was erased."""

from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import asdict, dataclass
from typing import Any

from ray_eraser.ids import Generation, RequestId, ShardId
from ray_eraser.unlearning.request import UnlearningRequest


@dataclass(frozen=True)
class ShardChange:
    """One touched shard: the digests of its two files before and after."""

    shard: ShardId
    interactions_before: str
    interactions_after: str
    submodel_before: str
    submodel_after: str


@dataclass(frozen=True)
class Receipt:
    """One finished request.

    Attributes:
        request_id: the request's name.
        kind: `user`, `item` or `pairs`.
        guarantee: `exact` or `exact-given-partition`.
        commitment: HMAC-SHA256 of the request under a salt that only the asker has: with the salt the asker can show what the
            receipt is about, without it nobody can guess.
        pairs_erased: interactions removed, held-out ones included.
        shards_touched: the shards that owned any.
        changes: their digests before and after.
        generation: number of the generation that is free of the data.
        generation_digest: digest of its manifest.
        aggregate_before, aggregate_after: digests of the served model.
        purged: the superseded files that were deleted, for the whole batch that the request was done in.
        received_at, excised_at, erased_at: seconds since 1970, UTC.
    """

    request_id: RequestId
    kind: str
    guarantee: str
    commitment: str
    pairs_erased: int
    shards_touched: tuple[ShardId, ...]
    changes: tuple[ShardChange, ...]
    generation: Generation
    generation_digest: str
    aggregate_before: str
    aggregate_after: str
    purged: tuple[str, ...]
    received_at: float
    excised_at: float
    erased_at: float

    @property
    def seconds(self) -> dict[str, float]:
        """`to_forget`: from receiving to excision; `to_restore`: from receiving to this receipt."""
        return {
            "to_forget": round(self.excised_at - self.received_at, 4),
            "to_restore": round(self.erased_at - self.received_at, 4),
        }

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        fields: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return fields

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Receipt:
        changes = tuple(ShardChange(**change) for change in fields["changes"])
        lists = {"shards_touched": tuple(fields["shards_touched"]), "purged": tuple(fields["purged"]), "changes": changes}
        return cls(**(fields | lists))


def commitment(request: UnlearningRequest, salt: str) -> str:
    """Binds a receipt to what was asked: HMAC-SHA256 of the request's JSON, keyed with the salt; hexadecimal."""
    return hmac.new(bytes.fromhex(salt), request.to_json().encode(), hashlib.sha256).hexdigest()
