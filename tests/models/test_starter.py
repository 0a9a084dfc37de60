"""The bundled base: what its card says of its files is so."""

from __future__ import annotations

import json
from typing import Any

import pytest
from safetensors import safe_open
from transformers import AutoTokenizer, GPT2LMHeadModel

from gptailor.models.names import STARTER


@pytest.fixture(scope="module")
def card() -> str:
    return (STARTER / "README.md").read_text(encoding="utf-8")


def test_it_is_small_and_stored_in_bf16() -> None:
    assert sum(path.stat().st_size for path in STARTER.iterdir()) <= 40_000_000
    with safe_open(STARTER / "model.safetensors", "numpy") as file:
        kinds = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 - no mapping
    assert kinds == {"BF16"}


def test_any_tool_loads_it_and_the_card_gives_its_size(card: str) -> None:
    model: Any = GPT2LMHeadModel.from_pretrained(STARTER)
    count = sum(parameter.numel() for parameter in model.parameters())
    config = model.config
    assert f"{count:,} parameters" in card
    assert f"{config.n_layer} layers, width {config.n_embd}, {config.n_head} heads" in card
    assert f"context {config.n_positions}" in card


def test_every_text_ends_with_the_end_token_and_pads_are_no_end() -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(STARTER)
    ids = tokenizer("some text")["input_ids"]
    assert ids[-1] == tokenizer.convert_tokens_to_ids("<|endoftext|>") == tokenizer.eos_token_id
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)
    assert tokenizer.decode(ids[:-1]) == "some text"


def test_the_licence_lies_beside_it(card: str) -> None:
    assert "license: cc-by-sa-4.0" in card
    assert (STARTER / "LICENSE.md").stat().st_size > 200
    assert json.loads((STARTER / "config.json").read_text())["model_type"] == "gpt2"
