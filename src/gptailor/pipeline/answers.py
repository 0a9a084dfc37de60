"""Predictions for people: one output row per input row, in order, formulas defused."""

from __future__ import annotations

import csv
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gptailor.data.ledger import PREDICTED_COLUMNS, WRITTEN_COLUMNS, defuse, write_csv_safely
from gptailor.errors import InputError, RunError
from gptailor.launch import Precision
from gptailor.models.decode import Generated
from gptailor.models.predictor import Answer
from gptailor.models.sampling import Sampling
from gptailor.pipeline.rank import rank_file, refuse_without_labels
from gptailor.pipeline.run import Run, load
from gptailor.pipeline.task import is_prose
from gptailor.types import RawExample, RejectedRow

OPTION_NAMES = {"num_beams": "beams"}  # where the command line has another word for a field of Sampling


def predict_inputs(
    run: Path,
    texts: Sequence[str],
    *,
    sampling: Mapping[str, Any] | None = None,
    precision: Precision = "fp32",
) -> list[dict[str, Any]]:
    """Answers to texts given one by one.

    Raises:
        InputError: a text is empty.
    """
    opened = load(run, precision=precision)
    refuse_sampling(opened, sampling)
    if opened.task != "classification":
        chosen = _sampling(opened.answerer.usual, sampling)
        found = list(zip(texts, opened.answer(texts, chosen), strict=True))
        if opened.task == "language":
            return [
                {"text": text, "continuation": answer.text, "truncated": answer.truncated}
                for text, answer in found
            ]
        shown = opened.answerer.shown
        return [{"text": text, **_written_fields(answer, shown(answer))} for text, answer in found]
    answers = opened.predict(texts)
    empty = [place for place, answer in enumerate(answers, 1) if answer is None]
    if empty:
        raise InputError("the text is empty.", where=f"--input {empty[0]}", fix="Give some text.")
    return [
        {"text": text, **_answer_fields(answer)}
        for text, answer in zip(texts, answers, strict=True)
        if answer is not None
    ]


def predict_to(
    run: Path,
    location: str,
    *,
    out: Path | None,
    text: str | None,
    columns: str | None,
    to_stdout: bool,
    keep: Sequence[str] = (),
    sampling: Mapping[str, Any] | None = None,
    precision: Precision = "fp32",
    rank: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Predicts a file of any size into a CSV or JSONL file, or onto standard output as CSV.

    Columns of the file named in `keep` stand beside the answers, last. With `rank` the rows are held in
    memory and come in the order in which labelling them would teach most, each with its doubt. Returns the
    counts, and the rows themselves when they go nowhere else.

    Raises:
        RunError: `out` has another ending, is the input file, or can't be written.
        InputError: `rank` was asked of a run without labels.
        DataError: the file can't be read, or lacks a column of `keep`.
    """
    if out is not None:
        _refuse_unwritable(out, location)
    opened = load(run, precision=precision)
    refuse_sampling(opened, sampling)
    if opened.task != "language" and columns is None and is_prose(location):
        say(f"{location} is read as one text; with --columns text each of its lines is one")
    writes = opened.task != "classification"
    labelled = not writes and opened.predictor.form.kind != "score"
    names: Sequence[str] = opened.predictor.label_names if labelled else ()
    if rank:
        refuse_without_labels(opened)
    header = [*WRITTEN_COLUMNS] if writes else header_for(names) + ["doubt"] * rank
    kept = _names_of_kept(keep, header)
    counts = {"rows": 0, "answered": 0, "rejected": 0, "truncated": 0}

    def described() -> Iterator[tuple[RawExample | RejectedRow, dict[str, Any], bool]]:
        asked: dict[str, Any] = {"text": text, "columns": columns, "needed": keep, "say": say}
        if writes:
            chosen = _sampling(opened.answerer.usual, sampling)
            for row, given, written in opened.answer_file(location, sampling=chosen, **asked):
                shown = "" if written is None else opened.answerer.shown(written)
                yield row, describe_written(row, given, written, shown), written is not None
        elif rank:
            for one in rank_file(opened, location, **asked):
                told = {**describe_row(one.row, one.text, one.answer), "doubt": one.doubt}
                yield one.row, told, one.answer is not None
        else:
            for row, given, answer in opened.predict_file(location, **asked):
                yield row, describe_row(row, given, answer), answer is not None

    def counted() -> Iterator[dict[str, Any]]:
        for row, told, answered in described():
            counts["rows"] += 1
            counts["answered" if answered else "rejected"] += 1
            counts["truncated"] += bool(told.get("truncated"))
            yield told | {name: row.fields.get(column, "") for column, name in kept.items()}

    def cells(row: dict[str, Any]) -> list[object]:
        beside = [row[name] for name in kept.values()]
        if writes:
            cut = str(row["truncated"]).lower()
            return [*((row | {"truncated": cut})[name] for name in WRITTEN_COLUMNS), *beside]
        doubt = [] if "doubt" not in row else ["" if row["doubt"] is None else repr(row["doubt"])]
        return [*csv_cells(row, names), *doubt, *beside]

    header += kept.values()
    if out is not None:
        if out.suffix == ".jsonl":
            _write_jsonl(out, counted())
        else:
            write_csv_safely(out, header, (cells(row) for row in counted()))
        return {**counts, "file": str(out)}
    if to_stdout:
        _print_csv(header, (cells(row) for row in counted()))
        return dict(counts)
    return {"answers": list(counted()), **counts}


def _names_of_kept(keep: Sequence[str], header: Sequence[str]) -> dict[str, str]:
    """What each kept column is called beside the answers: as in its file, unless an answer is called so."""
    taken = {*header, "value", "labels", "probabilities"}  # the latter in JSON alone
    names: dict[str, str] = {}
    for column in keep:
        name = column
        while name in taken or (name != column and name in keep):
            name = f"given({name})"
        names[column] = name
        taken.add(name)
    return names


def refuse_sampling(opened: Run, sampling: Mapping[str, Any] | None) -> None:
    """Raises InputError where a classifier is told how to draw."""
    if sampling and opened.task == "classification":
        raise InputError(
            "a classifier draws nothing.",
            where=", ".join(f"--{OPTION_NAMES.get(name, name).replace('_', '-')}" for name in sampling),
            fix="Leave it out.",
        )


def describe_row(row: RawExample | RejectedRow, text: str, answer: Answer | None) -> dict[str, Any]:
    """One output row as plain values."""
    told = {"source": row.source, "row": row.row, "text": text}
    if answer is not None:
        return {**told, **_answer_fields(answer), "rejected": ""}
    reason = row.detail if isinstance(row, RejectedRow) else "no text"
    return {**told, "label": None, "probability": None, "rejected": reason}


def describe_written(
    row: RawExample | RejectedRow, prompt: str, answer: Generated | None, shown: str
) -> dict[str, Any]:
    """One output row of a run that writes."""
    told = {"source": row.source, "row": row.row, "prompt": prompt}
    if answer is not None:
        return {**told, **_written_fields(answer, shown), "rejected": ""}
    reason = row.detail if isinstance(row, RejectedRow) else "no prompt"
    return {**told, "answer": "", "ended": "", "tokens": "", "truncated": "", "rejected": reason}


def _written_fields(answer: Generated, shown: str) -> dict[str, Any]:
    told = {"answer": shown, "ended": answer.finished, "tokens": len(answer.token_ids)}
    return {**told, "truncated": answer.truncated}


def _sampling(usual: Sampling, wanted: Mapping[str, Any] | None) -> Sampling:
    """The usual settings of a run's answers, with what the person wants otherwise.

    Beam search doesn't watch for runs that come twice; whoever asks for it does without.
    """
    settings = dict(wanted or {})
    if settings.get("num_beams", 1) > 1:
        settings["no_repeat"] = 0
        settings.setdefault("temperature", 0.0)
    chosen = replace(usual, **settings)
    idle = [name for name in ("top_p", "top_k", "min_p", "seed") if name in settings]
    if idle and chosen.temperature == 0:
        raise InputError(
            "the likeliest token is taken each time, so there is nothing to draw from.",
            where=", ".join(f"--{name.replace('_', '-')}" for name in idle),
            fix="Add --temperature 1, or leave it out.",
        )
    return chosen


def header_for(names: Sequence[str]) -> list[str]:
    """The columns of the CSV."""
    return [*PREDICTED_COLUMNS, *(f"p({n})" for n in names)]


def csv_cells(row: dict[str, Any], names: Sequence[str]) -> list[object]:
    """One row of the CSV; probabilities in full precision."""
    told = [row["source"], row["row"], row["text"]]
    if row["label"] is None:
        return [*told, "", "", "", "", row["rejected"], *([""] * len(names))]
    return [
        *told,
        repr(row["value"]) if "value" in row else row["label"],
        "" if row["probability"] is None else repr(row["probability"]),
        str(row["abstained"]).lower(),
        str(row["truncated"]).lower(),
        "",
        *(repr(row["probabilities"][name]) for name in names),
    ]


def _answer_fields(answer: Answer) -> dict[str, Any]:
    if answer.value is not None:
        told = {"label": answer.label, "value": answer.value}
        return {**told, "probability": None, "abstained": False, "truncated": answer.truncated}
    return {
        "label": answer.label,
        "probability": answer.probability,
        "abstained": answer.abstained,
        "truncated": answer.truncated,
        "labels": list(answer.labels),
        "probabilities": answer.probabilities,
    }


def _refuse_unwritable(out: Path, location: str) -> None:
    if out.suffix not in (".csv", ".jsonl"):
        raise RunError(
            f"can't write {out.suffix or 'a file without ending'!r}.",
            where=str(out),
            fix="Name the output .csv or .jsonl.",
        )
    if Path(location).exists() and out.exists() and out.samefile(location):
        raise RunError("is the input file.", where=str(out), fix="Write the answers to another file.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(out, error) from None


def _unwritable(out: Path, error: OSError) -> RunError:
    return RunError(
        f"can't be written: {error.strerror or error}.",
        where=str(out),
        fix="Free some space, or choose a folder you may write to.",
    )


def _write_jsonl(out: Path, rows: Iterable[dict[str, Any]]) -> None:
    partial = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        # Half a surrogate pair, which JSON can hold, is no UTF-8; the escape is what JSON would write.
        with partial.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        partial.replace(out)
    except OSError as error:
        raise _unwritable(out, error) from None
    finally:
        partial.unlink(missing_ok=True)


def _print_csv(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """The very bytes that `write_csv_safely` puts into a file."""
    writer = csv.writer(sys.stdout, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    rows = iter(rows)
    first = list(itertools.islice(rows, 1))  # a file that is refused leaves nothing printed
    for cells in itertools.chain([header], first, rows):
        writer.writerow([defuse(cell) if isinstance(cell, str) else cell for cell in cells])
