from __future__ import annotations

import gzip
import json
import pickle
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_eraser.config import DataConfig
from ray_eraser.data.dataset import Dataset
from ray_eraser.data.files import read_dataset, write_dataset
from ray_eraser.errors import DataFileError

WHOLE = DataConfig()
PAPERS = DataConfig(test_share=0.2, valid_share=0.1)
"""What the papers hold out."""
U_DATA = b"196\t242\t3\t881250949\n186\t302\t4\t891717742\n196\t302\t1\t878887116\n"


def pairs(dataset, name="train"):
    """The raw pairs of one set, as a set."""
    part = getattr(dataset, name)
    return set(zip(dataset.users.raw(part.users), dataset.items.raw(part.items), strict=True))


def read(path, config=WHOLE, seed=1):
    return read_dataset(str(path), config, seed)


def refused(path, config=WHOLE):
    with pytest.raises(DataFileError) as caught:
        read(path, config)
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.fixture
def put(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = content.encode() if isinstance(content, str) else content
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return path

    return write


# The kinds of files.


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("u.data", U_DATA),
        ("u.data.gz", U_DATA),
        ("ratings.dat", U_DATA.replace(b"\t", b"::")),
        ("ratings.csv", b"userId,movieId,rating,timestamp\n" + U_DATA.replace(b"\t", b",")),
        ("log.csv", b"\xef\xbb\xbfwhen,item_id,user_id\r\n1,242,196\r\n\r\n2,302,186\r\n3,302,196\r\n"),
        ("log.tsv.gz", b"user_id\titem_id\n196\t242\n186\t302\n196\t302"),
        ("log.inter", b"user_id:token\titem_id:token\trating:float\n196\t242\t3\n186\t302\t4\n196\t302\t1\n"),
        ("log.inter", b"user_id:token\titem_id:token\n196\t242\n186\t302\n196\t302\n"),
    ],
)
def test_every_kind_of_text_file_gives_the_same_pairs(put, name, content):
    dataset = read(put(name, content))
    assert pairs(dataset) == {("196", "242"), ("186", "302"), ("196", "302")}
    assert set(dataset.users.ids) == {"186", "196"}
    assert set(dataset.items.ids) == {"242", "302"}


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())], ids=str
)
def test_parquet_ids_of_text_are_given_back_as_text(tmp_path, kind):
    users = pa.array(["196", "186"]).cast(kind)
    pq.write_table(pa.table({"item_id": ["a", "b"], "user_id": users}), tmp_path / "log.parquet")
    assert pairs(read(tmp_path / "log.parquet")) == {("196", "a"), ("186", "b")}


@pytest.mark.parametrize(
    "kind", [pa.int8(), pa.int32(), pa.int64(), pa.uint64(), pa.dictionary(pa.int8(), pa.int64())], ids=str
)
def test_parquet_ids_of_integers_are_given_back_as_integers(tmp_path, kind):
    users = pa.array([96, 86]).cast(kind.value_type if pa.types.is_dictionary(kind) else kind)
    users = users.dictionary_encode() if pa.types.is_dictionary(kind) else users
    pq.write_table(pa.table({"item_id": ["a", "b"], "user_id": users}), tmp_path / "log.parquet")
    dataset = read(tmp_path / "log.parquet")
    assert pairs(dataset) == {(96, "a"), (86, "b")}
    assert (dataset.users.integers, dataset.items.integers) == (True, False)


def test_integers_fill_64_bits_with_a_sign_or_without(tmp_path):
    users, items = pa.array([-(2**63), 2**63 - 1]), pa.array([2**64 - 1, 0], pa.uint64())
    pq.write_table(pa.table({"user_id": users, "item_id": items}), tmp_path / "log.parquet")
    dataset = read(tmp_path / "log.parquet")
    assert pairs(dataset) == {(-(2**63), 2**64 - 1), (2**63 - 1, 0)}
    write_dataset(dataset, tmp_path / "prepared", WHOLE)
    same(read(tmp_path / "prepared"), dataset)


def test_columns_are_taken_by_the_names_in_the_config(put):
    path = put("log.csv", "track,listener\n7,ann\n")
    config = WHOLE.model_copy(update={"user_column": "listener", "item_column": "track"})
    assert pairs(read(path, config)) == {("ann", "7")}


def test_quoted_fields_may_hold_commas_quotes_and_line_breaks(put):
    dataset = read(put("log.csv", 'user_id,item_id,note\n"a,b","say ""x""","two\nlines"\n"c\nd",y,\n'))
    assert pairs(dataset) == {("a,b", 'say "x"'), ("c\nd", "y")}


def test_a_folder_with_one_log_is_read_like_the_log(put, tmp_path):
    put("ml-100k/u.data", U_DATA)
    put("ml-100k/README", "terms")
    dataset = read(tmp_path / "ml-100k")
    assert len(dataset.train) == 3
    assert dataset.name == "ml-100k"


def test_the_ratings_of_movielens_are_found_among_its_other_tables(put, tmp_path):
    put("ml/ratings.csv", "userId,movieId,rating,timestamp\n1,2,3,4\n")
    put("ml/movies.csv", "movieId,title,genres\n2,Heat,Crime\n")
    assert pairs(read(tmp_path / "ml")) == {("1", "2")}


def test_a_folder_with_three_sets_keeps_them(put, tmp_path):
    put("log/train.txt", "0 5 6\n1 5\n2\n")
    put("log/valid.txt.gz", "0 7\n")
    put("log/test.txt", "1 8 9\n0\n")
    dataset = read(tmp_path / "log", DataConfig(test_share=0.5, valid_share=0.5))
    assert pairs(dataset, "train") == {("0", "5"), ("0", "6"), ("1", "5")}
    assert pairs(dataset, "valid") == {("0", "7")}
    assert pairs(dataset, "test") == {("1", "8"), ("1", "9")}
    assert set(dataset.users.ids) == {"0", "1"}
    assert dataset.merged == 0


LONG_TRAIN = "".join(f"{user} {' '.join(map(str, range(50)))}\n" for user in range(40))


def test_without_a_validation_file_only_that_is_held_out(put, tmp_path):
    put("log/train.txt", LONG_TRAIN)
    put("log/test.txt", "0 99\n")
    dataset = read(tmp_path / "log", DataConfig(test_share=0.5, valid_share=0.1))
    assert pairs(dataset, "test") == {("0", "99")}
    assert len(dataset.train) + len(dataset.valid) == 2000
    assert 130 < len(dataset.valid) < 270  # 200 with a standard deviation of 13


def test_with_a_training_file_alone_both_are_held_out(put, tmp_path):
    put("log/train.txt", LONG_TRAIN)
    dataset = read(tmp_path / "log", DataConfig(test_share=0.2, valid_share=0.1))
    assert len(dataset.train) + len(dataset.valid) + len(dataset.test) == 2000
    assert 310 < len(dataset.test) < 490  # 400 with a standard deviation of 18
    assert 90 < len(dataset.valid) < 230  # 160 with a standard deviation of 12


def test_with_training_and_validation_files_nothing_is_held_out(put, tmp_path):
    put("log/train.txt", LONG_TRAIN)
    put("log/valid.txt", "0 99\n")
    dataset = read(tmp_path / "log", DataConfig(test_share=0.5, valid_share=0.5))
    assert (len(dataset.train), len(dataset.valid), len(dataset.test)) == (2000, 1, 0)


def test_nothing_is_held_out_unless_the_config_asks_for_it(put, tmp_path):
    put("log/train.txt", LONG_TRAIN)
    dataset = read(tmp_path / "log", DataConfig())
    assert (len(dataset.train), len(dataset.valid), len(dataset.test)) == (2000, 0, 0)


def test_the_order_of_the_log_changes_nothing(put):
    rows = [f"{user},{item}" for user in range(20) for item in range(20)]
    forward = put("a.csv", "\n".join(["user_id,item_id", *rows]))
    backward = put("b.csv", "\n".join(["user_id,item_id", *reversed(rows)]))
    one, other = read(forward, PAPERS), read(backward, PAPERS)
    for name in ("train", "valid", "test"):
        assert pairs(one, name) == pairs(other, name)
    same(replace(one, name=other.name), other)


# What is merged, left out, and how ids are taken.


def test_repeated_pairs_are_merged_and_counted(put):
    dataset = read(put("log.csv", "user_id,item_id\n1,2\n1,2\n1,3\n1,2\n"))
    assert pairs(dataset) == {("1", "2"), ("1", "3")}
    assert dataset.merged == 2


def test_a_pair_in_several_sets_stays_in_the_first_of_them(put, tmp_path):
    put("log/train.txt", "0 1 2\n")
    put("log/valid.txt", "0 2 3\n")
    put("log/test.txt", "0 1 3 4\n")
    dataset = read(tmp_path / "log")
    assert [pairs(dataset, name) for name in ("train", "valid", "test")] == [
        {("0", "1"), ("0", "2")},
        {("0", "3")},
        {("0", "4")},
    ]
    assert dataset.merged == 3


def test_rows_under_the_lowest_rating_are_left_out_and_counted(put):
    dataset = read(put("u.data", U_DATA), WHOLE.model_copy(update={"min_rating": 3}))
    assert pairs(dataset) == {("196", "242"), ("186", "302")}
    assert (dataset.below_rating, dataset.merged) == (1, 0)


def test_parquet_rows_under_the_lowest_rating_are_left_out(tmp_path):
    pq.write_table(pa.table({"user_id": [1, 2], "item_id": [3, 4], "rating": [0.5, 4]}), tmp_path / "log.parquet")
    dataset = read(tmp_path / "log.parquet", WHOLE.model_copy(update={"min_rating": 1}))
    assert pairs(dataset) == {(2, 4)}
    assert dataset.users.ids == (2,)


@pytest.mark.parametrize("odd", ["007", "+7", "-0", "7.0", "x", "9223372036854775808", " 7"])
def test_what_only_looks_like_a_number_is_an_id_of_its_own(put, odd):
    dataset = read(put("log.csv", f"user_id,item_id\n1,{odd}\n10,7\n-5,0\n"))
    assert pairs(dataset) == {("1", odd), ("10", "7"), ("-5", "0")}


def test_an_id_has_its_key_whatever_other_ids_a_log_has(put):
    few, more = (read(put(name, f"user_id,item_id\n1,2\n{rows}")) for name, rows in (("a.csv", ""), ("b.csv", "guest-7,x\n")))
    assert few.users.key("1") == more.users.key("1") == few.users.key(1)


# What is refused.


@pytest.mark.parametrize(
    ("name", "content", "line", "problem"),
    [
        ("u.data", "1\t2\t3\t4\n1\t2\n", 2, "2 fields, expected 4"),
        ("u.data", "1\t2\t3\t4\n\n\t2\t3\t4\n", 3, "the user id is empty"),
        ("ratings.dat", "1::2::3::4\n1:2:3:4\n", 2, "1 fields, expected 4"),
        ("log.csv", 'user_id,item_id,note\n1,2,"two\nlines"\n1,,\n', 4, "the item id is empty"),
        ("log.csv", "user_id,item_id\n1,2\n1,2,3\n", 3, "3 fields, expected 2"),
        ("log.csv", 'user_id,item_id\n1,2\n1,"3\n1,4\n', 3, "is a quote not closed?"),
        ("log.csv", 'user_id,item_id\n1,2\n1,"3\n1,4\n1,"5\n', 3, "is a quote not closed?"),
        ("log.csv", "user_id,item_id\n1,2\n1,a\0b\n", 3, "holds a NUL byte"),
        ("log.csv", f"user_id,item_id\n1,{'x' * 1000}\n1,{'x' * 1001}\n", 3, "the item id has 1001 characters"),
        ("log.csv", b"user_id,item_id\n1,2\n1,caf\xe9\n", 3, "byte 0xe9 is not UTF-8"),
    ],
)
def test_a_bad_row_is_refused_with_its_line(put, name, content, line, problem):
    error = refused(put(name, content))
    assert error.line == line
    assert problem in str(error)


@pytest.mark.parametrize(
    ("content", "line", "problem"),
    [
        ("0 1\n\n1 a\0b\n", 3, "the item id 'a\\x00b' holds a NUL"),
        ("0 1\n1\0 2\n", 2, "the user id '1\\x00' holds a NUL"),
        (f"0 1\n2\n1 2 {'x' * 1001}", 3, "1001 characters"),
        (b"0 1\n1 \xff\n", 2, "UTF-8"),
    ],
)
def test_a_bad_line_of_a_user_is_refused_with_its_number(put, tmp_path, content, line, problem):
    put("log/train.txt", content)
    error = refused(tmp_path / "log")
    assert error.line == line
    assert problem in str(error)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("u.data", b"", "is empty"),
        ("u.data.gz", b"", "is empty"),
        ("log.csv", b"\n\n", "is empty"),
        ("log.csv", b"user_id,item_id\n", "holds no interaction"),
        ("log.csv", b"user,item_id,rating\n1,2,3\n", "no column 'user_id' but user, item_id, rating: set data.user_column"),
        ("log.csv", b"user_id,item\n1,2\n", "no column 'item_id' but user_id, item: set data.item_column"),
        ("log.csv", b"user_id,item_id,user_id\n1,2,3\n", "2 columns 'user_id'"),
        ("log.inter", b"uid:token\titem_id:token\n1\t2\n", "no column 'user_id' but uid, item_id"),
        ("log.json", b"{}", "no column 'user_id' but"),
        ("log.xlsx", b"PK", "known are"),
        ("log.parquet", b"PAR1 and then nothing", "not a sound Parquet file"),
    ],
)
def test_a_file_that_cannot_be_a_log_is_refused_with_the_reason(put, name, content, problem):
    assert problem in str(refused(put(name, content)))


def test_a_missing_path_is_refused(tmp_path):
    assert "no such file or folder" in str(refused(tmp_path / "nowhere"))


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: data[:30] + b"\0\0\0" + data[33:], lambda _: U_DATA])
def test_damaged_gzip_data_is_refused(tmp_path, damage):
    path = tmp_path / "u.data.gz"
    path.write_bytes(damage(gzip.compress(U_DATA)))
    assert "copy it again" in str(refused(path))


def test_a_folder_without_a_log_is_refused_with_the_known_kinds(put, tmp_path):
    put("log/README.md", "hello")
    assert "ratings.dat" in str(refused(tmp_path / "log"))


def test_a_folder_with_several_logs_is_refused_with_their_names(put, tmp_path):
    put("log/a.csv", "user_id,item_id\n1,2\n")
    put("log/b.inter", "user_id:token\titem_id:token\n1\t2\n")
    assert "a.csv, b.inter" in str(refused(tmp_path / "log"))


def test_a_lowest_rating_needs_ratings(put, tmp_path):
    rated = WHOLE.model_copy(update={"min_rating": 3})
    put("log/train.txt", "0 1\n")
    assert "no ratings" in str(refused(tmp_path / "log", rated))
    assert "no column 'rating' but user_id, item_id" in str(refused(put("log.csv", "user_id,item_id\n1,2\n"), rated))


def test_a_lowest_rating_that_no_row_reaches_is_refused(put):
    assert "the highest is 4" in str(refused(put("u.data", U_DATA), WHOLE.model_copy(update={"min_rating": 5})))


def test_a_training_file_without_any_pair_is_refused(put, tmp_path):
    put("log/train.txt", "0\n1\n")
    assert "no pair is left to train on" in str(refused(tmp_path / "log"))


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ({"user_id": [1, None, None], "item_id": [1, 2, 3]}, "row 2: the user id is empty, in 2 of 3 rows"),
        ({"user_id": [1.0, 2.5], "item_id": [1, 2]}, "row 2: the user id 2.5 is no whole number"),
        ({"user_id": [True, False], "item_id": [1, 2]}, "column 'user_id' is bool"),
        ({"user_id": ["a", ""], "item_id": [1, 2]}, "row 2: the user id is empty"),
        ({"user_id": [1, 2], "thing": [1, 2]}, "no column 'item_id' but user_id, thing"),
        ({"user_id": pa.array([], pa.int64()), "item_id": pa.array([], pa.int64())}, "holds no interaction"),
    ],
)
def test_a_bad_parquet_column_is_refused_with_the_reason(tmp_path, columns, problem):
    pq.write_table(pa.table(columns), tmp_path / "log.parquet")
    assert problem in str(refused(tmp_path / "log.parquet"))


def test_a_truncated_parquet_file_is_refused(tmp_path):
    path = tmp_path / "log.parquet"
    pq.write_table(pa.table({"user_id": [1, 2], "item_id": [1, 2]}), path)
    path.write_bytes(path.read_bytes()[:-20])
    assert "not a sound Parquet file" in str(refused(path))


def test_the_error_crosses_process_borders_whole(put):
    error = refused(put("u.data", "1\t2\t3\t4\n1\t2\n"))
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


# Prepared folders.


def same(one, other):
    """The same log in the same rows."""
    assert (one.name, one.merged, one.below_rating) == (other.name, other.merged, other.below_rating)
    for mine, theirs in ((one.users, other.users), (one.items, other.items)):
        assert (mine.ids, mine.keys.tolist(), mine.integers) == (theirs.ids, theirs.keys.tolist(), theirs.integers)
    for name in ("train", "valid", "test"):
        assert getattr(one, name).codes().tolist() == getattr(other, name).codes().tolist()


@pytest.mark.parametrize(
    "config", [WHOLE, DataConfig(test_share=0.3, valid_share=0.3), WHOLE.model_copy(update={"min_rating": 2})]
)
def test_a_prepared_dataset_reads_back_as_it_was(put, tmp_path, config):
    rows = [f"{user}\t{user * item}\t{(user + item) % 5}\t0\n" for user in range(1, 30) for item in range(20)]
    dataset = read(put("u.data", "".join([*rows, rows[0]])), config)
    write_dataset(dataset, tmp_path / "prepared", config)
    same(read(tmp_path / "prepared", config), dataset)
    same(read(tmp_path / "prepared", PAPERS, seed=9), dataset.under(9))


@pytest.mark.parametrize(
    "users", [("1", "10", "2"), (1, 10, 2), (1, 2**64 - 1, 2), (1, "guest-7", 2)], ids=["text", "integers", "unsigned", "mixed"]
)
def test_ids_of_a_prepared_dataset_are_given_back_as_they_were(tmp_path, users):
    dataset = Dataset.of_pairs("odd", [(user, "3") for user in users], seed=1)
    write_dataset(dataset, tmp_path / "prepared", WHOLE)
    same(read(tmp_path / "prepared"), dataset)


def test_what_is_held_out_for_the_test_alone_is_in_no_vocabulary_of_what_is_learned():
    log = Dataset.of_pairs("log", [("ann", 1), ("bob", 2)], valid=[("cy", 2)], test=[("ann", 2), ("di", 3)])
    learned = log.learned()
    assert set(learned.users.ids) == {"ann", "bob", "cy"}
    assert set(learned.items.ids) == {1, 2}
    assert [pairs(learned, name) for name in ("train", "valid", "test")] == [{("ann", 1), ("bob", 2)}, {("cy", 2)}, set()]
    assert learned.users.keys.tolist() == [log.users.key(raw) for raw in learned.users.ids]


def test_a_log_in_memory_keeps_a_pair_in_the_first_set_that_has_it_and_counts_what_is_repeated():
    log = Dataset.of_pairs("log", [(1, 1), ("1", 1), (2, 1)], valid=[(1, 1), (3, 3)], test=[(3, 3), (3, 4)])
    assert [pairs(log, name) for name in ("train", "valid", "test")] == [{("1", 1), ("2", 1)}, {("3", 3)}, {("3", 4)}]
    assert log.merged == 3


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9))),
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9))),
    st.integers(0, 5),
)
def test_under_another_seed_a_log_is_as_if_it_had_come_under_it(train, test, seed):
    moved = Dataset.of_pairs("log", train, 1, test=test).under(seed)
    same(moved, Dataset.of_pairs("log", train, seed, test=test))


def test_a_prepared_dataset_can_be_replaced_by_another(put, tmp_path):
    one, other = read(put("u.data", U_DATA)), read(put("log.csv", "user_id,item_id\na,b\n"))
    write_dataset(one, tmp_path / "prepared", WHOLE)
    write_dataset(other, tmp_path / "prepared", WHOLE)
    same(read(tmp_path / "prepared"), other)
    assert sorted(path.name for path in (tmp_path / "prepared").iterdir()) == [
        "dataset.json",
        "test.parquet",
        "train.parquet",
        "valid.parquet",
    ]


def test_a_prepared_dataset_is_not_read_with_another_lowest_rating(put, tmp_path):
    write_dataset(read(put("u.data", U_DATA)), tmp_path / "prepared", WHOLE)
    error = refused(tmp_path / "prepared", WHOLE.model_copy(update={"min_rating": 4}))
    assert "was prepared with data.min_rating None, not 4" in str(error)


def test_a_prepared_dataset_with_an_exchanged_file_is_refused(put, tmp_path):
    write_dataset(read(put("u.data", U_DATA)), tmp_path / "prepared", WHOLE)
    pq.write_table(pa.table({"user_id": [196], "item_id": [242]}), tmp_path / "prepared" / "train.parquet")
    assert "prepare it again" in str(refused(tmp_path / "prepared"))


def test_a_prepared_dataset_without_one_of_its_files_is_refused(put, tmp_path):
    write_dataset(read(put("u.data", U_DATA)), tmp_path / "prepared", WHOLE)
    (tmp_path / "prepared" / "test.parquet").unlink()
    assert "test.parquet" in str(refused(tmp_path / "prepared"))


@pytest.mark.parametrize("text", ["", "[]", "{}", json.dumps({"name": "x"}), "\xff"])
def test_a_damaged_description_of_a_prepared_dataset_is_refused(put, tmp_path, text):
    write_dataset(read(put("u.data", U_DATA)), tmp_path / "prepared", WHOLE)
    (tmp_path / "prepared" / "dataset.json").write_text(text, "latin-1")
    assert "prepare it again" in str(refused(tmp_path / "prepared"))


# The papers' data.


@pytest.mark.data
def test_movielens_1m_has_the_papers_counts(data_folder):
    dataset = read(data_folder / "ml-1m", PAPERS)
    assert (len(dataset.users), len(dataset.items)) == (6040, 3706)
    assert (len(dataset.train), len(dataset.valid), len(dataset.test)) == (720_152, 80_016, 200_041)
    assert dataset.merged == 0


@pytest.mark.data
def test_movielens_100k_has_its_published_counts(data_folder):
    dataset = read(data_folder / "ml-100k")
    assert (len(dataset.users), len(dataset.items), len(dataset.train), dataset.merged) == (943, 1682, 100_000, 0)


@pytest.mark.data
def test_yelp2018_has_the_papers_counts_and_a_tenth_of_train_held_out(data_folder):
    dataset = read(data_folder / "yelp2018", PAPERS)
    assert (len(dataset.users), len(dataset.items)) == (31_668, 38_048)
    assert (len(dataset.train) + len(dataset.valid), len(dataset.test)) == (1_237_259, 324_147)
    assert len(dataset.valid) / 1_237_259 == pytest.approx(0.1, abs=0.002)
    assert dataset.merged == 0
