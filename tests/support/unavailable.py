"""What to do about a test that cannot run here: the one place where tests are skipped."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def unavailable(reason: str, *, ci_has_it: bool = True) -> NoReturn:
    """Skip the test, or the module that is being collected. Where the variable CI is set it fails instead, for .ci/run installs what tests
    need, unless that is nothing it could install."""
    if os.environ.get("CI") and ci_has_it:
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason, allow_module_level=True)
