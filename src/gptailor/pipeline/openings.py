"""The sealed test set: which file it stands in, and every look at it."""

from __future__ import annotations

import contextlib
import datetime
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from gptailor.errors import GptailorError
from gptailor.launch import one_writer, write_atomically
from gptailor.pipeline.finished import SEARCH
from gptailor.pipeline.folder import hash_of
from gptailor.report.card import render_card
from gptailor.report.page import render_page

LOG = "openings.jsonl"
Own = Literal["train", "validation", "test"]
# What is said where a run is scored on a file it was made with.
SAID = {
    "train": "This is the file that the run was trained with: most of its rows were learned, and the scores "
    "say nothing about new ones.",
    "validation": "This is the file that chose among the run's weights: the scores flatter it.",
    "test": "This is the run's sealed test file.",
}
AMONG = "Most of the sealed test set stands in this file."


def note_opening(folder: Path, *, command: str | None = None, scores: Mapping[str, Any]) -> None:
    """Each look at the sealed test set is a line in openings.jsonl; the first is of what made the run."""
    if command is None:
        command = "tune" if (folder / SEARCH).is_dir() else "fit"
    line = {
        "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command,
        "scores": scores,
    }
    path = folder / LOG
    lines = [json.dumps(one) for one in _read(path)] if path.exists() else []
    write_atomically(path, "".join(f"{one}\n" for one in [*lines, json.dumps(line)]))


def openings_of(folder: Path) -> list[dict[str, Any]]:
    """Every look at the sealed test set so far."""
    return _read(folder / LOG)


def own_file(folder: Path, location: str, *, tree: bool) -> Own | None:
    """Which of a run's own files or folders this is, wherever it lies now; None for any other.

    `tree`: the run read the subfolders of a folder, too.
    """
    try:
        summary = json.loads((folder / "data" / "summary.json").read_text(encoding="utf-8"))
        files = summary.get("files") or {}
        digest = hash_of(Path(location), tree=tree)
    except (OSError, ValueError, AttributeError):
        return None  # only the model was copied here, or there is no such file
    parts: tuple[Own, ...] = ("test", "validation", "train")
    return next((part for part in parts if digest and files.get(part) == digest), None)


def note_another(folder: Path, *, command: str, scores: Mapping[str, Any], said: str = SAID["test"]) -> str:
    """Writes down one more look at a finished run's test set, on its page and its card, too; in words."""
    try:
        with one_writer(folder):
            details = json.loads((folder / "details.json").read_text(encoding="utf-8"))
            report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
            note_opening(folder, command=command, scores=scores)
            openings = openings_of(folder)
            details["openings"] = openings
            write_atomically(folder / "details.json", json.dumps(details, ensure_ascii=False))
            write_atomically(folder / "report.html", render_page(report, details))
            write_atomically(folder / "README.md", render_card(report, details))
    except (OSError, ValueError, GptailorError) as error:
        why = error.what if isinstance(error, GptailorError) else str(error)
        return f"{said} This look at it could not be written down: {why}"
    return f"{said} Look {len(openings)} at it is written down; each makes it less of a surprise."


def _read(path: Path) -> list[dict[str, Any]]:
    """The lines, but for one that an older version left torn when the power or the disk went."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return found
