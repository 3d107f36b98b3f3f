from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import replace

import pytest

from ray_eraser.ids import Generation, ShardId
from ray_eraser.store import FileRef, ShardRecord
from ray_eraser.testing.ledger_contract import receipt_of
from ray_eraser.unlearning.receipt import (
    START,
    Head,
    Receipt,
    Rotation,
    ShardChange,
    Standing,
    chained,
    commitment,
    head_of,
    rotation,
    sealed,
    sealed_path,
)
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


@pytest.mark.parametrize("chosen", [(), ("model.alpha0",)])
def test_a_receipt_survives_json(chosen):
    receipt = replace(receipt_of("r", finished_at=12.25), chosen=chosen)
    assert Receipt.from_dict(json.loads(json.dumps(receipt.to_dict()))) == receipt


def test_a_receipt_in_plain_values_is_json_as_it_stands():
    fields = receipt_of("r").to_dict()
    assert json.loads(json.dumps(fields)) == fields
    assert fields["changes"] == [
        {
            "shard": 1,
            "interactions_before": "a",
            "interactions_after": "b",
            "submodel_before": "c",
            "submodel_after": "d",
            "checkpoints_before": [],
            "checkpoints_after": [],
        }
    ]


def test_forgetting_restoring_and_purging_are_three_figures():
    receipt = replace(receipt_of("r"), restored_at=12.25, purged_at=14.0)
    assert receipt.seconds == {"to_forget": 1.0, "to_restore": 2.25, "to_purge": 4.0}


# ---- seal


def record(letter: str) -> ShardRecord:
    files = [FileRef(f"shards/1/{kind}-{letter * 64}.x", letter * 64) for kind in ("interactions", "submodel")]
    return ShardRecord(ShardId(1), *files, 5, 0, (FileRef(f"shards/1/checkpoint-{letter * 64}.safetensors", letter * 64),))


def test_all_digests_of_files_are_keyed():
    plain = replace(receipt_of("r"), changes=(ShardChange.between(record("a"), record("b")),), generation_digest="ab" * 32)
    receipt = plain.under_seal(SALT)
    (change,) = receipt.changes
    before, after = (hmac.new(bytes.fromhex(SALT), letter * 64, hashlib.sha256).hexdigest() for letter in (b"a", b"b"))
    assert change == ShardChange(ShardId(1), before, after, before, after, (before,), (after,))
    assert receipt.generation_digest == sealed("ab" * 32, SALT)
    assert receipt.aggregate_before == sealed(plain.aggregate_before, SALT)
    assert receipt.aggregate_after == sealed(plain.aggregate_after, SALT)
    assert sealed("a" * 64, OTHER) != before


def test_a_sealed_receipt_has_no_digest_of_a_file_in_it():
    purged = (f"shards/1/interactions-{'ab' * 32}.safetensors",)
    plain = replace(receipt_of("r"), changes=(ShardChange.between(record("a"), record("b")),), purged=purged)
    told = json.dumps(plain.under_seal(SALT).to_dict())
    assert not any(digest in told for digest in ("a" * 64, "b" * 64, "ab" * 32, plain.generation_digest))


def test_a_shard_that_a_new_partition_does_not_have_leaves_nothing_after():
    change = ShardChange.between(record("a"), None)
    assert (change.interactions_after, change.submodel_after, change.checkpoints_after) == ("", "", ())
    assert (change.under_seal(SALT).interactions_after, change.under_seal(SALT).checkpoints_after) == ("", ())


def test_a_purged_file_keeps_its_folder_and_kind_and_loses_the_digest_in_its_name():
    path = f"shards/1/interactions-{'ab' * 32}.safetensors"
    assert sealed_path(path, SALT) == f"shards/1/interactions-{sealed('ab' * 32, SALT)}.safetensors"
    assert sealed_path(f"generations/{'ab' * 32}.json", SALT) == f"generations/{sealed('ab' * 32, SALT)}.json"
    assert replace(receipt_of("r"), purged=(path,)).under_seal(SALT).purged == (sealed_path(path, SALT),)


# ---- chain


class Initials:
    """A signer whose signatures can be read."""

    def __init__(self, raw: str = "aa" * 32) -> None:
        self.raw, self.key_id = raw, hashlib.sha256(bytes.fromhex(raw)).hexdigest()[:16]

    def sign(self, digest: str) -> str:
        return f"signed {digest} by {self.raw[:2]}"


OLD, NEW = Initials(), Initials("bb" * 32)


def digest_of(fields: dict[str, object]) -> str:
    unsigned = {name: value for name, value in fields.items() if name != "signature"}
    text = json.dumps(unsigned, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def test_receipts_are_numbered_from_one_and_linked():
    first, second = chained([receipt_of("a"), receipt_of("b")], START)
    assert (first.number, first.previous) == (1, "0" * 64)
    assert (second.number, second.previous) == (2, first.digest())
    assert (first.key_id, first.signature) == (None, None)


def test_a_chain_goes_on_from_its_head():
    receipts = [receipt_of(name) for name in "abc"]
    first, *rest = chained(receipts, START)
    assert chained(receipts[1:], Head(1, first.digest())) == rest


def test_a_signature_is_of_the_digest_of_everything_else():
    (receipt,) = chained([receipt_of("a")], START, OLD)
    assert receipt.key_id == OLD.key_id
    assert receipt.signature == f"signed {digest_of(receipt.to_dict())} by aa"


def test_receipts_name_their_deployment_under_their_signature():
    (receipt,) = chained([receipt_of("a")], START, OLD, "shop")
    assert receipt.deployment == "shop"
    assert replace(receipt, deployment="other").digest() != receipt.digest()


# ---- another key


def test_a_key_hands_over_to_the_next_in_a_link_of_the_chain():
    receipts = chained([receipt_of("a"), receipt_of("b")], START, OLD, "shop")
    change = rotation(OLD, NEW, head_of(receipts), "shop", 50.0)
    assert (change.number, change.previous) == (3, receipts[1].digest())
    assert (change.public_key, change.key_id, change.deployment, change.at) == ("bb" * 32, OLD.key_id, "shop", 50.0)
    assert change.signature == f"signed {digest_of(change.to_dict())} by aa"
    (after,) = chained([receipt_of("c")], head_of([*receipts, change]), NEW, "shop")
    assert (after.number, after.previous, after.key_id) == (4, change.digest(), NEW.key_id)


def test_every_link_says_which_key_signs_the_next_one():
    (receipt,) = chained([receipt_of("a")], START, OLD)
    assert receipt.next_key == OLD.key_id
    assert rotation(OLD, NEW, START, "shop", 0.0).next_key == NEW.key_id
    assert receipt_of("a").next_key is None


def test_a_change_of_keys_survives_json_however_round_numbers_are_written():
    change = rotation(OLD, NEW, START, "shop", 12.0)
    assert Rotation.from_dict(json.loads(json.dumps(change.to_dict()))) == change
    assert Rotation.from_dict(change.to_dict() | {"at": 12}).digest() == change.digest()


# ---- what is current


@pytest.mark.parametrize("signer", [None, OLD])
def test_where_a_deployment_stands_is_said_in_one_statement(signer):
    standing = Standing.of("shop", Generation(3), "d1" * 32, Head(7, "ab" * 32), signer)
    assert Standing.from_json(standing.to_json()) == standing
    assert (standing.generation, standing.manifest, standing.number, standing.head) == (3, "d1" * 32, 7, "ab" * 32)
    signature = None if signer is None else f"signed {digest_of(json.loads(standing.to_json()))} by aa"
    assert standing.signature == signature


def test_the_digest_covers_the_settings_that_were_chosen():
    assert replace(receipt_of("a"), chosen=("model.alpha0",)).digest() != receipt_of("a").digest()


def test_a_digest_does_not_depend_on_how_a_file_writes_round_numbers():
    receipt = receipt_of("a", finished_at=12.0)
    assert json.loads('{"purged_at": 12}')["purged_at"] == receipt.purged_at
    assert Receipt.from_dict(receipt.to_dict() | {"purged_at": 12}).digest() == receipt.digest()
