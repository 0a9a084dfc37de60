"""How far a run folder has come, and what a finished one left, read without its model: no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gptailor.errors import RunError

REQUEST = "request.yaml"  # the recipe as asked; recipe.yaml holds it as resolved
REPORT = "report.json"  # written last: a folder with it is finished
SEARCH = "tune"  # what a search for settings keeps beside the run it ends with
FOUND = "tune.json"  # written last of all by a search
BITS = "test_bits.csv"  # what each piece of a test text cost the model


def is_searching(folder: Path) -> bool:
    """Whether a search was begun there that hasn't ended."""
    return (folder / SEARCH).is_dir() and not (folder / FOUND).exists()


def read_report(folder: Path) -> dict[str, Any]:
    """report.json of a run folder.

    Raises:
        RunError: there is no such folder, the run isn't finished, or the file is damaged.
    """
    if not folder.is_dir():
        raise RunError("there is no such folder.", where=str(folder), fix="Check the path of the run.")
    path = folder / REPORT
    damage = "it holds no test scores"
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        report, damage = None, str(error)
    except FileNotFoundError:
        raise RunError(
            "this run is not finished (no report.json).",
            where=str(folder),
            fix=f"Run the same {_maker(folder)} again: it goes on where it stopped.",
        ) from None
    if not isinstance(report, dict) or "test" not in report:
        fix = f"Run {_maker(folder)} again with --overwrite."
        raise RunError(f"is damaged: {damage}.", where=str(path), fix=fix)
    return report


def what_is_missing(folder: Path) -> str:
    """A word on a run that has its model and not yet its test; none on a model that was copied elsewhere."""
    begun = (folder / REQUEST).exists() and (folder / "model").is_dir()
    if not begun or (folder / REPORT).exists():
        return ""
    return (
        f"{folder} isn't finished: its test hasn't been taken, so nothing says how good its answers are; "
        f"the same {_maker(folder)} goes on"
    )


def _maker(folder: Path) -> str:
    return f"`gptailor {'tune' if (folder / SEARCH).is_dir() else 'fit'}`"
