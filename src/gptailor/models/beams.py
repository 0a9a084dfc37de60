"""Beam search, one prompt at a time, by transformers."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from gptailor.models.sampling import Sampling, ScoredToken, log_total, scored


def search_beams(
    model: PreTrainedModel,
    prompt: Sequence[int],
    sampling: Sampling,
    *,
    limit: int,
    end: Collection[int],
    pad: int,
    top: int = 0,
) -> list[ScoredToken]:
    """The likeliest answer that the beams find: at most `limit` tokens, its end token among them."""
    ids = torch.tensor([list(prompt)], device=model.device)
    settings: Any = GenerationConfig(
        do_sample=False,
        num_beams=sampling.num_beams,
        repetition_penalty=sampling.repetition_penalty,
        max_new_tokens=limit,
        eos_token_id=sorted(end) or None,
        pad_token_id=pad,
        use_cache=True,
    )
    searcher: Any = model
    theirs = searcher.generation_config
    searcher.generation_config = GenerationConfig()  # a base's own defaults would fill what is unset here
    try:
        with torch.inference_mode():
            made = searcher.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings
            )
            logits = searcher(input_ids=made[:, :-1], use_cache=False).logits[0, len(prompt) - 1 :]
    finally:
        searcher.generation_config = theirs
    rows = logits.float().cpu().numpy()
    tokens = made[0, len(prompt) :].tolist()
    return [scored(token, row, log_total(row), top=top) for token, row in zip(tokens, rows, strict=True)]
