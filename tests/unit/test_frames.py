"""Data frames and arrays in place of pairs: what comes out is what the same pairs as tuples give."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Deployments, digest_of
from plain import Plain

from ray_eraser.config import EraserConfig, changed
from ray_eraser.coordinator import Coordinator
from ray_eraser.data.dataset import Dataset
from ray_eraser.data.files import read_dataset
from ray_eraser.data.frames import ids_of, pairs_of
from ray_eraser.data.given import dataset_of
from ray_eraser.errors import InputError, RequestError
from ray_eraser.unlearning.request import Refusal, Submission, UnlearningRequest
from ray_eraser.unlearning.request_files import requests_of

PAIRS = [(5, "a"), (6, "b"), (7, "ä c")]
FRAME = pd.DataFrame(PAIRS, columns=["user_id", "item_id"])
TABLE = pa.table({"user_id": [5, 6, 7], "item_id": ["a", "b", "ä c"]})


class Interchange:
    """A frame of a library that has the older protocol alone."""

    def __dataframe__(self, nan_as_null: bool = False, allow_copy: bool = True) -> object:
        return TABLE.__dataframe__(nan_as_null, allow_copy)


FRAMES: dict[str, Any] = {
    "pandas": FRAME,
    "pandas, further columns first": FRAME.assign(stars=[1.5, 2.0, None])[["stars", "item_id", "user_id"]],
    "pandas, two columns of other names": FRAME.set_axis([0, 1], axis=1),
    "pandas, with an index of its own": pd.concat([FRAME, FRAME])
    .iloc[3:][["user_id", "item_id"]]
    .set_index(pd.Index([9, 4, 7])),
    "pandas, nullable integers": FRAME.astype({"user_id": "Int64"}),
    "pandas, categories": FRAME.astype("category"),
    "polars": pl.from_pandas(FRAME),
    "polars, categories": pl.from_pandas(FRAME).with_columns(pl.col("item_id").cast(pl.Categorical)),
    "an Arrow table": TABLE,
    "an Arrow table in chunks": pa.concat_tables([TABLE.slice(0, 1), TABLE.slice(1)]),
    "an Arrow batch": TABLE.to_batches()[0],
    "the interchange protocol": Interchange(),
    "an array": FRAME.to_numpy(),
}


@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES)
def test_a_frame_is_its_pairs(frame):
    assert pairs_of(frame) == PAIRS
    assert UnlearningRequest(pairs=frame) == UnlearningRequest(pairs=tuple(PAIRS))


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint64, np.int8])
def test_an_array_of_integers_is_its_pairs(kind):
    assert pairs_of(np.array([[5, 1], [6, 2]], kind)) == [(5, 1), (6, 2)]


REFUSED = {
    "a column is missing": (
        FRAME.assign(stars=1).rename(columns={"user_id": "uid"}),
        "has the columns 'uid', 'item_id', 'stars'",
    ),
    "one of the two is misnamed": (FRAME.rename(columns={"user_id": "uid"}), "name the ids 'user_id' and 'item_id'"),
    "one column": (FRAME[["user_id"]], "has the columns 'user_id': name the ids"),
    "floats": (FRAME.assign(user_id=[5.0, 6.0, 7.0]), "the column 'user_id' is of type double: ids are integers or strings"),
    "bools": (FRAME.assign(item_id=[True, False, True]), "the column 'item_id' is of type bool"),
    "dates": (FRAME.assign(item_id=pd.Timestamp("2024-03-01")), "the column 'item_id' is of type timestamp"),
    "a gap": (FRAME.assign(item_id=["a", None, "b"]), "the column 'item_id' has gaps, 1 in all, the first in row 2"),
    "a gap among integers": (FRAME.assign(user_id=pd.array([None, 6, None], "Int64")), "gaps, 2 in all, the first in row 1"),
    "numbers and texts in one column": (FRAME.assign(user_id=[5, "six", 7]), "give each column one type"),
    "a name twice": (TABLE.append_column("item_id", pa.array([1, 2, 3])), "several columns 'item_id'"),
    "a single column of a frame": (FRAME["user_id"], "cannot be read as a table"),
    "a frame that was not computed": (pl.from_pandas(FRAME).lazy(), r"collect\(\) it first"),
    "an array of one column": (np.array([5, 6, 7]), r"shape \(n, 2\), not \(3,\)"),
    "an array of three columns": (np.zeros((4, 3), int), r"shape \(n, 2\), not \(4, 3\)"),
}


@pytest.mark.parametrize(("frame", "problem"), REFUSED.values(), ids=REFUSED)
def test_a_frame_that_cannot_be_pairs_is_refused_with_the_way_out(frame, problem):
    with pytest.raises(InputError, match=problem):
        pairs_of(frame)
    with pytest.raises(RequestError, match=problem):
        UnlearningRequest(pairs=frame)


@pytest.mark.parametrize("array", [np.array([[5.0, 1.0]]), np.array([[True, False]]), np.array([[5, None]], object)])
def test_an_array_of_other_values_than_ids_is_refused(array):
    with pytest.raises(RequestError, match=r"the (user|item) id .* is a (float|bool|NoneType)"):
        UnlearningRequest(pairs=array)


def test_ids_come_out_of_lists_arrays_and_columns():
    for column in (
        [5, 6],
        np.array([5, 6]),
        pd.Series([5, 6]),
        pl.Series([5, 6]),
        pa.array([5, 6]),
        pa.chunked_array([[5], [6]]),
    ):
        assert ids_of(column) == [5, 6]


# ---- a log


def log_frame(config: EraserConfig) -> pd.DataFrame:
    log = read_dataset("synthetic", config.data, config.seed)
    parts = [log.train, log.valid, log.test]
    users, items = (np.concatenate([getattr(part, side) for part in parts]) for side in ("users", "items"))
    return pd.DataFrame({"user_id": np.array(log.users.ids)[users], "item_id": np.array(log.items.ids)[items]})


@pytest.mark.parametrize(
    "to", [lambda f: f, pl.from_pandas, lambda f: f.to_numpy(), lambda f: list(f.itertuples(index=False, name=None))]
)
def test_a_deployment_of_a_frame_is_that_of_the_same_rows_in_a_file(deployments: Deployments, tiny_config, tmp_path: Path, to):
    frame = log_frame(tiny_config)
    pq.write_table(pa.Table.from_pandas(frame), tmp_path / "log.parquet")
    of_file = deployments.fit(
        "file", tiny_config, read_dataset(str(tmp_path / "log.parquet"), tiny_config.data, tiny_config.seed)
    )
    coordinator = deployments.open("frame", tiny_config)
    report = coordinator.fit(to(frame))
    assert digest_of(coordinator) == digest_of(of_file)
    assert report.held_out > 0


def test_a_frame_is_read_by_the_settings_of_the_deployment(tiny_config):
    config = changed(
        tiny_config, ["data.user_column=customer", "data.min_rating=4", "data.rating_column=stars", "data.test_share=0"]
    )
    frame = pd.DataFrame({"customer": [1, 1, 2, 3], "item_id": ["x", "y", "x", "y"], "stars": [5.0, 3.0, 4.0, 4.5]})
    log = dataset_of(pl.from_pandas(frame), config.data, config.seed)
    assert sorted(log.users.ids) == [1, 2, 3]
    assert (log.below_rating, len(log.train) + len(log.valid)) == (1, 3)
    with pytest.raises(InputError, match="name the ids 'customer' and 'item_id'"):
        dataset_of(frame.rename(columns={"customer": "user_id"}), config.data, config.seed)


def test_a_dataset_of_pairs_may_come_from_frames():
    log = Dataset.of_pairs("log", FRAME, 3, test=pl.from_pandas(FRAME.assign(item_id=["a", "x", "x"])))
    named = Dataset.of_pairs("log", PAIRS, 3, test=[(5, "a"), (6, "x"), (7, "x")])
    assert (log.users.ids, log.items.ids) == (named.users.ids, named.items.ids)
    assert log.test.codes().tolist() == named.test.codes().tolist()
    assert log.merged == 1


@pytest.mark.parametrize("pairs", [[(5, "a"), (True, "b")], [(5.0, "a")], [(5, None)], [5], [("a", "b", "c")]])
def test_pairs_to_fit_on_are_checked_alike(tiny_config, pairs):
    with pytest.raises(InputError):
        dataset_of(pairs, tiny_config.data, tiny_config.seed)


@pytest.mark.parametrize("kind", [str, Path])
def test_a_path_is_no_log_and_the_error_says_how_to_read_one(tiny_config, kind):
    with pytest.raises(InputError, match=r"'my-log\.csv' is a path: hand in read_dataset\(path, config\.data, config\.seed\)"):
        dataset_of(kind("my-log.csv"), tiny_config.data, tiny_config.seed)


# ---- requests


@pytest.fixture
def coordinator(deployments: Deployments, trained: Path) -> Coordinator:
    return deployments.copy(trained, "shop")


def test_frames_are_learned_and_forgotten(coordinator: Coordinator):
    before = Plain(coordinator).pairs
    new = pd.DataFrame({"user_id": ["2001", "2001"], "item_id": ["902", "904"]})
    coordinator.learn(pl.from_pandas(new))
    coordinator.process_pending()
    assert Plain(coordinator).pairs == before | {("2001", "902"), ("2001", "904")}
    assert coordinator.submit(UnlearningRequest(pairs=new.iloc[:1])).pairs_absent == 0
    coordinator.process_pending()
    assert Plain(coordinator).pairs == before | {("2001", "904")}
    with pytest.raises(RequestError, match="pairs is empty"):
        coordinator.learn(new.iloc[:0])


def test_the_rows_of_a_frame_are_requests_by_the_rules_of_files():
    frame = pd.DataFrame(
        {
            "user_id": ["ann", None, "bob", "bob", "bob", None],
            "item_id": [None, "sofa", "a", "b", "a", None],
            "priority": [0, 0, 2, 2, 2, 0],
        }
    )
    read = requests_of(frame, partial=True)
    assert read.submissions == (
        Submission(UnlearningRequest(user_id="ann"), None, 0, 1),
        Submission(UnlearningRequest(item_id="sofa"), None, 0, 2),
        Submission(UnlearningRequest(pairs=(("bob", "a"), ("bob", "b"))), None, 2, 3),
    )
    assert [refusal.row for refusal in read.refused] == [5, 6]
    assert read.in_order(["x", "y", "z"]) == ["x", "y", "z", *read.refused]
    with pytest.raises(RequestError, match=r"row 5: the interaction of 'bob' with 'a' is named twice, first in row 3"):
        requests_of(frame)


@pytest.mark.parametrize(
    ("frame", "problem"),
    [
        (pd.DataFrame({"user": [1]}), "has no column 'user_id' but 'user'"),
        (pd.DataFrame({"user_id": [1.0]}), "column 'user_id' is double"),
        (pd.DataFrame({"user_id": [1], "stars": [5]}), "column 'stars' says nothing of a request"),
        (pd.DataFrame({"user_id": pd.Series([], dtype="int64")}), "has no rows"),
    ],
)
def test_a_frame_that_is_no_table_of_requests_is_refused(frame, problem):
    with pytest.raises(RequestError, match=problem):
        requests_of(frame, partial=True)


def test_many_are_asked_for_by_a_frame_of_users(coordinator: Coordinator):
    users = sorted({user for user, _ in Plain(coordinator).pairs})[:2]
    frame = pl.DataFrame({"user_id": [users[0], "nobody", users[1], users[0]]})
    with pytest.raises(RequestError, match=r"row 4: user .* is named twice"):
        coordinator.submit_many(frame)
    answers = coordinator.submit_many(frame, partial=True)
    assert [isinstance(answer, Refusal) for answer in answers] == [False, True, False, True]
    assert [answer.row for answer in answers if isinstance(answer, Refusal)] == [2, 4]
    assert len(coordinator.process_pending()) == 2


@pytest.mark.parametrize("kind", [np.int64, np.uint16, np.int32])
def test_integers_of_any_kind_are_ids_for_every_call(coordinator: Coordinator, kind):
    user, other, item = *coordinator._serving.snapshot.users.ids[:2], coordinator._serving.snapshot.items.ids[0]
    assert coordinator.recommend(kind(user), 3) == coordinator.recommend(user, 3)
    assert coordinator.recommend_many(np.array([user, other], kind), 3) == coordinator.recommend_many([user, other], 3)
    assert coordinator.similar_items(kind(item), 3) == coordinator.similar_items(item, 3)
    assert coordinator.submit(UnlearningRequest(user_id=kind(user))).request_id
    (answer,) = coordinator.submit_many([Submission(UnlearningRequest(user_id=kind(other)))])
    assert not isinstance(answer, Refusal)
    coordinator.learn([(kind(2001), kind(902))])
    coordinator.process_pending()
    assert ("2001", "902") in Plain(coordinator).pairs


@pytest.mark.parametrize("raw", [True, np.True_, 5.0, np.float64(5), np.float32(5), None, 5j])
def test_bools_and_floats_are_ids_for_no_call(coordinator: Coordinator, raw):
    calls = [
        lambda: coordinator.recommend(raw, 3),
        lambda: coordinator.recommend_many([raw], 3),
        lambda: coordinator.similar_items(raw, 3),
        lambda: coordinator.learn([(raw, 1)]),
        lambda: coordinator.learn([(1, raw)]),
        lambda: coordinator.submit(UnlearningRequest(pairs=((raw, 1),))),
        lambda: coordinator.submit(UnlearningRequest(user_id=raw)),
        lambda: coordinator.submit(UnlearningRequest(item_id=raw)),
        lambda: Dataset.of_pairs("log", [(raw, 1)]),
    ]
    for call in calls:
        with pytest.raises(InputError):
            call()


def test_no_library_of_data_frames_is_imported():
    code = "import ray_eraser.data.given, sys; print([m for m in ('pandas', 'polars') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize("column", ["user_id", "item_id"])
def test_ids_of_floats_are_refused_by_fit_too(deployments: Deployments, tiny_config, column) -> None:
    frame = pd.DataFrame({"user_id": [5, 6, 7], "item_id": [1, 2, 3]}).astype({column: float})
    with pytest.raises(InputError, match=rf"the column '{column}' is of type double: convert the ids"):
        deployments.open("shop", tiny_config).fit(frame)
