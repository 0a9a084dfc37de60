"""What the page and the model card both say: scores, the ladder, the verdict, and numbers in words.

Everything here reads `report.json` and the run's details leniently: a report is written at the end
of a long run, so a missing or odd value leaves a gap and never an error.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Tone = Literal["good", "unclear", "worse", "none"]


@dataclass(frozen=True, slots=True)
class Metric:
    """How a score is called and read."""

    title: str
    explains: str
    higher_is_better: bool = True
    top: float | None = 1.0  # the end of its scale, None where there is none


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


METRICS: dict[str, Metric] = {
    "macro_f1": Metric("Macro-F1", "the mean of the classes' F1, every class counted alike"),
    "accuracy": Metric("Accuracy", "the share of rows answered rightly"),
    "precision": Metric("Macro precision", "how often an answer is right, averaged over the classes"),
    "recall": Metric("Macro recall", "how many of a class are found, averaged over the classes"),
    "calibration_error": Metric(
        "Calibration error",
        "how far the probabilities stand from the truth, 0 is best",
        higher_is_better=False,
    ),
    "exact_match": Metric("Exact match", "the share of answers equal to the expected text"),
    "f1": Metric("Word F1", "the overlap of words with the expected text"),
    "bleu": Metric("BLEU", "the overlap of word runs with the reference, up to 100", top=100.0),
    "chrf": Metric("chrF", "the overlap of character runs with the reference, up to 100", top=100.0),
    "rouge_l": Metric("ROUGE-L", "the longest common run of words with the reference"),
    "stop_rate": Metric("Stop rate", "the share of texts that end by themselves"),
    "bits_per_byte": Metric(
        "Bits per byte",
        "how much the text surprises the model, lower is better",
        higher_is_better=False,
        top=None,
    ),
    "perplexity": Metric(
        "Perplexity",
        "how much a token surprises the model, lower is better",
        higher_is_better=False,
        top=None,
    ),
}

# The order in which a task's main number is looked for; classification first.
_PRIMARY = (
    "macro_f1",
    "bleu",
    "chrf",
    "rouge_l",
    "exact_match",
    "f1",
    "bits_per_byte",
    "perplexity",
    "accuracy",
)

BASELINES: dict[str, str] = {
    "majority": "Most frequent class",
    "tfidf": "TF-IDF + logistic regression",
    "zero_shot": "Base model, zero-shot",
    "few_shot": "Base model, few-shot",
    "frozen": "Frozen features",
}

APPROACHES: dict[str, str] = {
    "full": "full fine-tune",
    "lora": "LoRA",
    "frozen": "frozen features",
    "scratch": "from scratch",
}

REASONS: dict[str, str] = {
    "unreadable": "could not be read",
    "no_text": "no text",
    "no_label": "no label",
    "duplicate": "duplicate of an earlier row",
    "conflict": "same text, different labels",
    "rare_label": "too few rows of its label",
    "leak_exact": "stands in the test or validation file",
    "leak_near": "nearly stands in the test or validation file",
    "too_long": "too long",
    "nothing_to_learn": "no token to learn from",
}

HEADLINES: dict[Tone, str] = {
    "good": "Worth it",
    "unclear": "No clear difference",
    "worse": "Worse than the baseline",
    "none": "No verdict",
}

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
            yield key, METRICS.get(key, Metric(str(key).replace("_", " ").capitalize(), "")), score


def primary_metric(report: Mapping[str, Any]) -> str:
    """The metric that decides: the one the verdict names, else the task's usual one."""
    named = mapping(report.get("verdict")).get("metric")
    test = mapping(report.get("test"))
    if isinstance(named, str) and measured(test.get(named)):
        return named
    return next((key for key in _PRIMARY if measured(test.get(key))), "macro_f1")


def ladder(report: Mapping[str, Any], details: Mapping[str, Any]) -> list[Rung]:
    """The model and its baselines on the primary metric, the best first; skipped ones at the end."""
    metric = primary_metric(report)
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
        found = mapping(baselines.get(key))
        score = measured(found.get(metric)) or measured(mapping(found.get("test")).get(metric))
        note = str(notes.get(key) or found.get("skipped") or "")
        rows = finite(found.get("rows") or found.get("n"))
        tested = finite(mapping(report.get("data")).get("test"))
        if score and rows and rows != tested:
            note = f"on {rows:,.0f} of the test rows" + (f"; {note}" if note else "")
        rungs.append(Rung(key, BASELINES.get(key, key), score, note, best_baseline=key == best))
    sign = -1.0 if METRICS.get(metric, METRICS["macro_f1"]).higher_is_better else 1.0
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
    return "worse" if difference.high is not None and difference.high < 0 else "unclear"


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
    """`812 MiB`, `1.4 GiB`."""
    number = finite(value)
    if number is None:
        return "–"
    return f"{number / 2**30:.1f} GiB" if number >= 2**30 else f"{number / 2**20:.0f} MiB"
