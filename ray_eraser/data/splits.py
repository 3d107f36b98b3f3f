"""What is held out of a log for validation and test.

By keyed hash of the two ids, never by order or position: removing a pair moves no other, so a log without erased pairs is split
as it would have been had they never been there.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np

from ray_eraser.config import DataConfig
from ray_eraser.data.dataset import Dataset
from ray_eraser.data.interactions import Interactions
from ray_eraser.seeds import derive, mix, secret, uniform


def hold_out(
    interactions: Interactions, user_keys: np.ndarray, item_keys: np.ndarray, share: float, salt: int
) -> tuple[Interactions, Interactions]:
    """(kept, held): about `share` of the pairs is held, each by a number in (0, 1) that its two keys and the salt alone give.

    Args:
        interactions: the pairs to divide.
        user_keys: uint64 key of every user row, as `Vocabulary.keys` gives them.
        item_keys: the same for the item rows.
        share: 0 holds nothing.
        salt: another salt holds other pairs.
    """
    pair_keys = mix(mix(user_keys[interactions.users], salt), item_keys[interactions.items])
    held = uniform(pair_keys) < share
    return interactions.take(~held), interactions.take(held)


def hold_out_set(
    name: Literal["test", "valid"],
    interactions: Interactions,
    user_keys: np.ndarray,
    item_keys: np.ndarray,
    config: DataConfig,
    seed: int,
) -> tuple[Interactions, Interactions]:
    """(kept, held) as `hold_out`, by the share and the salt of one set. A part of a log is divided as in the whole."""
    share = config.test_share if name == "test" else config.valid_share
    return hold_out(interactions, user_keys, item_keys, share, derive(seed, "split", name))


def split(dataset: Dataset, config: DataConfig, seed: int, *, test: bool, valid: bool) -> Dataset:
    """The same log with a test set, a validation set or both held out of its training set; the others stay as they are."""
    # User 7 and item 7 have one key; `hold_out` mixes users and items differently, so that does no harm.
    key = secret(seed, "ids")
    user_keys, item_keys = dataset.users.keys(key), dataset.items.keys(key)
    if test:
        train, held = hold_out_set("test", dataset.train, user_keys, item_keys, config, seed)
        dataset = replace(dataset, train=train, test=held)
    if valid:
        train, held = hold_out_set("valid", dataset.train, user_keys, item_keys, config, seed)
        dataset = replace(dataset, train=train, valid=held)
    return dataset
