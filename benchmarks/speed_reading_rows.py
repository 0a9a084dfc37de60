"""A million rows such as people have, made of real texts: news, tweets, reviews, and other languages.

Each row joins the beginning of one text with the end of another of its kind, so that a million are mostly
distinct. Some are what real files hold besides: exact and near copies, copies with another label, empty rows,
text that was decoded wrongly, entities, stray blanks. The same seed gives the same file.
"""

from __future__ import annotations

import csv
import gzip
import json
import random
from collections.abc import Iterator
from pathlib import Path

LOOKED_BACK = 2000  # rows among which a copy finds its original
SHARES = {"news": 0.5, "tweets": 0.2, "instructions": 0.12, "reviews": 0.08, "french": 0.05, "german": 0.05}
FAULTS = {"copy": 0.02, "near": 0.03, "conflict": 0.001, "empty": 0.003, "mojibake": 0.01, "entities": 0.01}
Row = tuple[str, str]


def write_rows(path: Path, data: Path, *, count: int, seed: int = 0) -> None:
    """Writes a CSV file with the columns text and label; row n stands on line n + 2.

    Args:
        path: The file to write.
        data: The folder of real texts.
        count: Rows.
        seed: Of every choice.
    """
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["text", "label"])
        writer.writerows(make_rows(read_texts(data), count=count, seed=seed))


def make_rows(texts: dict[str, list[str]], *, count: int, seed: int) -> Iterator[Row]:
    """Rows drawn from texts of several kinds; the kind is the label."""
    draw = random.Random(seed)
    kinds, shares = list(SHARES), list(SHARES.values())
    faults, chances = [*FAULTS, "none"], [*FAULTS.values(), 1 - sum(FAULTS.values())]
    recent: list[Row] = []
    for number in range(count):
        kind = draw.choices(kinds, shares)[0]
        fault = draw.choices(faults, chances)[0]
        row = (_joined(draw.choice(texts[kind]), draw.choice(texts[kind])), kind)
        if recent and fault in {"copy", "near", "conflict"}:
            row = _copied(draw.choice(recent), fault, draw)
        elif fault != "none":
            row = (_damaged(row[0], fault), row[1])
        if fault == "none":
            recent[number % LOOKED_BACK : number % LOOKED_BACK + 1] = [row]
        yield row


def read_texts(data: Path) -> dict[str, list[str]]:
    """The real texts by kind, without line breaks and at least five words long."""
    found = {
        "news": [*_cells(data / "ag_news/noisyag_val10000.csv", 2), *_cells(data / "ag_news/test.csv", 2)],
        "tweets": [
            *_cells(data / "messy/disaster_tweets.csv", 3),
            *_cells(data / "messy/text_emotion.csv", 3),
        ],
        "instructions": [row["response"] for row in map(json.loads, _lines(data / "dolly/dolly_6400.jsonl"))],
        "reviews": [line.split("\t")[0] for line in _lines(data / "sst2/train.tsv")],
        "french": _lines(data / "multi30k/train.fr.gz"),
        "german": _lines(data / "multi30k/train.de.gz"),
    }
    return {
        kind: [" ".join(text.split()[:80]) for text in texts if len(text.split()) >= 5]
        for kind, texts in found.items()
    }


def _cells(path: Path, column: int) -> list[str]:
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        return [row[column] for row in csv.reader(file) if len(row) > column]


def _lines(path: Path) -> list[str]:
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return text.decode("utf-8", errors="replace").splitlines()


def _joined(one: str, other: str) -> str:
    left, right = one.split(" "), other.split(" ")
    return " ".join([*left[: (len(left) + 1) // 2], *right[len(right) // 2 :]])


def _copied(row: Row, fault: str, draw: random.Random) -> Row:
    text, label = row
    if fault == "conflict":
        return text, next(kind for kind in SHARES if kind != label)
    if fault == "near":
        words = text.split(" ")
        words[draw.randrange(len(words))] = "another"
        return " ".join(words), label
    return text, label


def _damaged(text: str, fault: str) -> str:
    if fault == "empty":
        return "  "
    if fault == "entities":
        return text.replace("'", "&#39;").replace(",", " &amp;  ")
    return f"{text} – “café”".encode().decode("cp1252", errors="replace")
