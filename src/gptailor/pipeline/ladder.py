"""The ladder: what simpler means reach on the same rows, and whether the fine-tune is worth it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from gptailor.errors import ModelError
from gptailor.evaluate.baselines import BaselineResult, strongest
from gptailor.evaluate.metrics import as_json
from gptailor.evaluate.prompted import build_prompter, choose_shots, prompted_scores, why_not
from gptailor.evaluate.resampling import Resampling
from gptailor.models.forward import keeps_keys_and_values
from gptailor.models.load import head_name, load_language_model
from gptailor.models.names import context_length
from gptailor.models.readout import decide, probabilities_of
from gptailor.pipeline.classify import by_text
from gptailor.pipeline.frozen import features_of, run_frozen
from gptailor.pipeline.labels import answers_of, taught_names
from gptailor.pipeline.modest import kept_modest
from gptailor.pipeline.workshop import (
    Candidate,
    Workshop,
    few_rows,
    fold_numbers,
    folds_of,
    may_refit,
    resampling_of,
)
from gptailor.recipe import FrozenApproach
from gptailor.types import Example, IntArray

FEWEST_PROMPTED_ROWS = 30
PROMPTED_SHARE = 0.2  # of the computation that training took


@dataclass(frozen=True, slots=True)
class Rung:
    """What one baseline answers to the rows it was asked: all, or a fixed sample."""

    name: str
    validation: Any  # its answers to those of `judged_rows`
    validation_rows: IntArray
    predictions: Any  # its answers to those of the test rows
    rows: IntArray
    note: str = ""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Ladder:
    """All rungs, and why others are missing."""

    rungs: dict[str, Rung] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)


def climb(
    shop: Workshop,
    chosen: Candidate,
    frozen: Candidate | None,
    *,
    say: Callable[[str], None] = lambda _: None,
) -> Ladder:
    """Fits every baseline on the training rows and asks it the validation and test rows."""
    if shop.recipe.evaluate.baselines == "none":
        return Ladder()
    examples = shop.tokens.examples
    answers = {part: answers_of(examples[part]) for part in examples}
    texts = {part: [example.text for example in examples[part]] for part in examples}
    every_row, every_judged = np.arange(len(answers["test"])), np.arange(len(judged_rows(shop)))
    rungs: dict[str, Rung] = {}

    say("baseline: always the same answer, and TF-IDF")
    for result in cheap_rungs(shop):
        given = (result.validation, every_judged, result.test, every_row)
        rungs[result.name] = Rung(result.name, *given, result.note, result.seconds)
    if chosen.approach != "frozen":
        say("baseline: frozen features")
        rungs["frozen"] = frozen_rung(shop, frozen)
    prompted, skipped = prompted_rungs(shop, chosen, answers=answers, texts=texts, say=say)
    return Ladder({**rungs, **prompted}, skipped)


def cheap_rungs(shop: Workshop) -> list[BaselineResult]:
    """The kind's baselines and what they answer to `judged_rows`; of few rows out of fold, as ours."""
    examples, kind, seed = shop.tokens.examples, shop.kind, shop.recipe.seed
    names = taught_names(shop.label_names, kind.form, shop.recipe.data)  # they teach the model, too

    def fitted(parts: Mapping[Any, Sequence[Example]], *, refit: bool) -> list[BaselineResult]:
        texts = {part: [row.text for row in rows] for part, rows in parts.items()}
        answers = {part: answers_of(rows) for part, rows in parts.items()}
        folds = fold_numbers(parts["train"], seed=seed, strata=kind.strata)
        target = kind.target(shop.recipe.train, shop.label_names)
        return kind.baselines(texts, answers, folds=folds, refit=refit, seed=seed, target=target, names=names)

    results = fitted(examples, refit=may_refit(shop))
    rows = judged_rows(shop)
    if few_rows(shop):
        order: list[IntArray] = []
        guesses: dict[str, list[Any]] = {result.name: [] for result in results}
        for inside, outside in folds_of(rows, seed=seed, strata=kind.strata):
            train, held = ([rows[place] for place in places.tolist()] for places in (inside, outside))
            order.append(outside)
            for result in fitted({"train": train, "validation": held, "test": []}, refit=False):
                guesses[result.name].append(result.validation)
        back = np.argsort(np.concatenate(order))
        results = [replace(one, validation=np.concatenate(guesses[one.name])[back]) for one in results]
    return [kind.settle_baseline(result, answers_of(rows)) for result in results]


def judged_rows(shop: Workshop) -> list[Example]:
    """What every rung is asked before the test: the validation rows, and where there are few all."""
    examples = shop.tokens.examples
    return [*(examples["train"] if few_rows(shop) else []), *examples["validation"]]


def frozen_rung(shop: Workshop, frozen: Candidate | None) -> Rung:
    """The frozen approach as a baseline of the others."""
    began = time.perf_counter()
    frozen = frozen or run_frozen(shop, FrozenApproach())
    model: Any = frozen.model
    rows = shop.tokens.rows["test"]
    features = features_of(shop, model, rows)
    logits, _ = by_text(features @ getattr(model, head_name(model)).weight.detach().double().numpy().T, rows)
    form, temperature, _ = shop.kind.settle(frozen.validation_logits, frozen.validation_answers)
    judged, tested = (
        decide(probabilities_of(given, form, temperature=temperature), form)
        for given in (frozen.validation_logits, logits)
    )
    places = (np.arange(len(judged)), tested, np.arange(len(tested)))
    return Rung("frozen", judged, *places, seconds=time.perf_counter() - began)


def prompted_rungs(
    shop: Workshop,
    chosen: Candidate,
    *,
    answers: Mapping[Any, IntArray],
    texts: Mapping[Any, Sequence[str]],
    say: Callable[[str], None],
) -> tuple[dict[str, Rung], dict[str, str]]:
    """Zero-shot and few-shot of the base as it came, on a fixed stratified sample of rows."""
    reason = why_not(shop.label_names)
    if shop.kind.form.kind != "single":
        reason = "a prompt is answered with one label"
    model = None
    if reason is None:
        try:
            model = load_language_model(shop.base)
        except ModelError as error:
            reason = f"the base {error.what}"
    if model is not None and not keeps_keys_and_values(model):
        reason = f"a base of this family ({model.config.model_type}) can't be asked by prompts here"
    if model is None or reason is not None:
        return {}, {"zero_shot": str(reason), "few_shot": str(reason)}
    context = context_length(model.config)
    prompter = build_prompter(model, shop.encoder, shop.label_names, context=context)
    longest = max(map(len, prompter.label_ids))
    if longest > context // 4:  # half is the examples', and the text needs room
        reason = f"a label of {longest} tokens leaves too little of the base's context ({context})"
        return {}, {"zero_shot": reason, "few_shot": reason}
    limit = prompted_limit(shop, chosen, num_test=len(answers["test"]))
    samples = {
        part: stratified_sample(answers[part], limit, seed=shop.recipe.seed)
        for part in ("validation", "test")
    }
    shots: dict[str, list[Example]] = {
        "zero_shot": [],
        "few_shot": choose_shots(
            shop.tokens.examples["train"],
            shop.label_names,
            seed=shop.recipe.seed,
            room=context // 2,
            encoder=shop.encoder,
        ),
    }
    rungs, skipped = {}, {}
    for name, examples in shots.items():
        if name == "few_shot" and not examples:
            skipped[name] = "one example of every class doesn't fit half the base's context"
            continue
        say(f"baseline: {name.replace('_', '-')}")
        began = time.perf_counter()
        guesses = {
            part: prompted_scores(
                prompter, [texts[part][int(row)] for row in rows], examples, shop.label_names
            ).argmax(axis=1)
            for part, rows in samples.items()
        }
        note = f"{len(samples['test'])} of {len(answers['test'])} test rows"
        if examples:
            note += f", {len(examples)} examples in the prompt"
        asked = len(judged_rows(shop)) - len(answers["validation"]) + samples["validation"]
        given = (guesses["validation"], asked, guesses["test"], samples["test"])
        rungs[name] = Rung(name, *given, note, time.perf_counter() - began)
    return rungs, skipped


def prompted_limit(shop: Workshop, chosen: Candidate, *, num_test: int) -> int:
    """How many rows are prompted: the recipe's number, less where that would cost over 20 % of training.

    Counted in tokens through the model, not in seconds, so that it comes out the same every time.
    """
    if shop.recipe.evaluate.baselines == "all":
        return num_test
    mean = float(shop.tokens.lengths.mean())
    passes = 3 * chosen.trained.tokens or sum(len(row.token_ids) for row in shop.tokens.rows["train"])
    per_row = 2 * 2 * (mean + 2 * len(shop.label_names))  # zero- and few-shot, validation and test
    affordable = int(PROMPTED_SHARE * passes / per_row)
    return min(shop.recipe.evaluate.prompted_rows, max(FEWEST_PROMPTED_ROWS, affordable))


def stratified_sample(answers: IntArray, limit: int, *, seed: int) -> IntArray:
    """At most `limit` row indices, every class in its share, sorted; the same ones for the same seed."""
    if len(answers) <= limit:
        return np.arange(len(answers))
    order = np.random.default_rng((seed, 3)).permutation(len(answers))
    ordered = order[np.argsort(answers[order], kind="stable")]
    picks = np.floor((np.arange(limit) + 0.5) * len(answers) / limit).astype(np.int64)
    return np.sort(ordered[picks])


def judge(
    shop: Workshop, ladder: Ladder, *, answers: Any, predictions: Any, approach: str
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The baselines' test scores for the report, and the verdict against the best on validation.

    `approach` made the predictions, (N,) or (N, C), that are judged.
    """
    kind, names = shop.kind, shop.label_names
    drawn = resampling_of(shop, shop.tokens.examples["test"])
    scores: dict[str, Any] = {}
    judged = answers_of(judged_rows(shop))

    def validation_score(rung: Rung, places: IntArray) -> float:
        """On some of the rows that it was asked; higher is better."""
        chosen = np.searchsorted(rung.validation_rows, places)
        once = {"label_names": names, "resampling": Resampling(1)}
        found = kind.measure(judged[places], rung.validation[chosen], **once)[kind.metric].value
        return kind.told(float(found))  # told twice is as it was

    for name, rung in ladder.rungs.items():
        own = {"label_names": names, "resampling": drawn.of(rung.rows)}
        measured = kind.measure(answers[rung.rows], rung.predictions, **own)
        scores[name] = {
            kind.beside: as_json(measured[kind.beside]),
            kind.metric: as_json(measured[kind.metric]),
            kind.validation_key: round(kind.told(validation_score(rung, rung.validation_rows)), 6),
            "rows": len(rung.rows),
            "seconds": round(rung.seconds, 2),
            **({"note": rung.note} if rung.note else {}),
        }
    scores.update({name: {"skipped": reason} for name, reason in ladder.skipped.items()})
    if not ladder.rungs:
        return scores, None

    def score(one: str, other: str) -> float:
        rung = ladder.rungs[one]
        return validation_score(
            rung, np.intersect1d(rung.validation_rows, ladder.rungs[other].validation_rows)
        )

    asked = {name: len(rung.validation_rows) for name, rung in ladder.rungs.items()}
    best = ladder.rungs[strongest(asked, score)]
    truth, ours, drawn = answers[best.rows], predictions[best.rows], drawn.of(best.rows)
    said = kind.verdict(
        ours_name="The head on frozen features" if approach == "frozen" else "The fine-tune",
        best_baseline=best.name,
        difference=kind.difference(truth, ours, best.predictions, label_names=names, resampling=drawn),
        same_predictions=bool((ours == best.predictions).all()),
    )
    return scores, kept_modest(said, tellers(truth, ours, best.predictions), drawn)


def tellers(answers: Any, ours: Any, theirs: Any) -> Any:
    """(N,) whether each row tells two models apart: one of them is right, or nearer, and the other isn't."""
    mine, others = (np.abs(given - answers).reshape(len(answers), -1).sum(axis=1) for given in (ours, theirs))
    if np.issubdtype(np.asarray(answers).dtype, np.integer):
        mine, others = mine > 0, others > 0
    return mine != others
