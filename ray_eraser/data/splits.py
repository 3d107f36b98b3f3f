"""Hold out the validation and test sets of a log.

A keyed hash of the two ids decides, never order or position. Removing a pair therefore moves no other pair: a log without the
erased pairs is split as if they had never been in it. A test set by time keeps to the same rule (`data.test_from`).
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
    """Mask (n,) of the pairs to hold out, given the keys of their ids. See `hold_out`."""
    return np.asarray(uniform(mix(mix(user_keys, salt), item_keys)) < share)


def set_of(user_keys: np.ndarray, item_keys: np.ndarray, config: DataConfig, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Masks (n,) of the pairs that a log with these pairs would have in its test set and in its validation set."""
    test = is_held(user_keys, item_keys, config.test_share, derive(seed, "split", "test"))
    valid = is_held(user_keys, item_keys, config.valid_share, derive(seed, "split", "valid"))
    return test, valid & ~test


def hold_out(
    interactions: Interactions, user_keys: np.ndarray, item_keys: np.ndarray, share: float, salt: int
) -> tuple[Interactions, Interactions]:
    """Divide pairs into (kept, held); about `share` of them is held.

    A pair is held if a number in (0, 1), made from its two keys and the salt alone, is under the share.

    Args:
        interactions: the pairs to divide.
        user_keys: (U,) uint64, the key of every user row, as in `Vocabulary.keys`.
        item_keys: (I,) uint64, the key of every item row.
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
    """Divide pairs as `hold_out` does, by the share and the salt of one set. A part of a log is divided as in the whole."""
    share = config.test_share if name == "test" else config.valid_share
    return hold_out(interactions, user_keys, item_keys, share, derive(seed, "split", name))


def split(dataset: Dataset, config: DataConfig, seed: int, *, test: bool, valid: bool) -> Dataset:
    """Hold out a test set, a validation set or both from the training set. The other sets stay as they are.

    Args:
        dataset: the log.
        config: the shares to hold out.
        seed: the seed of the keys of the vocabularies.
        test: hold out a test set.
        valid: hold out a validation set.
    """
    # User 7 and item 7 have the same key. That does no harm, because `hold_out` mixes users and items differently.
    user_keys, item_keys = dataset.users.keys, dataset.items.keys
    if test:
        train, held = hold_out_set("test", dataset.train, user_keys, item_keys, config, seed)
        dataset = replace(dataset, train=train, test=held)
    if valid:
        train, held = hold_out_set("valid", dataset.train, user_keys, item_keys, config, seed)
        dataset = replace(dataset, train=train, valid=held)
    return dataset
