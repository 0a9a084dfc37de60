"""Rows become conversations: the column is found, what can't be trained on is refused row by row."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import pytest

from gptailor.errors import DataError
from gptailor.tasks.chat import (
    ChatRoles,
    Conversation,
    infer_chat,
    to_conversation,
    to_examples,
)
from gptailor.tasks.columns import AmbiguousRoleError
from gptailor.tasks.rendering import choose_template
from gptailor.types import Example, RawExample, RejectedRow, Segment

CHATML = choose_template(None, control=["<|im_start|>", "<|im_end|>"], tokens={}, now=datetime(2024, 1, 1))
USER = {"role": "user", "content": "hi"}
ANSWER = {"role": "assistant", "content": "ho"}


def rows_of(*cells: dict[str, Any]) -> list[RawExample]:
    """Rows as the reader hands them over: nested values as JSON."""
    return [
        RawExample(
            {key: value if isinstance(value, str) else json.dumps(value) for key, value in fields.items()},
            "chat.jsonl",
            number,
        )
        for number, fields in enumerate(cells, start=1)
    ]


def infer(rows: Sequence[RawExample], **given: Any) -> ChatRoles:
    return infer_chat(list(dict.fromkeys(key for row in rows for key in row.fields)), rows, **given)


def turns_of(row: RawExample, roles: ChatRoles, **given: Any) -> list[tuple[str, str]]:
    found = to_conversation(row, roles, **given)
    assert isinstance(found, Conversation), found
    return [(turn.role, turn.text) for turn in found.turns]


TWO = [("user", "hi"), ("assistant", "ho")]


@pytest.mark.parametrize(
    "cells",
    [
        {"messages": [USER, ANSWER]},
        {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]},
        {"id": "7", "dialog": [USER, ANSWER], "text": "hi ho"},
        {"chat": {"messages": [USER, ANSWER]}},
        {"prompt": "hi", "response": "ho"},
        {"question": "hi", "answer": "ho"},
        {"instruction": "hi", "input": "", "output": "ho"},
    ],
)
def test_layouts_are_found(cells: dict[str, Any]) -> None:
    (row,) = rows = rows_of(cells)
    roles = infer(rows)
    assert turns_of(row, roles) == TWO
    assert roles.says


def test_a_pair_is_one_question_without_a_presets_words() -> None:
    rows = rows_of({"instruction": "Add.", "input": "1 2", "output": "3"})
    assert turns_of(rows[0], infer(rows)) == [("user", "Add.\n\n1 2"), ("assistant", "3")]
    own = infer(rows, prompt="{input}! {instruction}", completion="output")
    assert turns_of(rows[0], own) == [("user", "1 2! Add."), ("assistant", "3")]


def test_a_system_column_comes_first() -> None:
    for cells in ({"messages": [USER, ANSWER]}, {"prompt": "hi", "response": "ho"}):
        rows = rows_of({**cells, "system": "be brief"}, {**cells, "system": ""})
        roles = infer(rows)
        assert [turns_of(row, roles) for row in rows] == [[("system", "be brief"), *TWO], TWO]


def test_texts_are_mended_once_and_after_json_is_unpacked() -> None:
    for cells in ({"messages": [USER, ANSWER]}, {"prompt": "hi", "response": "ho"}):
        rows = rows_of({**cells, "system": "s"})
        mended = turns_of(rows[0], infer(rows), mend=lambda text: f"<{text}>")
        assert [text for _, text in mended[-2:]] == ["<hi>", "<ho>"]


def test_a_row_becomes_segments() -> None:
    (row,) = rows = rows_of({"messages": [USER, ANSWER]})
    assert to_examples(row, infer(rows), CHATML) == (
        Example(
            segments=(
                Segment("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n", False, markers=True),
                Segment("ho<|im_end|>", True, markers=True, cut=True),
                Segment("\n", False, markers=True, cut=True),
            ),
            source="chat.jsonl",
            row=1,
            group="hi",
        ),
    )


def test_conversations_that_begin_alike_are_one_group() -> None:
    system = {"role": "system", "content": "s"}
    other = {"role": "assistant", "content": "no"}
    rows = rows_of(*({"messages": m} for m in ([system, USER, ANSWER], [system, USER, other], [USER, other])))
    roles = infer(rows)
    groups = [
        examples[0].group for row in rows if isinstance(examples := to_examples(row, roles, CHATML), tuple)
    ]
    assert groups[0] == groups[1] != groups[2]


@pytest.mark.parametrize(
    ("cells", "reason", "says"),
    [
        ({"messages": ""}, "no_text", "messages is empty"),
        ({"messages": "null"}, "no_text", "messages is empty"),
        ({"messages": "hello"}, "unreadable", "the conversation is text, not an array of turns"),
        ({"messages": "[{'role': 'user'"}, "unreadable", "the conversation is text, not an array"),
        ({"messages": "[{'role': 'user'}]"}, "unreadable", "turn 1 has no content"),  # as Python prints it
        ({"messages": [USER]}, "nothing_to_learn", "there is no assistant turn"),
        ({"messages": [USER, ANSWER], "tools": [{"a": 1}]}, "unreadable", "it comes with tools"),
        ({"messages": [USER, ANSWER], "images": ["a.png"]}, "unreadable", "it comes with images"),
        (
            {"messages": [{"role": "user"}, {"content": "x"}]},
            "unreadable",
            "turn 1 has no content; turn 2 has no role",
        ),
    ],
)
def test_bad_rows_say_why(cells: dict[str, Any], reason: str, says: str) -> None:
    good = {"messages": [USER, ANSWER], "tools": "", "images": "[]"}
    rows = rows_of(good, good, cells)
    roles = infer(rows)
    assert isinstance(to_examples(rows[0], roles, CHATML), tuple)
    found = to_examples(rows[2], roles, CHATML)
    assert isinstance(found, RejectedRow)
    assert (found.source, found.row, found.reason) == ("chat.jsonl", 3, reason)
    assert found.detail.startswith(says)


def test_what_a_template_refuses_is_a_fault_of_the_row() -> None:
    source = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
    )
    source += (
        "{{ m.role }}:{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    )
    template = choose_template(source, control=["</s>"], tokens={}, now=datetime(2024, 1, 1))
    rows = rows_of({"messages": [{"role": "system", "content": "s"}, USER, ANSWER]})
    found = to_examples(rows[0], infer(rows), template)
    assert isinstance(found, RejectedRow)
    assert found.detail == "the chat template refuses it: no system here"


def test_columns_that_are_not_plain() -> None:
    both = rows_of({"messages": [USER, ANSWER], "other": [USER, ANSWER]})
    with pytest.raises(AmbiguousRoleError, match="2 columns hold conversations: messages, other"):
        infer(both)
    assert infer(both, turns="other").turns == "other"
    with pytest.raises(DataError, match="Did you mean 'other'"):
        infer(both, turns="othr")
    with pytest.raises(DataError, match="--task preference"):
        infer(rows_of({"chosen": [USER, ANSWER], "rejected": [USER, ANSWER]}))
    with pytest.raises(DataError, match="no columns are named"):
        infer(rows_of({"a": "x", "b": "y"}))
