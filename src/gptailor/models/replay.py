"""The probes of a bundle, asked again wherever its model runs: in another folder, library or file format."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from gptailor.errors import ModelError
from gptailor.models.saved import PARITY_TOLERANCE
from gptailor.types import FloatArray

# Token ids of one text to its logits: (C,) of a classifier, (T, V) of a language model.
Answers = Callable[[Sequence[int]], FloatArray]


def torch_answers(model: PreTrainedModel) -> Answers:
    """A loaded model, asked one text at a time, as any other tool would."""
    called: Any = model
    called.eval()

    def answer(ids: Sequence[int]) -> FloatArray:
        with torch.inference_mode():
            logits = called(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0]
        found: FloatArray = logits.double().numpy()
        return found

    return answer


def sequences_of(probe: Mapping[str, Any]) -> list[list[int]]:
    """The token ids of a probe: one sequence, or one for each window of a long text."""
    ids = probe["token_ids"]
    return ids if isinstance(ids[0], list) else [ids]


def probe_difference(probes: Sequence[Mapping[str, Any]], answers: Answers) -> float:
    """The largest difference from what the bundle holds: of logits, or of a text's nats per token."""
    return float(np.max([_difference(probe, answers) for probe in probes]))


def refuse_difference(difference: float, *, where: Path, tolerance: float = PARITY_TOLERANCE) -> float:
    """The difference, if it is small.

    Raises:
        ModelError: it isn't, or is no number.
    """
    if not difference <= tolerance:
        raise ModelError(
            f"what was written answers differently: its logits differ by {difference:.2g} "
            f"(tolerance {tolerance:g}), so it was not kept.",
            where=str(where),
            fix="Please report this with RUN/model/config.json. `--to hf` copies the model as it is.",
        )
    return difference


def _difference(probe: Mapping[str, Any], answers: Answers) -> float:
    found = [answers(ids) for ids in sequences_of(probe)]
    if "logits" in probe:  # the windows of a long text are averaged
        return float(np.abs(np.mean(found, axis=0) - np.array(probe["logits"])).max())
    [logits], [ids] = found, sequences_of(probe)
    logits = logits[:-1] - logits[:-1].max(axis=1, keepdims=True)
    costs = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(ids) - 1), ids[1:]]
    return float(np.abs(costs - np.array(probe["nats"])).max())
