"""The data sets of quality.py, their samples, and the files that a fit reads."""

from __future__ import annotations

import csv
import hashlib
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptailor.data.clean import clean_rows
from gptailor.launch import write_atomically
from gptailor.pipeline.leaks import remove_leaks
from gptailor.recipe import CleanSettings
from gptailor.types import RawExample

# Classes under five rows stay: dropping them would cost every approach their test rows.
MINIMUM_CLASS_SIZE = 1
Row = tuple[str, str]  # text, label


@dataclass(frozen=True)
class Dataset:
    """The training rows that are sampled, and the public test rows."""

    name: str
    train: Sequence[Row]
    test: Sequence[Row]

    @property
    def answers(self) -> list[str]:
        return [label for _, label in self.test]


@dataclass(frozen=True)
class Split:
    """One sample of a data set's rows, on the disk. `kept` are the test rows whose class was learned."""

    dataset: Dataset
    rows: str
    seed: int
    train: Path
    test: Path
    kept: Sequence[int]
    unseen: Sequence[str]
    key: str


def read_dicts(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read_ag_news(folder: Path) -> tuple[list[Row], list[Row]]:
    """`gt` counts from 0, the headerless test file from 1, whose two columns are joined as they are here."""
    names = ("World", "Sports", "Business", "Sci/Tech")
    train = [(row["text"], names[int(row["gt"])]) for row in read_dicts(folder / "noisyag_val10000.csv")]
    with (folder / "test.csv").open(newline="", encoding="utf-8") as file:
        test = [(f"{title} . {text}", names[int(label) - 1]) for label, title, text in csv.reader(file)]
    return train, test


def read_sst2(folder: Path) -> tuple[list[Row], list[Row]]:
    train, test = (
        [
            (text, "positive" if label == "1" else "negative")
            for text, label in (line.rsplit("\t", 1) for line in read_lines(folder / name))
        ]
        for name in ("train.tsv", "dev.tsv")
    )
    return train, test


def read_banking77(folder: Path) -> tuple[list[Row], list[Row]]:
    train, test = (
        [(row["text"], row["category"]) for row in read_dicts(folder / f"{part}.csv")]
        for part in ("train", "test")
    )
    return train, test


def read_emotion(folder: Path) -> tuple[list[Row], list[Row]]:
    names = dict(line.split("\t") for line in read_lines(folder / "mapping.txt"))
    train, validation, test = (
        [
            (text, names[label])
            for text, label in zip(
                read_lines(folder / f"{part}_text.txt"),
                read_lines(folder / f"{part}_labels.txt"),
                strict=True,
            )
        ]
        for part in ("train", "val", "test")
    )
    return [*train, *validation], test


def read_lines(path: Path) -> list[str]:
    """Lines as the line feed ends them: tweets hold other line ends inside."""
    return path.read_text(encoding="utf-8").strip("\n").split("\n")


DATASETS: dict[str, Callable[[Path], tuple[list[Row], list[Row]]]] = {
    "ag_news": read_ag_news,
    "sst2": read_sst2,
    "banking77": read_banking77,
    "emotion": read_emotion,
}


def sample(pool: Sequence[Row], rows: str, seed: int) -> list[Row]:
    """The first rows of the shuffled pool; all of it as it stands, so that only the fit's seed differs."""
    if rows == "all":
        return list(pool)
    shuffled = list(pool)
    random.Random(seed).shuffle(shuffled)
    return shuffled[: int(rows)]


def learned_labels(train: Sequence[Row], test: Sequence[Row]) -> set[str]:
    """The labels that are left in a sample after cleaning and without what stands in the test file."""
    settings = CleanSettings(minimum_class_size=MINIMUM_CLASS_SIZE)
    cleaned = clean_rows(_raw(train, "train"), settings=settings)
    held_out = clean_rows(_raw(test, "test"), settings=settings, protected=True, known=cleaned)
    kept, _ = remove_leaks(cleaned.rows, held_out.rows)
    return {row.fields["label"] for row in kept}


def _raw(rows: Sequence[Row], source: str) -> list[RawExample]:
    return [
        RawExample({"text": text, "label": label}, source, number)
        for number, (text, label) in enumerate(rows, 1)
    ]


def make_split(dataset: Dataset, rows: str, seed: int, *, work: Path) -> Split:
    """Writes the sample and the test rows that can be asked; done once for the same rows.

    A fit refuses a test label that it can't learn. Such test rows are left out of the file and count as
    wrong for everybody.
    """
    train = sample(dataset.train, rows, seed)
    key = digest(train, dataset.test, MINIMUM_CLASS_SIZE)
    folder = work / "splits" / f"{dataset.name}-{rows}-{key[:12]}"
    told = folder / "split.json"
    if not told.exists():
        labels = learned_labels(train, dataset.test)
        kept = [place for place, (_, label) in enumerate(dataset.test) if label in labels]
        unseen = sorted({label for _, label in dataset.test} - labels)
        folder.mkdir(parents=True, exist_ok=True)
        write_rows(folder / "train.jsonl", train)
        write_rows(folder / "test.jsonl", [dataset.test[place] for place in kept])
        write_atomically(told, json.dumps({"kept": kept, "unseen": unseen}))
    values = json.loads(told.read_text(encoding="utf-8"))
    return Split(
        dataset,
        rows,
        seed,
        folder / "train.jsonl",
        folder / "test.jsonl",
        values["kept"],
        values["unseen"],
        key,
    )


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    lines = (json.dumps({"text": text, "label": label}) + "\n" for text, label in rows)
    write_atomically(path, "".join(lines))


def digest(*parts: Any) -> str:
    """SHA-256 over plain JSON values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
