"""How long the README and its sentences are, that its example runs as printed, and words that plain English does without."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
MODULES = sorted((ROOT / "ray_eraser").rglob("*.py"))
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
NO_PROSE = re.compile(r"^(#|\||!\[|<|\[!).*$", re.MULTILINE)
UNWANTED = re.compile(r"\b(whoever|anew)\b", re.IGNORECASE)


def prose(page: Path) -> list[str]:
    """The paragraphs and list items of a page, without code, tables, headings and pictures."""
    text = NO_PROSE.sub("", FENCED.sub("", page.read_text("utf-8")))
    text = re.sub(r"^\s*([-*]|\d+\.) ", "\n\n", text, flags=re.MULTILINE)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    return [" ".join(part.split()) for part in text.split("\n\n") if part.strip()]


def sentence_lengths(page: Path) -> list[int]:
    """Words of every sentence."""
    sentences = [one for part in prose(page) for one in re.split(r"(?<=[.!?])[*)_]*\s+(?=[\"'*(`\[]*[A-Z0-9`])", part)]
    return [len(sentence.split()) for sentence in sentences if sentence]


def test_sentences_are_counted_as_a_reader_counts_them(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# Title\n\nOne two three. Four [five](six.md)!\n\n- seven\n- eight nine.\n\n```sh\nno prose\n```\n| a | b |\n"
    )
    assert sentence_lengths(page) == [3, 2, 1, 2]


def test_the_readme_is_short() -> None:
    assert len(README.read_text("utf-8").splitlines()) < 120
    lengths = sentence_lengths(README)
    assert sum(lengths) / len(lengths) < 18
    assert max(lengths) <= 40


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pages_have_no_words_that_hide_who_does_what(page: Path) -> None:
    assert UNWANTED.findall(page.read_text("utf-8")) == []


def test_docstrings_have_no_words_that_hide_who_does_what() -> None:
    found = {}
    for file in MODULES:
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            # Docstrings, and the texts below settings and fields.
            text = node.value.value if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) else None
            if isinstance(text, str) and (unwanted := UNWANTED.findall(text)):
                found[f"{file.relative_to(ROOT)}:{node.lineno}"] = unwanted
    assert found == {}


def test_the_first_example_prints_what_the_readme_shows(tmp_path: Path) -> None:
    code, output = re.findall(r"^```(?:python|text)[^\n]*\n(.*?)^```$", README.read_text("utf-8"), re.MULTILINE | re.DOTALL)[:2]
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == output
