from __future__ import annotations

import gzip
import os
import pickle
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_eraser.errors import DataFileError, RequestError
from ray_eraser.unlearning import request_files
from ray_eraser.unlearning.request import Refusal, Submission, UnlearningRequest
from ray_eraser.unlearning.request_files import read_requests

ROWS = "user_id,item_id\nann,\n,7\nbob,7\n"


def user(raw, row, **more):
    return Submission(UnlearningRequest(user_id=raw), row=row, **more)


def item(raw, row, **more):
    return Submission(UnlearningRequest(item_id=raw), row=row, **more)


def pairs(row, *some, **more):
    return Submission(UnlearningRequest(pairs=some), row=row, **more)


@pytest.fixture
def put(tmp_path):
    def write(name, content):
        data = content.encode() if isinstance(content, str) else content
        path = tmp_path / name
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return path

    return write


def refused(path, **settings):
    with pytest.raises(DataFileError) as caught:
        read_requests(path, **settings)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 1100
    assert str(pickle.loads(pickle.dumps(caught.value))) == text
    return caught.value


# What is asked for.


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("r.csv", ROWS),
        ("r.csv", "\ufeff" + ROWS.replace("\n", "\r\n")),
        ("r.CSV", ROWS.rstrip("\n")),
        ("r.csv.gz", ROWS),
        ("r.tsv", ROWS.replace(",", "\t")),
        ("r.tsv.gz", "\ufeff" + ROWS.replace(",", "\t")),
        ("r.csv", 'item_id,"user_id"\n,"ann"\n"7",\n7,bob\n'),
    ],
)
def test_every_kind_of_text_file_gives_the_same_requests(put, name, content):
    read = read_requests(put(name, content))
    assert read.submissions == (user("ann", 2), item("7", 3), pairs(4, ("bob", "7")))
    assert (read.refused, read.rows) == ((), 3)


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_parquet_gives_the_same_requests_with_positions_as_rows(tmp_path, kind):
    table = {"user_id": pa.array(["ann", None, "bob"], kind), "item_id": pa.array([None, 7, 7], pa.int32())}
    pq.write_table(pa.table(table), tmp_path / "r.parquet")
    assert read_requests(tmp_path / "r.parquet").submissions == (user("ann", 1), item(7, 2), pairs(3, ("bob", 7)))


def test_a_parquet_column_without_any_value_is_as_if_empty(tmp_path):
    pq.write_table(pa.table({"user_id": [1, 2], "item_id": pa.nulls(2)}), tmp_path / "r.parquet")
    assert read_requests(tmp_path / "r.parquet").submissions == (user(1, 1), user(2, 2))


def test_keys_and_priorities_are_taken_where_they_are_given(put):
    text = "priority,idempotency_key,user_id,item_id\n1,k1,ann,\n,,bob,\n-2,k3,,7\n"
    read = read_requests(put("r.csv", text))
    assert read.submissions == (
        user("ann", 2, idempotency_key="k1", priority=1),
        user("bob", 3),
        item("7", 4, idempotency_key="k3", priority=-2),
    )


def test_all_interactions_of_a_user_make_one_request_in_the_place_of_the_first(put):
    text = "user_id,item_id\nann,1\nbob,\nann,2\ncleo,1\nann,3\n"
    assert read_requests(put("r.csv", text)).submissions == (
        pairs(2, ("ann", "1"), ("ann", "2"), ("ann", "3")),
        user("bob", 3),
        pairs(5, ("cleo", "1")),
    )


def test_an_interaction_with_a_key_of_its_own_is_a_request_of_its_own(put):
    text = "user_id,item_id,idempotency_key\nann,1,\nann,2,k\nann,3,\n"
    assert read_requests(put("r.csv", text)).submissions == (
        pairs(2, ("ann", "1"), ("ann", "3")),
        pairs(3, ("ann", "2"), idempotency_key="k"),
    )


def test_rows_are_numbered_as_the_lines_where_they_begin(put):
    text = 'user_id,item_id\n\n"two\nlines",\n"a ""quoted"" one, with a comma",\n'
    read = read_requests(put("r.csv", text))
    assert read.submissions == (user("two\nlines", 3), user('a "quoted" one, with a comma', 5))


NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)


@given(st.lists(NAMES, min_size=1, unique=True))
def test_whatever_a_user_is_called_comes_out_of_csv_as_it_went_in(tmp_path_factory, names):
    names = [name for name in names if name.strip()]
    path = tmp_path_factory.getbasetemp() / "whatever.csv"
    quoted = ('"' + name.replace('"', '""') + '"' for name in names)
    path.write_bytes("\n".join(["user_id,item_id", *(f"{name}," for name in quoted), "last,"]).encode())
    asked = [submission.request.user_id for submission in read_requests(path).submissions]
    assert asked == [*names, "last"]


# What is wrong with a row.

FAULTY = [
    ("user_id,item_id\nann,\n,\n", 3, "names neither a user nor an item"),
    ("user_id,item_id\n  ,\n", 2, "the user id is nothing but white space"),
    ("user_id,item_id\nann\n", 2, "has 1 fields, expected 2"),
    ("user_id,item_id\nann,7,\n", 2, "has 3 fields, expected 2"),
    ("user_id,item_id\nann,\nbob,\nann,\n", 4, "user 'ann' is named twice, first in row 2"),
    ("user_id,item_id\n,7\n,7\n", 3, "item '7' is named twice, first in row 2"),
    ("user_id,item_id\nann,7\nann,8\nann,7\n", 4, "the interaction of 'ann' with '7' is named twice, first in row 2"),
    ("user_id,item_id\na\0b,\n", 2, "the user id 'a\\x00b' holds a NUL byte"),
    (f"user_id,item_id\n,{'x' * 1000}\n,{'x' * 1001}\n", 3, "has 1001 characters, more than 1000"),
    (f"user_id,item_id\n{'é' * 1000},\n{'é' * 1001},\n", 3, "has 1001 characters, more than 1000"),
    (f"user_id,item_id\nann,\n{'x' * 100_000},\n", 3, "has 100000 characters, more than 1000"),
    ("user_id,item_id,priority\nann,,high\n", 2, "priority 'high' is no integer of 32 bits"),
    ("user_id,item_id,priority\nann,,2147483648\n", 2, "priority '2147483648' is no integer"),
    ("user_id,item_id,priority\nann,,1.0\n", 2, "priority '1.0' is no integer"),
    ("user_id,item_id,priority\nann,7,1\nann,8,\n", 3, "has priority 0, and row 2, which is put together with it, 1"),
    (f"user_id,item_id,idempotency_key\nann,,{'k' * 201}\n", 2, "the idempotency key has 201 characters: give 1 to 200"),
    ("user_id,item_id,idempotency_key\nann,,k\nbob,,k\n", 3, "the idempotency key is given twice, first in row 2"),
]


@pytest.mark.parametrize(("content", "row", "problem"), FAULTY)
def test_a_faulty_row_is_named_and_refuses_the_file(put, content, row, problem):
    error = refused(put("r.csv", content))
    assert error.line == row
    assert problem in str(error)
    assert "nothing was taken" in str(error)


@pytest.mark.parametrize(("content", "row", "problem"), FAULTY)
def test_where_the_sound_rows_are_asked_for_the_faulty_ones_come_back_beside_them(put, content, row, problem):
    extra = "\n" if "priority" not in content and "idempotency" not in content else ",\n"
    read = read_requests(put("r.csv", content + "zoe," + extra), partial=True)
    assert [refusal.row for refusal in read.refused] == [row]
    assert problem in read.refused[0].reason
    assert len(read.refused[0].reason) < 300
    assert read.submissions[-1].request == UnlearningRequest(user_id="zoe")
    assert read.rows == content.count("\n")


def test_a_file_whose_rows_are_all_faulty_asks_for_nothing(put):
    read = read_requests(put("r.csv", "user_id,item_id\n,\n"), partial=True)
    assert (read.submissions, read.refused) == ((), (Refusal(2, "names neither a user nor an item"),))


def test_more_faulty_rows_than_requests_may_be_are_no_file_of_requests(put):
    error = refused(put("r.csv", "user_id,item_id\n" + ",\n" * 4), partial=True, limit=3)
    assert "more than 3 rows are at fault, the first is row 2: names neither" in str(error)


def test_an_id_too_long_in_parquet_is_the_fault_of_its_row(tmp_path):
    pq.write_table(pa.table({"user_id": ["ann", "x" * 5_000], "item_id": pa.nulls(2)}), tmp_path / "r.parquet")
    assert refused(tmp_path / "r.parquet").line == 2
    assert [one.row for one in read_requests(tmp_path / "r.parquet", partial=True).refused] == [2]


# What is wrong with the file.


@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize(
    ("name", "content", "line", "problem"),
    [
        ("r.csv", "", None, "is empty"),
        ("r.csv", "\n\n", None, "is empty"),
        ("r.csv", "user_id,item_id\n\n", None, "holds no request"),
        ("r.csv", "ann,7\n", None, "has no column 'user_id' but 'ann', '7'"),
        ("r.csv", "user_id;item_id\nann;7\n", None, "has no column 'user_id' but 'user_id;item_id'"),
        ("r.csv", "user_id\nann\n", None, "has no column 'item_id'"),
        ("r.csv", "user_id,item_id,idempotencykey\nann,,k\n", None, "column 'idempotencykey' says nothing of a request"),
        ("r.csv", "user_id,item_id,user_id\nann,,bob\n", None, "has 2 columns 'user_id'"),
        ("r.csv", ",".join(["x" * 1000] * 50), None, "has no column 'user_id'"),
        ("r.csv", b"user_id,item_id\nann,\ncaf\xe9,\n", 3, "byte 0xe9 is not UTF-8: convert the file"),
        ("r.csv", "user_id,item_id\nann,\n".encode("utf-16"), 1, "byte 0xff is not UTF-8"),
        ("r.csv", 'user_id,item_id\nann,\n"bob,\ncleo,\n', 3, "malformed row (unexpected end of data): is a quote not closed?"),
        ("r.csv", 'user_id,item_id\n"bob"by,\n', 2, "malformed row"),
        ("r.csv", f'user_id,item_id\n"{"x" * 200_000}",\n', 2, "field larger than field limit"),
        ("r.csv", "user_id,item_id\n" + "x" * 1_000_000, 2, "ends a row of more than 524287 bytes"),
        ("r.csv", 'user_id,item_id\n"' + "\n" * 200_000, 2, "malformed row"),
        ("r.csv", "user_id,item_id\n" + '"\n",' * 200_000, 131_074, "ends a row of more than"),
        ("r.csv.gz", "user_id;item_id\n", None, "has no column"),
        ("r.txt", ROWS, None, "is no file of requests of a known kind; known are *.csv"),
        ("r.parquet.gz", ROWS, None, "known are"),
        ("r.parquet", ROWS, None, "is not a sound Parquet file"),
        ("r.parquet", "", None, "is not a sound Parquet file"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_with_the_reason(put, name, content, line, problem, partial):
    error = refused(put(name, content), partial=partial)
    assert error.line == line
    assert problem in str(error)


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda data: data[:-9], "ends within its gzip data"),
        (lambda data: data[:30] + b"\0\0\0" + data[33:], "is not sound gzip data"),
        (lambda _: ROWS.encode(), "drop .gz from its name"),
    ],
)
def test_damaged_gzip_data_is_refused_and_nothing_of_it_taken(tmp_path, damage, problem):
    path = tmp_path / "r.csv.gz"
    path.write_bytes(damage(gzip.compress(ROWS.encode())))
    assert problem in str(refused(path, partial=True))


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        (
            {"user_id": [1.0, float("nan")], "item_id": [1, 2]},
            "column 'user_id' is double: write integers or strings, and null",
        ),
        ({"user_id": [b"1"], "item_id": [1]}, "column 'user_id' is binary"),
        ({"user_id": [True], "item_id": [1]}, "column 'user_id' is bool"),
        ({"user_id": [[1]], "item_id": [1]}, "column 'user_id' is list"),
        ({"user_id": [1], "item_id": [1], "priority": ["1"]}, "column 'priority' is string: write integers"),
        ({"user_id": [1], "item_id": [1], "idempotency_key": [1]}, "column 'idempotency_key' is int64: write strings"),
        ({"user_id": [1]}, "has no column 'item_id' but 'user_id'"),
        ({"user_id": pa.array([], pa.int64()), "item_id": pa.array([], pa.int64())}, "holds no request"),
    ],
)
def test_a_parquet_file_of_other_columns_is_refused(tmp_path, columns, problem):
    pq.write_table(pa.table(columns), tmp_path / "r.parquet")
    assert problem in str(refused(tmp_path / "r.parquet"))


def test_a_truncated_or_damaged_parquet_file_is_refused(tmp_path):
    path = tmp_path / "r.parquet"
    pq.write_table(pa.table({"user_id": ["ann", "bob"], "item_id": pa.nulls(2)}), path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    assert "is not a sound Parquet file" in str(refused(path))
    path.write_bytes(whole[:4] + bytes(40) + whole[44:])
    assert "is not a sound Parquet file" in str(refused(path, partial=True))


def test_a_parquet_file_of_texts_that_are_no_utf8_is_refused(tmp_path):
    broken = pa.array([b"caf\xe9"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"user_id": broken, "item_id": pa.nulls(1)}), tmp_path / "r.parquet")
    assert "is not a sound Parquet file" in str(refused(tmp_path / "r.parquet"))


def test_a_path_that_is_missing_or_a_folder_is_refused(tmp_path):
    assert "cannot be read (No such file" in str(refused(tmp_path / "nowhere.csv"))
    (tmp_path / "folder.csv").mkdir()
    assert "cannot be read (Is a directory)" in str(refused(tmp_path / "folder.csv"))
    assert "cannot be read (No such file" in str(refused(tmp_path / "nowhere.parquet"))


# How much.


def test_as_many_requests_as_are_allowed_are_taken_and_one_more_refuses_the_file(put):
    path = put("r.csv", "user_id,item_id\n" + "".join(f"{number},\n" for number in range(5)))
    assert len(read_requests(path, limit=5).submissions) == 5
    with pytest.raises(RequestError, match="holds at least 5 requests, the queue takes at most 4 at a time: split the file"):
        read_requests(path, limit=4, partial=True)


def test_many_interactions_of_one_user_count_as_one_request(put):
    path = put("r.csv", "user_id,item_id\n" + "".join(f"ann,{number}\n" for number in range(50)))
    (submission,) = read_requests(path, limit=1).submissions
    assert len(submission.request.pairs) == 50


def test_what_names_too_much_to_be_kept_is_refused(put, monkeypatch):
    monkeypatch.setattr(request_files, "_MOST_BYTES", 10_000)
    path = put("r.csv", "user_id,item_id\n" + "".join(f"ann,{number}\n" for number in range(50)))
    with pytest.raises(RequestError, match="names too much to be taken at a time, more than 25 rows do: split the file"):
        read_requests(path)


MEASURE = """
import sys
from pathlib import Path
from ray_eraser.errors import InputError
from ray_eraser.unlearning.request_files import read_requests
try:
    read_requests(Path(sys.argv[1]), partial=True)
except InputError as error:
    print(error)
# Not ru_maxrss: that of a new process begins with what the process had that started it.
status = Path("/proc/self/status").read_text().splitlines()
print(next(line.split()[1] for line in status if line.startswith("VmHWM")))
"""


def measured(path):
    done = subprocess.run([sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, check=True)
    said, kilobytes = done.stdout.splitlines()
    return said, int(kilobytes) / 1024


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("{0},\n", "holds at least 10001 requests"),  # 10 million users
        ("ann,{0}\n", "names too much to be taken at a time"),  # as many interactions of one user
        (",\n", "more than 10000 rows are at fault"),
    ],
)
def test_ten_million_rows_are_refused_within_little_memory(tmp_path, row, said):
    block = "".join(row.format(number) for number in range(500_000)).encode()
    with (tmp_path / "r.csv").open("wb") as stream:
        stream.write(b"user_id,item_id\n")
        for _ in range(20):
            stream.write(block)
    answer, megabytes = measured(tmp_path / "r.csv")
    assert said in answer
    assert megabytes < 300


def test_ten_million_rows_of_parquet_are_refused_within_little_memory(tmp_path):
    numbers = pa.array(range(1_000_000))
    table = pa.table({"user_id": pa.chunked_array([numbers] * 10), "item_id": pa.chunked_array([pa.nulls(1_000_000)] * 10)})
    pq.write_table(table, tmp_path / "r.parquet", row_group_size=10_000_000)
    answer, megabytes = measured(tmp_path / "r.parquet")
    assert "holds at least 10001 requests" in answer
    assert megabytes < 300


def test_a_line_without_end_is_refused_within_little_memory(tmp_path):
    path = tmp_path / "r.csv"
    path.write_bytes(b"user_id,item_id\n")
    os.truncate(path, 3 << 30)  # sparse: three gigabytes of NUL bytes
    answer, megabytes = measured(path)
    assert "line 2: ends a row of more than" in answer
    assert megabytes < 300
