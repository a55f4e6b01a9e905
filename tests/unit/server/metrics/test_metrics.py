"""`GET /metrics`: what is counted, under which labels, and who may read it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from server.engine.batch_engine import BatchEngine
from server.engine.options import EngineOptions
from server.metrics.engine import COUNTS, LOAD_SECONDS, Counts
from server.metrics.http import HttpMetrics, MeasuredRequests
from server.metrics.service import Meter
from server.parts import Loading
from server.settings import Settings
from tests.support.api import ACME, Api, client_of
from tests.support.asking import LEAVE, QUESTION, ready
from tests.support.engines import answer
from tests.support.tiny_models import Shelf, tiny_artefact, tiny_base, tiny_prompt, tiny_request

OPERATIONS = (Path(__file__).resolve().parents[4] / "docs/operations.md").read_text()
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def samples(text: str) -> Samples:
    families = text_string_to_metric_families(text)
    return {(sample.name, frozenset(sample.labels.items())): sample.value for family in families for sample in family.samples}


def value(found: Samples, name: str, **labels: str) -> float:
    return found[name, frozenset(labels.items())]


async def scraped(api: Api) -> str:
    operator = await api.client_with("admin", tenant="default")
    response = await operator.get("/metrics")
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/plain; version=")
    return str(response.text)


def with_setting(api: Api, metrics: str) -> None:
    object.__setattr__(api.parts, "settings", api.parts.settings.model_copy(update={"metrics": metrics}))


@pytest.fixture
def meter(api: Api) -> Iterator[Meter]:
    """The application is shared by all tests: this one's disk was not measured yet."""
    before = api.app.state.meter
    api.app.state.meter = Meter(before._requests)
    yield api.app.state.meter
    api.app.state.meter = before


def test_by_default_an_admin_key_of_the_operator_is_needed() -> None:
    assert Settings().metrics == "key"


@pytest.mark.parametrize(("scope", "tenant"), [("admin", ACME), ("ask", "default"), ("documents:read", ACME)])
async def test_nobody_else_reads_them(api: Api, scope: str, tenant: str) -> None:
    refused = await (await api.client_with(scope, tenant=tenant)).get("/metrics")
    assert (refused.status_code, refused.json()["code"]) == (403, "scope_missing")
    keyless = await client_of(api.app, None).get("/metrics")
    assert (keyless.status_code, keyless.json()["code"]) == (401, "unauthorized")


async def test_open_needs_no_key_and_off_is_no_path(api: Api) -> None:
    with_setting(api, "open")
    assert (await client_of(api.app, None).get("/metrics")).status_code == 200
    with_setting(api, "off")
    for client in (client_of(api.app, None), await api.client_with("admin", tenant="default")):
        response = await client.get("/metrics")
        assert (response.status_code, response.json()["code"]) == (404, "not_found")


async def test_requests_are_counted_by_the_route_as_it_is_written(api: Api) -> None:
    document, _, _ = await ready(api)
    counted = "kmserve_http_request_seconds_count"
    labels = {"route": "/documents/{document_id}", "method": "GET", "status": "200"}
    key = (counted, frozenset(labels.items()))
    before = samples(await scraped(api)).get(key, 0.0)
    for _ in range(3):
        await api.client.get(f"/documents/{document}")
    found = samples(await scraped(api))
    assert found[key] - before == 3
    assert value(found, "kmserve_http_request_seconds_sum", **labels) > 0
    assert value(found, counted, route="/metrics", method="GET", status="200") >= 1


@pytest.mark.parametrize(
    ("method", "path", "labels"),
    [
        ("GET", "/documents/doc_absent", {"route": "/documents/{document_id}", "method": "GET", "status": "404"}),
        ("GET", "/no/such/path", {"route": "none", "method": "GET", "status": "404"}),
        ("PATCH", "/documents", {"route": "/documents", "method": "PATCH", "status": "405"}),
        ("BREW", "/health/live", {"route": "/health/live", "method": "other", "status": "405"}),
        ("GET", "/health/live", {"route": "/health/live", "method": "GET", "status": "200"}),
        ("GET", "/openapi.json", {"route": "none", "method": "GET", "status": "200"}),
    ],
)
async def test_refused_and_unknown_requests_have_bounded_labels_too(api: Api, method: str, path: str, labels: dict[str, str]) -> None:
    await api.client.request(method, path)
    assert value(samples(await scraped(api)), "kmserve_http_request_seconds_count", **labels) >= 1


async def test_a_request_without_an_answer_is_counted() -> None:
    async def broken(*_: Any) -> None:
        raise RuntimeError("a defect")

    requests = HttpMetrics()
    scope = {"type": "http", "method": "GET", "path": "/secret"}
    with pytest.raises(RuntimeError):
        await MeasuredRequests(broken, requests)(scope, None, None)  # type: ignore[arg-type]
    labels = {"route": "none", "method": "GET", "status": "none"}
    assert requests.registry.get_sample_value("kmserve_http_request_seconds_count", labels) == 1


async def test_no_path_key_tenant_document_or_text_is_told(api: Api) -> None:
    document, passages, digest = await ready(api)
    await api.client.post("/ask", json={"question": QUESTION, "document_id": document, "mode": "open_book"})
    await api.client.get(f"/documents/{document}?wait=0")
    await api.client.get("/who/are/acme")
    text = await scraped(api)
    key = api.client.headers["authorization"].removeprefix("Bearer ")
    for secret in (document, *passages, digest, key, key.split("_")[1], ACME, "default", QUESTION, LEAVE, str(api.parts.settings.root)):
        assert secret not in text, secret


async def test_before_the_models_are_loaded_there_is_nothing_of_the_engine(api: Api) -> None:
    object.__setattr__(api.parts, "models", Loading[Any]())
    found = samples(await scraped(api))
    assert not [name for name, _ in found if name.startswith("kmserve_engine")]
    assert [name for name, _ in found if name.startswith("kmserve_http")]


async def test_the_disk_is_measured_once_in_a_while(api: Api, meter: Meter) -> None:
    file = api.parts.modules.path(ACME, "doc_1", "a" * 64) / "adapter_model.safetensors"
    file.parent.mkdir(parents=True)
    file.write_bytes(bytes(1000))
    assert value(samples(await scraped(api)), "kmserve_tier_bytes", tier="disk") == 1000
    file.write_bytes(bytes(2000))
    assert value(samples(await scraped(api)), "kmserve_tier_bytes", tier="disk") == 1000
    meter._measured_at -= 61
    assert value(samples(await scraped(api)), "kmserve_tier_bytes", tier="disk") == 2000


def test_an_engine_at_work_fills_every_family() -> None:
    base, shelf = tiny_base(), Shelf()
    artefact = tiny_artefact(base, 1)
    engine = BatchEngine(base, EngineOptions(slots=1, host_bytes=artefact.nbytes), shelf.read)
    for name in ("a", "a", "b", "absent"):
        ref = shelf.put(name, artefact)
        if name == "absent":
            shelf.corrupt.add(name)
        answer(engine, tiny_request(name, tiny_prompt(1), ref, max_tokens=3))
    cache = {"evictions": 1.0, "loading": 2.0, "loads": 3.0, "load_failures": 4.0, "load_seconds": 5.0, "bytes": 5.0}
    stats = engine.stats() | {f"disk_{name}": count for name, count in cache.items()} | {"store_misses": 6.0}
    engine.close()
    found = {(sample.name, sample.labels.get("tier")): sample.value for family in Counts(stats).collect() for sample in family.samples}
    wanted = {(count.name, tier) for count in COUNTS for tier in ([None] if isinstance(count.stat, str) else count.stat)}
    sums = {(f"{LOAD_SECONDS}_{part}", tier) for part in ("count", "sum") for tier in ("device", "host", "disk")}
    assert found.keys() == wanted | sums
    assert [found["kmserve_tier_hits_total", tier] for tier in ("device", "host", "disk")] == [1, 1, 2]
    assert [found["kmserve_tier_misses_total", tier] for tier in ("device", "host", "disk")] == [2, 3, 0]
    assert [found["kmserve_tier_evictions_total", tier] for tier in ("device", "host")] == [1, 1]
    assert [found["kmserve_tier_bytes", tier] for tier in ("device", "host", "disk")] == [artefact.nbytes, artefact.nbytes, 5]
    assert [found[f"{LOAD_SECONDS}_count", tier] for tier in ("device", "host", "disk")] == [2, 3, 7]
    assert [found[f"kmserve_tier_{name}_total", "store"] for name in ("hits", "misses")] == [3, 6]
    assert [found["kmserve_tier_load_failures_total", tier] for tier in ("device", "host")] == [0, 1]
    assert found["kmserve_engine_failed_total", None] == 1
    assert found["kmserve_engine_generated_tokens_total", None] > 0


async def test_without_an_object_store_nothing_is_loaded_into_the_disk(api: Api) -> None:
    found = samples(await scraped(api))
    tiers = {name: {dict(labels).get("tier") for key, labels in found if key == name} for name, _ in found if "tier" in name}
    assert tiers.get("kmserve_tier_bytes") == {"disk"}
    assert "kmserve_tier_evictions_total" not in tiers


def test_every_metric_is_documented_and_every_documented_one_is_there() -> None:
    documented = re.findall(r"^\| `(kmserve_\w+)`", OPERATIONS, re.MULTILINE)
    assert documented == ["kmserve_http_request_seconds", *(count.name for count in COUNTS), LOAD_SECONDS]
