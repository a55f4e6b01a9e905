"""A document of one page through a trainer process, as the worker starts it: from the job's start to the artefact that passed its gate."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from server.engine.base_model import BaseModel

PAGE = Path(__file__).parents[2] / "clients" / "examples" / "policy.md"
TOKENS = 600


def one_page(base: BaseModel, source: str, models: Path, folder: Path, preset: str, threads: int) -> dict[str, Any]:
    """Seconds, and what the trainer said last. The page is cut after its last whole paragraph within TOKENS tokens."""
    folder.mkdir(parents=True)
    (folder / "cores").mkdir()
    spec = {
        "kind": "module",
        "preset": preset,
        "recipe": {},
        "base": {"source": source, "models_dir": str(models)},
        "text": _page(base),
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
    done = subprocess.run(
        [sys.executable, "-m", "worker.train", str(folder)], stdin=reader, capture_output=True, text=True, check=False, env=dict(os.environ)
    )
    seconds = time.perf_counter() - started
    os.close(reader)
    os.close(writer)
    events = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode != 0 or not events:
        raise RuntimeError(f"the trainer ended with {done.returncode}: {events[-1:] or done.stderr[-500:]}")
    return {"seconds": round(seconds, 1), "gate": events[-1]["gate"]}


def _page(base: BaseModel) -> str:
    text = ""
    for paragraph in PAGE.read_text(encoding="utf-8").split("\n\n"):
        longer = f"{text}\n\n{paragraph}".strip()
        if len(base.tokenizer(longer, add_special_tokens=False)["input_ids"]) > TOKENS:
            break
        text = longer
    return text
