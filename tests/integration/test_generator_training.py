"""The real trainer with the texts of a service: what its module says of them, and how it ends when the service does not play along."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fake_generator import FakeGenerator, Refusal, fake_generator
from tests.support.real_trainer import RECIPE, real_trainer, tiny_base_on_disk, write_spec
from worker.events import ExitCode

KEY = {"KMSERVE_GENERATOR_API_KEY": "sk-canary", "NO_PROXY": "127.0.0.1"}
TEXT = "Every gate of the house is painted in a colour of its own, which is written above it."


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base_on_disk(tmp_path_factory.mktemp("base"))


@pytest.fixture
def service() -> Iterator[FakeGenerator]:
    with fake_generator() as running:
        running.text = TEXT
        yield running


@pytest.fixture
def job(tmp_path: Path, base: Path, service: FakeGenerator) -> Path:
    write_job(tmp_path / "job", base, service)
    return tmp_path / "job"


def write_job(job: Path, base: Path, service: FakeGenerator, attempt: int = 1) -> None:
    generator = {"url": service.url, "model": "large"}
    write_spec(job, base, attempt=attempt, generator=generator, recipe={**RECIPE, "implications": 1, "summaries": 2, "max_steps": 12})


def test_a_module_is_distilled_from_what_the_service_wrote(job: Path, service: FakeGenerator) -> None:
    with real_trainer(job, **KEY) as trainer:
        assert trainer.end() == ExitCode.RESULT
    manifest = json.loads((job / trainer.events("result")[0]["artefact"] / "manifest.json").read_text())
    assert manifest["versions"]["writer"] == "large"
    data = manifest["data"]
    assert data["generations"] == len(service.asked) == len((job / "synthesis.jsonl").read_text().split("\n")) - 1
    assert (data["summary"], data["implication"], data["dropped"]) == (1, 8, 0)
    assert set(service.keys) == {"Bearer sk-canary"}
    written = "".join(path.read_text(errors="replace") for path in job.rglob("*") if path.is_file())
    assert "sk-canary" not in written


def test_a_service_that_refuses_ends_the_attempt_and_the_next_pays_for_the_rest_alone(
    job: Path, base: Path, service: FakeGenerator
) -> None:
    service.script = [None, None, Refusal(status=401)]
    with real_trainer(job, **KEY) as trainer:
        assert trainer.end() == ExitCode.FAILED
    [said] = trainer.events("error")
    assert said["code"] == "generator_refused"
    kept = len([line for line in (job / "synthesis.jsonl").read_text().split("\n") if line])
    assert 2 <= kept < len(service.asked)
    before = len(service.asked)
    write_job(job, base, service, attempt=2)
    with real_trainer(job, **KEY) as trainer:
        assert trainer.end() == ExitCode.RESULT
    total = max(event["total"] for event in trainer.events("progress") if event["stage"] == "synthesising")
    assert len(service.asked) - before == total - kept


def test_sigterm_ends_it_between_requests(job: Path, service: FakeGenerator) -> None:
    service.seconds = 0.3
    with real_trainer(job, **KEY) as trainer:
        trainer.until("synthesising", 1)
        trainer.process.send_signal(signal.SIGTERM)
        assert trainer.end() == ExitCode.CHECKPOINTED
    assert trainer.events("error") == []
    assert len(service.asked) < 10 or trainer.steps("synthesising")[-1] <= len(service.asked)
