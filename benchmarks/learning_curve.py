"""How good the forecast of `gptailor curve` is: from a fifth of the rows to all, against what came true.

For each data set and seed the rows are shuffled; up to 2,000 (at most a quarter) are held out, the rest are
all the rows there are. The forecast sees some of them and their scores on the held-out rows, and names the
score with all. Then all are fitted and scored on the same held-out rows. `--share 0.1 0.2 0.5` asks from
other shares. The sealed test set plays no part.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from quality_data import DATASETS, Row, read_dicts, read_lines, write_rows
from record import RESULTS, start_record, write_record

from gptailor.evaluate.learning_curve import forecast, nested_order
from gptailor.models.load import load_classifier
from gptailor.pipeline.curve import Features, Splits, best_strength, measure
from gptailor.pipeline.fit import open_workshop
from gptailor.pipeline.frozen import features_of, features_of_names
from gptailor.pipeline.labels import answers_of
from gptailor.pipeline.place import Listener
from gptailor.pipeline.prepare import prepare
from gptailor.pipeline.workshop import Workshop
from gptailor.recipe import build_recipe

HERE = Path(__file__).resolve().parent
DATA = HERE.parent.parent / "shared" / "data"
FIVE = ("ag_news", "sst2", "banking77", "sms_spam", "emotion")
MOST_ROWS = 9000  # read of a set
MOST_HELD_OUT = 2000
TESTED = 40  # the sealed part has to hold something
WIDEST = 0.06
HEAD = (
    "| set | seed | rows | all rows | now | forecast | width | came true | inside |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


@dataclass(frozen=True)
class Line:
    """One forecast and what came true, on the same held-out rows."""

    dataset: str
    seed: int
    rows: int
    all_rows: int
    held_out: int
    now: float
    value: float
    low: float
    high: float
    truth: float
    seconds: float

    @property
    def inside(self) -> bool:
        return self.low <= self.truth <= self.high

    @property
    def width(self) -> float:
        return self.high - self.low


def read_sms_spam(folder: Path) -> tuple[list[Row], list[Row]]:
    rows = [line.split("\t", 1) for line in read_lines(folder / "sms.tsv")]
    return [(text, label) for label, text in rows], []


def read_disaster(folder: Path) -> tuple[list[Row], list[Row]]:
    rows = read_dicts(folder.parent / "messy" / "disaster_tweets.csv")
    return [(row["text"], row["target"]) for row in rows], []


def read_text_emotion(folder: Path) -> tuple[list[Row], list[Row]]:
    rows = read_dicts(folder.parent / "messy" / "text_emotion.csv")
    return [(row["content"], row["sentiment"]) for row in rows], []


READERS: dict[str, Callable[[Path], tuple[list[Row], list[Row]]]] = {
    **DATASETS,
    "sms_spam": read_sms_spam,
    "disaster_tweets": read_disaster,
    "text_emotion": read_text_emotion,
}


def open_shop(rows: Sequence[Row], base: str, seed: int, folder: Path) -> Workshop:
    """Cleaned and tokenized rows: what is held out is the validation part."""
    shuffled = list(rows)
    random.Random(seed).shuffle(shuffled)
    shuffled = shuffled[:MOST_ROWS]
    held_out = min(MOST_HELD_OUT, len(shuffled) // 4)
    first = TESTED + held_out
    cuts = {"test": (0, TESTED), "validation": (TESTED, first), "train": (first, None)}
    files = {}
    for part, (start, end) in cuts.items():
        files[part] = str(folder / f"{part}.jsonl")
        write_rows(Path(files[part]), shuffled[start:end])
    recipe = build_recipe(
        {
            "data": {**files, "text": "text", "label": "label", "max_tokens": 128},
            "task": "classification",
            "base": base,
            "seed": seed,
        }
    )
    return open_workshop(recipe, prepare(recipe), folder, Listener())


def forecasts(
    name: str, shop: Workshop, shares: Sequence[float], *, say: Callable[[str], None]
) -> list[Line]:
    """A line for each share of the training rows."""
    seed = shop.recipe.seed
    model = load_classifier(
        shop.base, shop.tokenizer, label_names=shop.label_names, seed=seed, kind=shop.kind.form.kind
    )
    rows = [*shop.tokens.rows["train"], *shop.tokens.rows["validation"]]
    answers = answers_of(rows)
    everything, held_out = len(shop.tokens.rows["train"]), len(shop.tokens.rows["validation"])
    outside = np.arange(everything, len(rows))
    features = Features(features_of(shop, model, rows), features_of_names(shop, model))
    order = nested_order(answers[:everything], np.random.default_rng(seed))

    def split(size: int) -> Splits:
        return Splits(rows, np.arange(len(rows)), answers, [(order[:size], outside)], held_out)

    truth = float(best_strength(shop, split(everything), features)[1].mean())
    lines = []
    for share in shares:
        began = time.perf_counter()
        points = measure(shop, split(round(share * everything)), features)
        (found,) = forecast(points, [everything], seed=seed)
        now, size = float(points[-1].scores.mean()), points[-1].rows
        seconds = round(time.perf_counter() - began, 1)
        measured = (now, found.value, found.low, found.high, truth, seconds)
        line = Line(name, seed, size, everything, held_out, *measured)
        say(row_text(line))
        lines.append(line)
    return lines


def row_text(line: Line) -> str:
    """A row of the Markdown table, in percent."""
    now, value, low, high, truth = (
        f"{100 * v:.1f}" for v in (line.now, line.value, line.low, line.high, line.truth)
    )
    return (
        f"| {line.dataset} | {line.seed} | {line.rows:,} | {line.all_rows:,} | {now} | "
        f"{value} ({low} to {high}) | {100 * line.width:.1f} | {truth} | {'yes' if line.inside else 'no'} |"
    )


def bars(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """What must be reached, from a fifth of the rows of the five sets with seed 0; empty without them."""
    fifths = [one for one in lines if abs(one.rows / one.all_rows - 0.2) < 0.01]
    five = [one for one in fifths if one.dataset in FIVE and one.seed == 0]
    if len(five) < len(FIVE):
        return []
    error = np.mean([abs(one.value - one.truth) for one in five])
    stays = np.mean([abs(one.now - one.truth) for one in five])
    widest = max(one.width for one in five)
    inside = sum(one.inside for one in five)
    return [
        {
            "bar": "inside its interval on at least 4 of 5",
            "value": f"{inside} of {len(five)}",
            "holds": bool(inside >= 4),
        },
        {
            "bar": "no interval wider than 6 points",
            "value": f"{100 * widest:.1f}; {sum(one.width <= WIDEST for one in five)} of {len(five)} within",
            "holds": bool(widest <= WIDEST),
        },
        {
            "bar": "closer than the last value (mean absolute error, points)",
            "value": f"{100 * error:.2f} against {100 * stays:.2f}",
            "holds": bool(error < stays),
        },
    ]


def summary(lines: Sequence[Line]) -> str:
    """How all forecasts did, those that no bar is about included."""
    inside = np.mean([one.inside for one in lines])
    width = 100 * np.mean([one.width for one in lines])
    error = 100 * np.mean([abs(one.value - one.truth) for one in lines])
    stays = 100 * np.mean([abs(one.now - one.truth) for one in lines])
    return (
        f"All {len(lines)} forecasts: {inside:.0%} inside their 95 % interval, {width:.1f} points wide on "
        f"average; mean absolute error {error:.2f} points, of the last value {stays:.2f}."
    )


def results_text(found: dict[str, Any], lines: Sequence[Line]) -> str:
    told = [
        f"# Forecasts of the learning curve, {found['when'][:10]}",
        f"Base {found['base']}, heads on frozen features. Accuracy in percent on the same held-out rows.",
        "\n".join([HEAD, *map(row_text, lines)]),
        summary(lines),
        "\n".join(
            f"- {bar['bar']}: {bar['value']}: {'holds' if bar['holds'] else 'FAILS'}" for bar in found["bars"]
        ),
    ]
    return "\n\n".join(told)


def main() -> None:
    """Measures, prints the table and the bars, and writes both, dated."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the data sets")
    parser.add_argument("--base", default="starter", help="starter, a folder, or a name of the hub")
    parser.add_argument("--datasets", nargs="+", choices=READERS, default=list(FIVE))
    parser.add_argument("--share", nargs="+", type=float, default=[0.2], help="of the rows that are seen")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--work", type=Path, default=HERE / "work", help="folder of the features' cache")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the two files")
    wanted = parser.parse_args()
    os.environ.setdefault("GPTAILOR_CACHE", str(wanted.work / "cache"))
    begun = start_record()
    lines: list[Line] = []
    with contextlib.suppress(KeyboardInterrupt):  # what was measured so far is told
        for name in wanted.datasets:
            train, test = READERS[name](wanted.data / name)
            rows = list(dict.fromkeys([*train, *(test if name != "ag_news" else [])]))
            for seed in wanted.seeds:
                with tempfile.TemporaryDirectory() as folder:
                    shop = open_shop(rows, wanted.base, seed, Path(folder))
                    lines += forecasts(name, shop, wanted.share, say=partial(print, file=sys.stderr))
    found = {
        **begun,
        "base": wanted.base,
        "lines": [asdict(line) for line in lines],
        "bars": bars(lines),
    }
    text = results_text(found, lines)
    write_record(wanted.results, "learning-curve", found, text)
    print(text)


if __name__ == "__main__":
    main()
