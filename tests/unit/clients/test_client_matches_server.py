"""The client against the server's own description: its values take the server's examples, its calls are operations of the server."""

from __future__ import annotations

import json
import re
from collections.abc import Generator
from pathlib import Path
from typing import Any, get_args

import pytest
from kmserve_client import extractors, models, operations, streams
from kmserve_client.effects import Call, Open
from pydantic import BaseModel

from server.api_keys.schemas import CreatedApiKey
from server.asks.schemas import Answer, Ask, Mode
from server.db.tables import DocumentStatus
from server.documents.schemas import Document, Preset, Receipt, Uploaded
from server.extractors.schemas import Extractor, Switched
from server.jobs.schemas import Job

PATHS = json.loads((Path(__file__).resolve().parents[3] / "docs" / "openapi.json").read_text(encoding="utf-8"))["paths"]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (models.Document, Document),
        (models.Document, Uploaded),
        (models.Receipt, Receipt),
        (models.Job, Job),
        (models.Extractor, Extractor),
        (models.Switched, Switched),
        (models.Answer, Answer),
        (models.NewApiKey, CreatedApiKey),
    ],
)
def test_values_take_the_servers_examples_and_have_no_field_of_their_own(ours: type[models.Value], theirs: type[BaseModel]) -> None:
    extra: Any = theirs.model_config["json_schema_extra"]
    read = ours.model_validate(extra["example"]).model_dump()
    assert {name: value for name, value in read.items() if name != "eta_seconds"}.keys() <= theirs.model_fields.keys()


def test_enumerations_are_the_servers() -> None:
    assert set(get_args(models.Mode)) == set(Mode)
    assert set(get_args(models.Status)) == set(DocumentStatus)
    assert set(get_args(operations.Preset)) == set(Preset)
    assert set(operations.AskOptions.__annotations__) == set(Ask.model_fields) - {"question", "stream"}


@pytest.mark.parametrize(
    "flow",
    [
        operations.upload(text="a"),
        operations.document("doc_1"),
        operations.documents(),
        operations.wait("doc_1"),
        operations.cancel("doc_1"),
        operations.retry("doc_1"),
        operations.train("doc_1", preset="standard", recipe={"rank": 8}),
        operations.delete("doc_1"),
        operations.job("job_1"),
        operations.wait_for_job("job_1"),
        operations.cancel_job("job_1"),
        extractors.train_extractor([{"document_id": "doc_1", "question": "?", "answer": "!"}]),
        extractors.extractors(),
        extractors.extractor("ext_1"),
        extractors.activate_extractor("ext_1"),
        extractors.deactivate_extractor("ext_1"),
        extractors.delete_extractor("ext_1"),
        operations.ask("Why?"),
        operations.search("leave"),
        operations.create_api_key("reader", ["ask"]),
        operations.api_keys(),
        operations.delete_api_key("key_1"),
        operations.ready(),
        streams.ask_stream("Why?"),
        streams.events("doc_1"),
    ],
)
def test_every_call_is_an_operation_of_the_server(flow: Generator[Any, Any, Any]) -> None:
    effect = next(flow)
    call = effect.call if isinstance(effect, Open) else effect
    assert isinstance(call, Call)
    matching = [path for path in PATHS if re.fullmatch(re.sub(r"\{[^}]+\}", "[^/]+", path), call.path)]
    assert any(call.method.lower() in PATHS[path] for path in matching)
