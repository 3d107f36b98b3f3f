"""Ask a deployment what to recommend to a user."""

from __future__ import annotations

from typing import Annotated

import cli
import typer


def recommend(
    user_id: Annotated[str, typer.Option("--user-id", metavar="ID", help="The user, as the log names it.")],
    n: Annotated[int, typer.Option("--n", min=1, help="How many items.")] = 10,
    storage_path: cli.StorageOption = None,
    deployment: cli.DeploymentOption = "default",
    config: cli.ConfigOption = None,
    changes: cli.SetOption = None,
    ray_address: cli.RayOption = None,
    as_json: cli.JsonOption = False,
    debug: cli.DebugOption = False,
) -> None:
    """Print the items that a user has not seen and would like best, best first.

    Asks the deployment that runs on the cluster under this name; where none runs, brings it up from its storage path.

    [bold]Example[/bold]: python jobs/recommend.py --storage-path deployments/ml-1m --user-id 42
    """
    with cli.exit_codes(debug):
        settings = cli.settings(config, changes)

        from ray_eraser.runtime.session import session

        with session(ray_address) as ray_session:
            client = cli.attach(deployment, storage_path, settings.unlearning.ledger)
            items = client.recommend(user_id, n)
            if ray_session.local:
                client.shutdown()
        if as_json:
            cli.print_json({"user_id": user_id, "items": items})
        else:
            cli.print_table(f"for user {user_id}", {str(rank): item for rank, item in enumerate(items, 1)})


if __name__ == "__main__":
    cli.run(recommend)
