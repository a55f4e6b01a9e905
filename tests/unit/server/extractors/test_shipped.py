"""The extractor that ships with the base model: installed once, and active unless a setting leaves that to the operator."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TypeVar

import pytest
from sqlalchemy.orm import Session

from server.api_keys.repository import ensure_tenant
from server.db import activation, extractors
from server.db.extractors import SYSTEM_OWNER
from server.db.session import SyncDatabase
from server.db.tables import Extractor
from server.engine.request import ArtefactRef
from server.extractors.shipped import install
from server.modules.artefact import MANIFEST
from server.modules.described import described
from server.modules.manifest import ArtefactKind, parse_manifest
from server.modules.shipped import SHIPPED
from server.modules.store import ModuleStore
from server.security import OPERATOR_TENANT
from server.settings import Settings
from tests.support.artefacts import FINGERPRINT as BASE
from tests.support.artefacts import write_extractor
from tests.support.object_stores import FaultyObjects, replica

T = TypeVar("T")
NAME = "tiny-answers"


@pytest.fixture
def shipped(tmp_path: Path) -> Path:
    write_extractor(tmp_path / "shipped" / NAME)
    return tmp_path / "shipped"


@pytest.fixture
def store(settings: Settings) -> ModuleStore:
    return ModuleStore(settings.root / "modules")


@pytest.fixture(autouse=True)
def operator(settings: Settings) -> None:
    write(settings, lambda session: ensure_tenant(session, OPERATOR_TENANT))


@pytest.fixture
def installed(settings: Settings) -> Settings:
    return settings.model_copy(update={"shipped_extractor": "installed"})


def write(settings: Settings, work: Callable[[Session], T]) -> T:
    with closing(SyncDatabase(settings.sql_url)) as database, database.write() as session:
        return work(session)


def of_the_system(settings: Settings) -> list[Extractor]:
    return write(settings, lambda session: extractors.lock(session, SYSTEM_OWNER))


def ref_of(shipped: Path) -> ArtefactRef:
    return described(shipped / NAME, ArtefactKind.KNOWLEDGE_EXTRACTOR)


def test_a_setting_leaves_it_for_the_operator_to_activate(installed: Settings, store: ModuleStore, shipped: Path) -> None:
    install(installed, store, BASE, shipped)
    assert [(row.name, row.active) for row in of_the_system(installed)] == [(NAME, False)]


def test_the_first_start_installs_it_and_makes_it_active(settings: Settings, store: ModuleStore, shipped: Path) -> None:
    install(settings, store, BASE, shipped)
    [row] = of_the_system(settings)
    ref = ref_of(shipped)
    assert (row.name, row.active, row.job_id) == (NAME, True, None)
    assert (row.lora_digest, row.composition_digest, row.manifest_sha256) == (ref.digest, ref.composition, ref.manifest_sha256)
    assert ref.composition is not None
    place = store.extractor_path(SYSTEM_OWNER, ref.composition)
    assert {file.name for file in place.iterdir()} == {file.name for file in (shipped / NAME).iterdir()}
    assert [path.name for path in place.parent.iterdir()] == [ref.composition], "nothing staged is left"


def test_the_next_start_changes_nothing(settings: Settings, store: ModuleStore, shipped: Path) -> None:
    install(settings, store, BASE, shipped)
    write(settings, lambda session: activation.switch(session, SYSTEM_OWNER, None, wearing=True, max_attempts=3))
    install(settings, store, BASE, shipped)
    assert [row.active for row in of_the_system(settings)] == [False]


def test_one_that_was_deleted_does_not_come_back(settings: Settings, store: ModuleStore, shipped: Path) -> None:
    install(settings, store, BASE, shipped)
    [row] = of_the_system(settings)
    write(settings, lambda session: extractors.remove(session, row))
    install(settings, store, BASE, shipped)
    assert of_the_system(settings) == []


def test_a_new_one_is_installed_beside_the_old_and_is_for_people_to_activate(settings: Settings, store: ModuleStore, shipped: Path) -> None:
    install(settings, store, BASE, shipped)
    shutil.rmtree(shipped / NAME)
    write_extractor(shipped / "better", seed=1)
    install(settings, store, BASE, shipped)
    assert [(row.name, row.active) for row in of_the_system(settings)] == [(NAME, True), ("better", False)]


def test_where_the_operator_has_one_already_it_is_not_activated(settings: Settings, store: ModuleStore, shipped: Path) -> None:
    write_extractor(shipped / "a", seed=1)
    install(settings, store, BASE, shipped)
    assert [(row.name, row.active) for row in of_the_system(settings)] == [("a", True), (NAME, False)]


def test_another_base_has_none(settings: Settings, store: ModuleStore, shipped: Path) -> None:
    install(settings, store, "0" * 64, shipped)
    assert of_the_system(settings) == []


def test_a_setting_leaves_it_out(settings: Settings, store: ModuleStore, shipped: Path) -> None:
    install(settings.model_copy(update={"shipped_extractor": "off"}), store, BASE, shipped)
    assert of_the_system(settings) == []


def test_an_object_store_that_is_away_costs_the_installation_until_the_next_start(
    settings: Settings, shipped: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    objects = FaultyObjects()
    store = replica(tmp_path / "cache", objects)
    objects.down = True
    with caplog.at_level(logging.WARNING):
        install(settings, store, BASE, shipped)
    assert "next start" in caplog.text
    assert of_the_system(settings) == []
    objects.down = False
    install(settings, store, BASE, shipped)
    [row] = of_the_system(settings)
    assert store.has(store.extractor_path(SYSTEM_OWNER, row.composition_digest), row.manifest_sha256)
    assert objects.list("")


def test_a_damaged_one_is_not_installed(settings: Settings, store: ModuleStore, shipped: Path, caplog: pytest.LogCaptureFixture) -> None:
    (shipped / NAME / "adapter_model.safetensors").write_bytes(b"damaged")
    with caplog.at_level(logging.WARNING):
        install(settings, store, BASE, shipped)
    assert "next start" in caplog.text
    assert of_the_system(settings) == []


def test_what_ships_is_small_whole_and_has_a_card() -> None:
    for manifest in SHIPPED.glob(f"*/{MANIFEST}"):
        folder = manifest.parent
        assert described(folder, ArtefactKind.KNOWLEDGE_EXTRACTOR).composition is not None
        assert sum(file.stat().st_size for file in folder.iterdir()) <= 10_000_000
        assert parse_manifest(manifest.read_bytes()).gate["passed"]
        assert "license" in (folder / "README.md").read_text().lower()
