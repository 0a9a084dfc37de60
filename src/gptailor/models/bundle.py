"""The bundle: `gptailor.json` in a model folder holds what serving needs. Read and written without torch."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from gptailor.errors import ModelError
from gptailor.launch import write_atomically
from gptailor.types import AnswerForm, Bundle

BUNDLE_FILE = "gptailor.json"
BUNDLE_VERSION = 1
LONGEST_TEXT = 100_000  # characters of a text that a server takes


def write_bundle(bundle: Bundle) -> None:
    """Writes `gptailor.json`; the last file of a model folder, so a folder without it is unfinished."""
    values = dataclasses.asdict(bundle)
    values.pop("path")
    text = json.dumps({"version": BUNDLE_VERSION, **values}, indent=1, ensure_ascii=False)
    write_atomically(bundle.path / BUNDLE_FILE, text)


def read_bundle(folder: Path) -> Bundle:
    """Reads `gptailor.json` of a model folder.

    Raises:
        ModelError: the folder isn't a finished bundle, or a newer version wrote it.
    """
    path = folder / BUNDLE_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        version = values.pop("version")
        if version > BUNDLE_VERSION:
            raise ModelError(
                f"was written by a newer version ({version}).", where=str(path), fix="Upgrade gptailor."
            )
        return Bundle(path=folder, **{**values, "answer": AnswerForm(**values.get("answer", {}))})
    except FileNotFoundError:
        raise ModelError(
            "there is no finished model here (no gptailor.json).",
            where=str(folder),
            fix="Give a run folder made by `gptailor fit`, or finish the run by fitting again.",
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"can't be read: {error}", where=str(path), fix="The file is damaged; fit again."
        ) from None


def find_model_folder(run: Path) -> Path:
    """The model folder of a run folder, or the folder itself if it is one."""
    if not run.exists():
        raise ModelError("there is no such folder.", where=str(run), fix="Check the path of the run.")
    return run / "model" if (run / "model").is_dir() else run


def name_of(folder: Path) -> str:
    """What the run of a model folder is called, or the folder itself; "." has a name, too."""
    place = folder.resolve()
    return place.parent.name if place.name == "model" else place.name


def read_writing_bundle(run: Path) -> Bundle:
    """The bundle of a run folder or a model folder whose answer is text.

    Raises:
        ModelError: it isn't a finished run, or is a classifier.
    """
    bundle = read_bundle(find_model_folder(run))
    if bundle.task == "classification":
        raise ModelError(
            "is a classifier; it labels texts and doesn't write any.",
            where=str(run),
            fix="Use a run whose answer is text.",
        )
    return bundle
