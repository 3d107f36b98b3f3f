"""The receipts of many requests: a file for each from its acceptance on, whichever run finds the receipt."""

from __future__ import annotations

import re
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

    def unlearn(self, *, user_id=None, item_id=None, pairs=None, idempotency_key=None, priority=0):
        return Ticket(self, self._coordinator.submit(UnlearningRequest(user_id, item_id, pairs), idempotency_key, priority))

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


def test_pairs_that_are_not_stored_are_counted_for_people_too(coordinator: Coordinator, tiny, capsys) -> None:
    known = tiny.items.raw(tiny.train.of_users([0]).items)
    user = tiny.users.raw([0])[0]
    request = UnlearningRequest(pairs=((user, known[0]), (user, "never seen"), (user, "nor this")))
    with pytest.raises(typer.Exit):  # none is finished
        unlearn_many(RequestsRead((Submission(request, row=2),), (), 3), ORDERS, None, partial=False, as_json=False)
    assert re.search(r"pairs absent\W+2\W", capsys.readouterr().out)


def test_a_repeated_submission_that_waits_shows_no_unknown_count(coordinator: Coordinator, tiny, capsys) -> None:
    user, item = tiny.users.raw([0])[0], tiny.items.raw(tiny.train.of_users([0]).items)[0]
    request = UnlearningRequest(pairs=((user, item), (user, "never seen")))
    for count, shown in ((1, True), (None, False)):
        ticket = Ticket(Here(coordinator), coordinator.submit(request, "case"))
        waiting = {"request_id": ticket.request_id, "pairs_absent": ticket.pairs_absent}
        assert ticket.pairs_absent == count
        unlearn._report_waiting(waiting, ticket, "", kept=True, as_json=False)
        assert ("pairs absent" in capsys.readouterr().out) == shown


def test_a_folder_that_cannot_be_made_is_said_before_anything_is_accepted(coordinator: Coordinator, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be made a folder"):
        unlearn_many(asked(1003), ORDERS, tmp_path / "file" / "receipts", partial=False, as_json=True)
    assert sum(coordinator.describe().requests.values()) == 0


def test_a_submitted_job_keeps_the_salt_in_the_file_alone(coordinator: Coordinator, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", '{"metadata": {"job_submission_id": "raysubmit_1"}}')
    file = tmp_path / "receipt.json"
    unlearn._unlearn_one(UnlearningRequest(user_id=1003), None, ORDERS, file, as_json=True)
    salt = accepted_in(file).salt
    assert salt
    shown = capsys.readouterr()
    assert '"salt": null' in shown.out
    assert salt not in shown.out + shown.err

    unlearn._unlearn_one(UnlearningRequest(user_id=1004), None, ORDERS, None, as_json=True)
    assert "the salt is not shown; --receipt FILE keeps it" in " ".join(capsys.readouterr().err.split())
