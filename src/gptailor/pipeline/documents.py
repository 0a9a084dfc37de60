"""From a recipe's data settings to documents in parts.

The data is read as a stream several times: to see what there is (`documents_survey`) and decide
(`documents_split`), to find what repeats itself, then to tokenize (`documents_tokens`). No reading holds more
than some hundred bytes for each document and piece of one, so the data may be larger than memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from gptailor.cache import content_key
from gptailor.data.documents import columns_of
from gptailor.data.overlap import NgramSet, build_ngram_set
from gptailor.errors import DataError, did_you_mean
from gptailor.pipeline.documents_split import DROPPED, Divided, all_in, divide, held_by, numbered_pieces
from gptailor.pipeline.documents_survey import Documents, pieces_of, refuse_stream, survey
from gptailor.pipeline.folder import hash_files
from gptailor.pipeline.held_out import groups_unknown, near_seed_of, reasons_in_words
from gptailor.pipeline.leaks import refuse_all_leaked, refuse_same_file
from gptailor.pipeline.task import idle_in_words
from gptailor.pipeline.taught import Marks, marks_of
from gptailor.recipe import DataSettings, Recipe
from gptailor.types import PARTS, Part

FAULTS_SHOWN = 3  # unreadable documents, where nothing is left


@dataclass(frozen=True, slots=True)
class PreparedDocuments:
    """Everything known about the documents before a model is loaded."""

    files: list[Divided]  # the training location first, then those given for validation and test
    notes: list[str]  # what was decided and left out, in words
    read: int
    data_hash: str


def prepare_documents(recipe: Recipe, say: Callable[[str], None] = lambda _: None) -> PreparedDocuments:
    """Reads everything once and decides where each piece goes.

    Raises:
        DataError: there is too little text, or a location can't be read.
    """
    settings = recipe.data
    refuse_same_file(settings)
    _refuse_unknown_columns(settings)
    tests, validations = [], []
    if settings.test is not None:
        say(f"reading {settings.test}")
        tests = [survey(settings.test, settings, columns=settings.test_columns)]
    if settings.validation is not None:
        say(f"reading {settings.validation}")
        grams = _grams(tests, settings)
        validations = [survey(settings.validation, settings, columns=settings.columns, held_out=grams)]
    held_out = [*validations, *tests]
    say(f"reading {settings.train}")
    train = survey(settings.train, settings, columns=settings.columns, held_out=_grams(held_out, settings))
    given: set[Part] = set()
    if validations:
        given.add("validation")
    if tests:
        given.add("test")
    files = [divide(train, recipe, beside=held_out, given=given)]
    # What chooses the settings must not stand in the test either.
    seed = near_seed_of(recipe)
    files += [
        all_in(documents, "validation", settings, near_seed=seed, beside=tests) for documents in validations
    ]
    if validations and tests:
        refuse_all_leaked(np.flatnonzero(files[1].parts != DROPPED).tolist(), settings)
    files += [all_in(documents, "test", settings, near_seed=seed) for documents in tests]
    _refuse_too_little(files, settings)
    notes = [note for file in files for note in (*file.documents.notes, *file.notes)]
    notes += _ungrouped(settings)
    notes += idle_in_words(recipe)
    for note in notes:
        say(note)
    return PreparedDocuments(
        files=files,
        notes=notes,
        read=sum(len(f.documents.row_of) + len(f.documents.rejected) for f in files),
        data_hash=hash_files(recipe) or content_key(*(d for f in files for d in f.documents.digests)),
    )


def marks_by_part(prepared: PreparedDocuments, settings: DataSettings, *parts: Part) -> dict[Part, Marks]:
    """What these parts are known again by, piece by piece: one reading of each file that holds some."""
    found: dict[Part, Marks] = {}
    for file in prepared.files:
        part_of = file.parts[held_by(file, *parts)]
        if part_of.size:
            marks = marks_of(numbered_pieces(file, settings, *parts))
            found |= {PARTS[part]: marks.where(part_of == part) for part in np.unique(part_of)}
    return found


def _grams(held_out: Sequence[Documents], settings: DataSettings) -> NgramSet | None:
    """The runs of words in held-out files, if there are any."""
    if not held_out:
        return None
    return build_ngram_set(piece.text for documents in held_out for piece in pieces_of(documents, settings))


def _refuse_unknown_columns(settings: DataSettings) -> None:
    """Raises DataError for a column to group or order by that isn't there."""
    for role, column in (("group", settings.split.group), ("order", settings.split.time)):
        if column is None:
            continue
        refuse_stream(settings.train)
        names = columns_of(settings.train, settings.columns)
        if column not in names:
            told = f"it has {', '.join(names)}" if names else "a plain text has none"
            raise DataError(
                f"there is no column {column!r} to {role} by; {told}.{did_you_mean(column, names)}",
                where=settings.train,
                fix=f"Name one of its columns with --set data.split.{'group' if role == 'group' else 'time'}"
                "=COLUMN, or leave it out.",
            )


def _ungrouped(settings: DataSettings) -> list[str]:
    """The given files whose documents have no group, where the recipe keeps groups in one part."""
    column = settings.split.group
    given = ((settings.validation, settings.columns), (settings.test, settings.test_columns))
    return [
        groups_unknown(location, column)
        for location, columns in given
        if column is not None and location is not None and column not in columns_of(location, columns)
    ]


def _refuse_too_little(files: list[Divided], settings: DataSettings) -> None:
    """Raises DataError where a part has nothing, with what was left out of the file that should fill it."""
    present = {int(part) for file in files for part in np.unique(file.parts)}
    given = {"validation": settings.validation, "test": settings.test}
    filled_by = {part: given.get(part) or settings.train for part in PARTS}
    empty = [part for number, part in enumerate(PARTS) if number not in present]
    if not empty:
        return
    where = filled_by[empty[0]]
    own = [file for file in files if file.documents.location == where]
    unreadable = [row for file in own for row in file.documents.rejected]
    reasons = [reason for file in own for reason, _ in file.reasons.values()]
    told = reasons_in_words([*reasons, *(row.reason for row in unreadable)], one="document")
    more = f" Left out: {told}." if told else ""
    parts = " and ".join(part for part in empty if filled_by[part] == where)
    faults = [f"  {row.source}:{row.row}: {row.detail}" for row in unreadable[:FAULTS_SHOWN]]
    raise DataError(
        "\n".join([f"there is too little text: nothing is left for {parts}.{more}", *faults]),
        where=where,
        fix="Give more text (some ten thousand characters at least), or --validation and --test files.",
    )
