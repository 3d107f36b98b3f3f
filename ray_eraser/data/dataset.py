"""An interaction log, read, numbered and split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow.compute as pc

from ray_eraser.data.account import BELOW_RATING, Account
from ray_eraser.data.frames import Pairs, pairs_of
from ray_eraser.data.interactions import Interactions
from ray_eraser.data.keyed import ShardData
from ray_eraser.data.vocabulary import Vocabulary
from ray_eraser.ids import RawId, id_text


@dataclass(frozen=True, eq=False)
class Dataset:
    """Three disjoint sets of interactions over one pair of vocabularies, in whose rows they are.

    Attributes:
        name: of the log, for people.
        users, items: the vocabularies of all three sets.
        train: the pairs to learn from.
        valid: the pairs for early stopping and sweeps; may be empty.
        test: the pairs for the evaluation at the end; never stored with a deployment; may be empty.
        merged: number of repeated pairs that were merged.
        rows_read: number of rows that the log has.
        left_out: number of rows that were left out, by reason.
        notices: remarks on how the log was read. They name no id.
    """

    name: str
    users: Vocabulary
    items: Vocabulary
    train: Interactions
    valid: Interactions
    test: Interactions
    merged: int = 0
    rows_read: int = 0
    left_out: Mapping[str, int] = field(default_factory=dict)
    notices: tuple[str, ...] = ()

    @property
    def below_rating(self) -> int:
        """Number of rows that were left out because their rating was too low."""
        return self.left_out.get(BELOW_RATING, 0)

    def account(self) -> Account:
        """The counts of how the log was read, for reports."""
        return Account(self.rows_read, self.merged, self.left_out, len(self.test), self.notices)

    @classmethod
    def of_pairs(
        cls,
        name: str,
        train: Pairs,
        seed: int = 0,
        valid: Pairs = (),
        test: Pairs = (),
    ) -> Dataset:
        """A log from (user id, item id) pairs in a program's memory, in any order: tuples, or a data frame (`frames.pairs_of`).

        Args:
            name: for people.
            train: what is learned from.
            seed: the root seed that it will be learned with. With another one it is renumbered.
            valid: what is held out for validation; a pair that is in several sets stays in the first.
            test: what is held out for the test.

        Raises:
            InputError: something cannot be an id.
        """
        sets: list[list[tuple[RawId, RawId]]] = [list(pairs_of(pairs)) for pairs in (train, valid, test)]
        named = [pair for pairs in sets for pair in pairs]
        users = Vocabulary.of("user", (user for user, _ in named), seed)
        items = Vocabulary.of("item", (item for _, item in named), seed)
        user_rows = {text: row for row, text in enumerate(users.texts.to_pylist())}
        item_rows = {text: row for row, text in enumerate(items.texts.to_pylist())}
        seen, parts = Interactions.none(), []
        for pairs in sets:
            rows = np.array([(user_rows[id_text(u)], item_rows[id_text(i)]) for u, i in pairs], np.int32).reshape(-1, 2)
            parts.append(Interactions.of(rows[:, 0], rows[:, 1]).without(seen))
            seen = Interactions.union([seen, parts[-1]])
        return cls(name, users, items, parts[0], parts[1], parts[2], merged=len(named) - len(seen), rows_read=len(named))

    def under(self, seed: int) -> Dataset:
        """The same log in the order that another root seed's keys have."""
        users, items = self.users.under(seed), self.items.under(seed)
        if users is self.users and items is self.items:
            return self
        user_rows = pc.index_in(self.users.texts, value_set=users.texts).to_numpy()
        item_rows = pc.index_in(self.items.texts, value_set=items.texts).to_numpy()
        train, valid, test = (
            Interactions.of(user_rows[part.users], item_rows[part.items]) for part in (self.train, self.valid, self.test)
        )
        return replace(self, users=users, items=items, train=train, valid=valid, test=test)

    def learned(self) -> Dataset:
        """The same without the test set, and without the ids that nothing but the test set has."""
        keyed = ShardData.of(self.train, self.valid, self.users.keys, self.items.keys)
        users, items = self.users.only(keyed.user_keys), self.items.only(keyed.item_keys)
        return replace(self, users=users, items=items, train=keyed.train, valid=keyed.valid, test=Interactions.none())
