"""The site builds without a warning, its search finds settings, errors and names, and its examples print what it shows."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

import ray_eraser
from ray_eraser import errors
from ray_eraser.cli.main import COMMANDS
from ray_eraser.config import EraserConfig

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "docs" / "notebook.ipynb"
FROM_ELSEWHERE = re.compile(
    r"""<(?:script|img|iframe)[^>]*\bsrc=["']?https?://|<link[^>]*\brel=["']?(?:stylesheet|preconnect)[^>]*https?://"""
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` builds it."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def index(site: Path) -> dict[str, dict[str, str]]:
    """The search's entries by their places in the site."""
    return {
        entry["location"]: entry for entry in json.loads((site / "search" / "search_index.json").read_text("utf-8"))["docs"]
    }


def sections() -> dict[str, type[BaseModel]]:
    """The sections of the settings, by name."""
    whole = EraserConfig()
    return {name: type(part) for name in EraserConfig.model_fields if isinstance(part := getattr(whole, name), BaseModel)}


def test_search_finds_every_setting_with_its_description(index: dict[str, dict[str, str]]) -> None:
    for section, settings in sections().items():
        for name, field in settings.model_fields.items():
            place = f"{settings.__name__}.{section}.{name}" if section == "model" else f"{section}.{name}"
            entry = index[f"reference/settings/#{place}"]
            assert f"{section}.{name}" in entry["title"]
            words = re.findall(r"\w+", field.description or "")[:3]
            assert all(word in entry["text"] for word in words), place


def test_a_setting_is_shown_with_its_type_range_and_default(index: dict[str, dict[str, str]]) -> None:
    text = re.sub(r"<[^>]*>", "", index["reference/settings/#data.test_share"]["text"])
    assert "number" in text
    assert "at least 0" in text
    assert "less than 1" in text
    assert "Default 0" in text


def test_search_finds_every_error_with_its_way_out(index: dict[str, dict[str, str]]) -> None:
    for name, kind in vars(errors).items():
        if isinstance(kind, type) and issubclass(kind, errors.RayEraserError):
            assert "Way out" in index[f"reference/errors/#{name}"]["text"], name


def test_search_finds_every_public_function_and_class(index: dict[str, dict[str, str]]) -> None:
    for name in ray_eraser.__all__:
        assert f"reference/python/#ray_eraser.{name}" in index
    for method in ("Coordinator.local", "Coordinator.submit", "Client.unlearn", "Ticket.wait"):
        assert f"reference/python/#ray_eraser.{method}" in index


def test_search_finds_every_command_with_its_options(index: dict[str, dict[str, str]]) -> None:
    assert [name for name in COMMANDS if f"reference/commands/#{name}" not in index] == []
    assert "--storage-path" in index["reference/commands/#train"]["text"]


def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        assert FROM_ELSEWHERE.search(page.read_text("utf-8")) is None, page.relative_to(site)


def cells() -> list[dict[str, Any]]:
    return [cell for cell in json.loads(NOTEBOOK.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]


def shown(cell: dict[str, Any]) -> str:
    """The text that a cell's stored outputs show."""
    texts = [output.get("text") or output["data"]["text/plain"] for output in cell["outputs"]]
    return "".join("".join(text) for text in texts).rstrip("\n")


def printing(source: str) -> str:
    """A cell's source, whose last expression is printed as a notebook shows it."""
    body = ast.parse(source).body
    if not isinstance(body[-1], ast.Expr) or source.rstrip().endswith(";"):
        return source
    rest, last = ast.Module(body[:-1], []), ast.unparse(body[-1])
    return f"{ast.unparse(rest)}\n_shown = {last}\nif _shown is not None:\n    print(repr(_shown))"


def test_the_notebook_gives_the_outputs_that_are_stored_in_it(tmp_path: Path) -> None:
    mark = "=== next cell ==="
    code = f"\nprint({mark!r})\n".join(printing("".join(cell["source"])) for cell in cells())
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [part.strip("\n") for part in done.stdout.split(f"{mark}\n")] == [shown(cell) for cell in cells()]


@pytest.mark.data
def test_the_tutorial_prints_what_it_shows(tmp_path: Path, data_folder: Path) -> None:
    page = (ROOT / "docs" / "tutorial.md").read_text("utf-8")
    blocks = re.findall(r"^```(python data|text)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    code = "".join(text for language, text in blocks if language != "text")
    (tmp_path / "ml-100k").symlink_to(data_folder / "ml-100k")
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "".join(text for language, text in blocks if language == "text")
