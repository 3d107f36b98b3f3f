"""Write the served vectors with their ids, for whoever serves them elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import cli
import typer


def export_vectors(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The folder to write to; its files are replaced.")],
    storage_path: cli.StorageOption = None,
    deployment: cli.DeploymentOption = "default",
    config: cli.ConfigOption = None,
    changes: cli.SetOption = None,
    ray_address: cli.ExistingRayOption = None,
    as_json: cli.JsonOption = False,
    debug: cli.DebugOption = False,
) -> None:
    """Write vectors.npz (users, items), users.parquet and items.parquet (their ids, in the same order), and about.json.

    Scores are inner products. They are what is served now: while shards are trained again, the excision, which is as free of
    the data. Where the deployment does not run, its files are read: nothing is started.

    [bold]Copies do not forget[/bold]: after every erasure export again, replace all vectors wherever you keep them, and delete
    the older files. about.json says which generation they are of.

    [bold]Example[/bold]: python jobs/export_vectors.py --deployment shop --out vectors
    """
    with cli.exit_codes(debug):
        settings = cli.settings(config, changes)
        with cli.reading(deployment, storage_path, settings.unlearning.ledger, ray_address) as asked:
            vectors = asked.vectors()
        files = vectors.write(out)
        result = {**vectors.about(), "files": [str(file) for file in files]}
        if as_json:
            cli.print_json(result)
        else:
            cli.print_table("vectors: copies do not forget, export again after every erasure", result)


if __name__ == "__main__":
    cli.run(export_vectors)
