"""Read an interaction log in any format, merge repeated pairs, hold out a test set if asked to, and write it as Parquet.

If the log comes without a split, --set data.test_share=0.2 holds out a test set, for ray-eraser evaluate and reproduce, and
--set data.valid_share=0.1 a validation set, for ray-eraser sweep. Nothing is held out by default. The split is by keyed hash
of the ids: removing an interaction moves no other between training, validation and test.

Examples:
    ray-eraser prepare --data ml-100k/u.data --output ready --set data.test_share=0.2
    ray-eraser prepare --download 1m --output ready --set data.min_rating=4
    ray-eraser prepare --data ratings.csv --newest 0.2
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ray_eraser.cli import inputs
from ray_eraser.cli.options import ConfigOption, JsonOption, SetOption
from ray_eraser.cli.output import print_facts, print_json, say, working
from ray_eraser.errors import ConfigError

if TYPE_CHECKING:
    from ray_eraser.config import EraserConfig

_Output = Annotated[Path | None, typer.Option("--output", metavar="FOLDER", help="Where the prepared log goes.")]
_Data = Annotated[str | None, typer.Option("--data", metavar="PATH|synthetic", help="The log to read.")]
_Download = Annotated[
    str | None,
    typer.Option("--download", metavar="100k|1m|10m", help="Fetch MovieLens from GroupLens into FOLDER/raw and read that."),
]


_Newest = Annotated[
    float | None,
    typer.Option(
        "--newest",
        metavar="SHARE",
        min=0.0001,
        max=0.9999,
        help="Print the data.test_from that makes this share of the newest rows the test set, and stop.",
    ),
]


def prepare(
    *,
    output: _Output = None,
    data: _Data = None,
    download: _Download = None,
    newest: _Newest = None,
    config: ConfigOption = None,
    changes: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    if (data is None) == (download is None):
        raise ConfigError("--data", "give either --data or --download")
    if newest is not None and data is None:
        raise ConfigError("--newest", "name the log with --data")
    if newest is None and output is None:
        raise ConfigError("--output", "name the folder that the prepared log goes to")
    settings = inputs.settings(config, changes)
    if newest is not None:
        _print_time(data, settings, newest, as_json=as_json)
        return
    assert output is not None
    source = _downloaded(download, output) if download is not None else str(data)
    dataset = inputs.read_log(source, settings.data, settings.seed)

    from ray_eraser.data.files import write_dataset

    write_dataset(dataset, output, settings.data)
    for notice in dataset.notices:
        say(f"notice: {notice}")
    result = {
        "output": str(output),
        "n_users": len(dataset.users),
        "n_items": len(dataset.items),
        "train": len(dataset.train),
        "valid": len(dataset.valid),
        "test": len(dataset.test),
        "rows_read": dataset.rows_read,
        "merged": dataset.merged,
        "left_out": dict(dataset.left_out),
        "below_rating": dataset.below_rating,
        "notices": list(dataset.notices),
    }
    if as_json:
        print_json(result)
    else:
        _print(result)


def _downloaded(size: str, output: Path) -> str:
    from ray_eraser.data.download import download_movielens

    with working(f"fetching MovieLens {size}"):
        return str(download_movielens(size, output / "raw"))


def _print_time(data: str | None, settings: EraserConfig, share: float, *, as_json: bool) -> None:
    from ray_eraser.data.files import time_of_newest

    with working(f"reading {data}"):
        found = time_of_newest(str(data), settings.data, share)
    if as_json:
        print_json({"data.test_from": found})
    else:
        sys.stdout.write(f"data.test_from={found}\n")


def _print(result: dict[str, Any]) -> None:
    from ray_eraser.data.account import listed

    print_facts(
        "prepared",
        {
            "rows read": result["rows_read"],
            "merged": f"{result['merged']:,} that repeat an interaction",
            "left out": listed(result["left_out"]) or "none",
            "users": result["n_users"],
            "items": result["n_items"],
            "to learn from": result["train"],
            "held out": f"{result['valid']:,} for validation, {result['test']:,} for the test",
            "written to": result["output"],
        },
    )
