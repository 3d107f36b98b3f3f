"""Write vectors.npz (users, items), users.parquet and items.parquet (their ids, in the same order), and about.json.

Scores are inner products of the vectors. The vectors are those that are served now: while shards are trained again, the
aggregate without the erased data. If the deployment does not run, its files are read. Nothing is started.

[bold]Copies do not forget[/bold]: after every erasure export again, replace all vectors wherever you keep them, and delete
the older files. about.json says which generation they are of.

Examples:
    ray-eraser vectors --deployment shop --out vectors
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ray_eraser.cli import inputs
from ray_eraser.cli.options import ConfigOption, DeploymentOption, ExistingRayOption, JsonOption, SetOption, StorageOption
from ray_eraser.cli.output import print_facts, print_json
from ray_eraser.cli.reaching import reading

_Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="The folder to write to; its files are replaced.")]


def vectors(
    *,
    out: _Out,
    storage_path: StorageOption = None,
    deployment: DeploymentOption = "default",
    config: ConfigOption = None,
    changes: SetOption = None,
    ray_address: ExistingRayOption = None,
    as_json: JsonOption = False,
) -> None:
    settings = inputs.settings(config, changes)
    with reading(deployment, storage_path, settings.unlearning.ledger, ray_address) as asked:
        found = asked.vectors()
    files = found.write(out)
    result = {**found.about(), "files": [str(file) for file in files]}
    if as_json:
        print_json(result)
    else:
        print_facts("vectors: copies do not forget, export again after every erasure", result)
