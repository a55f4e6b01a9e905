from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from benchmarks import engine_compile
from benchmarks.engine_compile import CELLS, _Compiling, compiled_steps, compiler
from tests.support.tiny_models import tiny_base


def test_the_first_compiler_of_the_path_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: {"clang++": "/bin/clang++"}.get(name))
    assert compiler() == "/bin/clang++"


def test_without_a_compiler_nothing_is_measured_and_the_report_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_compile, "compiler", lambda: None)
    assert compiled_steps(tiny_base(), 1) == {"skipped": "no C++ compiler: none of g++, c++, clang++ is on the path"}
    assert CELLS


def test_a_compilation_that_fails_is_told_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> object:
        def compute() -> object:
            raise RuntimeError(f"no header\nin {Path('/tmp')}")

        return compute

    monkeypatch.setattr(torch, "compile", fail)
    compiling = _Compiling()
    with pytest.raises(RuntimeError):
        compiling(lambda: torch.zeros(1))
    assert compiling.reason == "RuntimeError: no header"
