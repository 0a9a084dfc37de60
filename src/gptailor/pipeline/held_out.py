"""A given validation or test file, read as the training file was."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from functools import cache

import numpy as np

from gptailor.data.clean import CleanResult, clean_rows, mended_label, steps_of_settings
from gptailor.data.duplicates import near_duplicate_groups
from gptailor.data.read import ReadResult, Roles, doubts, infer_roles, other_names, read_rows
from gptailor.data.roles import LABEL_NAMES
from gptailor.data.split import join_groups, value_groups
from gptailor.errors import DataError, number_of
from gptailor.evaluate.resampling import Resampling
from gptailor.pipeline.columns import take_roles
from gptailor.pipeline.fixes import Fixes, apply_fixes
from gptailor.pipeline.labels import cells_of, read_labels
from gptailor.recipe import CleanSettings, DataSettings, Recipe, SplitSettings
from gptailor.report.words import REASONS
from gptailor.tasks.classification import refuse_unknown_labels, refuse_unknown_slices
from gptailor.tasks.labels import labels_of
from gptailor.types import AnswerForm, Example, IntArray, RawExample, Reason, RejectedRow

NEAR = "~"  # begins the name of a group that nobody asked for: near-duplicates


def read_held_out(
    location: str,
    roles: Roles,
    recipe: Recipe,
    train: CleanResult,
    form: AnswerForm,
    fixes: Fixes,
    *,
    is_test: bool,
) -> tuple[ReadResult, CleanResult]:
    """A given validation or test file: repaired like the rest; loses no row that has text and label."""
    settings, slices = recipe.data, recipe.evaluate.slices if is_test else ()
    file = read_rows(location, columns=settings.test_columns if is_test else settings.columns)
    own = set(file.columns)
    refuse_unknown_slices(slices, file.columns, file=location)
    text = roles.text if roles.text in own or own.issuperset(roles.text.split("+")) else None
    label = roles.label if roles.label in own else None
    if text is None or label is None:  # a file of another make: its own names, or what is plain
        fix = "Name its columns as the training file does" + (
            ", or in their order with --test-columns, such as label,text+text." if is_test else "."
        )
        named, sought = settings.test_columns is not None and is_test, roles.label
        try:
            roles = infer_roles(file.columns, file.rows, text=text, label=label)
        except DataError as error:
            raise DataError(error.what, where=location, fix=fix) from None
        said = named or (roles.label or "").lower() in LABEL_NAMES
        if label is None and not said and (settings.label is not None or form.kind == "score"):
            what = f"there is no column {sought!r}; it has {', '.join(file.columns)}."  # any number would do
            raise DataError(what, where=location, fix=fix)
        file = dataclasses.replace(file, notes=(*file.notes, other_names(roles)))
    group = settings.split.group if settings.split.group in own else None
    grouped = settings.model_copy(update={"split": SplitSettings(group=group)})
    names = settings.test_label_names if is_test else settings.label_names
    flag = "--test-label-names" if is_test else "--label-names"
    known = {name for cell in set(cells_of(train.rows)) for name in labels_of(cell, form)} if names else ()
    taken = take_roles(file, roles, grouped, slices=slices)
    rows, unlabelled = read_labels(taken, form, names, flag=flag, known=known)
    if not is_test:  # a test file is never touched
        rows, reviewed = apply_fixes(rows, fixes, form)
        unlabelled = [*unlabelled, *reviewed]
    result = clean_rows(rows, settings=settings.clean, protected=True, known=train, kind=form.kind)
    result.rejected.extend(unlabelled)
    if not result.rows:
        raise DataError("has no row with text and label.", where=location, fix="Check its columns.")
    return file, result


def near_seed_of(recipe: Recipe) -> int | None:
    """The seed of the search for near-duplicates; None where they are not looked for."""
    return recipe.seed if recipe.data.clean.near_duplicates else None


def drawn_together(rows: Sequence[Example], *, near_seed: int | None) -> list[Example]:
    """Rows of a given file with the groups that intervals draw as one: the person's, and near-duplicates.

    A group is called as the file calls it, else by its first row. Without a seed no near-duplicates are
    looked for.
    """
    if near_seed is None:
        return list(rows)
    near = near_duplicate_groups([row.text for row in rows], seed=near_seed)
    groups = join_groups(near, value_groups([row.group for row in rows])).tolist()
    sizes = np.bincount(groups)
    names: dict[int, str] = {}
    for row, group in sorted(zip(rows, groups, strict=True), key=lambda one: not one[0].group):
        names.setdefault(group, row.group or f"{NEAR}{row.source}:{row.row}")
    return [
        dataclasses.replace(row, group=names[group] if sizes[group] > 1 else "")
        for row, group in zip(rows, groups, strict=True)
    ]


def refuse_strange_labels(
    rows: Sequence[RawExample],
    known: Sequence[str],
    form: AnswerForm,
    settings: DataSettings,
    *,
    part: str,
    why_gone: Callable[[Set[str]], Mapping[str, str]],
) -> None:
    """Raises DataError if rows of a given file carry labels that training doesn't know."""
    location, flag = settings.validation or "", "--label-names"
    if part == "test":
        location, flag = settings.test or "", "--test-label-names"
    carried = [labels_of(row.fields["label"], form) for row in rows]
    sets = form.kind == "multiple"
    refuse_unknown_labels(carried, known, file=location, flag=flag, sets=sets, why_gone=why_gone)


def why_rare(labels: Set[str], rare: Mapping[str, int]) -> dict[str, str]:
    """The same of a finished run, which remembers the labels that were too rare, with their rows."""
    rows = {label: number_of(rare[label], "row") for label in labels & rare.keys()}
    why = REASONS["rare_label"]
    return {label: f"; training's {count} of it went: {why}" for label, count in rows.items()}


def why_gone(
    labels: Set[str],
    rows: Iterable[RawExample],
    rejected: Iterable[RejectedRow],
    merges: Mapping[str, str],
    form: AnswerForm,
    settings: CleanSettings,
) -> dict[str, str]:
    """What became of labels that the training rows had: how many of the `rejected` carried them, and why."""
    reasons = {(row.source, row.row): row.reason for row in rejected}
    counts: dict[str, Counter[Reason]] = defaultdict(Counter)
    steps = steps_of_settings(settings)

    @cache
    def meant(label: str) -> frozenset[str]:
        """Which of the labels that are looked for a training row's label is, as cleaning reads it."""
        mended = mended_label(label, steps)
        spelled = merges.get(mended, mended)
        fold = str.casefold if settings.merge_labels else str
        return frozenset(one for one in labels if fold(one) == fold(spelled))

    for row in rows:
        if reason := reasons.get((row.source, row.row)):
            carried = labels_of(row.fields["label"], form)
            for label in {one for spelled in carried for one in meant(spelled)}:
                counts[label][reason] += 1
    return {
        label: f"; training's {number_of(found.total(), 'row')} of it went: "
        + ", ".join(f"{REASONS[reason].format(one='row')} ({count})" for reason, count in found.items())
        for label, found in counts.items()
    }


def reasons_in_words(reasons: Iterable[Reason], *, one: str = "row") -> str:
    """Why rows, or whatever `one` is, were left out: each reason with its number, the largest first."""
    counts = Counter(reasons).most_common()
    return ", ".join(f"{REASONS[reason].format(one=one)} ({count:,})" for reason, count in counts)


def doubts_in(locations: Iterable[str], files: Iterable[ReadResult]) -> list[str]:
    """What was assumed of the files and could be wrong."""
    return [line for place, file in zip(locations, files, strict=True) for line in doubts(place, file.notes)]


def noted(guesses: Iterable[str], *told: str) -> dict[str, str]:
    """The `note` of an evaluation: what was assumed of its file, and what else is to be known; or nothing."""
    said = [*(f"{guess}." for guess in guesses), *map(str.strip, filter(None, told))]
    return {"note": " ".join(said)} if said else {}


def cut_note(count: int) -> str:
    """That some rows of an evaluation were longer than the model reads."""
    longer = f"{number_of(count, 'row is', 'rows are')} longer than the model reads: part wasn't read."
    return longer if count else ""


def groups_unknown(location: str, column: str) -> str:
    """That a given file lacks the column that keeps rows together."""
    return (
        f"{location} has no column {column!r}: whether its groups stand among the training rows, too, "
        "nobody can tell."
    )


def notes_on_groups(
    settings: DataSettings, held_out: Mapping[str, tuple[ReadResult, object]], tested: IntArray
) -> list[str]:
    """What to know of a split by group; `tested` is the group of each test row."""
    column = settings.split.group
    if column is None:
        return []
    unknown = [
        groups_unknown(location, column)
        for location, part in ((settings.validation, "validation"), (settings.test, "test"))
        if location is not None and column not in held_out[part][0].columns
    ]
    drawn = Resampling(groups=tested)
    by_them = drawn.num_units(len(tested)) == drawn.num_groups(len(tested))
    told = ", and intervals are drawn by them." if by_them else f".{drawn.caveat(len(tested))}"
    return [*unknown, f"Rows with the same {column!r} stay together{told}"]
