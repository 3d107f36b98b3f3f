"""What the pages say can be done: Python blocks marked `run` run, and commands name jobs and options that exist."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from ray_eraser.cli.main import COMMANDS
from ray_eraser.cli.program import command_of

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\S+)([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
USERS = ("quickstart.md", "operate.md", "compare.md", "extend.md")


def blocks(page: Path, *languages: str) -> list[tuple[str, str]]:
    """(what stands behind the language, text) of a page's blocks."""
    found = BLOCK.findall(page.read_text("utf-8"))
    return [(more.strip(), text) for language, more, text in found if language in languages]


COMMAND = re.compile(r"(?:ray-eraser|python -m ray_eraser|python jobs/)(?= ?[a-z])")


def commands(page: Path) -> Iterator[list[str]]:
    """The words of every command of ours, beginning with its name, in blocks and in the text."""
    text = page.read_text("utf-8")
    shell = [line for _, block in blocks(page, "bash", "sh") for line in block.replace("\\\n", " ").splitlines()]
    inline = re.findall(r"`((?:ray-eraser |python -m ray_eraser |python jobs/)[^`]*)`", BLOCK.sub("", text))
    for line in [*shell, *(" ".join(one.split()) for one in inline)]:
        for part in re.split(r"&&|;|\|", line):
            if found := COMMAND.search(part):
                yield shlex.split(part[found.end() :], comments=True)


def marked(page: Path) -> list[str]:
    """The blocks that are to be run, one after the other."""
    return [text for more, text in blocks(page, "python") if more == "run"]


@pytest.fixture(scope="module")
def options() -> dict[str, set[str]]:
    """By command, the options that it has."""
    found = {}
    for name in COMMANDS:
        module = import_module(f"ray_eraser.cli.{name}")
        command = command_of(getattr(module, name))
        found[name] = {option for parameter in command.params for option in parameter.opts} | {"--help"}
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_their_options_exist(page: Path, options: dict[str, set[str]]) -> None:
    for name, *words in commands(page):
        command = name.removesuffix(".py")
        assert command in options, f"{page.name}: there is no command {command}"
        given = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert given <= options[command], f"{page.name}: {command} has no {', '.join(sorted(given - options[command]))}"


def test_commands_are_found_in_all_ways_that_pages_write_them(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "Say `ray-eraser keys --out x` or `python -m ray_eraser stop`, not `ray-eraser`.\n"
        "```bash\n(echo read) > k; ray-eraser serve \\\n  --keys k && python jobs/train.py --data x  # on a cluster\n```\n"
    )
    assert list(commands(page)) == [
        ["serve", "--keys", "k"], ["train.py", "--data", "x"], ["keys", "--out", "x"], ["stop"],
    ]  # fmt: skip


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_that_is_shown_is_python(page: Path) -> None:
    for _, text in blocks(page, "python"):
        ast.parse(text)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if marked(page)], ids=lambda page: page.name)
def test_python_that_is_marked_runs_from_the_top_of_its_page_to_the_end(page: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-c", "\n".join(marked(page))]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", USERS)
def test_each_page_for_users_has_an_example_that_is_run(name: str) -> None:
    assert any(more == "run" for more, _ in blocks(ROOT / "docs" / name, "python"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_links_to_exist(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text("utf-8")):
        if "://" not in target and "reference/" not in target:  # made by the site, whose own check looks at them
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
