from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from server.modules import store as store_module
from server.modules.store import ModuleStore
from tests.support.artefacts import OTHER, read, write_module

DIGEST = "d" * 64
BAD_NAMES = ["", ".", "..", "../x", "a/b", "/etc", "a\\..\\b/c", ".hidden", "a\0b", "a\n", "é", "x" * 200, " "]


@pytest.fixture
def store(tmp_path: Path) -> ModuleStore:
    return ModuleStore(tmp_path / "modules")


def put(store: ModuleStore, content: str = "one", tenant: str = "t1", document: str = "doc_1", digest: str = DIGEST) -> Path:
    staged = store.staging(tenant, document)
    (staged / "file").write_text(content)
    return store.publish(staged, tenant, document, digest)


def files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def test_an_artefact_is_published_to_its_documents_place(store: ModuleStore, tmp_path: Path) -> None:
    staged = store.staging("t1", "doc_1")
    ref = write_module(staged)
    path = store.publish(staged, "t1", "doc_1", ref.digest)
    assert path == store.path("t1", "doc_1", ref.digest)
    assert path == tmp_path / "modules" / "tenants" / "t1" / "documents" / "doc_1" / ref.digest
    assert read(type(ref)(digest=ref.digest, manifest_sha256=ref.manifest_sha256, directory=path)).manifest.rank == 4
    assert not staged.exists()


def test_the_same_digest_again_keeps_what_is_there(store: ModuleStore) -> None:
    first = put(store, "one")
    assert put(store, "two") == first
    assert (first / "file").read_text() == "one"
    assert [path.name for path in first.parent.iterdir()] == [DIGEST]


def test_tenants_and_documents_never_share_a_directory(store: ModuleStore) -> None:
    paths = {put(store, f"{tenant}{document}", tenant, document) for tenant in ("t1", "t2") for document in ("doc_1", "doc_2")}
    assert len(paths) == 4
    assert {(path / "file").read_text() for path in paths} == {"t1doc_1", "t1doc_2", "t2doc_1", "t2doc_2"}


def test_many_publish_at_once_and_one_wins_whole(store: ModuleStore) -> None:
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda index: put(store, str(index)), range(16)))
    assert len(set(paths)) == 1
    assert [path.name for path in paths[0].parent.iterdir()] == [DIGEST]


def test_an_interrupted_publish_leaves_nothing_in_place(store: ModuleStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(directory: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store_module, "flush_tree", full)
    with pytest.raises(OSError, match="No space"):
        put(store)
    assert not store.path("t1", "doc_1", DIGEST).exists()


def test_bytes_are_on_the_disk_before_the_name_is(store: ModuleStore, monkeypatch: pytest.MonkeyPatch) -> None:
    target = store.path("t1", "doc_1", DIGEST)
    seen: list[tuple[str, bool]] = []
    monkeypatch.setattr(store_module, "flush_tree", lambda directory: seen.append(("content", target.exists())))
    monkeypatch.setattr(store_module, "flush", lambda directory: seen.append((directory.name, target.exists())))
    put(store)
    assert seen == [("content", False), ("doc_1", True)]


def test_a_document_deleted_while_its_artefact_is_staged(store: ModuleStore) -> None:
    staged = store.staging("t1", "doc_1")
    store.delete_document("t1", "doc_1")
    with pytest.raises(FileNotFoundError):
        store.publish(staged, "t1", "doc_1", DIGEST)


def test_delete_removes_one_version(store: ModuleStore) -> None:
    put(store)
    kept = put(store, digest=OTHER)
    store.delete("t1", "doc_1", DIGEST)
    store.delete("t1", "doc_1", DIGEST)
    assert [path.name for path in kept.parent.iterdir()] == [OTHER]


def test_delete_document_removes_all_that_is_kept_of_it(store: ModuleStore, tmp_path: Path) -> None:
    put(store)
    put(store, digest=OTHER)
    store.quarantine("t1", "doc_1", OTHER, "test")
    (store.staging("t1", "doc_1") / "file").write_text("half")
    other = put(store, document="doc_2")
    store.delete_document("t1", "doc_1")
    store.delete_document("t1", "never_there")
    assert files(tmp_path) == [str((other / "file").relative_to(tmp_path))]


def test_a_removal_that_was_interrupted_is_finished_by_the_next(
    store: ModuleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(path: Path) -> None:
        raise KeyboardInterrupt

    put(store)
    with monkeypatch.context() as patched:
        patched.setattr(store_module, "_remove_tree", killed)
        with pytest.raises(KeyboardInterrupt):
            store.delete_document("t1", "doc_1")
    assert not store.path("t1", "doc_1", DIGEST).exists()
    assert len(files(tmp_path)) == 1
    store.delete_document("t1", "doc_1")
    assert files(tmp_path) == []


def test_quarantine_moves_a_module_away_and_says_why(store: ModuleStore) -> None:
    path = put(store)
    cell = store.quarantine("t1", "doc_1", DIGEST, "tensor x is not finite: \udcff")
    assert cell is not None
    assert (cell / "artefact" / "file").read_text() == "one"
    assert (cell / "reason.txt").read_text() == "tensor x is not finite: \\udcff\n"
    assert not path.exists()
    assert put(store, "again") == path


def test_the_same_digest_can_be_quarantined_again(store: ModuleStore) -> None:
    cells = []
    for _ in range(2):
        put(store)
        cells.append(store.quarantine("t1", "doc_1", DIGEST, "test"))
    assert len(set(cells)) == 2


def test_what_is_gone_cannot_be_quarantined(store: ModuleStore, tmp_path: Path) -> None:
    assert store.quarantine("t1", "doc_1", DIGEST, "test") is None
    assert files(tmp_path) == []


def test_a_link_in_a_modules_place_is_moved_or_removed_never_followed(store: ModuleStore, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "precious").write_text("")
    place = put(store)
    store.delete("t1", "doc_1", DIGEST)
    place.symlink_to(tmp_path / "outside")
    store.quarantine("t1", "doc_1", DIGEST, "test")
    assert not place.is_symlink()
    place.symlink_to(tmp_path / "outside")
    store.delete("t1", "doc_1", DIGEST)
    assert not place.is_symlink()
    store.delete_document("t1", "doc_1")
    assert files(tmp_path) == ["outside/precious"]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_could_leave_the_store_are_refused(store: ModuleStore, name: str) -> None:
    calls: list[Callable[[], object]] = [
        lambda: store.path(name, "doc_1", DIGEST),
        lambda: store.path("t1", name, DIGEST),
        lambda: store.path("t1", "doc_1", name),
        lambda: store.staging(name, "doc_1"),
        lambda: store.staging("t1", name),
        lambda: store.delete("t1", "doc_1", name),
        lambda: store.delete_document("t1", name),
        lambda: store.delete_document(name, "doc_1"),
        lambda: store.quarantine("t1", name, DIGEST, "test"),
        lambda: store.extractor_path(name, DIGEST),
        lambda: store.extractor_path("system", name),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"plain names|64 lowercase"):
            call()


def test_an_extractors_place(store: ModuleStore, tmp_path: Path) -> None:
    assert store.extractor_path("system", DIGEST) == tmp_path / "modules" / "extractors" / "system" / DIGEST


def test_only_the_owner_may_read(store: ModuleStore, tmp_path: Path) -> None:
    put(store)
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "modules").rglob("*") if path.is_dir()}
    assert modes == {0o700}


def test_its_size_is_of_what_is_published_and_not_of_what_is_in_quarantine(store: ModuleStore, monkeypatch: pytest.MonkeyPatch) -> None:
    assert store.size() == 0
    put(store, "one")
    put(store, "three", tenant="t2")
    extractor = store.extractor_path("system", DIGEST)
    extractor.mkdir(parents=True)
    (extractor / "file").write_text("seven!!")
    assert store.size() == 3 + 5 + 7
    store.quarantine("t2", "doc_1", DIGEST, "damaged")
    assert store.size() == 3 + 7
    looked_at = Path.lstat

    def vanished(path: Path) -> object:
        if path.parent == extractor:
            raise FileNotFoundError
        return looked_at(path)

    monkeypatch.setattr(Path, "lstat", vanished)
    assert store.size() == 3
