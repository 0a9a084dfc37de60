"""SQuAD's nested JSON as one row for each question.

An article holds paragraphs, a paragraph its context and questions (Rajpurkar et al. 2016; version 2.0 adds
`is_impossible`). Whatever else stands at a level is a column of all the rows below it.
"""

from __future__ import annotations

from typing import Any

from gptailor.data.values import BadValueError, json_kind


def is_squad(items: list[Any]) -> bool:
    """Whether the items of an array are articles, going by the first."""
    if not items or not isinstance(items[0], dict) or not isinstance(items[0].get("paragraphs"), list):
        return False
    paragraphs = items[0]["paragraphs"]
    return bool(paragraphs) and isinstance(paragraphs[0], dict) and "qas" in paragraphs[0]


def flatten_squad(articles: list[Any]) -> list[Any]:
    """One object for each question, in order; a `BadValueError` for an article or paragraph that is none."""
    rows: list[Any] = []
    for number, article in enumerate(articles, start=1):
        if not isinstance(article, dict) or not isinstance(article.get("paragraphs"), list):
            rows.append(BadValueError(f"article {number} is {json_kind(article)} without paragraphs"))
            continue
        above = {key: value for key, value in article.items() if key != "paragraphs"}
        for place, paragraph in enumerate(article["paragraphs"], start=1):
            if not isinstance(paragraph, dict) or not isinstance(paragraph.get("qas"), list):
                what = f"paragraph {place} of article {number} is {json_kind(paragraph)} without questions"
                rows.append(BadValueError(what))
                continue
            own = {key: value for key, value in paragraph.items() if key != "qas"}
            at = f"of paragraph {place} of article {number}"
            rows.extend(
                {**above, **own, **question}
                if isinstance(question, dict)
                else BadValueError(f"a question {at} is {json_kind(question)}")
                for question in paragraph["qas"]
            )
    return rows
