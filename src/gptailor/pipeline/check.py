"""Looks before anyone trains: what would be dropped and why, what the lengths are, what it would cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from gptailor.data.tokenize import build_encoder
from gptailor.models.names import read_tokenizer_file, resolve_base
from gptailor.pipeline.language_check import check_documents
from gptailor.pipeline.prepare import PARTS, Prepared, prepare
from gptailor.pipeline.rendered import CheckReport, RenderedExample, token_pieces
from gptailor.pipeline.suspects import suspects_in_data
from gptailor.pipeline.task import settle_task
from gptailor.pipeline.texts.check import check_texts
from gptailor.pipeline.tokens import length_histogram, tokenize_parts
from gptailor.recipe import Recipe


def check_recipe(
    recipe: Recipe, *, estimate: bool = True, say: Callable[[str], None] = lambda _: None
) -> CheckReport:
    """Reads, cleans, splits and tokenizes; then, if asked, measures one real step on the longest batch.

    Raises:
        GptailorError: training would be refused, for the reason it says.
    """
    recipe = settle_task(recipe)
    if recipe.task == "language":
        return check_documents(recipe, estimate=estimate, say=say)
    if recipe.task != "classification":
        return check_texts(recipe, estimate=estimate, say=say)
    prepared = prepare(recipe, say)
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
        "labels": {
            name: {part: _count(prepared, part, place) for part in PARTS}
            for place, name in enumerate(prepared.label_names)
        },
        "repaired": prepared.cleaned.repaired,
        "label_merges": dict(prepared.cleaned.label_merges),
        "label_suspicions": [list(pair) for pair in prepared.cleaned.label_suspicions],
        "near_duplicate_groups": len(prepared.near_groups),
        "leaks": len(prepared.leaks),
        "suspects": len(suspects_in_data(prepared)),
        "lengths": length_histogram(tokens),
        "notes": list(prepared.notes),
    }
    rendered = tuple(
        RenderedExample(
            where=f"{row.source}:{row.row}",
            label=prepared.label_names[row.label or 0],
            pieces=token_pieces(encoder, row.token_ids.tolist(), row.learn.tolist()),
        )
        for row in tokens.rows["train"][:3]
    )
    forecast = None
    if estimate:
        say("measuring one real step")
        from gptailor.pipeline.forecast import forecast_fit

        forecast = forecast_fit(recipe, prepared, tokens)
    return CheckReport(summary, rendered, forecast, prepared, tokens)


def _count(prepared: Prepared, part: Any, label: int) -> int:
    return sum(example.label == label for example in prepared.parts[part])
