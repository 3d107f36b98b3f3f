"""What is built and installed elsewhere: the wheel, its types, and packages that extend it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest

import ray_eraser

ROOT = Path(__file__).parents[1]

USER = """
import ray_eraser
from ray_eraser.config import EraserConfig

def forget(client: ray_eraser.Client, user: str) -> list[int]:
    reveal_type(client.recommend(user, 3))
    receipt = client.unlearn(user_id=user).wait()
    return [int(shard) for shard in receipt.shards_touched]

config: EraserConfig = ray_eraser.load_config(changes=["partition.n_shards=3"])
wrong: int = config.fingerprint()
"""


def built(project: Path, folder: Path) -> Path:
    """The wheel of a project, made from a copy so that nothing is left beside the sources."""
    source = folder / "source"
    ignored = shutil.ignore_patterns("__pycache__", ".*", "*.egg-info", "build", "tests", "docs")
    shutil.copytree(project, source, ignore=ignored)
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--disable-pip-version-check")
    command = [sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", str(folder), str(source)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site-packages of an environment of its own, with the wheel in it and nothing that it needs."""
    environment = tmp_path_factory.mktemp("installed")
    venv.create(environment, with_pip=False)
    (folder,) = environment.glob("lib/python*/site-packages")
    with zipfile.ZipFile(built(ROOT, tmp_path_factory.mktemp("built"))) as wheel:
        wheel.extractall(folder)
    return folder


@pytest.mark.slow
def test_the_wheel_holds_the_package_its_types_and_its_presets_and_nothing_else(installed: Path) -> None:
    assert (installed / "ray_eraser" / "py.typed").exists()
    assert (installed / "ray_eraser" / "presets" / "receraser.toml").exists()
    sources = {path.relative_to(ROOT) for path in (ROOT / "ray_eraser").rglob("*.py")}
    assert {path.relative_to(installed) for path in installed.rglob("*.py")} == sources
    assert {path.name.split("-")[0] for path in installed.iterdir()} == {"ray_eraser"}


RUN_SCRIPT = """
import sys
from importlib.metadata import distribution

(script,) = (one for one in distribution("ray-eraser").entry_points if one.group == "console_scripts")
sys.argv = [script.name, *sys.argv[1:]]
script.load()()
"""


@pytest.mark.slow
def test_the_wheel_brings_the_program_which_answers_before_anything_else_is_installed(installed: Path, tmp_path: Path) -> None:
    python = installed.parents[2] / "bin" / "python"

    def said(*words: str) -> str:
        return subprocess.run([python, *words], cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    overview = said("-c", RUN_SCRIPT, "--help")
    assert overview.startswith("Usage: ray-eraser COMMAND [OPTIONS]")
    assert "unlearn" in overview
    assert said("-m", "ray_eraser", "--help") == overview
    assert said("-c", RUN_SCRIPT, "--version") == f"ray-eraser {ray_eraser.__version__}\n"


@pytest.mark.slow
def test_a_users_script_is_checked_against_the_types_of_the_installed_package(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(USER)
    python = installed.parents[2] / "bin" / "python"
    options = ("--python-executable", str(python), "--cache-dir", str(tmp_path / "cache"), "--follow-imports", "silent")
    command = [sys.executable, "-m", "mypy", "--strict", *options, "script.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    said = done.stdout.replace("builtins.", "")
    assert 'Revealed type is "list[int | str]"' in said, said + done.stderr
    assert 'expression has type "str", variable has type "int"' in said
    assert said.count("error:") == 1, said


SMALL = (
    "data.synthetic_users=60", "data.synthetic_items=40", "data.synthetic_per_user=8", "partition.n_shards=3", "model.width=8",
    "model.kind=averages", "partition.kind=item_hashed", "aggregation.kind=by_size", "aggregation.foldin_alpha0=0.3",
)  # fmt: skip


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_package_that_is_installed_brings_its_kinds_to_every_process_of_ray(tmp_path: Path) -> None:
    with zipfile.ZipFile(built(ROOT / "tests" / "extension", tmp_path / "built")) as wheel:
        wheel.extractall(tmp_path / "site")

    def run(job: str, *arguments: str, there: bool = True) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "PYTHONPATH")}
        environment |= {"PYTHONPATH": str(tmp_path / "site")} if there else {}
        command = [sys.executable, "-m", "ray_eraser", job, *arguments, "--json"]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=250, check=False)

    def result(job: str, *arguments: str) -> dict[str, Any]:
        done = run(job, "--storage-path", "kept", "--ray-address", "local", *arguments)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    trained = result("train", *(part for setting in SMALL for part in ("--set", setting)))
    assert (trained["partition"], trained["guarantee"]) == ("item_hashed", "exact")
    assert len(result("unlearn", "--item-id", "7")["shards_touched"]) == 1
    assert result("audit", "--item-id", "7")["exact"]

    absent = run("status", "--storage-path", "kept", "--ray-address", "local", there=False)
    assert absent.returncode == 2
    assert ".kind: '" in absent.stderr
    assert "is not known in this process" in absent.stderr.splitlines()[-1]
