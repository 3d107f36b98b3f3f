from __future__ import annotations

from ray_eraser.models.stopping import EarlyStopping


def after(patience, scores):
    stopping = EarlyStopping(patience)
    for number, score in enumerate(scores):
        stopping = stopping.after(score, f"weights {number}")
    return stopping


def test_the_weights_of_the_best_check_are_kept():
    assert after(9, [0.1, 0.3, 0.2]).best == "weights 1"
    assert after(9, [0.1, 0.3, 0.2]).best_score == 0.3


def test_the_earliest_of_equal_checks_counts():
    assert after(9, [0.3, 0.3]).best == "weights 0"


def test_the_first_check_counts_even_with_a_score_of_zero():
    assert after(9, [0.0]).best == "weights 0"


def test_training_is_exhausted_after_patience_checks_without_improvement():
    assert not after(2, [0.3, 0.1]).exhausted
    assert after(2, [0.3, 0.1, 0.3]).exhausted


def test_a_better_check_restarts_the_count():
    assert not after(2, [0.3, 0.1, 0.4, 0.1]).exhausted


def test_a_check_does_not_change_the_previous_value():
    before = after(2, [0.3])
    before.after(0.9, "weights 1")
    assert (before.best, before.best_score, before.waited) == ("weights 0", 0.3, 0)
