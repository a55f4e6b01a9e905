"""Makes a directory of safetensors, config and tokenizer out of a GGUF file or a hub id: once, atomically, under a file lock.

A directory under its final name is complete. Knows nothing of fingerprints, devices or how the model is used.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import struct
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, modeling_gguf_pytorch_utils
from transformers.utils import logging as transformers_logging

from server.engine.base_source import BaseSource, SourceKind
from server.errors import BaseModelNotFound, BaseModelUnusable
from server.modules.files import flush, flush_tree, make_durably

logger = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""(stage, done, total): the stages are waiting, tokenizer, weights, saving, downloading, fingerprint."""
_HUB_FILES = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.txt", "*.model")
_CONVERSION_ERRORS = (ValueError, LookupError, TypeError, AttributeError, RuntimeError, ImportError, OSError, struct.error)
"""What readers of a foreign file format raise for one they do not like."""


def converted(source: BaseSource, models_dir: Path, progress: Progress) -> Path:
    """The directory `models_dir/<name>`, made if it is not there; of several processes at once one makes it and the others wait.

    Raises BaseModelUnusable, and BaseModelNotFound for a hub id that cannot be fetched.
    """
    target = models_dir / source.name
    if target.is_dir():
        return target
    make_durably(models_dir)
    with _locked(models_dir / f".{source.name}.lock", progress):
        if not target.is_dir():
            _make(source, target, progress)
    return target


def _make(source: BaseSource, target: Path, progress: Progress) -> None:
    prefix = f".{source.name}.partial-"
    for leftover in target.parent.glob(f"{prefix}*"):
        shutil.rmtree(leftover)
    staged = target.parent / f"{prefix}{uuid.uuid4().hex}"
    staged.mkdir(mode=0o700)
    try:
        if source.kind is SourceKind.HUB:
            _download(source.location, staged, progress)
        else:
            _convert_gguf(Path(source.location), staged, progress)
        flush_tree(staged)
        staged.rename(target)
        flush(target.parent)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _convert_gguf(file: Path, directory: Path, progress: Progress) -> None:
    """Dequantise to bfloat16. The model forgets that it was quantised, else it refuses to be saved."""
    logger.info("converting the base model %s, once", file.name)
    place: dict[str, Any] = {"gguf_file": file.name, "local_files_only": True}
    try:
        with quiet(), _counted_tensors(progress):
            progress("tokenizer", 0, 1)
            tokenizer = AutoTokenizer.from_pretrained(file.parent, **place)
            progress("tokenizer", 1, 1)
            model = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.bfloat16, **place, **_dense())
            progress("saving", 0, 1)
            vars(model.config).pop("quantization_config", None)
            vars(model).pop("hf_quantizer", None)
            model.save_pretrained(directory)
            tokenizer.save_pretrained(directory)
            progress("saving", 1, 1)
    except _CONVERSION_ERRORS as error:
        raise BaseModelUnusable("The base model's GGUF file cannot be converted: it is damaged or of an unknown kind.") from error


def _dense() -> dict[str, Any]:
    """Plain weights, where this transformers could also keep a GGUF file's weights packed."""
    packing = getattr(transformers, "GgufConfig", None)
    return {} if packing is None else {"quantization_config": packing(dequantize=True)}


def _download(hub_id: str, directory: Path, progress: Progress) -> None:
    from huggingface_hub import snapshot_download  # only the user who names a hub id needs it

    progress("downloading", 0, 1)
    try:
        snapshot_download(hub_id, local_dir=directory, allow_patterns=list(_HUB_FILES))
    except (OSError, ValueError) as error:
        raise BaseModelNotFound(
            "The configured base model is no directory here and could not be fetched from the hub. Check its name and the network."
        ) from error
    shutil.rmtree(directory / ".cache", ignore_errors=True)
    progress("downloading", 1, 1)


@contextlib.contextmanager
def _locked(path: Path, progress: Progress) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("waiting", 0, 1)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the progress bars that transformers draws on stderr."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def _counted_tensors(progress: Progress) -> Iterator[None]:
    """Dequantising takes nearly all the time and transformers reports it to its own bar only: put a counter in the bar's place.

    Should a release rename that bar, the conversion goes on with fewer reports.
    """

    def counted(tensors: Iterable[Any], **_: Any) -> Iterator[Any]:
        listed = list(tensors)
        for done, tensor in enumerate(listed):
            progress("weights", done, len(listed))
            yield tensor
        progress("weights", len(listed), len(listed))

    names = vars(modeling_gguf_pytorch_utils)
    bar = names.get("tqdm")
    names["tqdm"] = counted
    try:
        yield
    finally:
        names["tqdm"] = bar
