from __future__ import annotations

import pytest

from server.engine.detokeniser import Detokeniser
from tests.support.tiny_models import BYTES, byte_tokenizer

TOKENIZER = byte_tokenizer()


def ids(text: str) -> list[int]:
    return list(TOKENIZER(text, add_special_tokens=False)["input_ids"])


def pieces(text: str, stop: tuple[str, ...] = ()) -> tuple[list[str], Detokeniser]:
    detokeniser = Detokeniser(TOKENIZER, stop)
    told = []
    for token in ids(text):
        told.append(detokeniser.push(token))
        if detokeniser.stopped:
            break
    return [*told, detokeniser.finish()], detokeniser


@pytest.mark.parametrize("text", ["plain", " leading", "größer als ∑ 🦊🧑‍🚀 zuletzt", "\n\ttabs\r\n"])
def test_the_pieces_join_to_the_text(text: str) -> None:
    assert "".join(pieces(text)[0]) == text


def test_a_character_appears_whole_with_its_last_byte() -> None:
    assert pieces("ä€🦊")[0] == ["", "ä", "", "", "€", "", "", "", "🦊", ""]


def test_an_unfinished_character_is_never_told() -> None:
    detokeniser = Detokeniser(TOKENIZER)
    told = [detokeniser.push(token) for token in ids("a🦊")[:-1]]
    assert "".join([*told, detokeniser.finish()]) == "a"


def test_bytes_that_are_no_text_do_not_hold_back_what_follows() -> None:
    detokeniser = Detokeniser(TOKENIZER)
    broken = ids("🦊")[1]
    assert "".join(detokeniser.push(token) for token in [broken, *ids("ok")]).endswith("ok")


def test_a_special_token_has_no_text() -> None:
    detokeniser = Detokeniser(TOKENIZER)
    assert [detokeniser.push(token) for token in [*ids("a"), BYTES, *ids("b")]] == ["a", "", "b"]


def test_a_stop_string_ends_the_text_before_it() -> None:
    told, detokeniser = pieces("one. two###three", stop=("###", "never"))
    assert "".join(told) == "one. two"
    assert detokeniser.stopped


def test_the_beginning_of_a_stop_string_is_held_until_it_is_certain() -> None:
    told, detokeniser = pieces("a##b", stop=("###",))
    assert told == ["a", "", "", "##b", ""]
    assert not detokeniser.stopped


def test_a_held_beginning_is_told_at_the_end() -> None:
    assert "".join(pieces("end##", stop=("###",))[0]) == "end##"


def test_the_first_of_several_stop_strings_counts() -> None:
    assert "".join(pieces("a STOP b END", stop=("END", "STOP", ""))[0]) == "a "
