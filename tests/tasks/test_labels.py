"""What a label cell holds: taken from the person or plain from the cells, and never a guess at a number."""

from __future__ import annotations

import json
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptailor.errors import DataError
from gptailor.models.readout import joined
from gptailor.tasks.labels import (
    infer_form,
    label_cell,
    label_of,
    labels_in,
    labels_of,
    names_as_texts,
    refuse_separator_without_sets,
)
from gptailor.types import AnswerForm, AnswerKind

SEVERAL = AnswerForm("multiple", ";")
JOINED = ["wheat;corn", "wheat", "corn;oil", "oil;wheat", "corn", "oil", "wheat"] * 4


def form_of(cells: list[str], kind: AnswerKind | None = None, separator: str | None = None) -> AnswerForm:
    return infer_form(cells, kind=kind, separator=separator)


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (['["a","b"]', "[]", '["b"]'], AnswerForm("multiple", ";")),
        (["['a', 'b']", "[]", "['b']"], AnswerForm("multiple", ";")),  # as pandas writes a list
        (['["a;b"]', "[]", '["c"]'], AnswerForm("multiple", "|")),
        (["[0,2]", "[1]", "[]"], AnswerForm("multiple", ";")),
        (JOINED, AnswerForm("multiple", ";")),
        ([cell.replace(";", "|") for cell in JOINED], AnswerForm("multiple", "|")),
        ([cell.replace(";", ", ") for cell in JOINED], AnswerForm("multiple", ",")),
        (["Arts, Crafts", "Sports", "Arts, Crafts", "Music"] * 9, AnswerForm()),  # one label with a comma
        (["food, hot", "food, cold", "drinks"] * 9, AnswerForm()),  # half of the parts stand nowhere else
        (["1,200", "3,500", "1,500", "3,200"] * 9, AnswerForm()),  # numbers
        (["3.5", "4.1", "2.2", "5.0"] * 9, AnswerForm()),  # a number is never inferred
        (["a", "b", "b", ""], AnswerForm()),
        ([""], AnswerForm()),
        ([], AnswerForm()),
    ],
)
def test_only_what_is_plain_is_inferred(cells: list[str], expected: AnswerForm) -> None:
    assert form_of(cells) == expected


def test_labels_that_hold_what_divides_them_are_written_as_an_array() -> None:
    """A late row or a given name may bring the mark; what is written reads back as the same labels."""
    form = form_of(['["a"]', '["b"]'])
    assert joined(["a", "b"], form) == f"a{form.separator}b"
    late = ["a", f"c{form.separator}d"]
    assert labels_in(joined(late, form), form) == tuple(late)
    assert labels_in("1,2", AnswerForm("multiple", ",")) == ("1", "2"), "reading stays as it was"


def test_what_the_person_says_wins() -> None:
    assert form_of(JOINED, kind="single") == AnswerForm()
    assert form_of(["a", "b"], separator="/") == AnswerForm("multiple", "/")
    assert form_of(["1", "2"], kind="score") == AnswerForm("score")
    assert form_of(["a", "b"], kind="multiple").kind == "multiple"
    assert form_of(['["a"]', "b;c"], separator=";") == SEVERAL


@pytest.mark.parametrize(
    ("cell", "labels"),
    [
        ("a;b", ("a", "b")),
        (" b ; a;;b", ("b", "a")),
        ('["a;b", "c"]', ("a;b", "c")),  # an array is never divided further
        ("[]", ()),
        ("", ("",)),
        ("  ", ("",)),  # nobody labelled it
        ('["a", null]', ("a",)),
        ("[1.50, true, NaN]", ("1.50", "true", "NaN")),  # as they are spelled
        ("['a', None, True]", ("a", "True")),
        ("[a", ("[a",)),
    ],
)
def test_labels_of_a_cell(cell: str, labels: tuple[str, ...]) -> None:
    assert labels_in(cell, SEVERAL) == labels


@given(st.lists(st.text(min_size=1).map(str.strip).filter(bool)))
def test_a_set_keeps_its_labels_whatever_they_hold(labels: list[str]) -> None:
    cell = label_cell(labels, SEVERAL)
    assert set(labels_of(cell, SEVERAL)) == set(labels)
    assert label_cell(reversed(labels), SEVERAL) == cell  # equal sets are equal texts
    assert labels_in(cell, SEVERAL) == tuple(json.loads(cell))


def test_no_label_is_an_answer_and_an_empty_cell_is_not() -> None:
    assert label_cell(labels_in("[]", SEVERAL), SEVERAL) == "[]"
    assert label_cell(labels_in("", SEVERAL), SEVERAL) == ""


def test_answers_as_the_trainer_sees_them() -> None:
    ids = {"a": 0, "b": 1, "c": 2}
    assert label_of("b", ids, AnswerForm()) == 1
    assert label_of('["a", "c"]', ids, SEVERAL) == (1, 0, 1)
    assert label_of("[]", ids, SEVERAL) == (0, 0, 0)
    assert label_of("3.5", {}, AnswerForm("score")) == 3.5


@pytest.mark.parametrize("kind", get_args(AnswerKind))
def test_a_separator_without_sets_is_refused(kind: AnswerKind) -> None:
    refuse_separator_without_sets(kind, None)
    if kind == "multiple":
        refuse_separator_without_sets(kind, ";")
    else:
        with pytest.raises(DataError, match="nothing is divided"):
            refuse_separator_without_sets(kind, ";")


@pytest.mark.parametrize(
    ("names", "texts"),
    [
        (["card_arrival", "lost-or-stolen"], ["card arrival", "lost or stolen"]),
        (["Sci/Tech", "World"], ["Sci Tech", "World"]),
        (["cardArrival", "getPIN", "iPhone"], ["card Arrival", "get PIN", "iPhone"]),
        (["don't know", "yes"], ["don't know", "yes"]),
        (["体", "经"], ["体", "经"]),
        (["top 40", "news"], ["top 40", "news"]),
        (["0", "1"], []),
        (["LABEL_0", "LABEL_1"], []),
        (["1 star", "2 stars", "3 stars"], []),  # of two alike, neither says which is which
        (["a", "b"], []),
        (["sports", "🏆"], []),
        (["sports", "Sports!"], []),
    ],
)
def test_names_are_read_as_texts_where_each_says_something(names: list[str], texts: list[str]) -> None:
    assert names_as_texts(names) == texts


@given(st.lists(st.text(max_size=12), max_size=6))
def test_names_as_texts_are_all_or_none(names: list[str]) -> None:
    texts = names_as_texts(names)
    assert len(texts) in (0, len(names))
    assert all(text == " ".join(text.split()) and any(map(str.isalpha, text)) for text in texts)
    assert len({text.casefold() for text in texts}) == len(texts)


@pytest.mark.parametrize(
    ("cell", "labels"),
    [
        ("['anger' 'joy']", ("anger", "joy")),
        ("['anger'\n 'joy' \"don't\"]", ("anger", "joy", "don't")),
        ("[ 3 14]", ("3", "14")),
        ("[-1.5 2.]", ("-1.5", "2.")),
        ("['joy']", ("joy",)),
    ],
)
def test_arrays_as_numpy_prints_them(cell: str, labels: tuple[str, ...]) -> None:
    """pandas writes a column of arrays so; Python would read two neighboring texts as one."""
    assert labels_in(cell, SEVERAL) == labels


def test_bare_words_in_brackets_are_no_array_of_numpy() -> None:
    assert labels_in("[spam eggs]", SEVERAL) == ("[spam eggs]",)
