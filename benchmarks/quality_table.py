"""From the cells of quality.py to means, intervals, tables and bars. Nothing here touches a model."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from gptailor.evaluate.metrics import as_json, bootstrap_mean

ROWS = ("200", "1000", "all")
CHOSEN_FROM = ("frozen", "lora", "full")  # what `best` is chosen from: scratch has no pretraining
APPROACHES = (*CHOSEN_FROM, "scratch")
MINILM = ("minilm", "minilm_names")  # the second is taught the labels' names, as the approaches are
PEERS = ("tfidf", *MINILM)
COLUMNS = ("tfidf", "scratch", *CHOSEN_FROM, "best", *MINILM)
# Who is compared with whom: scratch with one fit of the same length, which has the same budget.
AGAINST = {"tfidf": "best", "minilm": "best", "minilm_names": "best", "scratch": "full"}
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Cell:
    """How one approach or peer does on one sample: which test rows it answers rightly.

    `right` is text, so that a record can hold every cell, and everybody can compute the intervals again: a
    bit for each test row, packed as `pack` does.
    """

    dataset: str
    rows: str
    seed: int
    what: str
    right: str
    macro_f1: float
    seconds: float
    validation_macro_f1: float | None = None
    note: str = ""
    when: str = ""
    code: str = ""  # digest of the sources
    refitted: bool = True  # on validation rows, too


@dataclass(frozen=True)
class Line:
    """One data set at one number of rows. Scores are means over the seeds."""

    dataset: str
    rows: str
    train_rows: int
    test_rows: int
    columns: dict[str, dict[str, Any]] = field(default_factory=dict)
    differences: dict[str, dict[str, Any]] = field(default_factory=dict)  # minus that column
    chosen: dict[str, str] = field(default_factory=dict)  # seed: approach
    not_refitted: dict[str, int] = field(default_factory=dict)  # approach: in how many seeds
    unseen: dict[str, int] = field(default_factory=dict)  # seed: test classes without a training row


def pack(flags: Sequence[bool]) -> str:
    """A bit for each flag, in order, the first one highest in its byte; the bytes in base64."""
    return base64.b64encode(np.packbits(np.array(flags, bool)).tobytes()).decode("ascii")


def unpack(text: str, count: int) -> Any:
    """(count,) ones and zeros from `pack`'s text."""
    return np.unpackbits(np.frombuffer(base64.b64decode(text), np.uint8), count=count).astype(float)


def macro_f1(answers: Sequence[Any], predictions: Sequence[Any]) -> float:
    """Mean F1 over the classes that occur in answers or predictions; None is no class, and wrong."""
    right: dict[Any, int] = {}
    seen: dict[Any, int] = {}
    for answer, prediction in zip(answers, predictions, strict=True):
        right[answer] = right.get(answer, 0) + (answer == prediction)
        for label in (answer, prediction):
            if label is not None:
                seen[label] = seen.get(label, 0) + 1
    return sum(2 * right.get(label, 0) / count for label, count in seen.items()) / len(seen)


def judged_answers(predictions: Sequence[str | None], answers: Sequence[str]) -> dict[str, Any]:
    """What a cell keeps of its predictions, one for each test row, None where not asked."""
    right = [guess == answer for guess, answer in zip(predictions, answers, strict=True)]
    return {"right": pack(right), "macro_f1": round(macro_f1(answers, predictions), 6)}


def choose_best(cells: Mapping[str, Cell], wanted: Sequence[str]) -> Cell | None:
    """The best on validation of those that were wanted; None while one is missing. Ties: the cheaper one."""
    names = [name for name in CHOSEN_FROM if name in wanted]
    if not names or any(name not in cells for name in names):
        return None
    return max((cells[name] for name in names), key=lambda cell: cell.validation_macro_f1 or 0.0)


def make_line(
    dataset: str,
    rows: str,
    by_seed: Mapping[int, Mapping[str, Cell]],
    *,
    train_rows: int,
    test_rows: int,
) -> Line:
    """Means over the seeds. Intervals are of the test rows: per row the mean over the seeds, resampled."""
    line = Line(dataset, rows, train_rows, test_rows)
    right: dict[str, dict[int, Any]] = {
        column: {
            seed: unpack(cells[column].right, test_rows) for seed, cells in by_seed.items() if column in cells
        }
        for column in COLUMNS
    }
    for column in COLUMNS:
        cells = [cells[column] for cells in by_seed.values() if column in cells]
        if cells:
            line.columns[column] = {
                "accuracy": as_json(bootstrap_mean(np.mean(list(right[column].values()), axis=0))),
                "macro_f1": round(float(np.mean([cell.macro_f1 for cell in cells])), 6),
                "seeds": len(cells),
                "seconds": round(float(np.mean([cell.seconds for cell in cells])), 1),
            }
    for other, ours in AGAINST.items():
        both = [right[ours][seed] - right[other][seed] for seed in right[ours] if seed in right[other]]
        if both:
            found = as_json(bootstrap_mean(np.mean(both, axis=0)))
            line.differences[other] = {**found, "seeds": len(both)}
    for name in APPROACHES:
        found = [cells[name] for cells in by_seed.values() if name in cells]
        if missed := sum(not cell.refitted for cell in found):
            line.not_refitted[name] = missed
    line.chosen.update({str(seed): cells["best"].what for seed, cells in by_seed.items() if "best" in cells})
    return line


@dataclass(frozen=True)
class Bar:
    """What `best` must reach against a column, on the lines named (data set, rows).

    `clear`: the interval of the difference is above zero. `mean`: the mean difference over the lines is
    `least` or more; where that is zero, above it.
    """

    against: str
    lines: tuple[tuple[str, str], ...]
    kind: Literal["clear", "mean"]
    least: float = 0.0

    @property
    def says(self) -> str:
        where = ", ".join(f"{dataset} {rows}" for dataset, rows in self.lines)
        if self.kind == "clear":
            return f"ahead of {self.against}, interval above zero: {where}"
        if self.least < 0:
            return f"within {-100 * self.least:g} points of {self.against} on average: {where}"
        if self.least > 0:
            return f"ahead of {self.against} by {100 * self.least:g} points or more: {where}"
        return f"ahead of {self.against}: {where}"


MAIN = ("ag_news", "sst2", "banking77")
DATA_NOTES = {
    "ag_news": "ag_news: 10,000 of its 120,000 training rows, by their true labels; its 7,600 test rows.",
    "sst2": "sst2: the 6,920 sentences of its training file, and the 872 labelled ones of its dev file.",
}
CLEAR = (("ag_news", "200"), *((name, rows) for name in MAIN for rows in ("1000", "all")))
BARS: tuple[Bar, ...] = (
    *(Bar("tfidf", (line,), "clear") for line in CLEAR),
    Bar("tfidf", (("ag_news", "200"),), "mean", 0.05),
    *(Bar("minilm", tuple((name, rows) for name in MAIN), "mean", -0.03) for rows in ("200", "1000")),
    *(Bar("minilm", ((name, "all"),), "mean") for name in MAIN),
)


def judge(bar: Bar, lines: Sequence[Line], *, seeds: int = len(SEEDS)) -> dict[str, Any]:
    """Whether a bar holds; None where a difference was not measured on so many seeds."""
    found = {(line.dataset, line.rows): line.differences.get(bar.against) for line in lines}
    needed = [found.get(place) for place in bar.lines]
    measured = [difference for difference in needed if difference and difference["seeds"] >= seeds]
    if len(measured) < len(needed):
        return {"bar": bar.says, "holds": None, "difference": None}
    mean = float(np.mean([difference["value"] for difference in measured]))
    if bar.kind == "clear":
        holds = all(difference["low"] > 0 for difference in measured)
    else:
        holds = mean >= bar.least if bar.least else mean > 0
    return {"bar": bar.says, "holds": holds, "difference": round(mean, 6)}


# Texts.


def accuracy_table(lines: Sequence[Line]) -> str:
    """Markdown: accuracy with its interval."""
    rows = [
        f"| data set | rows | {' | '.join(COLUMNS)} | best is |",
        "|---|---:|" + "---|" * (len(COLUMNS) + 1),
    ]
    for line in lines:
        cells = [line.columns.get(column) for column in COLUMNS]
        words = [
            "–"
            if cell is None
            else "{value:.3f} ({low:.3f} to {high:.3f})".format(**cell["accuracy"]) + _few(cell["seeds"])
            for cell in cells
        ]
        counts = {name: list(line.chosen.values()).count(name) for name in CHOSEN_FROM}
        best = ", ".join(f"{name} {count}" for name, count in counts.items() if count) or "–"
        rows.append(f"| {line.dataset} | {_rows(line)} | {' | '.join(words)} | {best} |")
    return "\n".join(rows)


def _few(seeds: int) -> str:
    """What is said where not all seeds were measured."""
    return "" if seeds >= len(SEEDS) else f", {seeds} seed{'s' if seeds > 1 else ''}"


def _rows(line: Line) -> str:
    return f"all ({line.train_rows:,})" if line.rows == "all" else line.rows


def difference_table(lines: Sequence[Line]) -> str:
    """Markdown: differences in points, with their intervals."""
    rows = [
        f"| in points | rows | {' | '.join(f'{ours} minus {other}' for other, ours in AGAINST.items())} |",
        "|---|---:|" + "---|" * len(AGAINST),
    ]
    for line in lines:
        words = []
        for other in AGAINST:
            found = line.differences.get(other)
            told = "–"
            if found is not None:
                points = {key: 100 * found[key] for key in ("value", "low", "high")}
                told = "{value:+.1f} ({low:+.1f} to {high:+.1f})".format(**points) + _few(found["seeds"])
            words.append(told)
        rows.append(f"| {line.dataset} | {_rows(line)} | {' | '.join(words)} |")
    return "\n".join(rows)


def bars_text(bars: Sequence[Mapping[str, Any]]) -> str:
    """A list of what holds, what doesn't, and what was not measured."""
    words = {True: "holds", False: "does not hold", None: "not measured"}
    return "\n".join(
        f"- {words[bar['holds']]}: {bar['bar']}"
        + ("" if bar["difference"] is None else f" ({100 * bar['difference']:+.1f} points)")
        for bar in bars
    )


def results_text(found: Mapping[str, Any], lines: Sequence[Line]) -> str:
    """The Markdown page."""
    host, base = found["machine"], found["base"]
    versions = ", ".join(f"{package} {version}" for package, version in host["versions"].items())
    unseen = "; ".join(
        f"{line.dataset} at {line.rows} rows {', '.join(map(str, line.unseen.values()))}"
        for line in lines
        if line.unseen
    )
    settings = ", ".join(found["settings"]) or "defaults"
    notes = [
        f"Base {base['name']} ({base['revision'][:12]}), settings: {settings}.",
        "N rows include validation (15 %). tfidf, minilm and frozen are fitted on training and validation "
        "together in the end, and so are the others where stopping early left time for it.",
        "The labels' names teach the approaches and tfidf, as one more text each (data.teach_names); minilm "
        "not, since people don't do that with embeddings; minilm_names is taught them, too.",
        f"`best` is the best of {', '.join(found['best_of']) or 'none'} on validation, for each seed.",
        "`scratch` has one fit, and is compared with `full`, which has one, too. Intervals are over test "
        "rows; another sample of the training rows moves the small ones by a point or two more.",
        *(DATA_NOTES[name] for name in dict.fromkeys(line.dataset for line in lines) if name in DATA_NOTES),
        "800 test rows of each set were looked at, now and then, while the starter was made.",
    ]
    alone = [
        f"{name} on {line.dataset}, {_rows(line)} ({count} of {line.columns[name]['seeds']} seeds)"
        for line in lines
        for name, count in line.not_refitted.items()
    ]
    if alone:
        notes.append(f"Not fitted on the validation rows: {'; '.join(alone)}.")
    days, code = found["measured"]["days"], found["measured"]["code"]
    if days:
        notes.append(f"Cells were measured from {days[0]} to {days[-1]}, with code {', '.join(code)}.")
    if unseen:
        notes.append(
            "Classes of the test that a sample has no row of count as wrong for everybody. How many, by "
            f"seed: {unseen}."
        )
    return "\n\n".join(
        [
            f"# Quality, {found['when'][:10]}",
            "Accuracy on the public test file: the mean of the seeds, with a 95 % interval over test rows.",
            accuracy_table(lines),
            difference_table(lines),
            bars_text(found["bars"]),
            " ".join(notes),
            f"{host['cores']} cores of {host['processor']}, {host['memory_gb']} GB, {host['device']}, "
            f"{host['threads']} threads. Python {host['python']}, {versions}. Written by "
            "`python benchmarks/quality.py`.",
        ]
    )
