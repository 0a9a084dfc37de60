"""Which task a recipe means, where it doesn't say: by what it names, then by the columns of its file."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence, Set
from functools import reduce
from pathlib import Path

from gptailor.data.read import iterate_rows
from gptailor.data.roles import LABEL_NAMES, infer_roles
from gptailor.data.source import is_stream
from gptailor.errors import DataError, GptailorError, RecipeError
from gptailor.recipe import FrozenApproach, Recipe
from gptailor.tasks.chat import infer_chat
from gptailor.tasks.columns import AmbiguousRoleError
from gptailor.tasks.completion import infer_completion
from gptailor.tasks.preference import infer_preference
from gptailor.types import RawExample, Task

LOOKED_AT = 2000  # rows
ANSWERS: tuple[Task, ...] = ("completion", "chat", "preference")
# Settings that other tasks would pass over without a word, and who reads them.
WRITTEN: tuple[Task, ...] = ("completion", "chat")
READ_BY: dict[str, tuple[Task, ...]] = {
    "task_answer": ("classification",),
    "data.label": ("classification",),
    "data.fix": ("classification",),
    "data.label_separator": ("classification",),
    "data.label_names": ("classification",),
    "data.test_label_names": ("classification",),
    "data.teach_names": ("classification",),
    "data.clean.merge_labels": ("classification",),
    "data.clean.drop_conflicts": ("classification", "preference"),
    "data.clean.minimum_class_size": ("classification",),
    "train.refit": ("classification",),
    "train.head_learning_rate": ("classification",),
    "train.class_weights": ("classification",),
    "train.label_smoothing": ("classification",),
    "evaluate.slices": ("classification", *WRITTEN),
    "data.text": ("classification", "language", "chat"),
    "data.too_long": ("classification", *ANSWERS),
    "data.max_new_tokens": ANSWERS,
    "data.prompt": ANSWERS,
    "data.completion": WRITTEN,
    "data.preset": ("completion",),
    "data.target": ("completion",),
    "data.validation_target": ("completion",),
    "data.test_target": ("completion",),
    "data.chosen": ("preference",),
    "data.rejected": ("preference",),
    "data.separator": ("language",),
    "approach.vocabulary": ("language",),
    "preference.loss": ("preference",),
    "preference.beta": ("preference",),
    "preference.margin": ("preference",),
    "evaluate.metrics": WRITTEN,
    "evaluate.generated_rows": WRITTEN,
    "evaluate.prompted_rows": ("classification", *WRITTEN),
}
# Settings that others leave without effect: whether they do, and why.
IDLE: tuple[tuple[str, Callable[[Recipe], bool], str], ...] = (
    ("data.split.validation", lambda recipe: recipe.data.validation is not None, "a file validates"),
    ("data.split.test", lambda recipe: recipe.data.test is not None, "a file tests"),
    ("data.label_names", lambda recipe: recipe.task_answer == "score", "numbers have no names"),
    ("data.test_label_names", lambda recipe: recipe.task_answer == "score", "numbers have no names"),
    (
        "train.decay",
        lambda recipe: recipe.train.schedule != "warmup-stable-decay",
        "only the schedule warmup-stable-decay has one",
    ),
    (
        "preference.margin",
        lambda recipe: recipe.preference.loss != "simpo",
        "only the loss simpo has one",
    ),
    (
        "evaluate.prompted_rows",
        lambda recipe: recipe.evaluate.baselines != "quick",
        "only the baselines quick prompt so many",
    ),
    ("data.columns", lambda recipe: recipe.data.target is not None, "two files line by line have none"),
    ("data.test_columns", lambda recipe: recipe.data.target is not None, "two files line by line have none"),
    ("revision", lambda recipe: _is_here(recipe.base), "only a base of the hub has revisions"),
)
# Settings of a file that is given beside the training file.
OF_A_FILE = {
    "test": ("data.test_columns", "data.test_label_names", "data.test_target"),
    "validation": ("data.validation_target",),
}
READ_BY_FROZEN = ("train.class_weights", "train.refit", "train.precision")  # of what is under `train`
# Uses of completion whose columns hardly stand in a labelled file by chance, and what is a label even there.
REPLIES = ("question_answering", "instruction", "completion")
SURE_LABELS = ("label", "labels", "class")
PROSE = (".txt", ".text", ".md")


def settle_task(recipe: Recipe) -> Recipe:
    """The recipe with its task. What can't be told is classification, whose errors say what is missing."""
    task = recipe.task or named_task(recipe) or task_of_columns(recipe)
    refuse_unread(recipe, task)
    train = recipe.train
    if task == "preference" and "dropout" not in train.model_fields_set:
        # An answer of some hundred tokens is tens of nats less likely under dropout, whoever it is: next to
        # that noise, what training moves is nothing.
        train = train.model_copy(update={"dropout": 0.0})
    return recipe.model_copy(update={"task": task, "train": train})


def refuse_unread(recipe: Recipe, task: Task) -> None:
    """Refuses a setting that the task doesn't read, or that belongs to a test file where none is given.

    Raises:
        RecipeError: one is set; says whose it is.
    """
    for path, readers in READ_BY.items():
        if task not in readers and _is_set(recipe, path):
            raise RecipeError(
                f"is for {', '.join(readers)}; the task is {task}.",
                where=path,
                fix="Leave it out, or name the other task with --task.",
            )
    for part, paths in OF_A_FILE.items():
        for path in paths if getattr(recipe.data, part) is None else ():
            if _is_set(recipe, path):
                raise RecipeError(
                    f"is for a {part} file, and there is none.",
                    where=path,
                    fix=f"Name it with --{part}, or leave this out.",
                )


def idle_in_words(recipe: Recipe) -> list[str]:
    """What of the recipe changes nothing beside the rest of it.

    Not refused: a recipe for many files has shares, and a search tries schedules without a decay.
    """
    return [
        f"{path} changes nothing: {why}"
        for path, is_idle, why in IDLE
        if is_idle(recipe) and _is_set(recipe, path)
    ]


def _is_here(base: str) -> bool:
    """Whether a base is the bundled one or a folder, not a name of the hub."""
    try:
        return base == "starter" or Path(base).expanduser().exists()
    except (OSError, RuntimeError):  # no path; whoever opens the base says so
        return False


def _is_set(recipe: Recipe, path: str) -> bool:
    """Whether a setting differs from its default."""
    *parents, name = path.split(".")
    settings = reduce(getattr, parents, recipe)
    field = type(settings).model_fields.get(name)  # None: of another approach
    return field is not None and getattr(settings, name) != field.get_default(call_default_factory=True)


def passed_over_by_frozen(recipe: Recipe) -> list[str]:
    """What of the training's settings a head on frozen features doesn't read, in words; mostly nothing.

    Not refused: `auto` may come to frozen features, and its recipe repeats the run.
    """
    if not isinstance(recipe.approach, FrozenApproach):
        return []
    fields = type(recipe.train).model_fields
    given = [name for name in fields if getattr(recipe.train, name) != fields[name].default]
    unread = [path for name in given if (path := f"train.{name}") not in READ_BY_FROZEN]
    return [f"frozen features are not trained: {', '.join(unread)} changes nothing"] if unread else []


def named_task(recipe: Recipe) -> Task | None:
    """The task that the named columns belong to."""
    data = recipe.data
    if (
        data.label is not None
        or data.fix is not None
        or data.label_separator is not None
        or recipe.task_answer != "auto"
    ):
        return "classification"
    if data.chosen is not None or data.rejected is not None:
        return "preference"
    if data.separator is not None:
        return "language"
    if data.target or data.preset or data.prompt or data.completion:
        return "completion"
    return None


def task_of_columns(recipe: Recipe) -> Task:
    """The task whose layout the first rows have."""
    location = recipe.data.train
    columns, rows = first_rows(location, recipe.data.columns)
    if recipe.data.columns is None and is_prose(location):
        return "language"
    if _fits(lambda: infer_preference(columns)):
        return "preference"
    if _fits(lambda: infer_chat(columns, rows).layout == "turns"):
        return "chat"
    if recipe.data.text is not None:
        return "classification"
    _refuse_thumbs(columns, rows, where=location)
    try:
        roles = infer_completion(columns, rows)
    except AmbiguousRoleError as error:  # told, or asked, once the task is completion
        others = [column for column in columns if column not in error.candidates]
        labelled = _has_label(others, rows, LABEL_NAMES) or _label_of(columns, rows) in others
        return "classification" if labelled else "completion"
    except GptailorError:
        return "classification"
    # A category beside an instruction and its response says of what kind they are; the response is learned.
    sure = {*SURE_LABELS, *map(str.lower, roles.answer)} if roles.preset in REPLIES else LABEL_NAMES
    if _has_label(columns, rows, LABEL_NAMES & sure):
        return "classification"
    return "classification" if _label_of(columns, rows) in roles.answer else "completion"  # they are classes


def _refuse_thumbs(columns: Sequence[str], rows: Sequence[RawExample], *, where: str) -> None:
    """Raises DataError for answers with a thumb up or down: the label is of the answer, not of the prompt."""
    if {"prompt", "completion", "label"} <= {*columns}:
        thumbs = {row.fields.get("label", "").strip().lower() for row in rows}
        if thumbs <= {"true", "false"}:
            raise DataError(
                "these are answers with a thumb up or down (KTO), from which nothing learns here.",
                where=where,
                fix="Keep the rows whose label is true and learn their answers (--task completion), or pair "
                "good answers with bad ones (--task preference).",
            )


def is_prose(location: str) -> bool:
    """Whether a file is one of plain text, by its name."""
    return Path(location.removesuffix(".gz")).suffix.lower() in PROSE


def first_rows(location: str, columns: str | None) -> tuple[list[str], list[RawExample]]:
    """Some rows and all their columns; none of what can't be read twice or at all."""
    if is_stream(location):
        return [], []
    try:
        items = itertools.islice(iterate_rows(location, columns=columns), LOOKED_AT)
        rows = [item for item in items if isinstance(item, RawExample)]
    except GptailorError:  # told in full when the rows are read for good
        return [], []
    return list(dict.fromkeys(name for row in rows for name in row.fields)), rows


def _label_of(columns: list[str], rows: list[RawExample]) -> str | None:
    """The column that classification would take for the label; None where none is plain."""
    try:
        return infer_roles(columns, rows, text=None, label=None).label
    except GptailorError:
        return None


def _has_label(columns: list[str], rows: list[RawExample], names: Set[str]) -> bool:
    """Whether a column has one of the names and its values come again, as labels do."""
    values = [
        [value for row in rows if (value := row.fields.get(column, "").strip())]
        for column in columns
        if column.strip().lower() in names
    ]
    return any(2 * len(set(found)) <= len(found) for found in values)


def _fits(infer: object) -> bool:
    """Whether the columns are plain for a task."""
    assert callable(infer)
    try:
        return infer() is not False
    except GptailorError:
        return False


def refuse_frozen(recipe: Recipe) -> None:
    """Raises RecipeError for the one approach that language modeling hasn't."""
    if isinstance(recipe.approach, FrozenApproach):
        raise RecipeError(
            "frozen has nothing to learn when the answer is text.",
            where="approach",
            fix="Use --approach full, lora or scratch.",
        )
