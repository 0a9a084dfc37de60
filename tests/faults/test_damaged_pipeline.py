"""Five hundred damaged files all the way to the ledger: refused with a message, or every row accounted for.

The damage is random with fixed seeds, so a failure names the case that repeats it.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_damaged_files import DAMAGES

import tiny
from gptailor.data.ledger import summarize
from gptailor.data.tokenize import Encoder, build_encoder
from gptailor.errors import GptailorError
from gptailor.pipeline.prepare import prepare
from gptailor.pipeline.story import data_story
from gptailor.pipeline.suspects import suspects_in_data
from gptailor.pipeline.tokens import ledger_lines, tokenize_parts
from gptailor.recipe import Recipe, build_recipe

FORMATS = ("csv", "tsv", "json", "jsonl", "parquet", "csv.gz", "jsonl.gz", "folder")
CASES_PER_FORMAT = 63  # 504 files to train on, 168 to test on
ROWS = 60
WORDS = [
    "naïve",
    "café",
    "007",
    "NA",
    "null",
    "😀",
    "it's",
    "&amp;",
    "price;",
    "a|b",
    "€5",
    "<b>",
    "\\",
    "=1+1",
]
WORDS += ["=1+1", "plain", "words", "here", "and", "there"]
LABELS = ("sports", "Sports", "business", "health")
Damage = Callable[[bytes, random.Random], bytes]


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return build_encoder(tiny.build_tokenizer("gpt2").backend_tokenizer, pad_id=0)


def messy_rows(dice: random.Random, *, strange_labels: bool) -> list[dict[str, str]]:
    """Rows with repeats, contradictions, empty cells, a label too rare, and texts that are too long."""
    rows: list[dict[str, str]] = []
    for number in range(ROWS):
        text = " ".join(dice.choices(WORDS, k=dice.choice([2, 5, 9, 9, 60])))
        label = dice.choice(LABELS)
        trouble = dice.random()
        if trouble < 0.08 and rows:
            text, label = dice.choice(rows)["text"], dice.choice(LABELS)
        elif trouble < 0.12:
            text = dice.choice(["", " ", "\u200b"])
        elif trouble < 0.16 and strange_labels:
            label = dice.choice(["", "rare"])
        rows.append({"id": str(number), "text": text, "label": label})
    return rows


def write(path: Path, rows: list[dict[str, str]], damage: Damage, dice: random.Random) -> Path:
    """The rows in the format of the path's name, then damaged; packed formats before or after packing."""
    kind = path.name.partition(".")[2]
    if kind == "folder":
        for row in rows[:40]:
            place = path / (row["label"] or "none") / f"{row['id']}.txt"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(damaged_text(row["text"], damage, dice))
    elif kind == "parquet" and dice.random() < 0.5:
        values = [{k: damaged_text(v, damage, dice) for k, v in row.items()} for row in rows]
        pq.write_table(pa.Table.from_pylist(values), path)
    elif kind.endswith(".gz") and dice.random() < 0.5:
        path.write_bytes(gzip.compress(damage(encode(kind.removesuffix(".gz"), rows), dice)))
    else:
        path.write_bytes(damage(encode(kind, rows), dice))
    return path


def damaged_text(text: str, damage: Damage, dice: random.Random) -> bytes:
    return damage(text.encode(), dice) if text and dice.random() < 0.1 else text.encode()


def encode(kind: str, rows: list[dict[str, str]]) -> bytes:
    if kind.endswith(".gz"):
        return gzip.compress(encode(kind.removesuffix(".gz"), rows))
    if kind == "json":
        return json.dumps(rows, ensure_ascii=False).encode()
    if kind == "jsonl":
        return "".join(json.dumps(row) + "\n" for row in rows).encode()
    if kind == "parquet":
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), buffer)
        return buffer.getvalue()
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, ["id", "text", "label"], dialect="excel-tab" if kind == "tsv" else "excel")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


def build_case(kind: str, case: int, folder: Path) -> Recipe:
    """A recipe over a damaged file, every third time with a damaged test file beside it."""
    dice = random.Random(f"pipeline {kind} {case}")
    damage = list(DAMAGES.values())[case % len(DAMAGES)]
    rows = messy_rows(dice, strange_labels=True)
    data: dict[str, Any] = {
        "train": str(write(folder / f"{case}.{kind}", rows, damage, dice)),
        "too_long": dice.choice(["cut", "drop", "window"]),
        "clean": {"minimum_class_size": dice.choice([1, 5])},
        "max_tokens": dice.choice([None, 16]),
    }
    if case % 3 == 0:
        rows = messy_rows(dice, strange_labels=False)[:30]
        data["test"] = str(write(folder / f"{case}-test.{kind}", rows, damage, dice))
    return build_recipe({"data": data, "seed": case})


def account(recipe: Recipe, encoder: Encoder) -> None:
    """The road from a file to the ledger's sums; `summarize` fails where they don't come out."""
    prepared = prepare(recipe)
    tokens = tokenize_parts(prepared, encoder, recipe.data, context=64)
    lines = ledger_lines(prepared, tokens)
    places = [(line.source, line.row) for line in lines]
    assert len(set(places)) == len(places), "a row stands twice in the ledger"
    summarize(lines, read=prepared.read)
    data_story(prepared, tokens)
    suspects_in_data(prepared)


@pytest.mark.parametrize("kind", FORMATS)
def test_damaged_files_are_refused_or_accounted_for(kind: str, tmp_path: Path, encoder: Encoder) -> None:
    accepted, helpless = 0, []
    for case in range(CASES_PER_FORMAT):
        recipe = build_case(kind, case, tmp_path)
        try:
            account(recipe, encoder)
        except GptailorError as error:
            helpless += [] if error.fix else [f"case {case}: {error}"]
        except Exception as error:
            pytest.fail(f"case {case} of {kind} raised {error!r}")
        else:
            accepted += 1
    assert not helpless, "an error doesn't say what to do"
    assert accepted >= 15, "nearly every damage was fatal, so little was tested"
