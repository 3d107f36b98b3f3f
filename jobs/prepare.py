"""Read an interaction log in any format, split it, and write it as Parquet."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import cli
import typer

from ray_eraser.data.download import download_movielens
from ray_eraser.data.files import read_dataset, write_dataset
from ray_eraser.errors import ConfigError


def prepare(
    output: Annotated[Path, typer.Option("--output", metavar="FOLDER", help="Where the prepared log goes.")],
    data: Annotated[str | None, typer.Option("--data", metavar="PATH|synthetic", help="The log to read.")] = None,
    download: Annotated[
        str | None,
        typer.Option("--download", metavar="100k|1m|10m", help="Fetch MovieLens from GroupLens into FOLDER/raw and read that."),
    ] = None,
    config: cli.ConfigOption = None,
    changes: cli.SetOption = None,
    as_json: cli.JsonOption = False,
    debug: cli.DebugOption = False,
) -> None:
    """Read an interaction log, merge repeated pairs, hold out what you ask for, and write it as Parquet.

    Where the log comes without a split, --set data.test_share=0.2 holds out a test set, for evaluate.py and reproduce.py, and
    --set data.valid_share=0.1 a validation set, for sweep.py. Nothing is held out unless you ask for it. The split is by keyed
    hash of the ids: removing an interaction moves no other between training, validation and test.

    [bold]Example[/bold]: python jobs/prepare.py --data ml-100k/u.data --output prepared/ml-100k --set data.min_rating=4
    --set data.test_share=0.2
    """
    with cli.exit_codes(debug):
        settings = cli.settings(config, changes)
        if (data is None) == (download is None):
            raise ConfigError("--data", "give either --data or --download")
        source = str(download_movielens(download, output / "raw")) if download is not None else str(data)
        dataset = read_dataset(source, settings.data, settings.seed)
        write_dataset(dataset, output, settings.data)
        result = {
            "output": str(output),
            "n_users": len(dataset.users),
            "n_items": len(dataset.items),
            "train": len(dataset.train),
            "valid": len(dataset.valid),
            "test": len(dataset.test),
            "merged": dataset.merged,
            "below_rating": dataset.below_rating,
        }
        if as_json:
            cli.print_json(result)
        else:
            cli.print_table("prepared", result)


if __name__ == "__main__":
    cli.run(prepare)
