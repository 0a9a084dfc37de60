"""What the page and the model card both say: scores, the ladder, the verdict, and numbers in words.

Everything here reads `report.json` and the run's details leniently: a report is written at the end
of a long run, so a missing or odd value leaves a gap and never an error.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gptailor.report.words import (
    ANSWERS,
    APPROACHES,
    BASELINES,
    METRICS,
    REASONS,
    TASKS,
    TEXT,
    Baseline,
    Metric,
    Task,
    Tone,
)


@dataclass(frozen=True, slots=True)
class Measured:
    """A score, with its interval where one was computed."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Rung:
    """One rung of the ladder: the model or a baseline. `measured` is None where it was skipped."""

    key: str
    title: str
    measured: Measured | None
    note: str = ""
    own: bool = False
    best_baseline: bool = False


# Embeddings, overrides and isolates can make a line read differently from what it holds.
_HIDDEN = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufff9-\ufffb]")
_UNWRITABLE = re.compile(r"[\ud800-\udfff]")


def visible(text: str) -> str:
    """The text with control characters and bidirectional overrides spelled out, such as `[U+202E]`."""
    text = _UNWRITABLE.sub("\ufffd", text.replace("\u2028", " ").replace("\u2029", " "))
    shown: str = _HIDDEN.sub(lambda match: f"[U+{ord(match[0]):04X}]", text)
    return shown


def clip(text: Any, length: int = 240) -> str:
    """At most `length` characters, with an ellipsis where some were left off."""
    text = str(text)
    return text if len(text) <= length else f"{text[: length - 1].rstrip()}…"


def finite(value: Any) -> float | None:
    """The value as a float, or None where it isn't a finite number."""
    if isinstance(value, bool) or value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def mapping(value: Any) -> Mapping[str, Any]:
    """The value where it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def rows_of(value: Any) -> list[Any]:
    """The value as a list where it is a sequence, else an empty one."""
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str | bytes) else []


def measured(raw: Any) -> Measured | None:
    """Reads `{"value", "low", "high"}` or a bare number."""
    if not isinstance(raw, Mapping):
        value = finite(raw)
        return None if value is None else Measured(value)
    value, low, high = (finite(raw.get(key)) for key in ("value", "low", "high"))
    if value is None:
        return None
    return Measured(value, low, high) if low is not None and high is not None else Measured(value)


def scores(raw: Any) -> Iterator[tuple[str, Metric, Measured]]:
    """The scores of one split that are single numbers, the known ones first."""
    raw = mapping(raw)
    for key in [*(k for k in METRICS if k in raw), *(k for k in raw if k not in METRICS)]:
        score = measured(raw[key]) if key in METRICS or isinstance(raw[key], Mapping) else None
        if score is not None:
            yield key, metric_of(key), score


def scores_told(one: Mapping[str, Any]) -> str:
    """The first scores of a look at the test set."""
    return ", ".join(f"{m.title} {score_text(s.value)}" for _, m, s in list(scores(one.get("scores")))[:3])


def longest_sequence(details: Mapping[str, Any]) -> float | None:
    """How many tokens the model sees at once."""
    return finite(mapping(details.get("lengths")).get("max_tokens")) or finite(details.get("block_tokens"))


def tested_on(report: Mapping[str, Any]) -> str:
    """What the test scores were measured on, as a sentence; empty where nothing was."""
    data, task = mapping(report.get("data")), task_of(report)
    rows, answers = finite(data.get("test")), finite(mapping(report.get("test")).get("answers"))
    if not rows:
        return ""
    on = counted(rows, f"test {task.one} that", f"test {task.many} that")
    if data.get("divided") is True:
        on = f"the test part of {counted(rows, task.one, task.many)}, which"
    written = f" Answers were written to {count_text(answers)} of them." if answers else ""
    known, chose = (finite(mapping(data.get("taught_before")).get(part)) for part in ("test", "validation"))
    taught = "taught the base or chose among its weights"
    if chose:
        held = counted(
            finite(data.get("validation")) or chose, f"validation {task.one}", f"validation {task.many}"
        )
        written += (
            f" Of {held}, {count_text(chose)} {taught}: what they chose, such as a threshold, is too sure."
        )
    if known:
        tested = counted(rows, f"test {task.one}", f"test {task.many}")
        return f"Measured on {tested}, of which {count_text(known)} {taught}.{written}"
    return f"Measured on {on} neither training nor the settings' choice saw.{written}"


def task_of(report: Mapping[str, Any]) -> Task:
    """How to speak of a report's task; what names none is a classification."""
    return TASKS.get(task_name(report), TEXT)


def task_name(report: Mapping[str, Any]) -> str:
    """The task, and what a row is answered with where that isn't one label."""
    task, answer = str(report.get("task") or "classification"), ANSWERS.get(str(report.get("answer")))
    return f"{task}, {answer}" if answer else task


def slices_by_column(slices: Mapping[str, Any]) -> Iterator[str]:
    """A line for each column of the person's: its slices with their scores and rows."""
    key = str(slices.get("score"))
    for name, raw in mapping(slices.get("by")).items():
        found = [(one, score) for one in map(mapping, rows_of(raw)) if (score := measured(one.get(key)))]
        if name == "length" or not found:
            continue
        told = ", ".join(
            f"{clip(str(one.get('slice', '')), 40)} {score_text(score.value)} ({count_text(one.get('rows'))})"
            for one, score in found
        )
        yield f"{metric_of(key).title} by {name} (rows): {told}"


def worst_slice_text(slices: Mapping[str, Any]) -> str:
    """The worst slice of twenty rows or more; empty where none is worse than the rest."""
    worst, metric = mapping(slices.get("worst")), metric_of(str(slices.get("score")))
    score, rest = measured(worst.get(str(slices.get("score")))), finite(worst.get("rest"))
    if score is None or rest is None:
        return ""
    between = f" ({interval_text(score)})" if interval_text(score) else ""
    rows = counted(worst.get("rows"), "row", "rows")
    named = visible(clip(f"{worst.get('by')} {str(worst.get('slice'))!r}", 80))
    return (
        f"Worst slice: {named}, {inside(metric.title)} {score_text(score.value)}{between} on {rows}; "
        f"the rest {score_text(rest)}{'; too few to judge' if finite(worst.get('p')) is None else ''}."
    )


def primary_metric(report: Mapping[str, Any]) -> str:
    """The metric that decides: the one the verdict names, else the task's first that was measured."""
    named, usual = mapping(report.get("verdict")).get("metric"), task_of(report).metrics
    test = mapping(report.get("test"))
    if isinstance(named, str) and measured(test.get(named)):
        return named
    return next((key for key in (*usual, *TEXT.metrics) if measured(test.get(key))), usual[0])


def primary(report: Mapping[str, Any]) -> Metric:
    """How the metric that decides is called and read."""
    return metric_of(primary_metric(report))


def metric_of(key: Any) -> Metric:
    """How a score is called and read, also one that nobody described."""
    return METRICS.get(key, Metric(str(key).replace("_", " ").capitalize(), ""))


def ladder(report: Mapping[str, Any], details: Mapping[str, Any]) -> list[Rung]:
    """The model and its baselines on the primary metric, the best first; skipped ones at the end."""
    metric, task = primary_metric(report), task_of(report)
    approach = str(report.get("approach", ""))
    best = mapping(report.get("verdict")).get("best_baseline")
    own = measured(mapping(report.get("test")).get(metric))
    title = f"This model, {APPROACHES.get(approach, approach)}" if approach else "This model"
    rungs = [Rung("own", title, own, own=True)] if own else []
    baselines, notes = mapping(report.get("baselines")), mapping(details.get("baseline_notes"))
    for key in [
        *(k for k in BASELINES if k in baselines or k in notes),
        *(baselines.keys() - BASELINES.keys()),
    ]:
        if key == "frozen" == approach:  # the model itself
            continue
        named = BASELINES.get(key, Baseline(str(key), str(key)))
        found = mapping(baselines.get(key))
        score = measured(found.get(metric)) or measured(mapping(found.get("test")).get(metric))
        note = str(notes.get(key) or found.get("skipped") or named.explains)
        rows = finite(found.get("rows") or found.get("documents") or found.get("n"))
        tested = finite(mapping(report.get("data")).get("test"))
        if score and rows and rows != tested:
            note = f"on {rows:,.0f} of the test {task.many}" + (f"; {note}" if note else "")
        rungs.append(Rung(str(key), named.title, score, note, best_baseline=key == best))
    sign = -1.0 if primary(report).higher_is_better else 1.0
    return sorted(rungs, key=lambda r: (r.measured is None, sign * r.measured.value if r.measured else 0.0))


def verdict_tone(report: Mapping[str, Any]) -> Tone:
    """`good` where the model is surely better, `worse` where it is surely worse, else `unclear`."""
    verdict = mapping(report.get("verdict"))
    if not verdict:
        return "none"
    if verdict.get("worth_it") is True:
        return "good"
    difference = measured(verdict.get("difference"))
    if difference is None:
        return "none"
    if verdict.get("too_few"):  # then the interval tells nothing, whichever side of zero it lies on
        return "unclear"
    gained = gain(report, difference)
    return "worse" if gained.high is not None and gained.high < 0 else "unclear"


def gain(report: Mapping[str, Any], difference: Measured) -> Measured:
    """A difference turned so that above zero is better, whichever way the metric runs."""
    if primary(report).higher_is_better:
        return difference
    low, high = (None if end is None else -end for end in (difference.high, difference.low))
    return Measured(-difference.value, low, high)


def noise_told(error: Measured, details: Mapping[str, Any]) -> str:
    """What right probabilities would show on so few rows, where the error is no more than that."""
    noise = measured(details.get("calibration_noise"))
    if noise is None or noise.high is None or error.value > noise.high:
        return ""
    return f", as right probabilities would be on so few test rows (by {share_text(noise.value)})"


def score_text(value: Any) -> str:
    """`0.712`, `23.4`, `1,204`: as many digits as the size deserves."""
    number = finite(value)
    if number is None:
        return "–"
    size = abs(number)
    text = f"{number:.3f}" if size < 10 else f"{number:.1f}" if size < 1000 else f"{number:,.0f}"
    return text.replace("-", "−")


def interval_text(score: Measured | None) -> str:
    """`0.690 to 0.734`, or nothing where there is no interval."""
    if score is None or score.low is None or score.high is None:
        return ""
    return f"{score_text(score.low)} to {score_text(score.high)}"


def count_text(value: Any) -> str:
    """`12,345`."""
    number = finite(value)
    return "–" if number is None else f"{number:,.0f}"


def counted(value: Any, one: str, many: str) -> str:
    """`1 row`, `2,460 rows`."""
    return f"{count_text(value)} {one if finite(value) == 1 else many}"


def share_text(value: Any) -> str:
    """A share of 1 in percent: `7.4 %`; never `0 %` or `100 %` for what isn't."""
    number = finite(value)
    if number is None:
        return "–"
    if 0 < number < 0.001:
        return "< 0.1\u00a0%"
    if 0.999 < number < 1:
        return "> 99.9\u00a0%"
    return f"{100 * number:.0f}\u00a0%" if number in (0, 1) else f"{100 * number:.1f}\u00a0%"


def seconds_text(value: Any) -> str:
    """`8.4 s`, `3 min 12 s`, `2 h 5 min`."""
    number = finite(value)
    if number is None:
        return "–"
    if number < 60:
        return f"{number:.1f} s" if number < 9.95 else f"{number:.0f} s"
    minutes, seconds = divmod(round(number), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"


def short_seconds(value: Any) -> str:
    """`8.4 s`, `3.2 min`, `2.1 h`, for places with little room."""
    number = finite(value)
    if number is None or number < 60:
        return seconds_text(value)
    return f"{number / 60:.1f} min" if number < 3600 else f"{number / 3600:.1f} h"


def bytes_text(value: Any) -> str:
    """`12.3 kB`, `3.2 MB`, `1.4 GB`."""
    number = finite(value)
    if number is None:
        return "–"
    unit, size = next(((u, z) for u, z in (("GB", 1e9), ("MB", 1e6)) if number >= z), ("kB", 1e3))
    return f"{number / size:,.1f} {unit}"


def reason_text(reason: Any, task: Task) -> str:
    """Why something was dropped, in the task's words."""
    return REASONS.get(str(reason), str(reason)).replace("{one}", task.one)


def token_names(task: Task) -> dict[str, str]:
    """What can become of a token, by its key in the report."""
    return {"trained": "trained on", "context": task.context, "cut": "cut off", "padding": "padding"}


def inside(title: str) -> str:
    """A title within a sentence: `macro-F1`, `bits per byte`, `BLEU`."""
    return title if title[:2].isupper() else title[:1].lower() + title[1:]
