"""The triplets of kernels/sampling.py on a torch device: the same integers, drawn in parallel.

n triplets of U users and I items, all of one shard.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ray_eraser.kernels.buckets import Buckets

_CHUNK = 1 << 20
"""Number of triplets to draw at once. They take about twenty arrays of 8 MiB, sorting included. No bit depends on it."""


def _signed(bits: int) -> int:
    """The int64 with the same bits as this uint64."""
    return bits - (1 << 64) if bits >> 63 else bits


# torch has no uint64 arithmetic, but sums and products of int64 wrap around to the same bits.
_GOLDEN, _MIX_1, _MIX_2 = map(_signed, (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


@dataclass(frozen=True, eq=False)
class Pairs:
    """The pairs that triplets are drawn from, on a device.

    Attributes:
        users: the users that have a pair, ascending.
        starts: (U + 1,) where each user's items begin.
        items: (pairs,) user after user, ascending within a user.
        n_items: I.
        most: the largest number of items of one user.
    """

    users: Tensor
    starts: Tensor
    items: Tensor
    n_items: int
    most: int

    @classmethod
    def of(cls, by_user: Buckets) -> Pairs:
        """Make the pairs from each user's ascending items."""
        items, sizes_U = by_user.columns, by_user.degrees
        users, starts = (torch.from_numpy(numbers).to(items.device) for numbers in (np.flatnonzero(sizes_U), by_user.starts))
        return cls(users, starts, items, by_user.n_columns, int(sizes_U.max(initial=0)))


def draw_triplets_torch(pairs: Pairs, n: int, seed: int, first: int = 0) -> Tensor:
    """Draw triplets `first` to `first + n - 1` of the sequence of this seed, (n, 3) int32: the same as `draw_triplets` draws.

    Args:
        pairs: the pairs to draw from.
        n: the number of triplets.
        seed: the seed of the sequence, below 2^63.
        first: the number of the first triplet.
    """
    if not len(pairs.users):
        return pairs.items.new_empty(0, 3)
    drawn_n3 = pairs.items.new_empty(n, 3)
    for begin in range(0, n, _CHUNK):
        _draw(pairs, seed, first + begin, drawn_n3[begin : begin + _CHUNK])
    return drawn_n3


def batches_of_triplets(pairs: Pairs, n: int, batch: int, seed: int, first: int = 0) -> Iterator[Tensor]:
    """Draw the same triplets in parts of whole batches, to save memory. The last batch may be shorter."""
    part = batch * max(1, _CHUNK // batch)
    return (draw_triplets_torch(pairs, min(part, n - begin), seed, first + begin) for begin in range(0, n, part))


def _draw(pairs: Pairs, seed: int, first: int, drawn_n3: Tensor) -> None:
    """The bisection of kernels/sampling.py. All triplets take as many steps as the user with the most items needs."""
    numbers_n = 3 * torch.arange(first, first + len(drawn_n3), device=drawn_n3.device)
    users_n = pairs.users[_below(len(pairs.users), seed, numbers_n)]
    starts_n = pairs.starts[users_n]
    sizes_n = pairs.starts[users_n + 1] - starts_n
    drawn_n3[:, 0] = users_n
    drawn_n3[:, 1] = pairs.items[starts_n + _below(sizes_n, seed, numbers_n + 1)]
    ranks_n = _below((pairs.n_items - sizes_n).clamp_(min=1), seed, numbers_n + 2)
    below_n, largest = torch.zeros_like(ranks_n), pairs.most
    while largest > 0:
        halves_n = (sizes_n + 1) >> 1
        middles_n = below_n + halves_n - 1
        # For a finished triplet, half is 0 and nothing changes; `clamp_` only keeps its index inside the array.
        come_before_n = pairs.items[(starts_n + middles_n).clamp_(min=0)] - middles_n <= ranks_n
        below_n += halves_n * come_before_n
        sizes_n -= halves_n
        largest -= (largest + 1) >> 1
    drawn_n3[:, 2] = ranks_n + below_n


def _below(bounds: int | Tensor, seed: int, numbers_n: Tensor) -> Tensor:
    """Numbers of the sequence of this seed, each in 0 .. bound - 1, for bounds below 2^31: splitmix64 as on the CPU."""
    z = (numbers_n + 1) * _GOLDEN + seed
    z = (z ^ _shifted(z, 30)) * _MIX_1
    z = (z ^ _shifted(z, 27)) * _MIX_2
    z = z ^ _shifted(z, 31)
    return _shifted(_shifted(z, 32) * bounds, 32)


def _shifted(z: Tensor, bits: int) -> Tensor:
    """Shift right and fill with zeros, as for uint64. torch would repeat the sign bit."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)
