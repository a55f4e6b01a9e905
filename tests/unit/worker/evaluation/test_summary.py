from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from worker.evaluation.rows import ROWS, Line
from worker.evaluation.runner import Measured, Measurement
from worker.evaluation.summary import as_json, main_measure, summarise


def measurement(line: Line, *documents: tuple[float, ...], measure: str = "rouge_l", tokens: int = 10) -> Measurement:
    """One figure for each question."""
    return Measurement(
        line=line,
        documents=tuple(
            tuple(
                Measured(
                    document=f"d{n}", question=f"q{q}", answer="", prompt_tokens=tokens + q, values={measure: value, "gold_nll": value / 10}
                )
                for q, value in enumerate(values)
            )
            for n, values in enumerate(documents)
        ),
    )


BASE = measurement(Line(row=ROWS["base"]), (10.0, 20.0), (30.0,))
RAG = measurement(Line(row=ROWS["RAG"], passages=4), (20.0, 40.0), (60.0,), tokens=100)


def test_means_are_over_questions_and_lie_in_their_intervals() -> None:
    (base,) = summarise([BASE])
    estimate = base.measures["rouge_l"]
    assert (estimate.mean, base.measures["gold_nll"].mean) == (20.0, 2.0)
    assert 10.0 <= estimate.low < 20.0 < estimate.high <= 30.0
    assert base.prompt_tokens == pytest.approx((10 + 11 + 10) / 3)
    assert base.against_previous == {}


def test_a_line_is_compared_with_the_one_before() -> None:
    _, rag = summarise([BASE, RAG])
    compared = rag.against_previous["rouge_l"]
    assert compared.difference.mean == 20.0
    assert compared.p == pytest.approx(2 / 8, abs=0.04)
    assert compared.p_documents == 2 / 4


def test_json_names_the_modules_that_a_line_wore() -> None:
    worn = replace(BASE, modules={"d0": "a" * 64, "d1": "b" * 64})
    assert [line["modules"] for line in as_json(list(summarise([worn, RAG])))] == [{"d0": "a" * 64, "d1": "b" * 64}, {}]


def test_lines_over_other_questions_are_not_compared() -> None:
    with pytest.raises(ValueError, match="argument 2 is longer"):
        list(summarise([BASE, measurement(Line(row=ROWS["KE"]), (1.0,), (2.0,))]))


def test_json_says_what_each_line_wears_and_reads() -> None:
    base, rag = as_json(list(summarise([BASE, RAG])))
    assert (base["row"], base["wears"]["objective"], base["wears"]["module_of"], base["context"]) == ("base", None, None, "nothing")
    assert (rag["passages"], rag["context"], rag["prompt_tokens"]) == (4, "passages", 100.3)
    assert set(rag["against_previous"]["gold_nll"]) == {"mean", "low", "high", "p", "p_documents"}


def test_a_measure_of_some_questions_is_of_those_alone() -> None:
    """As `accuracy_hard`: the second document has no hard question."""

    def marked(line: Line, *right: float) -> Measurement:
        plain = measurement(line, right[:2], right[2:], measure="accuracy")
        (easy, hard), others = plain.documents
        hard = replace(hard, values={"accuracy": hard.values["accuracy"], "accuracy_hard": hard.values["accuracy"], "gold_nll": 1.0})
        return replace(plain, documents=((easy, hard), others))

    base, icl = summarise([marked(Line(row=ROWS["base"]), 100.0, 0.0, 100.0), marked(Line(row=ROWS["ICL"]), 0.0, 100.0, 100.0)])
    assert list(base.measures) == ["accuracy", "accuracy_hard", "gold_nll"]
    assert base.measures["accuracy"].mean == pytest.approx(200 / 3)
    assert base.measures["accuracy_hard"].mean == 0.0
    assert icl.against_previous["accuracy_hard"].difference.mean == 100.0
    (line,) = as_json([icl])
    assert line["values"]["accuracy_hard"] == [[100.0]]


def test_each_line_is_there_as_soon_as_it_was_measured() -> None:
    def stopped() -> Iterator[Measurement]:
        yield BASE
        raise KeyboardInterrupt

    summaries = summarise(stopped())
    assert next(summaries).line.label == "base"
    with pytest.raises(KeyboardInterrupt):
        next(summaries)


def test_the_main_measure_is_accuracy_where_there_are_options() -> None:
    assert main_measure(["accuracy", "letter", "gold_nll"]) == "accuracy"
    assert main_measure(["rouge_l", "gold_nll"]) == "rouge_l"
