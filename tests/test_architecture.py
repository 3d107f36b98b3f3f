"""The floors of the house: imports point one way, and only one folder knows Ray."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "ray_eraser"

FLOORS = [
    {"errors", "ids", "seeds", "compute", "determinism", "devices", "registry", "logs", "clock", "notebook"},
    {"config", "embeddings", "data"},
    {"kernels", "metrics", "ranking"},
    {"evaluation"},
    {"models", "partition"},
    {"training", "aggregation"},
    {"served", "vectors", "prepare"},
    {"recommend"},
    {"store"},
    {"shard", "aggregator", "ingest"},
    {"unlearning"},
    {"generation", "backlog", "opening", "pool", "force"},
    {"status", "healing"},
    {"serving", "building"},
    {"intake", "reading", "observer"},
    {"coordinator"},
    {"study", "web", "doctor"},
    {"runtime"},
    {"cli"},
    {"testing", "__main__"},
]
"""From the ground up. A module imports what is below its own floor, never what is above or beside it. The parts of one folder
may import each other, and so may the two lowest floors."""

FILES = sorted(PACKAGE.rglob("*.py"))


def _name(file: Path) -> str:
    """The module or folder directly under the package that a file belongs to."""
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _floor(name: str) -> int:
    return next(number for number, floor in enumerate(FLOORS) if name in floor)


def _imports(file: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: write imports in full"
            found.append(str(node.module))
            found += [f"{node.module}.{alias.name}" for alias in node.names if node.module == "ray_eraser"]
    return found


def test_every_module_has_a_floor() -> None:
    names = {_name(file) for file in FILES} - {"__init__"}
    assert names == set().union(*FLOORS)


@pytest.mark.parametrize("file", [file for file in FILES if _name(file) != "__init__"], ids=lambda file: file.stem)
def test_imports_do_not_point_upwards(file: Path) -> None:
    for module in _imports(file):
        if module.startswith("ray_eraser."):
            used = module.split(".")[1]
            mine, theirs = _floor(_name(file)), _floor(used)
            assert theirs <= mine, f"{file.relative_to(PACKAGE)} imports {module}, from a higher floor"
            apart = used != _name(file) and theirs == mine > 1
            assert not apart, f"{file.relative_to(PACKAGE)} imports {module}, from beside it"


LONGEST_FUNCTION, MOST_METHODS, LONGEST_COORDINATOR = 60, 30, 550
"""Lines, methods, lines: what can still be read at once."""


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_functions_and_classes_can_be_read_at_once(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.FunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= LONGEST_FUNCTION, f"{file.relative_to(PACKAGE)}: {node.name} has {length} lines"
        elif isinstance(node, ast.ClassDef):
            methods = sum(isinstance(part, ast.FunctionDef) for part in node.body)
            assert methods <= MOST_METHODS, f"{file.relative_to(PACKAGE)}: {node.name} has {methods} methods"


def test_the_coordinator_is_its_flows_alone() -> None:
    assert len((PACKAGE / "coordinator.py").read_text("utf-8").splitlines()) < LONGEST_COORDINATOR


def test_only_the_runtime_imports_ray() -> None:
    for file in FILES:
        if _name(file) != "runtime":
            roots = {module.split(".")[0] for module in _imports(file)}
            assert "ray" not in roots, f"{file.relative_to(PACKAGE)} imports ray"


def test_importing_the_package_imports_neither_ray_nor_torch() -> None:
    code = "import ray_eraser, sys; print([m for m in ('ray', 'torch') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_importing_the_package_needs_no_tests_library() -> None:
    for file in (file for file in FILES if _name(file) != "testing"):
        roots = {module.split(".")[0] for module in _imports(file)}
        assert roots.isdisjoint({"pytest", "hypothesis"}), file.relative_to(PACKAGE)


def test_a_coordinator_does_not_need_torch() -> None:
    code = "import ray_eraser.coordinator, sys; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_nothing_stored_is_read_by_running_it() -> None:
    for file in (file for file in FILES if _name(file) != "testing"):
        text = file.read_text("utf-8")
        for unsafe in ("pickle.load", "torch.load", "allow_pickle=True", "eval(", "exec("):
            assert unsafe not in text, f"{file.relative_to(PACKAGE)} uses {unsafe}"


def test_no_public_name_is_hidden_by_a_module_of_the_same_name() -> None:
    # A module, once imported, stands under its name in the package: the function would be gone from then on.
    import ray_eraser

    modules = {file.stem for file in PACKAGE.glob("*.py")} | {folder.name for folder in PACKAGE.iterdir() if folder.is_dir()}
    assert modules.isdisjoint(ray_eraser.__all__)
