"""What options name: settings, and files with pairs."""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ray_eraser.cli.output import working
from ray_eraser.errors import ConfigError, DataFileError
from ray_eraser.ids import RawId

if TYPE_CHECKING:
    from ray_eraser.config import DataConfig, EraserConfig
    from ray_eraser.data.dataset import Dataset


def settings(config: Path | None, changes: list[str] | None, presets: list[str] | None = None) -> EraserConfig:
    """The settings from --preset, --config and --set.

    Paths of secrets become absolute: a deployment remembers them, and may be started from another folder next.
    """
    from ray_eraser.config import load_config

    loaded = load_config(config, changes or [], presets or [])
    given = {name: getattr(loaded.unlearning, name) for name in ("signing_key", "key_folder")}
    places = {name: str(Path(path).expanduser().absolute()) for name, path in given.items() if path}
    return loaded.model_copy(update={"unlearning": loaded.unlearning.model_copy(update=places)})


def data_settings(given: DataConfig, deployed: DataConfig) -> DataConfig:
    """How a deployment read its log, except for the settings that are given."""
    return deployed.model_copy(update={name: getattr(given, name) for name in given.model_fields_set})


def read_log(source: str, config: DataConfig, seed: int) -> Dataset:
    """Read an interaction log, and say so meanwhile."""
    with working(f"reading {source}"):
        from ray_eraser.data.files import read_dataset

        return read_dataset(source, config, seed)


def rows(rows_read: int, merged: int, left_out: Mapping[str, int]) -> str:
    """The line that says how many rows of a log were read, merged and left out."""
    from ray_eraser.data.account import listed

    return f"read {rows_read:,} rows: {merged:,} merged" + (f", {listed(left_out)} left out" if left_out else "")


def check_known(option: str, given: Iterable[str], known: Collection[str]) -> None:
    """Raise `ConfigError` for a name that is not among the known ones."""
    for name in given:
        if name not in known:
            raise ConfigError(option, f"{name!r} is not known: choose from {', '.join(known)}")


def read_pairs(file: Path) -> tuple[tuple[RawId, RawId], ...]:
    """(user id, item id) pairs from a CSV file without a header."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            rows = list(csv.reader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataFileError(str(file), f"cannot be read ({error}): give a UTF-8 CSV file", names_nobody=True) from error
    for line, row in enumerate(rows, 1):
        if len(row) != 2 or not all(row):
            raise DataFileError(str(file), f"expected 'user id,item id', got {','.join(row)!r}", line)
    return tuple((user, item) for user, item in rows)
