"""Jobs that only read: they start no Ray, take nothing over, and show nothing of what an accepted request forgot."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from commands import environment, refusal, run

from ray_eraser.config import EraserConfig
from ray_eraser.coordinator import Coordinator
from ray_eraser.data.dataset import Dataset
from ray_eraser.pool import LocalShardPool
from ray_eraser.unlearning.evidence import ReceiptFile
from ray_eraser.unlearning.receipt_files import Accepted, make
from ray_eraser.unlearning.request import UnlearningRequest

ERASED, WAITING, LEFT = 1003, 1004, 1005
HERE = ("--storage-path", "kept", "--ray-address", "local")


class Shop:
    """A deployment that this process runs: it has forgotten one user, and is asked to forget another."""

    def __init__(self, folder: Path, dataset: Dataset, config: EraserConfig) -> None:
        self.folder = folder
        path = str(folder / "kept")
        self.coordinator = Coordinator("kept", path, partial(LocalShardPool, path), config)
        self.coordinator.fit(dataset)
        self.done = self.coordinator.submit(UnlearningRequest(user_id=ERASED))
        self.coordinator.process_pending()
        self.waiting = self.coordinator.submit(UnlearningRequest(user_id=WAITING))


@pytest.fixture(scope="module")
def shop(tiny: Dataset, tiny_config: EraserConfig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    opened = Shop(tmp_path_factory.mktemp("shop"), tiny, tiny_config)
    yield opened
    opened.coordinator.close()


def ask(job: str, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a job in a process that cannot import Ray."""
    (folder / "without" / "ray").mkdir(parents=True, exist_ok=True)
    (folder / "without" / "ray" / "__init__.py").write_text("raise SystemExit('Ray was imported')")
    return run(job, *arguments, folder=folder, env=environment(PYTHONPATH=str(folder / "without")))


def told(job: str, *arguments: str, folder: Path) -> dict[str, Any]:
    done = ask(job, *arguments, "--json", folder=folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_recommendations_are_those_of_the_coordinator_that_runs_and_goes_on(shop: Shop) -> None:
    answer = told("recommend", *HERE, "--user-id", str(LEFT), "--n", "5", folder=shop.folder)
    assert answer["items"] == shop.coordinator.recommend(LEFT, 5)
    shop.coordinator.keep_in_force()
    assert shop.coordinator.recommend(LEFT, 5) == answer["items"]


def test_several_users_are_answered_with_scores_and_titles_and_the_others_named(shop: Shop) -> None:
    expected = shop.coordinator.recommend_scored(LEFT, 3)
    (shop.folder / "titles.csv").write_text(f"{expected[0].item_id},The best\n")
    asked = ("--user-id", str(LEFT), "--user-id", str(ERASED), "--user-id", str(WAITING), "--n", "3", "--titles", "titles.csv")
    done = ask("recommend", *HERE, *asked, "--json", folder=shop.folder)
    known, *others = json.loads(done.stdout)["users"]
    assert (known["items"], known["scores"]) == ([item for item, _ in expected], [score for _, score in expected])
    assert known["titles"] == ["The best", None, None]
    assert [(other["user_id"], other["items"]) for other in others] == [(str(ERASED), None), (str(WAITING), None)]
    assert (done.returncode, done.stderr.splitlines()[-1]) == (
        2, f"error: no user '{WAITING}' here: it was never learned from, or it has been erased",
    )  # fmt: skip
    shown = ask("recommend", *HERE, *asked, folder=shop.folder).stdout
    assert f"for user {LEFT}" in shown
    assert "The best" in shown
    assert str(ERASED) not in shown


def test_items_like_another_are_those_of_the_coordinator(shop: Shop) -> None:
    item = shop.coordinator.recommend(LEFT, 1)[0]
    expected = shop.coordinator.similar_items(item, 4)
    assert told("recommend", *HERE, "--like", str(item), "--n", "4", folder=shop.folder) == {
        "like": str(item), "items": [one for one, _ in expected], "scores": [score for _, score in expected],
    }  # fmt: skip


@pytest.mark.parametrize("user", [ERASED, WAITING, 77])
def test_who_is_forgotten_or_waits_to_be_is_unknown(shop: Shop, user: int) -> None:
    done = ask("recommend", *HERE, "--user-id", str(user), folder=shop.folder)
    assert refusal(done) == f"error: no user '{user}' here: it was never learned from, or it has been erased"


def test_vectors_are_those_of_the_excision(shop: Shop) -> None:
    exported = told("vectors", *HERE, "--out", "vectors", folder=shop.folder)
    served = shop.coordinator.vectors()
    assert (exported["serving"], exported["n_users"]) == ("excision", len(served.user_ids))


def test_an_evaluation_leaves_out_what_waits_and_says_so(shop: Shop) -> None:
    done = ask("evaluate", "--storage-path", "kept", "--split", "valid", "--json", folder=shop.folder)
    assert done.returncode == 0, done.stderr
    assert "notice: requests wait to be carried out" in done.stderr
    held = sum(len(set(data.valid.users.tolist())) for data in shop.coordinator.shard_data().values())
    assert 0 < json.loads(done.stdout)["n_users"] <= held


def test_the_status_says_who_runs_the_deployment(shop: Shop) -> None:
    stored = told("status", *HERE, folder=shop.folder)
    assert (stored["running"], stored["requests"]["excised"], stored["alarms"]) == (False, 1, [])
    (holder,) = stored["held_by"]
    assert f"(process {os.getpid()})" in holder
    shown = ask("status", *HERE, folder=shop.folder).stdout
    assert "nothing: it does not run here" in shown
    assert f"(process {os.getpid()})" in shown


def test_a_request_that_is_not_left_out_after_a_minute_is_an_alarm(
    tiny: Dataset, tiny_config: EraserConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "kept")
    coordinator = Coordinator("kept", path, partial(LocalShardPool, path), tiny_config, clock=lambda: 1000.0)
    coordinator.fit(tiny)
    monkeypatch.setattr(coordinator._intake, "excise", lambda: None)  # it dies between the two
    coordinator.submit(UnlearningRequest(user_id=ERASED))
    coordinator.close()
    stored = told("status", *HERE, folder=tmp_path)
    assert stored["alarms"] == ["accepted more than 60 s ago, and not left out of what is served: 1 (start the deployment)"]
    assert "alarm 1" in ask("status", *HERE, folder=tmp_path).stdout
    # Nor is it shown meanwhile.
    assert ask("recommend", *HERE, "--user-id", str(ERASED), folder=tmp_path).returncode == 2


def test_the_record_is_read_from_the_ledger(shop: Shop) -> None:
    assert told("export", "--storage-path", "kept", "--out", "all.csv", folder=shop.folder)["requests"] == 2


def test_an_audit_trains_in_its_own_process(shop: Shop) -> None:
    audited = told("audit", *HERE, "--user-id", str(ERASED), folder=shop.folder)
    assert (audited["exact"], audited["found_erased_pairs"]) == (True, 0)


# ---- orders that are refused before Ray is started -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "arguments", "said"),
    [
        ("unlearn", ("--user-id", "77"), "no user '77' here: it was never learned from, or it has been erased"),
        ("unlearn", ("--user-id", f"{LEFT}.0"), f"no user '{LEFT}.0' here: did you mean '{LEFT}', which is here?"),
        ("unlearn", ("--item-id", "99999"), "no item '99999' here: it was never learned from, or it has been erased"),
        ("unlearn", ("--user-id", str(ERASED)), f"no user '{ERASED}' here: it was never learned from, or it has been erased"),
        ("unlearn", ("--requests", "two.csv"), "row 3: no user '77' here"),
        ("unlearn", ("--requests", "pairs.csv"), "refused: row 2: 1 pair is absent (never learned, held out for the test, or"),
        ("repartition", ("--set", "partition.colour=red"), "config partition.colour: unknown key"),
        ("repartition", ("--set", "partition.n_shards=0"), "config partition.n_shards"),
        ("learn", ("--data", "none.csv"), "none.csv: no such file or folder"),
        ("unlearn", ("--user-id", "1", "--storage-path", "none"), "nothing is deployed at"),
        ("process", ("--storage-path", "none"), "nothing is deployed at"),
        ("status", ("--retry", "1", "--storage-path", "none"), "nothing is deployed at"),
        ("serve", ("--keys", "api.keys", "--storage-path", "none"), "nothing is deployed at"),
    ],
)
def test_a_mistaken_order_is_refused_without_ray(shop: Shop, command: str, arguments: tuple[str, ...], said: str) -> None:
    (shop.folder / "two.csv").write_text(f"user_id,item_id\n{LEFT},\n77,\n")
    (shop.folder / "pairs.csv").write_text(f"user_id,item_id\n{LEFT},77\n")
    (shop.folder / "api.keys").write_text(f"read {'r' * 32}\n")
    (shop.folder / "api.keys").chmod(0o600)
    before = shop.coordinator.describe().requests
    assert said in refusal(ask(command, *HERE, *arguments, folder=shop.folder))
    assert shop.coordinator.describe().requests == before


# ---- receipts that come later ------------------------------------------------------------------------------------------------


def test_a_receipt_is_fetched_later_into_the_file_that_has_the_salt(shop: Shop, tmp_path: Path) -> None:
    file, other = tmp_path / "r.json", tmp_path / "other.json"
    make(file, Accepted(shop.done.request_id, shop.done.salt, "kept").to_json())
    early = ask("verify", *HERE[:2], "--receipt", str(file), folder=shop.folder)
    assert early.returncode == 2
    assert f"request {shop.done.request_id} was accepted: fetch it with ray-eraser receipt --receipt {file}" in early.stderr

    fetched = told("receipt", *HERE, "--receipt", str(file), folder=shop.folder)
    assert (fetched["request_id"], fetched["state"]) == (shop.done.request_id, "erased")
    assert ReceiptFile.from_json(file.read_text()).salt == shop.done.salt
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert told("verify", *HERE[:2], "--receipt", str(file), "--user-id", str(ERASED), folder=shop.folder)["holds"]

    again = ask("receipt", *HERE, "--request-id", shop.done.request_id, "--receipt", str(file), folder=shop.folder)
    assert refusal(again) == f"error: {file} exists and is never overwritten: choose another name"
    told("receipt", *HERE, "--request-id", shop.done.request_id, "--receipt", str(other), folder=shop.folder)
    assert ReceiptFile.from_json(other.read_text()).salt is None


def test_while_there_is_no_receipt_it_says_so_with_exit_code_one(shop: Shop, tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    make(file, Accepted(shop.waiting.request_id, shop.waiting.salt).to_json())
    before = file.read_text()
    done = ask("receipt", *HERE, "--receipt", str(file), "--json", folder=shop.folder)
    assert done.returncode == 1
    assert json.loads(done.stdout) == {"request_id": shop.waiting.request_id, "state": "excised"}
    assert "its receipt comes when the request has been carried out" in done.stderr
    assert file.read_text() == before


@pytest.mark.parametrize(
    ("job", "arguments", "said"),
    [
        ("receipt", (), "give --request-id ID, or --receipt FILE"),
        ("receipt", ("--request-id", "none"), "no unlearning request 'none'"),
        ("receipt", ("--request-id", "a", "--receipt", "none/r.json"), "none/r.json cannot be written (No such file"),
        ("unlearn", ("--user-id", str(LEFT), "--receipt", "there.json"), "there.json exists and is never overwritten"),
        ("unlearn", ("--user-id", str(LEFT), "--receipt", "none/r.json"), "none/r.json cannot be written (No such file"),
    ],
)
def test_a_place_or_a_request_that_cannot_be_used_is_said_before_anything_is_asked(
    shop: Shop, job: str, arguments: tuple[str, ...], said: str
) -> None:
    (shop.folder / "there.json").write_text("mine")
    before = shop.coordinator.describe().requests
    done = ask(job, *HERE, *arguments, folder=shop.folder)
    assert said in refusal(done)
    assert (shop.folder / "there.json").read_text() == "mine"
    assert shop.coordinator.describe().requests == before


@pytest.mark.parametrize("job", ["recommend", "vectors", "status"])
def test_where_nothing_is_stored_nothing_is_made(job: str, tmp_path: Path) -> None:
    more = {"recommend": ("--user-id", "1"), "vectors": ("--out", "vectors"), "status": ()}[job]
    done = run(job, "--storage-path", "kept", "--ray-address", "local", *more, folder=tmp_path)
    assert "nothing is deployed at" in refusal(done)
    assert list(tmp_path.iterdir()) == []
