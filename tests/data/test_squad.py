"""SQuAD's nested JSON is read as one row for each question; what is broken costs its own rows only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gptailor.data.read import read_rows

REAL = Path(__file__).resolve().parents[2] / "../shared/data/qa"


def question(number: int, **more: Any) -> dict[str, Any]:
    return {
        "id": f"q{number}",
        "question": f"What is {number}?",
        "answers": [{"text": "x", "answer_start": 0}],
        **more,
    }


def write(tmp_path: Path, value: Any) -> str:
    path = tmp_path / "squad.json"
    path.write_text(json.dumps(value), encoding="utf-8")
    return str(path)


ARTICLES = [
    {
        "title": "Rivers",
        "paragraphs": [
            {"context": "c1", "qas": [question(1), question(2, is_impossible=True, answers=[])]},
            {"context": "c2", "document_id": 5, "qas": []},
        ],
    },
    {"title": "Hills", "paragraphs": [{"context": "c3", "qas": [question(3)]}]},
]


@pytest.mark.parametrize("value", [{"version": "2.0", "data": ARTICLES}, {"data": ARTICLES}, ARTICLES])
def test_each_question_is_a_row(tmp_path: Path, value: Any) -> None:
    result = read_rows(write(tmp_path, value))
    assert "layout: SQuAD's, one row for each question" in result.notes
    assert [(r.row, r.fields["title"], r.fields["context"], r.fields["id"]) for r in result.rows] == [
        (1, "Rivers", "c1", "q1"),
        (2, "Rivers", "c1", "q2"),
        (3, "Hills", "c3", "q3"),
    ]
    assert json.loads(result.rows[0].fields["answers"]) == [{"text": "x", "answer_start": 0}]
    assert result.rows[1].fields["is_impossible"] == "true"
    assert result.rejected == []


def test_broken_articles_and_paragraphs_are_rows_that_say_so(tmp_path: Path) -> None:
    broken = [
        *ARTICLES,
        {"title": "x"},
        {"paragraphs": [{"context": "c"}, 7]},
        {"paragraphs": [{"qas": ["?"]}]},
    ]
    result = read_rows(write(tmp_path, {"data": broken}))
    assert len(result.rows) == 3
    assert [(bad.row, bad.detail) for bad in result.rejected] == [
        (4, "article 3 is an object without paragraphs"),
        (5, "paragraph 1 of article 4 is an object without questions"),
        (6, "paragraph 2 of article 4 is a number without questions"),
        (7, "a question of paragraph 1 of article 5 is a string"),
    ]


def test_an_array_of_other_objects_is_left_as_it_is(tmp_path: Path) -> None:
    result = read_rows(write(tmp_path, [{"paragraphs": ["a", "b"], "title": "t"}]))
    assert [row.fields["paragraphs"] for row in result.rows] == ['["a","b"]']


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "rows", "contexts"), [("xquad.en.json", 1190, 240), ("covidqa_200423.json", 1380, 98)]
)
def test_real_files(name: str, rows: int, contexts: int) -> None:
    if not (REAL / name).is_file():
        pytest.skip("the development data is not here")
    result = read_rows(str(REAL / name))
    assert (len(result.rows), result.rejected) == (rows, [])
    assert len({row.fields["context"] for row in result.rows}) == contexts
    assert all(row.fields["question"].strip() and row.fields["answers"] for row in result.rows)
