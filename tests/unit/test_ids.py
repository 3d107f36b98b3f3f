"""One rule says what can be an id, wherever one comes in: in a log, in a request, in what is to be learned, in a program."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_eraser.config import DataConfig, config_from
from ray_eraser.data.dataset import Dataset
from ray_eraser.data.files import read_dataset
from ray_eraser.data.vocabulary import Vocabulary
from ray_eraser.errors import InputError
from ray_eraser.ids import LONGEST_ID, id_problem, id_text
from ray_eraser.ingest import ingest
from ray_eraser.store import Store
from ray_eraser.unlearning.request import UnlearningRequest
from ray_eraser.unlearning.request_files import read_requests
from ray_eraser.unlearning.work import Learning

GOOD = ["a", "7", "07", "-7", " a", "a ", "two\nlines", "\u200b", "naïve 🦊", "None", "x" * LONGEST_ID]
BAD_TEXTS = ["", " ", "\t\n", "\u00a0", "a\0b", "x" * (LONGEST_ID + 1), "\ud800", "a\udfff"]
INTEGERS = [kind(7) for kind in (int, np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64)]
NO_IDS = [True, False, np.True_, 1.0, np.float32(1), None, b"ann", ("ann",), 1j, 2**3000]

Door = Callable[[Any, Path], object]


class Here:
    def run(self, calls):
        return [call() for call in calls]


def in_a_table(raw: object, folder: Path) -> str:
    with (folder / "log.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["user_id", "item_id"], ["somebody", "something"], ["ann", raw]])
    return str(folder / "log.csv")


def in_parquet(raw: object, folder: Path) -> str:
    pq.write_table(pa.table({"user_id": ["somebody", "ann"], "item_id": ["something", raw]}), folder / "log.parquet")
    return str(folder / "log.parquet")


def in_a_file_of_requests(raw: object, folder: Path) -> None:
    with (folder / "requests.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["user_id", "item_id"], ["ann", raw]])
    rows = read_requests(folder / "requests.csv")
    if rows.refused:
        raise InputError(rows.refused[0].reason)


PROGRAMS: dict[str, Door] = {
    "a request about a user": lambda raw, _: UnlearningRequest(user_id=raw),
    "a request about an item": lambda raw, _: UnlearningRequest(item_id=raw),
    "a request about pairs": lambda raw, _: UnlearningRequest(pairs=(("ann", raw),)),
    "what is to be learned": lambda raw, _: Learning((("ann", raw),)),
    "a vocabulary": lambda raw, _: Vocabulary.of("item", ["something", raw]),
    "a log in memory": lambda raw, _: Dataset.of_pairs("log", [("ann", raw)]),
}
FILES: dict[str, Door] = {
    "a table": lambda raw, folder: read_dataset(in_a_table(raw, folder), DataConfig(blank_ids="keep"), 1),
    "a parquet file": lambda raw, folder: read_dataset(in_parquet(raw, folder), DataConfig(blank_ids="keep"), 1),
    "a log in fragments": lambda raw, folder: ingest(
        in_parquet(raw, folder),
        Store(str(folder / "store")),
        config_from({"partition": {"n_shards": 2}, "data": {"blank_ids": "keep"}}),
        Here(),
    ),
    "a file of requests": in_a_file_of_requests,
}
DOORS = PROGRAMS | FILES


def named(value: object) -> str:
    return f"{type(value).__name__}-{str(value)[:8]!a}"


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("raw", GOOD, ids=named)
def test_text_may_be_an_id_through_every_door(tmp_path, door, raw):
    DOORS[door](raw, tmp_path)


def bad_texts(door: str) -> list[str]:
    """What is to be refused there: no file holds half a surrogate pair, and in one of requests an empty field names nothing."""
    if door in PROGRAMS:
        return BAD_TEXTS
    empty = [""] if door == "a file of requests" else []
    return [raw for raw in BAD_TEXTS if raw not in ("\ud800", "a\udfff", *empty)]


@pytest.mark.parametrize(("door", "raw"), [(door, raw) for door in DOORS for raw in bad_texts(door)], ids=named)
def test_text_that_cannot_be_an_id_is_refused_at_every_door(tmp_path, door, raw):
    with pytest.raises(InputError) as caught:
        DOORS[door](raw, tmp_path)
    assert re.search(
        r"is empty|is nothing but white space|holds a NUL byte|has 1001 characters|surrogate pair", str(caught.value)
    )


def no_ids(door: str) -> list[object]:
    """What is to be refused there: None in place of a user or an item says that none is given."""
    return [raw for raw in NO_IDS if raw is not None or door not in ("a request about a user", "a request about an item")]


@pytest.mark.parametrize(("door", "raw"), [(door, raw) for door in PROGRAMS for raw in no_ids(door)], ids=named)
def test_what_is_neither_text_nor_an_integer_is_refused_at_every_door(tmp_path, door, raw):
    with pytest.raises(InputError, match=r"the (user|item) id .*(give a string or an integer|bits)"):
        PROGRAMS[door](raw, tmp_path)


@pytest.mark.parametrize("door", PROGRAMS)
@pytest.mark.parametrize("raw", INTEGERS, ids=named)
def test_integers_of_every_width_are_ids(tmp_path, door, raw):
    PROGRAMS[door](raw, tmp_path)
    assert id_text(raw) == "7"


def test_seven_is_one_id_however_it_is_given_and_07_is_another():
    requests = [UnlearningRequest(user_id=raw) for raw in [*INTEGERS, "7", np.str_("7")]]
    assert all(request == requests[0] for request in requests)
    assert {request.to_json() for request in requests} == {'{"user": "7"}'}
    assert UnlearningRequest(user_id="07") != requests[0]
    assert Learning(((7, np.int64(8)),)) == Learning((("7", "8"),)) != Learning((("07", "8"),))
    log = Dataset.of_pairs("log", [(7, "a"), ("7", "a"), (np.int64(7), "a"), ("07", "a")])
    assert (set(log.users.ids), len(log.train), log.merged) == ({"7", "07"}, 2, 2)


@pytest.mark.parametrize("kind", [pa.int8(), pa.int32(), pa.int64(), pa.uint16(), pa.uint64()])
def test_seven_in_a_column_of_integers_is_the_same_id(tmp_path, kind):
    pq.write_table(pa.table({"user_id": pa.array([7], kind), "item_id": ["a"]}), tmp_path / "log.parquet")
    log = read_dataset(str(tmp_path / "log.parquet"), DataConfig(), 1)
    assert log.users.keys.tolist() == [Vocabulary.of("user", ["7"], 1).key("7")]
    assert log.users.ids == (7,)


@given(st.integers(-(2**2999), 2**2999))
def test_an_integer_stands_for_its_decimal_digits(number):
    assert id_text(number) == str(number)
    assert id_problem(number) is None


@given(st.text())
def test_text_that_can_be_an_id_is_left_as_it_is(text):
    if id_problem(text) is None:
        assert id_text(text) == text
        assert len(text.encode()) <= 4 * LONGEST_ID
    else:
        with pytest.raises(ValueError, match=r"is empty|NUL byte|characters|surrogate"):
            id_text(text)


def test_a_guest_who_is_learned_and_forgotten_changes_nothing_for_those_whose_ids_are_integers(deployments, tiny, tiny_config):
    coordinator = deployments.fit("a", tiny_config, tiny)
    user, files = tiny.users.ids[0], coordinator._store.files()
    assert coordinator._serving.loaded.manifest.integers == ("user", "item")
    coordinator.learn([("guest-7", item) for item in tiny.items.ids[:8]])
    coordinator.process_pending()
    users = coordinator._serving.loaded.users
    assert set(users.ids) == {*tiny.learned().users.ids, "guest-7"}
    assert all(type(raw) is int for raw in users.ids if raw != "guest-7")
    assert all(type(item) is int for item in [*coordinator.recommend("guest-7"), *coordinator.recommend(user)])
    coordinator.submit(UnlearningRequest(user_id="guest-7"))
    coordinator.process_pending()
    assert coordinator._store.files() == files
