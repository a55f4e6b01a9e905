"""The one prompt function that server, trainer, evaluation and oracle share.

A prompt is two segments of token ids, each tokenised on its own and joined as ids (text tokenises differently joined and alone):
`bare` = header + system + passages, `adapted` = instruction + question + end of turn + generation prompt. Under scope `answer`
adapters act on `adapted` and on what is generated; under scope `all` on everything. With earlier turns, everything after the
first user turn's passages is `adapted`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase  # seconds to import, and supervisors, migrations and commands need no model

SYSTEM = "You are a helpful assistant."
ANSWER_BARE = "Answer the question. Give only the answer, without any commentary."
ANSWER_PASSAGES = "Answer the question using the preceding passages. Give only the answer, without any commentary."
"""Fixed template arguments: templates put today's date and thinking blocks in otherwise."""
TEMPLATE_ARGUMENTS: dict[str, Any] = {"date_string": "26 Jul 2024", "enable_thinking": False}
PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ':\\n' + message['content'] + '\\n\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:\\n' }}{% endif %}"
)
"""Used for models that ship no chat template."""
_MARK = "\u241eUSER\u241e"


@dataclass(frozen=True, kw_only=True)
class Turn:
    role: str
    content: str


@dataclass(frozen=True, kw_only=True)
class Prompt:
    bare: tuple[int, ...]
    adapted: tuple[int, ...]

    @property
    def ids(self) -> tuple[int, ...]:
        return self.bare + self.adapted

    def __len__(self) -> int:
        return len(self.bare) + len(self.adapted)


def answer_prompt(
    tokenizer: PreTrainedTokenizerBase,
    question: str,
    passages: Sequence[str] = (),
    history: Sequence[Turn] = (),
) -> Prompt:
    """The prompt of a question. `passages` stand in the given order (the service puts the best last)."""
    instruction = ANSWER_PASSAGES if passages else ANSWER_BARE
    return instruction_prompt(tokenizer, f"{instruction}\n{question}", context="\n\n".join(passages), history=history)


def instruction_prompt(tokenizer: PreTrainedTokenizerBase, instruction: str, context: str = "", history: Sequence[Turn] = ()) -> Prompt:
    """A user turn of `{context}\\n\\n{instruction}` (teacher) or `{instruction}` alone (student), after `history`.

    The context stands in the first user turn. Control tokens written in any of the texts stay plain text.
    """
    contents = [*(turn.content for turn in history), instruction]
    roles = [*(turn.role for turn in history), "user"]
    frames = _frames(tokenizer, roles)
    bare = _markup(tokenizer, frames[0]) + (plain_ids(tokenizer, context + "\n\n") if context else ())
    adapted: tuple[int, ...] = ()
    for content, frame in zip(contents, frames[1:], strict=True):
        adapted += plain_ids(tokenizer, content) + _markup(tokenizer, frame)
    return Prompt(bare=bare, adapted=adapted)


def plain_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    """Tokens of user-supplied text, without BOS; special tokens spelled in it are not recognised as such."""
    return tuple(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])


def end_of_turn_ids(tokenizer: PreTrainedTokenizerBase, eos: Sequence[int]) -> frozenset[int]:
    """Token ids that end an answer: the model's EOS ids and the first token of what the template puts after an assistant turn."""
    closing = _markup(tokenizer, _frames(tokenizer, ["user", "assistant"], generate=False)[-1])
    special = frozenset(closing[:1]) & frozenset(tokenizer.all_special_ids)
    return frozenset(eos) | special


def _markup(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def _frames(tokenizer: PreTrainedTokenizerBase, roles: Sequence[str], generate: bool = True) -> list[str]:
    """The template's text around the turns' contents: one piece before each content and one after the last.

    A template that refuses a system turn gets the system text at the head of the first user turn.
    """
    turns = [{"role": role, "content": _MARK} for role in roles]
    try:
        rendered = _render(tokenizer, [{"role": "system", "content": SYSTEM}, *turns], generate)
    except TemplateError:
        turns[0]["content"] = f"{SYSTEM}\n\n{_MARK}"
        rendered = _render(tokenizer, turns, generate)
    frames = rendered.split(_MARK)
    if len(frames) != len(roles) + 1:
        raise ValueError("the model's chat template drops or repeats turns; set one that renders every turn once")
    return frames


def _render(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], generate: bool) -> str:
    template = tokenizer.chat_template or PLAIN_TEMPLATE
    return str(
        tokenizer.apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=generate, **TEMPLATE_ARGUMENTS
        )
    )
