"""SISA's slices (Bourtoule et al. 2021): a shard's users in ordered parts, one more of which each stage trains on.

A checkpoint after every stage but the last lets an erasure begin again before the first slice that held what goes. The units
are users, and a user's slice is a keyed hash of the raw id: nothing that comes or goes moves anybody else, and a user's pairs
are all in one slice.

R slices, U users of the vocabulary. Slices and stages are numbered from 0.
"""

from __future__ import annotations

import numpy as np

from ray_eraser.config import EraserConfig
from ray_eraser.data.interactions import Interactions
from ray_eraser.data.vocabulary import Vocabulary
from ray_eraser.ids import ShardId
from ray_eraser.seeds import derive, secret


def slices_of_users(users: Vocabulary, rows: np.ndarray, config: EraserConfig) -> np.ndarray:
    """(U,) the slice of the users in these rows, by their raw ids; 0 for others, whom nobody asked about."""
    slices_U = np.zeros(len(users), np.int32)
    asked = Vocabulary(users.kind, tuple(users.raw(rows)))
    slices_U[rows] = asked.keys(secret(config.seed, "slices")) % np.uint64(config.training.slices)
    return slices_U


def first_affected(changed: Interactions, slices_U: np.ndarray, config: EraserConfig) -> int:
    """The first stage that comes out differently once these pairs are erased or added, and with it all after it.

    That is the first slice that holds any of them, be it held out. Where nothing changes it is the last stage: the submodel is
    not had from a checkpoint without it.
    """
    return int(slices_U[changed.users].min(initial=config.training.slices - 1))


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
