"""What the page shows of the data: where every piece of it went, its lengths, and what was found in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from gptailor.report import plots
from gptailor.report.facts import (
    bytes_text,
    clip,
    count_text,
    counted,
    finite,
    longest_sequence,
    mapping,
    reason_text,
    rows_of,
    share_text,
    task_of,
    token_names,
)
from gptailor.report.tables import pieces, table
from gptailor.report.words import Task

Values = Mapping[str, Any]
Section = dict[str, Any] | None

_PARTS = (("train", "a"), ("validation", "c"), ("test", "b"))


def data_section(report: Values, details: Values) -> Section:
    """Where every row and token went, lengths, labels, and what was found in the text."""
    task, data = task_of(report), mapping(report.get("data"))
    ledgers = (_piece_ledger(data, task), _byte_ledger(data, task), _token_ledger(data, task))
    section = {
        "ledgers": [one for one in ledgers if one],
        "dropped": _dropped(data, task),
        "lengths": _lengths(details, task),
        "labels": _label_counts(details),
        "findings": list(_findings(details, task)),
        "tables": [one for one in (_merges(details), _suspicions(details)) if one],
    }
    if not any(section.values()):
        return None
    return section | {"lead": f"Every {task.one} and every token is accounted for."}


def _piece_ledger(data: Values, task: Task) -> Section:
    """Rows or documents. Divided ones stand in several parts, so that no bar can be cut into them."""
    if data.get("divided") is True:
        return None
    dropped = sum(finite(count) or 0 for count in mapping(data.get("dropped")).values())
    parts = [(name, finite(data.get(name)) or 0.0, tone) for name, tone in _PARTS]
    read = finite(data.get("read"))
    note = "" if read is None else f"{counted(read, task.one, task.many)} read."
    return _ledger(f"Where the {task.many} went", [*parts, ("dropped", dropped, "rest")], note)


def _byte_ledger(data: Values, task: Task) -> Section:
    sizes, read = mapping(data.get("bytes")), finite(data.get("read"))
    note = ""
    if data.get("divided") is True and read is not None:
        note = f"{counted(read, task.one, task.many)} read. With so few, each is divided between the parts."
    parts = [(name, finite(sizes.get(name)) or 0.0, tone) for name, tone in _PARTS]
    return _ledger("Where the text went", parts, note, say=bytes_text)


def _token_ledger(data: Values, task: Task) -> Section:
    tokens, tones = mapping(data.get("tokens")), ("a", "c", "b", "pale")
    named = zip(token_names(task).items(), tones, strict=True)
    parts = [(name, finite(tokens.get(key)) or 0.0, tone) for (key, name), tone in named]
    note = "No token was cut off." if finite(tokens.get("cut")) == 0 else ""
    return _ledger("Where the tokens went", parts, note)


def _ledger(
    title: str, parts: Sequence[tuple[str, float, str]], note: str, *, say: Callable[[Any], str] = count_text
) -> Section:
    whole = sum(amount for _, amount, _ in parts)
    if whole <= 0:
        return None
    legend = [
        {"tone": tone, "name": name, "amount": f"{say(amount)} ({share_text(amount / whole)})"}
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


def _dropped(data: Values, task: Task) -> Section:
    dropped = mapping(data.get("dropped"))
    largest = sorted(((finite(n) or 0.0, str(reason)) for reason, n in dropped.items()), reverse=True)
    rows = [[reason_text(reason, task), count_text(count)] for count, reason in largest if count > 0]
    return table(f"Dropped {task.many}", ["Reason", task.many.capitalize()], rows, right=(1,))


def _lengths(details: Values, task: Task) -> Section:
    lengths = mapping(details.get("lengths"))
    counts, edges = ([finite(v) or 0.0 for v in rows_of(lengths.get(key))] for key in ("counts", "edges"))
    limit = longest_sequence(details)
    cut_rows, cut_tokens = finite(lengths.get("cut_rows")), finite(lengths.get("cut_tokens"))
    drawing = plots.histogram(
        counts,
        edges,
        label="how long the texts are",
        x_title="tokens",
        y_title=task.many,
        limit=None if cut_rows == 0 else limit,
        mark=None if limit is None else (limit, f"{task.limit} {count_text(limit)}"),
    )
    if not drawing:
        return None
    told = []
    if longest := finite(lengths.get("longest")):
        told.append(f"The longest text has {counted(longest, 'token', 'tokens')}.")
    if cut_rows == 0:
        told.append(task.uncut)
    elif cut_rows:
        tokens = f", {count_text(cut_tokens)} tokens." if cut_tokens else "."
        told.append(f"Cut: {counted(cut_rows, task.one, task.many)}{tokens}")
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


def _findings(details: Values, task: Task) -> Iterator[dict[str, Any]]:
    for key, title, note in (
        ("duplicates", "Duplicates", f"The first {task.one} stays."),
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
            total = finite(mapping(details.get("found")).get(key))
            yield _finding_panel(title, found, note, total=len(found) if total is None else int(total))
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


def _finding_panel(
    title: str, found: Sequence[dict[str, Any]], note: str, *, total: int | None = None
) -> dict[str, Any]:
    """`found` are examples of `total`; None where nobody counted."""
    shown = pieces(found, shown=3, most=40)
    left_off = 0 if total is None else total - len(found) + shown.left_off
    return {"title": title, "total": total, "pieces": replace(shown, left_off=left_off), "note": note}


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
            f"dropped {one.get('train')}",
            f"held out {one.get('test')}",
            {"leak_exact": "the same text", "leak_group": "the same group"}.get(
                str(one.get("kind")), "nearly the same text"
            ),
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
