"""A run's model for other tools, compared with what the run answers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from gptailor.errors import ModelError, RunError, did_you_mean
from gptailor.launch import write_atomically
from gptailor.models.bundle import find_model_folder, read_bundle, reload_parity, replay_nats
from gptailor.models.predictor import Predictor

FORMATS = ("hf",)


def export_run(run: Path, *, to: str, out: Path | None) -> dict[str, Any]:
    """Copies the model folder to `out` and reloads it there with plain transformers.

    Returns the format, the folder and the largest difference of logits (of a language model: of
    log-probabilities) on the stored probes.

    Raises:
        RunError: the format isn't known or the folder is in use.
        ModelError: what was written answers differently.
    """
    if to not in FORMATS:
        raise RunError(
            f"can't export to {to!r} (yet); known: {', '.join(FORMATS)}.{did_you_mean(to, FORMATS)}",
            fix="`hf` is a plain transformers folder, which most tools read.",
        )
    source = find_model_folder(run)
    folder = out or run / "export" / to
    if folder.exists() and any(folder.iterdir()):
        raise RunError("is not empty.", where=str(folder), fix="Choose another folder with --out.")
    bundle = read_bundle(source)
    if not bundle.probes:
        raise ModelError("holds no probes to compare with.", where=str(source), fix="Fit again.")
    shutil.copytree(source, folder, dirs_exist_ok=True)
    if bundle.task == "classification":
        compared, parity = _replay_logits(source, folder)
    else:
        compared, parity = len(bundle.probes), replay_nats(folder, bundle.probes)
    result = {"to": to, "folder": str(folder), "parity": parity, "probes": compared}
    write_atomically(folder / "export.json", json.dumps(result, indent=1))
    return result


def _replay_logits(source: Path, folder: Path) -> tuple[int, float]:
    predictor = Predictor(source)
    single = [probe for probe in predictor.bundle.probes if len(probe["token_ids"]) == 1]
    parity = reload_parity(
        folder,
        [probe["token_ids"][0] for probe in single],
        np.array([probe["logits"] for probe in single]),
        pad_id=predictor.encoder.pad_id,
    )
    return len(single), parity
