"""Folders of text files: one document a file, and the subfolder's name as its label."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from gptailor.data.formats import decode_whole
from gptailor.data.lines import Item
from gptailor.data.source import GUESSED, find_encoding, find_source
from gptailor.errors import DataError, number_of
from gptailor.types import RawExample, RejectedRow

DATA_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet")


def read_folder(folder: Path) -> tuple[list[str], list[str], Iterator[Item]]:
    """Columns, notes and rows of a folder. Rows are numbered from 1 in the order of the file names.

    Subfolders that hold files are labels; without any, the folder's own files are texts without one.
    Hidden files are left alone.

    Raises:
        DataError: there is no text file, or the folder holds data files, one of which should be named.
    """
    labelled = _labelled(folder)
    if labelled:
        files = [(file, label) for label, paths in labelled.items() for file in paths]
        notes = [
            f"folder: {number_of(len(files), 'text file')}, labels are the {len(labelled)} subfolders' names"
        ]
        beside = len(_texts(folder))
        if beside:
            notes.append(f"folder: {number_of(beside, 'file')} beside the subfolders left out")
        notes += _left_out(folder, labelled)
        return ["text", "label"], notes, _rows(files, notes)
    texts = _texts(folder)
    tables = [entry for entry in _entries(folder) if entry.is_file() and _is_data(entry)]
    if len(texts) <= len(tables):
        raise _no_texts(folder, tables)
    notes = [f"folder: {number_of(len(texts), 'text file')}, each is one row", *_tables_left_out(tables)]
    return ["text"], notes, _rows([(file, None) for file in texts], notes)


def read_tree(folder: Path) -> tuple[list[Path], list[str]]:
    """The text files of a folder and of all folders in it, by name, and notes of what is left out.

    Hidden files and folders are left alone; folders that are links are not entered, and noted.

    Raises:
        DataError: there is no text file, a folder can't be opened, or there are as many data files.
    """
    files = list(_tree(folder))
    tables = [file for file in files if _is_data(file)]
    texts = [file for file in files if not _is_data(file)]
    if len(texts) <= len(tables):
        raise _no_texts(folder, tables)
    deeper = sum(file.parent != folder for file in texts)
    told = f", {deeper:,} of them in its subfolders" if deeper else ""
    notes = [f"folder: {number_of(len(texts), 'text file')}{told}", *_tables_left_out(tables)]
    links = sorted(
        Path(place, name).relative_to(folder).as_posix()
        for place, inner, _ in os.walk(folder)
        for name in inner
        if not name.startswith(".") and Path(place, name).is_symlink()
    )
    if links:
        notes.append(f"folder: {number_of(len(links), 'linked folder')} not entered ({links[0]} ...)")
    return texts, notes


def hash_folder(folder: Path, *, tree: bool = False) -> str:
    """SHA-256 of the names, sizes and bytes of the files that `read_folder` reads, in order.

    With `tree` of those that `read_tree` does.
    """
    if tree:
        files = [file for file in _tree(folder) if not _is_data(file)]
    else:
        labelled = [file for paths in _labelled(folder).values() for file in paths]
        files = labelled or _texts(folder)
    digest = hashlib.sha256()
    for path in files:
        name = path.relative_to(folder).as_posix()
        digest.update(f"{name}\0{path.stat().st_size}\0".encode(errors="surrogateescape"))
        with suppress(PermissionError), path.open("rb") as file:  # its row is rejected
            while part := file.read(2**20):
                digest.update(part)
    return digest.hexdigest()


def _tree(folder: Path) -> Iterator[Path]:
    """Every file, those of a folder before those of the folders in it."""

    def refuse(error: OSError) -> None:
        raise DataError(f"can't be opened: {error.strerror}.", where=str(error.filename)) from None

    for place, inner, names in os.walk(folder, onerror=refuse):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        paths = (Path(place, name) for name in sorted(names) if not name.startswith("."))
        yield from (path for path in paths if path.is_file())


def _tables_left_out(tables: Sequence[Path]) -> list[str]:
    if not tables:
        return []
    return [f"folder: {number_of(len(tables), 'data file')} left out ({tables[0].name} ...)"]


def _labelled(folder: Path) -> dict[str, list[Path]]:
    subfolders = [entry for entry in _entries(folder) if entry.is_dir()]
    return {subfolder.name: texts for subfolder in subfolders if (texts := _texts(subfolder))}


def _left_out(folder: Path, labelled: dict[str, list[Path]]) -> list[str]:
    """What else lies in the subfolders: data files, and files in folders further down.

    Raises:
        DataError: a subfolder holds nothing but that, so a whole label would be missing.
    """
    notes = []
    for subfolder in (entry for entry in _entries(folder) if entry.is_dir()):
        used = set(labelled.get(subfolder.name, ()))
        files = [p for p in subfolder.rglob("*") if p.is_file() and not p.name.startswith(".")]
        others = [file for file in files if file not in used]
        if others and not used:
            raise DataError(
                f"no text of {subfolder.name!r} would be read: its {number_of(len(others), 'file')} lie "
                f"further down or are data files ({others[0].relative_to(folder)} ...).",
                where=str(folder),
                fix="Put one text a file straight into each label's folder.",
            )
        if others:
            shown = others[0].relative_to(folder)
            notes.append(
                f"folder: {number_of(len(others), 'file')} of {subfolder.name!r} left out ({shown} ...)"
            )
    return notes


def _texts(folder: Path) -> list[Path]:
    return [p for p in _entries(folder) if p.is_file() and not _is_data(p)]


def _is_data(path: Path) -> bool:
    return path.name.lower().removesuffix(".gz").endswith(DATA_SUFFIXES)


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise DataError(f"can't be opened: {error.strerror}.", where=str(folder)) from None


def _no_texts(folder: Path, tables: list[Path]) -> DataError:
    deeper = [str(entry) for entry in _entries(folder) if entry.is_dir()]
    if tables:
        return DataError(
            f"is a folder of data files, not of texts: {', '.join(map(str, tables[:8]))}.",
            where=str(folder),
            fix="Name one of them.",
        )
    if deeper:
        return DataError(
            f"holds only folders of folders: {', '.join(deeper[:8])}.",
            where=str(folder),
            fix="Name one of them.",
        )
    return DataError("is an empty folder.", where=str(folder), fix="Put one text a file into it.")


def _rows(files: Sequence[tuple[Path, str | None]], notes: list[str]) -> Iterator[Item]:
    """The files' texts; the first guess at an encoding is noted."""
    guessed = False
    for row, (path, label) in enumerate(files, start=1):
        name = str(path)
        try:
            source = find_source(name)
            encoding, note = find_encoding(source)
            if note.endswith(GUESSED) and not guessed:
                notes.append(f"{path.name}: {note}")
                guessed = True
            fields = {"text": decode_whole(source, encoding)}
        except DataError as error:
            yield RejectedRow(name, row, "unreadable", error.what)
            continue
        if label is not None:
            fields["label"] = label
        yield RawExample(fields, name, row)
