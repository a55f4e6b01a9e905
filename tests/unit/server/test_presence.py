"""One API process for each data directory, which commands find by what it left there."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.cli_connection import CliError, Connection
from server.presence import running_url, sole_api_process
from server.settings import Settings


def test_a_second_api_process_is_refused(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    second = sole_api_process(settings)
    with sole_api_process(settings), pytest.raises(RuntimeError, match="another API process"):
        second.__enter__()
    with sole_api_process(settings):
        pass


@pytest.mark.parametrize("qdrant_url", [None, "http://qdrant:6333"])
def test_its_address_is_found_while_it_runs(tmp_path: Path, qdrant_url: str | None) -> None:
    settings = Settings(data_dir=tmp_path, host="0.0.0.0", port=8123, qdrant_url=qdrant_url)
    asked = Settings(data_dir=tmp_path, port=0, qdrant_url=qdrant_url)
    assert running_url(asked) is None
    with sole_api_process(settings):
        assert running_url(asked) == "http://127.0.0.1:8123"
    assert running_url(asked) is None


def test_an_address_that_a_crash_left_behind_counts_for_nothing(tmp_path: Path) -> None:
    (tmp_path / "api.lock").write_text("http://127.0.0.1:8123")
    assert running_url(Settings(data_dir=tmp_path)) is None
    with sole_api_process(Settings(data_dir=tmp_path, port=9)):
        assert running_url(Settings(data_dir=tmp_path)) == "http://127.0.0.1:9"


def test_a_command_finds_the_port_that_the_server_got(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KMSERVE_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("KMSERVE_PORT", "0")
    with pytest.raises(CliError, match="KMSERVE_PORT is 0 and no server runs here"):
        Connection.of(None, "key")
    with sole_api_process(Settings(data_dir=tmp_path, port=8123)):
        assert Connection.of(None, "key").url == "http://127.0.0.1:8123"
        assert Connection.of("http://elsewhere", "key").url == "http://elsewhere"


def test_without_a_server_the_settings_say_where_it_would_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KMSERVE_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("KMSERVE_PORT", "9000")
    monkeypatch.setenv("KMSERVE_HOST", "::1")
    assert Connection.of(None, "key").url == "http://[::1]:9000"
