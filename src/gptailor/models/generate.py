"""How a language model goes on with a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel


def continue_tokens(
    model: PreTrainedModel,
    prompt: Sequence[int],
    *,
    max_new_tokens: int,
    end: int,
    pad: int,
    temperature: float = 0.8,
    seed: int = 0,
) -> list[int]:
    """Token ids that follow a prompt, drawn from the seed; the end token, where it came, is left off.

    Drawn from the fifty likeliest tokens at the temperature; 0 takes the likeliest each time.
    """
    context = int(getattr(model.config, "max_position_embeddings", 0) or 1024)
    given = list(prompt)[-max(1, context - max_new_tokens) :]
    ids = torch.tensor([given], device=model.device)
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    drawing: dict[str, Any] = {"do_sample": False}
    if temperature > 0:
        drawing = {"do_sample": True, "temperature": temperature, "top_k": 50}
    model.eval()
    try:
        with torch.inference_mode():
            generator: Any = model
            made = generator.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=max(1, min(max_new_tokens, context - len(given))),
                eos_token_id=end,
                pad_token_id=pad,
                use_cache=True,
                **drawing,
            )
    finally:
        torch.random.set_rng_state(state)
    new: list[int] = made[0, len(given) :].tolist()
    return new[: new.index(end)] if end in new else new
