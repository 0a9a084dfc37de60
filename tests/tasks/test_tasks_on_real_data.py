"""The development data, row by row: every row is used or says why not."""

from __future__ import annotations

from collections import Counter, defaultdict
from datetime import datetime
from pathlib import Path
from typing import Any

import families
import pytest

from gptailor.data.parallel import read_parallel
from gptailor.data.read import ReadResult, read_rows
from gptailor.data.segments import build_segment_encoder, encode_segments
from gptailor.data.tokenize import build_encoder, encode_texts
from gptailor.tasks.chat import Conversation, infer_chat, to_conversation, to_examples
from gptailor.tasks.completion import (
    Pair,
    infer_completion,
    shorten,
    to_example,
    to_pair,
)
from gptailor.tasks.preference import infer_preference
from gptailor.tasks.preference import to_example as to_preference_example
from gptailor.tasks.rendering import choose_template
from gptailor.types import Example, RejectedRow

REAL = Path(__file__).resolve().parents[2] / "../shared/data"
pytestmark = pytest.mark.real_data
NOW = datetime(2024, 1, 1)


def read(name: str) -> ReadResult:
    if not (REAL / name).is_file():
        pytest.skip("the development data is not here")
    return read_rows(str(REAL / name))


def gpt2() -> Any:
    if not (families.GPT2_VOCABULARY / "vocab.bpe").is_file():
        pytest.skip("the development data is not here")
    return families.real_gpt2()


def plain_template() -> Any:
    return choose_template(None, control=["<|endoftext|>"], tokens={"eos_token": "<|endoftext|>"}, now=NOW)


@pytest.mark.parametrize(
    ("name", "preset", "rows", "most_references"),
    [
        ("qa/xquad.en.json", "question_answering", 1190, 2),
        ("qa/covidqa_200423.json", "question_answering", 1380, 3),
        ("scitldr/dev.jsonl", "summarization", 619, 4),
        ("scitldr/test.jsonl", "summarization", 618, 4),
        ("e2e_nlg/devset.csv", "data_to_text", 4672, 43),
        ("e2e_nlg/testset_w_refs.csv", "data_to_text", 4693, 45),
        ("dolly/dolly_6400.jsonl", "instruction", 6400, 7),
    ],
)
def test_completion_sets_are_recognized(name: str, preset: str, rows: int, most_references: int) -> None:
    file = read(name)
    roles = infer_completion(file.columns, file.rows)
    assert roles.preset == preset
    pairs = [pair for row in file.rows if isinstance(pair := to_pair(row, roles), Pair)]
    assert len(pairs) == rows == len(file.rows)
    references: dict[str, set[str]] = defaultdict(set)
    for pair in pairs:
        references[pair.prompt] |= {text.strip() for text in pair.completions}
    assert max(map(len, references.values())) == most_references
    example = to_example(file.rows[0], roles, end="<|endoftext|>")
    assert isinstance(example, Example)
    assert [s.learn for s in example.segments] == [False, True, True]


def test_translation_from_two_files() -> None:
    if not (REAL / "multi30k").is_dir():
        pytest.skip("the development data is not here")
    file = read_parallel(str(REAL / "multi30k/val.en.gz"), str(REAL / "multi30k/val.de.gz"))
    roles = infer_completion(file.columns, file.rows)
    assert (roles.preset, roles.inputs, roles.answer) == ("translation", ("source",), ("target",))
    example = to_example(file.rows[0], roles)
    assert isinstance(example, Example)
    assert example.text == (
        "A group of men are loading cotton onto a truck\nTranslation:"
        " Eine Gruppe von Männern lädt Baumwolle auf einen Lastwagen"
    )


def test_windows_of_long_contexts_mostly_hold_the_answer() -> None:
    """CovidQA's articles have 6,000 tokens and more; by chance one window in ten would hold it."""
    file = read("qa/covidqa_200423.json")
    backend = gpt2().backend_tokenizer
    encoder = build_encoder(backend, pad_id=0)
    roles = infer_completion(file.columns, file.rows)
    rows = file.rows[::46]
    held = 0
    for row in rows:
        short = shorten(row, roles, max_tokens=512, reserve=100, encode=lambda t: encode_texts(encoder, t))
        assert short is not None
        pair = to_pair(short.row, roles)
        assert isinstance(pair, Pair)
        assert len(encode_texts(encoder, [pair.prompt])[0]) <= 412
        held += any(text.strip() in short.window.text for text in pair.completions)
    assert len(rows) == 30
    assert held >= 15


def test_conversations_without_a_user_turn_are_told() -> None:
    """OpenAI's toy file."""
    file = read("openai_ft/toy_chat_fine_tuning.jsonl")
    roles = infer_chat(file.columns, file.rows)
    read_rows_ = [
        (row.row, c) for row in file.rows if isinstance(c := to_conversation(row, roles), Conversation)
    ]
    assert len(read_rows_) == 10
    assert [row for row, conversation in read_rows_ if conversation.remarks] == [4, 9, 10]


def test_tool_calls_are_refused_row_by_row() -> None:
    file = read("openai_ft/weather_chat_fine_tuning.jsonl")
    roles = infer_chat(file.columns, file.rows)
    found = [to_examples(row, roles, plain_template()) for row in file.rows]
    assert len(found) == 10
    for bad in found:
        assert isinstance(bad, RejectedRow)
        for words in ("tools (tools)", "turn 2 holds tool calls", "turn 3 has the role 'tool'"):
            assert words in bad.detail


def test_dolly_as_chat_in_gpt2s_own_tokens() -> None:
    file = read("dolly/dolly_6400.jsonl")
    roles = infer_chat(file.columns, file.rows)
    rows = file.rows[:300]
    found = [to_examples(row, roles, plain_template()) for row in rows]
    examples = [example for several in found if isinstance(several, tuple) for example in several]
    assert len(examples) == len(rows)
    encoder = build_segment_encoder(gpt2().backend_tokenizer)
    end = encoder.control["<|endoftext|>"].id
    for row, encoded in zip(rows, encode_segments(encoder, [e.segments for e in examples]), strict=True):
        learned = encoded.token_ids[encoded.learn].tolist()
        assert encoder.closed.decode(learned[:-1]) == row.fields["response"]
        assert learned[-1] == end == encoded.token_ids[-1]
        assert encoded.token_ids.tolist().count(end) == 2


@pytest.mark.parametrize(
    ("name", "used", "dropped"),
    [
        ("preference/dpo_en_demo.json", 300, {}),
        ("preference/hh_rlhf_harmless.jsonl", 2303, {"nothing_to_learn": 4, "unreadable": 5}),
    ],
)
def test_preferences(name: str, used: int, dropped: dict[str, int]) -> None:
    file = read(name)
    roles = infer_preference(file.columns)
    found = [to_preference_example(row, roles, plain_template()) for row in file.rows]
    examples = [example for example in found if isinstance(example, Example)]
    assert len(examples) == used
    assert Counter(bad.reason for bad in found if isinstance(bad, RejectedRow)) == dropped
    for example in examples:
        chosen = "".join(segment.text for segment in example.segments if segment.learn)
        rejected = "".join(segment.text for segment in example.rejected)
        assert chosen != rejected
        assert chosen.endswith("<|endoftext|>")
        assert rejected.endswith("<|endoftext|>")
        assert example.text.count("assistant:\n") >= 1
