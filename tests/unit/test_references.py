"""The reference models against naive formulas."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from ray_eraser.data.interactions import Interactions
from ray_eraser.errors import DataFileError, InputError
from ray_eraser.study import references
from ray_eraser.study.references import EASE_ITEMS, REFERENCES, Reference, ease, ease_weights, gf_cf
from ray_eraser.study.tables import markdown

N_USERS, N_ITEMS = 14, 9
SMALL = ("data.synthetic_users=60", "data.synthetic_items=40", "data.synthetic_per_user=8", "data.test_share=0.2")


@pytest.fixture
def pairs() -> Interactions:
    """User 3 and item 5 have no pair."""
    rng = np.random.default_rng(1)
    users, items = np.nonzero(rng.random((N_USERS, N_ITEMS)) < 0.4)
    some = (users != 3) & (items != 5)
    return Interactions.of(users[some].astype(np.int32), items[some].astype(np.int32))


def dense(pairs: Interactions) -> np.ndarray:
    R = np.zeros((N_USERS, N_ITEMS))
    R[pairs.users, pairs.items] = 1
    return R


def scores_of(model, present=tuple(item for item in range(N_ITEMS) if item != 5)) -> np.ndarray:
    assert model.item_rows.tolist() == list(present)
    known, scores = model.scores(np.arange(N_USERS, dtype=np.int32))
    assert known.tolist() == [user != 3 for user in range(N_USERS)]
    assert scores.dtype == np.float32
    return scores


def test_ease_regresses_every_item_on_all_others(pairs):
    """Column j of B is the ridge regression of column j of R on the other columns."""
    R, ridge = dense(pairs)[:, [i for i in range(N_ITEMS) if i != 5]], 3.0
    expected = np.zeros((8, 8))
    for item in range(8):
        others = [other for other in range(8) if other != item]
        left = R[:, others].T @ R[:, others] + ridge * np.eye(7)
        expected[others, item] = np.linalg.solve(left, R[:, others].T @ R[:, item])
    assert ease_weights(sparse.csr_matrix(R.astype(np.int64)), ridge) == pytest.approx(expected, abs=1e-12)
    known = np.delete(R, 3, axis=0)
    assert scores_of(ease(pairs, N_USERS, ridge)) == pytest.approx(known @ expected, abs=1e-6)


def test_ease_of_a_large_catalogue_is_refused_with_a_way_out():
    wide = sparse.csr_matrix((2, EASE_ITEMS + 1), dtype=np.int64)
    with pytest.raises(InputError, match=r"20,001 items are more than 20,000: leave it out of --models"):
        ease_weights(wide, 100)


@pytest.mark.parametrize("n_vectors", [1, 3, 256])
def test_gf_cf_is_a_linear_filter_plus_an_ideal_low_pass_filter(pairs, n_vectors):
    R = np.delete(dense(pairs), 5, axis=1)
    d_u, d_i = R.sum(1), R.sum(0)
    scaled = np.where(d_u > 0, 1 / np.sqrt(np.maximum(d_u, 1)), 0)[:, None] * R / np.sqrt(d_i)
    vectors = np.linalg.svd(scaled)[2][: min(n_vectors, 7)].T
    low_pass = np.diag(d_i**-0.5) @ vectors @ vectors.T @ np.diag(d_i**0.5)
    expected = np.delete(R @ (scaled.T @ scaled + 0.3 * low_pass), 3, axis=0)
    assert scores_of(gf_cf(pairs, N_USERS, n_vectors)) == pytest.approx(expected, abs=1e-6)


def test_the_ridge_of_ease_is_chosen_without_the_test_set(monkeypatch):
    seen = []
    monkeypatch.setattr(references, "ease", lambda train, n, ridge: seen.append((len(train), ridge)) or ease(train, n, ridge))
    dataset = Reference("synthetic", "ease", SMALL).dataset()
    references.chosen_ease(dataset, 0)
    *tried, (n_pairs, ridge) = seen
    assert [each for _, each in tried] == list(references.EASE_RIDGES)
    assert all(len(dataset.train) > n > 0.8 * len(dataset.train) for n, _ in tried)
    assert n_pairs == len(dataset.train)
    assert ridge in references.EASE_RIDGES


@pytest.mark.parametrize("name", REFERENCES)
def test_a_reference_is_a_row_of_the_table(name):
    reference = Reference.of("synthetic", name, [*SMALL, "partition.n_shards=3", "model.kind=bpr"])
    assert reference.changes == SMALL
    row = reference.row()
    assert row["key"] == reference.key() == Reference("synthetic", name, SMALL).key()
    assert row["key"] != Reference("synthetic", name, (*SMALL, "seed=1")).key()
    assert 0.1 < row["recall@50"] <= 1
    assert f"| synthetic | {name} | reference | 1 |" in markdown([{**row, **reference.named()}])


def test_a_reference_on_a_log_without_a_test_set_is_refused_with_a_way_out():
    with pytest.raises(DataFileError, match=r"no test set: set data\.test_share=0\.2"):
        Reference("synthetic", "ease", SMALL[:3]).row()
