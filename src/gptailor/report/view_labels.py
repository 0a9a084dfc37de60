"""What the page shows of a model that labels: its classes, what it confuses, and how sure it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gptailor.report import plots
from gptailor.report.facts import (
    clip,
    count_text,
    finite,
    mapping,
    measured,
    noise_told,
    rows_of,
    score_text,
    share_text,
)
from gptailor.report.tables import pieces, table

Values = Mapping[str, Any]

_BEFORE_AFTER = (
    {"tone": "b", "name": "before calibration", "amount": ""},
    {"tone": "a", "name": "after calibration", "amount": ""},
)

_SUREST = (
    "The surest mistakes",
    "Wrong answers the model was most certain of. Often the label in the file is the one to mend.",
)
_FAR_OFF = (
    "The largest misses",
    "Answers furthest from the number in the file. Often the number there is the one to mend.",
)


def label_sections(report: Values, details: Values) -> dict[str, Any]:
    """The sections of classes, mistakes and probabilities by name; None or empty where nothing is known."""
    return {
        "classes": _classes(report),
        "confusion": _confusion(details),
        "confused": _confused(details),
        "missed": _missed(details),
        "mistakes": _mistakes(details),
        "mistakes_head": _FAR_OFF if report.get("answer") == "score" else _SUREST,
        "numbers": _numbers(details),
        "probabilities": _probabilities(report, details),
    }


def _classes(report: Values) -> dict[str, Any] | None:
    """F1 per class, the weakest first."""
    found = []
    for name, raw in mapping(mapping(report.get("test")).get("per_class")).items():
        one = mapping(raw)
        f1 = measured(one.get("f1") if one else raw)
        if f1 is not None and one.get("support") != 0:  # of a label that no test row has nothing is known
            found.append((f1.value, str(name), f1, one))
    if not found:
        return None
    shown = [
        {
            "name": name,
            "f1": score_text(f1.value),
            "told": _class_told(one),
            "bar": plots.score_bar(f1, top=1.0, tone="a"),
        }
        for _, name, f1, one in sorted(found, key=lambda entry: entry[:2])
    ]
    many = len(shown) > plots.NUMBERED_CLASSES
    note = "Whiskers are 95 % intervals: the fewer test rows a class has, the wider."
    note += " P is precision, R is recall." if any(one["told"] for one in shown) else ""
    return {"pieces": pieces(shown, shown=20 if many else 12, most=400), "two": len(shown) > 4, "note": note}


def _class_told(one: Values) -> str:
    precision, recall = measured(one.get("precision")), measured(one.get("recall"))
    rows = next((finite(one[key]) for key in ("support", "rows", "count", "n") if key in one), None)
    told = [f"P {precision.value:.2f}" if precision else "", f"R {recall.value:.2f}" if recall else ""]
    return " · ".join(
        part for part in [*told, f"{count_text(rows)} rows" if rows is not None else ""] if part
    )


def _confusion(details: Values) -> dict[str, Any] | None:
    matrix = [[finite(v) or 0.0 for v in rows_of(row)] for row in rows_of(details.get("confusion"))]
    names = [str(name) for name in rows_of(details.get("label_names"))]
    drawing = plots.heat_map(matrix, names, label=f"confusion matrix of {len(names)} classes")
    if not drawing:
        return None
    note = "A line is a label, a column what the model said; on the diagonal it was right."
    if len(names) > plots.NUMBERED_CLASSES:
        note += " The darker, the larger the share of the label's rows. Point at a cell to see its names."
    return {"title": "Labels and answers", "svg": drawing, "legend": None, "note": note}


def _confused(details: Values) -> list[dict[str, str]]:
    return [
        {
            "answer": str(one.get("answer", "")),
            "prediction": str(one.get("prediction", "")),
            "count": count_text(one.get("count")),
        }
        for one in map(mapping, rows_of(details.get("confused"))[:12])
    ]


def _numbers(details: Values) -> dict[str, Any] | None:
    """Answers beside the true numbers, a dot for each row."""
    pairs = ((finite(one.get("answer")), finite(one.get("prediction"))) for one in _rows(details, "numbers"))
    points = [(true, given) for true, given in pairs if true is not None and given is not None]
    drawing = plots.scatter(points, label="the model's numbers over the true ones")
    if not drawing:
        return None
    note = "On the dashed line the model is right; above it, it says too much."
    return {"title": "Numbers and answers", "svg": drawing, "legend": None, "note": note}


def _rows(details: Values, key: str) -> list[Values]:
    return [mapping(one) for one in rows_of(details.get(key))]


def _missed(details: Values) -> dict[str, Any] | None:
    """Of a model that gives several labels: which ones it leaves out, and which it gives in vain."""
    rows = [
        [str(one.get("label", "")), count_text(one.get("missed")), count_text(one.get("invented"))]
        for one in _rows(details, "errors_by_label")
    ]
    return table("Labels missed and given wrongly", ["Label", "Missed", "Wrongly given"], rows, right=(1, 2))


def _mistakes(details: Values) -> Any:
    shown = [
        {
            "text": str(one.get("text", "")),
            "answer": str(one.get("answer", "")),
            "prediction": str(one.get("prediction", "")),
            "sure": share_text(sure) if (sure := finite(one.get("probability"))) is not None else "",
            "where": str(one.get("where") or ""),
        }
        for one in map(mapping, rows_of(details.get("mistakes")))
    ]
    return pieces(shown, shown=10, most=60) if shown else None


def _probabilities(report: Values, details: Values) -> dict[str, Any] | None:
    charts = [chart for chart in (_reliability(details), _coverage(details)) if chart]
    if not charts:
        return None
    error = measured(mapping(report.get("test")).get("calibration_error"))
    lead = "A calibrated model that says 80 % is right eight times in ten."
    if error:
        lead += f" This one is off by {share_text(error.value)} on average{noise_told(error, details)}."
    temperature = finite(details.get("temperature"))
    if temperature is not None:
        lead += f" Temperature {temperature:.2f}, fitted on validation."
    cutoff = finite(details.get("cutoff"))
    if cutoff is not None:
        lead += f" A label is given from a probability of {cutoff:.2f} on, chosen on validation for micro-F1."
    return {"lead": lead, "charts": charts}


def _reliability(details: Values) -> dict[str, Any] | None:
    raw = mapping(details.get("reliability"))
    before, after = (_bins(raw.get(when)) for when in ("before", "after"))
    if not before and not after:
        return None
    drawing = plots.reliability_diagram(before, after, label="share right over probability given")
    note = "On the dashed line, probabilities are right; below it, the model is too sure. "
    note += "Larger circles hold more rows."
    legend = [one for one, bins in zip(_BEFORE_AFTER, (before, after), strict=True) if bins]
    return {"title": "Reliability", "svg": drawing, "legend": legend, "note": note}


def _bins(raw: Any) -> list[tuple[float, float, float]]:
    found = []
    for one in map(mapping, rows_of(raw)):
        confidence, accuracy, count = (finite(one.get(key)) for key in ("confidence", "accuracy", "count"))
        if confidence is not None and accuracy is not None and count:
            found.append((confidence, accuracy, count))
    return sorted(found)


def _coverage(details: Values) -> dict[str, Any] | None:
    lines: Sequence[plots.Series] = [
        plots.Series(name, _points(details.get("coverage"), "threshold", key), tone)
        for key, name, tone in (("coverage", "rows answered", "b"), ("accuracy", "of those, right", "a"))
    ]
    threshold = finite(details.get("threshold"))
    drawing = plots.line_chart(
        lines,
        label="share answered and share right over the threshold",
        x_title="least probability to answer",
        height=332,
        mark=None if threshold is None else (threshold, f"threshold {threshold:.2f}"),
        x_range=(0, 1),
        y_range=(0, 1),
        y_title="share",
    )
    if not drawing:
        return None
    note = (
        "No threshold that keeps 20 validation rows reaches 95 % accuracy on them, so none is set."
        if threshold is None and "threshold" in details
        else "Under the threshold the model abstains. It is the lowest with 95 % accuracy on validation."
    )
    legend = [{"tone": line.tone, "name": clip(line.name), "amount": ""} for line in lines]
    return {"title": "Leave the unsure ones to a person", "svg": drawing, "legend": legend, "note": note}


def _points(raw: Any, x: str, y: str) -> list[tuple[float, float]]:
    pairs = ((finite(one.get(x)), finite(one.get(y))) for one in map(mapping, rows_of(raw)))
    return sorted((a, b) for a, b in pairs if a is not None and b is not None)
