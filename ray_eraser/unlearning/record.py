"""The record of requests that a deployment keeps for whoever supervises it: one row each, and no user or item in it."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from ray_eraser.unlearning.ledger import RequestRow

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True)
class RecordRow:
    """One request; what comes with the receipt is None until it is finished. Times are ISO 8601, UTC.

    Of the receipt's digests of files there is none, not even as the asker's salt keys them: nobody who reads a record has the
    salts. `digest` is the receipt's own, by which a receipt that an asker shows is known to be the one of the record.
    """

    request_id: str
    kind: str
    state: str
    received_at: str
    excised_at: str | None
    restored_at: str | None = None
    purged_at: str | None = None
    seconds_to_forget: float | None = None
    seconds_to_restore: float | None = None
    seconds_to_purge: float | None = None
    guarantee: str | None = None
    shards: tuple[int, ...] | None = None
    pairs_erased: int | None = None
    generation: int | None = None
    number: int | None = None
    digest: str | None = None
    key_id: str | None = None
    signature: str | None = None

    @classmethod
    def of(cls, row: RequestRow) -> RecordRow:
        receipt = row.receipt
        excised_at = None if row.excised_at is None else _iso(row.excised_at)
        begun = cls(row.request_id, row.kind, str(row.state), _iso(row.received_at), excised_at)
        if receipt is None or not receipt.number:  # what is not finished has no place in the chain
            return begun
        return cls(
            begun.request_id,
            begun.kind,
            begun.state,
            begun.received_at,
            begun.excised_at,
            restored_at=_iso(receipt.restored_at),
            purged_at=_iso(receipt.purged_at),
            **{f"seconds_{name}": value for name, value in receipt.seconds.items()},
            guarantee=receipt.guarantee,
            shards=receipt.shards_touched,
            pairs_erased=receipt.pairs_erased,
            generation=receipt.generation,
            number=receipt.number,
            digest=receipt.digest(),
            key_id=receipt.key_id,
            signature=receipt.signature,
        )

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return asdict(self) | {"shards": None if self.shards is None else list(self.shards)}


def to_csv(rows: Iterable[RecordRow]) -> str:
    """One line a request under a header; shards with blanks between them, nothing where a value is None.

    A spreadsheet takes what begins like a formula for one: an apostrophe before it makes it text.
    """
    stream = io.StringIO()
    writer = csv.writer(stream)
    writer.writerow(RecordRow.__dataclass_fields__)
    for row in rows:
        writer.writerow(_cell(value) for value in row.to_dict().values())
    return stream.getvalue()


def _cell(value: Any) -> str:
    text = "" if value is None else " ".join(map(str, value)) if isinstance(value, list) else str(value)
    return f"'{text}" if text.startswith(_FORMULA) else text


def _iso(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds")
