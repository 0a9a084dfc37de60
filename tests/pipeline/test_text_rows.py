"""Rows of a text task in parts: which count as the same, which stay together, and which are left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny_texts as texts
from gptailor.data.read import ReadResult
from gptailor.data.segments import Encoded
from gptailor.pipeline.texts.rows import PreparedTexts, prepare_texts
from gptailor.pipeline.texts.tokens import ledger_lines, tokenize_texts
from gptailor.recipe import DataSettings, build_recipe
from gptailor.tasks.cells import Mend
from gptailor.tasks.chat import infer_chat
from gptailor.tasks.chat_form import ChatForm, PreferenceForm
from gptailor.tasks.completion import infer_completion
from gptailor.tasks.completion_form import CompletionForm
from gptailor.tasks.form import TextForm
from gptailor.tasks.preference import infer_preference
from gptailor.tasks.rendering import CHATML, choose_template

CONTROL = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
TEMPLATE = choose_template(
    CHATML, control=CONTROL, tokens={"eos_token": "<|endoftext|>"}, now=datetime(2024, 5, 1)
)
LONG = texts.words(7, 120)  # a system prompt, or the words of a template
LONGEST = 200  # words
Rows = Sequence[Mapping[str, Any]]


def encode(given: Sequence[str]) -> list[list[int]]:
    """One token a word."""
    return [list(range(len(text.split()))) for text in given]


def prepare(folder: Path, task: str, rows: Rows, test: Rows | None = None, **data: Any) -> PreparedTexts:
    """Rows as a fit prepares them, without a base."""
    named = {name: data.pop(name) for name in ("prompt", "completion") if name in data}
    data["train"] = str(texts.write_jsonl(folder / "rows.jsonl", rows))
    if test is not None:
        data["test"] = str(texts.write_jsonl(folder / "test.jsonl", test))

    def make(file: ReadResult, mend: Mend) -> TextForm:
        if task == "completion":
            roles = infer_completion(file.columns, file.rows, **named)
            return CompletionForm(roles, "</s>", LONGEST, 10, encode, mend)
        if task == "chat":
            return ChatForm(infer_chat(file.columns, file.rows, **named), TEMPLATE, 10, mend)
        return PreferenceForm(infer_preference(file.columns), TEMPLATE, 10, mend)

    return prepare_texts(build_recipe({"task": task, "data": data}), make)


def under_system(rows: Rows, system: str) -> list[dict[str, Any]]:
    """Chats or preferences below a text of the system."""
    return [{**row, "system": system} for row in rows]


# What makes a row the same as another.


@pytest.mark.parametrize("task", ["chat", "preference", "completion", "chat of columns"])
def test_short_questions_below_one_long_text_are_not_the_same(tmp_path: Path, task: str) -> None:
    kind, *of_columns = task.split(" of ")
    if kind == "chat" and not of_columns:
        rows = under_system(texts.chats(40), LONG)
    elif kind == "preference":
        rows = under_system(texts.preferences(40), LONG)
    else:
        rows = list(texts.pairs(40))
    named = {"prompt": LONG + " {prompt}"} if "prompt" in rows[0] and kind != "preference" else {}
    alone = prepare(tmp_path, kind, rows, **named)
    assert alone.near_groups == 0
    assert all(len(alone.parts[part]) >= 3 for part in alone.parts)
    leak = dict(rows[39])
    given = prepare(tmp_path, kind, rows[:30], [*rows[30:39], leak, rows[0]], **named)
    assert [(row.row, row.reason) for row in given.rejected] == [(1, "leak_exact")]


def test_one_question_about_each_rows_own_system_text_is_not_the_same(tmp_path: Path) -> None:
    rows = [{**texts.chat("what does it say", "much"), "system": texts.words(n, 40)} for n in range(30)]
    assert prepare(tmp_path, "chat", rows[:20], rows[20:]).leaks == 0
    assert prepare(tmp_path, "chat", rows).near_groups == 0


# What is left out for its length.


class Words:
    """A feeder of one token a word, where everything fits."""

    max_tokens = LONGEST

    def learn(self, sequences: Any) -> Any:
        sizes = [len("".join(segment.text for segment in one).split()) for one in sequences]
        return [(Encoded(np.arange(n, dtype=np.int32), np.arange(n) == n - 1), 0) for n in sizes]

    def feed(self, prompts: Any) -> Any:
        return [(1,) for _ in prompts]


@pytest.mark.parametrize("too_long", ["cut", "drop"])
def test_a_context_cut_to_a_window_is_too_long(tmp_path: Path, too_long: Any) -> None:
    rows = [
        {"context": texts.words(n, 300 if n < 30 else 20), "question": "what is it", "answer": "a cup"}
        for n in range(60)
    ]
    prepared = prepare(tmp_path, "completion", rows)
    feeder: Any = Words()
    tokens = tokenize_texts(prepared, feeder, DataSettings(train="rows.jsonl", too_long=too_long))
    windows = [row.row for row in prepared.parts["train"] if row.windowed is not None]
    dropped = [line.row for line in ledger_lines(prepared, tokens) if line.reason == "too_long"]
    assert windows
    assert dropped == (sorted(windows) if too_long == "drop" else [])
    for part in ("validation", "test"):
        assert len(tokens.rows[part]) == len(prepared.parts[part]), "held-out rows are never dropped for it"
