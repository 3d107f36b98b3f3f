"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

import ray_eraser

# As `config.preset_names` says them. Importing the settings would slow down every --help.
PRESETS = sorted(file.stem for file in (Path(ray_eraser.__file__).parent / "presets").glob("*.toml"))

DataOption = Annotated[
    str,
    typer.Option(
        "--data",
        metavar="PATH|synthetic",
        help="An interaction log: a folder with train/valid/test .txt[.gz]; MovieLens u.data, ratings.dat or ratings.csv; "
        "CSV, TSV, RecBole .inter, Parquet, or a folder with several files of these; or the output of ray-eraser prepare. "
        "'synthetic' generates a log.",
    ),
]
StorageOption = Annotated[
    str | None,
    typer.Option(
        "--storage-path",
        metavar="URI",
        help="Where the deployment's files are: a folder, s3://... or gs://... Default: deployments/NAME.",
    ),
]
DeploymentOption = Annotated[str, typer.Option("--deployment", metavar="NAME", help="The deployment's name on Ray.")]
ConfigOption = Annotated[Path | None, typer.Option("--config", metavar="FILE.toml", help="A file with settings.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="One setting, which overrides the file's. Repeatable."),
]
PresetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--preset",
        metavar="NAME",
        help=f"A method, or settings of a model, by name. --config and --set override it. One of {', '.join(PRESETS)}.",
    ),
]
RayOption = Annotated[
    str | None,
    typer.Option(
        "--ray-address",
        metavar="ADDRESS",
        envvar="RAY_ADDRESS",
        help="The Ray cluster: host:port, 'auto', or 'local' for a Ray of this command alone. "
        "Default: the Ray that runs on this machine, else a local one.",
    ),
]
ExistingRayOption = Annotated[
    str | None,
    typer.Option(
        "--ray-address",
        metavar="ADDRESS",
        envvar="RAY_ADDRESS",
        help="The Ray cluster where the deployment may be running: host:port, 'auto', or 'local' for none. Default: the Ray "
        "that runs on this machine, if there is one. No Ray is started.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line on stdout.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the whole traceback of an error.")]
LogFormatOption = Annotated[
    Literal["text", "json"],
    typer.Option(
        "--log-format",
        help="The format of stderr: text for people, or json for programs, one object a line, without user ids.",
    ),
]
UserOption = Annotated[str | None, typer.Option("--user-id", metavar="ID", help="A user, as the log names it.")]
ItemOption = Annotated[str | None, typer.Option("--item-id", metavar="ID", help="An item, as the log names it.")]
PairsOption = Annotated[
    Path | None,
    typer.Option("--pairs", metavar="FILE.csv", help="Interactions: one 'user id,item id' a line, no header."),
]
NowOption = Annotated[
    bool, typer.Option("--now", help="Carry out everything that waits at once, whatever the plan (unlearning.plan).")
]
TakeOverOption = Annotated[
    bool,
    typer.Option(
        "--take-over",
        help="If another Ray or machine runs the deployment, take it over at once. Default: wait up to a minute for it to end.",
    ),
]
IdempotencyOption = Annotated[
    str | None,
    typer.Option("--idempotency-key", metavar="KEY", help="A submission repeated with the same key is the same request."),
]
