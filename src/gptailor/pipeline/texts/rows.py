"""From a recipe's data settings to rows of a text task in parts, every input row accounted for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial, reduce

import numpy as np

from gptailor.cache import content_key
from gptailor.data.duplicates import is_exact, near_duplicate_groups, near_matches
from gptailor.data.parallel import read_parallel
from gptailor.data.read import ReadResult, read_rows
from gptailor.data.repair import repair
from gptailor.data.split import join_groups, split_rows, value_groups
from gptailor.errors import DataError, did_you_mean, number_of
from gptailor.pipeline.columns import notes_on_unread, value_of
from gptailor.pipeline.folder import hash_files
from gptailor.pipeline.held_out import doubts_in, near_seed_of, notes_on_groups
from gptailor.pipeline.leaks import refuse_same_file, take_test_out_of_validation
from gptailor.pipeline.task import idle_in_words
from gptailor.recipe import CleanSettings, DataSettings, Recipe
from gptailor.report.facts import clip
from gptailor.tasks.cells import Mend
from gptailor.tasks.classification import refuse_unknown_slices
from gptailor.tasks.completion_form import CompletionForm
from gptailor.tasks.form import TextForm, TextRow
from gptailor.types import PARTS, IntArray, Part, RawExample, Reason, RejectedRow

TOLD_ROWS, TOLD_CHARACTERS = 5, 300  # of what is wrong with a file

FormMaker = Callable[[ReadResult, Mend], TextForm]


@dataclass(frozen=True, slots=True)
class PreparedTexts:
    """Everything that is known about the rows before a model is loaded."""

    form: TextForm
    parts: dict[Part, list[TextRow]]
    rejected: list[RejectedRow]
    rejected_rows: list[RawExample]  # as they stood in the file, where they could be read
    read: int
    data_hash: str
    repaired: int
    leaks: int
    near_groups: int
    one_question: bool = False  # all rows ask the same, so that nothing is asked
    notes: list[str] = field(default_factory=list)


def as_taught(row: TextRow) -> str:
    """A question with its answer, as one text: what a row teaches."""
    return "\n".join((row.asked, *row.references[:1]))


class Mender:
    """Repairs values and remembers how many it changed. White space is the person's: it can mean much."""

    def __init__(self, settings: CleanSettings) -> None:
        mend = partial(
            repair,
            repair_text=settings.repair_text,
            unescape_entities=settings.unescape_entities,
            drop_control=settings.drop_control,
            squeeze_space=False,
        )
        self._repair = lru_cache(maxsize=1024)(mend)  # many questions have one context
        self._changed: set[str] = set()

    def __call__(self, text: str) -> str:
        mended = self._repair(text)
        if mended != text:
            self._changed.add(text)
        return mended

    @property
    def changed(self) -> int:
        return len(self._changed)


def prepare_texts(
    recipe: Recipe, make_form: FormMaker, say: Callable[[str], None] = lambda _: None
) -> PreparedTexts:
    """Reads, repairs, takes duplicates and leaks out, and splits.

    Raises:
        DataError: the data can't be used as it is; the message says what to do.
    """
    settings = recipe.data
    refuse_same_file(settings)
    say(f"reading {settings.train}")
    train_file = read_texts(settings.train, settings.target, settings.columns)
    mend = Mender(settings.clean)
    form = make_form(train_file, mend)
    for line in form.says:
        say(line)
    slices = recipe.evaluate.slices
    if settings.test is None:
        refuse_unknown_slices(slices, train_file.columns, file=settings.train)
    rows, rejected = mean(train_file.rows, form, settings, slices=slices)
    refuse_mostly_bad(train_file, rejected, form, where=settings.train)
    remarks = told_remarks(rows)
    rows, repeated = drop_repeats(rows, settings.clean)
    files = [train_file]
    held_out: dict[str, Sequence[TextRow]] = {}
    for part, location, target, columns in (
        ("validation", settings.validation, settings.validation_target, settings.columns),
        ("test", settings.test, settings.test_target, settings.test_columns),
    ):
        if location is not None:
            file = read_texts(location, target, columns)
            refuse_missing_columns(form, file.columns, where=location)
            if part == "test":
                refuse_unknown_slices(slices, file.columns, file=location)
            held_out[part], bad = mean(file.rows, form, settings, slices=slices)
            rejected += bad
            files.append(file)
            if not held_out[part]:
                fix = "Name its columns as the training file does."
                raise DataError("has no row with a prompt and an answer.", where=location, fix=fix)
    asked = {row.asked for given in (rows, *held_out.values()) for row in given}
    one_question = len(asked) == 1 and len(rows) > 1
    if one_question:
        rows = without_question(rows)
        held_out = {part: without_question(given) for part, given in held_out.items()}
    kept, leaks = remove_leaks(rows, [row for given in held_out.values() for row in given])
    if leaks and not kept:
        refuse_all_held_out(leaks[0], settings)
    leaks += take_test_out_of_validation(held_out, settings, remove_leaks)
    unread = []
    if isinstance(form, CompletionForm):
        read = [*form.roles.inputs, *form.roles.answer]
        unread = notes_on_unread(train_file.columns, read, settings.split, slices=slices)
    notes = [*unread, *remarks, *idle_in_words(recipe)]
    locations = (settings.train, *(getattr(settings, part) for part in held_out))
    for line in (*doubts_in(locations, files), *notes):
        say(line)
    say("splitting")
    parts, near_groups, late = split(kept, recipe, held_out)
    given_files = {part: (file, None) for part, file in zip(held_out, files[1:], strict=True)}
    of_split = [*notes_on_groups(settings, given_files, documents_of(parts["test"])), *late]
    for line in of_split:
        say(line)
    rejected = [row for file in files for row in file.rejected] + rejected + repeated + leaks
    dropped = {(row.source, row.row) for row in rejected}
    return PreparedTexts(
        form=form,
        parts=parts,
        rejected=rejected,
        rejected_rows=[row for row in train_file.rows if (row.source, row.row) in dropped],
        read=sum(len(file.rows) + len(file.rejected) for file in files),
        data_hash=hash_files(recipe) or content_key(*(file.sha256 for file in files)),
        repaired=mend.changed,
        leaks=len(leaks),
        near_groups=near_groups,
        one_question=one_question,
        notes=[*(note for file in files for note in file.notes), *notes, *of_split],
    )


def refuse_missing_columns(form: TextForm, columns: Sequence[str], *, where: str) -> None:
    """Raises DataError where a file lacks a column of the prompt, which would be filled with nothing."""
    if not isinstance(form, CompletionForm):
        return
    needed = [name for name in form.roles.inputs if name != form.roles.template.optional]
    for name in needed:
        if name not in columns:
            raise DataError(
                f"has no column {name!r}, which the prompt is made of.{did_you_mean(name, columns)}",
                where=where,
                fix=f"Name its columns as in training ({', '.join(needed)}); it has {', '.join(columns)}.",
            )


def read_texts(location: str, target: str | None, columns: str | None) -> ReadResult:
    """Rows of one file, or of two that keep step line by line."""
    return read_parallel(location, target) if target else read_rows(location, columns=columns)


def mean(
    rows: Sequence[RawExample], form: TextForm, settings: DataSettings, *, slices: Sequence[str] = ()
) -> tuple[list[TextRow], list[RejectedRow]]:
    """What each row means, and why the others mean nothing."""
    kept, rejected = [], []
    for raw in rows:
        found = form.read(raw)
        if isinstance(found, RejectedRow):
            rejected.append(found)
            continue
        # Beside the fields: a template may name a column `group` or `time`.
        together, time = (value_of(raw, column) for column in (settings.split.group, settings.split.time))
        values = tuple((column, value_of(raw, column)) for column in slices)
        kept.append(replace(found, together=together, time=time, slices=values))
    return kept, rejected


def without_question(rows: Sequence[TextRow]) -> list[TextRow]:
    """The rows as ones that ask nothing: what all of them ask tells none from another."""
    return [
        replace(
            row,
            asked="",
            given="",
            varies=(),
            sequences=tuple(replace(one, group="") for one in row.sequences),
        )
        for row in rows
    ]


def told_remarks(rows: Sequence[TextRow]) -> list[str]:
    """What is odd about rows that can be trained on, one line for each oddity with the rows it is about."""
    odd: dict[str, list[TextRow]] = {}
    for row in rows:
        for remark in row.remarks:
            odd.setdefault(remark, []).append(row)
    return [
        f"{number_of(len(held), 'conversation')} with {remark} "
        f"({'row' if len(held) == 1 else 'rows'} {', '.join(str(row.row) for row in held[:TOLD_ROWS])}"
        f"{', ...' if len(held) > TOLD_ROWS else ''})"
        for remark, held in odd.items()
    ]


def refuse_mostly_bad(
    file: ReadResult, rejected: Sequence[RejectedRow], form: TextForm, *, where: str
) -> None:
    """Raises DataError where hardly a row means anything: taken for another layout, or faulty throughout.

    Questions that have no answer, as in SQuAD 2.0, are no fault of the file while others have one.
    """
    asks = isinstance(form, CompletionForm) and form.roles.preset == "question_answering"
    faulty = [row for row in rejected if not asks or row.reason != "nothing_to_learn"]
    if 2 * len(faulty) <= len(file.rows) and len(rejected) < len(file.rows):
        return
    told = [f"  row {row.row}: {clip(row.detail, TOLD_CHARACTERS)}" for row in rejected[:TOLD_ROWS]]
    raise DataError(
        "\n".join([f"{len(rejected):,} of {len(file.rows):,} rows can't be used:", *told]),
        where=where,
        fix="Mend the file, or name the columns that are meant (--prompt, --completion).",
    )


def refuse_all_held_out(leak: RejectedRow, settings: DataSettings) -> None:
    """Raises DataError: every training row stands in a given file, or belongs with one that does."""
    raise DataError(
        f"no row is left to train on: all are in a given file, or belong with its rows. Row {leak.row} "
        f"{leak.detail}.",
        where=settings.train,
        fix="Hold out rows of other contexts and conversations, or give no file to hold out.",
    )


def drop_repeats(rows: Sequence[TextRow], settings: CleanSettings) -> tuple[list[TextRow], list[RejectedRow]]:
    """Of equal questions with equal answers the first stays. Other answers to one question are welcome;
    only where of the same two answers each was once preferred, nobody knows, and both rows go.
    """
    kept: list[TextRow] = []
    first: dict[tuple[str, ...], TextRow] = {}
    rejected = []
    swapped = {(row.asked, *row.references) for row in rows if row.sequences[0].rejected}
    for row in rows:
        key = (row.asked, *row.references)
        torn = bool(row.sequences[0].rejected) and (key[0], key[2], key[1]) in swapped
        if settings.drop_conflicts and torn:
            detail = "the same two answers, preferred the other way round elsewhere"
            rejected.append(RejectedRow(row.source, row.row, "conflict", detail))
        elif settings.drop_duplicates and key in first:
            detail = f"the same as row {first[key].row}"
            rejected.append(RejectedRow(row.source, row.row, "duplicate", detail))
        else:
            first.setdefault(key, row)
            kept.append(row)
    return kept, rejected


def remove_leaks(
    rows: Sequence[TextRow], held_out: Sequence[TextRow]
) -> tuple[list[TextRow], list[RejectedRow]]:
    """Takes rows out whose question stands in a given file, exactly, nearly, or by one of its groups."""
    if not held_out:
        return list(rows), []
    texts = compared([*rows, *held_out])
    own, given = texts[: len(rows)], texts[len(rows) :]
    matches = near_matches(own, given)
    beside = _Beside(held_out)
    kept, rejected = [], []
    for row, text, match in zip(rows, own, matches, strict=True):
        if match < 0:
            detail = beside.why(row)
            if detail:
                rejected.append(RejectedRow(row.source, row.row, "leak_group", detail))
            else:
                kept.append(row)
            continue
        found = held_out[int(match)]
        exact = is_exact(text, given[int(match)])
        reason: Reason = "leak_exact" if exact else "leak_near"
        same = "asks the same as" if exact else "asks nearly the same as"
        rejected.append(RejectedRow(row.source, row.row, reason, f"{same} {found.source} row {found.row}"))
    return kept, rejected


class _Beside:
    """Rows of given files by their groups: the person's, and what a form keeps together of itself."""

    def __init__(self, held_out: Sequence[TextRow]) -> None:
        self._together = {name: row for row in held_out if (name := row.together.strip())}
        self._own = {name: row for row in held_out if (name := row.group.strip())}

    def why(self, row: TextRow) -> str:
        """Which row of them it belongs with, in words; "" where it belongs with none."""
        if (found := self._together.get(row.together.strip())) is not None:
            return f"is of the group {row.together.strip()!r}, as {found.source} row {found.row} is"
        if (found := self._own.get(row.group.strip())) is not None:
            return f"has the context or the opening of {found.source} row {found.row}"
        return ""


def compared(rows: Sequence[TextRow]) -> list[str]:
    """What makes each row the same as another: what is asked; of rows that ask nothing, the answer.

    A template, a column or a system text that all rows share would make their short questions alike. Where
    most rows have a system text of their own, it is what they are about.
    """
    own_system = 2 * len({row.system for row in rows}) > len(rows)
    columns = zip(*(row.varies for row in rows), strict=True)
    differ = [place for place, values in enumerate(columns) if len(set(values)) > 1]

    def asked(row: TextRow) -> str:
        texts = [row.system if own_system else "", *(row.varies[place] for place in differ)]
        return "\n".join(stripped for text in texts if (stripped := text.strip()))

    return [asked(row) or row.asked or row.references[0] for row in rows]


def split(
    rows: Sequence[TextRow], recipe: Recipe, given: dict[str, Sequence[TextRow]]
) -> tuple[dict[Part, list[TextRow]], int, list[str]]:
    """Rows in parts; equal groups and near-duplicate questions stay in one.

    Also how many groups of near-duplicates there are, and what is to be said of times.
    """
    settings = recipe.data.split
    if not rows:
        raise DataError("no row is left to train on.", where=recipe.data.train, fix="Give more rows.")
    seed = near_seed_of(recipe)
    near = np.arange(len(rows)) if seed is None else near_duplicate_groups(compared(rows), seed=seed)
    own = value_groups([row.group for row in rows])
    groups = join_groups(join_groups(near, own), value_groups([row.together for row in rows]))
    times = [row.time for row in rows] if settings.time is not None else None

    def name_of(place: int) -> str:
        return f"{rows[place].source} row {rows[place].row}"

    places, late = split_rows(
        None,
        groups=groups,
        times=times,
        settings=settings,
        seed=recipe.seed,
        has_validation="validation" in given,
        has_test="test" in given,
        name_of=name_of,
    )
    parts: dict[Part, list[TextRow]] = {part: [] for part in PARTS}
    for row, part in zip(_called_alike(rows, near), places, strict=True):
        parts[part].append(row)
    for part in PARTS:
        asked = given.get(part, ())
        parts[part].extend(asked if seed is None else with_near(asked, seed))
    empty = [part for part in PARTS if not parts[part]]
    if empty:
        raise DataError(
            f"no row is left for {' and '.join(empty)}.",
            where=recipe.data.train,
            fix="Add rows, or change data.split.",
        )
    return parts, int((np.bincount(near) > 1).sum()), late


def documents_of(rows: Sequence[TextRow]) -> IntArray:
    """(N,) ids: alike for rows that were drawn together: by the form's groups, the person's, or likeness."""
    columns = ([getattr(row, name) for row in rows] for name in ("group", "together", "near"))
    return reduce(join_groups, map(value_groups, columns))


def with_near(rows: Sequence[TextRow], seed: int) -> list[TextRow]:
    """Rows of a file by themselves, near-duplicate questions among them known as such."""
    return _called_alike(rows, near_duplicate_groups(compared(rows), seed=seed)) if rows else []


def _called_alike(rows: Sequence[TextRow], near: IntArray) -> list[TextRow]:
    """The rows, those of one group of near-duplicates called alike: by the group's first row."""
    names: dict[int, str] = {}
    for row, group in zip(rows, near.tolist(), strict=True):
        names.setdefault(group, f"{row.source}:{row.row}")
    sizes = np.bincount(near)
    return [
        replace(row, near=names[group]) if sizes[group] > 1 else row
        for row, group in zip(rows, near.tolist(), strict=True)
    ]
