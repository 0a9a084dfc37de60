"""Columns become a template: what the person names wins, what is plain is taken, what isn't is asked."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gptailor.errors import DataError, RecipeError
from gptailor.tasks.columns import AmbiguousRoleError
from gptailor.tasks.pattern import Piece, Template, bind, columns_of, escape, fill, parse_pattern
from gptailor.tasks.presets import PRESETS
from gptailor.tasks.recognize import CompletionRoles, infer_completion
from gptailor.types import RawExample

SENTENCE = "a sentence of several plain words"


def rows_of(*columns: str, count: int = 6, **values: str) -> list[RawExample]:
    return [
        RawExample({c: values.get(c, f"{SENTENCE} {row} of {c}") for c in columns}, "f.csv", row)
        for row in range(1, count + 1)
    ]


def infer(*columns: str, rows: list[RawExample] | None = None, **given: Any) -> CompletionRoles:
    return infer_completion(columns, rows if rows is not None else rows_of(*columns), **given)


# --- templates -------------------------------------------------------------------------------------


def test_a_pattern_is_literals_and_columns() -> None:
    pieces = parse_pattern("To {a b}: {{x}} {c}!", ["a b", "c"], where="here")
    assert pieces == (Piece("To ", "a b"), Piece(": {x} ", "c"), Piece("!"))
    assert columns_of(pieces) == ("a b", "c")
    assert fill(pieces, {"a b": " 1 ", "c": "2"}) == "To 1: {x} 2!"


def test_a_value_is_never_read_as_a_template() -> None:
    pieces = parse_pattern("{a}-{b}", ["a", "b"], where="here")
    assert (
        fill(pieces, {"a": "{b}{{", "b": "}} {a} {nobody} {0.__class__}"})
        == "{b}{{-}} {a} {nobody} {0.__class__}"
    )


@pytest.mark.parametrize("text", ["", "plain", "{", "}", "{}", "a{b}c", "{{", "}}", "{{}}", "{a} {{b}}"])
def test_any_literal_can_be_written(text: str) -> None:
    assert fill(parse_pattern(escape(text), [], where="here"), {}) == text


@pytest.mark.parametrize("pattern", ["{", "a}", "{a", "{a}}", "{{a}", "}{"])
def test_a_lonely_brace_is_an_error(pattern: str) -> None:
    with pytest.raises(RecipeError, match="a brace without its partner"):
        parse_pattern(pattern, ["a"], where="--prompt")


@pytest.mark.parametrize(
    "pattern", ["{titel}", "{title!r}", "{title:>3}", "{title.x}", "{title[0]}", "{}", "{0}"]
)
def test_a_column_that_is_not_there_is_an_error(pattern: str) -> None:
    with pytest.raises(RecipeError, match="which isn't there"):
        parse_pattern(pattern, ["title"], where="--prompt")


def test_the_error_suggests_the_column() -> None:
    with pytest.raises(RecipeError, match="Did you mean 'title'"):
        parse_pattern("{titel}", ["title", "body"], where="--prompt")


def test_roles_become_columns() -> None:
    template = Template("{q} {{}}\n{x}:", " {a}", optional="x", short="{q}:")
    assert bind(template, {"q": "frage", "x": "text", "a": "antwort"}) == Template(
        "{frage} {{}}\n{text}:", " {antwort}", optional="text", short="{frage}:"
    )
    assert bind(template, {"q": "frage", "a": "antwort"}) == Template("{frage}:", " {antwort}")
    with pytest.raises(DataError, match="its name holds a brace"):
        bind(template, {"q": "fr{age", "a": "antwort"})


# --- presets ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_each_preset_is_whole(name: str) -> None:
    preset = PRESETS[name]
    roles = list(preset.names)
    prompt = columns_of(parse_pattern(preset.template.prompt, roles, where=name))
    answer = columns_of(parse_pattern(preset.template.completion, roles, where=name))
    short = columns_of(parse_pattern(preset.template.short, roles, where=name))
    assert answer == (preset.answer,)
    assert {*prompt, *answer} == set(roles)
    assert set(short) <= set(prompt) - {preset.template.optional}
    assert {preset.context, preset.question, *preset.keep_together} <= {"", *prompt}
    assert preset.metrics
    assert preset.purpose
    assert preset.max_new_tokens > 0
    assert preset.template.prompt == preset.template.prompt.rstrip(" ")  # the answer brings its blank


@pytest.mark.parametrize(
    ("columns", "preset", "inputs", "answer"),
    [
        (("prompt", "completion"), "completion", ("prompt",), "completion"),
        (("id", "Prompt", "Response"), "completion", ("Prompt",), "Response"),
        (("question", "answer"), "completion", ("question",), "answer"),
        (("instruction", "input", "output"), "instruction", ("instruction", "input"), "output"),
        (
            ("instruction", "context", "response", "category"),
            "instruction",
            ("instruction", "context"),
            "response",
        ),
        (("instruction", "response"), "instruction", ("instruction",), "response"),
        (
            ("id", "title", "context", "question", "answers"),
            "question_answering",
            ("context", "question"),
            "answers",
        ),
        (("article", "highlights", "id"), "summarization", ("article",), "highlights"),
        (("document", "summary"), "summarization", ("document",), "summary"),
        (("dialogue", "summary", "topic"), "summarization", ("dialogue",), "summary"),
        (("mr", "ref"), "data_to_text", ("mr",), "ref"),
        (
            ("meaning_representation", "human_reference"),
            "data_to_text",
            ("meaning_representation",),
            "human_reference",
        ),
        (("source", "target"), "translation", ("source",), "target"),
    ],
)
def test_common_layouts_are_recognized(
    columns: tuple[str, ...], preset: str, inputs: tuple[str, ...], answer: str
) -> None:
    roles = infer(*columns)
    assert (roles.preset, roles.inputs, roles.answer) == (preset, inputs, (answer,))
    assert preset.replace("_", " ") in roles.says[0]
    assert f"={answer}" in roles.says[0]


def test_source_and_a_much_shorter_target_are_a_summary() -> None:
    sentences = json.dumps(["One sentence of the paper.", "Another sentence of the paper, longer."] * 3)
    rows = rows_of(
        "source", "target", "title", source=sentences, target=json.dumps(["In short.", "Briefly."])
    )
    roles = infer("source", "target", "title", rows=rows)
    assert (roles.preset, roles.inputs, roles.answer) == ("summarization", ("source",), ("target",))
    assert roles.lists == {"source", "target"}
    assert "column source: arrays of texts, joined" in roles.says[1]
    assert "column target: several answers" in roles.says[2]


def test_an_empty_column_has_no_role() -> None:
    roles = infer("instruction", "input", "output", rows=rows_of("instruction", "input", "output", input=""))
    assert roles.inputs == ("instruction",)


def test_languages_are_asked_for_their_direction() -> None:
    with pytest.raises(AmbiguousRoleError, match="named for languages") as caught:
        infer("en", "de", "fr")
    assert caught.value.candidates == ("en", "de", "fr")
    assert "--prompt en --completion de" in str(caught.value)
    for given in ({"prompt": "de", "completion": "en"}, {"source": "de", "target": "en"}):
        roles = infer("en", "de", "fr", **given)
        assert roles.preset == "translation"
        assert roles.template == Template("German: {de}\nEnglish:", " {en}")


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        (("prompt", "completion", "response"), "2 columns could be the completion"),
        (("source", "target", "document", "summary"), "columns could be"),
        (("mr", "ref", "source", "target"), "fit several uses|could be"),
    ],
)
def test_several_that_fit_are_asked_about(columns: tuple[str, ...], says: str) -> None:
    with pytest.raises(AmbiguousRoleError, match=says) as caught:
        infer(*columns)
    assert len(caught.value.candidates) >= 2
    assert SENTENCE[:10] in str(caught.value) or "fit several uses" in str(caught.value)
    assert "--prompt" in str(caught.value) or "--completion" in str(caught.value)


def test_none_that_fits_lists_the_columns() -> None:
    with pytest.raises(DataError, match="no columns are named for a prompt") as caught:
        infer("alpha", "beta")
    assert "  alpha: 'a sentence" in str(caught.value)
    assert "--prompt COLUMN and --completion COLUMN" in str(caught.value)


# --- what the person names -------------------------------------------------------------------------


def test_named_columns_win() -> None:
    roles = infer("prompt", "completion", "x", "y", prompt="x", completion="y")
    assert roles.template == Template("{x}\n", "{y}")
    assert roles.preset == "completion"
    assert infer("mr", "ref", prompt="mr", completion="ref").preset == "data_to_text"
    assert infer("mr", "ref", prompt="mr").answer == ("ref",)
    assert infer("a", "b", prompt="a", completion="b", preset="summarization").template == Template(
        "{a}\nTL;DR:", " {b}"
    )


@pytest.mark.parametrize(
    ("answer", "preset"), [(f"{SENTENCE} of another tongue", "translation"), ("brief", "summarization")]
)
def test_source_and_target_named_by_the_person_are_told_apart_by_length(answer: str, preset: str) -> None:
    rows = rows_of("source", "target", target=answer)
    assert infer("source", "target", rows=rows, prompt="source", completion="target").preset == preset


def test_templates_are_taken_as_written() -> None:
    roles = infer("a", "b", "c", prompt="{b} of {a}:\n", completion=" {c} {{end}}")
    assert roles.template == Template("{b} of {a}:\n", " {c} {{end}}")
    assert (roles.inputs, roles.answer) == (("b", "a"), ("c",))
    own = infer(
        "context", "question", "answers", prompt="Q {question} T {context} A", preset="question_answering"
    )
    assert own.template.prompt == "Q {question} T {context} A"
    assert (own.context, own.question, own.keep_together) == ("context", "question", ("context",))
    assert own.answer == ("answers",)


def test_a_column_whose_name_is_a_template_is_a_column() -> None:
    with pytest.raises(DataError, match="its name holds a brace"):
        infer("{a}", "b", prompt="{a}", completion="b")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"prompt": "promt"}, "no column 'promt'. Did you mean 'prompt'"),
        ({"completion": "answr"}, "no column 'answr'. Did you mean 'answer'"),
        ({"prompt": "{promt}"}, "names a column 'promt'"),
        ({"preset": "translate"}, "no preset 'translate'. Did you mean 'translation'"),
        ({"completion": "just words {{"}, "names no column"),
    ],
)
def test_what_is_named_wrongly_is_told(given: dict[str, str], says: str) -> None:
    with pytest.raises((DataError, RecipeError), match=says):
        infer("prompt", "answer", **given)


def test_generation_needs_a_text_only() -> None:
    assert infer("text", "id", preset="generation").template == Template("", "{text}")
    assert infer("poem", "id", preset="generation", completion="poem").template == Template("", "{poem}")
    assert infer("poem", "id", preset="generation", prompt="poem").answer == ("poem",)


# --- OpenAI's old layout ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ending", "begin", "template"),
    [
        ("\n\n###\n\n", " ", Template("{prompt}\n\n", " {completion}")),
        (" ->", " ", Template("{prompt}", " {completion}")),
        ("\nAnswer:", "\n", Template("{prompt}", "\n{completion}")),
        ("?", "", Template("{prompt}\n", "{completion}")),
        (" the end", "", Template("{prompt}\n", "{completion}")),
        ("", " ", Template("{prompt}\n", "{completion}")),
    ],
)
def test_separators_of_the_rows_are_kept(ending: str, begin: str, template: Template) -> None:
    rows = [
        RawExample({"prompt": f"{n} is a number{ending}", "completion": f"{begin}{n} it is"}, "f", n)
        for n in range(3, 9)
    ]
    assert infer("prompt", "completion", rows=rows).template == template


@pytest.mark.parametrize(
    ("columns", "given", "inputs", "answer"),
    [
        (("context", "question", "answer", "answer_text"), {}, {"context", "question"}, None),
        (("context", "passage", "question", "answer"), {}, {"question"}, "answer"),
        (("context", "question", "query", "answer"), {"preset": "question_answering"}, {"context"}, "answer"),
        (("instruction", "input", "output", "response"), {}, {"instruction", "input"}, None),
        (("article", "document", "summary"), {}, set(), "summary"),
    ],
)
def test_whoever_follows_the_advice_keeps_the_other_columns(
    columns: tuple[str, ...], given: dict[str, str], inputs: set[str], answer: str | None
) -> None:
    with pytest.raises(AmbiguousRoleError) as caught:
        infer(*columns, **given)
    for candidate in caught.value.candidates:
        found = infer(*columns, **given, **{caught.value.role: candidate})
        chosen = {candidate} if caught.value.role == "prompt" else set()
        assert {*found.inputs} == inputs | chosen, candidate
        assert found.answer == (answer or candidate,)


def test_one_of_two_languages_is_translated_from_or_into() -> None:
    assert infer("en", "de", prompt="de").answer == ("en",)
    assert infer("en", "de", completion="de").inputs == ("en",)
    assert infer("en", "de", prompt="en").preset == "translation"


def test_a_column_named_for_no_role_is_taken_at_its_word() -> None:
    found = infer("context", "ask", "answer", prompt="ask")
    assert (found.preset, found.inputs, found.answer) == ("completion", ("ask",), ("answer",))
