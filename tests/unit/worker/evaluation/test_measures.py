from __future__ import annotations

import pytest

from worker.evaluation.measures import RougeL, difference, interval, mean_nll, question_mean


def test_rouge_l_is_stemmed_and_takes_the_best_reference() -> None:
    rouge = RougeL()
    assert rouge.best("the dogs were running", ["the dog was run", "nothing alike"]) == pytest.approx(75.0)
    assert rouge.best("31 days", ["unrelated", "31 days"]) == 100.0
    assert rouge.best("", ["31 days"]) == 0.0


def test_rouge_l_is_the_f_measure_of_the_longest_common_subsequence() -> None:
    # 2 of 4 words of the answer, 2 of 2 of the reference: F = 2 * 0.5 * 1 / 1.5
    assert RougeL().best("well 31 whole days", ["31 days"]) == pytest.approx(100 * 2 / 3)


def test_mean_nll_is_per_token() -> None:
    assert mean_nll([-1.0, -2.0, -3.0]) == 2.0


def test_the_mean_is_over_questions_not_over_stories() -> None:
    assert question_mean([[1.0], [3.0, 3.0, 3.0]]) == 2.5


def test_a_difference_is_paired_question_by_question() -> None:
    assert difference([[1.0, 2.0], [3.0]], [[0.5, 0.5], [1.0]]) == [[0.5, 1.5], [2.0]]
    with pytest.raises(ValueError, match="shorter"):
        difference([[1.0, 2.0]], [[1.0]])


def test_intervals_hold_the_mean_and_are_the_same_each_time() -> None:
    values = [[1.0, 2.0, 4.0], [2.0, 3.0], [0.0, 5.0]]
    low, high = interval(values)
    assert low < question_mean(values) < high
    assert interval(values) == (low, high)
    assert interval([[2.0, 2.0], [2.0]]) == (2.0, 2.0)
