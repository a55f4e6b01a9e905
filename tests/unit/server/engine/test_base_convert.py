from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, modeling_gguf_pytorch_utils

from server.engine import base_convert
from server.engine.base_convert import converted
from server.engine.base_source import BaseSource, SourceKind, resolve
from server.errors import BaseModelNotFound, BaseModelUnusable
from tests.support import base_files

Event = tuple[str, int, int]
HOLD_LOCK = """
import fcntl, sys, time
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def gguf(tmp_path: Path) -> BaseSource:
    return resolve(str(base_files.write_gguf(tmp_path / "tiny.gguf")))


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return tmp_path / "data" / "models"


def quietly(stage: str, done: int, total: int) -> None:
    """For tests that do not look at progress."""


def never(stage: str, done: int, total: int) -> None:
    pytest.fail("nothing was to be done")


def names(models: Path) -> set[str]:
    return {path.name for path in models.iterdir() if not path.name.endswith(".lock")}


def test_a_gguf_file_becomes_plain_bfloat16_safetensors(gguf: BaseSource, models: Path) -> None:
    directory = converted(gguf, models, quietly)
    assert directory == models / gguf.name
    assert {tensor.dtype for tensor in load_file(directory / "model.safetensors").values()} == {torch.bfloat16}
    assert not hasattr(AutoConfig.from_pretrained(directory), "quantization_config")
    assert (directory / "chat_template.jinja").read_text() == base_files.TEMPLATE
    assert names(models) == {gguf.name}


def test_progress_counts_what_is_done(gguf: BaseSource, models: Path) -> None:
    events: list[Event] = []
    converted(gguf, models, lambda *event: events.append(event))
    stages = {stage: [done for _, done, _ in group] for stage, group in groupby(events, key=lambda event: event[0])}
    tensors = base_files.LAYERS * 9 + 2
    assert stages == {"tokenizer": [0, 1], "weights": list(range(tensors + 1)), "saving": [0, 1]}


def test_transformers_has_the_bar_that_progress_stands_in_for(gguf: BaseSource, models: Path, capfd: pytest.CaptureFixture[str]) -> None:
    bar = vars(modeling_gguf_pytorch_utils)["tqdm"]
    converted(gguf, models, quietly)
    assert vars(modeling_gguf_pytorch_utils)["tqdm"] is bar
    assert "it/s" not in capfd.readouterr().err


def test_what_is_there_is_not_made_again(gguf: BaseSource, models: Path) -> None:
    first = converted(gguf, models, quietly)
    made = (first / "model.safetensors").stat().st_mtime_ns
    Path(gguf.location).unlink()
    models.chmod(0o500)
    assert converted(gguf, models, never) == first
    assert (first / "model.safetensors").stat().st_mtime_ns == made
    models.chmod(0o700)


def test_of_many_at_once_one_converts(gguf: BaseSource, models: Path) -> None:
    events: list[Event] = []
    with ThreadPoolExecutor(4) as pool:
        made = [pool.submit(converted, gguf, models, lambda *event: events.append(event)) for _ in range(4)]
    assert {future.result() for future in made} == {models / gguf.name}
    assert events.count(("saving", 1, 1)) == 1


@pytest.fixture
def holder(gguf: BaseSource, models: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process in the middle of the same conversion."""
    models.mkdir(parents=True)
    process = subprocess.Popen([sys.executable, "-c", HOLD_LOCK, str(models / f".{gguf.name}.lock")], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_another_process_is_waited_for(gguf: BaseSource, models: Path, holder: subprocess.Popen[bytes]) -> None:
    events: list[Event] = []
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(converted, gguf, models, lambda *event: events.append(event))
        while not events:
            time.sleep(0.01)
        assert events == [("waiting", 0, 1)]
        (models / gguf.name).mkdir()
        holder.kill()
        assert future.result(timeout=30) == models / gguf.name
    assert events == [("waiting", 0, 1)]


def test_a_process_killed_while_converting_leaves_work_for_the_next(
    gguf: BaseSource, models: Path, holder: subprocess.Popen[bytes]
) -> None:
    (models / f".{gguf.name}.partial-dead").mkdir()
    (models / f".{gguf.name}.partial-dead" / "model.safetensors").write_bytes(b"half")
    holder.kill()
    assert (converted(gguf, models, quietly) / "config.json").is_file()
    assert names(models) == {gguf.name}


@pytest.mark.parametrize("damage", [b"", b"GGUF", b"GGUF\x03\0\0\0" + b"\xff" * 64, b"not gguf" * 100])
def test_a_damaged_file_leaves_nothing_behind(tmp_path: Path, models: Path, damage: bytes) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(damage)
    with pytest.raises(BaseModelUnusable, match="damaged or of an unknown kind") as caught:
        converted(resolve(str(path)), models, quietly)
    assert str(tmp_path) not in caught.value.detail
    assert names(models) == set()


def test_a_truncated_file_leaves_nothing_behind(gguf: BaseSource, models: Path) -> None:
    path = Path(gguf.location)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(BaseModelUnusable):
        converted(gguf, models, quietly)
    assert names(models) == set()


def test_a_crash_before_the_rename_leaves_nothing_behind(gguf: BaseSource, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(directory: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(base_convert, "flush_tree", full)
    with pytest.raises(OSError, match="No space"):
        converted(gguf, models, quietly)
    assert names(models) == set()


HUB = BaseSource(kind=SourceKind.HUB, name="owner--model", location="owner/model")


def test_a_hub_id_is_fetched_once(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = []

    def fetch(hub_id: str, local_dir: Path, allow_patterns: list[str]) -> str:
        fetched.append((hub_id, "*.safetensors" in allow_patterns, any("bin" in pattern for pattern in allow_patterns)))
        (local_dir / ".cache").mkdir()
        (local_dir / "config.json").write_text("{}")
        return str(local_dir)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    events: list[Event] = []
    for _ in range(2):
        directory = converted(HUB, models, lambda *event: events.append(event))
    assert {path.name for path in directory.iterdir()} == {"config.json"}
    assert fetched == [("owner/model", True, False)]
    assert events == [("downloading", 0, 1), ("downloading", 1, 1)]


@pytest.mark.parametrize("failure", [OSError("no network"), ValueError("no such repository")])
def test_a_hub_id_that_cannot_be_fetched(models: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception) -> None:
    def fetch(*_: Any, **__: Any) -> str:
        raise failure

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    with pytest.raises(BaseModelNotFound, match="Check its name and the network"):
        converted(HUB, models, quietly)
    assert names(models) == set()
