"""Looks at documents before anyone trains: what would be dropped, how they divide, what it would cost."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from gptailor.data.segments import PieceEncoder
from gptailor.data.tokenize import Encoder, build_encoder
from gptailor.models.names import read_tokenizer_file, resolve_base
from gptailor.pipeline.documents import PreparedDocuments, prepare_documents
from gptailor.pipeline.documents_tokens import choose_block, kept_chunks
from gptailor.pipeline.rendered import CheckReport, RenderedExample, token_pieces
from gptailor.pipeline.task import refuse_frozen
from gptailor.recipe import Recipe, ScratchApproach
from gptailor.types import PARTS

SHOWN, SHOWN_TOKENS = 3, 60
OTHER_TOKENS = "Tokens are the base's; `scratch` trains a tokenizer of its own, which makes others."


def check_documents(
    recipe: Recipe,
    *,
    estimate: bool,
    say: Callable[[str], None],
    show: Callable[[CheckReport], None],
) -> CheckReport:
    """The summary, three beginnings as the model will read them, and perhaps what a fit would cost.

    Raises:
        GptailorError: training would be refused, for the reason it says.
    """
    refuse_frozen(recipe)
    prepared = prepare_documents(recipe, say)
    say("tokenizing")
    backend, context = read_tokenizer_file(resolve_base(recipe.base, revision=recipe.revision))
    encoder = build_encoder(backend, pad_id=0)
    block = choose_block(recipe.data.max_tokens, context)
    tokens, size, lengths, rendered = _count(prepared, recipe, encoder)
    reasons = Counter(str(reason) for file in prepared.files for reason, _ in file.reasons.values())
    reasons.update(row.reason for file in prepared.files for row in file.documents.rejected)
    longest = max(lengths, default=0)
    counts, edges = np.histogram(lengths, bins=min(30, max(4, longest // 4)), range=(0, longest + 1))
    summary: dict[str, Any] = {
        "task": "language",
        "read": prepared.read,
        "dropped": dict(reasons),
        **{part: len({d for p, d in tokens if p == part}) for part in PARTS},
        "divided": prepared.files[0].divided,
        "bytes": {part: size[part] for part in PARTS},
        "tokens": {part: sum(n for (p, _), n in tokens.items() if p == part) for part in PARTS},
        "blocks": {
            part: -(-sum(n + 1 for (p, _), n in tokens.items() if p == part) // block) for part in PARTS
        },
        "block_tokens": block,
        "bytes_per_token": sum(size.values()) / max(1, sum(tokens.values())),
        "leaks": sum(len(file.documents.overlapping) for file in prepared.files),
        "lengths": {
            "counts": counts.tolist(),
            "edges": [round(float(edge), 1) for edge in edges],
            "max_tokens": block,
            "longest": longest,
            "cut_rows": 0,
            "cut_tokens": 0,
        },
        "near_duplicate_groups": prepared.files[0].near_groups,
        "faults": [
            f"{row.source}:{row.row}: {row.detail}"
            for file in prepared.files
            for row in file.documents.rejected
        ],
        "notes": [*prepared.notes, *([OTHER_TOKENS] if isinstance(recipe.approach, ScratchApproach) else [])],
    }
    found = CheckReport(summary, tuple(rendered), None)
    show(found)
    return replace(found, estimate=_forecast(recipe, prepared, say)) if estimate else found


def _count(
    prepared: PreparedDocuments, recipe: Recipe, encoder: Encoder
) -> tuple[dict[tuple[Any, int], int], dict[Any, int], list[int], list[RenderedExample]]:
    """Tokens by (part, document), bytes by part, tokens of every document, and three beginnings."""
    tokens: dict[tuple[Any, int], int] = {}
    size: dict[Any, int] = dict.fromkeys(PARTS, 0)
    rendered: list[RenderedExample] = []
    whole: Counter[int] = Counter()
    pieces_of_texts = PieceEncoder(encoder.backend)
    for number, file in enumerate(prepared.files):
        for chunk, texts in kept_chunks(file, recipe.data):
            encoded = pieces_of_texts.encode(texts, [begins for _, _, _, (begins, _) in chunk])
            for (part, document, piece, (begins, _)), text, ids in zip(chunk, texts, encoded, strict=True):
                key = document * len(prepared.files) + number
                tokens[part, key] = tokens.get((part, key), 0) + len(ids)
                whole[key] += len(ids)
                size[part] += len(text.encode(errors="replace"))
                if begins and part == "train" and len(rendered) < SHOWN:
                    shown = ids[:SHOWN_TOKENS]
                    pieces = token_pieces(encoder, shown, [True] * len(shown))
                    rendered.append(RenderedExample(f"{piece.source}:{piece.row}", "", pieces))
    return tokens, size, list(whole.values()), rendered


def _forecast(recipe: Recipe, prepared: PreparedDocuments, say: Callable[[str], None]) -> dict[str, Any]:
    """One real step on real blocks, and what follows from it for time and memory."""
    from gptailor.pipeline.causal import adapt_causal, choose_text_approach
    from gptailor.pipeline.forecast import forecast_training
    from gptailor.pipeline.language import language_objective, open_language_shop
    from gptailor.pipeline.place import Listener

    say("measuring one real step")
    with tempfile.TemporaryDirectory() as folder:
        shop = open_language_shop(recipe, prepared, Path(folder), Listener())
        approach = choose_text_approach(recipe, shop.base)
        adapted = adapt_causal(recipe, shop.base, shop.tokenizer, approach, device=shop.environment["device"])
        objective = language_objective(shop, adapted)
        return forecast_training(adapted, objective, recipe, approach.kind)
