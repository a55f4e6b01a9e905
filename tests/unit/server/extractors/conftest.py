from tests.support.api import api, migrated_file, settings

__all__ = ["api", "migrated_file", "settings"]
