"""Python's way in: `fit` for files, `GPTClassifier` for lists and scikit-learn."""

from __future__ import annotations

import json
import shutil
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import assert_all_finite
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d

from gptailor.errors import DataError, InputError, Interrupted, RecipeError
from gptailor.pipeline.fit import fit_recipe
from gptailor.pipeline.folder import next_to, run_of
from gptailor.pipeline.place import Listener
from gptailor.pipeline.run import Run
from gptailor.recipe import Recipe, build_recipe, load_recipe
from gptailor.types import IntArray


def fit(
    source: str | Path | Recipe,
    *,
    settings: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    listener: Listener | None = None,
) -> Run:
    """Fits a run from a data file, a recipe file or a `Recipe`; resumes what was begun.

    Args:
        source: A data file or folder, a `.yaml` recipe, or a recipe. RUN/recipe.yaml is repeated beside
            RUN, as the command line does.
        settings: Nested settings for a data file, such as `{"approach": "lora", "out": "runs/mine"}`.
        overwrite: Move an old run in the same folder aside and begin anew.
        listener: Hears the steps in words and the lines of metrics.jsonl.

    Raises:
        GptailorError: something you can mend; the message says what.
    """
    is_file = isinstance(source, Recipe) or str(source).endswith((".yaml", ".yml"))
    if is_file and settings is not None:
        raise RecipeError(
            "settings are for a data file, and a recipe was given.", fix="Write them into the recipe."
        )
    if isinstance(source, Recipe):
        recipe = source
    elif is_file:
        recipe = load_recipe(Path(source))
        run = run_of(Path(source))
        recipe = recipe if run is None else recipe.model_copy(update={"out": str(next_to(run, recipe))})
    else:
        values = dict(settings or {})
        recipe = build_recipe({**values, "data": {**values.get("data", {}), "train": str(source)}})
    return fit_recipe(recipe, overwrite=overwrite, listener=listener)


class GPTClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A fine-tuned GPT as a scikit-learn classifier of texts.

    Like every run it keeps 15 % of the rows for validation and 15 % for a sealed test, whose scores
    stand in `run_.report`. The model is held in memory, so a fitted classifier can be copied and pickled.

    Args:
        base: `starter`, a folder, a run, or a name on the hub.
        approach: auto, full, lora, frozen or scratch; or with its settings, `{"kind": "lora", "rank": 4}`.
        length: Such as "3 epochs"; None for the default.
        learning_rate: Peak rate; None for the default.
        folder: Where the run is kept; None for a folder that goes with the classifier.
        seed: Of everything random.
    """

    def __init__(
        self,
        *,
        base: str = "starter",
        approach: str | Mapping[str, Any] = "frozen",
        length: str | None = None,
        learning_rate: float | None = None,
        folder: str | None = None,
        seed: int = 0,
    ) -> None:
        self.base = base
        self.approach = approach
        self.length = length
        self.learning_rate = learning_rate
        self.folder = folder
        self.seed = seed

    def fit(self, X: Sequence[str], y: Sequence[Any]) -> GPTClassifier:  # noqa: N803
        """Fits on N texts and their labels, which are strings, integers or booleans.

        Raises:
            DataError: the two differ in length, or hold too little to learn from.
            InputError: X isn't a list of strings.
        """
        texts = _texts(X)
        classes, codes = _classes(y)
        if len(texts) != len(codes):
            raise DataError(
                f"there are {len(texts)} texts and {len(codes)} labels.", fix="Give one label per text."
            )
        folder = Path(self.folder) if self.folder else self._temporary_folder() / "run"
        folder.parent.mkdir(parents=True, exist_ok=True)
        source = folder.with_name(f"{folder.name}-rows.jsonl")
        with source.open("w", encoding="ascii") as file:
            for text, code in zip(texts, codes, strict=True):
                file.write(json.dumps({"text": text, "label": f"class {code}"}) + "\n")
        recipe = build_recipe(
            {
                "task": "classification",
                "data": {
                    "train": str(source),
                    "text": "text",
                    "label": "label",
                    "split": {"validation": 0.15, "test": 0.15},
                    "clean": {"minimum_class_size": 2},
                },
                "base": self.base,
                "approach": self.approach,
                "train": {"length": self.length, "learning_rate": self.learning_rate},
                "evaluate": {"baselines": "none", "resamples": 100},
                "seed": self.seed,
                "out": str(folder),
            }
        )
        try:
            run = fit_recipe(recipe, overwrite=folder.exists())
        except Interrupted as error:  # scikit-learn's searches take any other for a failed fit, and go on
            raise KeyboardInterrupt(str(error)) from error
        names = run.predictor.label_names
        columns = np.array([int(name.removeprefix("class ")) for name in names])
        self.classes_, self.run_, self._columns = classes, run, columns  # all or none: a fit may fail
        return self

    def predict_proba(self, X: Sequence[str]) -> Any:  # noqa: N803
        """(N, C) calibrated probabilities in the order of `classes_`.

        Raises:
            InputError: a text is empty.
        """
        check_is_fitted(self, "run_")
        predictor = self.run_.predictor
        encoded = predictor.encode_many(_texts(X))
        empty = [place for place, item in enumerate(encoded) if item is None]
        if empty:
            raise InputError(
                f"text {empty[0]} of {len(encoded)} is empty.", fix="Leave empty texts out before predicting."
            )
        probabilities = np.zeros((len(encoded), len(self.classes_)))
        if encoded:
            probabilities[:, self._columns] = predictor.run([item for item in encoded if item is not None])
        return probabilities

    def predict(self, X: Sequence[str]) -> Any:  # noqa: N803
        """(N,) the most probable class of each text."""
        best = self.predict_proba(X).argmax(axis=1)
        return self.classes_[best]

    def _temporary_folder(self) -> Path:
        folder = tempfile.mkdtemp(prefix="gptailor-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        return Path(folder)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.one_d_array = tags.input_tags.string = True
        tags.input_tags.two_d_array = False
        return tags


def _texts(X: Any) -> list[str]:  # noqa: N803
    """N strings from a list, an array or a column."""
    fix = "Give a list of strings, or one column of them."
    if isinstance(X, str):
        raise InputError("X is one string.", fix=fix)
    values = np.asarray(X if hasattr(X, "__len__") else list(X), dtype=object)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1:
        raise InputError(f"X has the shape {values.shape}, not one text per row.", fix=fix)
    kinds = {type(value).__name__ for value in values if not isinstance(value, str)}
    if kinds:
        raise InputError(f"a text is of type {' or '.join(sorted(kinds))}, not str.", fix=fix)
    return [str(value) for value in values]


def _classes(y: Any) -> tuple[Any, IntArray]:
    """The sorted classes (C,) and the class number (N,) of each label."""
    try:
        labels = column_or_1d(y, warn=True)
        assert_all_finite(labels, input_name="y")
        check_classification_targets(labels)
        classes, codes = np.unique(labels, return_inverse=True)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"the labels can't be used: {error}", fix="Give one string, integer or boolean per text."
        ) from None
    return classes, codes
