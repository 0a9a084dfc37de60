"""Looks before anyone trains: what would be dropped and why, what the lengths are, what it would cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from gptailor.data.tokenize import build_encoder
from gptailor.models.names import read_tokenizer_file, resolve_base
from gptailor.models.readout import label_text
from gptailor.pipeline.labels import refuse_of_classes
from gptailor.pipeline.language_check import check_documents
from gptailor.pipeline.prepare import Prepared, names_of, prepare
from gptailor.pipeline.rendered import CheckReport, RenderedExample, token_pieces
from gptailor.pipeline.suspects import suspects_in_data
from gptailor.pipeline.task import passed_over_by_frozen, settle_task
from gptailor.pipeline.tokens import length_histogram, tokenize_parts
from gptailor.pipeline.trackers import refuse_missing_trackers
from gptailor.recipe import Recipe
from gptailor.tasks.classification import weights_by_label
from gptailor.types import PARTS


def check_recipe(
    recipe: Recipe,
    *,
    estimate: bool = True,
    say: Callable[[str], None] = lambda _: None,
    show: Callable[[CheckReport], None] = lambda _: None,
) -> CheckReport:
    """Reads, cleans, splits and tokenizes; then, if asked, measures one real step on the longest batch.

    `show` gets what is found as soon as it is there, before the step.

    Raises:
        GptailorError: training would be refused, for the reason it says.
    """
    recipe = settle_task(recipe)
    refuse_missing_trackers(recipe.trackers)
    if recipe.task == "language":
        return check_documents(recipe, estimate=estimate, say=say, show=show)
    if recipe.task != "classification":
        from gptailor.pipeline.texts.check import (
            check_texts,  # loads torch, which classification doesn't need
        )

        return check_texts(recipe, estimate=estimate, say=say, show=show)
    prepared = prepare(recipe, say)
    if prepared.form.kind != "single":
        refuse_of_classes(recipe.train)
    elif isinstance(recipe.train.class_weights, Mapping):
        weights_by_label(recipe.train.class_weights, prepared.label_names)
    say("tokenizing")
    backend, context = read_tokenizer_file(resolve_base(recipe.base, revision=recipe.revision))
    encoder = build_encoder(backend, pad_id=0)
    tokens = tokenize_parts(prepared, encoder, recipe.data, context=context)
    dropped = Counter(row.reason for row in [*prepared.rejected, *tokens.rejected])
    summary: dict[str, Any] = {
        "read": prepared.read,
        "dropped": dict(dropped),
        **{part: len(tokens.examples[part]) for part in PARTS},
        "text": prepared.roles.text,
        "label": prepared.roles.label,
        "answer": prepared.form.kind,
        "labels": label_counts(prepared),
        "repaired": prepared.cleaned.repaired,
        "label_merges": dict(prepared.cleaned.label_merges),
        "label_suspicions": [list(pair) for pair in prepared.cleaned.label_suspicions],
        "near_duplicate_groups": len(prepared.near_groups),
        "leaks": len(prepared.leaks),
        "suspects": len(suspects_in_data(prepared)),
        "lengths": length_histogram(tokens),
        "notes": [*prepared.notes, *passed_over_by_frozen(recipe)],
        "faults": [
            f"{row.source}:{row.row}: {row.detail}" for row in prepared.rejected if row.reason == "unreadable"
        ],
    }
    rendered = tuple(
        RenderedExample(
            where=f"{row.source}:{row.row}",
            label=label_text(row.label, prepared.label_names, prepared.form) if row.label is not None else "",
            pieces=token_pieces(encoder, row.token_ids.tolist(), row.learn.tolist()),
        )
        for row in tokens.rows["train"][:3]
    )
    found = CheckReport(summary, rendered, None, prepared, tokens)
    show(found)
    if estimate:
        say("measuring one real step")
        from gptailor.pipeline.forecast import forecast_fit

        found = replace(found, estimate=forecast_fit(recipe, prepared, tokens))
    return found


def label_counts(prepared: Prepared) -> dict[str, dict[str, int]]:
    """Rows of each part that carry each label; nothing for numbers."""
    if prepared.form.kind == "score":
        return {}
    counts = {
        part: Counter(name for example in prepared.parts[part] for name in names_of(prepared, example))
        for part in PARTS
    }
    return {name: {part: counts[part][name] for part in PARTS} for name in prepared.label_names}
