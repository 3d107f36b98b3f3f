"""What an engineer does with receipts: makes a key, verifies one receipt and the chain, hands over a period's record."""

from __future__ import annotations

import csv
import json
from functools import partial
from pathlib import Path

import pytest
from test_jobs import result, run

from ray_eraser.config import EraserConfig, config_from
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
    coordinator = Coordinator("kept", path, partial(LocalShardPool, path), tiny_config, clock=lambda: now[0])
    coordinator._signer = load_signing_key(private)
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
    assert again.stderr == "error: shop.pub.pem exists: a key is never overwritten, choose another name\n"


def test_a_receipt_is_verified_with_everything_that_the_asker_has(shop: Path) -> None:
    asked = ("--storage-path", "kept", "--receipt", f"{OTHER}.json", "--user-id", str(OTHER), "--public-key", "key.pub.pem")
    found = result("audit", *asked, folder=shop)
    assert (found["holds"], found["number"], found["generation"]) == (True, 2, 3)
    assert {finding["outcome"] for finding in found["findings"]} == {"holds"}


def test_a_superseded_receipt_is_said_to_be_superseded_and_does_not_fail(shop: Path) -> None:
    done = run("audit", "--storage-path", "kept", "--receipt", f"{USER}.json", folder=shop)
    assert done.returncode == 0
    assert "unchecked" in done.stdout
    assert "superseded" in done.stdout


def test_a_receipt_without_its_salt_is_verified_as_far_as_that_goes(shop: Path, tmp_path: Path) -> None:
    fields = json.loads((shop / f"{OTHER}.json").read_text())
    (tmp_path / "receipt.json").write_text(json.dumps({name: value for name, value in fields.items() if name != "salt"}))
    found = result("audit", "--storage-path", str(shop / "kept"), "--receipt", "receipt.json", folder=tmp_path)
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
    done = run("audit", *asked, "--json", folder=tmp_path)
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
    found = result("audit", "--storage-path", "kept", "--chain", "--public-key", "key.pub.pem", folder=shop)
    assert found == {"holds": True, "receipts": 2, "head": last["digest"], "signatures_checked": True, "problems": []}
    told = run("audit", "--storage-path", "kept", "--chain", folder=shop).stdout
    assert "chain of receipts" in told
    assert f"head: {last['digest']}" in told
    assert "not checked: give --public-key" in told
    assert "cut off at the end are missed only by somebody who holds one of those" in " ".join(told.split())
    other = run("audit", "--storage-path", "kept", "--chain", "--public-key", "other.pub.pem", "--json", folder=shop)
    assert other.returncode == 1
    assert len(json.loads(other.stdout.splitlines()[-1])["problems"]) == 2


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
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "a user_based partition is learned" in done.stderr
    assert "repartition.py" in done.stderr


@pytest.mark.parametrize(
    ("job", "arguments", "said"),
    [
        ("audit", ("--receipt", "none.json"), "none.json: cannot be read"),
        ("audit", ("--receipt", "key.pem"), "key.pem: is no receipt"),
        ("audit", ("--chain", "--public-key", "none.pem"), "public key none.pem cannot be read"),
        ("audit", ("--public-key", "key.pub.pem"), "give --receipt or --chain, too"),
        ("audit", ("--chain", "--receipt", f"{USER}.json"), "give one of --attack, --receipt, --chain"),
        ("audit", ("--chain", "--against", "log.csv"), "--residue and --against"),
        ("audit", ("--against", "none.csv"), "none.csv: no such file or folder"),
        ("audit", ("--against", "synthetic", "--user-id", "7"), "--against compares all files and looks for no ids"),
        ("audit", ("--against", "synthetic", "--set", "data.test_share=2"), "data.test_share"),
        ("export", ("--out", "x.txt"), "name a .json or a .csv file"),
        ("export", ("--out", "x.csv", "--since", "yesterday"), "--since 'yesterday' is no day"),
        ("export", ("--out", "x.csv", "--since", "2026-02-01", "--until", "2026-01-01"), "is after --until 2026-01-01"),
        ("export", ("--out", "none/x.csv"), "none/x.csv cannot be written"),
        ("keys", ("--out", "none/key"), "cannot be written"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_two(shop: Path, job: str, arguments: tuple[str, ...], said: str) -> None:
    before = sorted(shop.iterdir())
    where = () if job == "keys" else ("--storage-path", "kept")
    done = run(job, *where, *arguments, folder=shop)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert sorted(shop.iterdir()) == before
