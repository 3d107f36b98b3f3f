from __future__ import annotations

import numpy as np
import pytest

from ray_eraser.metrics import ndcg, recall

# Hits: ranks 1 and 4; none; all.
HITS = np.array([[1, 0, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1]])
SECOND, THIRD, FOURTH = 1 / np.log2(3), 1 / 2, 1 / np.log2(5)


def test_recall_divides_the_hits_by_all_test_items_of_the_user():
    assert recall(HITS, np.array([2, 5, 16])).tolist() == [1, 0, 0.25]


def test_ndcg_divides_by_the_gain_of_a_list_with_all_test_items_in_front():
    expected = [(1 + FOURTH) / (1 + SECOND), 0, 1]
    assert ndcg(HITS, np.array([2, 5, 4])).tolist() == pytest.approx(expected)


def test_ndcg_of_a_list_shorter_than_the_test_set_can_be_one():
    best = 1 + SECOND + THIRD + FOURTH
    assert ndcg(HITS, np.array([9, 9, 9])).tolist() == pytest.approx([(1 + FOURTH) / best, 0, 1])


def test_a_later_hit_is_worth_less():
    later = np.eye(4)
    assert ndcg(later, np.ones(4, int)).tolist() == pytest.approx([1, SECOND, THIRD, FOURTH])
    assert recall(later, np.ones(4, int)).tolist() == [1, 1, 1, 1]
