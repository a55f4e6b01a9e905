from __future__ import annotations

import pytest

from server.errors import ExtractorUnavailable
from server.modules.composition import ExtractorVersion, extractor_for, ones
from tests.support.artefacts import composition

X_OLD = ExtractorVersion(lora="x", composition="x-1")
X_NEW = ExtractorVersion(lora="x", composition="x-2")
Y = ExtractorVersion(lora="y", composition="y-1")
ALL = [X_OLD, Y, X_NEW]


def test_weights_by_layer() -> None:
    weighed = composition(("a", "b"))
    assert weighed.weights("b") == (weighed.w_km[1].item(), weighed.w_ke[1].item())
    assert weighed.weights("elsewhere") == (1.0, 1.0)


def test_ones_names_layers_in_order() -> None:
    plain = ones({"b", "a"})
    assert plain.layers == ("a", "b")
    assert plain.weights("a") == (1.0, 1.0)


def test_a_module_that_wears_nothing_goes_with_the_active_extractor() -> None:
    assert extractor_for(None, Y, ALL) == Y
    assert extractor_for(None, None, ALL) is None


def test_a_worn_lora_goes_with_the_active_composition_over_it() -> None:
    assert extractor_for("x", X_OLD, ALL) == X_OLD
    assert extractor_for("x", X_NEW, []) == X_NEW


@pytest.mark.parametrize("active", [Y, None])
def test_a_worn_lora_that_is_not_active_brings_its_own_newest_composition(active: ExtractorVersion | None) -> None:
    assert extractor_for("x", active, ALL) == X_NEW


def test_a_module_is_never_served_without_the_extractor_it_was_distilled_with() -> None:
    with pytest.raises(ExtractorUnavailable):
        extractor_for("gone", Y, ALL)
