"""What a trainer says on its standard output: one JSON object a line. Its exit code says how it ended. Knows nothing of processes."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

logger = logging.getLogger(__name__)


class ExitCode(IntEnum):
    """Any other code is a crash."""

    RESULT = 0
    FAILED = 1
    CHECKPOINTED = 75
    OUT_OF_MEMORY = 76
    GPU_BUSY = 77


@dataclass(frozen=True, kw_only=True)
class Progress:
    """`done` of `total` `unit`s of the stage. `eta_seconds` is to the end of the whole job and not of the stage, as worker/progress.py
    reckons it; None while there is no pace to reckon by."""

    stage: str
    done: int
    total: int
    unit: str
    eta_seconds: float | None


@dataclass(frozen=True, kw_only=True)
class Metrics:
    metrics: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Result:
    """`artefact`: the directory, relative to the job's, that passed the gate. `digest` is that of the lora; of an extractor `composition`
    is that of the weights over it."""

    artefact: str
    digest: str
    manifest_sha256: str
    gate: dict[str, Any]
    composition: str | None = None


@dataclass(frozen=True, kw_only=True)
class Failure:
    """`code` is stable, `message` is for the document's owner."""

    code: str
    message: str


Event = Progress | Metrics | Result | Failure


def parse_event(line: str) -> Event | None:
    """None, with a line in the log, for whatever is no event: a library may print, and what it prints may be the document's text."""
    try:
        values = json.loads(line)
        return _event(values)
    except (ValueError, KeyError, TypeError):
        logger.warning("ignored a line of %d characters on the trainer's output: it is no event", len(line))
        return None


def _event(values: dict[str, Any]) -> Event:
    match values["event"]:
        case "progress":
            return _progress(values)
        case "metrics":
            return Metrics(metrics=dict(values["metrics"]))
        case "result":
            names = {name: str(values[name]) for name in ("artefact", "digest", "manifest_sha256")}
            composition = values.get("composition")
            return Result(gate=dict(values["gate"]), composition=None if composition is None else str(composition), **names)
        case "error":
            return Failure(code=str(values["code"]), message=str(values["message"]))
        case other:
            raise ValueError(f"unknown event {other!r}")


def _progress(values: dict[str, Any]) -> Progress:
    eta = values.get("eta_seconds")
    return Progress(
        stage=str(values["stage"]),
        done=int(values["done"]),
        total=int(values["total"]),
        unit=str(values["unit"]),
        eta_seconds=float(eta) if eta is not None else None,
    )
