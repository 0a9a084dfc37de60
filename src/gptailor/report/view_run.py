"""What the page shows of how the result came about: training, data, the sealed test set, the machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from gptailor.report import plots
from gptailor.report.facts import (
    APPROACHES,
    METRICS,
    REASONS,
    bytes_text,
    clip,
    count_text,
    finite,
    mapping,
    primary_metric,
    rows_of,
    score_text,
    scores,
    seconds_text,
    share_text,
)
from gptailor.report.svg import axis_text
from gptailor.report.tables import pieces, table

Values = Mapping[str, Any]
Section = dict[str, Any] | None

_CURVE_POINTS = 240  # more can't be told apart on a screen
_STOPPED = {
    "length": "ran its full length",
    "early": "stopped early, validation no longer gained",
    "time": "stopped by the time limit",
}


def training_section(report: Values, details: Values) -> Section:
    """Curves, what was tried, and the run's plain facts."""
    training = mapping(report.get("training"))
    charts = [c for c in (*_curves(report, details), _strengths(details)) if c]
    candidates = _candidates(details)
    facts = [
        (name, text)
        for name, text in (
            ("Steps", _count(training.get("steps"))),
            ("Best step", _count(training.get("best_step"))),
            ("Ended", _STOPPED.get(str(training.get("stopped")), "")),
            ("Time", _said(training.get("seconds"), seconds_text)),
            (
                "Speed",
                _said(
                    training.get("tokens_per_second"), lambda value: f"{count_text(value)} tokens a second"
                ),
            ),
            ("Peak memory", _said(training.get("peak_memory_bytes"), bytes_text)),
        )
        if text
    ]
    if not (charts or candidates or facts):
        return None
    lead = str(details.get("overfitting") or "")
    return {"lead": clip(lead, 500), "charts": charts, "candidates": candidates, "facts": facts}


def data_section(report: Values, details: Values) -> Section:
    """Where every row and token went, lengths, labels, and what was found in the text."""
    section = {
        "ledgers": [one for one in (_row_ledger(report), _token_ledger(report)) if one],
        "dropped": _dropped(report),
        "lengths": _lengths(details),
        "labels": _label_counts(details),
        "findings": list(_findings(details)),
        "tables": [one for one in (_merges(details), _suspicions(details)) if one],
    }
    return section if any(section.values()) else None


def openings_section(details: Values) -> Section:
    """Each look at the test set."""
    rows = []
    for one in map(mapping, rows_of(details.get("openings"))):
        told = ", ".join(
            f"{m.title} {score_text(s.value)}" for _, m, s in list(scores(one.get("scores")))[:3]
        )
        rows.append(
            {"when": str(one.get("when", "")), "command": str(one.get("command", "")), "scores": told}
        )
    if not rows:
        return None
    once = "It was opened once" if len(rows) == 1 else f"It was opened {len(rows)} times"
    lead = f"{once}. Every look makes its score a little less of a surprise, so each is written down."
    return {"rows": rows, "lead": lead}


def run_section(report: Values, details: Values) -> Section:
    """What somebody needs to repeat the run."""
    base = mapping(details.get("base_details"))
    parameters = finite(base.get("parameters"))
    base_facts = [
        (name, str(value))
        for name, value in (
            ("Name", base.get("name") or report.get("base")),
            ("Revision", base.get("revision")),
            ("Parameters", f"{parameters / 1e6:,.1f} million" if parameters else None),
            ("Licence", base.get("license")),
            ("Seed", report.get("seed")),
        )
        if value not in (None, "")
    ]
    section = {
        "command": str(details.get("command") or ""),
        "base": base_facts,
        "environment": list(_flat(mapping(report.get("environment")))),
        "parity": list(_flat(mapping(details.get("parity")))),
        "notes": [str(note) for note in rows_of(details.get("notes"))],
        "recipe": str(details.get("recipe") or "").rstrip(),
    }
    return section if any(section.values()) else None


def _curves(report: Values, details: Values) -> Iterator[Section]:
    metric = METRICS.get(primary_metric(report), METRICS["macro_f1"])
    best = finite(mapping(report.get("training")).get("best_step"))
    mark = None if best is None else (best, "kept")
    ends = [finite(mapping(one).get("step")) or 0.0 for one in rows_of(details.get("curves"))]
    last = max(ends, default=0.0)
    wanted = (
        (
            "Loss",
            "nats per target",
            (("train_loss", "training", "b"), ("validation_loss", "validation", "a")),
        ),
        (f"Validation {metric.title}", "", ((f"validation_{primary_metric(report)}", metric.title, "a"),)),
        ("Learning rate", "", (("learning_rate", "learning rate", "c"),)),
    )
    for title, unit, lines in wanted:
        series = [
            plots.Series(name, _curve(details, key), tone, "validation" in key) for key, name, tone in lines
        ]
        kept = [one for one in series if one.points]
        if kept:
            drawing = plots.line_chart(
                kept,
                label=f"{title} over steps",
                x_title="step",
                y_title=unit,
                x_range=(0, last) if last > 0 else None,
                mark=mark if title != "Learning rate" else None,
            )
            legend = [{"tone": s.tone, "name": s.name, "amount": ""} for s in kept] if len(kept) > 1 else None
            yield {"title": title, "svg": drawing, "legend": legend, "note": ""}


def _curve(details: Values, key: str) -> list[tuple[float, float]]:
    """The points of one curve; long ones are averaged in equal stretches."""
    rows = [mapping(one) for one in rows_of(details.get("curves"))]
    pairs = ((finite(one.get("step")), finite(one.get(key))) for one in rows)
    points = [(x, y) for x, y in pairs if x is not None and y is not None]
    stretch = -(-len(points) // _CURVE_POINTS)
    if stretch <= 1:
        return points
    cut = [points[start : start + stretch] for start in range(0, len(points), stretch)]
    return [(sum(x for x, _ in p) / len(p), sum(y for _, y in p) / len(p)) for p in cut]


def _strengths(details: Values) -> Section:
    rows = [mapping(one) for one in rows_of(details.get("strengths"))]
    pairs = ((finite(one.get("strength")), finite(one.get("validation_macro_f1"))) for one in rows)
    points = sorted((x, y) for x, y in pairs if x is not None and y is not None and x > 0)
    if not points:
        return None
    best = max(points, key=lambda point: point[1])
    drawing = plots.line_chart(
        [plots.Series("Macro-F1", points, "a", dots=True)],
        label="validation macro-F1 over regularization strength",
        x_title="strength of the head (C)",
        log_x=True,
        mark=(best[0], f"best {axis_text(best[0])}"),
    )
    note = "To the left the head is held back more; to the right it follows the training rows more."
    return {"title": "Strength of the frozen head", "svg": drawing, "legend": None, "note": note}


def _candidates(details: Values) -> Section:
    rows = []
    for one in map(mapping, rows_of(details.get("candidates"))):
        name = str(one.get("approach", ""))
        name = APPROACHES.get(name, name) + (" (chosen)" if one.get("chosen") is True else "")
        rows.append([name, score_text(one.get("validation_macro_f1")), seconds_text(one.get("seconds"))])
    return table("What was tried", ["Approach", "Validation macro-F1", "Time"], rows, right=(1, 2))


def _row_ledger(report: Values) -> Section:
    data = mapping(report.get("data"))
    dropped = sum(finite(count) or 0 for count in mapping(data.get("dropped")).values())
    amounts = [(part, finite(data.get(part)) or 0.0) for part in ("train", "validation", "test")]
    shown = [*zip(amounts, ("a", "c", "b"), strict=True), (("dropped", dropped), "rest")]
    read = finite(data.get("read"))
    note = "" if read is None else f"{count_text(read)} rows read."
    return _ledger("Where the rows went", [(name, amount, tone) for (name, amount), tone in shown], note)


def _token_ledger(report: Values) -> Section:
    tokens = mapping(mapping(report.get("data")).get("tokens"))
    wanted = (
        ("trained", "trained on", "a"),
        ("context", "read as context", "c"),
        ("cut", "cut off", "b"),
        ("padding", "padding", "pale"),
    )
    parts = [(name, finite(tokens.get(key)) or 0.0, tone) for key, name, tone in wanted]
    cut = finite(tokens.get("cut"))
    note = "No token was cut off." if cut == 0 else ""
    return _ledger("Where the tokens went", parts, note)


def _ledger(title: str, parts: Sequence[tuple[str, float, str]], note: str) -> Section:
    whole = sum(amount for _, amount, _ in parts)
    if whole <= 0:
        return None
    legend = [
        {"tone": tone, "name": name, "amount": f"{count_text(amount)} ({share_text(amount / whole)})"}
        for name, amount, tone in parts
        if amount > 0
    ]
    return {
        "title": title,
        "svg": plots.strip(parts, label=title),
        "legend": legend,
        "note": note,
        "full": False,
    }


def _dropped(report: Values) -> Section:
    dropped = mapping(mapping(report.get("data")).get("dropped"))
    counted = sorted(((finite(n) or 0.0, str(reason)) for reason, n in dropped.items()), reverse=True)
    rows = [[REASONS.get(reason, reason), count_text(count)] for count, reason in counted if count > 0]
    return table("Dropped rows", ["Reason", "Rows"], rows, right=(1,))


def _lengths(details: Values) -> Section:
    lengths = mapping(details.get("lengths"))
    counts, edges = ([finite(v) or 0.0 for v in rows_of(lengths.get(key))] for key in ("counts", "edges"))
    limit = finite(lengths.get("max_tokens"))
    drawing = plots.histogram(counts, edges, label="how long the texts are", x_title="tokens", limit=limit)
    if not drawing:
        return None
    cut_rows, cut_tokens = (_count(lengths.get(key)) for key in ("cut_rows", "cut_tokens"))
    told = []
    if longest := _count(lengths.get("longest")):
        told.append(f"The longest text has {longest} tokens.")
    if cut_rows == "0":
        told.append("None was cut.")
    elif cut_rows:
        told.append(f"Cut: {cut_rows} rows" + (f", {cut_tokens} tokens." if cut_tokens else "."))
    return {"title": "Lengths of the texts", "svg": drawing, "legend": None, "note": " ".join(told)}


def _label_counts(details: Values) -> Section:
    counts = mapping(details.get("label_counts"))
    parts = [part for part in ("train", "validation", "test") if mapping(counts.get(part))]
    names = dict.fromkeys(str(name) for part in parts for name in mapping(counts[part]))
    if not names:
        return None
    numbers = {name: [finite(mapping(counts[part]).get(name)) or 0.0 for part in parts] for name in names}
    ordered = sorted(names, key=lambda name: (-sum(numbers[name]), name))
    rows = [[clip(name, 80), *(count_text(n) for n in numbers[name])] for name in ordered]
    heads = ["Label", *(part.capitalize() for part in parts)]
    return {"pieces": pieces(rows, shown=12, most=500), "heads": heads, "right": list(range(1, len(heads)))}


def _findings(details: Values) -> Iterator[dict[str, Any]]:
    for key, title, note in (
        ("duplicates", "Duplicates", "The first row stays."),
        (
            "conflicts",
            "Same text, different labels",
            "All of these were dropped: nobody can learn from them.",
        ),
        ("near_duplicates", "Near-duplicates", "Kept, but each group in one part."),
        ("leaks", "Leaks into the test set", "Dropped from training, so that the test stays honest."),
    ):
        found = [_finding(key, mapping(one)) for one in rows_of(details.get(key))]
        if found:
            yield _finding_panel(title, found, note)
    names = {"mojibake": "broken characters"}
    repairs = [
        {
            "texts": [str(text) for text in rows_of(pair)[:2]],
            "told": [names.get(str(kind), str(kind)), "before, after"],
        }
        for kind, pairs in mapping(details.get("repairs")).items()
        for pair in rows_of(pairs)
        if rows_of(pair)
    ]
    if repairs:
        yield _finding_panel("Repaired text", repairs, "Examples, each before and after.")


def _finding_panel(title: str, found: Sequence[dict[str, Any]], note: str) -> dict[str, Any]:
    return {"title": title, "total": len(found), "pieces": pieces(found, shown=3, most=40), "note": note}


def _finding(kind: str, one: Values) -> dict[str, Any]:
    texts = [one["text"]] if one.get("text") is not None else rows_of(one.get("texts"))[:4]
    told = {
        "duplicates": [f"kept {one.get('kept')}", f"dropped {one.get('dropped')}"],
        "conflicts": [
            " / ".join(map(str, rows_of(one.get("labels")))),
            ", ".join(map(str, rows_of(one.get("rows")))),
        ],
        "near_duplicates": [
            ", ".join(map(str, rows_of(one.get("rows")))),
            f"in {one.get('part') or 'one part'}",
        ],
        "leaks": [
            f"train {one.get('train')}",
            f"test {one.get('test')}",
            "the same text" if one.get("kind") == "leak_exact" else "nearly the same text",
        ],
    }[kind]
    return {"texts": [str(text) for text in texts], "told": [clip(part, 160) for part in told if part]}


def _merges(details: Values) -> Section:
    rows = [[str(a), str(b)] for a, b in mapping(details.get("label_merges")).items()][:40]
    return table("Labels merged", ["Written", "Counted as"], rows)


def _suspicions(details: Values) -> Section:
    pairs = (rows_of(one) for one in rows_of(details.get("label_suspicions"))[:40])
    return table(
        "Labels that may be the same", ["Label", "Looks like"], [pair[:2] for pair in pairs if len(pair) > 1]
    )


def _flat(tree: Values, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested values as lines of words."""
    for key, value in tree.items():
        name = f"{prefix}{str(key).replace('_', ' ')}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}: ")
        elif value is not None:
            number = None if isinstance(value, bool | str) else finite(value)
            yes_no = {True: "yes", False: "no"}.get(value) if isinstance(value, bool) else None
            yield name, yes_no or (f"{number:,g}" if number is not None else clip(value, 200))


def _count(value: Any) -> str:
    return _said(value, count_text)


def _said(value: Any, say: Callable[[Any], str]) -> str:
    return "" if finite(value) is None else say(value)
