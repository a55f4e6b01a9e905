"""What the tests of the batch engine share: one tiny base model in float64, its oracle, a shelf of artefacts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from server.engine.base_model import BaseModel
from server.engine.batch_engine import BatchEngine
from server.engine.options import EngineOptions
from tests.support.engines import Make
from tests.support.oracle import Oracle
from tests.support.tiny_models import Shelf, tiny_base


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return tiny_base("llama", torch.float64)


@pytest.fixture(scope="module")
def oracle(base: BaseModel) -> Oracle:
    return Oracle(base)


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


@pytest.fixture
def make(base: BaseModel, shelf: Shelf) -> Iterator[Make]:
    """Engines by options, closed at the end."""
    engines: list[BatchEngine] = []

    def build(**options: Any) -> BatchEngine:
        engines.append(BatchEngine(base, EngineOptions(**options), shelf.read))
        return engines[-1]

    yield build
    for engine in engines:
        engine.close()
