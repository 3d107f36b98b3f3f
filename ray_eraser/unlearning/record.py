"""A deployment's record of requests for supervisory authorities: one row for each request, without users or items."""

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
    """One request. Fields from the receipt are None until the request is finished. Times are ISO 8601, UTC.

    The receipt's keyed file digests are left out, because readers of the record do not have the askers' salts. `digest` is the
    receipt's own digest. It shows whether an asker's receipt is the one in the record.

    Attributes:
        chosen: the settings that were chosen from the log; see docs/decisions/0007.
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
    chosen: tuple[str, ...] | None = None
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
        if receipt is None or not receipt.number:  # an unfinished receipt has no place in the chain
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
            chosen=receipt.chosen,
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
        lists = {name: getattr(self, name) for name in ("chosen", "shards")}
        return asdict(self) | {name: None if value is None else list(value) for name, value in lists.items()}


def to_csv(rows: Iterable[RecordRow]) -> str:
    """CSV with a header and one line for each request. Values of a list are separated by blanks; None is an empty field.

    A spreadsheet would run a field that begins like a formula, so such a field gets a leading apostrophe, which makes it text.
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
