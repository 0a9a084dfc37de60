"""The bundled sample keeps its promises: size, topics, planted faults and difficulty."""

from __future__ import annotations

import csv
import html
import re
from collections import Counter, defaultdict
from itertools import combinations, pairwise
from pathlib import Path

import ftfy
import pytest
from ftfy.badness import is_bad

import gptailor

SAMPLE = Path(gptailor.__file__).parent / "data" / "sample"
TOPICS = {"politics", "sports", "business", "entertainment", "science", "health"}
TYPOS = {
    "politcs": "politics",
    "sport": "sports",
    "bussiness": "business",
    "entertainmnt": "entertainment",
    "sciense": "science",
    "helth": "health",
}
Row = tuple[int, str, str]


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    with (SAMPLE / "headlines.csv").open(encoding="utf-8", newline="") as file:
        return [(int(row["id"]), row["headline"], row["topic"]) for row in csv.DictReader(file, strict=True)]


@pytest.fixture(scope="module")
def wrong_labels() -> dict[int, tuple[str, str]]:
    """The answer key of the README: id to (given, right)."""
    readme = (SAMPLE / "README.md").read_text(encoding="utf-8")
    found = re.findall(r"^\| (\d+) \| (\w+) \| (\w+) \|$", readme, flags=re.MULTILINE)
    return {int(identifier): (given, right) for identifier, given, right in found}


def tidy_text(text: str) -> str:
    return " ".join(html.unescape(ftfy.fix_text(text, unescape_html=False)).split())


def tidy_label(label: str) -> str:
    label = label.strip().lower()
    return TYPOS.get(label, label)


def tidy(rows: list[Row]) -> list[Row]:
    """What a careful person would keep: no empty, unlabelled, rare, doubled or contradicting rows."""
    labels: dict[str, set[str]] = defaultdict(set)
    first: dict[str, Row] = {}
    for identifier, text, label in rows:
        clean, topic = tidy_text(text), tidy_label(label)
        if clean and topic in TOPICS:
            labels[clean].add(topic)
            first.setdefault(clean, (identifier, clean, topic))
    return [row for text, row in first.items() if len(labels[text]) == 1]


def shingles(text: str) -> frozenset[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return frozenset(zip(words, words[1:], words[2:], strict=False))


def near_duplicates(texts: list[str]) -> list[tuple[str, str]]:
    """Pairs with a Jaccard similarity of at least 0.8 on word 3-shingles."""
    sets = [shingles(text) for text in texts]
    return [
        (texts[i], texts[j])
        for i, j in combinations(range(len(texts)), 2)
        if (common := len(sets[i] & sets[j])) and common >= 0.8 * len(sets[i] | sets[j])
    ]


def test_size_topics_and_articles(rows: list[Row]) -> None:
    assert len(rows) >= 600
    assert len({identifier for identifier, _, _ in rows}) == len(rows)
    kept = tidy(rows)
    sizes = Counter(topic for _, _, topic in kept)
    assert set(sizes) == TOPICS
    assert min(sizes.values()) >= 100  # a typo merges only at most at 1 % of its class
    articles = [topic for _, text, topic in kept if len(text.split()) > 60]
    assert len(articles) >= 40
    assert set(articles) == TOPICS


def test_rows_that_must_go(rows: list[Row]) -> None:
    assert sum(not text.strip() for _, text, _ in rows) == 5
    assert sum(not label.strip() for _, _, label in rows) == 4
    assert sum(label == "weather" for _, _, label in rows) == 2
    labels = defaultdict(list)
    for _, text, label in rows:
        if text.strip() and label.strip():
            labels[text].append(label)
    doubled = [found for found in labels.values() if len(found) > 1]
    assert sum(len(found) == 2 and len(set(found)) == 1 for found in doubled) == 8
    assert sum(len(found) == 2 and len(set(found)) == 2 for found in doubled) == 6
    assert len(doubled) == 14
    assert len(tidy(rows)) == len(rows) - 5 - 4 - 2 - 8 - 2 * 6 == 729


def test_texts_that_need_mending(rows: list[Row]) -> None:
    texts = [text for _, text, _ in rows if text.strip()]
    broken = [text for text in texts if is_bad(text)]
    assert len(broken) == 15
    assert not any(is_bad(tidy_text(text)) for text in broken)
    assert sum(html.unescape(text) != text for text in texts) == 20
    loose = [text for text in texts if re.search(r"^\s|\s$|\t|[^\S\n]{2}", text)]
    assert len(loose) == 11


def test_labels_that_need_merging(rows: list[Row]) -> None:
    spellings = Counter(label for _, _, label in rows if label.strip())
    assert {label: spellings[label] for label in TYPOS} == dict.fromkeys(TYPOS, 1)
    others = {label: count for label, count in spellings.items() if label != label.strip().lower()}
    assert sum(others.values()) == 16
    assert set(spellings) == TOPICS | set(TYPOS) | set(others) | {"weather"}


def test_near_duplicates_are_the_planted_ones_and_agree(rows: list[Row]) -> None:
    kept = {text: topic for _, text, topic in tidy(rows)}
    pairs = near_duplicates(list(kept))
    assert len(pairs) == 13
    assert all(kept[one] == kept[other] for one, other in pairs)


def test_wrong_labels_stand_in_the_readme(rows: list[Row], wrong_labels: dict[int, tuple[str, str]]) -> None:
    given = {identifier: label for identifier, _, label in rows}
    assert len(wrong_labels) == 10
    for identifier, (label, right) in wrong_labels.items():
        assert given[identifier] == label
        assert right in TOPICS - {label}


def test_position_and_id_tell_nothing_about_the_topic(rows: list[Row]) -> None:
    topics = [tidy_label(label) for _, _, label in rows]
    neighbours = sum(one == other for one, other in pairwise(topics)) / len(topics)
    assert neighbours < 0.25  # 0.17 by chance


def test_counting_words_is_neither_hopeless_nor_enough(
    rows: list[Row], wrong_labels: dict[int, tuple[str, str]]
) -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import train_test_split
    from sklearn.pipeline import make_pipeline, make_union

    kept = [row for row in tidy(rows) if row[0] not in wrong_labels]
    copies = {other for _, other in near_duplicates([text for _, text, _ in kept])}
    texts, topics = zip(*[(text, topic) for _, text, topic in kept if text not in copies], strict=True)
    train, test, train_topics, test_topics = train_test_split(
        texts, topics, test_size=0.3, stratify=topics, random_state=0
    )
    words = TfidfVectorizer(ngram_range=(1, 2))
    # min_df halves the time and hardly moves the score
    characters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), min_df=2)
    model = make_pipeline(make_union(words, characters), LogisticRegression(C=10, max_iter=500))
    accuracy = model.fit(train, train_topics).score(test, test_topics)
    assert 0.55 <= accuracy <= 0.85
