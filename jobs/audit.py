"""Prove that a deployment holds nothing but what training from scratch on the remaining data gives."""

from __future__ import annotations

from typing import Annotated

import cli
import typer
from rich.console import Console
from rich.table import Table

from ray_eraser.config import EraserConfig
from ray_eraser.data.files import read_dataset
from ray_eraser.study.attack import Against
from ray_eraser.study.membership import AttackReport, StudyPlan, attack_study
from ray_eraser.unlearning.audit import Erased
from ray_eraser.unlearning.audit import audit as prove


def audit(
    storage_path: cli.StorageOption = None,
    deployment: cli.DeploymentOption = "default",
    user_id: cli.UserOption = None,
    item_id: cli.ItemOption = None,
    pairs: cli.PairsOption = None,
    attack: Annotated[
        bool, typer.Option("--attack", help="Study membership inference on --data instead; no deployment is touched.")
    ] = False,
    data: cli.DataOption = "synthetic",
    attack_share: Annotated[
        float, typer.Option("--attack-share", min=0.0001, max=0.5, help="Share of the training pairs that is erased.")
    ] = 0.01,
    attack_users: Annotated[bool, typer.Option("--attack-users", help="Erase that share of the users instead.")] = False,
    preset: cli.PresetOption = None,
    config: cli.ConfigOption = None,
    changes: cli.SetOption = None,
    ray_address: cli.RayOption = None,
    as_json: cli.JsonOption = False,
    debug: cli.DebugOption = False,
) -> None:
    """Train every submodel and the aggregate again from the remaining interactions and compare every bit with what is stored.

    Also looks for files of earlier generations, for interactions of erased users and items, and for what --user-id, --item-id
    and --pairs name. Exits with 1 where anything is found.

    With --attack it is a tool for researchers: it trains on --data, erases a share, and attacks by membership inference the
    model before the erasure, the one after it, one that never saw the data (the oracle), and two that were unlearned badly.

    [bold]Example[/bold]: python jobs/audit.py --storage-path deployments/ml-1m --user-id 42

    [bold]Example[/bold]: python jobs/audit.py --attack --data ml-1m --attack-share 0.01 --preset receraser
    """
    with cli.exit_codes(debug):
        settings = cli.settings(config, changes, preset)
        if attack:
            _attack(data, settings, StudyPlan(attack_share, attack_users), ray_address, as_json=as_json)
            return
        place = cli.place(storage_path, deployment)
        store, published = cli.published_generation(place, deployment, settings.unlearning.ledger)
        sought = Erased(
            (user_id,) if user_id is not None else (),
            (item_id,) if item_id is not None else (),
            cli.read_pairs(pairs) if pairs is not None else (),
        )

        from ray_eraser.runtime.pool import RayTasks
        from ray_eraser.runtime.session import session

        with session(ray_address):
            manifest = store.read_manifest(published.digest)
            compute = RayTasks(manifest.config.runtime.model_copy(update={"slots": settings.runtime.slots}))
            with cli.people.status("training again from what remains"):
                report = prove(store, published, compute, sought)
        result = report.to_dict() | {"mismatches": list(report.mismatches)}
        if as_json:
            cli.print_json(result)
        else:
            cli.print_table("audit", {**result, "mismatches": "\n".join(report.mismatches) or "none"})
        if not report.exact:
            raise typer.Exit(cli.FAILED)


def _attack(data: str, settings: EraserConfig, plan: StudyPlan, ray_address: str | None, *, as_json: bool) -> None:
    dataset = read_dataset(data, settings.data, settings.seed)

    from ray_eraser.runtime.pool import RayTasks
    from ray_eraser.runtime.session import session

    with session(ray_address):
        report = attack_study(dataset, settings, RayTasks(settings.runtime), plan, lambda name: cli.say(f"trained: {name}"))
    if as_json:
        cli.print_json(report.to_dict())
    else:
        facts = {name: value for name, value in report.to_dict().items() if name != "results"}
        cli.print_table(f"membership inference on {dataset.name}", facts)
        for against in report.compared:
            Console().print(_table(report, against))


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


if __name__ == "__main__":
    cli.run(audit)
