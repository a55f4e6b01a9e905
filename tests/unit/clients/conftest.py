"""Every test of the client runs twice: against the blocking client and the async one."""

from __future__ import annotations

import pytest

from tests.support.client_caller import Caller


@pytest.fixture(params=["blocking", "async"])
def caller(request: pytest.FixtureRequest) -> Caller:
    return Caller(is_async=request.param == "async")
