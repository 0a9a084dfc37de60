"""Tiny random bases of real architectures, and a tokenizer for them, made on the spot."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from gptailor.data.batch import collate
from gptailor.types import Batch, TokenizedExample

FAMILIES = ("gpt2", "gpt_neo", "llama", "qwen2")
WORDS = (
    "the cup final went to extra time before the goal the bank raised its rate again this quarter "
    "parliament votes on the new budget a vaccine trial begins in the north the film wins five prizes "
    "rain delays the race shares fall after the report minister resigns doctors warn of flu new album out"
)


def build_tokenizer(family: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE; Llama's begins every text with a token, GPT-2's has no pad, Qwen's has one."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = {
        "gpt2": ["<|endoftext|>"],
        "gpt_neo": ["<|endoftext|>"],
        "llama": ["<s>", "</s>"],
        "qwen2": ["<|endoftext|>", "<|im_end|>"],
    }[family]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([WORDS] * 3, trainer)
    if family == "llama":
        tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    if family == "qwen2":
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>"
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>"
    )


def build_config(family: str, vocabulary: int) -> Any:
    common = {"vocab_size": vocabulary, "bos_token_id": 0, "eos_token_id": 0}
    if family == "gpt2":
        return GPT2Config(**common, n_positions=64, n_embd=16, n_layer=2, n_head=2)
    if family == "gpt_neo":
        return GPTNeoConfig(
            **common,
            max_position_embeddings=64,
            hidden_size=16,
            num_layers=2,
            num_heads=2,
            attention_types=[[["global", "local"], 1]],
            window_size=8,
        )
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "max_position_embeddings": 64}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    if family == "llama":
        return LlamaConfig(**common, **size, **heads)
    return Qwen2Config(**common, **size, **heads)


def build_base(folder: Path, family: str = "gpt2", seed: int = 0) -> Path:
    """Writes a tiny base as any model folder lies on disk."""
    tokenizer = build_tokenizer(family)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(build_config(family, len(tokenizer)))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_news(path: Path, rows: int = 120) -> Path:
    """Easy rows: every label has words of its own, so that a tiny model can learn it."""
    subjects = {
        "sports": ("the cup final", "the race", "the goal", "extra time"),
        "business": ("the bank", "its shares", "the rate", "this quarter"),
        "health": ("a vaccine trial", "the flu", "doctors", "the hospital"),
    }
    labels = list(subjects)
    lines = ["text,label"]
    for row in range(rows):
        label = labels[row % 3]
        words = subjects[label]
        lines.append(f"{words[row % 4]} in town {row} and {words[(row // 4) % 4]} again,{label}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_topics(path: Path, rows: int = 150) -> Path:
    """Rows of several labels, none or one, as JSON lines; every label has words of its own."""
    words = {"sports": "the cup final", "business": "the bank", "health": "a vaccine trial"}
    labels = list(words)
    chosen = [[], labels[:1], labels[1:2], labels[2:], labels[:2], labels[1:]]
    lines = []
    for row in range(rows):
        topics = chosen[row % len(chosen)]
        text = " and ".join([f"in town {row} {row % 7}", *(words[topic] for topic in topics)])
        lines.append(json.dumps({"text": text, "topics": topics}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_ratings(path: Path, rows: int = 150) -> Path:
    """Rows with a number: how often one word stands in the text."""
    lines = ["text,rating"]
    for row in range(rows):
        times = row * 7 % 5
        lines.append(f"town {row} {'the goal ' * times}{'rain ' * (4 - times)},{1.5 * times + row % 3 / 10}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def micro_batches(rows: Sequence[TokenizedExample], *, size: int, pad_id: int) -> list[Batch]:
    """The rows as classification batches of so many, in order."""
    return [collate(rows[start : start + size], pad_id=pad_id) for start in range(0, len(rows), size)]
