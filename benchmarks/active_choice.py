"""What it brings to choose the rows to label: rows chosen by doubt against rows drawn, on frozen features.

    python benchmarks/active_choice.py [--base starter] [--seeds 5]

For each data set and seed: a head is fitted on a few labelled rows drawn at random, it orders the rest as
`gptailor predict --rank uncertain` does, the next rows are labelled (the labels are known) and a head is
fitted on all. Beside it as many rows drawn at random, and the most doubtful ones without a look at what is
alike. The table shows the test accuracy and the difference to random rows, with the standard error over the
seeds.
"""

from __future__ import annotations

import argparse
import random
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from quality_data import DATASETS, digest
from record import RESULTS, start_record, write_record
from sklearn.exceptions import ConvergenceWarning

from gptailor.data.duplicates import near_duplicate_groups
from gptailor.data.repair import repair
from gptailor.data.tokenize import build_encoder, encode_texts, fit_length
from gptailor.evaluate.choice import doubts, most_telling_first
from gptailor.models.approach import fit_frozen_head
from gptailor.models.forward import compute_features
from gptailor.models.load import load_classifier, load_tokenizer
from gptailor.models.names import resolve_base
from gptailor.models.readout import probabilities_of
from gptailor.types import AnswerForm, FloatArray, IntArray

HERE = Path(__file__).resolve().parent
DATA = HERE.parent.parent / "shared" / "data"
POOL, TEST, TOKENS = 3500, 1500, 128
FEW, MORE = (100, 200), (400, 400)  # rows labelled before, rows added
SIZES = {"sst2": (FEW, MORE), "ag_news": (FEW, MORE), "emotion": (FEW, MORE), "banking77": (MORE,)}
STRENGTHS = (0.01, 0.1, 1.0, 10.0)
WAYS = ("random", "doubt", "chosen")


@dataclass(frozen=True)
class Rows:
    """A pool whose labels are known to the benchmark, and test rows. Features (N, H), labels (N,)."""

    texts: Sequence[str]
    features: FloatArray
    labels: IntArray
    pool: int  # this many are the pool, the rest tests

    @property
    def num_labels(self) -> int:
        return int(self.labels.max()) + 1


def read_dataset(name: str, data: Path, base: Any, work: Path) -> Rows:
    """Texts with their features, from the work folder where they were computed before."""
    parts = [list(part) for part in DATASETS[name](data / name)]
    shuffler = random.Random(0)
    for part in parts:
        shuffler.shuffle(part)
    pool, test = parts[0][:POOL], parts[1][:TEST]
    texts = [text for text, _ in [*pool, *test]]
    names = sorted({label for _, label in [*pool, *test]})
    labels = np.array([names.index(label) for _, label in [*pool, *test]])
    stored = work / f"features-{name}-{digest(base.revision, texts, TOKENS)[:12]}.npy"
    if not stored.exists():
        work.mkdir(parents=True, exist_ok=True)
        np.save(stored, features_of(base, texts).astype(np.float32))
    return Rows(texts, np.load(stored).astype(np.float64), labels, len(pool))


def features_of(base: Any, texts: Sequence[str]) -> FloatArray:
    tokenizer = load_tokenizer(base)
    encoder = build_encoder(tokenizer.backend_tokenizer, pad_id=tokenizer.pad_token_id)
    model = load_classifier(base, tokenizer, label_names=["a", "b"], seed=0, kind="single")
    encoded = encode_texts(encoder, [repair(text) for text in texts])
    sequences = [fit_length(encoder, ids, max_tokens=TOKENS, too_long="cut")[0][0] for ids in encoded]
    return compute_features(model, sequences, pad_id=encoder.pad_id)


def fit(rows: Rows, chosen: IntArray, strength: float) -> FloatArray:
    """The logits of all rows by a head on the chosen ones; labels that weren't seen are never answered."""
    seen, codes = np.unique(rows.labels[chosen], return_inverse=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        weights = fit_frozen_head(
            rows.features[chosen], codes, num_labels=len(seen), strength=strength, class_weight=None
        )
    logits = np.full((len(rows.features), rows.num_labels), -1e9)
    logits[:, seen] = rows.features @ weights.T
    return logits


def choose_strength(rows: Rows, chosen: IntArray) -> float:
    """By a fifth of the labelled rows."""
    held, used = chosen[: len(chosen) // 5], chosen[len(chosen) // 5 :]
    right = {
        s: float((fit(rows, used, s)[held].argmax(axis=1) == rows.labels[held]).mean()) for s in STRENGTHS
    }
    return max(right, key=lambda s: right[s])


def measure(rows: Rows, *, had: int, added: int, seed: int) -> dict[str, float]:
    """The test accuracy before, and after each way of adding rows."""
    order = np.random.default_rng(seed).permutation(rows.pool)
    labelled, free = order[:had], order[had:]
    strength = choose_strength(rows, labelled)
    logits = fit(rows, labelled, strength)
    doubt = doubts(probabilities_of(logits[free], AnswerForm()), AnswerForm())

    def accuracy(found: FloatArray) -> float:
        return float((found[rows.pool :].argmax(axis=1) == rows.labels[rows.pool :]).mean())

    ways: dict[str, Callable[[], IntArray]] = {
        "random": lambda: np.arange(len(free)),
        "doubt": lambda: np.argsort(-doubt, kind="stable"),
        "chosen": lambda: most_telling_first(
            doubt,
            features_of=lambda places: rows.features[free[places]],
            duplicates_of=lambda places: near_duplicate_groups([rows.texts[row] for row in free[places]]),
        ),
    }
    found = {"before": accuracy(logits)}
    for way, choose in ways.items():
        found[way] = accuracy(fit(rows, np.concatenate([labelled, free[choose()[:added]]]), strength))
    return found


def line_of(name: str, cells: Sequence[dict[str, float]], had: int, added: int) -> str:
    """One line of the table: means, and differences to random rows."""
    means = {way: 100 * float(np.mean([cell[way] for cell in cells])) for way in ("before", *WAYS)}
    told = [f"{means['before']:.1f}", f"{means['random']:.1f}"]
    for way in WAYS[1:]:
        gaps = 100 * np.array([cell[way] - cell["random"] for cell in cells])
        error = gaps.std(ddof=1) / np.sqrt(len(gaps)) if len(gaps) > 1 else float("nan")
        told.append(f"{means[way]:.1f} ({gaps.mean():+.1f} ± {error:.1f}, {(gaps > 0).sum()} of {len(gaps)})")
    return f"| {name} | {had} + {added} | " + " | ".join(told) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--base", default="starter")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--datasets", nargs="*", default=list(SIZES))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--work", type=Path, default=HERE / "work")
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    base, begun = resolve_base(given.base, revision=None), start_record()
    heads = [
        "data set",
        "labelled + added",
        "before",
        "random rows",
        "by doubt",
        "chosen as `--rank uncertain`",
    ]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    cells: dict[str, list[dict[str, float]]] = {}
    for name in given.datasets:
        rows = read_dataset(name, given.data, base, given.work)
        for had, added in SIZES[name]:
            found = [measure(rows, had=had, added=added, seed=seed) for seed in range(given.seeds)]
            cells[f"{name} {had}+{added}"] = found
            lines.append(line_of(name, found, had, added))
            print(lines[-1], flush=True)
    about = (
        f"Test accuracy in percent, {given.seeds} seeds, frozen features of revision {base.revision[:12]}; "
        "in brackets the difference to random rows, its standard error, and how many seeds are above zero."
    )
    record = {**begun, "base": base.revision, "cells": cells}
    page = f"# Active choice, {begun['when'][:10]}\n\n{about}\n\n" + "\n".join(lines)
    write_record(given.results, "active-choice", record, page)
    print("\n".join([about, *lines]))


if __name__ == "__main__":
    main()
