"""What every finished run leaves in its folder, whatever its task, and how its training is summed up."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import psutil
from transformers import PreTrainedModel

from gptailor.data.ledger import write_csv_safely
from gptailor.evaluate.language import PieceNats
from gptailor.evaluate.run import overfitting_in_words
from gptailor.launch import write_atomically
from gptailor.models.catalog import license_of
from gptailor.models.names import Base
from gptailor.pipeline.place import Trained
from gptailor.recipe import CleanSettings
from gptailor.report.card import render_card
from gptailor.report.page import render_page

BITS_HEADER = ("source", "row", "group", "bytes", "tokens", "nats")
REPEAT = "gptailor fit recipe.yaml"  # in the run's folder


def write_outcome(folder: Path, report: Mapping[str, Any], details: Mapping[str, Any]) -> None:
    """Writes everything; report.json last, because a folder with it is finished."""
    write_atomically(folder / "recipe.yaml", details["recipe"])
    write_atomically(folder / "details.json", json.dumps(details, ensure_ascii=False))
    write_atomically(folder / "report.html", render_page(report, details))
    write_atomically(folder / "README.md", render_card(report, details))
    write_atomically(folder / "report.json", json.dumps(report, indent=1, ensure_ascii=False))


def write_bits(path: Path, places: Iterable[tuple[str, int]], pieces: PieceNats) -> None:
    """What each piece of the test text cost, so that two runs can be compared on the same pieces.

    `places` are the sources and rows of the pieces, in their order.
    """
    counts = (pieces.documents.tolist(), pieces.bytes.tolist(), pieces.tokens.tolist())
    columns = (*counts, map(repr, pieces.nats.tolist()))
    lines = ((*place, *cells) for place, *cells in zip(places, *columns, strict=True))
    write_csv_safely(path, BITS_HEADER, lines)


def base_details(base: Base, model: PreTrainedModel) -> dict[str, Any]:
    """What the page and the card say of the base."""
    return {
        "name": base.name,
        "kind": base.kind,
        "revision": base.revision,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        **({"license": told} if (told := license_of(base)) else {}),
    }


def peak_memory_bytes() -> int:
    """The most memory this process has held."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def text_training_numbers(
    trained: Trained, validation: PieceNats, environment: Mapping[str, Any], *, began: float
) -> dict[str, Any]:
    """The report's `training` object of a run that predicts text; `began` is a time of `perf_counter`."""
    return {
        "steps": trained.steps,
        "best_step": trained.best_step,
        "seconds": round(trained.seconds, 2),
        # Of this start; training's count those before a kill, too.
        "total_seconds": round(max(time.perf_counter() - began, trained.seconds), 2),
        "tokens_per_second": round(trained.tokens / trained.seconds) if trained.seconds else None,
        "peak_memory_bytes": peak_memory_bytes(),
        "stopped": trained.stopped,
        "validation_bits_per_byte": round(validation.bits_per_byte, 6),
        "overfitting": overfitting_in_words(trained.curves, best_step=trained.best_step),
        "bit_exact": bool(environment.get("bit_exact", True)),
    }


def text_repairs(settings: CleanSettings) -> dict[str, bool]:
    """What the bundle of a run that predicts text repairs; white space is the person's."""
    return {
        "repair_text": settings.repair_text,
        "unescape_entities": settings.unescape_entities,
        "drop_control": settings.drop_control,
        "squeeze_space": False,
    }
