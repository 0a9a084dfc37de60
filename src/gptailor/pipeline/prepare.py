"""From a recipe's data settings to examples in parts, every input row accounted for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np

from gptailor.cache import content_key
from gptailor.data.clean import CleanResult, clean_rows
from gptailor.data.duplicates import is_exact, near_duplicate_groups, near_matches
from gptailor.data.read import ReadResult, Roles, collector_paused, doubts, infer_roles, read_rows
from gptailor.data.split import join_groups, split_rows, value_groups
from gptailor.data.views import chained, each, picked
from gptailor.errors import DataError, RecipeError, did_you_mean
from gptailor.models.readout import label_text, labels_named
from gptailor.pipeline.fixes import Fixes, apply_fixes, read_fixes, refuse_faults
from gptailor.pipeline.labels import (
    cells_of,
    classes_of,
    hint_of_numbers,
    notes_on,
    notes_on_names,
    read_labels,
    strata_of,
)
from gptailor.recipe import DataSettings, FrozenApproach, Recipe, SplitSettings
from gptailor.tasks.classification import (
    refuse_unknown_labels,
    refuse_unknown_slices,
    slice_fields,
    to_example,
)
from gptailor.tasks.labels import LOOKED_AT, infer_form, label_of, labels_of, refuse_separator_without_sets
from gptailor.types import AnswerForm, Example, IntArray, Part, RawExample, Reason, RejectedRow

Row = TypeVar("Row")
Found = TypeVar("Found")

PARTS: tuple[Part, ...] = ("train", "validation", "test")
NEAR = "~"  # begins the name of a group that nobody asked for: near-duplicates


@dataclass(frozen=True, slots=True)
class Leak:
    """A row that teaches or chooses, and the row of a given file that it is, exactly, nearly, or by group."""

    row: RawExample
    held_out: RawExample
    kind: Reason


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything that is known about the data before a model is loaded."""

    roles: Roles
    label_names: list[str]
    parts: dict[Part, Sequence[Example]]
    rejected: list[RejectedRow]
    rejected_rows: list[RawExample]  # as they stood in the file, where they could be read
    read: int
    data_hash: str
    cleaned: CleanResult
    leaks: list[Leak]
    near_groups: list[list[Example]]  # near-duplicates that were kept, in one part each
    notes: list[str] = field(default_factory=list)
    form: AnswerForm = field(default_factory=AnswerForm)
    fixes: Fixes = field(default_factory=Fixes)  # a person's corrections


def prepare(recipe: Recipe, say: Callable[[str], None] = lambda _: None) -> Prepared:
    """Reads, cleans, checks for leaks and splits.

    Raises:
        DataError: the data can't be used as it is; the message says what to do.
    """
    with collector_paused():
        return _prepare(recipe, say)


def _prepare(recipe: Recipe, say: Callable[[str], None]) -> Prepared:
    settings = recipe.data
    refuse_same_file(settings)
    say(f"reading {settings.train}")
    train_file = read_rows(settings.train, columns=settings.columns)
    roles = infer_roles(train_file.columns, train_file.rows, text=settings.text, label=settings.label)
    tested_here = recipe.evaluate.slices if settings.test is None else ()
    refuse_unknown_slices(tested_here, train_file.columns, file=settings.train)
    taken = take_roles(train_file, roles, settings, slices=tested_here)
    form = _form_of(taken, recipe)
    rows, unlabelled = read_labels(taken, form, settings.label_names)
    asked = recipe.task_answer != "auto"
    hint = "" if asked else hint_of_numbers(taken, form)
    if hint:  # before anything is refused for it
        say(hint)
    sources = tuple(at for at in (settings.train, settings.validation) if at is not None)
    fixes = dataclasses.replace(read_fixes(settings.fix), locations=sources)
    rows, reviewed = apply_fixes(rows, fixes, form, keep_before=True)
    say("cleaning")
    cleaned = clean_rows(rows, settings=settings.clean, kind=form.kind)
    held_out = {
        part: _read_held_out(location, roles, recipe, cleaned, form, fixes, is_test=part == "test")
        for part, location in (("validation", settings.validation), ("test", settings.test))
        if location is not None
    }
    refuse_faults(fixes)
    kept, leaks = remove_leaks(cleaned.rows, [row for _, result in held_out.values() for row in result.rows])
    given = {part: result.rows for part, (_, result) in held_out.items()}
    leaks += take_test_out_of_validation(given, settings, remove_leaks)
    cells = cells_of(kept)
    label_names = classes_of(cells, form, roles.label or "")
    for location, part, flag in (
        (settings.validation, "validation", "--label-names"),
        (settings.test, "test", "--test-label-names"),
    ):
        if location is not None:
            carried = [labels_of(row.fields["label"], form) for row in given[part]]
            several = form.kind == "multiple"
            refuse_unknown_labels(carried, label_names, file=location, flag=flag, sets=several)
    says = [
        *notes_on(cells, form, cleaned, asked=asked),
        *notes_on_names(label_names, form, settings),
        *notes_on_groups(settings, held_out),
    ]
    locations = (settings.train, *(getattr(settings, part) for part in held_out))
    files = [train_file, *(file for file, _ in held_out.values())]
    for line in (*doubts_in(locations, files), *says):
        say(line)
    say("splitting")
    parts, near_groups = _split(kept, cells, recipe, label_names, form, given=given)
    rejected = [
        *(row for file in files for row in file.rejected),
        *unlabelled,
        *reviewed,
        *cleaned.rejected,
        *(row for _, result in held_out.values() for row in result.rejected),
        *(RejectedRow(leak.row.source, leak.row.row, leak.kind, _says(leak)) for leak in leaks),
    ]
    dropped = {(row.source, row.row) for row in rejected}
    return Prepared(
        roles=roles,
        label_names=label_names,
        parts=parts,
        rejected=rejected,
        rejected_rows=[row for row in taken if (row.source, row.row) in dropped],
        read=sum(len(file.rows) + len(file.rejected) for file in files),
        data_hash=content_key(*(file.sha256 for file in files), *([fixes.sha256] if fixes.sha256 else [])),
        cleaned=cleaned,
        leaks=leaks,
        near_groups=near_groups,
        notes=[*(note for file in files for note in file.notes), *([hint] if hint else []), *says],
        form=with_scale(form, parts["train"]),
        fixes=fixes,
    )


def names_of(prepared: Prepared, example: Example) -> tuple[str, ...]:
    """The labels of an example."""
    return () if example.label is None else labels_named(example.label, prepared.label_names)


def answer_of(prepared: Prepared, example: Example) -> str:
    """The answer of an example as a person reads it."""
    known = example.label is not None
    return label_text(example.label, prepared.label_names, prepared.form) if known else ""  # type: ignore[arg-type]


def with_scale(form: AnswerForm, train: Sequence[Example]) -> AnswerForm:
    """The form with the mean and the deviation of the training rows' numbers."""
    if form.kind != "score":
        return form
    numbers = np.array([example.label for example in train])
    return dataclasses.replace(form, mean=float(numbers.mean()), deviation=float(numbers.std()) or 1.0)


def _form_of(rows: Sequence[RawExample], recipe: Recipe) -> AnswerForm:
    """What a label cell holds, as the recipe says or as is plain."""
    kind = None if recipe.task_answer == "auto" else recipe.task_answer
    separator = recipe.data.label_separator
    refuse_separator_without_sets(kind, separator)
    return infer_form([row.fields["label"] for row in rows[:LOOKED_AT]], kind=kind, separator=separator)


def take_roles(
    file: ReadResult, roles: Roles, settings: DataSettings, *, slices: Sequence[str] = ()
) -> Sequence[RawExample]:
    """Renames a file's columns to what they mean: text, label, group, time; carries the slice columns."""
    wanted = {"group": settings.split.group, "time": settings.split.time}
    for role, column in wanted.items():
        if column is not None and column not in file.columns:
            raise DataError(
                f"there is no column {column!r} to {'group' if role == 'group' else 'order'} by; "
                f"it has {', '.join(file.columns)}.{did_you_mean(column, file.columns)}",
                where=file.rows[0].source if file.rows else None,
                fix=f"Name one of its columns with --set data.split.{role}=COLUMN.",
            )
    columns = {role: column for role, column in wanted.items() if column is not None}

    def named(row: RawExample) -> RawExample:
        fields = {"text": joined(row, roles.text)}
        if roles.label:
            fields["label"] = row.fields.get(roles.label, "")
        fields |= {role: row.fields.get(column, "") for role, column in columns.items()}
        fields |= slice_fields(row, slices)
        return RawExample(fields, row.source, row.row)

    return each(file.rows, named)


def joined(row: RawExample, columns: str) -> str:
    """The text of one column, or of `a+b` joined with a space."""
    if columns in row.fields:
        return row.fields[columns]
    return " ".join(part for name in columns.split("+") if (part := row.fields.get(name, "")))


def remove_leaks(
    train: Sequence[RawExample], held_out: Sequence[RawExample]
) -> tuple[Sequence[RawExample], list[Leak]]:
    """Takes rows that stand in the held-out rows, exactly, nearly, or by their group, out of the others."""
    if not held_out:
        return train, []
    matches = near_matches(each(train, _text), [_text(row) for row in held_out])
    same_text = matches >= 0
    of_group = {group: place for place, row in enumerate(held_out) if (group := _group(row))}
    if of_group:
        by_group = np.array([of_group.get(_group(row), -1) for row in train], matches.dtype)
        matches = np.where(same_text, matches, by_group)
    leaks = []
    for place in np.flatnonzero(matches >= 0).tolist():
        row, found = train[place], held_out[int(matches[place])]
        near: Reason = "leak_exact" if is_exact(_text(row), _text(found)) else "leak_near"
        leaks.append(Leak(row, found, near if same_text[place] else "leak_group"))
    return picked(train, np.flatnonzero(matches < 0)), leaks


def take_test_out_of_validation(
    given: dict[str, Sequence[Row]],
    settings: DataSettings,
    remove: Callable[[Sequence[Row], Sequence[Row]], tuple[Sequence[Row], list[Found]]],
) -> list[Found]:
    """Takes what stands in a given test file out of the given validation rows; returns what it was.

    What chooses the settings must not stand in the test either.

    Raises:
        DataError: no validation row is left.
    """
    if not {"validation", "test"} <= given.keys():
        return []
    given["validation"], leaks = remove(given["validation"], given["test"])
    refuse_all_leaked(given["validation"], settings)
    return leaks


def refuse_all_leaked(validation: Sequence[object], settings: DataSettings) -> None:
    """Raises DataError where no given validation row is without its like in the given test file."""
    if not validation:
        raise DataError(
            "has no row of its own: each is empty, or stands in the test file, exactly or nearly, or has the "
            "group, the context or the opening of a row there.",
            where=settings.validation,
            fix="Give other rows to choose the settings by, or leave it out: a share of the rows is taken.",
        )


def doubts_in(locations: Iterable[str], files: Iterable[ReadResult]) -> list[str]:
    """What was assumed of the files and could be wrong."""
    return [line for place, file in zip(locations, files, strict=True) for line in doubts(place, file.notes)]


def notes_on_groups(settings: DataSettings, held_out: Mapping[str, tuple[ReadResult, object]]) -> list[str]:
    """What to know of a split by group."""
    column = settings.split.group
    if column is None:
        return []
    unknown = [
        f"{location} has no column {column!r}: whether its groups stand among the training rows, too, "
        "nobody can tell."
        for location, part in ((settings.validation, "validation"), (settings.test, "test"))
        if location is not None and column not in held_out[part][0].columns
    ]
    return [*unknown, f"Rows with the same {column!r} stay together, and intervals are drawn by them."]


def _text(row: RawExample) -> str:
    return row.fields["text"]


def _group(row: RawExample) -> str:
    return row.fields.get("group", "").strip()


def refuse_frozen(recipe: Recipe) -> None:
    """Raises RecipeError for the one approach that language modeling hasn't."""
    if isinstance(recipe.approach, FrozenApproach):
        raise RecipeError(
            "frozen has nothing to learn when the answer is text.",
            where="approach",
            fix="Use --approach full, lora or scratch.",
        )


def refuse_same_file(settings: DataSettings) -> None:
    """Raises DataError where train, validation and test aren't different files."""
    files = (settings.train, settings.validation, settings.test)
    targets = (settings.target, settings.validation_target, settings.test_target)
    given = [place for place in (*files, *targets) if place is not None]
    places = [Path(location).resolve() for location in given]
    twice = next(
        (location for location, place in zip(given, places, strict=True) if places.count(place) > 1), None
    )
    if twice is not None:
        raise DataError(
            "is given twice: train, validation and test must be different files.",
            where=twice,
            fix="Leave it out as --test or --validation; a share of the rows is taken instead.",
        )


def _read_held_out(
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
        try:
            roles = infer_roles(file.columns, file.rows, text=text, label=label)
        except DataError as error:
            fix = "Name its columns as the training file does" + (
                ", or in their order with --test-columns, such as label,text+text." if is_test else "."
            )
            raise DataError(error.what, where=location, fix=fix) from None
    group = settings.split.group if settings.split.group in own else None
    grouped = settings.model_copy(update={"split": SplitSettings(group=group)})
    names = settings.test_label_names if is_test else settings.label_names
    flag = "--test-label-names" if is_test else "--label-names"
    rows, unlabelled = read_labels(take_roles(file, roles, grouped, slices=slices), form, names, flag=flag)
    if not is_test:  # a test file is never touched
        rows, reviewed = apply_fixes(rows, fixes, form)
        unlabelled = [*unlabelled, *reviewed]
    result = clean_rows(rows, settings=settings.clean, protected=True, known=train, kind=form.kind)
    result.rejected.extend(unlabelled)
    if not result.rows:
        raise DataError("has no row with text and label.", where=location, fix="Check its columns.")
    return file, result


def _split(
    rows: Sequence[RawExample],
    cells: list[str],
    recipe: Recipe,
    label_names: list[str],
    form: AnswerForm,
    *,
    given: dict[str, Sequence[RawExample]],
) -> tuple[dict[Part, Sequence[Example]], list[list[Example]]]:
    label_ids = {name: place for place, name in enumerate(label_names)}

    def example_of(row: RawExample) -> Example:
        return to_example(row, label_of(row.fields["label"], label_ids, form))

    examples = each(rows, example_of)
    settings = recipe.data.split
    near = (
        near_duplicate_groups(each(rows, _text), seed=recipe.seed)
        if recipe.data.clean.near_duplicates
        else np.arange(len(examples))
    )
    groups = near
    if settings.group is not None:
        groups = join_groups(near, value_groups([example.group for example in examples]))
    places = split_rows(
        strata_of(cells, form),
        groups=groups,
        times=[example.time for example in examples] if settings.time is not None else None,
        settings=settings,
        seed=recipe.seed,
        has_validation="validation" in given,
        has_test="test" in given,
        name_of=lambda place: f"{examples[place].source} row {examples[place].row}",
    )
    sizes, kind = np.bincount(groups), NEAR if settings.group is None else ""

    def in_its_group(place: int) -> Example:
        group = f"{kind}{groups[place]}" if sizes[groups[place]] > 1 else ""
        return dataclasses.replace(examples[place], group=group)

    every = range(len(examples))
    examples_in_groups = each(list(every) if isinstance(examples, list) else every, in_its_group)
    part_of = np.array([PARTS.index(part) for part in places], np.int8)
    parts: dict[Part, Sequence[Example]] = {
        part: chained(
            picked(examples_in_groups, np.flatnonzero(part_of == number)),
            [example_of(row) for row in given.get(part, ())],
        )
        for number, part in enumerate(PARTS)
    }
    return parts, [[examples[place] for place in places] for places in _large_groups(near)]


def _large_groups(ids: IntArray) -> list[list[int]]:
    """The rows of each group that has several, groups in the order of their ids."""
    sizes = np.bincount(ids)
    order = np.argsort(ids, kind="stable")
    order = order[sizes[ids[order]] > 1]
    return [rows.tolist() for rows in np.split(order, np.cumsum(sizes[sizes > 1])[:-1]) if rows.size]


def _says(leak: Leak) -> str:
    if leak.kind == "leak_group":
        return f"of the group {_group(leak.row)!r}, as {leak.held_out.source} row {leak.held_out.row} is"
    same = "the same text as" if leak.kind == "leak_exact" else "nearly the same text as"
    return f"{same} {leak.held_out.source} row {leak.held_out.row}"
