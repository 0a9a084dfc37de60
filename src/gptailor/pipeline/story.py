"""What a finished run leaves for people: predictions, suspects, report.json, the page, the model card."""

from __future__ import annotations

import datetime
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gptailor import __version__
from gptailor.data.ledger import write_csv_safely
from gptailor.data.repair import repair
from gptailor.models.readout import as_label, decide, joined, label_text, labels_named, read_answer
from gptailor.pipeline.folder import settled_recipe
from gptailor.pipeline.kinds import Kind, kind_of
from gptailor.pipeline.labels import answers_of
from gptailor.pipeline.openings import openings_of
from gptailor.pipeline.outcome import REPEAT, base_details, write_outcome
from gptailor.pipeline.prepare import Prepared, names_of
from gptailor.pipeline.tokens import TokenizedParts, length_histogram
from gptailor.pipeline.workshop import Candidate, Workshop
from gptailor.recipe import AutoApproach, FrozenApproach, FullApproach, Recipe, dump_recipe
from gptailor.types import PARTS, AnswerForm, Example, RawExample, Reason

SHOWN = 12  # examples of each kind on the page


def tell(
    folder: Path,
    report: Mapping[str, Any],
    details: Mapping[str, Any],
    *,
    prepared: Prepared,
    tokens: TokenizedParts,
    form: AnswerForm,
) -> None:
    """Writes everything; report.json last, because a folder with it is finished."""
    probabilities = details["probabilities"]
    examples = tokens.examples["test"]
    kind = kind_of(form)
    write_predictions(folder / "predictions.csv", examples, probabilities, prepared.label_names, form)
    details = {
        **{key: value for key, value in details.items() if key != "probabilities"},
        **data_story(prepared, tokens),
        "title": folder.name,
        "command": REPEAT,
        "mistakes": worst_mistakes(examples, probabilities, prepared.label_names, kind),
        "baseline_notes": {
            name: rung.get("skipped") or rung.get("note", "") for name, rung in report["baselines"].items()
        },
        "openings": openings_of(folder),
    }
    write_outcome(folder, report, details)


def describe(
    shop: Workshop,
    chosen: Candidate,
    candidates: list[Candidate],
    *,
    parity: Mapping[str, float],
) -> dict[str, Any]:
    """What the page says of the model beside its scores."""
    resolved = resolved_recipe(shop, chosen)
    return {
        "created": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "version": __version__,
        "base_details": base_details(shop.base, chosen.model),
        "curves": chosen.trained.curves,
        "strengths": list(chosen.strengths),
        "candidates": [
            {
                "approach": candidate.approach,
                shop.kind.validation_key: shop.kind.told(candidate.score),
                "seconds": candidate.seconds,
                "chosen": candidate is chosen,
            }
            for candidate in candidates
        ],
        "parity": dict(parity),
        "too_long": shop.tokens.too_long,
        "recipe": dump_recipe(resolved),
    }


def resolved_recipe(shop: Workshop, chosen: Candidate) -> Recipe:
    """The recipe with everything that was decided written in, so that it repeats the run."""
    recipe = shop.recipe
    approach = recipe.approach
    if isinstance(approach, AutoApproach):
        approach = FrozenApproach() if chosen.approach == "frozen" else FullApproach()
    form = shop.kind.form
    data: dict[str, Any] = {"max_tokens": shop.tokens.max_tokens}
    if form.kind == "multiple" and form.separator:
        data["label_separator"] = form.separator
    return settled_recipe(recipe, shop.base, data=data, task_answer=form.kind, approach=approach)


def write_predictions(
    path: Path,
    examples: Sequence[Example],
    probabilities: Any,
    label_names: list[str],
    form: AnswerForm,
) -> None:
    """The test rows with answer, prediction, probabilities (a number has none) and what they are sliced by.

    Formulas are defused.
    """
    header = ["source", "row", "text", "answer", "prediction"]
    if form.kind != "score":
        header += ["probability", *(f"p({n})" for n in label_names)]
    header += [*(f"slice({name})" for name, _ in examples[0].slices), "group"]

    def cells(example: Example, row: Any) -> Iterator[object]:
        yield from (example.source, example.row, example.text)
        if form.kind == "score":
            yield from (repr(example.label), repr(float(row[0])))
        else:
            answer = read_answer(row, label_names, form, threshold=None, truncated=False)
            labels = () if example.label is None else labels_named(example.label, label_names)
            yield joined(labels, form) if form.kind == "multiple" else "".join(labels)
            yield from (answer.label, repr(answer.probability), *map(repr, answer.probabilities.values()))
        yield from (*(value for _, value in example.slices), example.group)

    write_csv_safely(path, header, (list(cells(*pair)) for pair in zip(examples, probabilities, strict=True)))


def worst_mistakes(
    examples: Sequence[Example], probabilities: Any, label_names: list[str], kind: Kind
) -> list[dict[str, Any]]:
    """The wrong answers: most confident first, or furthest off."""
    errors = kind.errors(probabilities, answers_of(examples))
    guesses = decide(probabilities, kind.form)
    wrong = np.flatnonzero(errors > 0)
    wrong = wrong[np.argsort(-errors[wrong], kind="stable")]
    return [
        {
            "text": examples[place].text,
            "answer": label_text(as_label(answers_of([examples[place]])[0]), label_names, kind.form),
            "prediction": label_text(as_label(guesses[place]), label_names, kind.form),
            "probability": float(errors[place]) if kind.doubt else None,
            "where": f"{examples[place].source}:{examples[place].row}",
        }
        for place in wrong[:SHOWN].tolist()
    ]


def data_story(prepared: Prepared, tokens: TokenizedParts) -> dict[str, Any]:
    """What was found in the data, with examples."""
    cleaned = prepared.cleaned
    duplicates, conflicts = duplicates_found(prepared), conflicts_found(prepared)
    return {
        "lengths": length_histogram(tokens),
        "label_counts": {
            part: dict(Counter(name for e in prepared.parts[part] for name in names_of(prepared, e)))
            for part in PARTS
        },
        "found": {
            "duplicates": len(duplicates),
            "conflicts": len(conflicts),
            "near_duplicates": len(prepared.near_groups),
            "leaks": len(prepared.leaks),
        },
        "duplicates": duplicates[:SHOWN],
        "conflicts": conflicts[:SHOWN],
        "near_duplicates": [
            {"rows": [_place(e) for e in group], "texts": [e.text for e in group[:3]]}
            for group in prepared.near_groups[:SHOWN]
        ],
        "leaks": [
            {
                "train": _place(leak.row),
                "test": _place(leak.held_out),
                "kind": leak.kind,
                "texts": [leak.row.fields["text"], leak.held_out.fields["text"]],
            }
            for leak in prepared.leaks[:SHOWN]
        ],
        "label_merges": dict(cleaned.label_merges),
        "label_suspicions": [list(pair) for pair in cleaned.label_suspicions],
        "repairs": {kind: [list(pair) for pair in pairs] for kind, pairs in cleaned.examples.items()},
        "notes": list(prepared.notes),
    }


def duplicates_found(prepared: Prepared) -> list[dict[str, str]]:
    """Rows that repeat an earlier one, beside that one, whatever became of it."""
    says = {(row.source, row.row): row.detail for row in prepared.rejected if row.reason == "duplicate"}
    found = []
    for text, row in _rows_dropped_as("duplicate", prepared):
        first = re.search(r" as row (\d+)(?: of (.*))?$", says[row.source, row.row], re.DOTALL)
        kept = f"{first[2] or row.source}:{first[1]}" if first else ""
        found.append({"kept": kept, "dropped": _place(row), "text": text})
    return found


def conflicts_found(prepared: Prepared) -> list[dict[str, Any]]:
    """Texts that carry different labels, with the labels and the rows."""
    found: dict[str, dict[str, Any]] = {}
    for text, row in _rows_dropped_as("conflict", prepared):
        entry = found.setdefault(text, {"text": text, "labels": [], "rows": []})
        entry["labels"].append(row.fields.get("label", ""))
        entry["rows"].append(_place(row))
    return list(found.values())


def _rows_dropped_as(reason: Reason, prepared: Prepared) -> list[tuple[str, RawExample]]:
    keys = {(row.source, row.row) for row in prepared.rejected if row.reason == reason}
    return [
        (repair(row.fields["text"]), row) for row in prepared.rejected_rows if (row.source, row.row) in keys
    ]


def _place(row: Example | RawExample) -> str:
    return f"{row.source}:{row.row}"
