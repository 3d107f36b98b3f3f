"""Attack an unlearned model by membership inference: can an attacker tell the erased interactions? No deployment is touched.

A tool for researchers. It trains on --data, erases a share, and attacks five models: the one before the erasure, the one after
it, one that never saw the data (the oracle), and two that were unlearned badly. Models of every kind can be attacked. A linear
model is not trained: there the bad ones still hold the erased pairs.

Examples:
    ray-eraser attack --data ml-1m --attack-share 0.01 --preset receraser
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from ray_eraser.cli import inputs
from ray_eraser.cli.options import ConfigOption, DataOption, JsonOption, PresetOption, RayOption, SetOption
from ray_eraser.cli.output import print_facts, print_json, results, say
from ray_eraser.cli.reaching import on_ray

if TYPE_CHECKING:
    from ray_eraser.study.attack import Against
    from ray_eraser.study.membership import AttackReport

_TASK_GPUS = 0.01

_Share = Annotated[
    float, typer.Option("--attack-share", min=0.0001, max=0.5, help="Share of the training pairs that is erased.")
]
_Users = Annotated[bool, typer.Option("--attack-users", help="Erase that share of the users instead.")]


def attack(
    *,
    data: DataOption = "synthetic",
    share: _Share = 0.01,
    users: _Users = False,
    preset: PresetOption = None,
    config: ConfigOption = None,
    changes: SetOption = None,
    ray_address: RayOption = None,
    as_json: JsonOption = False,
) -> None:
    settings = inputs.settings(config, changes, preset)
    from ray_eraser.study.membership import StudyPlan, attack_study

    dataset = inputs.read_log(data, settings.data, settings.seed)
    with on_ray(ray_address):
        from ray_eraser.runtime.pool import RayTasks

        tasks = RayTasks(settings.runtime, _TASK_GPUS if settings.runtime.known_device == "cuda" else 0)
        report = attack_study(dataset, settings, tasks, StudyPlan(share, users), lambda name: say(f"trained: {name}"))
    if as_json:
        print_json(report.to_dict())
    else:
        facts = {name: value for name, value in report.to_dict().items() if name != "results"}
        print_facts(f"membership inference on {dataset.name}", facts)
        for against in report.compared:
            results().print(_table(report, against))


def _table(report: AttackReport, against: Against) -> Table:
    """A line for each attack: how well it tells the erased pairs (AUC), how much better than on the oracle, and by how much
    the two differ at most with other seeds.
    """
    columns = ("attack", "before", "unlearned", "oracle", "excess", "others at most", "broken", "stale")
    table = Table(*columns, title=f"AUC, erased against {against} pairs", title_justify="left")
    for result in (result for result in report.results if result.against == against):
        before = f"{result.before.value:.3f}" if result.before is not None else "-"
        table.add_row(
            result.attack,
            before,
            f"{result.unlearned.value:.3f}",
            f"{result.oracle.value:.3f}",
            f"{result.excess.value:+.3f}",
            f"{max(abs(unlearned - oracle) for unlearned, oracle in result.others):.3f}",
            f"{result.broken.value:.3f}",
            f"{result.stale.value:.3f}",
        )
    return table
