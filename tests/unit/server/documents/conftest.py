import pytest

from server.documents import following
from tests.support.api import api, migrated_file, settings

__all__ = ["api", "migrated_file", "settings"]


@pytest.fixture(autouse=True)
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever follows a document looks at it all the time."""
    monkeypatch.setattr(following, "LOOK_SECONDS", 0.02)
