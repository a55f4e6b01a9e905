"""What the first start makes and every start checks."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlalchemy import select, update

from server import startup
from server.api_keys.keys import KeyMaker, prefix_of
from server.db.session import SyncDatabase
from server.db.tables import ApiKey
from server.settings import Settings
from tests.support.databases import migrated, sqlite_url


@pytest.fixture
def database(tmp_path: Path) -> Iterator[SyncDatabase]:
    found = migrated(sqlite_url(tmp_path))
    yield found
    found.close()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def admin_key(database: SyncDatabase, keys: KeyMaker, root: Path) -> str:
    with database.write() as session:
        startup.ensure_admin_key(session, keys, root)
    return (root / "admin.key").read_text().strip()


def test_the_data_directory_is_for_its_owner_alone(tmp_path: Path) -> None:
    root = tmp_path / "a" / "b"
    startup.make_root(root)
    root.chmod(0o755)
    startup.make_root(root)
    assert mode(root) == 0o700


def test_a_secret_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    secret = startup.secret_of(settings)
    assert startup.secret_of(settings) == secret
    assert len(secret) == 64
    assert mode(tmp_path / "secret.key") == 0o600


def test_a_configured_secret_is_taken_and_none_is_made(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, environment="production", secret_key=SecretStr("s" * 40))
    assert startup.secret_of(settings) == b"s" * 40
    assert not (tmp_path / "secret.key").exists()


def test_the_first_start_writes_an_admin_key_and_the_next_one_keeps_it(
    database: SyncDatabase, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keys = KeyMaker(b"secret")
    text = admin_key(database, keys, tmp_path)
    assert mode(tmp_path / "admin.key") == 0o600
    assert str(tmp_path / "admin.key") in caplog.text
    assert text not in caplog.text
    assert admin_key(database, keys, tmp_path) == text
    with database.read() as session:
        [row] = session.scalars(select(ApiKey))
        assert (row.tenant_id, row.scopes, row.prefix) == ("default", ["admin"], prefix_of(text))
        assert keys.proves(text, row.hash)


def test_a_key_that_was_put_away_is_not_made_again(database: SyncDatabase, tmp_path: Path) -> None:
    admin_key(database, KeyMaker(b"secret"), tmp_path)
    (tmp_path / "admin.key").unlink()
    with database.write() as session:
        startup.ensure_admin_key(session, KeyMaker(b"secret"), tmp_path)
    assert not (tmp_path / "admin.key").exists()


@pytest.mark.parametrize("lost", ["secret", "key", "time"])
def test_without_any_admin_key_that_works_a_new_one_is_made(database: SyncDatabase, tmp_path: Path, lost: str) -> None:
    first = admin_key(database, KeyMaker(b"secret"), tmp_path)
    if lost != "secret":
        with database.write() as session:
            session.execute(update(ApiKey).values(**{"revoked_at" if lost == "key" else "expires_at": 1.0}))
    keys = KeyMaker(b"another secret" if lost == "secret" else b"secret")
    second = admin_key(database, keys, tmp_path)
    assert second != first
    with database.read() as session:
        hashes = list(session.scalars(select(ApiKey.hash)))
    assert any(keys.proves(second, stored) for stored in hashes)
