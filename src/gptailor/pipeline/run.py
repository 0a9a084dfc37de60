"""A finished run: its report, its predictions, its scores on new files."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gptailor.data.read import iterate_rows
from gptailor.errors import InputError, ModelError
from gptailor.evaluate.resampling import Resampling
from gptailor.launch import Precision
from gptailor.models.answerer import Answerer, load_answerer
from gptailor.models.bundle import find_model_folder, read_bundle
from gptailor.models.decode import Generated
from gptailor.models.language_model import LanguageModel, open_language_model
from gptailor.models.predictor import CHUNK, Answer, Predictor, load_predictor
from gptailor.models.sampling import Sampling, drawn_apart
from gptailor.pipeline.columns import joined, refuse_unknown_kept
from gptailor.pipeline.finished import read_report
from gptailor.pipeline.held_out import near_seed_of
from gptailor.pipeline.kinds import kind_of
from gptailor.pipeline.labels_new import Remembered, evaluate_labels, remembered_by, text_column_of
from gptailor.pipeline.language_new import evaluate_language
from gptailor.pipeline.openings import AMONG, SAID, note_another, own_file
from gptailor.pipeline.task import first_rows, is_prose
from gptailor.pipeline.taught import NO_MARKS, already_taught, holds_the_test, marks_of
from gptailor.pipeline.texts.new import answer_file, evaluate_preferences, evaluate_texts
from gptailor.recipe import DataSettings, Recipe, load_recipe
from gptailor.types import RawExample, RejectedRow, Task


class Run:
    """A run folder made by `fit`. The model is loaded when it is first needed."""

    def __init__(self, folder: str | Path, *, precision: Precision = "fp32") -> None:
        self.folder, self.precision = Path(folder), precision
        self._predictor: Predictor | None = None
        self._language_model: LanguageModel | None = None
        self._answerer: Answerer | None = None

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    @property
    def is_finished(self) -> bool:
        """Whether it has its report."""
        return (self.folder / "report.json").exists()

    @property
    def report(self) -> dict[str, Any]:
        """report.json, or what `RunError` says if the run isn't finished."""
        return read_report(self.folder)

    @property
    def predictor(self) -> Predictor:
        """The model in memory."""
        if self._predictor is None:
            self._predictor = load_predictor(self.folder, precision=self.precision)
        return self._predictor

    @property
    def task(self) -> Task:
        """What the run was trained for."""
        return read_bundle(find_model_folder(self.folder)).task

    @property
    def language_model(self) -> LanguageModel:
        """The language model in memory."""
        if self._language_model is None:
            self._language_model = open_language_model(self.folder)
        return self._language_model

    @property
    def answerer(self) -> Answerer:
        """The model of a run whose answer is text, in memory."""
        if self._answerer is None:
            self._answerer = load_answerer(self.folder)
        return self._answerer

    def write(self, text: str, **settings: Any) -> str:
        """How a text goes on, by a run of `--task language`.

        Drawn from the fifty likeliest tokens at temperature 0.8, at most 128 of them, with seed 0;
        `settings` are fields of `Sampling` that shall be otherwise.

        Raises:
            InputError: a value is out of its range.
            ModelError: the run is a classifier.
        """
        [written] = self.answer([text], replace(self.answerer.usual, **settings))
        return written.text

    @property
    def shown_scores(self) -> tuple[str, ...]:
        """The scores that `evaluate` prints, the deciding one first among its kin."""
        return kind_of(self.predictor.form).printed

    def predict(self, texts: Iterable[str | Mapping[str, str]]) -> list[Any]:
        """One answer per text, in order: an `Answer` of a classifier, None for a text that is missing (None,
        NaN) or empty after cleaning; of other runs what they write, drawn as `predict` draws it.

        Raises:
            InputError: something isn't text; see `answer` for runs that write.
        """
        texts = [texts] if isinstance(texts, str | Mapping) else texts
        if self.task == "classification":
            return list(self.predictor.predict(map(_text_in, itertools.count(1), texts)))
        return [self.answerer.shown(one) for one in self.answer(texts)]

    def answer(
        self, texts: Iterable[str | Mapping[str, str]], sampling: Sampling | None = None
    ) -> list[Generated]:
        """What is written for each text, with its token ids, log-probabilities, and why it ended.

        Where the prompt is made of several columns, a mapping gives their values by name. What is drawn is
        drawn with the next seed for each.

        Raises:
            InputError: a text is empty, or isn't text, or the prompt is made of several columns.
            ModelError: the run is a classifier.
        """
        texts = [texts] if isinstance(texts, str | Mapping) else texts
        fed = [
            self.answerer.feed_values({name: _text_in(place, value) for name, value in one.items()})
            if isinstance(one, Mapping)
            else self.answerer.feed_text(_text_in(place, one))
            for place, one in enumerate(texts, 1)
        ]
        usual = sampling or self.answerer.usual
        return self.answerer.answer(fed, [drawn_apart(usual, place) for place in range(len(fed))])

    def answer_file(
        self,
        location: str,
        *,
        text: str | None = None,
        columns: str | None = None,
        needed: Sequence[str] = (),
        sampling: Sampling | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> Iterator[tuple[RawExample | RejectedRow, str, Generated | None]]:
        """Each row of a file with its prompt and what is written, in order and in constant memory.

        Rows that can't be read or asked come with None, so that nothing is lost. A file without a column of
        `needed` is refused.
        """
        return answer_file(
            self.answerer,
            location,
            columns=columns,
            needed=needed,
            text=text,
            sampling=sampling or self.answerer.usual,
            say=say,
        )

    def predict_file(
        self,
        location: str,
        *,
        text: str | None = None,
        columns: str | None = None,
        needed: Sequence[str] = (),
        say: Callable[[str], None] = lambda _: None,
    ) -> Iterator[tuple[RawExample | RejectedRow, str, Answer | None]]:
        """Each row of a file with its text and its answer, in the file's order and in constant memory.

        Rows that can't be read or have no text come with None, so that nothing is lost.

        Raises:
            DataError: the file can't be read, its text column isn't plain, or one of `needed` isn't there.
        """
        rows = iterate_rows(location, columns=columns, say=say)
        column: str | None = None
        while held := list(itertools.islice(rows, CHUNK)):
            if column is None and any(row.fields for row in held):
                refuse_unknown_kept(needed, held, where=location)
            column = column or text_column_of(held, self._remembered, text, where=location, say=say)
            texts = [joined(row, column) if isinstance(row, RawExample) and column else "" for row in held]
            yield from zip(held, texts, self.predictor.predict(texts), strict=True)

    def evaluate(
        self,
        location: str,
        *,
        text: str | None = None,
        label: str | None = None,
        columns: str | None = None,
        label_names: dict[str, str] | None = None,
        target: str | None = None,
        slices: Sequence[str] = (),
    ) -> dict[str, Any]:
        """Scores the run on a new file; the same numbers as in the report's `test` and `slices`.

        A file that the run was made with is told as `note`; another look at its sealed test file is
        written down as the first one was.

        Raises:
            DataError: the file has labels the run doesn't know, no usable row, or lacks a column of `slices`.
        """
        self._refuse_options(text=text, label=label, names=label_names, target=target, slices=slices)
        own = own_file(self.folder, location, tree=self.task == "language")
        asked = NO_MARKS

        def note_of(texts: Iterable[tuple[int, str]]) -> str:
            nonlocal asked
            asked = marks_of(texts)
            return already_taught(self.folder, asked, one="document" if self.task == "language" else "row")

        if self.task == "language":
            found = self._evaluate_language(location, text=text, columns=columns, own=own, note_of=note_of)
        elif self.task != "classification":
            recipe = self._recipe(location)
            drawn = Resampling(recipe.evaluate.resamples, recipe.seed)
            new: dict[str, Any] = {
                "columns": columns,
                "near_seed": near_seed_of(recipe),
                "resampling": drawn,
                "note_of": note_of,
            }
            if self.task == "preference":
                found = evaluate_preferences(self.answerer, location, **new)
            else:
                found = evaluate_texts(self.answerer, location, target=target, slices=slices, **new)
        else:
            found = evaluate_labels(
                self.predictor,
                location,
                recipe=self._recipe(location),
                remembered=self._remembered,
                text=text,
                label=label,
                columns=columns,
                names=label_names or {},
                slices=slices,
                note_of=note_of,
            )
        told = [found.pop("note")] if "note" in found else []
        if own in ("train", "validation"):
            told = [SAID[own]]
        if own == "test" or holds_the_test(self.folder, asked):
            first = self.shown_scores if self.task == "classification" else list(found["scores"])[:1]
            shown = {name: found["scores"][name] for name in first}
            said = SAID["test"] if own == "test" else AMONG
            told = [note_another(self.folder, command="evaluate", scores=shown, said=said), *told]
        return {**found, "note": " ".join(told)} if told else found

    def _refuse_options(
        self,
        *,
        text: str | None,
        label: str | None,
        names: Mapping[str, str] | None,
        target: str | None,
        slices: Sequence[str],
    ) -> None:
        """Raises InputError for what a run of this task would pass over."""
        if slices and self.task in ("preference", "language"):
            raise InputError("slices are of labels and of written answers.", fix="Leave --slice out.")
        if target and self.task in ("classification", "language", "preference"):
            raise InputError("a file of answers is for completion and chat.", fix="Leave --target out.")
        if (label or names) and self.task == "language":
            raise InputError("a language run has no labels.", fix="Leave --label and --label-names out.")
        if (text or label or names) and self.task not in ("classification", "language"):
            raise InputError(
                "columns of text and label are for classifiers; this run's template names those it reads.",
                fix="Leave --text, --label and --label-names out.",
            )

    def _evaluate_language(
        self,
        location: str,
        *,
        text: str | None,
        columns: str | None,
        own: str | None,
        note_of: Callable[[Iterable[tuple[int, str]]], str],
    ) -> dict[str, Any]:
        """A language model's scores on a text read as training's was: by separator, column and line."""
        recipe = self._recipe(location)
        data = recipe.data
        if columns is None and (own or (is_prose(location) and is_prose(data.train))):
            columns = data.test_columns if own == "test" else data.columns
        there = {*first_rows(location, columns)[0]} if data.text or data.split.group else set()
        if text is None and data.text is not None and there.issuperset(data.text.split("+")):
            text = data.text
        return evaluate_language(
            self.language_model,
            location,
            text=text,
            columns=columns,
            separator=data.separator,
            group=data.split.group if data.split.group in there else None,
            near_seed=near_seed_of(recipe),
            resampling=Resampling(recipe.evaluate.resamples, recipe.seed),
            note_of=note_of,
        )

    @property
    def _remembered(self) -> Remembered:
        return remembered_by(self.folder)

    def _recipe(self, location: str) -> Recipe:
        """The run's recipe; where only the model was copied here, the usual one."""
        path = self.folder / "recipe.yaml"
        return load_recipe(path) if path.exists() else Recipe(data=DataSettings(train=location))


def _text_in(place: int, text: object) -> str:
    """A text as it is; "" for what a table holds where there is none."""
    if isinstance(text, str):
        return text
    if text is None or (isinstance(text, float) and math.isnan(text)) or type(text).__name__ == "NAType":
        return ""
    what = f"is of type {type(text).__name__}, not text."
    raise InputError(what, where=f"text {place}", fix="Give strings.")


def load(folder: str | Path, *, precision: Precision = "fp32") -> Run:
    """Opens a run folder (or a model folder of one).

    Args:
        folder: The run's or the model's.
        precision: What a classifier computes in. `bf16` is faster; how far its probabilities are
            off, `run.predictor.verify_probes()` tells.

    Raises:
        ModelError: there is no finished model in it, or it writes and another precision is asked for.
    """
    run = Run(folder, precision=precision)
    refuse_precision(run.folder, precision)
    return run


def refuse_precision(folder: Path, precision: str) -> None:
    """Raises ModelError where there is no finished model, or one that doesn't compute in this precision."""
    task = read_bundle(find_model_folder(folder)).task
    if precision not in ("fp32", *(["bf16"] if task == "classification" else [])):
        fix = "Leave --precision out." if precision == "bf16" else "Precisions are fp32 and bf16."
        raise ModelError(f"can't be computed in {precision!r}.", where=str(folder), fix=fix)
