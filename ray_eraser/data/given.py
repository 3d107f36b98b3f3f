"""The logs that `fit` accepts: a `Dataset`, a data frame, or pairs."""

from __future__ import annotations

from pathlib import Path

from ray_eraser.config import DataConfig
from ray_eraser.data.dataset import Dataset
from ray_eraser.data.files import dataset_of_log
from ray_eraser.data.frames import ITEM_COLUMN, USER_COLUMN, Pairs, id_table, is_frame, pairs_of, refuse_floats, table_of_pairs
from ray_eraser.data.parquet import log_of_table
from ray_eraser.errors import InputError


def dataset_of(log: Dataset | Pairs, config: DataConfig, seed: int) -> Dataset:
    """A log as `read_dataset` reads a Parquet file with the same columns: checked, numbered and split by the settings.

    Args:
        log: a `Dataset`, which comes back as it is; a data frame with the columns that `config` names, or with the two columns
            of ids alone; or (user id, item id) pairs.
        config: columns, the lowest rating to keep, and shares to hold out.
        seed: keys the hash that orders and splits.

    Raises:
        InputError: a column is missing, or something cannot be an id.
    """
    if isinstance(log, Dataset):
        return log
    if is_frame(log):
        name, table = "the data frame", id_table(log, config.user_column, config.item_column)
        refuse_floats(table, config.user_column, config.item_column)
    elif isinstance(log, str | Path):
        raise InputError(f"{str(log)!r} is a path: hand in read_dataset(path, config.data, config.seed)")
    else:
        name, table = "the pairs", table_of_pairs(pairs_of(log))
        config = config.model_copy(update={"user_column": USER_COLUMN, "item_column": ITEM_COLUMN})
    return dataset_of_log(name, log_of_table(name, table, config), config, seed)
