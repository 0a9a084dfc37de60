"""What a finished run leaves for people: predictions, suspects, report.json, the page, the model card."""

from __future__ import annotations

import datetime
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gptailor import __version__
from gptailor.data.clean import repair
from gptailor.data.ledger import write_csv_safely
from gptailor.evaluate.run import overfitting_in_words
from gptailor.launch import write_atomically
from gptailor.pipeline.prepare import PARTS, Prepared
from gptailor.pipeline.tokens import TokenizedParts, length_histogram
from gptailor.pipeline.workshop import Candidate, Workshop
from gptailor.recipe import AutoApproach, FrozenApproach, FullApproach, Recipe, dump_recipe
from gptailor.report.card import render_card
from gptailor.report.page import render_page
from gptailor.types import Bundle, Example, RawExample, Reason

STARTER_LICENSE = "CC BY-SA 4.0 (see LICENSE.md of the starter)"
SHOWN = 12  # examples of each kind on the page


def tell(
    folder: Path,
    report: Mapping[str, Any],
    details: Mapping[str, Any],
    *,
    prepared: Prepared,
    tokens: TokenizedParts,
) -> None:
    """Writes everything; report.json last, because a folder with it is finished."""
    probabilities = details["probabilities"]
    examples = tokens.examples["test"]
    write_predictions(folder / "predictions.csv", examples, probabilities, prepared.label_names)
    details = {
        **{key: value for key, value in details.items() if key != "probabilities"},
        **data_story(prepared, tokens),
        "title": folder.name,
        "command": f"gptailor fit {prepared.parts['train'][0].source}",
        "mistakes": surest_mistakes(examples, probabilities, prepared.label_names),
        "baseline_notes": {
            name: rung.get("skipped") or rung.get("note", "") for name, rung in report["baselines"].items()
        },
        "openings": [
            json.loads(line) for line in (folder / "openings.jsonl").read_text(encoding="utf-8").splitlines()
        ],
    }
    write_atomically(folder / "recipe.yaml", details["recipe"])
    write_atomically(folder / "details.json", json.dumps(details, ensure_ascii=False))
    write_atomically(folder / "report.html", render_page(report, details))
    write_atomically(folder / "README.md", render_card(report, details))
    write_atomically(folder / "report.json", json.dumps(report, indent=1, ensure_ascii=False))


def describe(
    shop: Workshop,
    chosen: Candidate,
    candidates: list[Candidate],
    *,
    bundle: Bundle,
    parity: Mapping[str, float],
) -> dict[str, Any]:
    """What the page says of the model beside its scores."""
    resolved = resolved_recipe(shop, chosen)
    return {
        "created": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "version": __version__,
        "base_details": {
            "name": shop.base.name,
            "revision": bundle.base_revision,
            "parameters": sum(parameter.numel() for parameter in chosen.model.parameters()),
            **({"license": STARTER_LICENSE} if shop.base.kind == "starter" else {}),
        },
        "curves": chosen.trained.curves,
        "strengths": list(chosen.strengths),
        "candidates": [
            {
                "approach": candidate.approach,
                "validation_macro_f1": candidate.macro_f1,
                "seconds": candidate.seconds,
                "chosen": candidate is chosen,
            }
            for candidate in candidates
        ],
        "overfitting": overfitting_in_words(chosen.trained.curves, best_step=chosen.trained.best_step),
        "parity": dict(parity),
        "recipe": dump_recipe(resolved),
    }


def resolved_recipe(shop: Workshop, chosen: Candidate) -> Recipe:
    """The recipe with everything that was decided written in, so that it repeats the run."""
    recipe = shop.recipe
    approach = recipe.approach
    if isinstance(approach, AutoApproach):
        approach = FrozenApproach() if chosen.approach == "frozen" else FullApproach()
    located = {
        key: str(Path(value).resolve())
        for key in ("train", "validation", "test")
        if (value := getattr(recipe.data, key)) is not None and Path(value).exists()
    }
    data = recipe.data.model_copy(update={**located, "max_tokens": shop.tokens.max_tokens})
    revision = shop.base.revision if shop.base.kind == "hub" else recipe.revision
    return recipe.model_copy(update={"data": data, "approach": approach, "revision": revision})


def write_predictions(
    path: Path, examples: Iterable[Example], probabilities: Any, label_names: list[str]
) -> None:
    """The test rows with answer, prediction and probabilities; formulas defused."""
    header = [
        "source",
        "row",
        "text",
        "answer",
        "prediction",
        "probability",
        *(f"p({n})" for n in label_names),
    ]
    rows = (
        [
            example.source,
            example.row,
            example.text,
            "" if example.label is None else label_names[example.label],
            label_names[int(row.argmax())],
            repr(float(row.max())),
            *(repr(float(value)) for value in row),
        ]
        for example, row in zip(examples, probabilities, strict=True)
    )
    write_csv_safely(path, header, rows)


def surest_mistakes(
    examples: list[Example], probabilities: Any, label_names: list[str]
) -> list[dict[str, Any]]:
    """The wrong answers, most confident first."""
    answers = np.array([example.label for example in examples])
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != answers)
    wrong = wrong[np.argsort(-probabilities[wrong].max(axis=1), kind="stable")]
    return [
        {
            "text": examples[place].text,
            "answer": label_names[answers[place]],
            "prediction": label_names[int(probabilities[place].argmax())],
            "probability": float(probabilities[place].max()),
            "where": f"{examples[place].source}:{examples[place].row}",
        }
        for place in wrong[:SHOWN].tolist()
    ]


def data_story(prepared: Prepared, tokens: TokenizedParts) -> dict[str, Any]:
    """What was found in the data, with examples."""
    cleaned = prepared.cleaned
    return {
        "lengths": length_histogram(tokens),
        "label_counts": {
            part: dict(
                Counter(prepared.label_names[e.label] for e in prepared.parts[part] if e.label is not None)
            )
            for part in PARTS
        },
        "duplicates": duplicates_found(prepared)[:SHOWN],
        "conflicts": conflicts_found(prepared)[:SHOWN],
        "near_duplicates": [
            {"rows": [_place(e) for e in group], "texts": [e.text for e in group[:3]]}
            for group in prepared.near_groups[:SHOWN]
        ],
        "leaks": [
            {
                "train": _place(leak.train),
                "test": _place(leak.held_out),
                "kind": leak.kind,
                "texts": [leak.train.fields["text"], leak.held_out.fields["text"]],
            }
            for leak in prepared.leaks[:SHOWN]
        ],
        "label_merges": dict(cleaned.label_merges),
        "label_suspicions": [list(pair) for pair in cleaned.label_suspicions],
        "repairs": {kind: [list(pair) for pair in pairs] for kind, pairs in cleaned.examples.items()},
        "notes": list(prepared.notes),
    }


def duplicates_found(prepared: Prepared) -> list[dict[str, str]]:
    """Rows that repeat an earlier one, beside the one that was kept."""
    repeated = _rows_dropped_as("duplicate", prepared)
    wanted = {text for text, _ in repeated}
    kept = {
        example.text: example
        for part in reversed(PARTS)
        for example in prepared.parts[part]
        if example.text in wanted
    }
    return [
        {"kept": _place(kept[text]), "dropped": _place(row), "text": text}
        for text, row in repeated
        if text in kept
    ]


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
