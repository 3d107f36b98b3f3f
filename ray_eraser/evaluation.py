"""How good the lists are: every item ranked for every user with test items, the user's training items left out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ray_eraser.data.interactions import Interactions
from ray_eraser.data.vocabulary import Vocabulary
from ray_eraser.embeddings import Embeddings
from ray_eraser.ids import RawId
from ray_eraser.metrics import ndcg, recall
from ray_eraser.recommend import top_items

_BATCH_USERS = 512


def evaluate(
    model: Embeddings, train: Interactions, test: Interactions, cutoffs: Sequence[int] = (10, 20, 50)
) -> dict[str, float]:
    """`recall@N` and `ndcg@N`, means over the users that have test items, and `n_users`, their number.

    Users that the model lacks get no hit; items that it lacks cannot be hit but count among the test items.
    """
    tested = test.user_rows()
    sums = {f"{name}@{n}": 0.0 for n in cutoffs for name in ("recall", "ndcg")}
    longest = min(max(cutoffs), len(model.item_rows))
    n_rows = 1 + max([-1, *(int(rows.max()) for rows in (train.users, test.users, model.user_rows) if len(rows))])
    n_columns = 1 + max([-1, *(int(rows.max()) for rows in (train.items, test.items, model.item_rows) if len(rows))])
    train_matrix, test_matrix = train.matrix(n_rows, n_columns), test.matrix(n_rows, n_columns)
    for first in range(0, len(tested), _BATCH_USERS):
        rows_U = tested[first : first + _BATCH_USERS]
        relevant_U = np.diff(test_matrix.indptr)[rows_U]
        known_U = np.isin(rows_U, model.user_rows)
        hits_UN = np.zeros((len(rows_U), max(cutoffs)))
        if known_U.any() and longest:
            users_UD = model.users[np.searchsorted(model.user_rows, rows_U[known_U])]
            scores_UI = users_UD @ model.items.T
            scores_UI[train_matrix[rows_U[known_U]][:, model.item_rows].toarray() > 0] = -np.inf
            best_UN = top_items(scores_UI, longest)
            relevant_UI = test_matrix[rows_U[known_U]][:, model.item_rows].toarray()
            allowed_UN = np.take_along_axis(scores_UI, best_UN, 1) > -np.inf
            hits_UN[known_U, :longest] = np.take_along_axis(relevant_UI, best_UN, 1) * allowed_UN
        for n in cutoffs:
            sums[f"recall@{n}"] += float(recall(hits_UN[:, :n], relevant_U).sum())
            sums[f"ndcg@{n}"] += float(ndcg(hits_UN[:, :n], relevant_U).sum())
    return {**{name: value / max(1, len(tested)) for name, value in sums.items()}, "n_users": float(len(tested))}


def in_rows_of(
    held: Interactions, users: Vocabulary, items: Vocabulary, to_users: Vocabulary, to_items: Vocabulary
) -> tuple[Interactions, int]:
    """Held-out interactions in the rows of another pair of vocabularies, and how many users were left out.

    Users that are unknown there (erased, say) are left out. Items that are unknown there stay, in rows behind all others: they
    cannot be recommended, but the user did want them.
    """
    user_map = np.array([to_users.row(raw) if raw in to_users else -1 for raw in _present(users)], np.int64)
    behind = iter(range(len(to_items), len(to_items) + len(items)))
    item_map = np.array([to_items.row(raw) if raw in to_items else next(behind) for raw in _present(items)], np.int64)
    known = user_map[held.users] >= 0
    left_out = len(held.user_rows()) - len(held.take(known).user_rows())
    return Interactions.of(user_map[held.users[known]], item_map[held.items[known]]), left_out


def _present(vocabulary: Vocabulary) -> list[RawId]:
    assert None not in vocabulary.ids, "a log that was just read has no tombstones"
    return [raw for raw in vocabulary.ids if raw is not None]
