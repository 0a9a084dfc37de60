"""A tokenizer as llama.cpp holds it: tokens with their kinds, merges, and the name of how text is cut."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gptailor.errors import ModelError

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # gguf.TokenType
# Patterns by which tokenizer.json cuts a text before merging, and llama.cpp's names for them.
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PATTERNS = {
    f"{_CONTRACTIONS}|{_WORDS}|\\p{{N}}{{1,3}}|{_REST}": "llama-bpe",  # Llama 3
    f"{_CONTRACTIONS}|{_WORDS}|\\p{{N}}|{_REST}": "qwen2",
}
IGNORES_MERGES = ("llama-bpe",)  # a whole word that is a token is taken without merging


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What a GGUF file says of its tokenizer. `adds_begin`: every text of training began with `begin`."""

    tokens: tuple[str, ...]
    kinds: tuple[int, ...]
    merges: tuple[str, ...]
    cut: str
    begin: int | None
    end: int
    pad: int
    adds_begin: bool
    chat_template: str | None


def read_vocabulary(tokenizer: Any, *, size: int, begin: int | None, where: str) -> Vocabulary:
    """The vocabulary of a fast byte-level BPE tokenizer, filled up to `size`, the rows of the embedding.

    Args:
        tokenizer: transformers' fast tokenizer.
        size: Rows of the embedding.
        begin: The token that every text began with in training, if there was one.
        where: What is exported, for error messages.

    Raises:
        ModelError: llama.cpp has no name for this tokenizer.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    cut = _name_of_cut(state, where)
    tokens = [f"[UNUSED{place}]" for place in range(size)]
    kinds = [UNUSED] * size
    for token, place in state["model"]["vocab"].items():
        tokens[place], kinds[place] = token, NORMAL
    for added in state["added_tokens"]:
        if added["id"] >= size:  # listed by the tokenizer, but the model has no row for it
            continue
        tokens[added["id"]] = added["content"]
        kinds[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in state["model"]["merges"]]
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.bos_token_id
    template = tokenizer.chat_template
    return Vocabulary(
        tokens=tuple(tokens),
        kinds=tuple(kinds),
        merges=tuple(merges),
        cut=cut,
        begin=tokenizer.bos_token_id if begin is None else begin,
        end=int(end),
        pad=int(tokenizer.pad_token_id),
        adds_begin=begin is not None,
        chat_template=template if isinstance(template, str) else None,
    )


def refuse(
    what: str, where: str, *, fix: str = "Use --to hf, which any model has, or --to onnx."
) -> ModelError:
    """The error of a model that can't be a GGUF file."""
    return ModelError(f"can't be written as GGUF: {what}", where=where, fix=fix)


def _name_of_cut(state: Mapping[str, Any], where: str) -> str:
    """llama.cpp's name for how this tokenizer cuts a text before it merges."""
    model = state["model"]
    plain = not any(
        model.get(key) for key in ("byte_fallback", "continuing_subword_prefix", "end_of_word_suffix")
    )
    # llama.cpp doesn't compose characters (NFC) as Qwen's tokenizer does; most texts are composed already.
    normal = (state.get("normalizer") or {}).get("type") in (None, "NFC")
    name = _name_of_pieces(_pieces(state.get("pre_tokenizer")))
    if model["type"] != "BPE" or not plain or not normal or name is None:
        raise refuse("its tokenizer is not a byte-level BPE that llama.cpp has a name for.", where)
    if bool(model.get("ignore_merges")) != (name in IGNORES_MERGES):
        raise refuse(f"its tokenizer merges otherwise than llama.cpp's {name!r} does.", where)
    return name


def _pieces(pre_tokenizer: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    if pre_tokenizer is None:
        return []
    return list(pre_tokenizer.get("pretokenizers", [pre_tokenizer]))


def _name_of_pieces(pieces: list[Mapping[str, Any]]) -> str | None:
    """The steps end in GPT-2's byte alphabet, with its own pattern or after another's."""
    if not pieces or pieces[-1]["type"] != "ByteLevel" or pieces[-1]["add_prefix_space"]:
        return None
    *before, last = pieces
    if not before:
        return "gpt-2" if last["use_regex"] else None
    if len(before) > 1:
        return None
    [first] = before
    if first["type"] == "Digits" and first["individual_digits"] and last["use_regex"]:
        return "smollm"
    if first["type"] == "Split" and first["behavior"] == "Isolated" and not last["use_regex"]:
        return PATTERNS.get(first["pattern"].get("Regex", ""))
    return None
