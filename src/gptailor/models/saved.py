"""`model/` as transformers loads it: written, and proven to be what was trained."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gptailor.errors import ModelError
from gptailor.launch import sync
from gptailor.models.load import load_saved_classifier, load_saved_language_model
from gptailor.types import FloatArray

# Largest difference between the logits we evaluated and those the saved folder gives elsewhere (fp32).
PARITY_TOLERANCE = 1e-3


def save_model(
    folder: Path,
    *,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int | None = None,
) -> None:
    """Writes weights, configuration and tokenizer beside the folder, then swaps it in by renaming.

    `max_tokens`: how much of a text a classifier reads, where that is less than it could.
    """
    partial = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    config: Any = model.config
    config.use_cache = True
    model.save_pretrained(partial)
    config.use_cache = False
    tokenizer.save_pretrained(partial)
    _limit_length(partial, config, max_tokens)
    for path in (*partial.iterdir(), partial):
        sync(path)
    if folder.exists():
        shutil.rmtree(folder)
    partial.rename(folder)


def reload_parity(
    folder: Path, sequences: Sequence[Sequence[int]], logits: FloatArray, *, pad_id: int
) -> float:
    """Loads a saved folder as any other tool would and compares logits on (N, T) sequences, padded together.

    Returns the largest difference.

    Raises:
        ModelError: it is over the tolerance; what was saved is not what was trained.
    """
    model: Any = load_saved_classifier(folder)
    longest = max(map(len, sequences))
    ids = torch.full((len(sequences), longest), pad_id)
    mask = torch.zeros_like(ids)
    for place, sequence in enumerate(sequences):
        ids[place, : len(sequence)] = torch.tensor(list(sequence))
        mask[place, : len(sequence)] = 1
    with torch.inference_mode():
        reloaded = model(input_ids=ids, attention_mask=mask).logits.double().numpy()
    difference = float(np.abs(reloaded - logits).max())
    return within_tolerance(difference, "the saved model's logits", where=folder)


def within_tolerance(
    difference: float, what: str, *, where: Path | None = None, largest: float = 1.0
) -> float:
    """The largest difference from the trained model, of logits or of nats, if it is within the tolerance.

    That grows with the `largest` of them from 1 on.

    Raises:
        ModelError: it isn't, or is no number.
    """
    tolerance = PARITY_TOLERANCE * max(1.0, largest)
    if not difference <= tolerance:
        raise ModelError(
            f"{what} differ by {difference:.2g} from the trained model's (tolerance {tolerance:g}).",
            where=None if where is None else str(where),
            fix="Please report this with RUN/environment.json; the checkpoints are whole.",
        )
    return difference


def token_nats(model: PreTrainedModel, ids: Sequence[int]) -> list[float]:
    """What each token of a text costs a language model after the ones before it, in nats."""
    tokens = torch.tensor([list(ids)], device=model.device)
    model.eval()
    with torch.inference_mode():
        logits = model(input_ids=tokens, use_cache=False).logits[0, :-1].double()
    chosen = logits.log_softmax(-1).gather(1, tokens[0, 1:, None])[:, 0]
    return [-value for value in chosen.cpu().tolist()]


def replay_nats(folder: Path, probes: Sequence[Mapping[str, Any]]) -> float:
    """Loads a saved language model as any other tool would and reads its probes again.

    Returns the largest difference, in nats.

    Raises:
        ModelError: it is over the tolerance; what was saved is not what was trained.
    """
    model = load_saved_language_model(folder)
    found = [token_nats(model, probe["token_ids"]) for probe in probes]
    apart = [
        abs(now - then)
        for costs, probe in zip(found, probes, strict=True)
        for now, then in zip(costs, probe["nats"], strict=True)
    ]
    difference = float(np.max(apart))  # Python's own would pass over NaN
    return within_tolerance(difference, "the saved model's log-probabilities", where=folder)


def _limit_length(folder: Path, config: Any, max_tokens: int | None) -> None:
    """Keeps other tools from feeding more than the model can read, or than it learned to."""
    path = folder / "tokenizer_config.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    limits = [getattr(config, "max_position_embeddings", 0), values.get("model_max_length"), max_tokens]
    if known := [int(limit) for limit in limits if limit]:
        values["model_max_length"] = min(known)
    values["split_special_tokens"] = True
    if values.get("tokenizer_class") == "TokenizersBackend":  # the name that older releases know, too
        values["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False), encoding="utf-8")
