"""SISA's slices (Bourtoule et al. 2021): a shard's users in ordered parts, one more of which each stage trains on.

A checkpoint after every stage but the last lets an erasure begin again before the first slice that held what goes. The units
are users, and a user's slice is a keyed hash of the id: nothing that comes or goes moves anybody else, and a user's pairs
are all in one slice.

R slices, U users of the shard. Slices and stages are numbered from 0.
"""

from __future__ import annotations

import numpy as np

from ray_eraser.config import EraserConfig
from ray_eraser.data.interactions import Interactions
from ray_eraser.ids import ShardId
from ray_eraser.seeds import derive, mix


def slices_of_keys(user_keys: np.ndarray, config: EraserConfig) -> np.ndarray:
    """(U,) int32, the slice of every user, by the keys of their ids."""
    salt = derive(config.seed, "slices")
    return np.asarray(mix(user_keys, salt) % np.uint64(config.training.slices), np.int32)


def first_affected(changed_keys: np.ndarray, config: EraserConfig) -> int:
    """The first stage that comes out differently once pairs of these users are erased or added, and with it all after it.

    That is the first slice that holds any of them, be it held out. Where nothing changes it is the last stage: the submodel is
    not had from a checkpoint without it.

    Args:
        changed_keys: (n,) uint64, the users' keys.
        config: `training.slices` and `seed` count.
    """
    return int(slices_of_keys(changed_keys, config).min(initial=config.training.slices - 1))


def up_to(interactions: Interactions, slices_U: np.ndarray, stage: int) -> Interactions:
    """What a stage trains on, or may look at to stop: the pairs of the slices up to its own."""
    return interactions.take(slices_U[interactions.users] <= stage)


def stage_epochs(config: EraserConfig) -> int:
    """Epochs of a stage: so many that all stages pass over as many pairs as the model's epochs without slices would.

    Bourtoule et al. 2021: with slices alike in size, R stages of e epochs over 1/R, 2/R, ... of the pairs are e (R + 1) / 2
    passes over all of them.
    """
    return max(1, round(2 * config.model.epochs / (config.training.slices + 1)))


def stage_seed(config: EraserConfig, shard: ShardId, stage: int) -> int:
    """What a stage draws from. One of its own, so that a checkpoint need not say how far an earlier one has drawn."""
    return derive(config.seed, "shard", shard, "train", *([stage] if stage else []))
