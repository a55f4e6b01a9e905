"""The base fingerprint: one digest of everything about a base model, by content, that a module trained on it depends on.

Tensors (name, dtype, shape, elements), named architecture fields, vocabulary, merges, special tokens, the chat template's text, how a
fixed text is tokenised, and the fixed texts of the prompt. Never file bytes, paths or library versions: `config.json` carries the
transformers version, and the same model saved twice must stay the same model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from server.engine import prompt
from server.errors import BaseModelUnusable
from server.modules.canonical import canonical_json
from server.modules.digest import dtype_name, tensor_bytes

ARCHITECTURE = (
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "hidden_act",
    "hidden_activation",
    "rms_norm_eps",
    "layer_norm_eps",
    "rope_parameters",
    "partial_rotary_factor",
    "max_position_embeddings",
    "original_max_position_embeddings",
    "sliding_window",
    "layer_types",
    "tie_word_embeddings",
    "attention_bias",
    "mlp_bias",
    "query_pre_attn_scalar",
    "attn_logit_softcapping",
    "final_logit_softcapping",
)
"""The configuration fields that change what a decoder computes; one a model does not have, or leaves None, is left out."""
_HEAD = "lm_head.weight"
_SAMPLE = "Section 12.4:  it's 1,234.50 € (≈ 30 days),\n\n\tdon't wait… 日本 <b>x_1</b>"
_INDEX = "model.safetensors.index.json"


def fingerprint(directory: Path, on_bytes: Callable[[int, int], None] = lambda done, total: None) -> str:
    """sha256 of the base model in `directory`; `on_bytes(done, total)` follows the tensors. Raises BaseModelUnusable."""
    try:
        config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        described = {
            "architecture": architecture(config),
            "tensors": _tensors(directory, bool(config.tie_word_embeddings), on_bytes),
            "tokenizer": tokenizer_facts(load_tokenizer(directory)),
            "prompt": prompt_texts(),
        }
    except (OSError, ValueError, SafetensorError) as error:
        raise BaseModelUnusable("The base model's directory holds no readable config, tokenizer and weights.") from error
    return hashlib.sha256(canonical_json(described)).hexdigest()


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """The directory's tokenizer as its files say, from the disk only."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    return tokenizer


def architecture(config: PretrainedConfig) -> dict[str, Any]:
    text = config.get_text_config()
    fields = {name: getattr(text, name, None) for name in ARCHITECTURE}
    return {name: value for name, value in fields.items() if value is not None}


def tokenizer_facts(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Merges are those of a byte-pair tokenizer; the sample stands for normalisers and pre-tokenizers, which have no stable spelling."""
    added = tokenizer.added_tokens_decoder.items()
    return {
        "vocabulary": tokenizer.get_vocab(),
        "merges": _merges(tokenizer),
        "special": sorted([index, str(token)] for index, token in added if token.special),
        "roles": {name: getattr(tokenizer, f"{name}_token") for name in ("bos", "eos", "unk")},
        "chat_template": tokenizer.chat_template or prompt.PLAIN_TEMPLATE,
        "sample": list(prompt.plain_ids(tokenizer, _SAMPLE)),
    }


def prompt_texts() -> dict[str, Any]:
    return {
        "system": prompt.SYSTEM,
        "answer_bare": prompt.ANSWER_BARE,
        "answer_passages": prompt.ANSWER_PASSAGES,
        "template_arguments": prompt.TEMPLATE_ARGUMENTS,
    }


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files that transformers reads from a directory. Raises BaseModelUnusable if there are none."""
    index = directory / _INDEX
    names = ["model.safetensors"]
    try:
        if index.is_file():
            names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError) as error:
        raise BaseModelUnusable("The base model's index of weights is damaged.") from error
    files = [directory / name for name in names]
    if not all(file.is_file() for file in files):
        raise BaseModelUnusable("The base model's directory holds no complete safetensors weights. Save the model as safetensors.")
    return files


def _merges(tokenizer: PreTrainedTokenizerBase) -> list[list[str]]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    merges = json.loads(backend.to_str())["model"].get("merges") if backend is not None else None
    return [pair.split(" ") if isinstance(pair, str) else list(pair) for pair in merges or []]


def _tensors(directory: Path, tied: bool, on_bytes: Callable[[int, int], None]) -> dict[str, Any]:
    """name -> [dtype, shape, sha256]. Of a tied model's head, a copy of the embedding, it does not matter whether the file has it."""
    files = weight_files(directory)
    total, done = sum(file.stat().st_size for file in files), 0
    found: dict[str, Any] = {}
    for file in files:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 (not a dict)
                tensor = opened.get_tensor(name)
                found[name] = [dtype_name(tensor.dtype), list(tensor.shape), hashlib.sha256(tensor_bytes(tensor)).hexdigest()]
                done += tensor.nbytes
                on_bytes(done, total)
    on_bytes(total, total)
    return _without_tied_head(found) if tied else found


def _without_tied_head(found: Mapping[str, Any]) -> dict[str, Any]:
    others = {name: digest for name, digest in found.items() if name != _HEAD}
    return others if found.get(_HEAD) in others.values() else dict(found)
