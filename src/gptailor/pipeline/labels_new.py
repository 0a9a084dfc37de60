"""A finished classifier on new rows: how well its answers fit the labels that stand there."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gptailor.data.clean import CleanResult, clean_rows
from gptailor.data.read import Roles, doubts, infer_roles, other_names, read_rows
from gptailor.data.roles import AmbiguousColumnError
from gptailor.data.split import value_groups
from gptailor.errors import DataError
from gptailor.evaluate.metrics import as_json
from gptailor.evaluate.resampling import Resampling
from gptailor.models.predictor import Predictor
from gptailor.pipeline.columns import joined, value_of
from gptailor.pipeline.held_out import cut_note, drawn_together, near_seed_of, noted, why_rare
from gptailor.pipeline.kinds import kind_of
from gptailor.pipeline.labels import read_labels, without_labels
from gptailor.pipeline.slices import score_slices, slice_columns
from gptailor.recipe import CleanSettings, Recipe
from gptailor.tasks.classification import (
    refuse_unknown_labels,
    refuse_unknown_slices,
    slice_fields,
    to_example,
)
from gptailor.tasks.labels import label_cell, label_of, labels_of
from gptailor.types import RawExample, RejectedRow


@dataclass(frozen=True, slots=True)
class Remembered:
    """What a run's folder says of its training data; nothing where only the model was copied here."""

    roles: Roles | None = None  # the columns
    label_merges: dict[str, str] = field(default_factory=dict)  # spellings, and what they count as
    rare_labels: dict[str, int] = field(default_factory=dict)  # those that went, with their rows


def remembered_by(folder: Path) -> Remembered:
    """Reads it; what is damaged counts as not there."""
    try:
        summary = json.loads((folder / "data" / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return Remembered()
    if not isinstance(summary, dict):
        return Remembered()
    try:
        roles = Roles(**summary["roles"])
    except (KeyError, TypeError):
        roles = None
    return Remembered(roles, summary.get("label_merges") or {}, summary.get("rare_labels") or {})


def evaluate_labels(
    predictor: Predictor,
    location: str,
    *,
    recipe: Recipe,
    remembered: Remembered,
    text: str | None,
    label: str | None,
    columns: str | None,
    names: Mapping[str, str],
    slices: Sequence[str],
    note_of: Callable[[Iterable[tuple[int, str]]], str],
) -> dict[str, Any]:
    """A classifier's scores on a new file; `names` of bare labels.

    `note_of` says what is to be known of the texts, which come numbered.

    Raises:
        DataError: the file has labels the run doesn't know, no usable row, or lacks a column of `slices`.
    """
    file = read_rows(location, columns=columns)
    roles = _roles_of(file.columns, file.rows, remembered, text=text, label=label)
    notes = [*file.notes, *_on_other_names(roles, remembered, text=text, label=label)]
    refuse_unknown_slices(slices, file.columns, file=location)
    rows = _taken(file.rows, roles, recipe.data.split.group, slices)
    rows = _labelled(rows, predictor, remembered, recipe, names=names, location=location)
    form, known = predictor.form, predictor.label_names
    encoded = predictor.encode_many([row.fields["text"] for row in rows])
    kept = [(row, item) for row, item in zip(rows, encoded, strict=True) if item is not None]
    if not kept:
        raise DataError("has no row with text and label.", where=location, fix="Check its columns.")
    label_ids = {name: place for place, name in enumerate(known)}
    answers = np.array([label_of(row.fields["label"], label_ids, form) for row, _ in kept])
    logits = predictor.logits([item for _, item in kept])
    near_seed = near_seed_of(recipe)
    examples = drawn_together([to_example(row, None) for row, _ in kept], near_seed=near_seed)
    groups = value_groups([row.group for row in examples])
    drawn = Resampling(recipe.evaluate.resamples, recipe.seed, groups)
    settings: dict[str, Any] = {"label_names": known, "resampling": drawn}
    temperature = predictor.bundle.temperature
    report = kind_of(form).evaluate(logits, answers, split="new", temperature=temperature, **settings)
    assert report.predictions is not None
    texts = [example.text for example in examples]
    cut = sum(item.truncated for _, item in kept)
    return {
        "file": location,
        "read": len(file.rows) + len(file.rejected),
        "rows": report.size,
        "left_out": len(file.rows) + len(file.rejected) - report.size,
        "truncated": cut,
        "scores": as_json(report.scores),
        "slices": score_slices(
            kind_of(form),
            report.predictions.probabilities,
            answers,
            texts=texts,
            encoder=predictor.encoder,
            columns=slice_columns(examples),
            **settings,
        ),
        **noted(doubts(location, notes), note_of(enumerate(texts)), cut_note(cut), drawn.caveat(report.size)),
    }


def text_column_of(
    held: Sequence[RawExample | RejectedRow],
    remembered: Remembered,
    text: str | None,
    *,
    where: str,
    say: Callable[[str], None],
) -> str | None:
    """The column that is asked: the named one, that of training or the plain one, which is said where the
    file has others; None while no row could be read.
    """
    rows = [row for row in held if isinstance(row, RawExample)]
    if not rows:
        return None
    columns = list(dict.fromkeys(name for row in rows for name in row.fields))
    trained = remembered.roles
    if text is None and trained and _has(columns, trained.text):
        return trained.text
    roles = infer_roles(columns, rows, text=text, label=None, need_label=False)
    if text is None and trained and len(columns) > 1:
        say(f"{where}: {other_names(replace(roles, label=None))}")
    return roles.text


def _roles_of(
    columns: Sequence[str],
    rows: Sequence[RawExample],
    remembered: Remembered,
    *,
    text: str | None,
    label: str | None,
) -> Roles:
    """The named columns, else those of training, else the plain ones."""
    trained = remembered.roles
    if text is None and trained and _has(columns, trained.text):
        text = trained.text
    if label is None and trained and trained.label in columns:
        label = trained.label
    try:
        return infer_roles(columns, rows, text=text, label=label)
    except DataError as error:
        if label is not None or trained is None or isinstance(error, AmbiguousColumnError):
            raise
        what = f"there is no column {trained.label!r}, which held the labels in training; it has "
        fix = "Name the column of the labels with --label. A file without labels is for `gptailor predict`."
        raise DataError(f"{what}{', '.join(columns)}.", where=rows[0].source, fix=fix) from None


def _taken(
    rows: Iterable[RawExample], roles: Roles, group: str | None, slices: Sequence[str]
) -> list[RawExample]:
    """The rows by what their columns are for."""
    return [
        RawExample(
            {
                "text": joined(row, roles.text),
                "label": value_of(row, roles.label),
                "group": value_of(row, group),
                **slice_fields(row, slices),
            },
            row.source,
            row.row,
        )
        for row in rows
    ]


def _labelled(
    rows: Sequence[RawExample],
    predictor: Predictor,
    remembered: Remembered,
    recipe: Recipe,
    *,
    names: Mapping[str, str],
    location: str,
) -> list[RawExample]:
    """The rows with a label, read and spelled as training's were.

    Raises:
        DataError: there are labels that the run doesn't know.
    """
    form, known = predictor.form, predictor.label_names
    rows, _ = read_labels(rows, form, names, known=known)
    rows = without_labels(_spelled(rows, predictor, remembered, recipe), form, remembered.rare_labels)
    carried = [labels_of(row.fields["label"], form) for row in rows]
    several = form.kind == "multiple"
    rare = partial(why_rare, rare=remembered.rare_labels)
    refuse_unknown_labels(carried, known, file=location, flag="--label-names", sets=several, why_gone=rare)
    return [row for row in rows if row.fields["label"]]


def _on_other_names(
    roles: Roles, remembered: Remembered, *, text: str | None, label: str | None
) -> Iterator[str]:
    """That a column was read which nobody named, where training read another."""
    if (trained := remembered.roles) is None:
        return
    if (text is None and roles.text != trained.text) or (label is None and roles.label != trained.label):
        yield other_names(roles)


def _spelled(
    rows: Sequence[RawExample], predictor: Predictor, remembered: Remembered, recipe: Recipe
) -> Sequence[RawExample]:
    """The rows with their texts mended and their labels spelled as training's test rows were."""
    form = predictor.form
    cells = [label_cell((name,), form) for name in predictor.label_names]
    trained = CleanResult(
        rows=[RawExample({"label": cell}, "", 0) for cell in cells],
        rejected=[],
        repaired=0,
        label_merges=remembered.label_merges,
        rare_labels=remembered.rare_labels,
    )
    merge = recipe.data.clean.merge_labels
    settings = CleanSettings(**predictor.bundle.clean, merge_labels=merge)
    return clean_rows(rows, settings=settings, protected=True, known=trained, kind=form.kind).rows


def _has(columns: Sequence[str], text: str) -> bool:
    """Whether a column, or all of `a+b`, is there."""
    return text in columns or set(text.split("+")) <= set(columns)
