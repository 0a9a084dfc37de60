"""From a recipe's data settings to examples in parts, every input row accounted for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from gptailor.cache import content_key
from gptailor.data.clean import CleanResult, clean_rows
from gptailor.data.duplicates import near_duplicate_groups
from gptailor.data.read import ReadResult, Roles, collector_paused, infer_roles, read_rows
from gptailor.data.split import join_groups, split_rows, value_groups
from gptailor.data.views import chained, each, picked
from gptailor.errors import DataError
from gptailor.models.readout import label_text, labels_named
from gptailor.pipeline.columns import notes_on_unread, parts_of, take_roles
from gptailor.pipeline.fixes import Fixes, apply_fixes, read_fixes, refuse_faults
from gptailor.pipeline.held_out import (
    NEAR,
    doubts_in,
    drawn_together,
    near_seed_of,
    notes_on_groups,
    read_held_out,
    reasons_in_words,
    refuse_strange_labels,
    why_gone,
)
from gptailor.pipeline.labels import (
    cells_of,
    classes_of,
    hint_of_numbers,
    hint_of_sets,
    notes_on,
    notes_on_names,
    read_labels,
    strata_of,
)
from gptailor.pipeline.leaks import Leak, refuse_same_file, remove_leaks, take_test_out_of_validation
from gptailor.pipeline.leaks import rejected as rejected_leaks
from gptailor.pipeline.task import idle_in_words
from gptailor.recipe import Recipe
from gptailor.tasks.classification import refuse_unknown_slices, to_example
from gptailor.tasks.labels import LOOKED_AT, infer_form, label_of, refuse_separator_without_sets
from gptailor.types import PARTS, AnswerForm, Example, IntArray, Part, RawExample, RejectedRow


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
    train_file, roles, taken, form = _read_train(recipe)
    rows, unlabelled = read_labels(taken, form, settings.label_names)
    asked = recipe.task_answer != "auto"
    hint = "" if asked else hint_of_numbers(taken, form) or hint_of_sets(taken, form)
    if hint:  # before anything is refused for it
        say(hint)
    sources = tuple(at for at in (settings.train, settings.validation) if at is not None)
    fixes = dataclasses.replace(read_fixes(settings.fix), locations=sources)
    labelled = rows
    rows, reviewed = apply_fixes(rows, fixes, form, keep_before=True)
    say("cleaning")
    cleaned = clean_rows(rows, settings=settings.clean, kind=form.kind)
    held_out = {
        part: read_held_out(location, roles, recipe, cleaned, form, fixes, is_test=part == "test")
        for part, location in (("validation", settings.validation), ("test", settings.test))
        if location is not None
    }
    refuse_faults(fixes)
    kept, leaks = remove_leaks(cleaned.rows, [row for _, result in held_out.values() for row in result.rows])
    given = {part: result.rows for part, (_, result) in held_out.items()}
    leaks += take_test_out_of_validation(given, settings, remove_leaks)
    cells = cells_of(kept)
    went = [*reviewed, *cleaned.rejected, *rejected_leaks(leaks)]
    label_names = _classes_left(
        cells, form, roles.label or "", dropped=(*unlabelled, *went), where=settings.train
    )
    for part in held_out:
        refuse_strange_labels(
            given[part],
            label_names,
            form,
            settings,
            part=part,
            why_gone=lambda labels: why_gone(
                labels, labelled, went, cleaned.label_merges, form, settings.clean
            ),
        )
    read = [*parts_of(roles.text, train_file.columns), roles.label or ""]
    says = [
        *notes_on_unread(train_file.columns, read, settings.split, slices=recipe.evaluate.slices),
        *notes_on(cells, form, cleaned, asked=asked),
        *notes_on_names(label_names, form, settings),
        *idle_in_words(recipe),
    ]
    locations = (settings.train, *(getattr(settings, part) for part in held_out))
    files = [train_file, *(file for file, _ in held_out.values())]
    for line in (*doubts_in(locations, files), *says):
        say(line)
    say("splitting")
    parts, near_groups, late = _split(kept, cells, recipe, label_names, form, given=given)
    tested = value_groups([example.group for example in parts["test"]])
    of_split = [*notes_on_groups(settings, held_out, tested), *late]
    for line in of_split:
        say(line)
    rejected = [
        *(row for file in files for row in file.rejected),
        *unlabelled,
        *went,
        *(row for _, result in held_out.values() for row in result.rejected),
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
        notes=[*(note for file in files for note in file.notes), *([hint] if hint else []), *says, *of_split],
        form=with_scale(form, parts["train"]),
        fixes=fixes,
    )


def _read_train(recipe: Recipe) -> tuple[ReadResult, Roles, Sequence[RawExample], AnswerForm]:
    """The file, its columns, its rows by what the columns are for, and what a label cell holds."""
    settings = recipe.data
    file = read_rows(settings.train, columns=settings.columns)
    roles = infer_roles(file.columns, file.rows, text=settings.text, label=settings.label)
    tested_here = recipe.evaluate.slices if settings.test is None else ()
    refuse_unknown_slices(tested_here, file.columns, file=settings.train)
    taken = take_roles(file, roles, settings, slices=tested_here)
    return file, roles, taken, _form_of(taken, recipe)


def _classes_left(
    cells: list[str], form: AnswerForm, label: str, *, dropped: Iterable[RejectedRow], where: str
) -> list[str]:
    """The classes that can be learned; where they are too few, the error says what became of the others."""
    try:
        return classes_of(cells, form, label)
    except DataError as error:
        told = reasons_in_words(row.reason for row in dropped)
        more = f" Dropped: {told}." if told else ""
        raise DataError(f"{error.what}{more}", where=where, fix=error.fix) from None


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


def _text(row: RawExample) -> str:
    return row.fields["text"]


def _split(
    rows: Sequence[RawExample],
    cells: list[str],
    recipe: Recipe,
    label_names: list[str],
    form: AnswerForm,
    *,
    given: dict[str, Sequence[RawExample]],
) -> tuple[dict[Part, Sequence[Example]], list[list[Example]], list[str]]:
    """The parts, the groups of near-duplicates, and what is to be said of times."""
    label_ids = {name: place for place, name in enumerate(label_names)}

    def example_of(row: RawExample) -> Example:
        return to_example(row, label_of(row.fields["label"], label_ids, form))

    examples = each(rows, example_of)
    settings = recipe.data.split
    seed = near_seed_of(recipe)
    near = np.arange(len(examples)) if seed is None else near_duplicate_groups(each(rows, _text), seed=seed)
    groups = near
    if settings.group is not None:
        groups = join_groups(near, value_groups([example.group for example in examples]))
    times = [example.time for example in examples] if settings.time is not None else None

    def name_of(place: int) -> str:
        return f"{examples[place].source} row {examples[place].row}"

    places, late = split_rows(
        strata_of(cells, form),
        groups=groups,
        times=times,
        settings=settings,
        seed=recipe.seed,
        has_validation="validation" in given,
        has_test="test" in given,
        name_of=name_of,
    )
    sizes, kind = np.bincount(groups), NEAR if settings.group is None else "group "

    def in_its_group(place: int) -> Example:
        group = f"{kind}{groups[place]}" if sizes[groups[place]] > 1 else ""
        return dataclasses.replace(examples[place], group=group)

    every = range(len(examples))
    examples_in_groups = each(list(every) if isinstance(examples, list) else every, in_its_group)
    part_of = np.array([PARTS.index(part) for part in places], np.int8)
    parts: dict[Part, Sequence[Example]] = {
        part: chained(
            picked(examples_in_groups, np.flatnonzero(part_of == number)),
            drawn_together([example_of(row) for row in given.get(part, ())], near_seed=seed),
        )
        for number, part in enumerate(PARTS)
    }
    return parts, [[examples[place] for place in places] for places in _large_groups(near)], late


def _large_groups(ids: IntArray) -> list[list[int]]:
    """The rows of each group that has several, groups in the order of their ids."""
    sizes = np.bincount(ids)
    order = np.argsort(ids, kind="stable")
    order = order[sizes[ids[order]] > 1]
    return [rows.tolist() for rows in np.split(order, np.cumsum(sizes[sizes > 1])[:-1]) if rows.size]
