"""SISA's slices (Bourtoule et al. 2021): a shard's users are divided into ordered slices, and each stage adds one slice.

A checkpoint is kept after every stage but the last. An erasure restarts from the checkpoint before the first slice that held
erased data. The slice of a user is a keyed hash of the id. No user moves when others are added or erased, and all pairs of a
user are in one slice.

R slices, U users of the shard. Slices and stages are numbered from 0.
"""

from __future__ import annotations

import numpy as np

from ray_eraser.config import EraserConfig
from ray_eraser.data.interactions import Interactions
from ray_eraser.ids import ShardId
from ray_eraser.seeds import derive, mix


def slices_of_keys(user_keys: np.ndarray, config: EraserConfig) -> np.ndarray:
    """The slice of every user, (U,) int32, by the keys of their ids."""
    salt = derive(config.seed, "slices")
    return np.asarray(mix(user_keys, salt) % np.uint64(config.training.slices), np.int32)


def first_affected(changed_keys: np.ndarray, config: EraserConfig) -> int:
    """The first stage that must be retrained after pairs of these users were erased or added. All later stages must be too.

    It is the number of the first slice that holds such a pair, held-out pairs included. If nothing changed, it is the last
    stage, because the submodel cannot be made from a checkpoint without it.

    Args:
        changed_keys: (n,) uint64, the users' keys.
        config: uses `training.slices` and `seed`.
    """
    return int(slices_of_keys(changed_keys, config).min(initial=config.training.slices - 1))


def up_to(interactions: Interactions, slices_U: np.ndarray, stage: int) -> Interactions:
    """The pairs that a stage may use for training or early stopping: those of all slices up to its own."""
    return interactions.take(slices_U[interactions.users] <= stage)


def stage_epochs(config: EraserConfig) -> int:
    """The number of epochs of a stage, such that all stages together visit as many pairs as training without slices.

    Bourtoule et al. 2021: with slices of equal size, R stages of e epochs over 1/R, 2/R, ... of the pairs amount to e (R + 1) /
    2 passes over all pairs.
    """
    return max(1, round(2 * config.model.epochs / (config.training.slices + 1)))


def stage_seed(config: EraserConfig, shard: ShardId, stage: int) -> int:
    """The seed of a stage. Each stage has its own, so that a checkpoint need not store the state of a random generator."""
    return derive(config.seed, "shard", shard, "train", *([stage] if stage else []))
