"""Prove that a deployment holds nothing but what training from scratch on the remaining data gives."""

from __future__ import annotations

import cli
import typer

from ray_eraser.unlearning.audit import Erased
from ray_eraser.unlearning.audit import audit as prove


def audit(
    storage_path: cli.StorageOption = None,
    deployment: cli.DeploymentOption = "default",
    user_id: cli.UserOption = None,
    item_id: cli.ItemOption = None,
    pairs: cli.PairsOption = None,
    config: cli.ConfigOption = None,
    changes: cli.SetOption = None,
    ray_address: cli.RayOption = None,
    as_json: cli.JsonOption = False,
    debug: cli.DebugOption = False,
) -> None:
    """Train every submodel and the aggregate again from the remaining interactions and compare every bit with what is stored.

    Also looks for files of earlier generations, for interactions of erased users and items, and for what --user-id, --item-id
    and --pairs name. Exits with 1 where anything is found.

    [bold]Example[/bold]: python jobs/audit.py --storage-path deployments/ml-1m --user-id 42
    """
    with cli.exit_codes(debug):
        settings = cli.settings(config, changes)
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


if __name__ == "__main__":
    cli.run(audit)
