"""The search for what is left of erased ids, as a person runs it; and files of requests that are refused."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from commands import refusal, run

from ray_eraser.data.dataset import Dataset
from ray_eraser.data.keyed import ShardData
from ray_eraser.data.vocabulary import Vocabulary
from ray_eraser.ids import ShardId
from ray_eraser.store import Store


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A storage path `kept` with two users, the items that they have and an empty ledger, and a folder `logs`."""
    store = Store(str(tmp_path / "kept"))
    log = Dataset.of_pairs("log", [(1, 1), (3, 10), (3, 1)])
    store.write_vocabulary(log.users)
    store.write_shard_data(ShardId(0), ShardData.of(log.train, log.valid, log.users.keys, log.items.keys))
    with closing(sqlite3.connect(tmp_path / "kept" / "ledger.db")) as ledger:
        ledger.execute("CREATE TABLE requests (payload TEXT)")
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "worker.log").write_text("no user '2' here\n")
    return tmp_path


def test_what_is_left_nowhere_passes(folder: Path) -> None:
    done = run("residue", "--storage-path", "kept", "--user-id", "2", "--json", folder=folder)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["clean"], found["searched_files"], found["findings"], found["structured_only"]) == (True, 4, [], 1)


def test_what_is_left_somewhere_fails_and_is_named_by_place_and_position(folder: Path) -> None:
    (folder / "ids.csv").write_text("user_id,item_id\n77,\n2,\n,5\n1,5\n")
    (folder / "pairs.csv").write_text("8,9\n")
    more = ("--ids-file", "ids.csv", "--pairs", "pairs.csv", "--logs", "logs", "--json")
    done = run("residue", "--storage-path", "kept", "--user-id", "3", *more, folder=folder)
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["clean"], found["structured_only"]) == (False, 6)
    assert [(one["file"].partition("/")[0], one["kind"], one["position"], one["where"]) for one in found["findings"]] == [
        ("shards", "user", 0, f"key (the hash of its id) in user_keys, place {place_of(3)}"),
        ("vocabulary", "user", 0, "column id, row 0"),
        ("vocabulary", "user", 0, "column key (the hash of its id), row 0"),
        (found["findings"][-1]["file"].partition("/")[0], "user", 2, "byte 3"),
    ]


def place_of(user: int) -> int:
    return Vocabulary.of("user", [1, 3]).row(user)


def test_without_ids_orphans_alone_are_looked_for_and_people_are_told_so(folder: Path) -> None:
    done = run("residue", "--storage-path", "kept", folder=folder)
    assert done.returncode == 0, done.stderr
    assert "only orphans were looked for" in " ".join(done.stdout.split())
    Store(str(folder / "kept")).write_vocabulary(Vocabulary.of("item", ["nobody-has-it@example.org"]))
    done = run("residue", "--storage-path", "kept", "--json", folder=folder)
    assert done.returncode == 1, done.stderr
    (found,) = json.loads(done.stdout.splitlines()[-1])["findings"]
    assert (found["kind"], found["position"], found["count"]) == ("orphan", None, 1)
    assert found["where"] == "items without an interaction, in column key"
    table = run("residue", "--storage-path", "kept", folder=folder).stdout
    assert "orphan" in table
    assert "nobody-has-it" not in table


def test_people_get_a_table_of_what_was_found(folder: Path) -> None:
    done = run("residue", "--storage-path", "kept", "--user-id", "3", folder=folder)
    assert done.returncode == 1
    assert "user 0" in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("job", "arguments", "said"),
    [
        ("residue", ("--storage-path", "nowhere", "--user-id", "1"), "nothing is deployed at"),
        ("residue", ("--storage-path", "kept", "--user-id", "1", "--logs", "none"), "no folder of logs 'none'"),
        ("residue", ("--storage-path", "kept", "--ids-file", "bad.csv"), "bad.csv, line 3: names neither a user"),
        ("unlearn", ("--requests", "bad.csv"), "bad.csv, line 3: names neither a user nor an item; nothing was taken"),
        ("unlearn", ("--requests", "bad.csv", "--user-id", "1"), "--requests says all itself"),
        ("unlearn", ("--receipts", "r"), "are for --requests"),
        ("unlearn", ("--requests", "nowhere.csv", "--partial"), "nowhere.csv: cannot be read"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_exit_code_two(
    job: str, arguments: tuple[str, ...], said: str, folder: Path
) -> None:
    (folder / "bad.csv").write_text("user_id,item_id\n1,\n,\n")
    before = sorted(path for path in folder.rglob("*"))
    assert said in refusal(run(job, *arguments, folder=folder))
    assert sorted(path for path in folder.rglob("*")) == before
