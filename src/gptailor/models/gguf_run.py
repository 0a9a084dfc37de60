"""A GGUF file as llama.cpp runs it, where llama-cpp-python is installed: same tokens, same answers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gptailor.data.tokenize import Encoder
from gptailor.errors import ModelError
from gptailor.models.replay import probe_difference, refuse_difference
from gptailor.types import Bundle, FloatArray

# In nats. llama.cpp looks GPT-2's GELU up in a table of half precision: 0.005 in the logits of small models.
TOLERANCE = 0.05
HARD_TEXT = "Don't: 12345.67 naïve\u00a0tests,\r\n\n\tit's  日本語 🎉 <|endoftext|> <s>_x_  "


def compare_with_llama_cpp(path: Path, bundle: Bundle, encoder: Encoder, *, exact: bool) -> dict[str, Any]:
    """The largest difference from the stored probes, in nats per token; or why nothing was compared.

    Args:
        path: The file.
        bundle: What was exported.
        encoder: The tokenizer that the file must repeat.
        exact: Whether the weights are those of the bundle, so that a difference is an error.

    Raises:
        ModelError: llama.cpp cuts a text into other tokens, or answers differently.
    """
    try:
        import llama_cpp
    except ImportError:
        return {"skipped": "llama-cpp-python isn't installed"}
    longest = max(len(probe["token_ids"]) for probe in bundle.probes)
    whole = llama_cpp.GGML_TYPE_F32  # of the key-value cache
    model: Any = llama_cpp.Llama(
        str(path),
        n_ctx=longest + 1,
        n_gpu_layers=0,
        logits_all=True,
        verbose=False,
        type_k=whole,
        type_v=whole,
    )
    try:
        _refuse_other_tokens(
            model, encoder, [HARD_TEXT, *(probe["text"] for probe in bundle.probes)], bundle.path
        )

        def answer(ids: Sequence[int]) -> FloatArray:
            model.reset()
            model.eval(list(ids))
            return np.array(model.scores[: len(ids)], np.float64)

        difference = probe_difference(bundle.probes, answer)
    finally:
        model.close()
    if exact:
        refuse_difference(difference, where=bundle.path, tolerance=TOLERANCE)
    return {"version": llama_cpp.__version__, "difference": difference}


def _refuse_other_tokens(model: Any, encoder: Encoder, texts: Iterable[str], where: Path) -> None:
    for text in texts:
        ours = encoder.backend.encode(text, add_special_tokens=False).ids
        theirs = model.tokenize(text.encode(), add_bos=False, special=False)
        if ours != theirs:
            raise ModelError(
                f"llama.cpp cuts {text[:40]!r} into other tokens than this model was trained on.",
                where=str(where),
                fix="Please report this with RUN/model/tokenizer.json. `--to hf` copies the model as it is.",
            )
