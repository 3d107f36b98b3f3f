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
    ray_address: cli.ExistingRayOption = None,
    as_json: cli.JsonOption = False,
    debug: cli.DebugOption = False,
) -> None:
    """Print the items that a user has not seen and would like best, best first.

    Asks the deployment that runs under this name; where none runs, reads its files. Starts nothing and disturbs nobody. What
    waits to be forgotten is left out in either case.

    [bold]Example[/bold]: python jobs/recommend.py --storage-path deployments/ml-1m --user-id 42
    """
    with cli.exit_codes(debug):
        settings = cli.settings(config, changes)
        with cli.reading(deployment, storage_path, settings.unlearning.ledger, ray_address) as asked:
            items = asked.recommend(user_id, n)
        if as_json:
            cli.print_json({"user_id": user_id, "items": items})
        else:
            cli.print_table(f"for user {user_id}", {str(rank): item for rank, item in enumerate(items, 1)})


if __name__ == "__main__":
    cli.run(recommend)
