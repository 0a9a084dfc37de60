"""Python's way in: `fit` for files, `GPTClassifier` for lists and scikit-learn."""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from gptailor.errors import DataError, InputError
from gptailor.pipeline.fit import Listener, fit_recipe
from gptailor.pipeline.run import Run
from gptailor.recipe import Recipe, build_recipe, load_recipe


def fit(
    source: str | Path | Recipe,
    *,
    settings: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    listener: Listener | None = None,
) -> Run:
    """Fits a run from a data file, a recipe file or a `Recipe`; resumes what was begun.

    Args:
        source: A data file or folder, a `.yaml` recipe, or a recipe.
        settings: Nested settings for a data file, such as `{"approach": "lora", "out": "runs/mine"}`.
        overwrite: Move an old run in the same folder aside and begin anew.
        listener: Hears the steps in words and the lines of metrics.jsonl.

    Raises:
        GptailorError: something you can mend; the message says what.
    """
    if isinstance(source, Recipe):
        recipe = source
    elif str(source).endswith((".yaml", ".yml")):
        recipe = load_recipe(Path(source))
    else:
        values = dict(settings or {})
        recipe = build_recipe({**values, "data": {**values.get("data", {}), "train": str(source)}})
    return fit_recipe(recipe, overwrite=overwrite, listener=listener)


class GPTClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A fine-tuned GPT as a scikit-learn classifier of texts.

    The run lives in `folder` (a temporary folder by default). A share of the rows validates; nothing
    is held back as a test set, since scikit-learn's splitters do that.

    Args:
        base: `starter`, a folder, a run, or a name on the hub.
        approach: auto, full, lora, frozen or scratch.
        length: Such as "3 epochs"; None for the default.
        learning_rate: Peak rate; None for the default.
        folder: Where the run is kept; None for a temporary folder.
        seed: Of everything random.
    """

    def __init__(
        self,
        *,
        base: str = "starter",
        approach: str = "frozen",
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
        """Fits on N texts and their labels of any hashable kind.

        Raises:
            DataError: the two differ in length, or hold too little to learn from.
        """
        texts = self._texts(X)
        labels = np.asarray(y)
        if len(texts) != len(labels):
            raise DataError(
                f"there are {len(texts)} texts and {len(labels)} labels.", fix="Give one label per text."
            )
        self.classes_, codes = np.unique(labels, return_inverse=True)
        self._temporary = tempfile.TemporaryDirectory(prefix="gptailor-")
        folder = Path(self.folder) if self.folder else Path(self._temporary.name) / "run"
        source = Path(self._temporary.name) / "rows.csv"
        with source.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            writer.writerows((text, f"class {code}") for text, code in zip(texts, codes, strict=True))
        recipe = build_recipe(
            {
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
        self.run_ = fit_recipe(recipe, overwrite=folder.exists())
        names = self.run_.predictor.label_names
        self._columns = np.array([int(name.removeprefix("class ")) for name in names])
        self.n_features_in_ = 1
        return self

    def predict_proba(self, X: Sequence[str]) -> Any:  # noqa: N803
        """(N, C) calibrated probabilities in the order of `classes_`.

        Raises:
            InputError: a text is empty.
        """
        check_is_fitted(self, "run_")
        predictor = self.run_.predictor
        encoded = predictor.encode_many(self._texts(X))
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
        return self.classes_[self.predict_proba(X).argmax(axis=1)]

    @staticmethod
    def _texts(X: Sequence[str]) -> list[str]:  # noqa: N803
        values = X.tolist() if hasattr(X, "tolist") else list(X)
        flat: list[Any] = [
            value[0] if isinstance(value, list | tuple) and len(value) == 1 else value for value in values
        ]
        wrong = next((value for value in flat if not isinstance(value, str)), None)
        if wrong is not None:
            raise InputError(
                f"a text is of type {type(wrong).__name__}, not str.", fix="Give a list of strings."
            )
        return flat
