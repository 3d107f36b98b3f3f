from __future__ import annotations

import csv
import io
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_eraser.ids import RequestId
from ray_eraser.testing.ledger_contract import receipt_of, receive
from ray_eraser.unlearning.ledger import Ledger
from ray_eraser.unlearning.receipt import START, chained
from ray_eraser.unlearning.record import RecordRow, to_csv


@pytest.fixture
def ledger():
    opened = Ledger("sqlite://")
    opened.begin_epoch(0.0)
    yield opened
    opened.close()


@pytest.fixture
def rows(ledger):
    """A finished request and one that is only received."""
    for name in ("a", "b"):
        receive(ledger, name)
    ledger.excised([RequestId("a")], 11.0)
    ledger.routed([RequestId("a")])
    ledger.finish([replace(receipt_of("a"), restored_at=12.5, purged_at=14.0)])
    return [RecordRow.of(row) for row in ledger.record(0.0, 99.0)]


def test_a_finished_request_is_told_with_its_receipt(ledger, rows):
    finished = replace(receipt_of("a"), restored_at=12.5, purged_at=14.0)
    (receipt,) = chained([finished], START, None, ledger.name)
    assert rows[0].to_dict() == {
        "request_id": "a",
        "kind": "user",
        "state": "erased",
        "received_at": "1970-01-01T00:00:10.000+00:00",
        "excised_at": "1970-01-01T00:00:11.000+00:00",
        "restored_at": "1970-01-01T00:00:12.500+00:00",
        "purged_at": "1970-01-01T00:00:14.000+00:00",
        "seconds_to_forget": 1.0,
        "seconds_to_restore": 2.5,
        "seconds_to_purge": 4.0,
        "guarantee": "exact",
        "chosen": [],
        "shards": [1],
        "pairs_erased": 3,
        "generation": 2,
        "number": 1,
        "digest": receipt.digest(),
        "key_id": None,
        "signature": None,
    }


def test_of_an_unfinished_request_is_told_what_is_known(rows):
    told = {name: value for name, value in rows[1].to_dict().items() if value is not None}
    assert told == {"request_id": "b", "kind": "user", "state": "received", "received_at": "1970-01-01T00:00:10.000+00:00"}


def test_a_table_has_a_header_and_a_line_a_request(rows):
    first, second = csv.DictReader(io.StringIO(to_csv(rows)))
    assert (first["request_id"], first["shards"], first["seconds_to_restore"], first["signature"]) == ("a", "1", "2.5", "")
    assert (second["request_id"], second["purged_at"]) == ("b", "")


def test_several_values_stand_in_one_field(rows):
    (line,) = csv.DictReader(io.StringIO(to_csv([replace(rows[0], shards=(0, 2, 7), chosen=("model.alpha0", "seed"))])))
    assert (line["shards"], line["chosen"]) == ("0 2 7", "model.alpha0 seed")


@given(st.sampled_from("=+-@\t\r"), st.text(max_size=8))
def test_no_field_is_a_formula(first, rest):
    row = RecordRow(first + rest, first + rest, "erased", "t", None, seconds_to_forget=-1.5)
    (line,) = csv.DictReader(io.StringIO(to_csv([row]), newline=""))
    assert not any(field.startswith(tuple("=+-@\t\r")) for field in line.values())
    assert line["request_id"] == f"'{first}{rest}"
    assert line["seconds_to_forget"] == "'-1.5"
