"""A salt and a receipt survive in the asker's file, whatever comes between them, and no other file is lost to them."""

from __future__ import annotations

import json
import stat
from dataclasses import replace

import pytest

from ray_eraser.errors import InputError
from ray_eraser.ids import RequestId
from ray_eraser.testing.ledger_contract import receipt_of
from ray_eraser.unlearning.evidence import ReceiptFile
from ray_eraser.unlearning.receipt_files import Accepted, accepted_in, check_free, complete, make

ACCEPTED = Accepted(RequestId("a"), "0a" * 32, "shop")


@pytest.fixture
def receipt():
    return replace(receipt_of("a"), restored_at=12.5, purged_at=14.0, number=1)


def test_at_acceptance_the_file_has_the_salt_for_its_owner_alone(tmp_path):
    file = tmp_path / "a.json"
    check_free(file)
    make(file, ACCEPTED.to_json())
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert json.loads(file.read_text()) == {
        "state": "accepted", "request_id": "a", "salt": "0a" * 32, "deployment": "shop",
    }  # fmt: skip
    assert accepted_in(file) == ACCEPTED


def test_it_is_completed_with_the_salt_that_is_there(tmp_path, receipt):
    file = tmp_path / "a.json"
    make(file, ACCEPTED.to_json())
    complete(file, receipt)
    assert ReceiptFile.from_json(file.read_text()) == ReceiptFile.of(receipt, ACCEPTED.salt)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_without_a_file_the_receipt_makes_one(tmp_path, receipt):
    complete(tmp_path / "a.json", receipt, "0b")
    assert ReceiptFile.from_json((tmp_path / "a.json").read_text()).salt == "0b"


@pytest.mark.parametrize("text", ["", "mine", "[]", '{"state": "accepted", "color": 1}', '{"request_id": "a"}'])
def test_no_other_file_is_written_over(tmp_path, receipt, text):
    file = tmp_path / "a.json"
    file.write_text(text)
    for attempt in (lambda: check_free(file), lambda: make(file, "x"), lambda: complete(file, receipt)):
        with pytest.raises(InputError, match="never overwritten"):
            attempt()
    assert file.read_text() == text


def test_another_requests_file_is_not_completed(tmp_path, receipt):
    file = tmp_path / "a.json"
    make(file, replace(ACCEPTED, request_id=RequestId("b")).to_json())
    with pytest.raises(InputError, match="it holds request b"):
        complete(file, receipt)
    with pytest.raises(InputError, match=r"request b; to fetch it: ray-eraser receipt --receipt .*a.json"):
        check_free(file)


def test_a_link_that_leads_nowhere_counts_as_a_file(tmp_path):
    (tmp_path / "a.json").symlink_to(tmp_path / "none")
    with pytest.raises(InputError, match="never overwritten"):
        check_free(tmp_path / "a.json")


def test_a_folder_that_is_not_there_is_said_before_anything_is_asked(tmp_path):
    with pytest.raises(InputError, match=r"none/a\.json cannot be written \(No such file or directory\): choose"):
        check_free(tmp_path / "none" / "a.json")
    check_free(tmp_path / "a.json")
    assert list(tmp_path.iterdir()) == []
