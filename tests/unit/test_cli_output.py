"""How commands write values, and what files of titles and of pairs may hold."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ray_eraser.cli import output
from ray_eraser.cli.inputs import read_pairs
from ray_eraser.cli.output import durations, in_words, seconds, working
from ray_eraser.cli.receipts import print_receipt
from ray_eraser.cli.titles import read_titles
from ray_eraser.errors import DataFileError


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "none"),
        (True, "yes"),
        (False, "no"),
        (1234567, "1,234,567"),
        (0.123456, "0.1235"),
        ("1234567", "1234567"),
        ((), "none"),
        ({}, "none"),
        (["a", 1000], "a, 1,000"),
        ({"blank_ids": 3, "other": None}, "blank ids 3, other none"),
    ],
)
def test_values_are_written_for_people(value, words: str) -> None:
    assert in_words(value) == words


def test_lengths_of_time_have_the_unit_that_fits() -> None:
    assert [seconds(value) for value in (0.01234, 1.26, 119, 240, 7200, 3 * 86_400)] == [
        "0.012 s", "1.3 s", "119.0 s", "4.0 min", "2.0 h", "3.0 days",
    ]  # fmt: skip
    assert durations({"to_forget": 0.5, "total": 3}) == "to forget 0.5 s, total 3.0 s"


def test_titles_are_read_from_a_csv_file_and_from_those_of_movielens(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('\ufeffmovieId,title,genres\n1,"Toy Story, The",Comedy\n\nabc,x\n', "utf-8")
    assert read_titles(tmp_path / "t.csv") == {"movieId": "title", "1": "Toy Story, The", "abc": "x"}
    (tmp_path / "movies.dat").write_bytes(b"1::Toy Story (1995)::Comedy\r\n2::Am\xe9lie::Drama\r\n")
    assert read_titles(tmp_path / "movies.dat") == {"1": "Toy Story (1995)", "2": "Amélie"}
    (tmp_path / "u.item").write_bytes(b"7|Twelve|01-Jan-1995||http|0\n")
    assert read_titles(tmp_path / "u.item") == {"7": "Twelve"}


def test_a_file_without_titles_is_refused_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("1,One\n2\n")
    with pytest.raises(DataFileError, match=r"t\.csv, line 2: expected an item id and a title"):
        read_titles(tmp_path / "t.csv")
    with pytest.raises(DataFileError, match="cannot be read"):
        read_titles(tmp_path / "none.csv")


@pytest.fixture
def console(monkeypatch: pytest.MonkeyPatch) -> Callable[..., io.StringIO]:
    """Puts a console in the place of stderr, and gives what is written there."""

    def put(**options: Any) -> io.StringIO:
        stream = io.StringIO()
        monkeypatch.setattr(output, "people", Console(file=stream, **options))
        return stream

    return put


def test_long_work_is_a_line_in_a_pipe_unless_told_otherwise(console: Callable[..., io.StringIO]) -> None:
    said = console()
    with working("reading [a].csv"):
        pass
    with working("connecting", in_a_pipe=False):
        pass
    assert said.getvalue() == "reading [a].csv\n"


def test_long_work_is_a_spinner_on_a_terminal_which_leaves_nothing_behind(console: Callable[..., io.StringIO]) -> None:
    said = console(force_terminal=True, width=80)
    with working("reading [a].csv"):
        pass
    assert "reading [a].csv" in said.getvalue()
    assert said.getvalue().endswith("\x1b[?25h\r\x1b[1A\x1b[2K")  # the cursor is shown again, and the line deleted


def test_with_json_logs_nothing_is_written_for_people(console: Callable[..., io.StringIO]) -> None:
    said = console(quiet=True)
    with working("reading"):
        pass
    assert said.getvalue() == ""


def test_a_byte_order_mark_is_no_part_of_the_first_pair(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text('\ufeff7,10\n8,"a,b"\n', "utf-8")
    assert read_pairs(tmp_path / "pairs.csv") == (("7", "10"), ("8", "a,b"))


def test_pairs_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    (tmp_path / "long.csv").write_text(f"7,{'x' * 200_000}\n")
    with pytest.raises(DataFileError, match=r"long\.csv: cannot be read \(field larger than field limit"):
        read_pairs(tmp_path / "long.csv")


@pytest.mark.parametrize(("count", "shown"), [(None, False), (0, True), (3, True)])
def test_an_unknown_count_of_absent_pairs_is_not_shown_as_none(count: int | None, shown: bool, capsys) -> None:
    print_receipt({"request_id": "5d0c", "seconds": {"to_forget": 1.0}, "purged": [], "pairs_absent": count})
    said = capsys.readouterr().out
    assert ("pairs absent" in said, str(count) in said) == (shown, shown)
