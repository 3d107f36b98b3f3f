from __future__ import annotations

import numpy as np
import pytest

from ray_eraser.aggregation.mean import mean, side_by_side
from ray_eraser.embeddings import Embeddings


def model_of(users: dict[int, list[float]], items: dict[int, list[float]]) -> Embeddings:
    """A model with these vectors by row."""
    tables = [(np.array(list(side), np.int32), np.array(list(side.values()), np.float32)) for side in (users, items)]
    return Embeddings(*tables[0], *tables[1])


# Both submodels know user 5, and one each knows users 2 and 9. The same holds for items 1, 0 and 7.
LEFT = model_of({2: [1, 2], 5: [3, 0]}, {0: [1, 0], 1: [0, 1]})
RIGHT = model_of({5: [0, 4], 9: [1, 1]}, {1: [2, 1], 7: [5, 5]})
EXPECTED = {
    2: {0: 1, 1: 2, 7: 0},
    5: {0: 3 / 2, 1: (0 + 4) / 2, 7: 20 / 2},
    9: {0: 0, 1: 3, 7: 10},
}


def by_row(model: Embeddings) -> dict[int, dict[int, float]]:
    scores = (model.users @ model.items.T).tolist()
    items = model.item_rows.tolist()
    return {user: dict(zip(items, row, strict=True)) for user, row in zip(model.user_rows.tolist(), scores, strict=True)}


def test_scores_are_averages_over_the_submodels_that_know_the_user():
    assert by_row(mean([LEFT, RIGHT])) == EXPECTED


def test_the_order_of_the_submodels_changes_no_score():
    assert by_row(mean([RIGHT, LEFT])) == EXPECTED


def test_an_empty_submodel_changes_no_score():
    assert by_row(mean([Embeddings.empty(2), LEFT, Embeddings.empty(2), RIGHT])) == EXPECTED


def test_the_mean_of_one_submodel_is_that_submodel():
    assert mean([LEFT]).same_bits(LEFT)


def test_the_width_is_the_sum_of_all_widths_in_contiguous_float32():
    model = mean([LEFT, RIGHT])
    assert model.width == 4
    for vectors in (model.users, model.items):
        assert vectors.dtype == np.float32
        assert vectors.flags.c_contiguous


def test_inner_products_of_concatenated_tables_are_sums_with_absent_rows_zero():
    model = side_by_side([LEFT, RIGHT])
    assert model.users.tolist() == [[1, 2, 0, 0], [3, 0, 0, 4], [0, 0, 1, 1]]
    assert model.items.tolist() == [[1, 0, 0, 0], [0, 1, 2, 1], [0, 0, 5, 5]]


def test_submodels_may_differ_in_width():
    narrow = model_of({2: [4]}, {0: [2]})
    assert by_row(mean([LEFT, narrow]))[2] == pytest.approx({0: (1 + 8) / 2, 1: 1})


@pytest.mark.parametrize("submodels", [[], [Embeddings.empty(2)], [Embeddings.empty(2), Embeddings.empty(2)]])
def test_without_a_submodel_with_rows_the_result_is_empty(submodels):
    model = mean(submodels)
    assert (len(model.user_rows), len(model.item_rows)) == (0, 0)
