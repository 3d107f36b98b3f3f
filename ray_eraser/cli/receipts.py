"""Reads and shows receipts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_eraser.cli.output import durations, print_facts
from ray_eraser.errors import DataFileError, InputError

if TYPE_CHECKING:
    from ray_eraser.unlearning.evidence import ReceiptFile
    from ray_eraser.unlearning.receipt import Receipt
    from ray_eraser.unlearning.request import RequestState

STANDS: Mapping[str, str] = {
    "received": "was accepted",
    "excised": "waits, and its data is not served",
    "routed": "is being carried out",
    "set_aside": "is set aside, because its training failed again and again",
    "erased": "is finished",
    "done": "is finished",
}
"""By its state, what a request does, in words for people."""


def read_receipt(file: Path) -> ReceiptFile:
    """A receipt as `ray-eraser unlearn --receipt` writes it.

    Raises:
        DataFileError: the file cannot be read, is no receipt, or its request was not carried out yet.
    """
    from ray_eraser.unlearning.evidence import ReceiptFile
    from ray_eraser.unlearning.receipt_files import Accepted

    try:
        text = file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        way_out = "give a file that ray-eraser unlearn --receipt wrote"
        raise DataFileError(str(file), f"cannot be read ({error}): {way_out}", names_nobody=True) from error
    if (accepted := Accepted.from_json(text)) is not None:
        way_out = f"fetch it with ray-eraser receipt --receipt {file}"
        problem = f"has no receipt yet, request {accepted.request_id} was accepted: {way_out}"
        raise DataFileError(str(file), problem, names_nobody=True)
    try:
        return ReceiptFile.from_json(text)
    except InputError as error:
        raise DataFileError(str(file), str(error)) from error


def receipt_fields(receipt: Receipt, state: RequestState) -> dict[str, Any]:
    """The fields of a receipt that commands show. They include no salt, and name nobody."""
    return {
        "request_id": receipt.request_id,
        "state": str(state),
        "guarantee": receipt.guarantee,
        "chosen": list(receipt.chosen),
        "shards_touched": list(receipt.shards_touched),
        "pairs_erased": receipt.pairs_erased,
        "seconds": receipt.seconds,
        "generation": receipt.generation,
        "purged": list(receipt.purged),
        "commitment": receipt.commitment,
        "number": receipt.number,
        "digest": receipt.digest(),
        "key_id": receipt.key_id,
        "signature": receipt.signature,
    }


def print_receipt(fields: Mapping[str, Any]) -> None:
    """Show a receipt's fields to people, the erasure first and what proves it after it."""
    told = {"took": durations(fields["seconds"]), "files deleted": len(fields["purged"])}
    if fields.get("pairs_absent") is None:  # a repeated submission: the first answer gave the count
        fields = {name: value for name, value in fields.items() if name != "pairs_absent"}
    first = ("request_id", "state", "pairs_erased", "pairs_absent", "shards_touched", "generation", "guarantee", "chosen")
    hidden = (*first, "seconds", "purged", "here_again")
    print_facts(
        "receipt",
        {name: fields[name] for name in first if name in fields}
        | told
        | {name: value for name, value in fields.items() if name not in hidden},
    )
