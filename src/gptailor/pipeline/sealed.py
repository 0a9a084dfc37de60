"""The sealed test set: opened once, through the saved bundle, and written down each time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from gptailor.evaluate.metrics import as_json
from gptailor.evaluate.run import overfitting_in_words
from gptailor.models.predictor import Predictor
from gptailor.models.readout import decide, probabilities_of
from gptailor.pipeline.kinds import kind_of
from gptailor.pipeline.labels import answers_of
from gptailor.pipeline.ladder import Ladder, judge, judged_rows
from gptailor.pipeline.openings import note_opening
from gptailor.pipeline.outcome import peak_memory_bytes
from gptailor.pipeline.slices import score_slices, slice_columns
from gptailor.pipeline.tokens import TokenizedParts
from gptailor.pipeline.workshop import Candidate, Workshop, resampling_of
from gptailor.types import AnswerForm, Part, Predictions

# In data/summary.json, not in the report.
FOR_LATER = {"data_hash", "files", "roles", "rare_labels", "label_merges"}


def open_test(
    folder: Path,
    shop: Workshop,
    chosen: Candidate,
    predictor: Predictor,
    ladder: Ladder,
    rival: Predictor | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Opens the sealed test set once, through the saved bundle, and puts the numbers together.

    A rival (`tune`'s own recipe before tuning) answers the same rows at the same opening.
    """
    recipe, bundle, kind = shop.recipe, predictor.bundle, kind_of(predictor.form)
    examples = shop.tokens.examples["test"]
    settings: dict[str, Any] = {"label_names": shop.label_names, "temperature": bundle.temperature}
    resampling = resampling_of(shop, examples)
    encoded = [item for item in predictor.encode_many([example.text for example in examples]) if item]
    logits = predictor.logits(encoded)
    answers = answers_of(examples)
    tested = kind.evaluate(logits, answers, split="test", resampling=resampling, **settings)
    validated = kind.evaluate(
        chosen.validation_logits,
        chosen.validation_answers,
        split="validation",
        resampling=resampling_of(shop, judged_rows(shop)),
        **settings,
    )
    assert tested.predictions is not None
    predictions = decide(tested.predictions.probabilities, predictor.form)
    baselines, verdict = judge(
        shop, ladder, answers=answers, predictions=predictions, approach=chosen.approach
    )
    shown = {key: tested.scores[key] for key in (kind.beside, kind.metric)}
    against = (
        {} if rival is None else {"default": against_rival(shop, rival, tested.predictions, predictor.form)}
    )
    note_opening(folder, scores=as_json(shown))
    report: dict[str, Any] = {
        "version": 1,
        "task": "classification",
        "answer": kind.form.kind,
        "base": shop.base.name,
        "approach": chosen.approach,
        "seed": recipe.seed,
        "data": _data_counts(folder, shop.tokens),
        "test": {"rows": tested.size, **as_json(tested.scores)},
        "validation": {"rows": validated.size, **as_json(validated.scores)},
        "baselines": baselines,
        "verdict": verdict,
        "slices": score_slices(
            kind,
            tested.predictions.probabilities,
            answers,
            texts=[example.text for example in examples],
            encoder=predictor.encoder,
            columns=slice_columns(examples),
            label_names=shop.label_names,
            resampling=resampling,
        ),
        **against,
        "training": training_numbers(chosen, shop),
        "environment": dict(shop.environment),
    }
    details = as_json(
        kind.details(logits, answers, threshold=bundle.threshold, resampling=resampling, **settings)
    )
    if "at_threshold" in details:
        report["test"]["at_threshold"] = details["at_threshold"]
    details["probabilities"] = tested.predictions.probabilities
    return report, details


def against_rival(shop: Workshop, rival: Predictor, ours: Predictions, form: AnswerForm) -> dict[str, Any]:
    """A rival's scores on the test rows, and how far we are ahead of it, row by row."""
    kind = kind_of(rival.form)
    examples = shop.tokens.examples["test"]
    settings = {"label_names": shop.label_names, "resampling": resampling_of(shop, examples)}
    texts = [example.text for example in examples]
    logits = rival.logits([item for item in rival.encode_many(texts) if item])
    theirs = decide(probabilities_of(logits, rival.form, temperature=rival.bundle.temperature), rival.form)
    mine = decide(ours.probabilities, form)
    measured = kind.measure(ours.answers, theirs, **settings)
    return {
        "approach": rival.bundle.approach,
        **{key: as_json(measured[key]) for key in (kind.beside, kind.metric)},
        "difference": as_json(kind.difference(ours.answers, mine, theirs, **settings)),
    }


def training_numbers(chosen: Candidate, shop: Workshop) -> dict[str, Any]:
    """The report's `training` object."""
    trained = chosen.trained
    return {
        "steps": trained.steps,
        "best_step": trained.best_step,
        "refit_steps": chosen.refit_steps,
        "seconds": round(chosen.seconds, 2),
        "tokens_per_second": round(trained.tokens / trained.seconds) if trained.seconds else None,
        "peak_memory_bytes": peak_memory_bytes(),
        "stopped": trained.stopped,
        shop.kind.validation_key: round(shop.kind.told(chosen.score), 6),
        "overfitting": overfitting_in_words(
            trained.curves,
            best_step=trained.best_step,
            unit=shop.kind.loss_unit,
            refit_steps=chosen.refit_steps,
            alike=shop.recipe.train.class_weights == "none" and shop.recipe.train.label_smoothing == 0,
        ),
        "bit_exact": bool(shop.environment.get("bit_exact", True)),
    }


def _data_counts(folder: Path, tokens: TokenizedParts) -> dict[str, Any]:
    summary = json.loads((folder / "data" / "summary.json").read_text(encoding="utf-8"))
    summary = {key: value for key, value in summary.items() if key not in FOR_LATER}
    summary["tokens"]["padding"] = _padding(tokens, "train")
    return dict(summary)


def _padding(tokens: TokenizedParts, part: Part) -> int:
    """Pads of one epoch, had every batch of sixteen neighbors by length been padded to its longest."""
    lengths = np.sort([len(row.token_ids) for row in tokens.rows[part]])
    batches = np.array_split(lengths, range(16, len(lengths), 16))
    return int(sum(len(batch) * batch.max() - batch.sum() for batch in batches if len(batch)))
