"""A ridge linear autoencoder with degree normalisation. It trains nothing: each read solves for the user's scores.

Related work: EASE (Steck 2019), DAN's normalisation (Park et al., SIGIR 2025), graph filters (GF-CF, Shen et al. 2021). R is
the (U, I) 0/1 matrix of the training pairs of all shards, d are its degrees, and r_u are the items of a user:

    R^ = diag((d_u / mean d_u)^-b) R diag((d_i / mean d_i)^-a)        G = R^' R^        lambda = ridge * mean d_i
    x = diag((d_i / mean d_i)^-a) r_u          z = (G + lambda)^-1 G x, by deflated conjugate gradients
    scores of user u = diag((d_i / mean d_i)^a) z

The deflated direction is popularity, q = diag((d_i / mean d_i)^-a) d_i, which is close to the leading eigenvector of G. The
solution along q is exact from the start (Saad et al. 2000), so a few steps suffice on every log.

Means are over the users and items that have a pair, so empty rows and columns of R change nothing.

U users and I items in a numbering that all shards share, U' users of one shard, B users of one request.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ray_eraser.config import LinearConfig
from ray_eraser.data.interactions import Interactions
from ray_eraser.determinism import in_parts
from ray_eraser.kernels.products import Rows, add_at, along, deflate, descend, finish, turn, weigh

_AT_ONCE = 32
"""Number of users to solve together: two cache lines of numbers for every item. More are not faster and need more memory."""
_FEW = 4
"""Smallest number of users for which solving them together is faster than one by one."""


@dataclass(frozen=True, eq=False)
class Slice:
    """The training pairs of one shard, R_s, and its products.

    If all pairs of a user are in one slice, as in `hashed` partitions, `gram` is the shard's whole part of a product. If users
    are split over slices, a product takes two rounds: `to_users`, summed over all slices, then `to_items`.

    Attributes:
        users: (U',) int32, ascending numbers of the users that have a pair here.
        by_user: (U', I) each user's items.
        by_item: (I, U') each item's users, as positions in `users`.
    """

    users: np.ndarray
    by_user: Rows
    by_item: Rows

    @classmethod
    def of(cls, interactions: Interactions, n_items: int) -> Slice:
        """Make a slice from pairs in the common numbering."""
        starts = np.flatnonzero(np.diff(interactions.users, prepend=-1))
        by_user = Rows.of(np.append(starts, len(interactions)), interactions.items)
        return cls(interactions.users[starts], by_user, by_user.transposed(n_items))

    def without(self, gone: Interactions) -> tuple[Slice, np.ndarray, np.ndarray]:
        """Remove some pairs from the only slice of a model. The arrays are the same as if made from the remaining pairs.

        Users and items that lose their last pair also lose their numbers, and later numbers move down.

        Args:
            gone: pairs of this slice. Users are given as positions in `users`.

        Returns:
            The slice, and masks of the users and items that keep a pair.
        """
        starts = np.concatenate([[0], np.cumsum(np.bincount(gone.users, minlength=len(self.users)))])
        gone_by_user = Rows.of(starts, gone.items)
        gone_by_item = gone_by_user.transposed(len(self.by_item))
        users_left, items_left = (
            rows.degrees() > gone_rows.degrees()
            for rows, gone_rows in ((self.by_user, gone_by_user), (self.by_item, gone_by_item))
        )
        by_user = self.by_user.without(gone_by_user, items_left)
        users = np.arange(len(by_user), dtype=np.int32)
        return Slice(users, by_user, self.by_item.without(gone_by_item, users_left)), users_left, items_left

    def to_users(self, vectors_IB: np.ndarray) -> np.ndarray:
        """R_s V, (U', B)."""
        return self.by_user.sums(vectors_IB)

    def to_users_of(self, asked: Rows, weights_I: np.ndarray) -> np.ndarray:
        """R_s diag(weights) A', (U', B), with A the asked users' items. Visits only users who share an item with them."""
        return self.by_item.spread(asked, weights_I, len(self.users))

    def to_items(self, sums_UB: np.ndarray) -> np.ndarray:
        """R_s' T, (I, B)."""
        return self.by_item.sums(sums_UB)

    def gram(self, vectors_IB: np.ndarray, weights_U: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """R_s' W^2 R_s V, (I, B), and the sums over users of (W R_s V)^2, (B,) float64, with W the weights of `users`."""
        sums_UB = self.to_users(vectors_IB)
        squares_B = weigh(sums_UB, weights_U)
        return self.to_items(sums_UB), squares_B

    def gram_of(self, asked: Rows, weights_I: np.ndarray, weights_U: np.ndarray) -> np.ndarray:
        """R_s' W^2 times `to_users_of`, (I, B)."""
        sums_UB = self.to_users_of(asked, weights_I)
        weigh(sums_UB, weights_U)
        return self.to_items(sums_UB)

    def squares(self, vectors_IB: np.ndarray, weights_U: np.ndarray) -> np.ndarray:
        """The second result of `gram`, in half the time."""
        return weigh(self.to_users(vectors_IB), weights_U)


@dataclass(frozen=True, eq=False)
class Normalisation:
    """The weights that follow from the degrees of all pairs.

    Attributes:
        user_degrees: (U,) int64.
        item_degrees: (I,) int64.
        users: (U,) float32, (d_u / mean d_u)^-b; 0 without a pair.
        items: (I,) float32, (d_i / mean d_i)^-a; 0 without a pair.
        back: (I,) float32, (d_i / mean d_i)^a; 0 without a pair.
        ridge: lambda.
    """

    user_degrees: np.ndarray
    item_degrees: np.ndarray
    users: np.ndarray
    items: np.ndarray
    back: np.ndarray
    ridge: np.float32

    @classmethod
    def of(cls, slices: Sequence[Slice], n_users: int, n_items: int, config: LinearConfig) -> Normalisation:
        user_degrees, item_degrees = np.zeros(n_users, np.int64), np.zeros(n_items, np.int64)
        for own in slices:
            user_degrees[own.users] += own.by_user.degrees()
            item_degrees += own.by_item.degrees()
        return cls(
            user_degrees,
            item_degrees,
            _power(user_degrees, -config.normalise_users),
            _power(item_degrees, -config.normalise_items),
            _power(item_degrees, config.normalise_items),
            np.float32(config.known_ridge * _mean(item_degrees)),
        )


class Products(Protocol):
    """The products that `solve` needs. R holds the pairs of all slices, and W the weights of the users.

    The slices may be in this process or elsewhere.
    """

    def gram_of(self, asked: Rows, weights_I: np.ndarray) -> np.ndarray:
        """R' W^2 R diag(weights) A', (I, B), with A the asked users' items."""

    def gram(self, vectors_IB: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """R' W^2 R V, (I, B), and the sums over users of (W R V)^2, (B,) float64."""

    def squares(self, vectors_IB: np.ndarray) -> np.ndarray:
        """The second result of `gram`."""


@dataclass(frozen=True, eq=False)
class OfWholeUsers:
    """Products over slices without a common user. Every slice computes its whole part in one round.

    Attributes:
        slices: at least one; parts are added in this order.
        weights: the weights of each slice's users, (U',) float32.
    """

    slices: tuple[Slice, ...]
    weights: tuple[np.ndarray, ...]

    def gram_of(self, asked: Rows, weights_I: np.ndarray) -> np.ndarray:
        return _added(own.gram_of(asked, weights_I, weights_U) for own, weights_U in self._each())

    def gram(self, vectors_IB: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        parts = (own.gram(vectors_IB, weights_U) for own, weights_U in self._each())
        products_IB, squares_B = next(parts)
        for product_IB, square_B in parts:
            products_IB += product_IB
            squares_B += square_B
        return products_IB, squares_B

    def squares(self, vectors_IB: np.ndarray) -> np.ndarray:
        return _added(own.squares(vectors_IB, weights_U) for own, weights_U in self._each())

    def _each(self) -> Iterator[tuple[Slice, np.ndarray]]:
        return zip(self.slices, self.weights, strict=True)


@dataclass(frozen=True, eq=False)
class OfSplitUsers:
    """Products over slices with common users, in two rounds: sums of each user over all slices, then sums of each item.

    Attributes:
        slices: at least one; sums are added in this order.
        weights: the weights of all users, (U,) float32.
    """

    slices: tuple[Slice, ...]
    weights: np.ndarray

    def gram_of(self, asked: Rows, weights_I: np.ndarray) -> np.ndarray:
        sums_UB = self._sums(len(asked), (own.to_users_of(asked, weights_I) for own in self.slices))
        weigh(sums_UB, self.weights)
        return self._to_items(sums_UB)

    def gram(self, vectors_IB: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        sums_UB = self._sums(vectors_IB.shape[1], (own.to_users(vectors_IB) for own in self.slices))
        squares_B = weigh(sums_UB, self.weights)
        return self._to_items(sums_UB), squares_B

    def squares(self, vectors_IB: np.ndarray) -> np.ndarray:
        return weigh(self._sums(vectors_IB.shape[1], (own.to_users(vectors_IB) for own in self.slices)), self.weights)

    def _sums(self, n_asked: int, parts: Iterable[np.ndarray]) -> np.ndarray:
        sums_UB = np.zeros((len(self.weights), n_asked), np.float32)
        for own, part_UB in zip(self.slices, parts, strict=True):
            add_at(sums_UB, own.users, part_UB)
        return sums_UB

    def _to_items(self, sums_UB: np.ndarray) -> np.ndarray:
        return _added(own.to_items(sums_UB.take(own.users, axis=0)) for own in self.slices)


@dataclass(frozen=True, eq=False)
class Direction:
    """A direction along which the system is solved in advance, for all users.

    Attributes:
        vector: (I,) float32, q; 0 for items without a pair.
        image: (I,) float32, (G + lambda) q.
        length: q' (G + lambda) q; 0 where there is no pair.
    """

    vector: np.ndarray
    image: np.ndarray
    length: float

    @classmethod
    def of(cls, products: Products, norms: Normalisation) -> Direction:
        """Make the popularity direction: each item's degree over the mean, with the normalisation of a user's items."""
        vector_I = norms.items * np.asarray(norms.item_degrees / _mean(norms.item_degrees), np.float32)
        if not norms.item_degrees.any():
            return cls(vector_I, vector_I, 0.0)
        products_I1, _ = products.gram((norms.items * vector_I)[:, None])
        image_I = norms.items * products_I1[:, 0] + norms.ridge * vector_I
        return cls(vector_I, image_I, float(along(vector_I, image_I[:, None])[0]))

    def remove(self, solutions_IB: np.ndarray, residuals_IB: np.ndarray) -> np.ndarray:
        """Solve along the direction, in place. Returns the squared lengths of the remaining residuals, (B,) float64."""
        parts_B = self.share(along(self.vector, residuals_IB))
        return np.asarray(deflate(parts_B, self.vector, self.image, solutions_IB, residuals_IB))

    def share(self, products_B: np.ndarray) -> np.ndarray:
        """Divide inner products by the direction's length, (B,) float32."""
        return np.asarray(products_B / self.length, np.float32)


@dataclass(frozen=True, eq=False)
class LinearModel:
    """The linear model: all slices, and the weights that follow from their degrees. It holds nothing else.

    To forget pairs, make the model again from slices without them.

    Attributes:
        products: the products over the slices.
        normalisation: the weights that follow from all slices together.
        popularity: the direction along which every user's system is already solved.
        config: ridge, exponents and steps.
    """

    products: Products
    normalisation: Normalisation
    popularity: Direction
    config: LinearConfig

    @classmethod
    def of(cls, slices: Sequence[Slice], n_users: int, n_items: int, config: LinearConfig) -> LinearModel:
        """Make the model from the slices of all shards. No pair is in two slices. Sums, and so bits, follow their order."""
        norms = Normalisation.of(slices, n_users, n_items, config)
        if _share_users(slices, n_users):
            products: Products = OfSplitUsers(tuple(slices), norms.users)
        else:
            products = OfWholeUsers(tuple(slices), tuple(norms.users[own.users] for own in slices))
        return cls(products, norms, Direction.of(products, norms), config)

    def scores(self, asked: Rows) -> np.ndarray:
        """Scores of all items, (B, I) float32; -inf for items without a pair, and for users whose items all have no pair.

        A user's scores have the same bits alone, in any batch, and on any number of cores. A call without users loads the
        compiled code.

        Args:
            asked: (B, I) the items of each user. A user needs nothing else, and need not be in any slice.

        Raises:
            IndexError: an item is outside the common numbering.
        """
        norms = self.normalisation
        check_asked(asked, len(norms.items))
        scores_BI = np.full((len(asked), len(norms.items)), -np.inf, np.float32)

        def work(first: int, last: int) -> None:
            for begin in range(first, last, _AT_ONCE):
                end = min(begin + _AT_ONCE, last)
                step = end - begin if end - begin >= _FEW else 1
                for one in range(begin, end, step):
                    self._solve(asked.part(one, one + step), scores_BI[one : one + step])

        if norms.item_degrees.any():
            in_parts(len(asked), work, _AT_ONCE)
            if not len(asked):
                self._load()
        mark_absent(scores_BI, asked, norms)
        return scores_BI

    def _load(self) -> None:
        """Load the compiled code: solve for one user without items, and for two such users together."""
        for n_asked in (1, 2):
            nothing = Rows.of(np.zeros(n_asked + 1, np.int64), np.empty(0, np.int32))
            self._solve(nothing, np.empty((n_asked, len(self.normalisation.items)), np.float32))

    def _solve(self, asked: Rows, scores_BI: np.ndarray) -> None:
        solve(self.products, asked, self.normalisation, self.popularity, self.config.steps, scores_BI)


def solve(products: Products, asked: Rows, norms: Normalisation, known: Direction, steps: int, scores_BI: np.ndarray) -> None:
    """Write the scores of B users into `scores_BI` by conjugate gradients on (G + lambda) z = G x, for all users together.

    The method is deflated: z along the known direction is exact from the start, and the steps search its complement (Saad et
    al. 2000, algorithm 3.6 with one vector). Rounding makes the steps drift out of the complement, so a correction follows each
    step. The last step needs only half a product: its length follows from p'Gp = |R^ p|^2, and its residual is not used.
    """
    residuals_IB = norms.items[:, None] * products.gram_of(asked, norms.items * norms.items)
    directions_IB, solutions_IB, weighted_IB = np.zeros((3, *residuals_IB.shape), np.float32)
    left_B = known.remove(solutions_IB, residuals_IB)
    shares_B = np.zeros(len(asked), np.float32)
    for step in range(steps):
        parts_B = known.share(along(known.image, residuals_IB))
        lengths_B = turn(shares_B, parts_B, known.vector, norms.items, residuals_IB, directions_IB, weighted_IB)
        if step + 1 < steps:
            products_IB, squares_B = products.gram(weighted_IB)
            steps_B = _ratio(left_B, squares_B + norms.ridge * lengths_B)
            descend(steps_B, norms.ridge, norms.items, products_IB, directions_IB, solutions_IB, residuals_IB)
            before_B, left_B = left_B, known.remove(solutions_IB, residuals_IB)
            shares_B = _ratio(left_B, before_B)
    steps_B = _ratio(left_B, products.squares(weighted_IB) + norms.ridge * lengths_B)
    finish(steps_B, norms.back, directions_IB, solutions_IB, scores_BI)


def check_asked(asked: Rows, n_items: int) -> None:
    """Refuse items outside the numbering, because compiled loops would read outside their arrays.

    Raises:
        IndexError: an item is outside the numbering. The message names it.
    """
    for item in (asked.columns.min(), asked.columns.max()) if len(asked.columns) else ():
        if not 0 <= item < n_items:
            raise IndexError(f"item {item} is not one of {n_items}: give items in the numbering of the slices")


def mark_absent(scores_BI: np.ndarray, asked: Rows, norms: Normalisation) -> None:
    """Set the scores that cannot be computed to -inf, in place. See `LinearModel.scores`."""
    present_I = norms.item_degrees > 0
    if not present_I.all():
        scores_BI[:, ~present_I] = -np.inf
    known = np.concatenate([[0], np.cumsum(present_I[asked.columns])])[asked.starts]
    scores_BI[np.diff(known) == 0] = -np.inf


def _power(degrees: np.ndarray, exponent: float) -> np.ndarray:
    """(d / mean d)^exponent, float32; 0 for degree 0."""
    present = degrees > 0
    powers = np.zeros(len(degrees), np.float32)
    powers[present] = (degrees[present] / _mean(degrees)) ** exponent
    return powers


def _mean(degrees: np.ndarray) -> float:
    """The mean of the degrees above 0; 1 if there are none."""
    return float(degrees.sum() / np.count_nonzero(degrees)) if degrees.any() else 1.0


def _ratio(above_B: np.ndarray, below_B: np.ndarray) -> np.ndarray:
    """The quotients, float32; 0 for a system that is solved or has a right side of 0."""
    ratios_B: np.ndarray = np.divide(above_B, below_B, out=np.zeros_like(above_B), where=below_B > 0)
    return ratios_B.astype(np.float32)


def _added(parts: Iterator[np.ndarray]) -> np.ndarray:
    """Add the parts in order, in the memory of the first part."""
    total = next(parts)
    for part in parts:
        total += part
    return total


def _share_users(slices: Sequence[Slice], n_users: int) -> bool:
    times_U = np.zeros(n_users, np.int64)
    for own in slices:
        times_U[own.users] += 1
    return bool((times_U > 1).any())
