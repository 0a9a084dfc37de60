"""What a finished run left, read without its model: no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gptailor.errors import RunError

BITS = "test_bits.csv"  # what each piece of a test text cost the model


def read_report(folder: Path) -> dict[str, Any]:
    """report.json of a run folder.

    Raises:
        RunError: there is no such folder, the run isn't finished, or the file is damaged.
    """
    if not folder.is_dir():
        raise RunError("there is no such folder.", where=str(folder), fix="Check the path of the run.")
    path = folder / "report.json"
    try:
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"is damaged: {error}.", where=str(path), fix="Fit again with --overwrite.") from None
    except FileNotFoundError:
        raise RunError(
            "this run is not finished (no report.json).",
            where=str(folder),
            fix="Run the same `gptailor fit` again: it goes on where it stopped.",
        ) from None
    return report


def what_is_missing(folder: Path) -> str:
    """A word on a run that has its model and not yet its test; none on a model that was copied elsewhere."""
    begun = (folder / "request.yaml").exists() and (folder / "model").is_dir()
    if not begun or (folder / "report.json").exists():
        return ""
    return (
        f"{folder} isn't finished: its test hasn't been taken, so nothing says how good its answers are; "
        "the same `gptailor fit` goes on"
    )
