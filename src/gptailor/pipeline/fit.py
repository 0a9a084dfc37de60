"""The straight line from a file to a finished run. Read this first."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from gptailor.data.ledger import summarize, write_ledger
from gptailor.errors import DataError
from gptailor.launch import (
    StopRequest,
    catch_signals,
    one_writer,
    remember,
    resolve_environment,
    write_atomically,
)
from gptailor.models.load import load_config
from gptailor.models.names import resolve_base
from gptailor.models.predictor import Predictor, load_predictor
from gptailor.pipeline.curve import has_curve, learning_curve
from gptailor.pipeline.fix_effect import effect_of_fixes
from gptailor.pipeline.folder import (
    ENVIRONMENT,
    base_revision_of,
    claim_folder,
    file_hashes,
    open_for_fit,
    refuse_other_data,
    refuse_search,
)
from gptailor.pipeline.frozen import best_strength_of, run_frozen
from gptailor.pipeline.handover import Handover
from gptailor.pipeline.keep import find_suspects, keep
from gptailor.pipeline.ladder import climb
from gptailor.pipeline.language import fit_language, seal_language
from gptailor.pipeline.place import Listener, TrainingPlace
from gptailor.pipeline.prepare import Prepared, prepare
from gptailor.pipeline.run import Run
from gptailor.pipeline.sealed import open_test
from gptailor.pipeline.story import describe, tell
from gptailor.pipeline.suspects import write_suspects
from gptailor.pipeline.task import passed_over_by_frozen, settle_task
from gptailor.pipeline.taught import keep_taught, marks_of, taught_before
from gptailor.pipeline.texts.road import fit_texts, seal_texts
from gptailor.pipeline.tokens import TokenizedParts, ledger_lines
from gptailor.pipeline.trackers import refuse_missing_trackers, tracked
from gptailor.pipeline.trained import run_trained
from gptailor.pipeline.workshop import (
    Candidate,
    NoFoldsError,
    Workshop,
    few_rows,
    may_refit,
    tokenized_workshop,
)
from gptailor.recipe import (
    AutoApproach,
    FrozenApproach,
    FullApproach,
    Recipe,
)
from gptailor.types import PARTS, Bundle

LONGEST_AUTO_SECONDS = 30 * 60
VALIDATION_TAUGHT = (
    "In the end the validation rows taught the model, too. Validation scores, temperature and threshold were "
    "measured before, with models that had not seen those rows."
)


@dataclass(frozen=True, slots=True)
class Sealed:
    """A classifier that is saved and proven; the test rows are still sealed."""

    chosen: Candidate
    bundle: Bundle
    predictor: Predictor
    parity: dict[str, float]


def fit_recipe(
    recipe: Recipe,
    *,
    overwrite: bool = False,
    listener: Listener | None = None,
    rival: Path | None = None,
    search: Path | None = None,
) -> Run:
    """Reads, cleans, splits, tokenizes, trains, compares, tests and reports; resumes what was begun.

    A rival is the folder of another run of the same split, whose model is asked the test rows when they are
    opened. The last fit of a search, which kept its trials in that folder, may go where it hasn't ended, and
    goes on from what a trial has trained.

    Raises:
        GptailorError: something the person can mend; the message says what.
    """
    listener = listener or Listener()
    asked, recipe = recipe.task, settle_task(recipe)
    assert recipe.task is not None  # settled
    refuse_missing_trackers(recipe.trackers)
    folder = claim_folder(recipe, overwrite=overwrite)
    if search is None:
        refuse_search(folder)
    with one_writer(folder), catch_signals() as stop:
        if open_for_fit(folder, recipe, listener.say):
            listener.say(f"{folder} is finished; nothing to do")
            return Run(folder)
        if search is not None:
            Handover(search).take(recipe, folder)
        if asked is None and recipe.task != "classification":
            listener.say(f"task: {recipe.task} (another: --task)")
        with tracked(recipe, folder, listener.say) as track:
            followed = dataclasses.replace(listener, track=track)
            ROADS[recipe.task].fit(recipe, folder, followed, stop, rival)
    return Run(folder)


def fit_sealed(recipe: Recipe, listener: Listener | None = None, *, search: Path | None = None) -> Path:
    """Fits in the recipe's folder, which it returns, and leaves the test rows sealed; resumes, as
    `fit_recipe` does.
    """
    assert recipe.task is not None  # settled
    folder, listener = claim_folder(recipe), listener or Listener()
    with one_writer(folder), catch_signals() as stop:
        open_for_fit(folder, recipe, listener.say)
        if search is not None:
            Handover(search).take(recipe, folder)
        ROADS[recipe.task].seal(recipe, folder, listener, stop)
    return folder


def seal_classification(recipe: Recipe, folder: Path, listener: Listener, stop: StopRequest) -> None:
    """Classification, from rows to a model that is saved and proven."""
    _, shop = open_data(recipe, folder, listener)
    seal(folder, shop, run_candidates(shop, folder, listener, stop))


def fit_classification(
    recipe: Recipe, folder: Path, listener: Listener, stop: StopRequest, rival: Path | None
) -> None:
    """Classification, from rows to a finished run folder."""
    began = time.perf_counter()
    prepared, shop = open_data(recipe, folder, listener)
    candidates = run_candidates(shop, folder, listener, stop)
    frozen = frozen_among(candidates)
    if frozen is None and (recipe.evaluate.baselines != "none" or recipe.data.fix is not None):
        listener.say("frozen features, to compare with")
        frozen = run_frozen(shop, FrozenApproach())
    sealed = seal(folder, shop, candidates)
    chosen = sealed.chosen
    list_suspects(folder, prepared, shop, sealed, frozen, say=listener.say)
    ladder = climb(shop, chosen, frozen, say=listener.say)
    listener.say("opening the sealed test set")
    other = None if rival is None else load_predictor(rival)
    report, details = open_test(folder, shop, chosen, sealed.predictor, ladder, other)
    if frozen is not None and (effect := effect_of_fixes(shop, prepared, frozen.model)) is not None:
        report["fixes"] = effect
        prepared.notes.append(effect["says"])
        listener.say(effect["says"])
    report["curve"] = None
    if frozen is not None and has_curve(shop):
        listener.say("learning curve: how many more labels?")
        try:
            report["curve"] = learning_curve(
                shop, frozen.model, approach=chosen.approach, strength=best_strength_of(frozen, shop.kind)
            )
        except NoFoldsError as error:
            listener.say(f"no learning curve: {error.what}")
    if validation_taught(shop, chosen):
        prepared.notes.append(VALIDATION_TAUGHT)
    seconds = time.perf_counter() - began  # of this start; training counts earlier ones, too
    report["training"]["total_seconds"] = round(max(seconds, report["training"]["seconds"]), 2)
    details = {**details, **describe(shop, chosen, candidates, parity=sealed.parity)}
    tell(folder, report, details, prepared=prepared, tokens=shop.tokens, form=sealed.bundle.answer)


def validation_taught(shop: Workshop, chosen: Candidate) -> bool:
    """Whether the model that is kept has learned from the validation rows, once they had chosen."""
    return may_refit(shop) and (chosen.approach == "frozen" or few_rows(shop) or chosen.refit_steps > 0)


def frozen_among(candidates: list[Candidate]) -> Candidate | None:
    """The frozen candidate, where there is one."""
    return next((candidate for candidate in candidates if candidate.approach == "frozen"), None)


def open_data(recipe: Recipe, folder: Path, listener: Listener) -> tuple[Prepared, Workshop]:
    """Reads, cleans, splits and tokenizes, and writes what became of every row."""
    prepared = prepare(recipe, listener.say)
    for note in passed_over_by_frozen(recipe):
        listener.say(note)
        prepared.notes.append(note)
    refuse_other_data(folder, prepared.data_hash)
    shop = open_workshop(recipe, prepared, folder, listener)
    examples, approach = shop.tokens.examples, recipe.approach.kind
    marks = {part: marks_of(enumerate(example.text for example in examples[part])) for part in PARTS}
    before, told = taught_before(shop.base, approach, marks)
    if told:
        listener.say(told)
        prepared.notes.append(told)
    write_data(folder, recipe, prepared, shop.tokens, taught_before=before)
    keep_taught(folder, marks, shop.base, approach)
    return prepared, shop


def seal(folder: Path, shop: Workshop, candidates: list[Candidate]) -> Sealed:
    """The best candidate, saved and proven; nobody has looked at the test rows."""
    chosen = max(candidates, key=lambda candidate: candidate.score)  # ties: the first, frozen
    bundle, predictor, parity = keep(folder, shop, chosen)
    return Sealed(chosen, bundle, predictor, parity)


def list_suspects(
    folder: Path,
    prepared: Prepared,
    shop: Workshop,
    sealed: Sealed,
    frozen: Candidate | None,
    *,
    say: Callable[[str], None],
) -> None:
    """Writes the rows to look at again, unless a person has filled in a list since the run began."""
    path = folder / "data" / "suspects.csv"
    suspects = find_suspects(shop, prepared, sealed.chosen, sealed.bundle, frozen=frozen)
    try:
        write_suspects(path, suspects)
    except DataError:
        say(f"{path} holds corrections: it stays as it is")


def open_workshop(recipe: Recipe, prepared: Prepared, folder: Path, listener: Listener) -> Workshop:
    """Finds the base, tokenizes the data, and settles the environment of the run."""
    began_with = base_revision_of(folder)  # a name of the hub may stand for newer weights by now
    base = resolve_base(recipe.base, revision=began_with or recipe.revision)
    if base.kind == "run":
        config = load_config(base)
        classifies = any(name.endswith("ForSequenceClassification") for name in config.architectures or ())
        labels = ", ".join(list((config.id2label or {}).values())[:6]) if classifies else ""
        head = f"its old head ({labels}) is dropped, " if labels else ""
        listener.say(f"base {base.name} is a run: {head}its body goes on")
    shop = tokenized_workshop(recipe, prepared, base)
    environment, changed = resolve_environment(folder / ENVIRONMENT, {"base_revision": base.revision})
    environment["changed"] = changed
    for change in changed:
        listener.say(f"this machine differs from where the run began, so it is not bit-exact: {change}")
    return dataclasses.replace(shop, environment=environment)


def write_data(
    folder: Path,
    recipe: Recipe,
    prepared: Prepared,
    tokens: TokenizedParts,
    *,
    taught_before: Mapping[str, int],
) -> None:
    """The ledger: one line per input row, and its sums, which come out."""
    (folder / "data").mkdir(exist_ok=True)
    lines = ledger_lines(prepared, tokens)
    write_ledger(folder / "data" / "ledger.jsonl", lines)
    summary = summarize(lines, read=prepared.read)
    summary["data_hash"] = prepared.data_hash
    summary["files"] = file_hashes(recipe) or {}
    summary["roles"] = {"text": prepared.roles.text, "label": prepared.roles.label}
    summary["rare_labels"] = prepared.cleaned.rare_labels
    summary["label_merges"] = prepared.cleaned.label_merges
    if taught_before:
        summary["taught_before"] = taught_before
    if prepared.fixes.corrections:
        fixes = prepared.fixes
        summary["fixes"] = {
            "file": fixes.file,
            "relabelled": len(fixes.relabelled),
            "dropped": len(fixes.dropped),
            "unchanged": len(fixes.unchanged),
        }
    write_atomically(folder / "data" / "summary.json", json.dumps(summary, indent=1))


def run_candidates(shop: Workshop, folder: Path, listener: Listener, stop: StopRequest) -> list[Candidate]:
    """The recipe's approach; for `auto`, frozen and full."""
    approach = shop.recipe.approach
    place = TrainingPlace.of_run(
        folder, seed=shop.recipe.seed, environment=shop.environment, stop=stop, listener=listener
    )
    if isinstance(approach, FrozenApproach):
        listener.say("computing features, fitting the head")
        frozen = run_frozen(shop, approach)
        shop.environment.update(remember(folder / ENVIRONMENT, {"precision": frozen.precision}))
        return [frozen]
    if isinstance(approach, AutoApproach):
        listener.say("frozen: computing features, fitting the head")
        frozen = run_frozen(shop, FrozenApproach())
        told = f"{shop.kind.metric_name} {shop.kind.told(frozen.score):.3f}"
        listener.say(f"frozen: validation {told}")
        with stop.deferred():
            full = run_trained(
                shop, FullApproach(), place, longest_seconds=LONGEST_AUTO_SECONDS, rival=frozen.score
            )
        return [frozen] if full is None else [frozen, full]
    with stop.deferred():
        trained = run_trained(shop, approach, place)
    return [] if trained is None else [trained]


@dataclass(frozen=True, slots=True)
class Road:
    """A task's way from rows to a finished run, and to one whose test rows are still sealed."""

    fit: Callable[[Recipe, Path, Listener, StopRequest, Path | None], None]
    seal: Callable[[Recipe, Path, Listener, StopRequest], None]


# What the roads share (loop, checkpoints, resume, folder) lies below them.
TEXTS = Road(fit_texts, seal_texts)
ROADS = {
    "classification": Road(fit_classification, seal_classification),
    "language": Road(fit_language, seal_language),
    "completion": TEXTS,
    "chat": TEXTS,
    "preference": TEXTS,
}
