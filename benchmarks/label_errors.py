"""How well wrong labels are found, and what mending them is worth.

    python benchmarks/label_errors.py [--base starter] [--injected]

AG News as 10,000 rows that people labelled with mistakes (noisyag_val10000.csv): the column `label` is ranked
by `gptailor suspects`, and the truth, `gt`, only scores the ranking. Then the most suspect 1,000 rows are
corrected with the truth, as a person would with `--fix`, and the fit says what that did on the test file.
--injected ranks other sets, too, whose labels are changed at random: any class for any other (even), the
classes that are confused anyway (confused), or one way only for half of the classes (one-way). The data are
not part of this project: see --data. Prints the tables and which bars hold, and writes the files
DATE-label-errors of benchmarks/results.
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from quality_data import DATASETS, Row, read_dicts, write_rows
from record import RESULTS, start_record, write_record

import gptailor
from gptailor.evaluate.baselines import tfidf_probabilities
from gptailor.models.names import resolve_base
from gptailor.pipeline.out_of_fold import rank_suspects
from gptailor.pipeline.suspects import HEADER, Suspect
from gptailor.recipe import Recipe, build_recipe
from gptailor.types import FloatArray, IntArray

HERE = Path(__file__).resolve().parent
DATA = HERE.parent.parent / "shared" / "data"
NAMES = ("World", "Sports", "Business", "Sci/Tech")
LOOKED_AT = (500, 1000)
BARS = {"of the first 500": 0.82, "of the first 1,000": 0.72, "accuracy gained": 0.02}
INJECTED = {"emotion": 4000, "sst2": 4000, "banking77": 3000}  # rows at most


def recipe_of(train: Path, base: str, **values: Any) -> Recipe:
    """A recipe of rows with text and label, on frozen features."""
    data = {"train": str(train), "text": "text", "label": "label", **values.pop("data", {})}
    evaluate = {"baselines": "none"}
    return build_recipe({"base": base, "data": data, "approach": "frozen", "evaluate": evaluate, **values})


def rank(rows: Sequence[Row], folder: Path, base: str) -> list[Suspect]:
    """All rows, most suspect first; row n of the file is rows[n - 1]."""
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / "rows.jsonl", rows)
    out = folder / "suspects.csv"
    out.unlink(missing_ok=True)
    return rank_suspects(recipe_of(folder / "rows.jsonl", base), top=len(rows), out=out, say=tell)


def tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def found(ranked: Sequence[Suspect], truth: Sequence[str], first: int) -> float:
    """The share of truly wrong labels among the first rows."""
    chosen = ranked[:first]
    return sum(truth[one.row - 1] != one.label for one in chosen) / len(chosen)


def measure_people(data: Path, base: str, work: Path) -> dict[str, float]:
    """The real set: both shares, and the accuracy that correcting brings."""
    lines = read_dicts(data / "ag_news" / "noisyag_val10000.csv")
    truth = [NAMES[int(line["gt"])] for line in lines]
    folder = work / "people"
    ranked = rank([(line["text"], NAMES[int(line["label"])]) for line in lines], folder, base)
    values = {f"of the first {first:,}": found(ranked, truth, first) for first in LOOKED_AT}
    mistaken = [one for one in ranked[: LOOKED_AT[-1]] if truth[one.row - 1] != one.label]
    values["suggestion right"] = sum(one.suggestion == truth[one.row - 1] for one in mistaken) / len(mistaken)
    with (folder / "corrected.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(HEADER)
        for one in ranked[: LOOKED_AT[-1]]:
            correction = truth[one.row - 1]
            writer.writerow([one.source, one.row, "", one.label, "", correction, "", one.text])
    write_rows(folder / "test.jsonl", DATASETS["ag_news"](data / "ag_news")[1])
    shutil.rmtree(folder / "run", ignore_errors=True)
    files = {"test": str(folder / "test.jsonl"), "fix": str(folder / "corrected.csv")}
    recipe = recipe_of(folder / "rows.jsonl", base, data=files, out=str(folder / "run"))
    fixes = gptailor.fit(recipe).report["fixes"]
    before, after = (fixes[name]["accuracy"]["value"] for name in ("without", "with"))
    tell(fixes["says"])
    return {**values, "accuracy before": before, "accuracy after": after, "accuracy gained": after - before}


def measure_injected(name: str, data: Path, base: str, work: Path) -> list[dict[str, Any]]:
    """A set with labels changed: precision at a quarter and at half of the wrong ones."""
    pool = DATASETS[name](data / name)[0]
    places = np.sort(np.random.default_rng(0).permutation(len(pool))[: INJECTED[name]])
    texts = [pool[place][0] for place in places.tolist()]
    truth = [pool[place][1] for place in places.tolist()]
    names = sorted(set(truth))
    labels = np.array([names.index(label) for label in truth])
    confused = tfidf_probabilities(texts, labels, num_labels=len(names), strength=3.0)
    confused[np.arange(len(labels)), labels] = 0
    towards = np.array([confused[labels == place].mean(axis=0) for place in range(len(names))]) + 1e-9
    np.fill_diagonal(towards, 0)
    lines = []
    for kind, change in NOISES.items():
        given = change(labels, towards, np.random.default_rng(1))
        noisy = [names[place] for place in given.tolist()]
        ranked = rank(list(zip(texts, noisy, strict=True)), work / f"{name}-{kind}", base)
        wrong = int((given != labels).sum())
        shares = {f"at {share}": found(ranked, truth, round(wrong * share)) for share in (0.25, 0.5)}
        lines.append({"set": name, "noise": kind, "rows": len(labels), "wrong": wrong, **shares})
    return lines


def even(labels: IntArray, towards: FloatArray, random: np.random.Generator) -> IntArray:
    """20 % of the rows get any other class."""
    moved = random.random(len(labels)) < 0.2
    others = random.integers(1, len(towards), len(labels))
    return np.where(moved, (labels + others) % len(towards), labels)


def confused(labels: IntArray, towards: FloatArray, random: np.random.Generator) -> IntArray:
    """20 % of the rows get a class by how much theirs is confused with it."""
    shares = towards / towards.sum(axis=1, keepdims=True)
    given = labels.copy()
    for row in np.flatnonzero(random.random(len(labels)) < 0.2).tolist():
        given[row] = random.choice(len(shares), p=shares[labels[row]])
    return given


def one_way(labels: IntArray, towards: FloatArray, random: np.random.Generator) -> IntArray:
    """Half of the classes lose 35 % of their rows to the class they are most confused with."""
    half = random.permutation(len(towards))[: (len(towards) + 1) // 2]
    moved = (random.random(len(labels)) < 0.35) & np.isin(labels, half)
    return np.where(moved, towards.argmax(axis=1)[labels], labels)


NOISES: dict[str, Callable[[IntArray, FloatArray, np.random.Generator], IntArray]] = {
    "even": even,
    "confused": confused,
    "one-way": one_way,
}


def results_text(results: dict[str, Any]) -> str:
    """The tables in Markdown."""
    people = results["people"]
    lines = [f"# Wrong labels found, {results['when'][:10]}", "", f"Base {results['base']}.", ""]
    lines += ["| AG News, 10,000 labels of people | reached | bar | |", "|---|---|---|---|"]
    for name, bar in BARS.items():
        holds = "holds" if people[name] >= bar else "missed"
        lines.append(f"| {name} | {100 * people[name]:.1f} % | {100 * bar:.0f} % | {holds} |")
    before, after = (100 * people[f"accuracy {when}"] for when in ("before", "after"))
    right = 100 * people["suggestion right"]
    lines += ["", f"Of the wrong ones among the first 1,000 the suggestion is right for {right:.1f} %."]
    lines += ["", f"Test accuracy {before:.1f} % before and {after:.1f} % after 1,000 corrections."]
    if results["injected"]:
        lines += ["", "Truly wrong among as many rows as a quarter, and a half, of the wrong labels:", ""]
        lines += ["| set | noise | rows | wrong | quarter | half |", "|---|---|---|---|---|---|"]
        lines += [
            f"| {one['set']} | {one['noise']} | {one['rows']:,} | {one['wrong']:,} "
            f"| {100 * one['at 0.25']:.0f} % | {100 * one['at 0.5']:.0f} % |"
            for one in results["injected"]
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures, prints the tables and the bars, and writes them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the data sets")
    parser.add_argument("--base", default="starter", help="starter, a folder, or a name of the hub")
    parser.add_argument("--injected", action="store_true", help="other sets, too, with labels changed")
    parser.add_argument("--work", type=Path, default=HERE / "work" / "label_errors", help="files and run")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the two files")
    wanted = parser.parse_args()
    os.environ["GPTAILOR_CACHE"] = str(wanted.work / "cache")
    base = resolve_base(wanted.base)
    results: dict[str, Any] = {
        **start_record(),
        "base": f"{base.name} ({base.revision[:12]})",
        "people": measure_people(wanted.data, wanted.base, wanted.work),
        "injected": [],
    }
    for name in INJECTED if wanted.injected else ():
        results["injected"] += measure_injected(name, wanted.data, wanted.base, wanted.work)
    told = results_text(results)
    write_record(wanted.results, "label-errors", results, told)
    print(told)


if __name__ == "__main__":
    main()
