"""Logs as other programs leave them: read as they are meant, or refused with the way out, and never fewer rows in silence."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_eraser.config import DataConfig, changed, config_from
from ray_eraser.data.files import dataset_of_log, read_dataset, time_of_newest, write_dataset
from ray_eraser.data.fragments import in_fragments
from ray_eraser.data.parquet import log_of_table
from ray_eraser.errors import ConfigError, DataFileError

PAIRS = [(user, item) for user in range(1, 9) for item in range(100 + user, 104 + user)]
"""32 pairs of 8 users."""
TEXTS = {(str(user), str(item)) for user, item in PAIRS}


def read(path, **settings):
    return read_dataset(str(path), DataConfig(**settings), 1)


def refused(path, **settings):
    with pytest.raises(DataFileError) as caught:
        read(path, **settings)
    return caught.value


def pairs(dataset, name="train"):
    part = getattr(dataset, name)
    return set(zip(dataset.users.raw(part.users), dataset.items.raw(part.items), strict=True))


@pytest.fixture
def put(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def table(rows=PAIRS, header="user_id,item_id", delimiter=","):
    """A text table of rows, with a header unless it is empty."""
    lines = [delimiter.join(map(str, row)) for row in rows]
    return "\n".join([*([header.replace(",", delimiter)] if header else []), *lines]) + "\n"


# ---- quotes ---------------------------------------------------------------------------------------------------------------


def titled(first, last, delimiter):
    rows = [(user, item, f"Track {item}") for user, item in PAIRS]
    rows[3], rows[-3] = (*PAIRS[3], first), (*PAIRS[-3], last)
    return table(rows, "user_id,item_id,title", delimiter)


@pytest.mark.parametrize(("first", "last"), [('"Helden', 'Helden"'), ('12" mix', '7" mix'), ('"', '"'), ('"', "Track 9")])
def test_a_quote_in_a_tsv_file_is_a_character(put, first, last):
    dataset = read(put("plays.tsv", titled(first, last, "\t")))
    assert pairs(dataset) == TEXTS
    assert dataset.rows_read == 32


def test_whole_quoted_fields_of_a_tsv_file_are_unquoted(put):
    rows = [(f'"{user}"', f'"{item}"', '"say ""x"""') for user, item in PAIRS]
    assert pairs(read(put("plays.tsv", table(rows, "user_id,item_id,note", "\t")))) == TEXTS


def test_a_quoted_field_of_a_csv_file_that_swallows_rows_is_refused_with_the_line_of_its_quote(put):
    error = refused(put("plays.csv", titled('"Helden', 'Helden"', ",")))
    assert error.line == 5  # the header, three rows, then the quote
    assert "runs over 27 lines, and they look like rows" in str(error)


def test_a_quoted_field_that_swallows_one_row_alone_is_refused(put):
    error = refused(put("plays.csv", 'user_id,item_id,title\n1,2,a\n1,3,"b\n1,4,c"\n1,5,d\n'))
    assert (error.line, "look like rows" in str(error)) == (3, True)


def test_a_quoted_field_over_several_lines_of_prose_is_read_and_said(put):
    text = "Great phone,\nfast, light\nand, really, cheap.\n\nBuy it"
    dataset = read(put("reviews.csv", f'user_id,item_id,text\n1,2,short\n1,3,"{text}"\n2,3,"one\nline"\n'))
    assert pairs(dataset) == {("1", "2"), ("1", "3"), ("2", "3")}
    assert dataset.rows_read == 3
    assert "2 rows have a quoted field over several lines; the longest has 5 lines from line 3 on" in dataset.notices


# ---- train.txt with something else than lists -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([f"{user} {item} {1 + item % 5}" for user, item in PAIRS], "user item rating"),
        ([f"{user}\t{item}\t{1 + item % 5}\t{881250949 + item}\r" for user, item in PAIRS], "user item rating time"),
        ([f"{user}::{item}::{1 + item % 5}" for user, item in PAIRS], "user item rating"),
        ([f"{user},{item},4.5" for user, item in PAIRS], "user item rating"),
        (["user item rating", *(f"{user} {item} 5" for user, item in PAIRS)], "user item rating"),
    ],
)
def test_ratings_and_times_in_train_txt_are_no_items(put, tmp_path, lines, said):
    put("log/train.txt", "\n".join(lines))
    put("log/test.txt", "\n".join(line.replace("1", "2", 1) for line in lines[-1:]))
    dataset = read(tmp_path / "log")
    assert pairs(dataset) == TEXTS
    assert f"each line is read as {said}" in dataset.notices
    assert dataset.rows_read == 33


def test_rows_of_train_txt_can_be_left_out_by_their_rating_and_split_by_their_time(put, tmp_path):
    put("log/train.txt", "".join(f"{user} {item} {item % 5} {1000 + item}\n" for user, item in PAIRS))
    dataset = read(tmp_path / "log", min_rating=1, test_from=1110)
    kept = [(user, item) for user, item in PAIRS if item % 5 >= 1]
    assert pairs(dataset) == {(str(u), str(i)) for u, i in kept if i < 110}
    assert pairs(dataset, "test") == {(str(u), str(i)) for u, i in kept if i >= 110}
    assert dataset.left_out == {"rated below data.min_rating": 32 - len(kept)}


@pytest.mark.parametrize("colon", [":", ": "])
def test_a_colon_after_the_user_is_no_part_of_the_id(put, tmp_path, colon):
    put("log/train.txt", f"1{colon}5 6\n2{colon}5\n3{colon}7 8 9\n")
    dataset = read(tmp_path / "log")
    assert pairs(dataset) == {("1", "5"), ("1", "6"), ("2", "5"), ("3", "7"), ("3", "8"), ("3", "9")}
    assert "each line is read as user:items" in dataset.notices


def test_a_colon_within_ids_stays(put, tmp_path):
    put("log/train.txt", "u:1 i:5 i:6\nu:2 i:5\n")
    put("more/train.txt", "u:1 5 6\nu:2 5\n")
    assert pairs(read(tmp_path / "log")) == {("u:1", "i:5"), ("u:1", "i:6"), ("u:2", "i:5")}
    assert pairs(read(tmp_path / "more")) == {("u:1", "5"), ("u:1", "6"), ("u:2", "5")}


@pytest.mark.parametrize("header", ["user_id item_id", "org_id remap_id", "user items"])
def test_a_header_line_of_train_txt_is_no_user(put, tmp_path, header):
    put("log/train.txt", f"{header}\n1 5 6\n2 5\n3 7 8 9\n")
    dataset = read(tmp_path / "log")
    assert set(dataset.users.ids) == {"1", "2", "3"}
    assert "the first line is read as a header" in dataset.notices


@pytest.mark.parametrize(
    "lines",
    [
        [f"{user} {100 + user} 4" for user in range(20)],  # leave-one-out: nobody twice
        [f"{user} {item} a" for user, item in PAIRS],
        [f"{user} {item} 4 881250949 x" for user, item in PAIRS],
    ],
)
def test_lines_that_may_be_lists_or_interactions_are_refused_with_the_way_out(put, tmp_path, lines):
    put("log/train.txt", "\n".join(lines))
    assert "with a header such as user_id,item_id,rating" in str(refused(tmp_path / "log"))


def test_a_test_file_of_another_format_than_the_training_file_is_refused(put, tmp_path):
    put("log/train.txt", "".join(f"{user} {item} 4\n" for user, item in PAIRS))
    put("log/test.txt", "1 5 4\n2 5 6 7\n")
    error = refused(tmp_path / "log")
    assert (error.path.endswith("test.txt"), error.line) == (True, 2)


def test_lists_that_happen_to_be_short_stay_lists(put, tmp_path):
    put("log/train.txt", "1 5 6\n2 5 7\n3 6 8\n")
    assert len(read(tmp_path / "log").train) == 6


# ---- ids spelled otherwise ------------------------------------------------------------------------------------------------


def test_whole_numbers_that_a_csv_file_has_as_floats_are_read_as_whole_numbers(put):
    dataset = read(put("orders.csv", table([(f"{user}.0", f"{item:05}") for user, item in PAIRS])))
    assert pairs(dataset) == {(str(user), f"{item:05}") for user, item in PAIRS}
    assert dataset.notices == ("column 'user_id': ids are whole numbers saved as floats (.0) and are read as whole numbers",)


def test_whole_numbers_that_a_parquet_file_has_as_floats_are_read_as_whole_numbers(tmp_path):
    users, items = zip(*PAIRS, strict=True)
    pq.write_table(pa.table({"user_id": pa.array(users, pa.float64()), "item_id": items}), tmp_path / "log.parquet")
    dataset = read(tmp_path / "log.parquet")
    assert pairs(dataset) == set(PAIRS)
    assert dataset.notices == ("column 'user_id': ids are whole numbers saved as floats (.0) and are read as whole numbers",)


def test_decimals_of_a_database_are_whole_numbers_too(tmp_path):
    users, items = zip(*PAIRS, strict=True)
    columns = {"user_id": pa.array(users, pa.int64()).cast(pa.decimal128(38, 0)), "item_id": items}
    pq.write_table(pa.table(columns), tmp_path / "log.parquet")
    assert pairs(read(tmp_path / "log.parquet")) == set(PAIRS)


@pytest.mark.parametrize("odd", ["8.5", "guest", "8"])
def test_ids_of_which_only_some_look_like_floats_stay_as_they_are(put, odd):
    dataset = read(put("orders.csv", table([("7.0", "1"), (odd, "2")])))
    assert set(dataset.users.ids) == {"7.0", odd}
    assert any("they stay as they are" in notice for notice in dataset.notices)


def test_a_float_that_may_have_been_rounded_is_refused(put, tmp_path):
    path = put("orders.csv", table([("7.0", "1"), ("9007199254740994.0", "2")]))
    pq.write_table(pa.table({"user_id": [7.0, 2.0**53 + 2], "item_id": [1, 2]}), tmp_path / "log.parquet")
    assert ("over 2**53" in str(refused(path)), refused(path).line) == (True, 3)
    assert "over 2**53" in str(refused(tmp_path / "log.parquet"))


@pytest.mark.parametrize("blank", ["", "  ", "nan", "NaN", "None", "null", "NULL", "<NA>", "\\N"])
@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl"])
def test_rows_without_an_id_are_refused_with_their_number_or_passed_over_and_counted(tmp_path, blank, kind):
    rows = [("ann", "1"), (blank, "2"), ("bob", "3"), (blank, "4"), ("bob", blank)]
    path = tmp_path / f"log.{kind}"
    if kind == "csv":
        path.write_text(table(rows))
    elif kind == "jsonl":
        path.write_text("".join(json.dumps({"user_id": user, "item_id": item}) + "\n" for user, item in rows))
    else:
        users, items = zip(*rows, strict=True)
        pq.write_table(pa.table({"user_id": users, "item_id": items}), path)
    error = refused(path)
    assert "in 2 of 5 rows: set data.blank_ids=skip" in str(error)
    assert error.line == {"csv": 3, "jsonl": 2, "parquet": None}[kind]
    dataset = read(path, blank_ids="skip")
    assert pairs(dataset) == {("ann", "1"), ("bob", "3")}
    assert (dataset.rows_read, dataset.left_out) == (5, {"blank user id": 2, "blank item id": 1})


def test_missing_values_are_blank_ids_whatever_the_type_of_the_column(tmp_path):
    columns = {"user_id": [1, None, 3], "item_id": [1.0, 2.0, float("nan")]}
    pq.write_table(pa.table(columns), tmp_path / "log.parquet")
    (tmp_path / "log.jsonl").write_text('{"user_id":1,"item_id":1}\n{"item_id":2.0}\n{"user_id":3,"item_id":null}\n')
    for name in ("log.parquet", "log.jsonl"):
        dataset = read(tmp_path / name, blank_ids="skip")
        assert pairs(dataset) == {(1, 1)}
        assert dataset.left_out == {"blank user id": 1, "blank item id": 1}


def test_a_word_for_nothing_can_be_kept_as_an_id_and_a_blank_cannot(put):
    rows = [("None", "1"), ("ann", "null")]
    assert pairs(read(put("log.csv", table(rows)), blank_ids="keep")) == {("None", "1"), ("ann", "null")}
    assert "data.blank_ids=keep takes the word for an id" in str(refused(put("log.csv", table(rows))))
    assert "the user id is empty" in str(refused(put("log.csv", table([("", "1")])), blank_ids="keep"))


def test_a_log_of_blank_ids_alone_is_refused_with_the_reason(put):
    error = refused(put("log.csv", table([("", "1"), ("", "2")])), blank_ids="skip")
    assert "every row was left out (2 blank user id)" in str(error)


# ---- ratings that nobody asked for ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rating", ["-1", "", "4,0", "good", "nan"])
def test_ratings_are_looked_at_only_with_a_lowest_rating(put, rating):
    path = put("log.tsv", table([(1, 2, 5), (1, 3, rating)], "user_id,item_id,rating", "\t"))
    assert pairs(read(path)) == {("1", "2"), ("1", "3")}
    error = refused(path, min_rating=3)
    assert error.line == 3
    assert "leave data.min_rating out to keep every row" in str(error)


@pytest.mark.parametrize("ratings", [[5.0, None], [5.0, -2.0], [5.0, float("nan")], [True, False], ["5", "good"]])
def test_ratings_of_a_parquet_file_are_looked_at_only_with_a_lowest_rating(tmp_path, ratings):
    pq.write_table(pa.table({"user_id": [1, 1], "item_id": [2, 3], "rating": ratings}), tmp_path / "log.parquet")
    assert pairs(read(tmp_path / "log.parquet")) == {(1, 2), (1, 3)}
    assert "leave data.min_rating out" in str(refused(tmp_path / "log.parquet", min_rating=3))


@pytest.mark.parametrize("name", ["u.data", "ratings.dat", "ratings.csv", "log.inter"])
def test_a_bad_rating_is_refused_with_its_line_in_every_kind_of_table(put, name):
    header = {"ratings.csv": "userId,movieId,rating,timestamp", "log.inter": "user_id:token,item_id:token,rating:float,time"}
    delimiter = {"u.data": "\t", "ratings.dat": "::", "ratings.csv": ",", "log.inter": "\t"}[name]
    path = put(name, table([(1, 2, 3, 4), (1, 3, "inf", 4)], header.get(name, ""), delimiter))
    assert len(read(path).train) == 2
    error = refused(path, min_rating=1)
    assert (error.line, "rating 'inf'" in str(error)) == (3 if name in header else 2, True)


# ---- folders --------------------------------------------------------------------------------------------------------------


def day(path, rows, **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    users, items = zip(*rows, strict=True)
    pq.write_table(pa.table({"user_id": users, "item_id": items, **more}), path)


def test_a_day_without_rows_is_passed_over(tmp_path):
    day(tmp_path / "days" / "1.parquet", PAIRS[:16])
    day(tmp_path / "days" / "3.parquet", PAIRS[16:])
    nothing = pa.array([], pa.null())
    pq.write_table(pa.table({"user_id": nothing, "item_id": nothing}), tmp_path / "days" / "2.parquet")
    pq.write_table(pa.table({}), tmp_path / "days" / "4.parquet")
    dataset = read(tmp_path / "days")
    assert pairs(dataset) == set(PAIRS)  # still integers
    assert dataset.notices == ("4 files are read as the parts of one log", "files without rows were passed over")


def test_hive_folders_are_read_and_give_columns(tmp_path):
    for user in range(1, 9):
        items = [item for own, item in PAIRS if own == user]
        folder = tmp_path / "log" / f"dt=2024-03-0{user}" / f"user_id={user}"
        folder.mkdir(parents=True)
        pq.write_table(pa.table({"item_id": items}), folder / "part-0.snappy.parquet")
    (tmp_path / "log" / "_SUCCESS").touch()
    (tmp_path / "log" / "dt=2024-03-01" / ".part-0.snappy.parquet.crc").write_bytes(b"crc")
    dataset = read(tmp_path / "log", time_column="dt", test_from="2024-03-07")
    assert pairs(dataset) == {(str(user), item) for user, item in PAIRS if user < 7}
    assert pairs(dataset, "test") == {(str(user), item) for user, item in PAIRS if user >= 7}


def test_a_hive_folder_for_no_value_is_a_blank_id(tmp_path):
    for name in ("7", "__HIVE_DEFAULT_PARTITION__"):
        folder = tmp_path / "log" / f"user_id={name}"
        folder.mkdir(parents=True)
        pq.write_table(pa.table({"item_id": [1, 2]}), folder / "0.parquet")
    assert read(tmp_path / "log", blank_ids="skip").left_out == {"blank user id": 2}


def test_files_at_the_top_and_in_subfolders_are_all_read(tmp_path):
    day(tmp_path / "days" / "now.parquet", PAIRS[:16])
    day(tmp_path / "days" / "2023" / "old.parquet", PAIRS[16:])
    assert pairs(read(tmp_path / "days")) == set(PAIRS)
    assert in_fragments(str(tmp_path / "days"))


@pytest.mark.parametrize("other", ["old/more.csv", "more.parquet"])
def test_tables_that_are_not_parts_of_one_log_are_refused_with_their_names(put, tmp_path, other):
    put("log/now.csv", table())
    put(f"log/{other}", table(header="item_id,user_id"))
    error = str(refused(tmp_path / "log"))
    assert "now.csv" in error
    assert other in error


def test_text_files_with_one_header_are_the_parts_of_one_log(put, tmp_path):
    put("log/part-0.csv", table(PAIRS[:16]))
    put("log/part-1.csv", table(PAIRS[16:]))
    put("log/_SUCCESS", "")
    dataset = read(tmp_path / "log")
    assert pairs(dataset) == TEXTS
    assert dataset.notices == ("2 files are read as the parts of one log",)


def test_files_named_as_sets_are_not_parts_of_one_log(put, tmp_path):
    put("log/train.csv", table(PAIRS[:16]))
    put("log/test.csv", table(PAIRS[16:]))
    assert "rename the files if they are parts of one log" in str(refused(tmp_path / "log"))


def test_linked_folders_are_searched_too_and_a_loop_ends(put, tmp_path):
    put("log/new.csv", table(PAIRS[:16]))
    put("archive/old.csv", table(PAIRS[16:]))
    (tmp_path / "log" / "archive").symlink_to(tmp_path / "archive")
    (tmp_path / "archive" / "again").symlink_to(tmp_path / "log")
    dataset = read(tmp_path / "log")
    assert (pairs(dataset), dataset.rows_read) == (TEXTS, 32)


def test_a_packed_table_beside_others_is_not_passed_over(put, tmp_path):
    put("log/may.csv", table(PAIRS[:16]))
    put("log/old/april.csv.zip", b"PK")
    assert "holds old/april.csv.zip, which is packed: unpack it" in str(refused(tmp_path / "log"))
    put("other/may.csv", table())
    put("other/pictures.zip", b"PK")
    assert pairs(read(tmp_path / "other")) == TEXTS


def test_json_beside_json_lines_is_named(put, tmp_path):
    lines = [json.dumps({"user_id": str(user), "item_id": str(item)}) + "\n" for user, item in PAIRS]
    put("log/may.jsonl", "".join(lines[:16]))
    put("log/april.json", "".join(lines[16:]))
    assert read(tmp_path / "log").notices == (
        "passed over: april.json; rename such files to end in .jsonl if they are parts of the log",
    )


def test_tables_beside_the_ratings_of_movielens_are_named(put, tmp_path):
    put("ml/ratings.csv", "userId,movieId,rating,timestamp\n1,2,3,4\n")
    put("ml/movies.csv", "movieId,title\n2,Heat\n")
    assert read(tmp_path / "ml").notices == ("of the folder, ratings.csv is the log; passed over: movies.csv",)


@pytest.mark.parametrize(
    ("marker", "kind"), [("_delta_log/0.json", "Delta Lake"), (".hoodie/x", "Hudi"), ("metadata/v1.metadata.json", "Iceberg")]
)
def test_a_table_whose_files_hold_deleted_rows_is_refused(put, tmp_path, marker, kind):
    day(tmp_path / "log" / "part-0.parquet", PAIRS)
    put(f"log/{marker}", "{}")
    assert f"is a {kind} table, whose files also hold deleted rows" in str(refused(tmp_path / "log"))


# ---- columns --------------------------------------------------------------------------------------------------------------

RATINGS = "userId,movieId,rating,timestamp,tmdbId,householdId\n1,60,4.0,964982703,60060,H0\n2,61,1.0,964982704,60061,H1\n"


def test_columns_that_are_set_count_more_than_the_name_of_the_file(put):
    path = put("ratings.csv", RATINGS)
    assert pairs(read(path)) == {("1", "60"), ("2", "61")}
    assert pairs(read(path, user_column="householdId", item_column="tmdbId")) == {("H0", "60060"), ("H1", "60061")}
    assert pairs(read(path, item_column="tmdbId", min_rating=2)) == {("1", "60060")}
    assert pairs(read(path, rating_column="timestamp", min_rating=964982704)) == {("2", "61")}
    assert pairs(read(path, time_column="tmdbId", test_from=60061)) == {("1", "60")}
    assert "no column 'stars'" in str(refused(path, rating_column="stars", min_rating=2))


@pytest.mark.parametrize("name", ["u.data", "ratings.dat"])
def test_columns_that_are_set_are_looked_for_in_the_header_of_any_file(put, name):
    delimiter = "\t" if name == "u.data" else "::"
    path = put(name, table([(1, 2, 3, "H7"), (1, 3, 4, "H8")], "user_id,movie,stars,household", delimiter))
    assert pairs(read(path, user_column="household", item_column="movie")) == {("H7", "2"), ("H8", "3")}
    bare = put(name, table([(1, 2, 3, 4)], "", delimiter))
    assert "no column 'household' but user, item, rating, time" in str(refused(bare, user_column="household"))


# ---- header lines ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "delimiter"), [("all.csv", ","), ("all.tsv", "\t"), ("all.inter", "\t")])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_header_line_in_the_middle_is_passed_over_and_counted(put, name, delimiter, mark):
    header = "user_id:token,item_id:token,n" if name == "all.inter" else "user_id,item_id,n"
    rows = [(user, item, 1) for user, item in PAIRS]
    dataset = read(put(name, mark + table(rows[:9], header, delimiter) + mark + table(rows[9:], header, delimiter)))
    assert pairs(dataset) == TEXTS
    assert (dataset.rows_read, dataset.left_out) == (33, {"header line in the middle": 1})


def test_a_header_line_in_the_middle_is_no_rating_and_no_time(put):
    part = "user_id,item_id,rating,timestamp\n1,2,5,100\n1,3,1,200\n"
    dataset = read(put("all.csv", part + part.replace("\n1,", "\n9,")), min_rating=3, test_from=150)
    assert (dataset.rows_read, dataset.left_out) == (5, {"header line in the middle": 1, "rated below data.min_rating": 2})


def test_a_header_line_with_other_columns_in_the_middle_is_refused_with_its_line(put):
    swapped = table([(item, user) for user, item in PAIRS[9:]], "item_id,user_id")
    error = refused(put("all.csv", table(PAIRS[:9]) + swapped))
    assert (error.line, "in another order" in str(error)) == (11, True)


@pytest.mark.parametrize("more", [(), (4,), (4.5, 881250949)])
def test_a_file_without_a_header_line_is_recognised_and_said(put, more):
    dataset = read(put("log.csv", table([(user, item, *more) for user, item in PAIRS], "")))
    assert pairs(dataset) == TEXTS
    assert dataset.notices == ("the file has no header line: its first column is read as users, its second as items",)


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([(0, 1, 2), (1, 5, 4), (2, 6, 4)], "numbers of its columns"),
        ([("", 0, 1), (0, 1, 5), (1, 2, 6)], "numbers of its columns"),
        ([(0, "ann", 5), (1, "ann", 6), (2, "bob", 5)], "its first column counts the rows"),
        ([("u1", "2009-05-04T23:08:57Z", 5), ("u1", "2009-05-04T13:54:10Z", 5)], "3 columns, which may be anything"),
        ([("u1", 1, 2, 3, 4)], "5 columns, which may be anything"),
        ([("ann", "heat"), ("bob", "heat")], "put a header line first if the file has none"),
    ],
)
def test_a_file_without_a_header_line_that_may_mean_anything_is_refused_with_the_way_out(put, rows, problem):
    error = str(refused(put("log.csv", table(rows, ""))))
    assert problem in error
    assert "header line" in error or "put a line such as user_id,item_id before the first row" in error


def test_a_file_without_a_header_line_has_no_ratings_and_no_times(put):
    path = put("log.csv", table([(1, 2, 3, 4)], ""))
    assert "data.min_rating has no column 'rating'" in str(refused(path, min_rating=1))
    assert "data.test_from has no column 'timestamp'" in str(refused(path, test_from=1))


# ---- delimiters, packing, encodings, JSON ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "delimiter"), [("log.csv", ";"), ("log.csv", "\t"), ("log.csv", "|"), ("log.tsv", ","), ("log.tsv", ";")]
)
def test_fields_may_be_separated_by_something_else_than_the_suffix_says(put, name, delimiter):
    rows = [(f'"{user}"', item, "3,5") for user, item in PAIRS] if delimiter == ";" else PAIRS
    dataset = read(put(name, table(rows, '"user_id",item_id,rating' if delimiter == ";" else "user_id,item_id", delimiter)))
    assert pairs(dataset) == TEXTS
    assert any("the fields are separated by" in notice for notice in dataset.notices)


def test_excel_tells_its_delimiter(put):
    path = put("log.csv", "\ufeffsep=;\r\nuser_id;item_id\r\n1;2\r\n;3\r\n")
    assert refused(path).line == 4
    assert pairs(read(path, blank_ids="skip")) == {("1", "2")}


def zst(data):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


PACK = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zst}


@pytest.mark.parametrize("packing", PACK)
@pytest.mark.parametrize("name", ["log.csv", "log.jsonl"])
def test_packed_files_are_read(put, packing, name):
    lines = "".join(json.dumps({"user_id": str(user), "item_id": str(item)}) + "\n" for user, item in PAIRS)
    data = (table() if name == "log.csv" else lines).encode()
    packed = PACK[packing](data)
    assert pairs(read(put(f"{name}.{packing}", packed))) == TEXTS
    assert "copy it again" in str(refused(put(f"{name}.{packing}", packed[:-9])))
    assert "copy it again" in str(refused(put(f"{name}.{packing}", b"no such data" * 9)))


@pytest.mark.parametrize("packing", PACK)
def test_all_streams_of_a_packed_file_are_read_or_the_file_is_refused(put, packing):
    begin, end = table(PAIRS[:16]).encode(), table(PAIRS[16:], header="").encode()
    pack = PACK[packing]
    joined = put(f"log.csv.{packing}", pack(begin) + pack(end))
    assert pairs(read(joined)) == TEXTS
    for rest in (end, pack(end)[:-9], b"\xff" + pack(end)[1:]):
        damaged = put(f"log.csv.{packing}", pack(begin) + rest)
        assert "copy it again" in str(refused(damaged))


def test_packed_text_longer_than_a_block_is_read_whole(put):
    rows = [(user, f"{item:09}") for user in range(100) for item in range(3_000)]  # 3.5 MB
    for packing in ("bz2", "xz"):
        assert read(put(f"log.csv.{packing}", PACK[packing](table(rows).encode()))).rows_read == len(rows)


@pytest.mark.parametrize("name", ["log.csv.zip", "log.tar", "log.parquet.gz"])
def test_files_that_are_packed_otherwise_are_refused_with_the_way_out(put, name):
    assert "unpack it" in str(refused(put(name, b"PK")))


@pytest.mark.parametrize("name", ["log.txt", "user_artists.dat", "plays"])
def test_files_of_no_kind_are_refused_with_the_way_out(put, name):
    assert "rename it to end in .csv or .tsv" in str(refused(put(name, table())))


def test_utf_16_is_refused_with_the_way_out(put):
    assert "is UTF-16: convert it" in str(refused(put("log.csv", table().encode("utf-16"))))


def test_json_lines_are_read_with_the_types_that_they_have(put):
    text = "".join(json.dumps({"user_id": f"u{user}", "item_id": item, "text": "x\ny"}) + "\n\n" for user, item in PAIRS)
    dataset = read(put("log.ndjson", "\ufeff" + text))
    assert pairs(dataset) == {(f"u{user}", item) for user, item in PAIRS}
    assert (dataset.users.integers, dataset.items.integers) == (False, True)
    assert pairs(
        read(put("log.jsonl", '{"user_id": 7, "item_id": "a"}\n{"user_id": "07", "item_id": 18446744073709551616}\n'))
    ) == {
        ("7", "a"),
        ("07", "18446744073709551616"),
    }


def test_json_lines_have_ratings_and_times(put):
    lines = [{"user_id": 1, "item_id": n, "stars": n, "date": f"2024-03-0{n} 12:00:00"} for n in range(1, 7)]
    path = put("reviews.json", "".join(json.dumps(line) + "\n" for line in lines))
    dataset = read(path, rating_column="stars", min_rating=2, time_column="date", test_from="2024-03-05")
    assert (pairs(dataset), pairs(dataset, "test")) == ({(1, 2), (1, 3), (1, 4)}, {(1, 5), (1, 6)})


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ('[{"user_id": 1, "item_id": 2}]', 1, "write one object on each line"),
        ('{\n"user_id": 1,\n"item_id": 2}', 1, "write one object on each line"),
        ('{"user_id": 1, "item_id": 2}\n{"user_id": 1', 2, "is no JSON object on one line"),
        ('{"user_id": 1, "item_id": 2}\n{"user_id": [1], "item_id": 3}', 2, "ids must be whole numbers or strings"),
        ('{"user_id": 1, "item_id": 2}\n{"user_id": true, "item_id": 3}', 2, "ids must be whole numbers or strings"),
        ('{"user_id": 1, "item_id": 2}\n{"user_id": 1.5, "item_id": 3}', 2, "is no whole number"),
        ('{"user": 1, "item_id": 2}', None, "no column 'user_id' but user, item_id"),
    ],
)
def test_json_that_cannot_be_a_log_is_refused_with_its_line(put, text, line, problem):
    error = refused(put("log.jsonl", text))
    assert (error.line, problem in str(error)) == (line, True)


# ---- a split by time ------------------------------------------------------------------------------------------------------

START = datetime(2024, 3, 1, tzinfo=UTC)
TIMES = [START + timedelta(hours=n) for n in range(32)]


def timed(tmp_path, kind):
    users, items = zip(*PAIRS, strict=True)
    texts = [time.isoformat() for time in TIMES]
    numbers = [int(time.timestamp()) for time in TIMES]
    columns = {
        "csv of dates": texts,
        "csv of numbers": numbers,
        "parquet of dates": pa.array(TIMES, pa.timestamp("ms", "UTC")),
        "parquet of numbers": numbers,
        "parquet of texts": [text.replace("+00:00", "Z") for text in texts],
        "json lines": texts,
    }
    if kind.startswith("parquet"):
        path = tmp_path / "log.parquet"
        pq.write_table(pa.table({"user_id": users, "item_id": items, "timestamp": columns[kind]}), path)
    elif kind.startswith("csv"):
        path = tmp_path / "log.csv"
        path.write_text(table(zip(users, items, columns[kind], strict=True), "user_id,item_id,timestamp"))
    else:
        path = tmp_path / "log.jsonl"
        rows = zip(users, items, columns[kind], strict=True)
        path.write_text("".join(json.dumps({"user_id": u, "item_id": i, "timestamp": t}) + "\n" for u, i, t in rows))
    return path, (START + timedelta(hours=24)).timestamp() if "numbers" in kind else "2024-03-02"


KINDS = ["csv of dates", "csv of numbers", "parquet of dates", "parquet of numbers", "parquet of texts", "json lines"]


@pytest.mark.parametrize("kind", KINDS)
def test_rows_from_a_time_on_are_the_test_set(tmp_path, kind):
    path, midnight = timed(tmp_path, kind)
    dataset = read(path, test_from=midnight)
    in_text = kind.startswith("csv")
    wanted = [{(str(u), str(i)) if in_text else (u, i) for u, i in some} for some in (PAIRS[:24], PAIRS[24:])]
    assert [pairs(dataset), pairs(dataset, "test")] == wanted


@pytest.mark.parametrize("kind", KINDS)
def test_the_time_of_the_newest_share_makes_that_share_the_test_set(tmp_path, kind):
    path, midnight = timed(tmp_path, kind)
    found = time_of_newest(str(path), DataConfig(), 0.25)
    assert found == (midnight if "numbers" in kind else "2024-03-02T00:00:00")
    config = changed(config_from({}), [f"data.test_from={found}"]).data
    assert len(read_dataset(str(path), config, 1).test) == 8


def test_a_pair_before_and_after_the_time_is_learned_from(put):
    rows = [(1, 5, 100), (1, 6, 100), (1, 5, 200), (2, 6, 200), (2, 6, 300)]
    dataset = read(put("log.csv", table(rows, "user_id,item_id,timestamp")), test_from=200)
    assert (pairs(dataset), pairs(dataset, "test"), dataset.merged) == ({("1", "5"), ("1", "6")}, {("2", "6")}, 2)


def test_removing_a_row_moves_no_other_over_the_time(put):
    rows = [(user, item, 1000 + n) for n, (user, item) in enumerate(PAIRS)]
    header = "user_id,item_id,timestamp"
    with_all = read(put("all.csv", table(rows, header)), test_from=1024, valid_share=0.3)
    without = read(put("few.csv", table(rows[4:], header)), test_from=1024, valid_share=0.3)
    for name in ("train", "valid", "test"):
        assert pairs(without, name) == {pair for pair in pairs(with_all, name) if pair[0] != "1"}


@pytest.mark.parametrize(
    ("rows", "settings", "problem"),
    [
        ([(1, 2, 100)], {"test_from": "2024-03-01"}, "column 'timestamp' holds numbers, and data.test_from is a date"),
        ([(1, 2, "2024-03-01")], {"test_from": 100}, "column 'timestamp' holds dates, and data.test_from is a number"),
        ([(1, 2, 100), (1, 3, "")], {"test_from": 100}, "timestamp '' is no number"),
        ([(1, 2, "2024-03-01"), (1, 3, "soon")], {"test_from": "2024-03-01"}, "timestamp 'soon' is no ISO date"),
        (
            [(1, 2, 100)],
            {"test_from": 100, "time_column": "when"},
            "no column 'when' but user_id, item_id, timestamp: set data.",
        ),
        ([(1, 2, 100)], {"test_from": 50}, "or set a later data.test_from"),
    ],
)
def test_times_that_cannot_be_compared_are_refused_with_the_reason(put, rows, settings, problem):
    assert problem in str(refused(put("log.csv", table(rows, "user_id,item_id,timestamp")), **settings))


def test_times_are_looked_at_only_where_they_are_asked_for(put):
    assert len(read(put("log.csv", table([(1, 2, "soon"), (1, 3, "")], "user_id,item_id,timestamp"))).train) == 2


def test_a_log_without_times_has_no_test_set_by_time(put, tmp_path):
    put("log/train.txt", "1 5 6\n2 5\n")
    assert "has no times: leave data.test_from out" in str(refused(tmp_path / "log", test_from=5))
    assert "has no times" in str(refused("synthetic", test_from=5))
    for source in (str(tmp_path / "log"), "synthetic"):
        with pytest.raises(DataFileError, match="has no times"):
            time_of_newest(source, DataConfig(), 0.2)


@pytest.mark.parametrize(("name", "first"), [("u.data", "1\t2\t3\t100"), ("ratings.dat", "1::2::3::100")])
def test_the_times_of_movielens_are_known(put, name, first):
    path = put(name, f"{first}\n{first.replace('2', '4').replace('100', '200')}\n")
    assert pairs(read(path, test_from=200), "test") == {("1", "4")}


def test_a_test_set_is_made_by_share_or_by_time():
    for changes in (["data.test_share=0.2", "data.test_from=5"], ["data.test_from=2024-03-01", "data.test_share=0.2"]):
        with pytest.raises(ConfigError, match="set only one of them"):
            changed(config_from({}), changes)


@pytest.mark.parametrize(
    ("given", "value"),
    [
        ("881250949", 881250949),
        ("1.5", 1.5),
        ("2024-03-01", "2024-03-01"),
        ("2024-03-01T12:00:00Z", "2024-03-01T12:00:00+00:00"),
    ],
)
def test_a_time_is_a_number_or_a_date(given, value):
    config = changed(config_from({}), [f"data.test_from={given}"])
    assert config.data.test_from == value
    assert changed(config, []) == config


@pytest.mark.parametrize("given", ["soon", "true", "nan", "'2024-13-01'"])
def test_another_time_is_refused(given):
    with pytest.raises(ConfigError, match=r"data\.test_from"):
        changed(config_from({}), [f"data.test_from={given}"])


# ---- what is said ---------------------------------------------------------------------------------------------------------


def test_a_prepared_dataset_keeps_its_counts_and_its_time(put, tmp_path):
    rows = [(1, 5, 100), (1, 6, 100), (1, 6, 100), ("", 6, 100), (2, 6, 200)]
    config = DataConfig(test_from=200, blank_ids="skip")
    dataset = read_dataset(str(put("log.csv", table(rows, "user_id,item_id,timestamp"))), config, 1)
    write_dataset(dataset, tmp_path / "prepared", config)
    again = read(tmp_path / "prepared")
    assert (again.account(), len(again.test)) == (dataset.account(), 1)
    assert (again.rows_read, again.merged, again.left_out) == (5, 1, {"blank user id": 1})
    assert "was prepared with data.test_from 200, not 300" in str(refused(tmp_path / "prepared", test_from=300))
    with pytest.raises(DataFileError, match="give the log that it was prepared from"):
        time_of_newest(str(tmp_path / "prepared"), DataConfig(), 0.2)


def test_ids_that_look_blank_are_kept_by_a_prepared_dataset(put, tmp_path):
    config = DataConfig(blank_ids="keep")
    dataset = read_dataset(str(put("log.csv", table([("None", "1.0"), ("ann", "2.0")]))), config, 1)
    write_dataset(dataset, tmp_path / "prepared", config)
    assert pairs(read(tmp_path / "prepared")) == pairs(dataset) == {("None", "1"), ("ann", "2")}


def test_every_row_is_read_merged_left_out_or_in_a_set(put):
    rows = [(1, 5, 5), (1, 5, 4), ("", 6, 5), ("user_id", "item_id", "rating"), (2, "nan", 5), (3, 7, 1), (4, 8, 5), (5, 9, 5)]
    path = put("log.csv", table(rows, "user_id,item_id,rating"))
    dataset = read(path, blank_ids="skip", min_rating=3, test_share=0.3, valid_share=0.3)
    kept = len(dataset.train) + len(dataset.valid) + len(dataset.test)
    assert dataset.left_out == {
        "header line in the middle": 1,
        "blank user id": 1,
        "blank item id": 1,
        "rated below data.min_rating": 1,
    }
    assert (dataset.rows_read, dataset.merged, kept) == (8, 1, 3)


def test_a_table_in_memory_is_read_as_the_same_table_in_a_parquet_file(tmp_path):
    columns = pa.table({"user_id": [1.0, None, 3.0, 3.0], "item_id": ["a", "b", "c", "d"], "rating": [5, 5, 1, 5]})
    pq.write_table(columns, tmp_path / "log.parquet")
    config = DataConfig(blank_ids="skip", min_rating=3)
    one = dataset_of_log("log.parquet", log_of_table("log.parquet", columns, config), config, 1)
    other = read_dataset(str(tmp_path / "log.parquet"), config, 1)
    assert pairs(one) == pairs(other) == {(1, "a"), (3, "d")}
    assert one.account() == other.account()


def test_no_notice_names_an_id(put):
    rows = [("secret-user.0", "1.0"), ("7.0", "2.0"), ("", "3.0")]
    notices = read(put("log.csv", table(rows)), blank_ids="skip").notices
    assert notices
    assert not any("secret" in notice or "7.0" in notice for notice in notices)


def test_errors_that_quote_no_id_may_be_logged_and_others_may_not(put, tmp_path):
    safe = [
        (put("a.csv", table([("", 1)])), {}, "in 1 of 1 rows: set data.blank_ids=skip"),
        (put("b.csv", table(header="user_id,item_id,title", rows=[(1, 2)])), {}, "2 fields, expected 3"),
        (put("c.csv", titled('"Helden', 'Helden"', ",")), {}, "look like rows"),
        (put("d.csv", ""), {}, "is empty"),
        (put("e.csv", table()), {"min_rating": 3}, "no column 'rating' but user_id, item_id"),
        (tmp_path / "nowhere", {}, "no such file"),
    ]
    for path, settings, said in safe:
        assert said in refused(path, **settings).safe
    unsafe = [
        put("f.csv", "ann,heat\nbob,heat\n"),
        put("g.csv", table([("secret-\0", 1)])),
        put("h.csv", table([("x" * 1001, 1)])),
        put("i.jsonl", '{"secret-ann": [7, 8]}\n'),
    ]
    for path in unsafe:
        assert "may quote ids" in refused(path).safe


def test_a_folder_named_by_an_id_is_not_named_in_logs(tmp_path):
    folder = tmp_path / "log" / "user_id=secret ann" / "dt=2024-03-01"
    folder.mkdir(parents=True)
    pq.write_table(pa.table({"item_id": ["a", None]}), folder / "0.parquet")
    error = refused(tmp_path / "log")
    assert "user_id=secret ann/dt=2024-03-01/0.parquet" in str(error)
    assert "user_id=.../dt=.../0.parquet: row 2: the item id is empty" in error.safe
    assert "secret" not in error.safe


# ---- exports of other tools -----------------------------------------------------------------------------------------------


def test_json_lines_of_bigquery_are_the_parts_of_one_log(put, tmp_path):
    for part in range(2):
        lines = [
            {"user_id": str(user), "item_id": str(item), "at": f"2024-03-0{1 + part} 12:00:00 UTC"}
            for user, item in PAIRS[part::2]
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        put(f"export/bq-00000000000{part}.json.gz", gzip.compress(text.encode()))
    dataset = read(tmp_path / "export", time_column="at", test_from="2024-03-02")
    assert (len(dataset.train), len(dataset.test)) == (16, 16)
    assert pairs(dataset) | pairs(dataset, "test") == TEXTS


@pytest.mark.parametrize("header", ["user_id,item_id", ""])
def test_a_csv_folder_of_spark_is_read_with_its_empty_part(put, tmp_path, header):
    for part in range(2):
        put(f"out/part-0000{part}-c000.csv", table(PAIRS[part::2], header))
        put(f"out/.part-0000{part}-c000.csv.crc", b"crc\0")
    put("out/part-00002-c000.csv", "")
    put("out/_SUCCESS", "")
    dataset = read(tmp_path / "out")
    assert pairs(dataset) == TEXTS
    assert "files without rows were passed over" in dataset.notices


def test_plays_of_last_fm_have_no_header_line_and_some_blank_artists(put):
    rows = [(f"{user:040x}", f"{item:08x}-mbid" if item % 4 else "", 'The "Heroes', 7) for user, item in PAIRS]
    path = put("usersha1-artmbid-artname-plays.tsv", table(rows, "", "\t"))
    dataset = read(path, blank_ids="skip")
    assert pairs(dataset) == {(user, item) for user, item, *_ in rows if item}
    assert dataset.left_out == {"blank item id": 8}


def test_a_column_of_row_names_is_no_id(put):
    rows = [(n, user, item) for n, (user, item) in enumerate(PAIRS)]
    assert pairs(read(put("pandas.csv", table(rows, ",user_id,item_id")))) == TEXTS
    assert pairs(read(put("r.csv", table(rows, '"","user_id","item_id"')))) == TEXTS


def test_a_matrix_of_users_and_items_is_not_taken_for_rows(put):
    error = str(refused(put("matrix.csv", "user_id,101,102,103\n1,5,,3\n2,,4,\n")))
    assert "no column 'item_id' but user_id, 101, 102, 103" in error


def test_rows_are_not_swallowed_in_a_file_without_a_header_line(put):
    text = titled('"Helden', 'Helden"', ",").partition("\n")[2]
    assert (refused(put("plays.csv", text)).line, "look like rows" in str(refused(put("plays.csv", text)))) == (4, True)
    assert pairs(read(put("plays.tsv", titled('"Helden', 'Helden"', "\t").partition("\n")[2]))) == TEXTS
    lone = '5\t"a\t7\n6\tb"\t7\n8\tc\t8\n'
    assert pairs(read(put("lone.tsv", lone))) == {("5", '"a'), ("6", 'b"'), ("8", "c")}


def test_counts_of_a_log_are_in_the_report_and_in_no_stored_file(put, deployments, tiny_config):
    clean = read(put("clean.csv", table()))
    untidy = table([*PAIRS[:9], ("", 5), *PAIRS[:3]]) + table([*PAIRS[9:], ("nan", 7)])
    log = read(put("untidy.csv", untidy), blank_ids="skip")
    one, other = deployments.open("clean", tiny_config), deployments.open("untidy", tiny_config)
    reports = one.fit(clean), other.fit(log)
    assert [(report.rows_read, report.merged, report.left_out) for report in reports] == [
        (32, 0, {}),
        (38, 3, {"header line in the middle": 1, "blank user id": 2}),
    ]
    stored = [
        {path: (deployments.store(name).local_folder / path).read_bytes() for path in deployments.store(name).files()}
        for name in ("clean", "untidy")
    ]
    assert stored[0] == stored[1]
    assert reports[0].digest == reports[1].digest


def test_a_short_line_among_interactions_does_not_make_ratings_items(put, tmp_path):
    lines = [f"{user} {item} {1 + item % 5}" for user, item in PAIRS]
    put("log/train.txt", "\n".join([*lines[:20], "7 300", *lines[20:]]))
    error = refused(tmp_path / "log")
    assert (error.line, "has 2 fields here and 3 on most lines" in str(error)) == (21, True)


def test_lines_that_may_be_users_with_items_or_ids_with_a_colon_are_refused(put, tmp_path):
    put("log/train.txt", "1:5 6\n1:7\n2:5\n3:8\n")
    assert "may have user:items on each line" in str(refused(tmp_path / "log"))


def test_a_user_without_items_does_not_hide_the_commas_of_the_others(put, tmp_path):
    put("log/train.txt", "1,5,6\n2\n3,7\n")
    assert pairs(read(tmp_path / "log")) == {("1", "5"), ("1", "6"), ("3", "7")}


@pytest.mark.parametrize("packing", ["", *PACK])
def test_long_parts_in_text_files_are_one_log(put, tmp_path, packing):
    rows = [(user, item) for user in range(10, 60) for item in range(1000, 1400)]
    for part in range(2):
        data = ("\ufeff" + table(rows[part::2])).encode()
        assert len(data) > 1 << 16
        put(f"log/{part}.csv{'.' if packing else ''}{packing}", PACK[packing](data) if packing else data)
    assert len(read(tmp_path / "log").train) == len(rows)


def test_a_first_line_may_be_longer_than_what_is_looked_at_first(put, tmp_path):
    text = "x" * (1 << 17)
    for part in range(2):
        put(f"log/{part}.jsonl", json.dumps({"text": text, "user_id": part, "item_id": 7}))
    assert pairs(read(tmp_path / "log")) == {(0, 7), (1, 7)}
