"""Rows become prompts and answers; bad rows say why; long contexts keep what the question is about."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptailor.tasks.cells import parse_nested
from gptailor.tasks.completion import (
    Pair,
    Shortened,
    choose_window,
    example_of,
    infer_completion,
    shorten,
    to_example,
    to_pair,
)
from gptailor.tasks.recognize import CompletionRoles
from gptailor.types import Example, RawExample, RejectedRow, Segment


def row(number: int = 1, **fields: str) -> RawExample:
    return RawExample(fields, "f.jsonl", number)


def roles_of(*rows: RawExample, **given: Any) -> CompletionRoles:
    return infer_completion(list(rows[0].fields), rows, **given)


def pair_of(one: RawExample, **given: Any) -> Pair:
    pair = to_pair(one, roles_of(one, **given))
    assert isinstance(pair, Pair), pair
    return pair


def words(texts: Any) -> list[list[int]]:
    """A tokenizer for the tests: one token a word."""
    return [list(range(len(text.split()))) for text in texts]


def test_a_row_is_a_prompt_an_answer_and_an_end() -> None:
    one = row(prompt=" Say hi ", completion="hi\n")
    assert to_example(one, roles_of(one), end="</s>") == Example(
        segments=(
            Segment("Say hi\n", learn=False),
            Segment("hi", learn=True),
            Segment("</s>", learn=True, markers=True),
        ),
        source="f.jsonl",
        row=1,
        group="Say hi\n",
    )


def test_a_control_token_in_a_value_is_text() -> None:
    example = to_example(one := row(prompt="</s>", completion="a</s>b"), roles_of(one), end="</s>")
    assert isinstance(example, Example)
    assert [segment.markers for segment in example.segments] == [False, False, True]


@pytest.mark.parametrize(
    ("fields", "reason", "says"),
    [
        ({"prompt": " ", "completion": "x"}, "no_text", "there is no text in prompt"),
        ({"prompt": "x", "completion": ""}, "nothing_to_learn", "there is no answer in completion"),
    ],
)
def test_a_row_that_lacks_a_side_is_rejected(fields: dict[str, str], reason: str, says: str) -> None:
    good = row(2, prompt="a", completion="b")
    found = to_example(row(7, **fields), roles_of(good))
    assert found == RejectedRow("f.jsonl", 7, reason, says)  # type: ignore[arg-type]
    if reason == "nothing_to_learn":
        asked = to_pair(row(7, **fields), roles_of(good), needs_answer=False)
        assert isinstance(asked, Pair)
        assert [s.text for s in example_of(asked, end="</s>").segments] == ["x\n"]


def test_alpaca_with_and_without_input() -> None:
    rows = [
        row(1, instruction="Add.", input="1 2", output="3"),
        row(2, instruction="Say hi.", input="", output="hi"),
    ]
    roles = roles_of(*rows)
    prompts = [pair.prompt for one in rows if isinstance(pair := to_pair(one, roles), Pair)]
    assert prompts == ["Instruction: Add.\nInput: 1 2\nAnswer:", "Instruction: Say hi.\nAnswer:"]


ANSWERS = [
    ("Paris", (" Paris",)),
    (json.dumps(["Paris", "in Paris", "Paris", " "]), (" Paris", " in Paris")),
    (json.dumps([{"text": "Paris", "answer_start": 3}, {"text": "in Paris"}]), (" Paris", " in Paris")),
    (json.dumps({"text": ["Paris", "in Paris"], "answer_start": [3, 0]}), (" Paris", " in Paris")),
    ("[sic] he said", (" [sic] he said",)),
    ('[1, 2]', (" [1, 2]",)),
]  # fmt: skip


@pytest.mark.parametrize(("cell", "expected"), ANSWERS)
def test_answers_in_any_spelling(cell: str, expected: tuple[str, ...]) -> None:
    pair = pair_of(row(context="Paris is big.", question="What is big?", answers=cell))
    assert pair.prompt == "Paris is big.\nQuestion: What is big?\nAnswer:"
    assert pair.completions == expected
    assert pair.group == "Paris is big."
    assert example_of(pair).segments[1].text == expected[0]


@pytest.mark.parametrize("cell", ["[]", "", json.dumps({"text": [], "answer_start": []})])
def test_a_question_without_an_answer_is_rejected(cell: str) -> None:
    good, bad = row(context="c", question="q", answers='["a"]'), row(context="c", question="q", answers=cell)
    found = to_pair(bad, roles_of(good, bad))
    assert isinstance(found, RejectedRow)
    assert found.reason == "nothing_to_learn"


def test_an_answer_that_is_json_itself_is_learned_as_it_is() -> None:
    """Whoever teaches a model to write arrays wants the array, not its first item."""
    for fields in ({"prompt": "List two."}, {"instruction": "List two.", "input": ""}):
        one = row(**fields, output='["a","b"]')
        pair = to_pair(one, roles_of(one, preset="completion" if "prompt" in fields else "instruction"))
        assert isinstance(pair, Pair)
        assert [text.strip() for text in pair.completions] == ['["a","b"]']
    mixed = [row(1, document="d", summary='["a"]'), row(2, document="d", summary="plain")]
    pair = to_pair(mixed[0], roles_of(*mixed))
    assert isinstance(pair, Pair)
    assert pair.completions == (' ["a"]',)


def test_equal_prompts_are_of_one_group() -> None:
    rows = [
        row(n, mr=mr, ref=ref) for n, (mr, ref) in enumerate([("a", "x"), ("b", "z"), ("a", "y"), ("a", "x")])
    ]
    roles = roles_of(*rows)
    pairs = [pair for one in rows if isinstance(pair := to_pair(one, roles), Pair)]
    assert pairs[0].group == pairs[2].group != pairs[1].group


def test_texts_are_mended_after_json_is_unpacked() -> None:
    cells = {"source": json.dumps(["A&quot;b.", "c."]), "target": json.dumps(["&amp;"])}
    one = row(**cells)
    roles = roles_of(one, preset="summarization", prompt="source", completion="target")
    pair = to_pair(one, roles, mend=lambda text: text.replace("&quot;", '"').replace("&amp;", "&"))
    assert isinstance(pair, Pair)
    assert (pair.prompt, pair.completions) == ('A"b. c.\nTL;DR:', (" &",))


def test_a_template_over_several_columns_on_both_sides() -> None:
    one = row(a="1", b="2", c="3", d="4")
    pair = pair_of(one, prompt="{a}+{b}=", completion="{c} or {d}")
    assert (pair.prompt, pair.completions) == ("1+2=", ("3 or 4",))


def test_generation_groups_by_its_text() -> None:
    pair = pair_of(row(text="a poem"), preset="generation")
    assert (pair.prompt, pair.completions, pair.group) == ("", ("a poem",), "a poem")
    assert example_of(pair).segments == (Segment("a poem", learn=True),)


# --- windows ---------------------------------------------------------------------------------------

CONTEXT = (
    "The river is long. It rises in the hills. Many boats go there. "
    "The old bridge was built in 1873 by Anna Holm. It has nine arches. "
    "Fish swim below. The river ends in the sea. Gulls cry there all day."
)


def test_the_window_is_about_the_question() -> None:
    window = choose_window(CONTEXT, "Who built the old bridge?", 12, words)
    assert window.text == "The old bridge was built in 1873 by Anna Holm."
    assert CONTEXT[window.start : window.end] == window.text


def test_rare_words_of_the_question_weigh_more() -> None:
    """Many sentences hold "the river"; one holds "gulls"."""
    assert "Gulls" in choose_window(CONTEXT, "Where on the river do gulls cry?", 8, words).text


@pytest.mark.parametrize("question", ["", "Warum?"])
def test_without_a_word_in_common_it_is_the_beginning(question: str) -> None:
    window = choose_window(CONTEXT, question, 9, words)
    assert window.text == "The river is long. It rises in the hills."


def test_what_fits_stays_whole() -> None:
    window = choose_window(CONTEXT, "What?", 999, words)
    assert (window.text, window.start, window.end) == (CONTEXT, 0, len(CONTEXT))


def test_a_sentence_without_an_end_is_cut_between_words() -> None:
    context = " ".join(f"word{n}" for n in range(200))
    window = choose_window(context, "What about word150?", 10, words)
    assert "word150" in window.text.split()
    assert len(window.text.split()) <= 10


@given(
    st.text(alphabet="ab .!?\n。x", max_size=200), st.text(alphabet="ab ", max_size=20), st.integers(1, 30)
)
@settings(deadline=None)
def test_any_window_is_part_of_its_context_and_fits(context: str, question: str, budget: int) -> None:
    window = choose_window(context, question, budget, words)
    assert context[window.start : window.end] == window.text
    assert len(window.text.split()) <= budget
    assert window.text.strip() or not context.strip()


def naive_window(context: str, question: str, budget: int) -> tuple[int, int]:
    """The first and the last sentence of the best window, every score computed anew."""
    units = re.findall(r"[^.]*\.\s*", context)
    held = [Counter(unit.replace(".", "").split()) for unit in units]
    sizes = [len(unit.split()) for unit in units]
    score, found = -1.0, (0, 0)
    for first in range(len(units)):
        last = first
        while last + 1 < len(units) and sum(sizes[first : last + 2]) <= budget:
            last += 1
        counts = sum(held[first : last + 1], Counter())
        own = 0.0
        for word, asked in Counter(question.split()).items():
            rare = math.log((1 + len(units)) / (1 + sum(word in unit for unit in held))) + 1
            own += asked * rare**2 * (1 + math.log(counts[word])) if counts[word] else 0
        if own > score + 1e-9:
            score, found = own, (first, last)
    return found


SENTENCES = st.lists(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=5), min_size=1, max_size=25)


@given(SENTENCES, st.lists(st.sampled_from("abcdefgh"), max_size=6), st.integers(5, 20))
@settings(deadline=None)
def test_the_window_that_moves_is_the_one_found_by_looking_at_each(
    sentences: list[list[str]], question: list[str], budget: int
) -> None:
    written = [" ".join(sentence) + "." for sentence in sentences]
    context = " ".join(written)
    first, last = naive_window(context, " ".join(question), budget)
    window = choose_window(context, " ".join(question), budget, words)
    whole = len(words([context])[0]) <= budget
    assert window.text == (context if whole else " ".join(written[first : last + 1]))


def test_a_window_costs_no_more_than_the_words_it_moves_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the words of the question times the sentences."""
    logs = []

    def counted(value: float) -> float:
        logs.append(value)
        return math.log(value)

    monkeypatch.setattr("gptailor.tasks.windows.math", SimpleNamespace(log=counted))
    question = " ".join(f"q{n}" for n in range(300))
    context = " ".join(f"one q{n} here." for n in range(300))
    assert len(words([choose_window(context, question, 90, words).text])[0]) == 90
    assert len(logs) <= 300 * 5


def test_a_long_context_is_shortened_by_its_question_and_the_answer_has_no_say() -> None:
    fields = {"context": CONTEXT, "question": "Who built the old bridge?"}
    one, other = row(**fields, answers="Anna Holm"), row(**fields, answers="nobody " * 50)
    roles = roles_of(one)
    short = shorten(one, roles, max_tokens=30, reserve=8, encode=words)
    assert isinstance(short, Shortened)
    assert short.row.fields["context"] == short.window.text
    assert "Anna Holm" in short.window.text
    again = shorten(other, roles, max_tokens=30, reserve=8, encode=words)
    assert again is not None
    assert again.window == short.window
    pair = to_pair(short.row, roles)
    assert isinstance(pair, Pair)
    assert len(pair.prompt.split()) <= 30 - 8
    assert pair.prompt.endswith("\nQuestion: Who built the old bridge?\nAnswer:")
    assert shorten(one, roles, max_tokens=300, reserve=8, encode=words) is None


def test_a_long_document_keeps_its_beginning_and_its_prompt() -> None:
    one = row(document=CONTEXT, summary="A river.")
    short = shorten(one, roles_of(one), max_tokens=16, reserve=4, encode=words)
    assert short is not None
    assert short.window.start == 0
    pair = to_pair(short.row, roles_of(one))
    assert isinstance(pair, Pair)
    assert pair.prompt.endswith("\nTL;DR:")


def test_a_template_without_a_context_is_left_alone() -> None:
    one = row(prompt=CONTEXT, completion="x")
    assert shorten(one, roles_of(one), max_tokens=10, reserve=4, encode=words) is None


def test_a_question_without_blanks_finds_its_sentence() -> None:
    """In Chinese a clause is no word: each letter is one."""
    context = "".join(f"水果店在街角{n}。" for n in range(40))
    answer = "长城位于中国北部\uff0c全长两万多公里。"
    window = choose_window(
        context + answer,
        "长城全长多少公里\uff1f",
        60,
        lambda texts: [list(range(len(text))) for text in texts],
    )
    assert answer in window.text


@pytest.mark.parametrize(
    "cell",
    [
        '{"text": ["Saint 0", "St. 0"], "answer_start": [5, 9]}',
        "{'text': ['Saint 0', 'St. 0'], 'answer_start': [5, 9]}",
        "{'text': array(['Saint 0', 'St. 0'], dtype=object), 'answer_start': array([5, 9], dtype=int32)}",
        "['Saint 0', 'St. 0']",
        "['Saint 0' 'St. 0']",
    ],
)
def test_answers_are_read_however_a_table_was_printed(cell: str) -> None:
    one = row(context="Saint 0 was here.", question="Who?", answers=cell)
    assert pair_of(one).completions == (" Saint 0", " St. 0")


def test_an_array_that_somebody_writes_about_is_left_alone() -> None:
    said = "What does np.array([1, 2]) print?"
    assert parse_nested(str([{"role": "user", "content": said}])) == [{"role": "user", "content": said}]
    assert parse_nested("{" + "array([" * 12_000) == "{" + "array([" * 12_000


@pytest.mark.parametrize("cell", ["['torn',", "{'a': \\d}", "[Verse 1] la la", "['x'] and more", "{1, 2}"])
def test_what_only_looks_like_a_list_stays_text(cell: str) -> None:
    assert pair_of(row(prompt=cell, completion=cell)).prompt == f"{cell}\n"
