"""Documents through a trainer process, as the worker starts it: from the job's start to the artefact that passed its gate."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.training.machine import peak_mb
from server.engine.base_model import BaseModel

PAGE = Path(__file__).parents[2] / "clients" / "examples" / "policy.md"
PAGE_TOKENS, LONG_TOKENS = 600, 100_000
TRAINER = (sys.executable, "-m", "worker.train")
_LOOK_SECONDS = 0.1


def page(base: BaseModel) -> str:
    """Whole paragraphs of at most PAGE_TOKENS tokens."""
    text = ""
    for paragraph in PAGE.read_text(encoding="utf-8").split("\n\n"):
        longer = f"{text}\n\n{paragraph}".strip()
        if tokens_of(base, longer) > PAGE_TOKENS:
            break
        text = longer
    return text


def long_text(base: BaseModel) -> str:
    """The page of one office after another, until there are LONG_TOKENS tokens: long, and no two windows alike."""
    lines = [line for line in page(base).splitlines() if line]
    offices: list[str] = []
    tokens = 0
    while tokens < LONG_TOKENS:
        offices.append("\n\n".join(f"Office {len(offices) + 1}: {line.lstrip('# ')}" for line in lines))
        tokens += tokens_of(base, offices[-1])
    return "\n\n".join(offices)


def tokens_of(base: BaseModel, text: str) -> int:
    return len(base.tokenizer(text, add_special_tokens=False)["input_ids"])


def trained(base: BaseModel, source: str, models: Path, folder: Path, preset: str, threads: int, text: str) -> dict[str, Any]:
    """What the document and its training were: tokens, seconds, the process's peak memory, and the gate's verdict. Raises RuntimeError."""
    (folder / "cores").mkdir(parents=True)
    spec = {
        "kind": "module",
        "preset": preset,
        "recipe": {},
        "base": {"source": source, "models_dir": str(models)},
        "text": text,
        "document_title": "Policy",
        "revision_sha256": "0" * 64,
        "seed": 0,
        "attempt": 1,
        "passages": [],
        "extractor": None,
        "embedder": "",
        "device": str(base.device),
        "dtype": str(base.dtype).removeprefix("torch."),
        "engine_threads": threads,
        "trainer_threads": threads,
        "cores_dir": str(folder / "cores"),
    }
    (folder / "spec.json").write_text(json.dumps(spec))
    reader, writer = os.pipe()  # the trainer ends when its parent's side closes
    started = time.perf_counter()
    most_mb = 0.0
    with (folder / "events").open("w") as events, (folder / "log").open("w") as log:
        process = subprocess.Popen([*TRAINER, str(folder)], stdin=reader, stdout=events, stderr=log)
        while process.poll() is None:
            most_mb = max(most_mb, peak_mb(process.pid))
            time.sleep(_LOOK_SECONDS)
    seconds = time.perf_counter() - started
    os.close(reader)
    os.close(writer)
    told = [json.loads(line) for line in (folder / "events").read_text().splitlines() if line.startswith("{")]
    if process.returncode != 0 or not told:
        raise RuntimeError(f"the trainer ended with {process.returncode}: {told[-1:] or (folder / 'log').read_text()[-500:]}")
    return {
        "preset": preset,
        "tokens": tokens_of(base, text),
        "seconds": round(seconds, 1),
        "peak_memory_mb": round(most_mb),
        "gate": told[-1]["gate"],
    }
