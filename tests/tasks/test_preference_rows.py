"""Rows become one prompt and two answers, whichever of the common layouts they have."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import pytest

from gptailor.errors import DataError
from gptailor.tasks.columns import AmbiguousRoleError
from gptailor.tasks.conversation import Turn
from gptailor.tasks.preference import (
    Preference,
    PreferenceRoles,
    infer_preference,
    to_example,
    to_preference,
)
from gptailor.tasks.rendering import choose_template
from gptailor.types import Example, RawExample, RejectedRow, Segment

CHATML = choose_template(None, control=["<|im_start|>", "<|im_end|>"], tokens={}, now=datetime(2024, 1, 1))
ASK = {"role": "user", "content": "hi"}
GOOD = {"role": "assistant", "content": "good day"}
BAD = {"role": "assistant", "content": "go away"}


def row(**fields: Any) -> RawExample:
    return RawExample(
        {key: value if isinstance(value, str) else json.dumps(value) for key, value in fields.items()},
        "p.jsonl",
        4,
    )


def read(one: RawExample, **given: Any) -> Preference | RejectedRow:
    return to_preference(one, infer_preference(list(one.fields), **given))


EXPECTED = Preference((Turn("user", "hi"),), "good day", "go away", "p.jsonl", 4)


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": "hi", "chosen": "good day", "rejected": "go away"},
        {"question": "hi", "accepted": "good day", "rejected": "go away", "id": "1"},
        {"prompt": [ASK], "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": [ASK], "chosen": GOOD, "rejected": BAD},
        {"prompt": [ASK], "chosen": "good day", "rejected": "go away"},
        {"prompt": "hi", "chosen": [ASK, GOOD], "rejected": [ASK, BAD], "messages": [ASK, GOOD]},
        {"chosen": [ASK, GOOD], "rejected": [ASK, BAD]},
        {"chosen": "\n\nHuman: hi\n\nAssistant: good day", "rejected": "\n\nHuman: hi\n\nAssistant: go away"},
        {"prompt": "\n\nHuman: hi\n\nAssistant:", "chosen": " good day", "rejected": " go away"},
        {
            "conversations": [{"from": "human", "value": "hi"}],
            "chosen": {"from": "gpt", "value": "good day"},
            "rejected": {"from": "gpt", "value": "go away"},
        },
    ],
)
def test_layouts_are_read(fields: dict[str, Any]) -> None:
    found = read(row(**fields), **({"chosen": "accepted"} if "accepted" in fields else {}))
    assert isinstance(found, Preference), found
    assert (found.turns, found.chosen.strip(), found.rejected.strip()) == (
        EXPECTED.turns,
        EXPECTED.chosen,
        EXPECTED.rejected,
    )
    assert (found.source, found.row) == ("p.jsonl", 4)


def test_a_longer_dialogue_keeps_its_turns() -> None:
    before = "\n\nHuman: hi\n\nAssistant: yes?\n\nHuman: who?\n\nand why?"
    found = read(row(chosen=f"{before}\n\nAssistant: me", rejected=f"{before}\n\nAssistant: you"))
    assert isinstance(found, Preference)
    assert found.turns == (
        Turn("user", "hi"),
        Turn("assistant", "yes?", learn=True),
        Turn("user", "who?\n\nand why?"),
    )
    example = to_example(
        row(chosen=f"{before}\n\nAssistant: me", rejected=f"{before}\n\nAssistant: you"),
        PreferenceRoles("chosen", "rejected"),
        CHATML,
    )
    assert isinstance(example, Example)
    assert "".join(s.text for s in example.segments if s.learn) == "me<|im_end|>"  # not the earlier answer


def test_a_row_becomes_segments() -> None:
    one = row(prompt="hi", chosen="good day", rejected="go away", system="be brief")
    example = to_example(one, infer_preference(list(one.fields)), CHATML)
    before = "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert example == Example(
        segments=(
            Segment(before, False, markers=True),
            Segment("good day<|im_end|>", True, markers=True, cut=True),
        ),
        rejected=(Segment("go away<|im_end|>", True, markers=True, cut=True),),
        source="p.jsonl",
        row=4,
        group="be brief\nhi",
    )


@pytest.mark.parametrize(
    ("fields", "reason", "says"),
    [
        (
            {"prompt": "hi", "chosen": "same", "rejected": " same "},
            "conflict",
            "chosen and rejected are the same",
        ),
        (
            {"prompt": "hi", "chosen": "a", "rejected": "b", "score_chosen": "3.0", "score_rejected": "3"},
            "conflict",
            "a tie: both answers have the score 3.0",
        ),
        ({"prompt": "hi", "chosen": "", "rejected": "b"}, "nothing_to_learn", "chosen is empty"),
        ({"prompt": [ASK], "chosen": [GOOD], "rejected": []}, "nothing_to_learn", "rejected is empty"),
        (
            {"prompt": "", "chosen": "a", "rejected": "b"},
            "unreadable",
            "there is no prompt, and chosen is no",
        ),
        (
            {"chosen": "I think so", "rejected": "I think not"},
            "unreadable",
            "there is no prompt, and chosen is no",
        ),
        (
            {"chosen": [ASK, GOOD], "rejected": [{**ASK, "content": "bye"}, BAD]},
            "unreadable",
            "chosen and rejected have no common beginning",
        ),
        (
            {"chosen": [ASK, GOOD, ASK, GOOD], "rejected": [ASK, BAD, ASK, GOOD]},
            "unreadable",
            "chosen and rejected part at turn 2, before the last answer",
        ),
        ({"chosen": [GOOD], "rejected": [BAD]}, "no_text", "the dialogues hold one answer and nothing"),
        (
            {"chosen": [ASK, GOOD, ASK], "rejected": [ASK, BAD]},
            "nothing_to_learn",
            "chosen: the last turn is the user's",
        ),
        (
            {"chosen": "\n\nHuman: hi\n\nAssistant:", "rejected": "\n\nHuman: hi\n\nAssistant: b"},
            "nothing_to_learn",
            "chosen: turn 2 has an empty content",
        ),
        (
            {"prompt": [ASK], "chosen": [{**ASK, "content": "x"}, GOOD], "rejected": [BAD]},
            "unreadable",
            "chosen doesn't begin with the prompt",
        ),
        (
            {"prompt": [{"role": "usr", "content": "hi"}], "chosen": "a", "rejected": "b"},
            "unreadable",
            "prompt: turn 1 has the role 'usr'",
        ),
    ],
)
def test_bad_rows_say_why(fields: dict[str, Any], reason: str, says: str) -> None:
    found = read(row(**fields))
    assert isinstance(found, RejectedRow), found
    assert (found.source, found.row, found.reason) == ("p.jsonl", 4, reason)
    assert found.detail.startswith(says), found.detail


def test_texts_are_mended_after_json_is_unpacked() -> None:
    found = to_preference(
        row(chosen=[ASK, GOOD], rejected=[ASK, BAD]), PreferenceRoles("chosen", "rejected"), mend=str.upper
    )
    assert isinstance(found, Preference)
    assert (found.turns[0].text, found.chosen, found.rejected) == ("HI", "GOOD DAY", "GO AWAY")


def test_columns_that_are_not_plain() -> None:
    with pytest.raises(DataError, match="no column is named for the rejected answer"):
        infer_preference(["prompt", "chosen", "text"])
    with pytest.raises(DataError, match="Did you mean 'worse'"):
        infer_preference(["prompt", "chosen", "worse"], rejected="wrse")
    with pytest.raises(AmbiguousRoleError, match="2 columns could be the prompt: question, instruction"):
        infer_preference(["question", "instruction", "chosen", "rejected"])
    roles = infer_preference(
        ["question", "instruction", "better", "worse"], prompt="question", chosen="better", rejected="worse"
    )
    assert (roles.prompt, roles.chosen, roles.rejected) == ("question", "better", "worse")
    assert roles.says == ("preference: prompt=question, chosen=better, rejected=worse",)
