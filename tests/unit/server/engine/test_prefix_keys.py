from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from server.engine.prefix_keys import KeyChain, adapter_ids, root_key
from server.engine.prompt import Prompt
from server.engine.request import ArtefactRef, EngineRequest, Scope

BLOCK = 4
PROMPT = Prompt(bare=tuple(range(6)), adapted=tuple(range(10, 20)))
ROOT = root_key("acme", "base", "float32")


def ref(digest: str, scope: Scope = Scope.ALL, composition: str | None = None) -> ArtefactRef:
    return ArtefactRef(digest=digest, manifest_sha256="", directory=Path(digest), scope=scope, composition=composition)


BASE = EngineRequest(request_id="1", tenant="acme", prompt=PROMPT)
MODULE = replace(BASE, module=ref("km"))
ANSWER = replace(BASE, module=ref("km", Scope.ANSWER))
WORN = replace(BASE, module=ref("km", Scope.ANSWER), extractor=ref("ke", Scope.ANSWER, "weights"))


def keys(request: EngineRequest, root: bytes = ROOT, tokens: tuple[int, ...] = PROMPT.ids) -> list[bytes]:
    return KeyChain(root, adapter_ids(request), BLOCK).keys(tokens, len(tokens))


def test_only_whole_blocks_have_keys() -> None:
    chain = KeyChain(ROOT, adapter_ids(BASE), BLOCK)
    assert [len(chain.keys(PROMPT.ids, end)) for end in (3, 4, 7, 16)] == [0, 1, 1, 4]


def test_a_growing_sequence_keeps_its_keys() -> None:
    chain = KeyChain(ROOT, adapter_ids(BASE), BLOCK)
    first = chain.keys(PROMPT.ids, 8)
    assert chain.keys((*PROMPT.ids, 1, 2, 3, 4), 20)[:2] == first
    assert chain.keys(PROMPT.ids, 8) == first


@pytest.mark.parametrize(
    "changed", [root_key("globex", "base", "float32"), root_key("acme", "other", "float32"), root_key("acme", "base", "x")]
)
def test_tenant_base_and_dtype_share_nothing(changed: bytes) -> None:
    assert not set(keys(BASE)) & set(keys(BASE, changed))


def test_a_boundary_between_the_parts_of_a_root_matters() -> None:
    assert root_key("a", "bc", "d") != root_key("ab", "c", "d")


def test_another_token_changes_its_block_and_all_behind_it() -> None:
    other = (*PROMPT.ids[:5], 99, *PROMPT.ids[6:])
    same = [ours == theirs for ours, theirs in zip(keys(BASE), keys(BASE, tokens=other), strict=True)]
    assert same == [True, False, False, False]


def test_under_scope_all_no_two_wardrobes_share_a_block() -> None:
    wardrobes = [
        BASE,
        MODULE,
        replace(MODULE, module=ref("other")),
        replace(MODULE, extractor=ref("ke", composition="weights")),
        replace(MODULE, extractor=ref("ke", composition="others")),
        replace(MODULE, extractor=ref("ke", Scope.ANSWER, "weights")),
        replace(BASE, extractor=ref("ke", composition="weights")),
        replace(BASE, extractor=ref("km")),
    ]
    found = [key for wardrobe in wardrobes for key in keys(wardrobe)]
    assert len(set(found)) == len(found)


def test_a_bare_prefix_is_shared_and_nothing_behind_the_first_adapted_token() -> None:
    bare, worn, both = keys(BASE), keys(ANSWER), keys(WORN)
    assert bare[0] == worn[0] == both[0]
    for number in range(1, 4):  # the border lies within the second block
        assert len({bare[number], worn[number], both[number]}) == 3


def test_new_weights_make_another_module_too() -> None:
    """An extractor's composition weighs the module where the extractor itself does not act."""
    one, other = (replace(MODULE, extractor=ref("ke", Scope.ANSWER, weights)) for weights in ("a", "b"))
    assert keys(one)[0] != keys(other)[0]
