"""The base, the rows and the token ids of speed.py, made once in its work folder.

Rows are cleaned and tokenized by the product; the peers get its token ids in the order in which it trains on
them, so both sides see the same tokens, step by step.
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from speed_works import RATES, SHAPES, Work

from gptailor.data.batch import Order, StepRows
from gptailor.models.load import load_classifier, load_tokenizer
from gptailor.models.names import resolve_base
from gptailor.pipeline.fit import open_workshop
from gptailor.pipeline.place import Listener
from gptailor.pipeline.prepare import prepare
from gptailor.pipeline.texts.shop import open_text_shop
from gptailor.recipe import Recipe, build_recipe

SEED = 0
HELD_OUT = {"validation": 32, "test": 40}  # rows; none of the test is ever read
LONG = "20000 steps"  # so that the product prepares for a long run; it is stopped after one epoch
COLUMNS = {"classification": ("text", "label"), "completion": ("prompt", "completion")}
Row = tuple[str, str]


@dataclass(frozen=True)
class Rows:
    """One work's files: what we read, and the same rows as token ids for the peers."""

    folder: Path
    base: Path
    task: str

    @property
    def model(self) -> Path:
        """What the peers load: for classification with the very head that the product draws."""
        return self.folder / "classifier" if self.task == "classification" else self.base

    @property
    def tokens(self) -> Path:
        return self.folder / "tokens.jsonl"

    @property
    def validation_tokens(self) -> Path:
        return self.folder / "validation-tokens.jsonl"

    def tokens_of_steps(self, batch_size: int) -> list[int]:
        """Real tokens of each step of the epoch, in our order."""
        lengths = [len(row["input_ids"]) for row in read_lines(self.tokens)]
        return [sum(lengths[at : at + batch_size]) for at in range(0, len(lengths), batch_size)]


def make_base(folder: Path, shape: str, data: Path) -> Path:
    """Random weights of the shape, drawn from a seed, with GPT-2's tokenizer."""
    if (folder / "tokenizer.json").exists():
        return folder
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, GPT2Tokenizer

    names = {"vocab": "encoder.json", "merges": "vocab.bpe"}
    tokenizer: Any = GPT2Tokenizer(**{key: str(data / "gpt2_bpe" / name) for key, name in names.items()})
    torch.manual_seed(SEED)
    config: dict[str, Any] = SHAPES[shape]
    model: Any = GPT2LMHeadModel(GPT2Config(**config))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)  # last: its file says that the folder is whole
    return folder


def make_rows(folder: Path, work: Work, *, base: Path, data: Path, steps: int) -> Rows:
    """Files with exactly `steps` batches of training rows after cleaning.

    Raises:
        SystemExit: the data hold too few rows.
    """
    rows = Rows(folder, base, work.task)
    if rows.validation_tokens.exists():
        return rows
    folder.mkdir(parents=True, exist_ok=True)
    wanted = steps * work.batch_size
    pool = list(READERS[work.task](data))
    random.Random(SEED).shuffle(pool)
    for part, count in HELD_OUT.items():
        write_rows(folder / f"{part}.csv", pool[:count], COLUMNS[work.task])
        del pool[:count]
    write_rows(folder / "train.csv", pool[: 3 * wanted], COLUMNS[work.task])
    recipe = recipe_for(work, rows, dropout=0.0, out=folder / "look")
    kept = kept_rows(recipe)[:wanted]
    write_rows(folder / "train.csv", [pool[row] for row in kept], COLUMNS[work.task])
    tokenize(recipe, work, rows)
    if len(read_lines(rows.tokens)) != wanted:
        raise SystemExit(f"{work.name}: {len(kept):,} rows are left of {len(pool):,}; {wanted:,} are needed.")
    return rows


def recipe_for(work: Work, rows: Rows, *, dropout: float, out: Path, precision: str = "auto") -> Recipe:
    """What a person would write for this work, with everything that the peer fixes fixed."""
    first, second = COLUMNS[work.task]
    names = {"classification": ("text", "label"), "completion": ("prompt", "completion")}[work.task]
    rate = RATES[work.approach]
    classifies = work.task == "classification"
    head = {"head_learning_rate": rate} if classifies else {}  # the peer has one rate
    own_rows = {"teach_names": False} if classifies else {}  # nor do labels' names teach the peer
    return build_recipe(
        {
            "task": work.task,
            "base": str(rows.base),
            "approach": work.approach,
            "seed": SEED,
            "data": {
                **{part: str(rows.folder / f"{part}.csv") for part in ("train", *HELD_OUT)},
                names[0]: first,
                names[1]: second,
                **own_rows,
            },
            "train": {
                "length": LONG,
                "batch_size": work.batch_size,
                "learning_rate": rate,
                **head,
                "schedule": "constant",
                "warmup": 0,
                "weight_decay": 0,
                "dropout": dropout,
                "attention_dropout": dropout,  # the peers drop attention weights as well
                "precision": precision,
                "validations_per_epoch": 1,
                "patience": 0,
            },
            "evaluate": {"baselines": "none"},
            "out": str(out),
        }
    )


def kept_rows(recipe: Recipe) -> list[int]:
    """Places in train.csv of the rows that cleaning leaves for training."""
    if recipe.task == "classification":
        kept = {row.row for row in prepare(recipe).parts["train"]}
    else:
        kept = {one.row.row for one in open_shop(recipe).tokens.rows["train"]}
    train = recipe.data.train
    return [place for place, row in enumerate(row_numbers(Path(train))) if row in kept]


def row_numbers(path: Path) -> list[int]:
    """The numbers by which the product calls the rows of a file."""
    from gptailor.data.read import read_rows

    return [row.row for row in read_rows(str(path)).rows]


def open_shop(recipe: Recipe) -> Any:
    folder = Path(str(recipe.out))
    folder.mkdir(parents=True, exist_ok=True)
    return open_text_shop(recipe, folder, Listener())


def tokenize(recipe: Recipe, work: Work, rows: Rows) -> None:
    """Writes the token ids in the order of training, and for classification the model with its new head."""
    if work.task == "classification":
        folder = Path(str(recipe.out))
        folder.mkdir(parents=True, exist_ok=True)
        shop = open_workshop(recipe, prepare(recipe), folder, Listener())
        parts = {part: list(found) for part, found in shop.tokens.rows.items()}
        tokenizer = load_tokenizer(resolve_base(recipe.base))
        model = load_classifier(
            resolve_base(recipe.base), tokenizer, label_names=shop.label_names, seed=recipe.seed
        )
        model.save_pretrained(rows.model)
        tokenizer.save_pretrained(rows.model)
    else:
        tokens = open_shop(recipe).tokens.rows
        parts = {part: [one.sequences[0] for one in found] for part, found in tokens.items()}
    train = parts["train"]
    lengths = np.array([len(row.token_ids) for row in train])
    rows_of = StepRows(Order(lengths, batch_size=work.batch_size, seed=recipe.seed))
    steps = range(1, len(train) // work.batch_size + 1)
    ordered = [train[row] for step in steps for row in rows_of(step).tolist()]
    write_tokens(rows.tokens, ordered, work.task)
    write_tokens(rows.validation_tokens, parts["validation"], work.task)


def write_tokens(path: Path, rows: Sequence[Any], task: str) -> None:
    lines = []
    for row in rows:
        line: dict[str, Any] = {"input_ids": [int(token) for token in row.token_ids]}
        if task == "classification":
            line["labels"] = row.label
        else:
            line["completion_mask"] = [int(learned) for learned in row.learn]
        lines.append(json.dumps(line))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# The data.


def read_news(data: Path) -> Iterator[Row]:
    """AG News: headline and first sentence, about 52 tokens, four labels."""
    for row in read_dicts(data / "ag_news" / "openai_samples2000.csv"):
        yield f"{row['title']} {row['description']}", row["label"]


def read_restaurants(data: Path) -> Iterator[Row]:
    """E2E: a worked example, then the facts to be told: about 120 tokens, a quarter of them learned."""
    pairs = [(row["mr"], row["ref"]) for row in read_dicts(data / "e2e_nlg" / "devset.csv")]
    examples = pairs.copy()
    random.Random(SEED + 1).shuffle(examples)
    for (facts, told), (other_facts, other_told) in zip(pairs, examples, strict=True):
        yield f"{other_facts}\n{other_told}\n\n{facts}\n", told


READERS: Mapping[str, Any] = {"classification": read_news, "completion": read_restaurants}


def read_dicts(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_rows(path: Path, rows: Sequence[Row], columns: Sequence[str]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])
