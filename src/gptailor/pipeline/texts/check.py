"""Looks at the rows of a text task before anyone trains: what is dropped and learned, what it would cost."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from gptailor.pipeline.causal import adapt_causal, choose_text_approach
from gptailor.pipeline.place import Listener
from gptailor.pipeline.rendered import CheckReport, RenderedExample
from gptailor.pipeline.task import refuse_frozen
from gptailor.pipeline.texts.objective import answer_objective, preference_objective
from gptailor.pipeline.texts.shop import TextShop, open_text_shop
from gptailor.pipeline.texts.story import notes_on_windows
from gptailor.pipeline.texts.tokens import TokenizedRow, length_histogram
from gptailor.recipe import Recipe
from gptailor.types import PARTS, RejectedRow

SHOWN = 3


def check_texts(
    recipe: Recipe,
    *,
    estimate: bool,
    say: Callable[[str], None],
    show: Callable[[CheckReport], None],
) -> CheckReport:
    """The summary, three rows as the model will read them, and perhaps what a fit would cost.

    Raises:
        GptailorError: training would be refused, for the reason it says.
    """
    refuse_frozen(recipe)
    with tempfile.TemporaryDirectory() as folder:
        shop = open_text_shop(recipe, Path(folder), Listener(say=say))
        rejected = [*shop.prepared.rejected, *shop.tokens.rejected]
        rows = shop.tokens.rows
        summary: dict[str, Any] = {
            "task": recipe.task,
            "read": shop.prepared.read,
            "dropped": dict(Counter(row.reason for row in rejected)),
            **{part: len(rows[part]) for part in PARTS},
            "repaired": shop.prepared.repaired,
            "near_duplicate_groups": shop.prepared.near_groups,
            "leaks": shop.prepared.leaks,
            "tokens": {part: _tokens(rows[part]) for part in PARTS},
            "learned_tokens": {part: _tokens(rows[part], learned=True) for part in PARTS},
            "lengths": length_histogram(shop.tokens),
            "without_room": sum(row.prompt_ids is None for part in PARTS for row in rows[part]),
            "faults": [f"{row.source}:{row.row}: {row.detail}" for row in _faulty(rejected)],
            "cut": [f"{row.row.source}:{row.row.row}" for part in PARTS for row in rows[part] if row.cut],
            "notes": [*shop.form.says, *shop.prepared.notes, *notes_on_windows(shop)],
        }
        rendered = tuple(_rendered(shop, row) for row in rows["train"][:SHOWN])
        found = CheckReport(summary, rendered, None)
        show(found)
        return replace(found, estimate=_forecast(shop, say)) if estimate else found


def _tokens(rows: list[TokenizedRow], *, learned: bool = False) -> int:
    found = [one for row in rows for one in row.sequences]
    return sum(int(one.learn[1:].sum()) if learned else len(one.token_ids) for one in found)


def _faulty(rejected: list[RejectedRow]) -> list[RejectedRow]:
    """Rows with something to mend, not those that only repeat others."""
    kinds = ("unreadable", "no_text", "nothing_to_learn", "conflict")
    return [row for row in rejected if row.reason in kinds]


def _rendered(shop: TextShop, row: TokenizedRow) -> RenderedExample:
    """The text of each token; those that are parts of one character stand together."""
    [first, *_] = row.sequences
    ids, learn = first.token_ids.tolist(), first.learn.tolist()
    pieces, start = [], 0
    for end in range(1, len(ids) + 1):
        text = shop.text.encoder.closed.decode(ids[start:end], skip_special_tokens=False)
        if text.endswith("\ufffd") and end < len(ids):
            continue
        pieces.append((text, bool(learn[end - 1])))
        start = end
    return RenderedExample(f"{row.row.source}:{row.row.row}", "", tuple(pieces))


def _forecast(shop: TextShop, say: Callable[[str], None]) -> dict[str, Any]:
    """One real step on the longest batch, and what follows from it for time and memory."""
    from gptailor.pipeline.forecast import forecast_training

    say("measuring one real step")
    recipe = shop.recipe
    approach = choose_text_approach(recipe, shop.base)
    adapted = adapt_causal(
        recipe, shop.base, shop.text.tokenizer, approach, device=shop.environment["device"]
    )
    if recipe.task != "preference":
        return forecast_training(adapted, answer_objective(shop, adapted), recipe, approach.kind)
    objective = preference_objective(shop, adapted, None)
    found = forecast_training(adapted, objective, recipe, approach.kind)
    if recipe.preference.loss == "simpo":
        return found
    epochs = found["steps"] * found["batch_size"] / len(shop.tokens.rows["train"])
    reference = found["seconds"] / 3 / epochs  # one pass over the pairs, and no backward
    return {**found, "seconds": found["seconds"] + reference}
