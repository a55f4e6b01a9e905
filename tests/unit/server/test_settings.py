"""Settings that are wrong are refused with a message that says what to do and repeats nothing that may be secret."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from typer.testing import CliRunner

import server.app
import worker.celery_app
from server.cli import app
from server.settings import Settings, load_settings

PASSWORD = "hunter2-canary"
DATABASE = f"postgresql://kmserve:{PASSWORD}@db/kmserve"


WRONG = [
    ("KMSERVE_PORT", "eighty", "port"),
    ("KMSERVE_ENVIRONMENT", "production", "KMSERVE_SECRET_KEY"),
    ("KMSERVE_LOG_LEVEL", PASSWORD, "log_level"),
    ("KMSERVE_PROT", PASSWORD, "KMSERVE_PROT"),
]


@pytest.mark.parametrize("start", [load_settings, server.app.main, worker.celery_app.main])
@pytest.mark.parametrize(("name", "value", "said"), WRONG)
def test_what_a_process_dies_of_holds_no_value(
    monkeypatch: pytest.MonkeyPatch, start: Callable[[], object], name: str, value: str, said: str
) -> None:
    monkeypatch.setenv("KMSERVE_SECRET_KEY", PASSWORD)
    monkeypatch.setenv("KMSERVE_DATABASE_URL", DATABASE)
    monkeypatch.setenv("KMSERVE_BROKER_URL", f"redis://:{PASSWORD}@broker")
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=said) as caught:
        start()
    assert PASSWORD not in "".join(traceback.format_exception(caught.value))


def test_the_command_line_prints_no_value(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in {"SECRET_KEY": PASSWORD, "DATABASE_URL": DATABASE, "ENVIRONMENT": "production", "DATA_DIR": str(tmp_path)}.items():
        monkeypatch.setenv(f"KMSERVE_{name}", value)
    result = CliRunner().invoke(app, ["up"])
    assert result.exit_code == 1
    assert "KMSERVE_SECRET_KEY" in result.output
    assert PASSWORD not in result.output


def test_the_repr_holds_no_password() -> None:
    secrets: dict[str, Any] = {name: SecretStr(PASSWORD) for name in ("secret_key", "qdrant_api_key", "generator_api_key")}
    settings = Settings(database_url=DATABASE, broker_url=f"redis://:{PASSWORD}@broker", **secrets)
    assert PASSWORD not in repr(settings)


@pytest.mark.parametrize(("secret", "found"), [(None, "not set"), ("", "not set"), ("s" * 31, "it has 31")])
def test_production_refuses_a_short_secret(secret: str | None, found: str) -> None:
    with pytest.raises(ValueError, match=rf"at least 32 random bytes in production, and .*{found}.*openssl rand"):
        Settings(environment="production", secret_key=None if secret is None else SecretStr(secret))


def test_production_counts_the_bytes_of_a_secret() -> None:
    assert Settings(environment="production", secret_key=SecretStr("é" * 16)).environment == "production"


def test_development_takes_any_secret() -> None:
    assert Settings(secret_key=SecretStr("short")).secret_key is not None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"generator_url": "https://api.example.com/v1"}, "together"),
        ({"generator_model": "large"}, "together"),
        ({"generator_url": "api.example.com/v1", "generator_model": "large"}, "http"),
        ({"generator_url": "ftp://api.example.com/v1", "generator_model": "large"}, "http"),
        ({"generator_url": f"https://user:{PASSWORD}@api.example.com/v1", "generator_model": "large"}, "without a key"),
        ({"generator_url": f"https://api.example.com/v1?key={PASSWORD}", "generator_model": "large"}, "without a key"),
        ({"generator_api_key": SecretStr(f"{PASSWORD}\n")}, "KMSERVE_GENERATOR_API_KEY"),
        ({"generator_api_key": SecretStr(f"{PASSWORD}é")}, "KMSERVE_GENERATOR_API_KEY"),
    ],
)
def test_a_generator_is_set_as_a_whole_and_its_key_apart(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        Settings(**changes)
    assert PASSWORD not in str(caught.value)
    assert Settings(generator_url="http://127.0.0.1:8001/v1", generator_model="large").generator_api_key is None
