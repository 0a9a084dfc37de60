"""What a person's corrections did: one head fitted without them and one with, asked the same test rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from gptailor.data.clean import clean_rows
from gptailor.data.tokenize import encode_all, fit_rows
from gptailor.errors import number_of
from gptailor.evaluate.metrics import as_json
from gptailor.models.readout import decide, probabilities_of
from gptailor.pipeline.classify import by_text
from gptailor.pipeline.fixes import Place
from gptailor.pipeline.frozen import features_of, features_of_names, fit_best_head
from gptailor.pipeline.leaks import remove_leaks
from gptailor.pipeline.prepare import Prepared
from gptailor.pipeline.workshop import NoFoldsError, Workshop, resampling_of
from gptailor.recipe import FrozenApproach
from gptailor.tasks.classification import to_example
from gptailor.tasks.labels import label_of, labels_of
from gptailor.types import Example, FloatArray, Label, RawExample, TokenizedExample


def effect_of_fixes(shop: Workshop, prepared: Prepared, model: PreTrainedModel) -> dict[str, Any] | None:
    """The report's `fixes`: counts, both heads' scores on the test rows, their difference; None without any.

    Both heads read the base's frozen features, so this costs seconds and not a second run. Each chooses its
    strength on the validation rows with the labels it knows. The test rows and their labels are the run's
    own, the same for both; those of a given test file were never touched.

    Args:
        model: The base, or a frozen candidate; never one whose body was trained.
    """
    if not prepared.fixes.corrections:
        return None
    kind, test = shop.kind, shop.tokens.rows["test"]
    train, validation = shop.tokens.rows["train"], shop.tokens.rows["validation"]
    held = np.arange(len(train) + len(validation)) >= len(train)
    features = features_of(shop, model, [*train, *validation])
    names = features_of_names(shop, model)
    heads = {"with": _fitted(shop, features, [*train, *validation], held, names=names)}
    before, returned = labels_before(shop, prepared)
    kept = [n for n, row in enumerate([*train, *validation]) if (row.source, row.row) in before]
    rows = [
        dataclasses.replace(row, label=before[row.source, row.row])
        for row in ([*train, *validation][n] for n in kept)
    ]
    features, held = features[kept], held[kept]
    if returned:
        features = np.concatenate([features, features_of(shop, model, returned)])
        held = np.concatenate([held, np.zeros(len(returned), np.bool_)])
    try:
        heads["without"] = _fitted(shop, features, [*rows, *returned], held, names=names)
    except NoFoldsError:  # so few rows of two labels that nothing could have been learned
        return None
    test_features = features_of(shop, model, test)
    guessed = {}
    for name, weights in heads.items():
        logits, answers = by_text(test_features @ weights.T, test)
        guessed[name] = decide(probabilities_of(logits, kind.form), kind.form)
    resampling = resampling_of(shop, shop.tokens.examples["test"])
    settings: dict[str, Any] = {"label_names": shop.label_names, "resampling": resampling}
    scores = {name: kind.measure(answers, guesses, **settings) for name, guesses in guessed.items()}
    shown = (kind.beside, kind.metric)
    effect = {
        **_counts(shop, prepared),
        **{name: as_json({key: scores[name][key] for key in shown}) for name in ("without", "with")},
        "difference": as_json(kind.difference(answers, guessed["with"], guessed["without"], **settings)),
    }
    return {**effect, "says": _says(effect, shop)}


def labels_before(shop: Workshop, prepared: Prepared) -> tuple[dict[Place, Label], list[TokenizedExample]]:
    """Labels of training and validation rows without the corrections, and rows that only then would train.

    A row that contradicted another one, until a correction, has no label here: it would have been dropped.
    What is given back are dropped rows and rows that became another's duplicate, less those that stand
    in validation or test.
    """
    form, fixes, tokens = prepared.form, prepared.fixes, shop.tokens
    names = {name: place for place, name in enumerate(prepared.label_names)}
    cleaned = clean_rows(fixes.before, settings=shop.recipe.data.clean, kind=form.kind).rows
    usable = [row for row in cleaned if set(labels_of(row.fields["label"], form)) <= names.keys()]
    labels = {(row.source, row.row): label_of(row.fields["label"], names, form) for row in usable}
    ours = {(row.source, row.row) for row in fixes.before}
    for example in tokens.examples["validation"]:  # those of a file of their own weren't cleaned just now
        place = (example.source, example.row)
        old, _ = fixes.relabelled.get(place, ("", ""))
        if place not in ours and example.label is not None and set(labels_of(old, form)) <= names.keys():
            labels[place] = label_of(old, names, form) if old else example.label
    used = {(example.source, example.row) for part in tokens.examples.values() for example in part}
    held_out = [_raw(e) for e in (*tokens.examples["validation"], *tokens.examples["test"])]
    extra, _ = remove_leaks([row for row in usable if (row.source, row.row) not in used], held_out)
    examples = [to_example(row, labels[row.source, row.row]) for row in extra]
    encoded = encode_all(shop.encoder, [example.text for example in examples])
    lengths: dict[str, Any] = {"max_tokens": tokens.max_tokens, "too_long": tokens.too_long}
    return labels, list(fit_rows(shop.encoder, encoded, examples, first=0, **lengths))


def _fitted(
    shop: Workshop,
    features: FloatArray,
    rows: Sequence[TokenizedExample],
    held: Any,
    *,
    names: FloatArray,
) -> FloatArray:
    """(C, H) weights of a head, chosen and fitted as a run does it."""
    approach = shop.recipe.approach
    settings = approach if isinstance(approach, FrozenApproach) else FrozenApproach()
    return fit_best_head(shop, features, rows, held, settings.strengths, names=names).weights


def _counts(shop: Workshop, prepared: Prepared) -> dict[str, Any]:
    fixes = prepared.fixes
    tested = {(example.source, example.row) for example in shop.tokens.examples["test"]}
    return {
        "file": fixes.file,
        "relabelled": len(fixes.relabelled),
        "dropped": len(fixes.dropped),
        "unchanged": len(fixes.unchanged),
        "relabelled_in_test": len(tested & fixes.relabelled.keys()),
    }


def _says(effect: Mapping[str, Any], shop: Workshop) -> str:
    """One sentence, and another where corrected rows are among the tested."""
    kind, difference = shop.kind, effect["difference"]
    before, after = (effect[name][kind.metric]["value"] for name in ("without", "with"))
    low, high = difference["low"], difference["high"]
    between = ""
    better = worse = False
    if low is not None:  # of a handful of rows there is no interval
        between = f", {low:+.3f} to {high:+.3f}"
        better, worse = (low > 0, high < 0) if kind.higher_is_better else (high < 0, low > 0)
    judged = "better" if better else "worse" if worse else "no clear difference"
    said = (
        f"{number_of(effect['relabelled'], 'label')} corrected and {number_of(effect['dropped'], 'row')} "
        f"dropped: a head on frozen features goes from {before:.3f} to {after:.3f} {kind.metric_name} on the "
        f"same test rows, {judged} ({difference['value']:+.3f}{between})"
    )
    if effect["relabelled_in_test"]:
        rows = number_of(effect["relabelled_in_test"], "corrected row")
        verb = "stands" if effect["relabelled_in_test"] == 1 else "stand"
        said += (
            f"; {rows} {verb} in the test set: suspects are chosen by models, so this favors models a little "
            "(a test file of its own does not)"
        )
    return said


def _raw(example: Example) -> RawExample:
    return RawExample({"text": example.text}, example.source, example.row)
