"""Conversations: each layout is read, and every fault of a faulty one is told, all at once."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gptailor.tasks.conversation import Conversation, Faults, Turn, read_conversation, told

USER = {"role": "user", "content": "hi"}
ANSWER = {"role": "assistant", "content": "ho"}


def faults(value: Any) -> tuple[str, ...]:
    read = read_conversation(value)
    assert isinstance(read, Faults), read
    return read.says


def test_messages_are_read() -> None:
    value = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": "hi", "name": "Ann"},
        {"role": "assistant", "content": "ho", "weight": 0, "refusal": None, "tool_calls": []},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": "c", "weight": 1},
    ]
    expected = (
        Turn("developer", "be brief"),
        Turn("user", "hi", name="Ann"),
        Turn("assistant", "ho"),
        Turn("user", "ab"),
        Turn("assistant", "c", learn=True),
    )
    assert read_conversation(value) == Conversation(expected)
    assert read_conversation({"messages": value, "tools": []}) == Conversation(expected)
    assert read_conversation(json.loads(json.dumps(value))) == Conversation(expected)


def test_sharegpt_is_read() -> None:
    value = [
        {"from": "system", "value": "s"},
        {"from": "human", "value": "a"},
        {"from": "gpt", "value": "b"},
    ]
    turns = (Turn("system", "s"), Turn("user", "a"), Turn("assistant", "b", learn=True))
    assert read_conversation({"conversations": value}) == Conversation(turns)
    assert read_conversation(value[1:], system="s") == Conversation(turns)


def test_texts_are_mended_one_by_one() -> None:
    read = read_conversation([USER, ANSWER], system="s", mend=str.upper)
    assert isinstance(read, Conversation)
    assert [turn.text for turn in read.turns] == ["S", "HI", "HO"]


ROLES = "which is none of system, developer, user, assistant"
NOT_YET = "which can't be trained on yet"
IMAGE = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("hi", "the conversation is text, not an array of turns"),
        ([], "the conversation has no turns"),
        ({"text": 1}, "the conversation is an object, not an array of turns"),
        ([USER], "there is no assistant turn, so nothing to learn"),
        ([USER, ANSWER, USER], "the last turn is the user's, not the assistant's"),
        (
            [USER, {**ANSWER, "weight": 0}],
            "every assistant turn has the weight 0, so there is nothing to learn",
        ),
        ([USER, {**ANSWER, "weight": 0.5}], "turn 2 has the weight 0.5; a weight is 0 or 1"),
        ([USER, {**ANSWER, "weight": True}], "turn 2 has the weight True; a weight is 0 or 1"),
        (
            [{**USER, "weight": 1}, ANSWER],
            "turn 1 has a weight, but only the assistant's turns can have one, not 'user'",
        ),
        ([{"content": "hi"}, ANSWER], "turn 1 has no role"),
        (
            [{"role": "usr", "content": "hi"}, ANSWER],
            f"turn 1 has the role 'usr', {ROLES}. Did you mean 'user'?",
        ),
        (
            [{"from": "humn", "value": "hi"}, {"from": "gpt", "value": "a"}],
            f"turn 1 has the role 'humn', {ROLES}. Did you mean 'human'?",
        ),
        ([USER, "ho"], "turn 2 is text, not an object"),
        ([{"role": "user"}, ANSWER], "turn 1 has no content"),
        ([{"role": "user", "content": " "}, ANSWER], "turn 1 has an empty content"),
        ([USER, {"role": "assistant", "content": None}], "turn 2 has an empty content"),
        ([{"role": "user", "content": 5}, ANSWER], "turn 1 has a content that is a number, not text"),
        (
            [{**USER, "contnt": "x"}, ANSWER],
            "turn 1 has the key 'contnt', which means nothing here. Did you mean 'content'?",
        ),
        ([IMAGE, ANSWER], "turn 1 holds an image; only text can be trained on"),
        (
            [{"role": "user", "content": [5]}, ANSWER],
            "turn 1 has a part of the content that is a number without text",
        ),
        (
            [{"role": "user", "content": [{"type": ["image"]}]}, ANSWER],
            "turn 1 has a part of the content that is an object without text",
        ),
        (
            [{"role": "u" * 99, "content": "hi"}, ANSWER],
            f"turn 1 has the role '{'u' * 56}..., {ROLES}.",
        ),
        (
            {"messages": [USER, ANSWER], "tools": [{"type": "function"}]},
            f"it comes with tools (tools), {NOT_YET}",
        ),
        ({"messages": [USER, ANSWER], "functions": [1]}, f"it comes with functions (functions), {NOT_YET}"),
    ],
)
def test_each_fault_is_told(value: Any, says: str) -> None:
    assert faults(value) == (says,)


def test_all_faults_are_told_at_once() -> None:
    value = [
        {"role": "system", "content": ""},
        {"content": "hi"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
        {"role": "tool", "content": "4", "tool_call_id": "1"},
        {"role": "asistant", "content": "x", "extra": 1},
        {"role": "user", "content": "and?"},
    ]
    assert faults(value) == (
        "turn 1 has an empty content",
        "turn 2 has no role",
        "turn 3 holds tool calls (tool_calls), which can't be trained on yet",
        "turn 4 has the role 'tool': tools can't be trained on yet",
        "turn 4 holds results of tools (tool_call_id), which can't be trained on yet",
        "turn 5 has the role 'asistant', which is none of system, developer, user, assistant."
        " Did you mean 'assistant'?",
        "turn 5 has the key 'extra', which means nothing here.",
        "the last turn is the user's, not the assistant's",
    )


def test_of_very_many_faults_the_first_are_named_and_the_others_counted() -> None:
    read = read_conversation([5] * 1_500, needs_answer=False)
    assert isinstance(read, Faults)
    line = told(read)
    assert line.startswith("turn 1 is a number, not an object; turn 2 is")
    assert line.endswith("turn 20 is a number, not an object; and 1,480 faults more")
    assert told(Faults(read.says[:20])).endswith("turn 20 is a number, not an object")
    assert told(Faults(read.says[:21])).endswith("; and 1 fault more")


def test_rows_that_teach_nothing_have_that_reason() -> None:
    for value in ([USER], [USER, {**ANSWER, "weight": 0}], [ANSWER, USER]):
        read = read_conversation(value)
        assert isinstance(read, Faults)
        assert read.reason == "nothing_to_learn"
    broken = read_conversation([{"role": "usr", "content": "hi"}])
    assert isinstance(broken, Faults)
    assert broken.reason == "unreadable"


def test_an_answer_to_nobody_is_remarked() -> None:
    read = read_conversation([{"role": "system", "content": "s"}, ANSWER])
    assert isinstance(read, Conversation)
    assert read.remarks == ("no user turn: the assistant answers nothing",)


def test_what_a_model_answered_with_nothing_can_be_sent_back() -> None:
    for said in ("", " \n"):
        value = [USER, {"role": "assistant", "content": said}, USER]
        turns = (Turn("user", "hi"), Turn("assistant", said, learn=True), Turn("user", "hi"))
        assert read_conversation(value, needs_answer=False, empty_answers=True) == Conversation(turns)
        for told_nothing in (value, [*value, ANSWER]):
            read = read_conversation(told_nothing, needs_answer=False)
            assert read == Faults(("turn 2 has an empty content",)), "nothing to learn from"
    for role, fault in (("user", "turn 1 has an empty content"), ("system", "the conversation has no turns")):
        read = read_conversation([{"role": role, "content": ""}], needs_answer=False, empty_answers=True)
        assert read == Faults((fault,))


def test_a_clients_empty_system_field_is_left_out() -> None:
    for role in ("system", "developer"):
        value = [{"role": role, "content": " "}, USER]
        read = read_conversation(value, needs_answer=False, empty_answers=True)
        assert read == Conversation((Turn("user", "hi"),))


def test_a_system_text_that_stands_beside_the_turns_and_among_them_is_there_once() -> None:
    """Twice it would be a prompt that no server sends."""
    value = [{"role": "system", "content": "be brief"}, USER, ANSWER]
    turns = (Turn("system", "be brief"), Turn("user", "hi"), Turn("assistant", "ho", learn=True))
    assert read_conversation({"system": "be brief", "messages": value}) == Conversation(turns)
    assert read_conversation(value, system="be brief") == Conversation(turns)
    other = read_conversation(value, system="be long")
    assert other == Faults(("a system text stands beside the turns, and another in the first of them",))


def test_a_prompt_needs_no_answer() -> None:
    assert read_conversation([USER], needs_answer=False) == Conversation((Turn("user", "hi"),))
