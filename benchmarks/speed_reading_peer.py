"""The peer's side of `speed_reading.py`: `datasets`, ftfy, datasketch, a fast tokenizer; nothing of ours.

    python benchmarks/speed_reading_peer.py usual|best ROWS.csv TOKENIZER.json FOLDER

Usual is what tutorials show: `map` and `filter` row by row in one process, MinHash by datasketch. Best is
`batched=True` with two processes, MinHash and its index by rensa, and the tokenizer's batches. The steps and
their rules are Gptailor's defaults: the same repairs by ftfy and the same patterns, the same duplicates and
conflicts, word 3-shingles (character 5-grams under 8 words), 128 permutations, a threshold of 0.8. Writes
what it kept to FOLDER/result.npz and its times to FOLDER/result.json.
"""

from __future__ import annotations

import hashlib
import html
import json
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator
from html.entities import html5
from pathlib import Path
from typing import Any

import ftfy
import numpy as np
from datasets import Dataset, load_dataset
from datasketch import LeanMinHash, MinHash, MinHashLSH
from rensa import RMinHash, RMinHashLSH
from transformers import PreTrainedTokenizerFast

PROCESSES = 2
PERMUTATIONS, THRESHOLD = 128, 0.8
BANDS = 16  # of eight permutations: of pairs that just reach the threshold 95 % are found
SCHEME = MinHash(num_perm=PERMUTATIONS).scheme
CONFIG = ftfy.TextFixerConfig(
    unescape_html=False,
    fix_latin_ligatures=False,
    fix_character_width=False,
    uncurl_quotes=False,
    fix_line_breaks=False,
    fix_surrogates=False,
    remove_control_chars=False,
    explain=False,
)
ENTITY = re.compile(
    r"&(?:(?:amp|#0*38|#[xX]0*26);)+"
    r"|&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});"
    r"|&(?:amp|lt|gt|quot|nbsp)(?![A-Za-z0-9=;])"
)
LOST_AMPERSAND = re.compile(
    r"(?:(?<![^\n])| )(quot|apos|lt|gt|hellip|(?:nbsp;)*nbsp"
    r"|#(?:3[469]|133|14[5-9]|15[01]|16[039]|174|821[1267]|822[01]|8230|8364));"
    r"| (?:(?<=  )amp;|amp;(?=\S))"
)
CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\xad\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff]")
BLANKS = re.compile("[ \t\xa0\u1680\u2000-\u200a\u202f\u205f\u3000]+")
WORD = re.compile(r"[^\W_]+")
Row = dict[str, Any]


def clean(text: str) -> str:
    """The repairs, over again where one uncovered another (an entity inside an entity)."""
    for _ in range(3):
        before = text
        text = ftfy.fix_text(text, CONFIG)
        text = ENTITY.sub(_character, text)
        text = LOST_AMPERSAND.sub(lambda match: html.unescape(f"&{match[1] or 'amp'};"), text)
        text = BLANKS.sub(" ", CONTROL.sub("", text)).strip(" \n")
        if text == before:
            break
    return text


def _character(match: re.Match[str]) -> str:
    entity = match[0]
    if entity.endswith(";") and entity.count(";") > 1:
        return "&"
    return html.unescape(entity) if entity[1] == "#" or entity[1:] in html5 else entity


def digest(text: str) -> bytes:
    return hashlib.md5(text.encode(), usedforsecurity=False).digest()


def shingles(text: str) -> list[bytes]:
    words = WORD.findall(text.casefold())
    if len(words) < 8:
        joined = " ".join(words)
        return [joined[i : i + 5].encode() for i in range(max(1, len(joined) - 4))]
    return [" ".join(words[i : i + 3]).encode() for i in range(len(words) - 2)]


def run_usual(path: str, tokenizer: PreTrainedTokenizerFast, cache: str) -> tuple[Dataset, list[list[int]]]:
    rows = _load(path, cache)
    rows = rows.map(lambda row, place: {"text": clean(row["text"]), "row": place}, with_indices=True)
    rows = rows.filter(lambda row: row["text"] and row["label"])
    rows = rows.map(lambda row: {"hash": digest(row["text"])})
    first, conflicts = _repeats(rows)
    rows = rows.filter(
        lambda row, place: row["hash"] not in conflicts and first[row["hash"]] == place, with_indices=True
    )

    def sketch(row: Row) -> Row:
        minhash = MinHash(num_perm=PERMUTATIONS)
        for shingle in set(shingles(row["text"])):
            minhash.update(shingle)
        return {"sketch": minhash.hashvalues}

    rows = rows.map(sketch)
    groups = _groups(rows)
    rows = rows.map(lambda row: {"ids": tokenizer(row["text"])["input_ids"]}, remove_columns=["sketch"])
    return rows, groups


def run_best(path: str, tokenizer: PreTrainedTokenizerFast, cache: str) -> tuple[Dataset, list[list[int]]]:
    def clean_all(batch: Row, places: list[int]) -> Row:
        cleaned = zip(map(clean, batch["text"]), batch["label"], places, strict=True)
        rows = [row for row in cleaned if row[0] and row[1]]
        texts, labels, numbers = ([row[column] for row in rows] for column in range(3))
        return {
            "text": texts,
            "label": labels,
            "row": numbers,
            "hash": [digest(str(text)) for text in texts],
        }

    def tokenize_all(batch: Row) -> Row:
        return {"ids": tokenizer(batch["text"], return_attention_mask=False)["input_ids"]}

    both: Row = {"batched": True, "num_proc": PROCESSES}
    rows = _load(path, cache)
    rows = rows.map(clean_all, with_indices=True, remove_columns=rows.column_names, **both)
    first, conflicts = _repeats(rows)
    rows = rows.select([place for key, place in first.items() if key not in conflicts])
    groups = _rust_groups(rows)
    return rows.map(tokenize_all, **both), groups


def _load(path: str, cache: str) -> Dataset:
    # "NA" and "null" are texts here, too.
    return load_dataset("csv", data_files=path, split="train", cache_dir=cache, keep_default_na=False)


def _repeats(rows: Dataset) -> tuple[dict[bytes, int], set[bytes]]:
    """Where each text stands for the first time, and the texts that have several labels."""
    first: dict[bytes, int] = {}
    labels: dict[bytes, str] = {}
    conflicts: set[bytes] = set()
    place = 0
    for batch in rows.select_columns(["hash", "label"]).iter(10_000):
        for key, label in zip(batch["hash"], batch["label"], strict=True):
            first.setdefault(key, place)
            if labels.setdefault(key, label) != label:
                conflicts.add(key)
            place += 1
    return first, conflicts


def _groups(rows: Dataset) -> list[list[int]]:
    """Rows that datasketch's index finds near one another, in chains."""
    index, chains = MinHashLSH(threshold=THRESHOLD, num_perm=PERMUTATIONS), _Chains()
    for row, values in _sketches(rows):
        minhash = LeanMinHash(seed=1, hashvalues=values, scheme=SCHEME)
        chains.add(row, index.query(minhash))
        index.insert(row, minhash, check_duplication=False)
    return chains.groups()


def _rust_groups(rows: Dataset) -> list[list[int]]:
    """Rows that rensa's index finds near one another, in chains."""
    index, chains = RMinHashLSH(threshold=THRESHOLD, num_perm=PERMUTATIONS, num_bands=BANDS), _Chains()
    numbers: list[int] = []
    for batch in rows.select_columns(["row", "text"]).iter(10_000):
        sketches = RMinHash.from_token_sets(
            [sorted(set(shingles(t))) for t in batch["text"]], PERMUTATIONS, 1
        )
        start = len(numbers)
        numbers += batch["row"]
        index.insert_many(sketches, start)
        for place, near in enumerate(index.query_all(sketches), start):
            chains.add(numbers[place], [numbers[other] for other in near if other < place])
    return chains.groups()


class _Chains:
    """Rows joined by being near."""

    def __init__(self) -> None:
        self._above: dict[int, int] = {}

    def add(self, row: int, near: Iterable[int]) -> None:
        """A row and those before it that it is near."""
        self._above[row] = row
        for other in near:
            one, two = self._top(other), self._top(row)
            self._above[max(one, two)] = min(one, two)

    def groups(self) -> list[list[int]]:
        """Those of two rows and more."""
        members: dict[int, list[int]] = {}
        for row in self._above:
            members.setdefault(self._top(row), []).append(row)
        return [group for group in members.values() if len(group) > 1]

    def _top(self, row: int) -> int:
        above = self._above
        while above[row] != row:
            above[row] = row = above[above[row]]
        return row


def _sketches(rows: Dataset) -> Iterator[tuple[int, np.ndarray[Any, Any]]]:
    for batch in rows.select_columns(["row", "sketch"]).with_format("numpy").iter(1000):
        yield from zip(batch["row"].tolist(), np.asarray(batch["sketch"]).astype(np.uint64), strict=True)


def main() -> None:
    setting, path, tokenizer_file, folder = sys.argv[1:]
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=tokenizer_file)
    run = {"usual": run_usual, "best": run_best}[setting]
    began, cpu_began = time.perf_counter(), sum(os.times()[:4])
    rows, groups = run(path, tokenizer, str(Path(folder) / "cache"))
    times = {"seconds": time.perf_counter() - began, "cpu_seconds": sum(os.times()[:4]) - cpu_began}
    Path(folder, "result.json").write_text(json.dumps(times))
    column = rows.with_format("arrow")[:]["ids"].combine_chunks()
    np.savez(
        Path(folder) / "result.npz",
        rows=np.array(rows["row"]),
        lengths=np.diff(column.offsets.to_numpy()),
        ids=column.flatten().to_numpy(),
        near=np.array([row for group in groups for row in group], dtype=np.int64),
        near_sizes=np.array([len(group) for group in groups], dtype=np.int64),
    )


if __name__ == "__main__":
    main()
