"""Tokenizers and chat templates in the manner of known families, small and made on the spot.

The templates are our own words for what the families do: markers, trimming, roles that must alternate, a
date, reasoning that is dropped from earlier answers, a last token that later turns push away.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

GPT2_VOCABULARY = Path(__file__).resolve().parents[2] / "../shared/data/gpt2_bpe"
WORDS = [
    "the cup final went to extra time before the goal",
    "the bank raised its rate again this quarter",
    "Good day. What is the plan for today?\n\nWe go home, said the assistant to the user.\n",
    "system user assistant name the file 1 2 3 4",
] * 3
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

CHATML = """{% for message in messages %}
{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' -}}
{% endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

MARKED = """{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\n' }}
{%- if message.role == 'assistant' %}
{%- generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}
{%- else %}
{{- message.content + '<|im_end|>' }}
{%- endif %}
{{- '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{% endif %}"""

# Marks what is said without the end token, as some do.
MARKED_SHORT = MARKED.replace(
    "message.content + '<|im_end|>' }}{% endgeneration %}",
    "message.content }}{% endgeneration %}{{- '<|im_end|>' }}",
)

LLAMA3 = """{{- bos_token }}
{%- set ns = namespace(system='') %}
{%- if messages[0].role == 'system' %}
{%- set ns.system = messages[0].content | trim %}{% set messages = messages[1:] %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\n\nToday is ' + strftime_now('%d %b %Y') + '\n\n' }}
{{- ns.system + '<|eot_id|>' }}
{%- for message in messages %}
{{- '<|start_header_id|>' ~ message['role'] ~ '<|end_header_id|>\n\n' }}
{{- message['content'] | trim ~ '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"""

LLAMA2 = """{%- set system = '' %}
{%- if messages[0]['role'] == 'system' %}
{%- set system = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}{% set messages = messages[1:] %}
{%- endif %}
{%- for message in messages %}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('turns must alternate: user, assistant, user, ...') }}
{%- endif %}
{%- if message['role'] == 'user' %}
{{- bos_token + '[INST] ' + (system if loop.first else '') + message['content'].strip() + ' [/INST]' }}
{%- else %}
{{- ' ' + message['content'].strip() + ' ' + eos_token }}
{%- endif %}
{%- endfor %}"""

# Drops the reasoning of all answers but the last, and gives the last an empty one where it has none.
QWEN3 = """{%- for message in messages %}
{%- set content = message.content %}
{%- if message.role == 'assistant' %}
{%- set thought = '' %}
{%- if '</think>' in content %}
{%- set thought = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
{%- set content = content.split('</think>')[-1].lstrip('\n') %}
{%- endif %}
{{- '<|im_start|>assistant\n' }}
{%- if loop.last %}{{- '<think>\n' + thought.strip('\n') + '\n</think>\n\n' }}{% endif %}
{{- content + '<|im_end|>\n' }}
{%- else %}
{{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{% endif %}"""

PHI = """{% for message in messages %}
{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}{% endfor %}
{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"""

DEEPSEEK = """{{ bos_token }}{% for message in messages %}
{%- if message.role == 'user' %}{{ '<｜User｜>' + message.content }}
{%- elif message.role == 'assistant' %}{{ '<｜Assistant｜>' + message.content + eos_token }}
{%- else %}{{ message.content }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<｜Assistant｜>' }}{% endif %}"""


def train(pieces: Any, *, special: list[str], byte_level: bool = True) -> Tokenizer:
    """A small BPE with these special tokens first."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=not byte_level))
    tokenizer.pre_tokenizer = pieces
    alphabet = pre_tokenizers.ByteLevel.alphabet() if byte_level else []
    bytes_alone = [] if byte_level else [f"<0x{number:02X}>" for number in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=special + bytes_alone,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(WORDS, trainer)
    if bytes_alone:  # the trainer knows them as special only
        state = tokenizer.to_str()
        tokenizer = Tokenizer.from_str(_without_added(state, set(bytes_alone)))
    return tokenizer


def _without_added(state: str, contents: set[str]) -> str:
    import json

    parsed = json.loads(state)
    parsed["added_tokens"] = [token for token in parsed["added_tokens"] if token["content"] not in contents]
    return json.dumps(parsed)


def byte_level(split: str | None = None) -> Any:
    if split is None:
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def chatml(template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """Qwen's way: its own splitting, ChatML's markers, reasoning tags that aren't control tokens."""
    tokenizer = train(byte_level(QWEN_SPLIT), special=["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(
        [AddedToken(tag, special=False, normalized=False) for tag in ("<think>", "</think>")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=template,
    )


def llama3() -> PreTrainedTokenizerFast:
    special = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    tokenizer = train(byte_level(QWEN_SPLIT), special=special)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = TemplateProcessing(single=f"{special[0]} $A", special_tokens=[(special[0], 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=special[0], eos_token="<|eot_id|>", chat_template=LLAMA3
    )


def llama2(*, legacy: bool) -> PreTrainedTokenizerFast:
    """SentencePiece's way: blanks as a letter, one before the first text (legacy: before every text)."""
    tokenizer = train(
        pre_tokenizers.Metaspace(prepend_scheme="first"), special=["<s>", "</s>"], byte_level=False
    )
    if legacy:
        tokenizer.pre_tokenizer = None
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", chat_template=LLAMA2
    )


def phi() -> PreTrainedTokenizerFast:
    """Markers that swallow the white space behind them, and an end of the whole behind the last turn's."""
    tokenizer = train(byte_level(), special=["<|endoftext|>"])
    tokenizer.decoder = decoders.ByteLevel()
    marks = ["<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    tokenizer.add_special_tokens([AddedToken(mark, special=True, rstrip=True) for mark in marks])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>", pad_token="<|end|>", chat_template=PHI
    )


def deepseek() -> PreTrainedTokenizerFast:
    """Headers of turns that the vocabulary lists as ordinary added tokens."""
    tokenizer = train(byte_level(), special=["<｜begin｜>", "<｜end｜>"])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(
        [AddedToken(m, special=False, normalized=False) for m in ("<｜User｜>", "<｜Assistant｜>")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<｜begin｜>", eos_token="<｜end｜>", chat_template=DEEPSEEK
    )


def gpt2() -> PreTrainedTokenizerFast:
    """GPT-2's way: no template, and one control token."""
    tokenizer = train(byte_level(), special=["<|endoftext|>"])
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>"
    )


def real_gpt2() -> PreTrainedTokenizerFast:
    """GPT-2 with its own vocabulary, from the development data."""
    model = models.BPE.from_file(str(GPT2_VOCABULARY / "encoder.json"), str(GPT2_VOCABULARY / "vocab.bpe"))
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>"
    )


FAMILIES = {
    "chatml": chatml,
    "marked": lambda: chatml(MARKED),
    "llama3": llama3,
    "llama2": lambda: llama2(legacy=False),
    "llama2_legacy": lambda: llama2(legacy=True),
    "qwen3": lambda: chatml(QWEN3),
    "phi": phi,
    "deepseek": deepseek,
    "gpt2": gpt2,
    "chatml_without_template": lambda: chatml(None),
}
