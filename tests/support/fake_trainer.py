"""A trainer that trains nothing: it speaks the protocol of `worker.train` and does what the document's text tells it, a JSON list of steps;
where it trains an extractor, the text of the first of its documents.

    {"say": EVENT}                 one event on standard output
    {"print": TEXT}                noise on standard output
    {"wait_for": NAME}             go on once the file NAME is in the job's directory
    {"ignore_sigterm": true}       from here on
    {"environment": NAME}          write the variable's value to a file of its name in the job's directory
    {"deliver": PATH, "say": {}}   copy the artefact at PATH to `artefact`
    {"exit": CODE}  {"kill": 9}    end; a kill is by signal
    {"raise": TEXT}                end by an exception that says TEXT
    {"only_attempt": N, ...}       any step, in that attempt alone

Told SIGTERM it notes a checkpoint and exits 75; once its standard input closes it is gone. Its process id is in `attempt-N/pid`.
Standard library only, so that it starts fast.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any


def main() -> None:
    job = Path(sys.argv[1])
    spec = json.loads((job / "spec.json").read_text())
    attempt = job / f"attempt-{spec['attempt']}"
    threading.Thread(target=exit_with_parent, daemon=True).start()
    signal.signal(signal.SIGTERM, lambda *_: checkpoint(attempt))
    (attempt / "pid").write_text(str(os.getpid()))
    print("fake trainer starts", file=sys.stderr, flush=True)
    script = spec["documents"][0]["passages"][-1] if spec["kind"] == "extractor" else spec["text"]
    for step in json.loads(script):
        if step.get("only_attempt") in (None, spec["attempt"]):
            take(step, job)


def take(step: dict[str, Any], job: Path) -> None:
    if "deliver" in step:
        shutil.copytree(step["deliver"], job / "artefact", dirs_exist_ok=True)
    if "say" in step:
        print(json.dumps(step["say"]), flush=True)
    if "print" in step:
        print(step["print"], flush=True)
    if "environment" in step:
        (job / step["environment"]).write_text(os.environ[step["environment"]])
    if "ignore_sigterm" in step:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if "wait_for" in step:
        while not (job / step["wait_for"]).exists():
            time.sleep(0.02)
    if "kill" in step:
        os.kill(os.getpid(), step["kill"])
    if "raise" in step:
        raise ValueError(step["raise"])
    if "exit" in step:
        sys.exit(step["exit"])


def checkpoint(attempt: Path) -> None:
    (attempt / "checkpoint").write_text("resume here")
    os._exit(75)


def exit_with_parent() -> None:
    """By the descriptor: a thread that waits in `sys.stdin` aborts the interpreter when it shuts down."""
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(70)


if __name__ == "__main__":
    main()
