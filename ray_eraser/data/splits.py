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
from ray_eraser.seeds import derive, mix, uniform


def is_held(user_keys: np.ndarray, item_keys: np.ndarray, share: float, salt: int) -> np.ndarray:
    """Mask (n,) of the pairs that are held out, given the keys of their ids. See `hold_out`."""
    return np.asarray(uniform(mix(mix(user_keys, salt), item_keys)) < share)


def set_of(user_keys: np.ndarray, item_keys: np.ndarray, config: DataConfig, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Masks (n,) of the pairs that belong to the test set and to the validation set of a log that has them, by their keys."""
    test = is_held(user_keys, item_keys, config.test_share, derive(seed, "split", "test"))
    valid = is_held(user_keys, item_keys, config.valid_share, derive(seed, "split", "valid"))
    return test, valid & ~test


def hold_out(
    interactions: Interactions, user_keys: np.ndarray, item_keys: np.ndarray, share: float, salt: int
) -> tuple[Interactions, Interactions]:
    """(kept, held): about `share` of the pairs is held, each by a number in (0, 1) that its two keys and the salt alone give.

    Args:
        interactions: the pairs to divide.
        user_keys: uint64 key of every user row, as `Vocabulary.keys` has them.
        item_keys: the same for the item rows.
        share: 0 holds nothing.
        salt: another salt holds other pairs.
    """
    held = is_held(user_keys[interactions.users], item_keys[interactions.items], share, salt)
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
    """The same log with a test set, a validation set or both held out of its training set; the others stay as they are.

    `seed` is the one that the vocabularies' keys are made with.
    """
    # User 7 and item 7 have one key; `hold_out` mixes users and items differently, so that does no harm.
    user_keys, item_keys = dataset.users.keys, dataset.items.keys
    if test:
        train, held = hold_out_set("test", dataset.train, user_keys, item_keys, config, seed)
        dataset = replace(dataset, train=train, test=held)
    if valid:
        train, held = hold_out_set("valid", dataset.train, user_keys, item_keys, config, seed)
        dataset = replace(dataset, train=train, valid=held)
    return dataset
