"""What all commands have in common: their help, their options, and the jobs of the same names."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from commands import JOBS, environment, run, words

import ray_eraser
from ray_eraser.cli import options, reproduce, sweep
from ray_eraser.cli.main import COMMANDS, overview
from ray_eraser.config import preset_names

EVERY_HELP = """
import contextlib, io, json, sys
from ray_eraser.cli.main import COMMANDS, main

said = {}
for command in COMMANDS:
    sys.argv = ["ray-eraser", command, "--help"]
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        main()
    said[command] = text.getvalue()
slow = ("ray", "torch", "numpy", "scipy", "pyarrow", "sqlalchemy", "pydantic_settings", "numba", "ray_eraser.config")
print(json.dumps([said, [name for name in slow if name in sys.modules]]))
"""


@pytest.fixture(scope="module")
def helped() -> tuple[dict[str, str], list[str]]:
    """(the help of every command, modules that take long to import and were imported)."""
    done = subprocess.run([sys.executable, "-c", EVERY_HELP], capture_output=True, text=True, check=True, timeout=100)
    said, slow = json.loads(done.stdout)
    return said, slow


def test_no_help_imports_what_takes_long(helped: tuple[dict[str, str], list[str]]) -> None:
    assert helped[1] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_has_an_example_and_the_options_that_all_have(helped: tuple[dict[str, str], list[str]], command: str) -> None:
    text = helped[0][command]
    assert f"Usage: ray-eraser {command}" in text
    about, examples = text.split("Examples")
    assert f"ray-eraser {command} " in examples
    for option in ("--json", "--debug", "--log-format"):
        assert option in about
    assert not re.search(r"<(bool|str|int|float)", about)  # types are for programmers


def test_what_starts_a_deployment_can_take_it_over(helped: tuple[dict[str, str], list[str]]) -> None:
    can = {command for command, text in helped[0].items() if "--take-over" in text}
    assert can == {"train", "learn", "unlearn", "process", "repartition", "status", "serve"}


def test_every_command_has_a_job_of_its_name() -> None:
    assert {file.stem for file in JOBS.glob("*.py")} == set(COMMANDS)
    for command in COMMANDS:
        text = (JOBS / f"{command}.py").read_text()
        assert text == f'from ray_eraser.cli.main import main\n\nif __name__ == "__main__":\n    main("{command}")\n'


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("recommend", ("--help",)),
        ("train", ("--data", "nowhere")),
        ("status", ("--storage-path", "no", "--ray-address", "local")),
        ("sweep", ("--colour",)),
    ],
)
def test_a_job_says_and_returns_what_the_command_does(command: str, arguments: tuple[str, ...], tmp_path: Path) -> None:
    job = [sys.executable, str(JOBS / f"{command}.py"), *arguments]
    same = run(command, *arguments, folder=tmp_path)
    done = subprocess.run(job, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False, timeout=100)
    assert (done.returncode, done.stdout, done.stderr) == (same.returncode, same.stdout, same.stderr)


def test_the_overview_names_every_command_once() -> None:
    first = [line.split()[0] for line in overview().splitlines() if line.startswith("  ")]
    assert [word for word in first if word in COMMANDS] == COMMANDS


@pytest.mark.parametrize(
    ("arguments", "code", "out", "problem"),
    [
        (["--help"], 0, overview(), ""),
        (["-h"], 0, overview(), ""),
        ([], 2, "", overview()),
        (["--version"], 0, f"ray-eraser {ray_eraser.__version__}\n", ""),
        (["trian"], 2, "", "error: there is no command 'trian': did you mean 'train'?\nray-eraser --help lists the commands\n"),
        (["xyz"], 2, "", "error: there is no command 'xyz'\nray-eraser --help lists the commands\n"),
        (
            ["--json", "train"],
            2,
            "",
            (
                "error: there is no option --json before the command: options come after it\n"
                "ray-eraser --help lists the commands\n"
            ),
        ),
        (
            ["train", "--storage", "x"],
            2,
            "",
            "error: there is no option --storage: did you mean --storage-path?\nray-eraser train --help lists the options\n",
        ),
        (
            ["recommend", "--user-id"],
            2,
            "",
            "error: option '--user-id' requires an argument\nray-eraser recommend --help lists the options\n",
        ),
    ],
)
def test_the_program_answers_for_itself(arguments: list[str], code: int, out: str, problem: str, tmp_path: Path) -> None:
    done = subprocess.run([*words("")[:-1], *arguments], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (code, out, problem)


def test_help_of_a_command_can_be_asked_for_in_two_ways(tmp_path: Path) -> None:
    assert run("help", "keys", folder=tmp_path).stdout == run("keys", "--help", folder=tmp_path).stdout


def test_names_that_the_help_repeats_are_those_of_the_study_and_the_settings() -> None:
    from ray_eraser.study import cells, plans, references
    from ray_eraser.study.sweep import DEFAULT_OVER

    assert tuple(cells.MODELS) == reproduce.MODELS
    assert cells.TRAINED == reproduce.TRAINED
    assert tuple(references.REFERENCES) == reproduce.REFERENCES
    assert plans.METHODS == reproduce.METHODS
    assert set(plans.PLANS) == {what.value for what in reproduce.What}
    assert DEFAULT_OVER == sweep.DEFAULT_OVER
    assert preset_names() == options.PRESETS
