"""A finished run: its report, its predictions, its scores on new files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gptailor.data.read import Roles, infer_roles, iterate_rows, read_rows
from gptailor.errors import DataError, RunError
from gptailor.evaluate.metrics import as_json
from gptailor.evaluate.run import evaluate_logits
from gptailor.models.bundle import find_model_folder
from gptailor.models.predictor import Answer, Predictor, load_predictor
from gptailor.pipeline.prepare import joined
from gptailor.tasks.classification import name_labels, refuse_unknown_labels
from gptailor.types import RawExample, RejectedRow


class Run:
    """A run folder made by `fit`. The model is loaded when it is first needed."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._predictor: Predictor | None = None

    @property
    def report(self) -> dict[str, Any]:
        """report.json, or what `RunError` says if the run isn't finished."""
        path = self.folder / "report.json"
        try:
            report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise RunError(
                "this run is not finished (no report.json).",
                where=str(self.folder),
                fix="Run the same `gptailor fit` again: it goes on where it stopped.",
            ) from None
        return report

    @property
    def predictor(self) -> Predictor:
        """The model in memory."""
        if self._predictor is None:
            self._predictor = load_predictor(self.folder)
        return self._predictor

    def predict(self, texts: Iterable[str]) -> list[Answer | None]:
        """One answer per text, in order; None for a text that is empty after cleaning."""
        if isinstance(texts, str):
            texts = [texts]
        return list(self.predictor.predict(texts))

    def predict_file(
        self, location: str, *, text: str | None = None, columns: str | None = None
    ) -> Iterator[tuple[RawExample | RejectedRow, Answer | None]]:
        """One answer per row of a file, in its order and in constant memory.

        Rows that can't be read or have no text come back with None, so that nothing is lost.
        """
        rows = iterate_rows(location, columns=columns)
        column: str | None = None
        held: list[RawExample | RejectedRow] = []
        for row in rows:
            held.append(row)
            if column is None and len(held) >= 200:
                column = self._text_column(held, text)
            if column is not None and len(held) >= 2048:
                yield from self._answers(held, column)
                held = []
        if held:
            yield from self._answers(held, column or self._text_column(held, text))

    def evaluate(
        self,
        location: str,
        *,
        text: str | None = None,
        label: str | None = None,
        columns: str | None = None,
        label_names: dict[str, str] | None = None,
    ) -> dict[str, Any]:
        """Scores the run on a new labelled file; the same numbers as in the report's `test`.

        Raises:
            DataError: the file has labels the run doesn't know, or no usable row.
        """
        file = read_rows(location, columns=columns)
        roles = self._roles(file.columns, file.rows, text=text, label=label)
        rows = [
            RawExample(
                {"text": joined(row, roles.text), "label": row.fields.get(roles.label or "", "")},
                row.source,
                row.row,
            )
            for row in file.rows
        ]
        rows = name_labels(rows, label_names or {})
        names = self.predictor.label_names
        refuse_unknown_labels(rows, names, file=location, flag="--label-names")
        labelled = [row for row in rows if row.fields["label"]]
        encoded = self.predictor.encode_many([row.fields["text"] for row in labelled])
        kept = [(row, item) for row, item in zip(labelled, encoded, strict=True) if item is not None]
        if not kept:
            raise DataError("has no row with text and label.", where=location, fix="Check its columns.")
        answers = np.array([names.index(row.fields["label"]) for row, _ in kept])
        logits = self.predictor.logits([item for _, item in kept])
        report = evaluate_logits(
            logits,
            answers,
            label_names=names,
            split="new",
            temperature=self.predictor.bundle.temperature,
            resamples=2000,
            seed=0,
        )
        return {
            "file": location,
            "read": len(file.rows) + len(file.rejected),
            "rows": report.size,
            "left_out": len(file.rows) + len(file.rejected) - report.size,
            "scores": as_json(report.scores),
        }

    def _roles(
        self, columns: Sequence[str], rows: Sequence[RawExample], *, text: str | None, label: str | None
    ) -> Roles:
        trained = self._trained_roles()
        if text is None and trained and all(part in columns for part in trained.text.split("+")):
            text = trained.text
        if label is None and trained and trained.label in columns:
            label = trained.label
        return infer_roles(columns, rows, text=text, label=label)

    def _text_column(self, held: Sequence[RawExample | RejectedRow], text: str | None) -> str:
        rows = [row for row in held if isinstance(row, RawExample)]
        if not rows:
            return text or "text"
        columns = list(dict.fromkeys(name for row in rows for name in row.fields))
        trained = self._trained_roles()
        if text is None and trained and all(part in columns for part in trained.text.split("+")):
            return trained.text
        return infer_roles(columns, rows, text=text, label=None, need_label=False).text

    def _trained_roles(self) -> Roles | None:
        path = self.folder / "data" / "summary.json"
        if not path.exists():
            return None
        summary = json.loads(path.read_text(encoding="utf-8"))
        return Roles(**summary["roles"]) if "roles" in summary else None

    def _answers(
        self, held: Sequence[RawExample | RejectedRow], column: str
    ) -> Iterator[tuple[RawExample | RejectedRow, Answer | None]]:
        texts = [joined(row, column) if isinstance(row, RawExample) else "" for row in held]
        yield from zip(held, self.predictor.predict(texts), strict=True)


def load(folder: str | Path) -> Run:
    """Opens a run folder (or a model folder of one).

    Raises:
        ModelError: there is no finished model in it.
    """
    run = Run(folder)
    find_model_folder(run.folder)
    return run
