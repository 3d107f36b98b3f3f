"""The receipts of many requests: a file for each from its acceptance on, whichever run finds the receipt."""

from __future__ import annotations

import stat
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
import typer

from ray_eraser.cli import unlearn
from ray_eraser.cli.unlearning_many import unlearn_many
from ray_eraser.coordinator import Coordinator
from ray_eraser.errors import InputError
from ray_eraser.pool import LocalShardPool
from ray_eraser.runtime.client import Client, Ticket
from ray_eraser.unlearning.evidence import ReceiptFile
from ray_eraser.unlearning.receipt_files import accepted_in
from ray_eraser.unlearning.request import Refusal, Submission, UnlearningRequest
from ray_eraser.unlearning.request_files import RequestsRead


class Here(Client):
    """A client of a coordinator in this process."""

    def __init__(self, coordinator: Coordinator) -> None:
        super().__init__("shop", None)
        self._coordinator = coordinator

    def unlearn_many(self, submissions, *, partial=False):
        answers = self._coordinator.submit_many(submissions, partial=partial)
        return [answer if isinstance(answer, Refusal) else Ticket(self, answer) for answer in answers]

    def status(self, request_id):
        return self._coordinator.status(request_id)

    def receipt(self, request_id):
        return self._coordinator.receipt(request_id)

    def describe(self):
        return self._coordinator.describe()

    def progress(self):
        return self._coordinator.progress()


ORDERS = unlearn.Orders("shop", None, "", None, take_over=False, now=False, wait_seconds=60.0)


@pytest.fixture
def coordinator(tiny, tiny_config, tmp_path, monkeypatch):
    unlearning = tiny_config.unlearning.model_copy(update={"plan": "deadline=20d"})
    path = str(tmp_path / "kept")
    made = Coordinator("shop", path, partial(LocalShardPool, path), tiny_config.model_copy(update={"unlearning": unlearning}))
    made.fit(tiny)
    monkeypatch.setattr(unlearn, "deployed", lambda *_, **__: nullcontext(Here(made)))
    yield made
    made.close()


def asked(*users: int) -> RequestsRead:
    submissions = [Submission(UnlearningRequest(user_id=user), f"key {user}", row=row) for row, user in enumerate(users, 2)]
    return RequestsRead(tuple(submissions), (), len(submissions))


def test_a_later_run_puts_the_receipts_beside_the_salts_of_the_first(coordinator: Coordinator, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "receipts"
    with pytest.raises(typer.Exit) as ended:  # none is finished
        unlearn_many(asked(1003, 1004), ORDERS, folder, partial=False, as_json=True)
    assert ended.value.exit_code == 1
    files = sorted(folder.iterdir())
    begun = [accepted_in(file) for file in files]
    assert [file.name.split("-")[0] for file in files] == ["row2", "row3"]
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in files)
    assert len({accepted.salt for accepted in begun}) == 2

    coordinator.process_pending()
    unlearn_many(asked(1003, 1004), ORDERS, folder, partial=False, as_json=True)
    assert sorted(folder.iterdir()) == files
    kept = [ReceiptFile.from_json(file.read_text()) for file in files]
    assert [one.salt for one in kept] == [accepted.salt for accepted in begun]
    assert [one.receipt.request_id for one in kept] == [accepted.request_id for accepted in begun]

    texts = [file.read_text() for file in files]
    unlearn_many(asked(1003, 1004), ORDERS, folder, partial=False, as_json=True)
    assert [file.read_text() for file in files] == texts


def test_a_folder_that_cannot_be_made_is_said_before_anything_is_accepted(coordinator: Coordinator, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be made a folder"):
        unlearn_many(asked(1003), ORDERS, tmp_path / "file" / "receipts", partial=False, as_json=True)
    assert sum(coordinator.describe().requests.values()) == 0
