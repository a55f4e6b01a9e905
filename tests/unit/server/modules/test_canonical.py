from __future__ import annotations

import math

import pytest

from server.modules.canonical import canonical_json


def test_one_spelling_per_value() -> None:
    assert canonical_json({"b": [1, 2.5, None], "a": "€"}) == '{"a":"€","b":[1,2.5,null]}'.encode()
    assert canonical_json({"x": 1, "y": 2}) == canonical_json({"y": 2, "x": 1})


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_lacks_are_refused(number: float) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical_json({"loss": number})
