"""Runs the table's lines: puts on what a row wears, asks every question of every document, and measures what comes back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from server.engine.base_model import BaseModel
from server.engine.request import ArtefactRef, EngineRequest, Sampling
from worker.evaluation.answers import Ask, Logprobs, Reader, Remembered
from worker.evaluation.artefacts import Artefacts, Progress, RetrieverOf
from worker.evaluation.documents import Document, Question
from worker.evaluation.measures import RougeL, likeliest_option, mean_nll
from worker.evaluation.prompts import ANSWER_TOKENS, LETTERS, answer_ids, prompts_of
from worker.evaluation.rows import Context, Line, Owner

TOGETHER = 32
"""Questions that are answered at once and then scored, while what was read of their prompts is still there."""
TENANT = "evaluation"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One question in one line. `values` by measure, see measures.py; `answer` is empty for multiple-choice questions."""

    document: str
    question: str
    answer: str
    prompt_tokens: int
    values: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """A line's questions, document by document; `modules`: the digest of the one that was worn, by the document that was asked about."""

    line: Line
    documents: tuple[tuple[Measured, ...], ...]
    modules: Mapping[str, str] = field(default_factory=dict)

    def by_story(self, measure: str) -> list[list[float]]:
        """Of the questions that have this measure; documents without any are left out."""
        found = [[each.values[measure] for each in document if measure in each.values] for document in self.documents]
        return [story for story in found if story]

    @property
    def measures(self) -> list[str]:
        """In the order of a question that has all of them."""
        return max((list(each.values) for document in self.documents for each in document), key=len)

    @property
    def prompt_tokens(self) -> float:
        counts = [each.prompt_tokens for document in self.documents for each in document]
        return sum(counts) / len(counts)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all lines have in common. `readers` gives the way in which a kind of context is read."""

    base: BaseModel
    documents: Sequence[Document]
    artefacts: Artefacts
    retriever: RetrieverOf
    readers: Callable[[Context], Reader]
    remembered: Remembered
    on_progress: Progress


@dataclass(frozen=True, kw_only=True)
class _Asked:
    document: Document
    question: Question
    request: EngineRequest
    letters: EngineRequest | None
    """The same question with its options, where it has some."""


def evaluate(setting: Setting, lines: Sequence[Line]) -> Iterator[Measurement]:
    """Each line in turn, of those that `checks.require_possible` let pass. Raises what training raises."""
    for line in lines:
        yield _measure(setting, line)


def _measure(setting: Setting, line: Line) -> Measurement:
    outfits = _outfits(setting, line)
    asked = _ask(setting, line, outfits)
    reader = setting.readers(line.row.context)
    found: dict[str, list[Measured]] = {}
    with reader.session():
        for start in range(0, len(asked), TOGETHER):
            part = asked[start : start + TOGETHER]
            run = _Run(setting=setting, line=line, reader=reader, before=start, total=len(asked))
            for each, measured in zip(part, run.measure(part), strict=True):
                found.setdefault(each.document.name, []).append(measured)
    return Measurement(
        line=line,
        documents=tuple(tuple(document) for document in found.values()),
        modules={
            document.name: module.digest for document, (module, _) in zip(setting.documents, outfits, strict=True) if module is not None
        },
    )


@dataclass(frozen=True, kw_only=True)
class _Run:
    """Some of a line's questions, `before` of whose `total` were asked before them."""

    setting: Setting
    line: Line
    reader: Reader
    before: int
    total: int

    def measure(self, asked: Sequence[_Asked]) -> list[Measured]:
        answers = self._answers(asked)
        scores = self._scores([_score_ask(self.setting.base, each) for each in asked], "scoring")
        lettered = [(each.letters, _letters(self.setting.base, each.question)) for each in asked if each.letters is not None]
        letters = iter(self._scores(lettered, "choosing letters"))
        rouge, measured = RougeL(), []
        for each, answer, score in zip(asked, answers, scores, strict=True):
            values = _likelihoods(score)
            if each.letters is None:
                values = {"rouge_l": rouge.best(answer, each.question.references), **values}
            else:
                values = {**_choices(each.question, score[1:], next(letters)), **values}
            measured.append(_measured(each, answer, self.reader, values))
        return measured

    def _answers(self, asked: Sequence[_Asked]) -> list[str]:
        """Only where the answer is free."""
        requests = [each.request for each in asked if each.letters is None]
        texts = iter(self.setting.remembered.generate(self.reader, requests, self._told("answering")))
        return [next(texts) if each.letters is None else "" for each in asked]

    def _scores(self, asks: Sequence[Ask], doing: str) -> list[Logprobs]:
        return self.setting.remembered.score(self.reader, asks, self._told(doing))

    def _told(self, doing: str) -> Callable[[int], None]:
        return lambda done: self.setting.on_progress(f"{self.line.label}: {doing}", self.before + done, self.total)


def _outfits(setting: Setting, line: Line) -> list[tuple[ArtefactRef | None, ArtefactRef | None]]:
    """(module, extractor) for the questions about each document."""
    row, documents = line.row, setting.documents
    extractor = setting.artefacts.extractor(ones=row.ones) if row.extractor else None
    if row.objective is None:
        return [(None, extractor)] * len(documents)
    shift = 1 if row.owner is Owner.OTHER else 0
    wearing = [documents[(number + shift) % len(documents)] for number in range(len(documents))]
    worn = setting.artefacts.worn_extractor() if row.worn else None
    return [(setting.artefacts.module(document, row.objective, worn), extractor) for document in wearing]


def _ask(setting: Setting, line: Line, outfits: Sequence[tuple[ArtefactRef | None, ArtefactRef | None]]) -> list[_Asked]:
    asked: list[_Asked] = []
    for document, (module, extractor) in zip(setting.documents, outfits, strict=True):
        retrieve = setting.retriever(document)
        for question in document.questions:
            prompts = prompts_of(setting.base, line, document, question, retrieve)
            requests = [
                EngineRequest(
                    request_id=f"{len(asked)}-{number}",
                    tenant=TENANT,
                    prompt=prompt,
                    module=module,
                    extractor=extractor,
                    sampling=Sampling(max_tokens=ANSWER_TOKENS),
                )
                for number, prompt in enumerate(prompts)
            ]
            letters = requests[1] if question.options else None
            asked.append(_Asked(document=document, question=question, request=requests[0], letters=letters))
    return asked


def _score_ask(base: BaseModel, asked: _Asked) -> Ask:
    """The gold answer with the end of the turn that training has behind every target, then the options."""
    tokenizer, question = base.tokenizer, asked.question
    gold = (*answer_ids(tokenizer, question.gold), min(base.eos_ids))
    return asked.request, [gold, *(answer_ids(tokenizer, option) for option in question.options)]


def _letters(base: BaseModel, question: Question) -> list[tuple[int, ...]]:
    return [answer_ids(base.tokenizer, letter) for letter in LETTERS[: len(question.options)]]


def _likelihoods(score: Logprobs) -> dict[str, float]:
    gold = score[0]
    return {"gold_nll": mean_nll(gold[:-1]), "gold_nll_eos": mean_nll(gold)}


def _choices(question: Question, options: Logprobs, letters: Logprobs) -> dict[str, float]:
    accuracy, letter = (100.0 * (likeliest_option(scores) == question.label) for scores in (options, letters))
    return {"accuracy": accuracy, **({"accuracy_hard": accuracy} if question.difficult else {}), "letter": letter}


def _measured(asked: _Asked, answer: str, reader: Reader, values: dict[str, float]) -> Measured:
    return Measured(
        document=asked.document.name,
        question=asked.question.text,
        answer=answer,
        prompt_tokens=reader.prompt_tokens(asked.request.prompt),
        values=values,
    )
