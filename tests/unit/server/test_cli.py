from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from server.cli import app
from tests.support.fake_kmserve import KEY, FakeKmserve, running


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeKmserve]:
    with running(FakeKmserve()) as fake:
        monkeypatch.setenv("KMS_URL", fake.url)
        monkeypatch.setenv("KMS_API_KEY", KEY)
        monkeypatch.setenv("KMSERVE_DATA_DIR", str(tmp_path / "data"))
        monkeypatch.setenv("COLUMNS", "200")
        yield fake


def run(*arguments: str, code: int = 0, answer: str | None = None) -> str:
    result = CliRunner().invoke(app, list(arguments), input=answer)
    assert result.exit_code == code, result.output
    return result.output


@pytest.mark.parametrize(
    "command", ["up", "demo", "upload", "status", "ask", "search", "delete", "eval", "models prepare", "extractors list"]
)
def test_every_command_has_help_with_an_example(command: str) -> None:
    assert f"kmserve {command}" in run(*command.split(), "--help")


def test_upload_says_what_became_of_each_file(server: FakeKmserve, tmp_path: Path) -> None:
    good, bad = tmp_path / "a.md", tmp_path / "b.md"
    good.write_text("Everyone gets 31 days.")
    bad.write_text("refuse me")
    output = run("upload", str(good), str(bad), code=1)
    assert "doc_1  a.md  ingesting, about 3 min 10 s to go" in output
    assert "at most 5 bytes" in output
    assert b"Everyone gets 31 days." in server.uploads[0]


def test_upload_of_a_missing_file_is_a_usage_error(server: FakeKmserve) -> None:
    assert "does not exist" in run("upload", "absent.md", code=2)


def test_upload_wait_follows_every_document_to_its_end(server: FakeKmserve, tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.md", "b.md")]
    for path in paths:
        path.write_text(path.name)
    output = run("upload", *map(str, paths), "--wait")
    assert sorted(row["title"] for row in server.documents.values()) == ["a.md", "b.md"]
    assert output.count("  ready") == 2


def test_upload_wait_fails_where_no_module_comes(server: FakeKmserve, tmp_path: Path) -> None:
    server.outcome = "retrieval_ready"
    (tmp_path / "a.md").write_text("text")
    assert "gate_not_passed" in run("upload", str(tmp_path / "a.md"), "--wait", code=1)
    assert "gate_not_passed" not in run("upload", str(tmp_path / "a.md"))


def test_status_lists_documents(server: FakeKmserve) -> None:
    assert "no documents yet" in run("status")
    server.add(b"", "Policy")
    server.settle("doc_1")
    row = run("status").splitlines()[-1]
    assert row.split() == ["doc_1", "Policy", "ready", "v1"]
    assert "Policy" in run("status", "doc_1")


def test_status_shows_what_is_under_way(server: FakeKmserve) -> None:
    server.add(b"", "Policy")
    server.documents["doc_1"] = server.settle("doc_1")[0]
    assert "training: fitting 25%, 1 min 01 s left" in run("status")


def test_an_absent_document_is_explained(server: FakeKmserve) -> None:
    output = run("status", "doc_9", code=1)
    assert "no such document" in output
    assert "kmserve status" in output


def test_ask_prints_answer_sources_and_what_was_used(server: FakeKmserve) -> None:
    server.add(b"", "Policy")
    output = run("ask", "How many days?")
    assert output.splitlines() == [
        "retrieval says 31 days",
        "[1] policy.md, page 2  Everyone gets 31 days.",
        "retrieval, no module, 20 + 4 tokens",
    ]


def test_ask_passes_its_options_on(server: FakeKmserve) -> None:
    run("ask", "How many?", "-d", "doc_1", "--mode", "closed_book", "-k", "3", "--max-tokens", "7")
    run("ask", "How many?", "-d", "doc_1", "-d", "doc_2")
    assert server.asked[0] == {"question": "How many?", "document_id": "doc_1", "mode": "closed_book", "top_k": 3, "max_tokens": 7}
    assert server.asked[1] == {"question": "How many?", "document_ids": ["doc_1", "doc_2"], "mode": "auto"}


def test_ask_stream_prints_the_text_once(server: FakeKmserve) -> None:
    output = run("ask", "How many?", "--stream", "--mode", "closed_book")
    assert output.count("closed_book says 31 days") == 1
    assert "closed_book, module v1" in output


def test_ask_before_the_module_is_ready_says_what_to_do(server: FakeKmserve) -> None:
    server.outcome = "retrieval_ready"
    assert "--mode retrieval" in run("ask", "How many?", "--mode", "closed_book", code=1)


def test_an_unknown_mode_is_a_usage_error(server: FakeKmserve) -> None:
    run("ask", "How many?", "--mode", "guess", code=2)


def test_search(server: FakeKmserve) -> None:
    assert "no passages" in run("search", "leave")
    server.add(b"", "Policy")
    assert "0.710  policy.md, page 2  doc_1" in run("search", "leave")


def test_delete_asks_first(server: FakeKmserve) -> None:
    server.add(b"", "Policy")
    assert "was kept" in run("delete", "doc_1", code=1, answer="n\n")
    assert "deleted doc_1: 3 passages, 1 modules" in run("delete", "doc_1", "--yes")
    assert not server.documents


def test_a_wrong_key_a_missing_key_and_a_missing_server_are_told_apart(
    server: FakeKmserve, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert "unknown" in run("ask", "Why?", "--api-key", "kms_wrong_key", code=1)
    monkeypatch.delenv("KMS_API_KEY")
    assert "no API key" in run("status", code=1)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "admin.key").write_text(f"{KEY}\n")
    run("status")


def test_an_unknown_setting_is_refused(server: FakeKmserve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KMSERVE_PROT", "1")
    assert "KMSERVE_PROT" in run("status", code=1)


def test_eval_is_a_process_whose_errors_and_code_are_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KMSERVE_DATA_DIR", str(tmp_path / "data"))
    run("eval", "--dataset", "fairytaleqa", "--data", str(tmp_path), "--out", str(tmp_path / "out"), "--passages", "few", code=2)
    assert "'few' is no list of numbers" in capfd.readouterr().err
