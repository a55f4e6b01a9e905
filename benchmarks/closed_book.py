"""What a module knows, through the product's own path: upload stories, train their modules, ask every question in every mode.

    python -m benchmarks.closed_book --data FAIRYTALEQA --split val --stories 4 --json OUT [--work DIR]

    base          the base model alone              closed_book   the story's module, no passages
    wrong_module  the next story's module           retrieval     passages, no module
    open_book     passages and the module           extractor     the extractor alone, where one is active

OUT gets {"stories", "questions", "modes": {mode: {"rouge_l", "gold_nll"}}}, see worker/evaluation/measures.py. With --work the data
directory stays, so that another run uses the modules that this one trained; DIR/answers.json then holds every answer.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from kmserve_client.aio import AsyncClient
from kmserve_client.errors import KmserveClientError
from kmserve_client.models import Answer, Document
from kmserve_client.operations import AskOptions, failure_of
from rich.console import Console

from benchmarks.closed_book_table import print_table
from server.cli_connection import CliError, read_key
from server.cli_models import prepare_apart
from server.cli_progress import JobBars
from server.cli_stack import Stack, StackError, isolated, terminable, while_alive
from server.cli_up import start
from server.errors import KmserveError
from server.settings import Settings
from worker.evaluation.datasets import load_documents
from worker.evaluation.documents import Document as Story
from worker.evaluation.documents import Question
from worker.evaluation.measures import RougeL, mean_nll, question_mean

MODES = ("base", "wrong_module", "closed_book", "retrieval", "open_book")
EXTRACTOR = "extractor"
ANSWER_TOKENS = 64
AT_ONCE = 8
_LIBRARIES = ("torch", "transformers", "qdrant-client", "sentence-transformers", "rouge-score")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One question in one mode."""

    mode: str
    story: str
    question: str
    answer: str
    rouge_l: float
    gold_nll: float


def main() -> None:
    arguments = parse_arguments()
    console = Console(highlight=False)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    try:
        with terminable(), work_folder(arguments.work) as work:
            measured, details = run(arguments, work, console)
    except KeyboardInterrupt:
        sys.exit(130)
    except (CliError, StackError, KmserveClientError, KmserveError, ValueError) as error:
        sys.exit(f"error: {error}")
    report = summary(measured)
    arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print_settings(console, details)
    print_table(console, {mode: by_story(measured, mode) for mode in report["modes"]})
    console.print(f"written to {arguments.json}")


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.closed_book", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="FairytaleQA in its original layout")
    parser.add_argument("--split", default="val", help="train, val or test (default: val)")
    parser.add_argument("--stories", type=int, default=4, help="how many, the shortest first; at least 2 (default: 4)")
    parser.add_argument("--json", type=Path, required=True, help="where the figures go")
    parser.add_argument("--work", type=Path, help="a folder to keep, and to go on from (default: a temporary one)")
    parser.add_argument("--preset", choices=("quick", "standard", "paper"), default="quick", help="how much training (default: quick)")
    parser.add_argument("--top-k", type=int, default=5, help="passages of a question (default: 5)")
    parser.add_argument(
        "--passage-tokens", type=int, default=64, help="longest passage (default: 64; with 256, five are a whole short story)"
    )
    arguments = parser.parse_args(argv)
    if arguments.stories < 2:
        parser.error("--stories must be at least 2: wrong_module needs another story's module")
    return arguments


@contextmanager
def work_folder(kept: Path | None) -> Iterator[Path]:
    if kept is not None:
        kept.mkdir(parents=True, exist_ok=True)
        yield kept.absolute()
        return
    with tempfile.TemporaryDirectory(prefix="kmserve-benchmark-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def modules_alone() -> dict[str, str]:
    """For `isolated`, where what a module knows is measured: no extractor answers beside it, unless the environment says otherwise."""
    settings = Settings()
    return {"shipped_extractor": settings.shipped_extractor if "shipped_extractor" in settings.model_fields_set else "off"}


def run(
    arguments: argparse.Namespace, work: Path, console: Console, make_stack: Callable[..., Stack] = Stack
) -> tuple[list[Measured], dict[str, object]]:
    """Every measurement, and the settings they were made with. Everything that was started is stopped."""
    stories = load_documents("fairytaleqa", arguments.data, arguments.split, arguments.stories)
    chosen = modules_alone()
    # Data made with other settings is not mixed in.
    name = "-".join(["data", arguments.preset, str(arguments.passage_tokens), *(value for value in chosen.values() if value != "off")])
    settings, environ = isolated(work / name, passage_tokens=arguments.passage_tokens, default_preset=arguments.preset, **chosen)
    prepare_apart(settings, environ)
    with make_stack(settings, environ, log_dir=work) as stack:
        start(stack)
        measured = asyncio.run(while_alive(stack, measure_all(stack, stories, arguments.top_k, console)))
    (work / "answers.json").write_text(json.dumps([asdict(each) for each in measured], indent=1), encoding="utf-8")
    return measured, settings_of(arguments, settings, stories, work / "api.log")


async def measure_all(stack: Stack, stories: Sequence[Story], top_k: int, console: Console) -> list[Measured]:
    async with AsyncClient(stack.url, read_key(stack.key_file), timeout=900.0) as client:
        documents = await trained(client, stories, console)
        return await ask_all(client, stories, [document.id for document in documents], top_k)


async def trained(client: AsyncClient, stories: Sequence[Story], console: Console) -> list[Document]:
    """A document with its module for each story. Raises DocumentFailed for a story whose module was not published."""
    bars = JobBars(console)
    with bars.progress:
        documents = await asyncio.gather(*(_train(client, bars, story) for story in stories))
    for document in documents:
        if not document.reached("ready"):
            raise failure_of(document)
    return documents


async def _train(client: AsyncClient, bars: JobBars, story: Story) -> Document:
    document = await client.upload(text=story.text, title=story.name)
    if document.settled and not document.reached("ready"):  # an earlier run's failure
        document = await client.retry(document.id)
    return await bars.follow(client, document)


async def ask_all(client: AsyncClient, stories: Sequence[Story], ids: Sequence[str], top_k: int) -> list[Measured]:
    """Every question in every mode; the extractor alone too, if the closed-book answers wore one."""
    limit, rouge = asyncio.Semaphore(AT_ONCE), RougeL()

    async def one(mode: str, number: int, question: Question) -> tuple[Measured, Answer]:
        options = options_of(mode, ids[number], ids[(number + 1) % len(ids)], top_k)
        options.update({"max_tokens": ANSWER_TOKENS, "score": [question.gold]})
        async with limit:
            answer = await client.ask(question.text, **options)
        return measured_of(mode, stories[number].name, question, answer, rouge), answer

    async def every(modes: Sequence[str]) -> list[tuple[Measured, Answer]]:
        asked = [(mode, number, question) for mode in modes for number, story in enumerate(stories) for question in story.questions]
        return await asyncio.gather(*(one(*each) for each in asked))

    results = await every(MODES)
    if any(answer.used.ke for measured, answer in results if measured.mode == "closed_book"):
        results += await every([EXTRACTOR])
    return [measured for measured, _ in results]


def options_of(mode: str, own: str, following: str, top_k: int) -> AskOptions:
    """How a mode of the table is asked for."""
    match mode:
        case "base":
            return AskOptions(document_id=own, mode="base")
        case "closed_book":
            return AskOptions(document_id=own, mode="closed_book")
        case "wrong_module":
            return AskOptions(document_id=following, mode="closed_book")
        case "retrieval":
            return AskOptions(document_id=own, mode="retrieval", top_k=top_k)
        case "open_book":
            return AskOptions(document_id=own, mode="open_book", top_k=top_k)
        case _:
            return AskOptions(document_id=own, mode="retrieval", top_k=0)  # no passages, no module: the extractor is left


def measured_of(mode: str, story: str, question: Question, answer: Answer, rouge: RougeL) -> Measured:
    assert answer.scores is not None  # they were asked for
    score = rouge.best(answer.answer, question.references)
    nll = mean_nll(answer.scores[0].logprobs)
    return Measured(mode=mode, story=story, question=question.text, answer=answer.answer, rouge_l=score, gold_nll=nll)


def by_story(measured: Sequence[Measured], mode: str) -> dict[str, list[Measured]]:
    """A mode's measurements, story by story, each in the order of its questions."""
    found: dict[str, list[Measured]] = {}
    for each in measured:
        if each.mode == mode:
            found.setdefault(each.story, []).append(each)
    return found


def summary(measured: Sequence[Measured]) -> dict[str, Any]:
    """What is written to --json."""
    modes: dict[str, dict[str, float]] = {}
    for mode in dict.fromkeys(each.mode for each in measured):
        stories = by_story(measured, mode).values()
        rouge = question_mean([[each.rouge_l for each in story] for story in stories])
        nll = question_mean([[each.gold_nll for each in story] for story in stories])
        modes[mode] = {"rouge_l": round(rouge, 3), "gold_nll": round(nll, 4)}
    base = by_story(measured, "base")
    return {"stories": len(base), "questions": sum(map(len, base.values())), "modes": modes}


def settings_of(arguments: argparse.Namespace, settings: Settings, stories: Sequence[Story], api_log: Path) -> dict[str, object]:
    """Everything that the figures depend on."""
    loaded = [line.split("ready: ", 1)[1] for line in api_log.read_text(errors="replace").splitlines() if "ready: " in line]
    return {
        "stories": ", ".join(f"{story.name} ({len(story.questions)} questions)" for story in stories),
        "split": arguments.split,
        "model": loaded[-1] if loaded else settings.base_model,
        "threads": f"engine {settings.engine_threads or 'auto'}, of {os.cpu_count()} cores",
        "preset": arguments.preset,
        "extractor": settings.shipped_extractor,
        "passages": f"{arguments.top_k} of at most {arguments.passage_tokens} tokens",
        "python": platform.python_version(),
        "libraries": ", ".join(f"{name} {version(name)}" for name in _LIBRARIES),
    }


def print_settings(console: Console, details: Mapping[str, object]) -> None:
    for name, value in details.items():
        console.print(f"{name}: {value}", soft_wrap=True, markup=False)


if __name__ == "__main__":
    main()
