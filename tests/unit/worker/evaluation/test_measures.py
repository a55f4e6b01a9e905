from __future__ import annotations

import pytest

from worker.evaluation.measures import RougeL, difference, interval, likeliest_option, mean_nll, question_mean, sign_flip, sign_flip_stories


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


def test_the_likeliest_option_is_by_the_mean_over_its_tokens() -> None:
    # sums -2, -3, -4; means -2, -1.5, -1
    assert likeliest_option([[-2.0], [-1.0, -2.0], [-1.0, -1.0, -1.0, -1.0]]) == 2
    assert likeliest_option([[-1.0], [-1.0]]) == 0


def test_equal_rows_have_a_p_value_of_one() -> None:
    assert sign_flip([[0.0, 0.0], [0.0]]) == 1.0


def test_the_p_value_is_the_share_of_signs_as_extreme() -> None:
    # of the 2^3 signs of (1, 1, 1) two have a sum of at least 3 in size
    assert sign_flip([[1.0, 1.0], [1.0]]) == pytest.approx(2 / 8, abs=0.04)
    # of those of (2, 1) two have a sum of at least 3 in size; of (2, -1) all have one of at least 1
    assert sign_flip([[2.0], [1.0]]) == pytest.approx(2 / 4, abs=0.04)
    assert sign_flip([[2.0], [-1.0]]) == 1.0


def test_a_storys_questions_are_flipped_together() -> None:
    # of the 2^2 signs of (2, 1) two have a sum of at least 3 in size; of (3, -1) all have one of at least 2
    assert sign_flip_stories([[1.0, 1.0], [1.0]]) == 2 / 4
    assert sign_flip_stories([[1.0, 2.0], [-1.0]]) == 1.0
    assert sign_flip_stories([[0.5] * 20] * 8) == 2 / 256, "8 stories can give no less, however many questions"
    assert sign_flip_stories([]) == 1.0


def test_the_signs_of_many_stories_are_drawn() -> None:
    many = [[1.0, 2.0]] * 20
    assert sign_flip_stories(many) == sign_flip_stories(many) < 0.005
    assert sign_flip_stories([[1.0], [-1.0]] * 10) > 0.9


def test_a_clear_difference_is_significant_either_way_and_the_same_each_time() -> None:
    clear = [[0.5, 0.7, 0.6, 0.4], [0.5, 0.3, 0.6, 0.9], [0.2, 0.5, 0.8, 0.6]]
    p = sign_flip(clear)
    assert p < 0.005
    assert sign_flip([[-value for value in story] for story in clear]) == p
    assert sign_flip(clear) == p != sign_flip([[0.5, -0.4, 0.1], [0.3]])
