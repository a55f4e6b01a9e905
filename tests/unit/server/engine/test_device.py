from __future__ import annotations

import logging

import pytest
import torch

from server.engine import device as device_module
from server.engine.device import DTYPES, choose_device, choose_dtype, faster_on_cpu, matmul_seconds
from server.errors import DeviceUnavailable

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_auto_takes_a_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for there, expected in ((True, CUDA), (False, CPU)):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert choose_device("auto") == expected


def test_a_named_device_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert choose_device("cpu") == CPU
    assert choose_device("cuda:1") == torch.device("cuda:1")
    for absent in ("cuda:2", "mps", "meta", "gpu", "", "cuda:x"):
        with pytest.raises(DeviceUnavailable, match="device"):
            choose_device(absent)


@pytest.mark.parametrize(("name", "dtype"), DTYPES.items())
def test_a_configured_dtype_wins(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_module, "matmul_seconds", pytest.fail)
    assert choose_dtype(CPU, name) == dtype


def test_a_gpu_runs_in_bfloat16_where_it_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for has_it, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, has_it=has_it: has_it)
        assert choose_dtype(CUDA, "auto") == expected


def test_a_cpu_runs_in_what_is_measured_to_be_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    for fast in (torch.bfloat16, torch.float32):
        monkeypatch.setattr(device_module, "matmul_seconds", lambda dtype, fast=fast: 1.0 if dtype == fast else 2.0)
        assert choose_dtype(CPU, "auto") == fast


def test_noise_does_not_decide() -> None:
    assert faster_on_cpu(bfloat16=0.95, float32=1.0)[0] == torch.float32
    assert faster_on_cpu(bfloat16=0.5, float32=1.0)[0] == torch.bfloat16


def test_the_reason_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        choose_dtype(CPU, "auto")
        choose_dtype(CPU, "float64")
    measured, configured = (record.getMessage() for record in caplog.records)
    assert "bfloat16" in measured
    assert " ms" in measured
    assert configured == "base model dtype torch.float64 on cpu: configured"


def test_the_probe_measures() -> None:
    assert 0 < matmul_seconds(torch.float32) < 1


def test_other_devices_are_not_trusted_with_bfloat16() -> None:
    assert choose_dtype(torch.device("mps"), "auto") == torch.float32
