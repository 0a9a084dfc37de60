"""Whether tuning pays: the winner against the default on public test files, and how long a search takes.

    python benchmarks/tuning.py [--trials 25] [--rows 1000] [--seeds 0 1 2] [--from RECORD]

Tunes samples of the training rows as a person would. The default is trial 0, and both answer the test rows
at one opening; where no trial won, the difference is 0. A search that was stopped goes on while the code is
the same. The data are not part of this project: see --data. Prints one line per search and writes
benchmarks/results/DATE-tuning.json, -part while searches are missing; --from takes the searches of such a
record as done, if they were made by the same code.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from quality_data import DATASETS, MINIMUM_CLASS_SIZE, Dataset, Split, digest, make_split
from record import RESULTS, read_record, sources_digest, start_record, write_record

from gptailor.models.names import resolve_base
from gptailor.pipeline.place import Listener
from gptailor.recipe import build_recipe
from gptailor.search.tune import tune_recipe

HERE = Path(__file__).resolve().parent
SETS = ("ag_news", "sst2", "banking77", "emotion")
SEEDS, TRIALS, ROWS = (0, 1, 2), 25, "1000"
TIMED, LONGEST_MINUTES = "ag_news", 15  # whose searches may take how long
LOWEST_POINTS = -1.0  # how far a set's mean may lie below 0


def name_of(split: Split, wanted: argparse.Namespace) -> str:
    """The name of a search, with a hash of everything that it depends on."""
    about = [split.key, resolve_base(wanted.base).revision, wanted.trials, sources_digest()]
    return f"{split.dataset.name}-{split.rows}-{split.seed}-{digest(about)[:8]}"


def search(split: Split, name: str, wanted: argparse.Namespace) -> dict[str, Any]:
    """One search; its test difference in points of the metric."""
    # A cache of its own, or features might be there already.
    os.environ["GPTAILOR_CACHE"] = str(wanted.work / "tuning-cache" / name)
    recipe = build_recipe(
        {
            "base": wanted.base,
            "seed": split.seed,
            "data": {
                "train": str(split.train),
                "test": str(split.test),
                "text": "text",
                "label": "label",
                "clean": {"minimum_class_size": MINIMUM_CLASS_SIZE},
            },
            "tune": {"trials": wanted.trials},
            "out": str(wanted.work / "tuning" / name),
        }
    )
    result = tune_recipe(recipe, listener=Listener(say=print if wanted.verbose else lambda _: None)).result
    return {
        "search": name,
        "dataset": split.dataset.name,
        "seed": split.seed,
        "minutes": round(result["seconds"] / 60, 2),
        "points": round(100 * result["test"]["difference"]["value"], 2),
        "low": round(100 * result["test"]["difference"]["low"], 2),
        "high": round(100 * result["test"]["difference"]["high"], 2),
        "trials": len(result["trials"]),
        "won": any(one["won"] for one in result["finalists"]),
        "winner": result["winner"],
        "says": result["says"],
    }


def judge(found: Sequence[dict[str, Any]], wanted: argparse.Namespace) -> dict[str, Any]:
    """The means of what is done by now; the bars only where every search is."""
    points = {name: [line["points"] for line in found if line["dataset"] == name] for name in wanted.datasets}
    means = {name: float(np.mean(values)) for name, values in points.items() if values}
    mean = float(np.mean([line["points"] for line in found]))
    slowest = max([line["minutes"] for line in found if line["dataset"] == TIMED], default=0.0)
    as_set = (set(wanted.datasets), wanted.trials, wanted.rows) == (set(SETS), TRIALS, ROWS)
    whole = as_set and len(found) == len(SETS) * len(SEEDS)
    if not whole:
        verdict = f"no bar: it takes {', '.join(SETS)}, {len(SEEDS)} samples of {ROWS} rows, {TRIALS} trials"
    else:
        holds = mean > 0 and min(means.values()) >= LOWEST_POINTS and slowest < LONGEST_MINUTES
        verdict = f"the bars {'hold' if holds else 'do not hold'}"
    return {"means": means, "mean": mean, "slowest": slowest, "whole": whole, "verdict": verdict}


def main() -> None:
    """Searches every sample, prints and writes what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--datasets", nargs="+", choices=DATASETS, default=list(SETS))
    parser.add_argument("--rows", default=ROWS)
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--trials", type=int, default=TRIALS)
    parser.add_argument("--base", default="starter")
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared" / "data")
    parser.add_argument("--work", type=Path, default=HERE / "work")
    records = "a .json of results/: its searches are taken as done; may be repeated"
    parser.add_argument("--from", dest="records", action="append", type=Path, default=[], help=records)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON file")
    parser.add_argument("--verbose", action="store_true", help="tell every trial")
    wanted = parser.parse_args()
    begun, found = start_record(), []
    done = {line["search"]: line for path in wanted.records for line in read_record(path, "searches")}
    for dataset_name in wanted.datasets:
        dataset = Dataset(dataset_name, *DATASETS[dataset_name](wanted.data / dataset_name))
        for seed in wanted.seeds:
            split = make_split(dataset, wanted.rows, seed, work=wanted.work)
            name = name_of(split, wanted)
            line = done.get(name) or search(split, name, wanted)
            print(f"{name}: {line['points']:+.2f} points, {line['minutes']} minutes. {line['says']}")
            found.append(line)
            told = judge(found, wanted)
            told = {**begun, **told, "base": wanted.base, "code": sources_digest(), "searches": found}
            write_record(wanted.results, "tuning" if told["whole"] else "tuning-part", told)
    for dataset_name, points in told["means"].items():
        print(f"{dataset_name}: {points:+.2f} points")
    won = f"{sum(line['won'] for line in found)} of {len(found)} won"
    slowest = f"slowest of {TIMED} {told['slowest'] or '(not searched)'} minutes"
    print(f"mean {told['mean']:+.2f} points, {won}, {slowest}: {told['verdict']}")


if __name__ == "__main__":
    main()
