"""A form reads rows, asks questions and comes back from its state, whichever task it is of."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import pytest

from gptailor.errors import InputError
from gptailor.tasks.chat import infer_chat
from gptailor.tasks.chat_form import ChatForm, PreferenceForm, spoken
from gptailor.tasks.completion import infer_completion
from gptailor.tasks.completion_form import CompletionForm
from gptailor.tasks.conversation import Turn
from gptailor.tasks.form import PlainForm, TextForm, TextRow, reserve
from gptailor.tasks.preference import infer_preference
from gptailor.tasks.rendering import CHATML, choose_template
from gptailor.tasks.restore import restore_form
from gptailor.types import RawExample, RejectedRow, Segment

CONTROL = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
TEMPLATE = choose_template(
    None, control=CONTROL, tokens={"eos_token": "<|endoftext|>"}, now=datetime(2024, 5, 1)
)


def encode(texts: Sequence[str]) -> list[list[int]]:
    """One token a word."""
    return [list(range(len(text.split()))) for text in texts]


def row(number: int = 1, **fields: Any) -> RawExample:
    values = {name: value if isinstance(value, str) else json.dumps(value) for name, value in fields.items()}
    return RawExample(values, "f.jsonl", number)


def completion_form(*rows: RawExample, longest: int = 100, length: int = 10, **given: Any) -> CompletionForm:
    roles = infer_completion(list(rows[0].fields), rows, **given)
    return CompletionForm(roles, "</s>", longest, length, encode, str.upper)


def chat_form(*rows: RawExample, **given: Any) -> ChatForm:
    return ChatForm(infer_chat(list(rows[0].fields), rows, **given), TEMPLATE, 12, str.upper)


def preference_form(*rows: RawExample) -> PreferenceForm:
    return PreferenceForm(infer_preference(list(rows[0].fields)), TEMPLATE, 12, str.upper)


def restored(form: TextForm, longest: int = 100) -> TextForm:
    """As a server has it: through JSON and back."""
    state = json.loads(json.dumps(form.state()))
    return restore_form(state, max_tokens=longest, encode=encode, end="</s>", control=CONTROL, mend=str.upper)


@pytest.mark.parametrize(
    "prompt",
    [["apple", "pear"], [1, 2, 3], {"name": "Bo"}, {"role": "user", "content": "hi"}, "Human: no", 7],
)
def test_a_prompt_that_taught_a_preference_can_be_asked(prompt: Any) -> None:
    one = row(prompt=prompt, chosen="yes", rejected="no")
    form = restored(preference_form(one))
    assert text_of(form.ask(one)) == text_of(read(preference_form(one), one).prompt)


def text_of(segments: Any) -> str:
    assert not isinstance(segments, RejectedRow), segments
    return "".join(segment.text for segment in segments)


def read(form: TextForm, one: RawExample) -> TextRow:
    found = form.read(one)
    assert isinstance(found, TextRow), found
    return found


# Completion.

SQUAD = row(
    context="the cup is red. the bank is in town. rain fell.",
    question="where is the bank?",
    answers=[{"text": "in town", "answer_start": 1}, {"text": "town", "answer_start": 1}],
)


def test_a_completion_row_is_its_prompt_its_answers_and_its_end() -> None:
    form = completion_form(SQUAD)
    found = read(form, SQUAD)
    prompt = "THE CUP IS RED. THE BANK IS IN TOWN. RAIN FELL.\nQuestion: WHERE IS THE BANK?\nAnswer:"
    assert found.asked == prompt
    assert found.prompt == (Segment(prompt, learn=False),)
    assert found.references == ("IN TOWN", "TOWN")
    assert found.given == "THE CUP IS RED. THE BANK IS IN TOWN. RAIN FELL."
    assert found.sequences[0].segments == (
        Segment(prompt, learn=False),
        Segment(" IN TOWN", learn=True),
        Segment("</s>", learn=True, markers=True),
    )
    assert (found.group, found.windowed, found.source, found.row) == (
        "THE CUP IS RED. THE BANK IS IN TOWN. RAIN FELL.",
        None,
        "f.jsonl",
        1,
    )
    assert form.metrics[0] == "f1"


@pytest.mark.parametrize(
    ("given", "lists"), [('["one", "one"]', False), ('["one", "one"]', True), ('{"text": ["one"]}', True)]
)
def test_what_is_copied_is_read_as_the_prompt_is(given: str, lists: bool) -> None:
    """Repaired, and unpacked only where the column holds arrays of texts throughout."""
    one = row(document=given, summary="a")
    form = completion_form(one, *([] if lists else [row(2, document="plain", summary="b")]))
    found = read(form, one)
    assert found.asked == f"{found.given}\nTL;DR:"


def test_a_window_is_read_asked_and_told_but_groups_by_the_whole() -> None:
    form = completion_form(SQUAD, longest=22, length=8)
    found = read(form, SQUAD)
    assert found.asked.startswith("THE BANK IS IN TOWN.")
    assert found.windowed is True
    assert found.left_out == len(["the", "cup", "is", "red."])
    assert found.group.startswith("THE CUP IS RED."), "rows of one context stay together, whatever window"
    other = dataclasses.replace(SQUAD, fields={**SQUAD.fields, "answers": '["red"]'})
    assert read(form, other).windowed is False
    assert form.ask(SQUAD) == found.prompt
    assert restored(form, 22).ask(SQUAD) == found.prompt


def test_rows_without_answer_are_no_rows_to_learn_and_still_to_ask() -> None:
    good, open_ = row(prompt="a", completion="b"), row(2, prompt="c", completion="")
    form = completion_form(good)
    found = form.read(open_)
    assert isinstance(found, RejectedRow)
    assert found.reason == "nothing_to_learn"
    assert text_of(form.ask(open_)) == "C\n"
    assert text_of(form.ask(row(prompt="c"))) == "C\n", "the column of answers may be missing"
    empty = form.ask(row(3, prompt=" "))
    assert isinstance(empty, RejectedRow)
    assert empty.reason == "no_text"


@pytest.mark.parametrize(
    ("text", "fed"),
    [
        ("rain", "RAIN\nTranslation:"),
        (" rain\n", "RAIN\nTranslation:"),
        ("RAIN\nTranslation:", "RAIN\nTranslation:"),
        ("Translation:", "TRANSLATION:\nTranslation:"),
    ],
)
def test_a_text_alone_gets_the_template_unless_it_has_it(text: str, fed: str) -> None:
    form = completion_form(row(source="a", target="b"))
    assert text_of(form.ask_text(text)) == fed
    assert text_of(restored(form).ask_text(text)) == fed


@pytest.mark.parametrize("text", ["rain", "rain\n", "rain\n\n", " rain \n "])
def test_a_template_of_white_space_is_never_there_already(text: str) -> None:
    """Else a line break that somebody typed would be taken for it, and fed as training never saw it."""
    form = completion_form(row(prompt="a", completion="b"))
    assert not form.is_written(text)
    assert text_of(form.ask_text(text)) == "RAIN\n"


def test_an_empty_text_is_refused_where_something_is_asked() -> None:
    form = completion_form(row(source="a", target="b"))
    with pytest.raises(InputError, match="the text is empty"):
        form.ask_text("  ")
    free = completion_form(row(text="a"), preset="generation")
    assert free.ask_text("") == ()
    assert text_of(free.ask_text("The cup")) == "The cup", "it goes on from what is given"


def test_several_columns_need_names_or_the_whole_prompt() -> None:
    form = completion_form(SQUAD)
    with pytest.raises(InputError) as caught:
        form.ask_text("where is the bank?")
    assert "context, question" in caught.value.what
    assert "Question: {question}" in str(caught.value.fix)
    written = "It rains.\nQuestion: does it?\nAnswer:"
    assert text_of(form.ask_text(written)) == written


def test_an_instruction_alone_takes_the_short_template() -> None:
    rows = [
        row(instruction="say hi", input="", output="hi"),
        row(2, instruction="add", input="1 2", output="3"),
    ]
    form = completion_form(*rows)
    assert read(form, rows[0]).asked == "Instruction: SAY HI\nAnswer:"
    assert read(form, rows[1]).asked == "Instruction: ADD\nInput: 1 2\nAnswer:"
    assert text_of(form.ask_text("say hi")) == "Instruction: SAY HI\nAnswer:"
    assert text_of(restored(form).ask_text("say hi")) == "Instruction: SAY HI\nAnswer:"


@pytest.mark.parametrize(
    ("one", "given"),
    [
        (SQUAD, {}),
        (row(prompt="a", completion="b"), {}),
        (row(document="a b", summary="c"), {}),
        (row(de="a", en="b"), {"prompt": "de", "completion": "en"}),
        (
            row(title="a", body="b", extra="c"),
            {"prompt": "T {{x}} {title}: {extra}", "completion": "<{body}>"},
        ),
        (row(instruction="say", input="", output="hi"), {}),
        (row(text="a"), {"preset": "generation"}),
    ],
)
def test_a_completion_form_comes_back_from_its_state(one: RawExample, given: dict[str, Any]) -> None:
    form = completion_form(one, **given)
    again = restored(form)
    assert again.state() == form.state()
    assert (again.metrics, again.max_new_tokens) == (form.metrics, form.max_new_tokens)
    assert again.ask(one) == form.ask(one) == read(form, one).prompt
    assert again.read(one) == form.read(one)


# Chat.

CHAT = row(
    messages=[
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "one?"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "and two?"},
        {"role": "assistant", "content": " no "},
    ]
)


def test_a_conversation_is_compared_by_its_last_answer() -> None:
    form = chat_form(CHAT)
    found = read(form, CHAT)
    assert found.references == ("NO",)
    assert found.given == "AND TWO?"
    assert found.asked == "system: BE BRIEF\nuser: ONE?\nassistant: YES\nuser: AND TWO?"
    assert text_of(found.prompt).endswith("<|im_start|>user\nAND TWO?<|im_end|>\n<|im_start|>assistant\n")
    assert text_of(found.sequences[0].segments).startswith(text_of(found.prompt))
    assert not any(segment.learn for segment in found.prompt)
    learned = [segment.text for segment in found.sequences[0].segments if segment.learn]
    assert learned == ["YES<|im_end|>", " NO <|im_end|>"]


@pytest.mark.parametrize("again", [False, True])
def test_a_conversation_a_text_and_a_row_are_asked_alike(again: bool) -> None:
    one = row(messages=[{"role": "user", "content": "one?"}, {"role": "assistant", "content": "yes"}])
    form: Any = restored(chat_form(one)) if again else chat_form(one)
    asked = read(chat_form(one), one).prompt
    assert form.ask(row(messages=[{"role": "user", "content": "one?"}])) == asked
    assert form.ask(row(messages="one?")) == asked, "a question as bare text"
    assert form.ask_text("one?") == asked
    assert form.ask_messages([{"role": "user", "content": "one?"}]) == asked


def test_a_faulty_request_is_told_every_fault() -> None:
    form = chat_form(CHAT)
    with pytest.raises(InputError) as caught:
        form.ask_messages([{"role": "usr", "content": "a"}, {"role": "user", "content": ""}])
    assert caught.value.where == "messages"
    assert "turn 1 has the role 'usr'" in caught.value.what
    assert "turn 2 has an empty content" in caught.value.what
    with pytest.raises(InputError, match="has no turns"):
        form.ask_messages([])


def test_a_template_that_refuses_is_the_requests_fault() -> None:
    strict = CHATML + "{% if messages|length > 1 %}{{ raise_exception('one turn only') }}{% endif %}"
    template = dataclasses.replace(TEMPLATE, source=strict)
    form = ChatForm(infer_chat(["messages"], [CHAT]), template)
    with pytest.raises(InputError, match="refuses it: one turn only"):
        form.ask_messages([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}])
    found = form.read(CHAT)
    assert isinstance(found, RejectedRow)
    assert "one turn only" in found.detail


def test_a_template_beyond_its_limits_is_the_requests_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    form = ChatForm(infer_chat(["messages"], [CHAT]), TEMPLATE)
    monkeypatch.setattr("gptailor.tasks.limits.MAX_STEPS", 30)
    with pytest.raises(InputError, match="more than 30 steps for one conversation") as caught:
        form.ask_messages([{"role": "user", "content": "a"}] * 40)
    assert (caught.value.where, caught.value.fix) == ("messages", "Shorten the conversation.")


def test_all_renderings_of_a_request_share_its_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them needs few; one for every earlier answer needs many."""
    form = ChatForm(infer_chat(["messages"], [CHAT]), TEMPLATE)
    clock = itertools.count(0.0, 0.001)
    monkeypatch.setattr("gptailor.tasks.limits.time.monotonic", lambda: next(clock))
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    last = {"role": "user", "content": "a"}
    assert form.ask_messages([*turns * 3, last])
    with pytest.raises(InputError, match="more than 10 seconds for one conversation"):
        form.ask_messages([*turns * 60, last])
    assert form.read(row(messages=turns * 60)), "in training a long conversation may take longer"


def test_columns_of_a_chat_are_written_into_the_turn_as_in_training() -> None:
    one = row(question=" why ", reply="because", system_prompt="be kind")
    form = chat_form(one, prompt="Q: {question}", completion="reply")
    asked = read(form, one).prompt
    assert "<|im_start|>user\nQ: WHY<|im_end|>" in text_of(asked)
    assert "BE KIND" in text_of(asked)
    again = restored(form)
    assert again.ask(dataclasses.replace(one, fields={**one.fields, "reply": ""})) == asked
    assert "user\nQ: WHY<|im_end|>" in text_of(again.ask_text(" why "))
    assert again.state() == form.state()


@pytest.mark.parametrize("prompt", [None, "{question}", "{question}\n\n"])
def test_a_question_of_a_column_is_asked_as_in_training_whatever_white_space_is_around_it(
    prompt: str | None,
) -> None:
    one = row(question="  why?\n", reply=" because ")
    form = chat_form(one, prompt=prompt, completion=prompt and "reply")
    asked = read(form, one).prompt
    spaced = "why?\n\n" if prompt and prompt.endswith("\n") else one.fields["question"]
    assert form.ask_messages([{"role": "user", "content": spaced}]) == asked
    assert restored(form).ask_text(one.fields["question"]) == asked
    several = [
        {"role": "user", "content": " a "},
        {"role": "assistant", "content": " b "},
        {"role": "user", "content": "c"},
    ]
    assert "assistant\n B <|im_end|>" in text_of(form.ask_messages(several)), "as it was written"
    held = chat_form(CHAT).ask_messages(several)
    assert "user\n A <|im_end|>" in text_of(held), "turns are trained on as they stand"


def test_the_last_answer_that_is_learned_is_the_one_that_is_asked_for() -> None:
    turns = CHAT.fields["messages"]
    more = [{"role": "user", "content": "d"}, {"role": "assistant", "content": "bad", "weight": 0}]
    whole, longer = read(chat_form(CHAT), CHAT), row(messages=[*json.loads(turns), *more])
    found = read(chat_form(longer), longer)
    assert (found.references, found.prompt) == (whole.references, whole.prompt)
    assert (found.asked, found.given, found.varies) == (whole.asked, whole.given, whole.varies)
    assert not any(segment.learn for segment in found.sequences[0].segments if "BAD" in segment.text)


def test_all_answers_of_a_column_are_references_of_a_chat() -> None:
    found = read(chat_form(SQUAD), SQUAD)
    assert found.references == ("IN TOWN", "TOWN")
    assert text_of(found.sequences[0].segments).endswith("assistant\nIN TOWN<|im_end|>\n")
    assert found.references == read(completion_form(SQUAD), SQUAD).references


def test_an_answer_of_nothing_is_fed_as_the_template_writes_it() -> None:
    turns = [{"role": "user", "content": "one?"}, {"role": "assistant", "content": ""}]
    asked = chat_form(CHAT).ask_messages([*turns, {"role": "user", "content": "two?"}])
    assert text_of(asked) == (
        "<|im_start|>user\nONE?<|im_end|>\n<|im_start|>assistant\n<|im_end|>\n"
        "<|im_start|>user\nTWO?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_template_remembers_what_day_it_was() -> None:
    """A template that writes the date must write the day of training, whenever it is asked."""
    source = "{{ strftime_now('%Y-%m-%d') }}\n" + CHATML
    template = dataclasses.replace(TEMPLATE, source=source, now=datetime(2024, 5, 1, 9, 30))
    form = ChatForm(infer_chat(["messages"], [CHAT]), template)
    assert text_of(restored(form).ask_text("x")).startswith("2024-05-01\n")


# Preference.


@pytest.mark.parametrize(
    "prompt",
    [
        "which?",
        [{"role": "user", "content": "which?"}],
        "\n\nHuman: which?\n\nAssistant:",
    ],
    ids=["text", "turns", "dialogue"],
)
def test_a_preference_is_asked_as_it_was_trained(prompt: Any) -> None:
    one = row(prompt=prompt, chosen="this", rejected="that")
    form = preference_form(one)
    found = read(form, one)
    assert found.references == ("THIS", "THAT")
    assert (found.asked, found.given) == ("WHICH?", "WHICH?")
    (example,) = found.sequences
    assert text_of(example.segments) == text_of(found.prompt) + "THIS<|im_end|>"
    assert text_of(example.rejected) == "THAT<|im_end|>"
    for asks in (form, restored(form)):
        assert asks.ask(row(prompt=prompt)) == found.prompt
        assert asks.ask_text("which?") == found.prompt
    empty = form.ask(row(prompt=""))
    assert isinstance(empty, RejectedRow)


def test_a_preference_comes_back_as_a_chat_that_writes() -> None:
    one = row(prompt="which?", chosen="this", rejected="that")
    again = restored(preference_form(one))
    assert isinstance(again, ChatForm)
    assert again.max_new_tokens == 12
    assert preference_form(one).metrics == ("preference_accuracy",)


# The rest.


def test_a_language_model_is_fed_what_it_is_given() -> None:
    form = PlainForm(7, str.upper)
    assert text_of(form.ask_text(" rain\n")) == " RAIN\n"
    assert text_of(form.ask(row(other="x", text="rain"))) == "RAIN"
    assert text_of(form.ask(row(story="rain"))) == "RAIN"
    assert isinstance(form.ask(row(text=" ")), RejectedRow)
    assert isinstance(restored(form), PlainForm)
    assert restored(form).state() == form.state()


@pytest.mark.parametrize(
    ("length", "longest", "kept"), [(10, 100, 10), (50, 100, 50), (90, 100, 50), (256, 512, 256), (9, 9, 4)]
)
def test_at_most_half_is_kept_free_for_the_answer(length: int, longest: int, kept: int) -> None:
    assert reserve(length, longest) == kept


def test_one_turn_is_told_as_its_text_and_several_with_their_speakers() -> None:
    assert spoken([Turn("user", "a")]) == "a"
    assert spoken([Turn("system", "a"), Turn("user", "b")]) == "system: a\nuser: b"


def test_a_file_that_holds_the_answers_is_asked_as_it_was_scored() -> None:
    turns = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yes?"},
        {"role": "user", "content": "2 and 2?"},
        {"role": "assistant", "content": "4"},
    ]
    for given in ({"messages": turns}, {"data": {"messages": turns}}):
        one = row(**given)
        form = chat_form(one)
        assert form.ask(one) == read(form, one).prompt
    open_ = row(messages=turns[:3])
    assert (
        chat_form(row(messages=turns)).ask(open_)
        == read(chat_form(row(messages=turns)), row(messages=turns)).prompt
    )
