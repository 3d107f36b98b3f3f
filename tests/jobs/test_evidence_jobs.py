"""What an engineer does with receipts: makes a key, verifies one receipt and the chain, hands over a period's record."""

from __future__ import annotations

import csv
import json
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import pytest
from commands import refusal, result, run

from ray_eraser.config import EraserConfig, UnlearningConfig, config_from
from ray_eraser.coordinator import Coordinator
from ray_eraser.data.dataset import Dataset
from ray_eraser.pool import LocalShardPool
from ray_eraser.unlearning.evidence import ReceiptFile
from ray_eraser.unlearning.request import UnlearningRequest
from ray_eraser.unlearning.signing import load_signing_key, make_key_pair

DAY = 86400.0
USER, OTHER = 1003, 1004


@pytest.fixture(scope="module")
def shop(tiny: Dataset, tiny_config: EraserConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a deployment that forgot two users, on 2 and on 3 January 1970, signing; its key and its receipts.

    Who works in it leaves it as it was.
    """
    folder = tmp_path_factory.mktemp("shop")
    private, _, _ = make_key_pair(folder / "key")
    make_key_pair(folder / "other")
    now = [DAY]
    path = str(folder / "kept")
    config = tiny_config.model_copy(update={"unlearning": UnlearningConfig(signing_key=str(private))})
    coordinator = Coordinator("kept", path, partial(LocalShardPool, path), config, clock=lambda: now[0])
    coordinator.fit(tiny)
    for user in (USER, OTHER):
        submitted = coordinator.submit(UnlearningRequest(user_id=user))
        (receipt,) = coordinator.process_pending()
        (folder / f"{user}.json").write_text(ReceiptFile.of(receipt, submitted.salt).to_json())
        now[0] += DAY
    coordinator.close()
    return folder


def test_a_new_key_pair_is_two_files_and_is_not_made_twice(tmp_path: Path) -> None:
    made = result("keys", "--out", "shop", folder=tmp_path)
    assert made["private_key"] == "shop.pem"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shop.pem", "shop.pub.pem"]
    assert load_signing_key(tmp_path / "shop.pem").key_id == made["key_id"]
    again = run("keys", "--out", "shop", folder=tmp_path)
    assert again.returncode == 2
    assert again.stderr == "error: shop.pub.pem exists and a key is never overwritten: choose another name\n"


def test_a_receipt_is_verified_with_everything_that_the_asker_has(shop: Path) -> None:
    asked = ("--storage-path", "kept", "--receipt", f"{OTHER}.json", "--user-id", str(OTHER), "--public-key", "key.pub.pem")
    found = result("verify", *asked, folder=shop)
    assert (found["holds"], found["number"], found["generation"]) == (True, 2, 3)
    assert {finding["outcome"] for finding in found["findings"]} == {"holds"}


def test_a_superseded_receipt_is_said_to_be_superseded_and_does_not_fail(shop: Path) -> None:
    done = run("verify", "--storage-path", "kept", "--receipt", f"{USER}.json", folder=shop)
    assert done.returncode == 0
    assert "unchecked" in done.stdout
    assert "superseded" in done.stdout


def test_a_receipt_without_its_salt_is_verified_as_far_as_that_goes(shop: Path, tmp_path: Path) -> None:
    fields = json.loads((shop / f"{OTHER}.json").read_text())
    (tmp_path / "receipt.json").write_text(json.dumps({name: value for name, value in fields.items() if name != "salt"}))
    found = result("verify", "--storage-path", str(shop / "kept"), "--receipt", "receipt.json", folder=tmp_path)
    assert found["holds"] is True
    opened = {finding["check"]: finding["detail"] for finding in found["findings"] if finding["outcome"] == "unchecked"}
    keyed = {name for name, detail in opened.items() if "give the salt" in detail}
    assert keyed == {"generation", "files after", "purged files are gone", "what it is about"}


@pytest.mark.parametrize("wrong", ["altered", "key", "user"])
def test_a_receipt_that_does_not_hold_is_exit_code_one(shop: Path, tmp_path: Path, wrong: str) -> None:
    fields = json.loads((shop / f"{OTHER}.json").read_text())
    if wrong == "altered":
        fields["pairs_erased"] += 1
    (tmp_path / "receipt.json").write_text(json.dumps(fields))
    key = shop / ("other.pub.pem" if wrong == "key" else "key.pub.pem")
    user = USER if wrong == "user" else OTHER
    asked = (
        "--storage-path",
        str(shop / "kept"),
        "--receipt",
        "receipt.json",
        "--user-id",
        str(user),
        "--public-key",
        str(key),
    )
    done = run("verify", *asked, "--json", folder=tmp_path)
    assert done.returncode == 1
    found = json.loads(done.stdout.splitlines()[-1])
    failed = {finding["check"] for finding in found["findings"] if finding["outcome"] == "fails"}
    assert found["holds"] is False
    assert (
        failed
        == {
            "altered": {"digest", "signature", "place in the chain"},
            "key": {"signature"},
            "user": {"what it is about"},
        }[wrong]
    )


def test_the_chain_is_verified_with_and_without_its_key(shop: Path) -> None:
    last = json.loads((shop / f"{OTHER}.json").read_text())
    found = result("verify", "--storage-path", "kept", "--chain", "--public-key", "key.pub.pem", folder=shop)
    assert found == {
        "holds": True,
        "receipts": 2,
        "links": 2,
        "head": last["digest"],
        "deployment": last["deployment"],
        "signatures_checked": True,
        "problems": [],
    }
    told = run("verify", "--storage-path", "kept", "--chain", folder=shop).stdout
    assert "chain of receipts" in told
    assert f"head: {last['digest']}" in told
    assert f"deployment: {last['deployment']}" in told
    assert "not checked: give --public-key" in told
    assert "cut off at the end, only somebody who holds one of them" in " ".join(told.split())
    other = run("verify", "--storage-path", "kept", "--chain", "--public-key", "other.pub.pem", "--json", folder=shop)
    assert other.returncode == 1
    assert len(json.loads(other.stdout.splitlines()[-1])["problems"]) == 3  # two receipts, and which generation is current


def test_a_chain_that_is_not_the_expected_deployments_fails(shop: Path) -> None:
    done = run("verify", "--storage-path", "kept", "--chain", "--expect-deployment", "e1" * 16, "--json", folder=shop)
    assert done.returncode == 1
    (first, *_) = json.loads(done.stdout.splitlines()[-1])["problems"]
    assert first.endswith(f"not to {'e1' * 16}")
    asked = ("--receipt", f"{OTHER}.json", "--expect-deployment", "e1" * 16, "--json")
    done = run("verify", "--storage-path", "kept", *asked, folder=shop)
    found = json.loads(done.stdout.splitlines()[-1])["findings"]
    assert [finding["check"] for finding in found if finding["outcome"] == "fails"] == ["deployment"]


# ---- another key


@pytest.fixture
def moved(shop: Path, tmp_path: Path) -> Path:
    """A folder with a copy of the deployment, which remembers the key that is there, and with the receipts."""
    shutil.copytree(shop, tmp_path, dirs_exist_ok=True)
    with closing(sqlite3.connect(tmp_path / "kept/ledger.db")) as connection, connection:
        connection.execute("UPDATE notes SET text = replace(text, ?, ?)", (str(shop), str(tmp_path)))
    return tmp_path


def erased(folder: Path, user: int) -> None:
    """Have the deployment start as it remembers to, and forget another user."""
    path = str(folder / "kept")
    coordinator = Coordinator("kept", path, partial(LocalShardPool, path))
    coordinator.submit(UnlearningRequest(user_id=user))
    coordinator.process_pending()
    coordinator.close()


@contextmanager
def keeping(coordinator: Coordinator) -> Iterator[None]:
    """The lease is renewed meanwhile, as the actor of a deployment does it."""
    done = threading.Event()

    def renew() -> None:
        while not done.wait(0.5):
            coordinator.keep_in_force()

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


KEPT = ("--storage-path", "kept", "--deployment", "kept")


def test_after_a_change_of_keys_the_first_public_key_verifies_all(moved: Path) -> None:
    old = load_signing_key(moved / "key.pem").key_id
    made = result("keys", "--out", "next", "--rotate", *KEPT, folder=moved)
    assert (made["former_key_id"], made["number"]) == (old, 3)
    erased(moved, 1005)
    for name in ("key.pem", "next.pem"):
        (moved / name).unlink()
    found = result("verify", "--storage-path", "kept", "--chain", "--public-key", "key.pub.pem", folder=moved)
    assert (found["holds"], found["receipts"], found["links"]) == (True, 3, 4)
    asked = ("--storage-path", "kept", "--receipt", f"{OTHER}.json", "--public-key", "key.pub.pem")
    assert result("verify", *asked, folder=moved)["holds"] is True


def test_after_a_lost_key_auditors_need_the_next_one(moved: Path) -> None:
    (moved / "key.pem").unlink()
    refused = run("keys", "--out", "next", "--rotate", *KEPT, folder=moved)
    assert refused.returncode == 2
    assert "key.pem cannot be read" in refused.stderr
    assert not (moved / "next.pem").exists()
    result("keys", "--out", "next", "--rotate", "--lost", *KEPT, folder=moved)
    erased(moved, 1005)
    asked = ("--storage-path", "kept", "--chain", "--public-key", "key.pub.pem")
    assert run("verify", *asked, folder=moved).returncode == 1
    assert result("verify", *asked, "--public-key", "next.pub.pem", folder=moved)["holds"] is True


def test_the_former_key_may_have_moved_and_must_be_the_one(moved: Path) -> None:
    (moved / "key.pem").rename(moved / "elsewhere.pem")
    refused = run("keys", "--out", "next", "--rotate", "--former", "other.pem", *KEPT, folder=moved)
    assert refused.returncode == 2
    assert "signs until now: give that with --former, or --lost" in refused.stderr
    result("keys", "--out", "next", "--rotate", "--former", "elsewhere.pem", *KEPT, folder=moved)
    found = result("verify", "--storage-path", "kept", "--chain", "--public-key", "key.pub.pem", folder=moved)
    assert (found["holds"], found["receipts"], found["links"]) == (True, 2, 3)


def test_a_running_deployment_keeps_its_key(moved: Path) -> None:
    """A process other than the job's holds the deployment."""
    path = str(moved / "kept")
    coordinator = Coordinator("kept", path, partial(LocalShardPool, path))
    with keeping(coordinator):
        refused = run("keys", "--out", "next", "--rotate", *KEPT, folder=moved)
    coordinator.close()
    assert refused.returncode == 2
    assert "is running already" in refused.stderr
    assert not (moved / "next.pem").exists()


# ---- an earlier state


def test_a_deployment_that_was_put_back_is_found_by_its_chain_and_by_a_receipt(moved: Path) -> None:
    with closing(sqlite3.connect(moved / "kept/ledger.db")) as connection, connection:
        connection.execute("UPDATE generations SET digest = (SELECT digest FROM generations WHERE number = 3) WHERE number = 2")
        connection.execute("DELETE FROM generations WHERE number = 3")
    done = run("verify", "--storage-path", "kept", "--chain", "--json", folder=moved)
    assert done.returncode == 1
    (problem,) = json.loads(done.stdout.splitlines()[-1])["problems"]
    assert problem.startswith("receipt 2 ")
    assert "the current generation is 2: the files or the ledger were restored to an earlier state" in problem
    done = run("verify", "--storage-path", "kept", "--receipt", f"{OTHER}.json", "--json", folder=moved)
    (found,) = [one for one in json.loads(done.stdout.splitlines()[-1])["findings"] if one["outcome"] == "fails"]
    assert found["check"] == "generation"
    assert "the deployment was restored to an earlier state" in found["detail"]


def test_a_periods_record_has_the_requests_of_its_days(shop: Path, tmp_path: Path) -> None:
    here = ("--storage-path", str(shop / "kept"))
    said = result("export", *here, "--since", "1970-01-02", "--until", "1970-01-02", "--out", "one.json", folder=tmp_path)
    assert (said["requests"], said["finished"]) == (1, 1)
    (row,) = json.loads((tmp_path / "one.json").read_text())["requests"]
    receipt = json.loads((shop / f"{USER}.json").read_text())
    assert {name: row[name] for name in ("request_id", "number", "digest", "signature", "pairs_erased")} == {
        name: receipt[name] for name in ("request_id", "number", "digest", "signature", "pairs_erased")
    }
    assert row["received_at"] == "1970-01-02T00:00:00.000+00:00"

    assert run("export", *here, "--out", "all.csv", folder=tmp_path).returncode == 0
    text = (tmp_path / "all.csv").read_text()
    rows = list(csv.DictReader(text.splitlines()))
    assert [(row["number"], row["state"], row["guarantee"], row["chosen"]) for row in rows] == [
        ("1", "erased", "exact", ""),
        ("2", "erased", "exact", ""),
    ]
    assert not any(str(user) in field for row in rows for field in (row["request_id"], row["kind"]) for user in (USER, OTHER))


def log_of(dataset: Dataset, *, without: tuple[int, ...]) -> str:
    """The log as its user keeps it, with columns of the user's own."""
    pairs = [
        pair
        for part in (dataset.train, dataset.valid, dataset.test)
        for pair in zip(dataset.users.raw(part.users), dataset.items.raw(part.items), strict=True)
    ]
    return "who,what\n" + "".join(f"{user},{item}\n" for user, item in pairs if user not in without)


@pytest.mark.ray
@pytest.mark.slow
def test_a_deployment_is_compared_with_the_log_that_its_user_holds(shop: Path, tiny: Dataset, tmp_path: Path) -> None:
    (tmp_path / "left.csv").write_text(log_of(tiny, without=(USER, OTHER)))
    (tmp_path / "more.csv").write_text(log_of(tiny, without=(USER,)))
    columns = ("--set", "data.user_column=who", "--set", "data.item_column=what")
    asked = ("--storage-path", str(shop / "kept"), "--ray-address", "local", *columns)
    found = result("audit", *asked, "--against", "left.csv", folder=tmp_path)
    assert (found["equal"], found["mismatches"], found["guarantee"], found["generation"]) == (True, [], "exact", 3)
    done = run("audit", *asked, "--against", "more.csv", "--json", folder=tmp_path)
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert not found["equal"]
    assert {line.partition("/")[0] for line in found["mismatches"]} == {"vocabulary", "shards", "aggregate", "generations"}
    assert not any(str(OTHER) in line for line in found["mismatches"])


def test_a_learned_partition_is_not_compared_and_the_way_out_is_named(tiny: Dataset, tmp_path: Path) -> None:
    config = config_from(
        {"partition": {"kind": "user_based", "n_shards": 2}, "model": {"width": 4, "epochs": 1, "alpha0": 0.3}}
    )
    path = str(tmp_path / "kept")
    coordinator = Coordinator("kept", path, partial(LocalShardPool, path), config)
    coordinator.fit(tiny)
    coordinator.close()
    done = run("audit", "--storage-path", "kept", "--against", "synthetic", folder=tmp_path)
    said = refusal(done)
    assert "a user_based partition is learned" in said
    assert "ray-eraser repartition" in said


@pytest.mark.parametrize(
    ("job", "arguments", "said"),
    [
        ("verify", ("--receipt", "none.json"), "none.json: cannot be read"),
        ("verify", ("--receipt", "key.pem"), "key.pem: is not a receipt"),
        ("verify", ("--chain", "--public-key", "none.pem"), "public key none.pem cannot be read"),
        ("verify", ("--public-key", "key.pub.pem"), "give --receipt FILE or --chain"),
        ("verify", ("--chain", "--receipt", f"{USER}.json"), "give --receipt FILE or --chain"),
        ("verify", ("--chain", "--user-id", "7"), "say what a receipt is about: give --receipt FILE, too"),
        ("audit", ("--against", "none.csv"), "none.csv: no such file or folder"),
        ("audit", ("--against", "synthetic", "--user-id", "7"), "--against compares all files and looks for no ids"),
        ("audit", ("--against", "synthetic", "--set", "data.test_share=2"), "data.test_share"),
        ("export", ("--out", "x.txt"), "name a .json or a .csv file"),
        ("export", ("--out", "x.csv", "--since", "yesterday"), "--since 'yesterday' is no day"),
        ("export", ("--out", "x.csv", "--since", "2026-02-01", "--until", "2026-01-01"), "is after --until 2026-01-01"),
        ("export", ("--out", "none/x.csv"), "none/x.csv cannot be written"),
        ("keys", ("--out", "none/key"), "cannot be written"),
        ("keys", ("--out", "new", "--lost"), "say how --rotate changes keys: give it, too"),
        ("keys", ("--out", "new", "--rotate", "--lost", "--former", "key.pem"), "give one of both"),
        ("keys", ("--out", "new", "--rotate", "--storage-path", "none"), "nothing is deployed at"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_two(shop: Path, job: str, arguments: tuple[str, ...], said: str) -> None:
    before = sorted(shop.iterdir())
    where = () if job == "keys" else ("--storage-path", "kept")
    assert said in refusal(run(job, *where, *arguments, folder=shop))
    assert sorted(shop.iterdir()) == before
