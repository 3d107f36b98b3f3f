"""What the pages say can be done: Python blocks marked `run` run, and commands name jobs and options that exist."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\S+)([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
USERS = ("operate.md", "compare.md", "extend.md")


def blocks(page: Path, *languages: str) -> list[tuple[str, str]]:
    """(what stands behind the language, text) of a page's blocks."""
    found = BLOCK.findall(page.read_text("utf-8"))
    return [(more.strip(), text) for language, more, text in found if language in languages]


def commands(page: Path) -> Iterator[list[str]]:
    """The words of every command that runs a job, in blocks and in the text."""
    text = page.read_text("utf-8")
    shell = [line for _, block in blocks(page, "bash", "sh") for line in block.replace("\\\n", " ").splitlines()]
    inline = re.findall(r"`(python jobs/[^`]*)`", BLOCK.sub("", text))
    for line in [*shell, *(" ".join(one.split()) for one in inline)]:
        if "python jobs/" in line:
            yield shlex.split(line[line.index("python jobs/") :], comments=True)


def marked(page: Path) -> list[str]:
    """The blocks that are to be run, one after the other."""
    return [text for more, text in blocks(page, "python") if more == "run"]


@pytest.fixture(scope="module")
def options() -> Iterator[dict[str, set[str]]]:
    """By job, the options that it has."""
    sys.path.insert(0, str(ROOT / "jobs"))
    import cli

    found = {}
    for file in sorted((ROOT / "jobs").glob("*.py")):
        if file.stem != "cli":
            spec = importlib.util.spec_from_file_location(f"job_{file.stem}", file)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = module  # where dataclasses look for their annotations
            spec.loader.exec_module(module)
            command = typer.main.get_command(cli.app_of(getattr(module, file.stem)))
            found[file.stem] = {name for parameter in command.params for name in parameter.opts} | {"--help"}
    yield found
    sys.path.remove(str(ROOT / "jobs"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_name_jobs_and_options_that_exist(page: Path, options: dict[str, set[str]]) -> None:
    for words in commands(page):
        job = Path(words[1]).stem
        assert job in options, f"{page.name}: there is no job {job}"
        given = {word.partition("=")[0] for word in words[2:] if word.startswith("--")}
        assert given <= options[job], f"{page.name}: {job} has no {', '.join(sorted(given - options[job]))}"


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
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
