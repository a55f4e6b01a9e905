"""`kmserve demo`: the main job from end to end, on a policy that no model can know, in a temporary data directory."""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import typer
from kmserve_client.aio import AsyncClient
from kmserve_client.models import Answer, Document, Mode
from kmserve_client.operations import AskOptions, failure_of
from rich.console import Console

from server.cli_connection import CliError, console, read_key
from server.cli_demo_report import MODES, Asked, Question, passed, print_answers, print_phases, print_summary
from server.cli_models import prepare_apart
from server.cli_progress import JobBars
from server.cli_stack import Stack, isolated, terminable, while_alive
from server.cli_up import start

EXAMPLES = Path(__file__).resolve().parents[1] / "clients" / "examples"
ANSWER_TOKENS = 48
TOP_K = 2
"""Half of the policy, so that retrieval has something to find."""
AT_ONCE = 8
RECIPE = {"max_steps": 96}
"""`quick` with half as many steps again: its 64 are meant for a page, and the policy is longer (docs/experiments.md)."""
GRACE_SECONDS = 8.0
"""A training that is interrupted here is of no more use: it needs no time for a checkpoint."""


def demo() -> None:
    """See it work: train a module of an example policy, ask ten questions in four ways, and compare.

    Starts the API and the worker on a free port with a temporary data directory, and stops both. Exits with 0 only if the module, without
    any passage, makes the right answer likelier than a wrong one for at least 7 of 10 questions, and for more than the base model does. The
    knowledge extractor that ships answers beside it, as in any server; KMSERVE_SHIPPED_EXTRACTOR=off leaves it out.

    Example:

      kmserve demo
    """
    with terminable():
        succeeded = run_demo(console, EXAMPLES)
    raise typer.Exit(0 if succeeded else 1)


def run_demo(output: Console, examples: Path, make_stack: Callable[..., Stack] = Stack) -> bool:
    """Whether the module knows its document. Whatever happens, nothing that was started is left. Raises StackError, CliError."""
    questions = read_questions(examples / "questions.json")
    phases = Phases(output=output)
    with tempfile.TemporaryDirectory(prefix="kmserve-demo-", ignore_cleanup_errors=True) as folder:
        settings, environ = isolated(Path(folder) / "data")
        with phases.timed("prepare the base model"):
            prepare_apart(settings, environ)
        stack = make_stack(settings, environ, log_dir=Path(folder), grace_seconds=GRACE_SECONDS)
        try:
            with phases.timed("start the API and the worker"):
                start(stack)
            asked = asyncio.run(while_alive(stack, _use(stack, phases, examples / "policy.md", questions, output)))
        finally:
            with phases.timed("stop everything"):
                stack.stop()
    print_answers(output, questions, asked)
    print_summary(output, asked)
    print_phases(output, phases.seconds)
    return passed(asked)


async def _use(stack: Stack, phases: Phases, policy: Path, questions: Sequence[Question], output: Console) -> list[Asked]:
    async with AsyncClient(stack.url, read_key(stack.key_file), timeout=300.0) as client:
        with phases.timed("upload and index"):
            document = await client.upload(policy, title="Travel and leave policy", train="never")
            document = await client.wait(document.id, until="retrieval_ready")
        with phases.timed("train the module"):
            await _trained(client, await client.train(document.id, recipe=RECIPE), output)
        with phases.timed("ask"):
            return await _ask_all(client, document.id, questions)


async def _trained(client: AsyncClient, document: Document, output: Console) -> None:
    """Raises DocumentFailed."""
    bars = JobBars(output)
    with bars.progress:
        settled = await bars.follow(client, document)
    if not settled.reached("ready"):
        raise failure_of(settled)


async def _ask_all(client: AsyncClient, document_id: str, questions: Sequence[Question]) -> list[Asked]:
    """Every question in every mode, a few at a time."""
    limit = asyncio.Semaphore(AT_ONCE)

    async def one(mode: Mode, question: Question) -> Answer:
        async with limit:
            score = [question.gold, question.wrong]
            options = AskOptions(document_id=document_id, mode=mode, top_k=TOP_K, max_tokens=ANSWER_TOKENS, score=score)
            return await client.ask(question.text, **options)

    pairs = [(mode, question) for mode in MODES for question in questions]
    answers = await asyncio.gather(*(one(mode, question) for mode, question in pairs))
    return [Asked.of(mode, question, answer) for (mode, question), answer in zip(pairs, answers, strict=True)]


def read_questions(path: Path) -> list[Question]:
    """Raises CliError."""
    try:
        items = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise CliError(f"the demo's questions are missing: {path}; run it from a checkout of the source tree") from None
    return [Question(text=item["question"], gold=item["gold"], wrong=item["wrong"]) for item in items]


@dataclass(frozen=True, kw_only=True)
class Phases:
    """What is going on, and how long each thing took."""

    output: Console
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        self.output.print(f"[bold]▸ {name}[/]")
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = time.monotonic() - started
            self.output.print(f"[dim]  {self.seconds[name]:.1f} s[/]")
