"""Five hundred damaged files all the way to the ledger: refused with a message, or every row accounted for.

The damage is random with fixed seeds, so a failure names the case that repeats it.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_damaged_files import DAMAGES

from gptailor.data.ledger import summarize
from gptailor.data.tokenize import Encoder, build_encoder
from gptailor.errors import GptailorError
from gptailor.models.names import read_tokenizer_file, resolve_base
from gptailor.pipeline.check import check_recipe
from gptailor.pipeline.prepare import prepare
from gptailor.pipeline.tokens import TokenizedParts, ledger_lines, tokenize_parts
from gptailor.recipe import Recipe, build_recipe

FORMATS = ("csv", "tsv", "json", "jsonl", "parquet", "csv.gz", "jsonl.gz", "folder")
CASES_PER_FORMAT = 63  # 504 files
ROWS = 60
WORDS = "naïve café 007 NA null 😀 it's &amp; price; a|b €5 <b> \\ =1+1 plain words here and there".split()
LABELS = ("sports", "Sports", "business", "health")


@pytest.fixture(scope="module")
def encoder(tiny_bases: dict[str, Path]) -> tuple[Encoder, int]:
    backend, context = read_tokenizer_file(resolve_base(str(tiny_bases["gpt2"])))
    return build_encoder(backend, pad_id=0), context


def messy_rows(dice: random.Random) -> list[dict[str, str]]:
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
        elif trouble < 0.16:
            label = dice.choice(["", "rare"])
        rows.append({"id": str(number), "text": text, "label": label})
    return rows


def write(path: Path, rows: list[dict[str, str]], damage: Callable[[bytes], bytes]) -> Path:
    """The rows in the format the path's name says, then damaged: in a folder, one file of four."""
    if path.name.endswith("folder"):
        for row in rows:
            place = path / (row["label"] or "none") / f"{row['id']}.txt"
            place.parent.mkdir(parents=True, exist_ok=True)
            data = row["text"].encode()
            place.write_bytes(damage(data) if data and int(row["id"]) % 4 == 0 else data)
        return path
    path.write_bytes(damage(encode(path.name, rows)))
    return path


def encode(name: str, rows: list[dict[str, str]]) -> bytes:
    if name.endswith(".gz"):
        return gzip.compress(encode(name.removesuffix(".gz"), rows), mtime=0)
    if name.endswith(".json"):
        return json.dumps(rows, ensure_ascii=False).encode()
    if name.endswith(".jsonl"):
        return "".join(json.dumps(row) + "\n" for row in rows).encode()
    if name.endswith(".parquet"):
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), buffer)
        return buffer.getvalue()
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, ["id", "text", "label"], dialect="excel-tab" if "tsv" in name else "excel")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


def build_case(kind: str, case: int, folder: Path) -> Recipe:
    """A recipe over a damaged file, every third time with a damaged test file beside it."""
    dice = random.Random(f"pipeline {kind} {case}")
    damage = list(DAMAGES.values())[case % len(DAMAGES)]
    data: dict[str, Any] = {
        "train": str(write(folder / f"{case}.{kind}", messy_rows(dice), lambda raw: damage(raw, dice))),
        "too_long": ("cut", "drop", "window")[case % 3],
        "clean": {"minimum_class_size": dice.choice([1, 5])},
        "max_tokens": dice.choice([None, 16]),
    }
    if case % 3 == 0:
        rows = messy_rows(dice)[:30]
        data["test"] = str(write(folder / f"{case}-test.{kind}", rows, lambda raw: damage(raw, dice)))
    return build_recipe({"data": data, "base": "unused", "seed": case})


def account(recipe: Recipe, encoder: tuple[Encoder, int]) -> tuple[dict[str, Any], TokenizedParts]:
    """The road from a file to the ledger's sums; `summarize` fails where they don't come out."""
    prepared = prepare(recipe)
    tokens = tokenize_parts(prepared, encoder[0], recipe.data, context=encoder[1])
    lines = ledger_lines(prepared, tokens)
    places = [(line.source, line.row) for line in lines]
    assert len(set(places)) == len(places), "a row stands twice in the ledger"
    return summarize(lines, read=prepared.read), tokens


@pytest.mark.parametrize("kind", FORMATS)
def test_damaged_files_are_refused_or_accounted_for(
    kind: str, tmp_path: Path, encoder: tuple[Encoder, int]
) -> None:
    accepted = 0
    for case in range(CASES_PER_FORMAT):
        recipe = build_case(kind, case, tmp_path)
        try:
            account(recipe, encoder)
        except GptailorError as error:
            assert error.fix, f"case {case} of {kind} doesn't say what to do: {error}"
        except Exception as error:
            pytest.fail(f"case {case} of {kind} raised {error!r}")
        else:
            accepted += 1
    assert accepted > CASES_PER_FORMAT // 10, "nearly every damage was fatal, so little was tested"
