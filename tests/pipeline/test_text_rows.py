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
from gptailor.errors import DataError
from gptailor.pipeline.texts.rows import PreparedTexts, documents_of, prepare_texts
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


def test_short_inputs_of_one_long_instruction_are_not_the_same(tmp_path: Path) -> None:
    rows = [{"instruction": LONG, "input": texts.words(n), "output": "a cup"} for n in range(40)]
    assert prepare(tmp_path, "completion", rows).near_groups == 0
    assert prepare(tmp_path, "completion", rows[:31], rows[30:]).leaks == 1


def test_one_question_about_each_rows_own_system_text_is_not_the_same(tmp_path: Path) -> None:
    rows = [{**texts.chat("what does it say", "much"), "system": texts.words(n, 40)} for n in range(30)]
    assert prepare(tmp_path, "chat", rows[:20], rows[20:]).leaks == 0
    assert prepare(tmp_path, "chat", rows).near_groups == 0


# What is left out for its length.


class Words:
    """A feeder of one token a word, where everything fits."""

    max_tokens = LONGEST

    def learn(self, sequences: Any, *, whole: bool) -> Any:  # noqa: ARG002
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


# What stays together.


def asked_about(count: int, each: int = 3, first: int = 0) -> list[dict[str, str]]:
    """Questions of which some have one context; all are unlike each other."""
    return [
        {
            "context": texts.words(9000 + n // each, 8),
            "question": texts.words(n, 20),
            "answer": "a cup",
            "author": f"a{n}",
            "pair of contexts": f"p{n // each // 2}",
        }
        for n in range(first, first + count)
    ]


@pytest.mark.parametrize("group", ["author", "pair of contexts"])
def test_the_persons_group_and_the_forms_own_both_stay_together(tmp_path: Path, group: str) -> None:
    rows = asked_about(90)
    found = prepare(tmp_path, "completion", rows, split={"group": group})
    assert found.near_groups == 0
    for column in (group, "context"):
        held = [{rows[row.row - 1][column] for row in found.parts[part]} for part in found.parts]
        assert sum(map(len, held)) == len(set.union(*held)), column


def test_a_question_about_a_context_of_the_test_file_is_a_leak(tmp_path: Path) -> None:
    rows = asked_about(60)
    found = prepare(tmp_path, "completion", rows[:50], rows[50:])
    told = [(row.row, row.reason, row.detail.split(str(tmp_path))[0]) for row in found.rejected]
    assert told == [(n, "leak_group", "has the context or the opening of ") for n in (49, 50)]
    with pytest.raises(DataError, match="no row is left to train on: all are in a given file"):
        prepare(tmp_path, "completion", rows[51:53], rows[53:])


def test_a_greeting_that_many_begin_with_says_nothing(tmp_path: Path) -> None:
    """Neither of leaks nor of what stays together."""
    rows = [texts.chat("hello", "what can i do", texts.words(500 + n, 30), "no") for n in range(60)]
    found = prepare(tmp_path, "chat", rows[:50], rows[50:])
    assert found.rejected == []
    assert {part: len(held) for part, held in found.parts.items()}["validation"] > 3
    alone = [texts.chat("hello there", f"answer {n}") for n in range(20)] + list(texts.chats(60))
    parts = prepare(tmp_path, "chat", alone).parts
    assert sum(any(row.asked == "hello there" for row in held) for held in parts.values()) == 1


def test_turns_of_one_conversation_stay_together(tmp_path: Path) -> None:
    """Files with a row for each turn: a later row holds the earlier one's answer."""
    rows = []
    for n in range(30):
        turns = ["hi", "hello", texts.words(n, 6), "hold it", texts.words(900 + n, 5), "let go"]
        rows += [texts.chat(*turns[:4]), texts.chat(*turns)]
    found = prepare(tmp_path, "chat", rows)
    part_of = {row.row: part for part, held in found.parts.items() for row in held}
    assert all(part_of[2 * n + 1] == part_of[2 * n + 2] for n in range(30))
    assert len(set(part_of.values())) == 3


def test_where_all_ask_the_same_the_answers_are_compared(tmp_path: Path) -> None:
    """A file of one instruction asks nothing: taken by what is asked, all its rows would be one."""
    rows = [{"prompt": "write a line", "completion": texts.words(n, 20)} for n in range(40)]
    found = prepare(tmp_path, "completion", rows[:30], rows[29:])
    assert [(row.row, row.reason) for row in found.rejected] == [(30, "leak_exact")]
    assert all(found.parts.values())
    assert {row.asked for held in found.parts.values() for row in held} == {""}
    assert found.one_question


@pytest.mark.parametrize("greeting", [False, True])
def test_a_chat_that_begins_as_one_of_the_test_file_is_a_leak(tmp_path: Path, greeting: bool) -> None:
    rows = [texts.chat(texts.words(n // 2), "yes", texts.words(500 + n, 30), "no") for n in range(40)]
    for row in rows if greeting else []:
        row["messages"].insert(0, {"role": "assistant", "content": "hello, what can i do"})
    found = prepare(tmp_path, "chat", rows[:31], rows[31:])
    assert [(row.row, row.reason) for row in found.rejected] == [(31, "leak_group")]


def test_near_duplicate_questions_of_a_given_file_are_drawn_as_one(tmp_path: Path) -> None:
    rows = [{"prompt": texts.words(n, 20), "completion": f"answer {n}"} for n in range(40)]
    held = [{"prompt": texts.words(100 + n, 20), "completion": f"answer {n}"} for n in range(8)]
    held += [{"prompt": f"{held[n]['prompt']} please", "completion": "another"} for n in (3, 5)]
    found = prepare(tmp_path, "completion", rows, held)
    assert documents_of(found.parts["test"]).tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 3, 5]
    apart = prepare(tmp_path, "completion", rows, held, clean={"near_duplicates": False})
    assert len(set(documents_of(apart.parts["test"]).tolist())) == 10


def test_an_instruction_with_an_input_of_the_test_file_is_no_leak(tmp_path: Path) -> None:
    rows = [
        {"instruction": texts.words(n, 20), "input": texts.words(9000 + n // 3, 8), "output": "a cup"}
        for n in range(40)
    ]
    assert prepare(tmp_path, "completion", rows[:31], rows[31:]).leaks == 0


# What is left out because it comes again.


def test_a_row_with_one_more_right_answer_is_no_repeat(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"context": row["context"], "question": row["question"], "answers": ["a", "b"]}
        for row in asked_about(30)
    ]
    more = {**rows[0], "answers": ["a", "c"]}
    found = prepare(tmp_path, "completion", [*rows, more, rows[1]])
    assert [(row.row, row.reason) for row in found.rejected] == [(32, "duplicate")]
    used = [row for part in found.parts.values() for row in part]
    assert ("a", "c") in {row.references for row in used}


# What orders rows.


def test_the_time_to_order_by_leaves_a_column_named_time_as_it_is(tmp_path: Path) -> None:
    rows = [
        {"time": f"{n} o'clock", "event": texts.words(n), "told": "yes", "day": f"2024-01-{30 - n:02d}"}
        for n in range(30)
    ]
    named = {"prompt": "{time}: {event}", "completion": "told"}
    found = prepare(tmp_path, "completion", rows, split={"time": "day"}, **named)
    for part in found.parts.values():
        assert all(row.asked == "{time}: {event}".format(**rows[row.row - 1]) for row in part)
    assert {row.row for row in found.parts["test"]} == set(range(1, len(found.parts["test"]) + 1)), (
        "the newest"
    )
