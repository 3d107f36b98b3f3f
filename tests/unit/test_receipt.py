from __future__ import annotations

import hashlib
import hmac
import json

import pytest
from contracts.ledger_contract import receipt_of

from ray_eraser.unlearning.receipt import Receipt, commitment
from ray_eraser.unlearning.request import UnlearningRequest

ANN = UnlearningRequest(user_id="ann")
SALT, OTHER = "00" * 31 + "01", "00" * 31 + "02"


def test_with_the_salt_anyone_can_check_what_a_receipt_is_about():
    expected = hmac.new(bytes.fromhex(SALT), b'{"user": "ann"}', hashlib.sha256).hexdigest()
    assert commitment(ANN, SALT) == expected


def test_without_the_salt_nothing_verifies():
    assert commitment(ANN, OTHER) != commitment(ANN, SALT)
    assert commitment(ANN, SALT) != hashlib.sha256(ANN.to_json().encode()).hexdigest()


@pytest.mark.parametrize(
    "other",
    [
        UnlearningRequest(user_id="anne"),
        UnlearningRequest(item_id="ann"),
        UnlearningRequest(pairs=(("ann", "ann"),)),
    ],
)
def test_with_the_salt_nothing_but_the_request_verifies(other):
    assert commitment(other, SALT) != commitment(ANN, SALT)


def test_a_receipt_survives_json():
    receipt = receipt_of("r", erased_at=12.25)
    assert Receipt.from_dict(json.loads(json.dumps(receipt.to_dict()))) == receipt


def test_a_receipt_in_plain_values_is_json_as_it_stands():
    fields = receipt_of("r").to_dict()
    assert json.loads(json.dumps(fields)) == fields
    assert fields["changes"] == [
        {"shard": 1, "interactions_before": "a", "interactions_after": "b", "submodel_before": "c", "submodel_after": "d"}
    ]


def test_forgetting_and_restoring_are_two_figures():
    assert receipt_of("r", erased_at=12.25).seconds == {"to_forget": 1.0, "to_restore": 2.25}
