"""The straight line from a file to a finished run. Read this first."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gptailor.data.ledger import summarize, write_ledger
from gptailor.launch import StopRequest, catch_signals, one_writer, resolve_environment, write_atomically
from gptailor.models.load import load_config
from gptailor.models.names import resolve_base
from gptailor.models.predictor import Predictor
from gptailor.pipeline.curve import has_curve, learning_curve
from gptailor.pipeline.fix_effect import effect_of_fixes
from gptailor.pipeline.folder import (
    base_revision_of,
    claim_folder,
    file_hashes,
    open_for_fit,
    refuse_other_data,
)
from gptailor.pipeline.frozen import best_strength_of, run_frozen
from gptailor.pipeline.keep import find_suspects, keep
from gptailor.pipeline.ladder import climb
from gptailor.pipeline.language import fit_language
from gptailor.pipeline.place import Listener, TrainingPlace
from gptailor.pipeline.prepare import Prepared, prepare
from gptailor.pipeline.run import Run
from gptailor.pipeline.sealed import open_test
from gptailor.pipeline.story import describe, tell
from gptailor.pipeline.suspects import write_suspects
from gptailor.pipeline.task import passed_over_by_frozen, settle_task
from gptailor.pipeline.texts.road import fit_texts
from gptailor.pipeline.tokens import TokenizedParts, ledger_lines
from gptailor.pipeline.trackers import refuse_missing_trackers, tracked
from gptailor.pipeline.trained import run_trained
from gptailor.pipeline.workshop import Candidate, NoFoldsError, Workshop, tokenized_workshop
from gptailor.recipe import (
    AutoApproach,
    FrozenApproach,
    FullApproach,
    Recipe,
)
from gptailor.types import Bundle

LONGEST_AUTO_SECONDS = 30 * 60


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
    rival: Predictor | None = None,
) -> Run:
    """Reads, cleans, splits, tokenizes, trains, compares, tests and reports; resumes what was begun.

    A rival is another classifier of the same split, which answers the test rows when they are opened.

    Raises:
        GptailorError: something the person can mend; the message says what.
    """
    listener = listener or Listener()
    asked, recipe = recipe.task, settle_task(recipe)
    assert recipe.task is not None  # settled
    refuse_missing_trackers(recipe.trackers)
    folder = claim_folder(recipe, overwrite=overwrite)
    with one_writer(folder), catch_signals() as stop:
        if open_for_fit(folder, recipe):
            listener.say(f"{folder} is finished; nothing to do")
            return Run(folder)
        if asked is None and recipe.task != "classification":
            listener.say(f"task: {recipe.task} (another: --task)")
        with tracked(recipe, folder, listener.say) as track:
            followed = dataclasses.replace(listener, track=track)
            if rival is not None:
                fit_classification(recipe, folder, followed, stop, rival)
            else:
                TASKS[recipe.task](recipe, folder, followed, stop)
    return Run(folder)


def fit_sealed(recipe: Recipe, listener: Listener | None = None) -> Predictor:
    """Fits a classifier in the recipe's folder and leaves the test rows sealed; resumes what was begun."""
    listener = listener or Listener()
    folder = claim_folder(recipe)
    with one_writer(folder), catch_signals() as stop:
        open_for_fit(folder, recipe)
        prepared, shop = open_data(recipe, folder, listener)
        candidates = run_candidates(shop, folder, listener, stop)
        return seal(folder, prepared, shop, candidates, frozen_among(candidates)).predictor


def fit_classification(
    recipe: Recipe, folder: Path, listener: Listener, stop: StopRequest, rival: Predictor | None = None
) -> None:
    """Classification, from rows to a finished run folder."""
    began = time.perf_counter()
    prepared, shop = open_data(recipe, folder, listener)
    candidates = run_candidates(shop, folder, listener, stop)
    frozen = frozen_among(candidates)
    if frozen is None and (recipe.evaluate.baselines != "none" or recipe.data.fix is not None):
        listener.say("frozen features, to compare with")
        frozen = run_frozen(shop, FrozenApproach())
    sealed = seal(folder, prepared, shop, candidates, frozen)
    chosen = sealed.chosen
    ladder = climb(shop, chosen, frozen, say=listener.say)
    listener.say("opening the sealed test set")
    report, details = open_test(folder, shop, chosen, sealed.predictor, ladder, rival)
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
    report["training"]["total_seconds"] = round(time.perf_counter() - began, 2)
    details = {**details, **describe(shop, chosen, candidates, parity=sealed.parity)}
    tell(folder, report, details, prepared=prepared, tokens=shop.tokens, form=sealed.bundle.answer)


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
    write_data(folder, recipe, prepared, shop.tokens)
    return prepared, shop


def seal(
    folder: Path, prepared: Prepared, shop: Workshop, candidates: list[Candidate], frozen: Candidate | None
) -> Sealed:
    """The best candidate, saved and proven; nobody has looked at the test rows."""
    chosen = max(candidates, key=lambda candidate: candidate.score)  # ties: the first, frozen
    bundle, predictor, parity = keep(folder, shop, chosen)
    suspects = find_suspects(shop, prepared, chosen, bundle, frozen=frozen)
    write_suspects(folder / "data" / "suspects.csv", suspects)
    return Sealed(chosen, bundle, predictor, parity)


def open_workshop(recipe: Recipe, prepared: Prepared, folder: Path, listener: Listener) -> Workshop:
    """Finds the base, tokenizes the data, and settles the environment of the run."""
    began_with = base_revision_of(folder)  # a name of the hub may stand for newer weights by now
    base = resolve_base(recipe.base, revision=began_with or recipe.revision)
    if base.kind == "run":
        labels = ", ".join(list((load_config(base).id2label or {}).values())[:6])
        listener.say(f"base {base.name} is a run: its old head ({labels}) is dropped, its body goes on")
    shop = tokenized_workshop(recipe, prepared, base)
    environment, changed = resolve_environment(folder / "environment.json", {"base_revision": base.revision})
    environment["changed"] = changed
    for change in changed:
        listener.say(f"this machine differs from where the run began, so it is not bit-exact: {change}")
    return dataclasses.replace(shop, environment=environment)


def write_data(folder: Path, recipe: Recipe, prepared: Prepared, tokens: TokenizedParts) -> None:
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
        return [run_frozen(shop, approach)]
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


# One road per task; what they share (loop, checkpoints, resume, folder) lies below them.
TASKS: dict[str, Callable[[Recipe, Path, Listener, StopRequest], None]] = {
    "classification": fit_classification,
    "language": fit_language,
    "completion": fit_texts,
    "chat": fit_texts,
    "preference": fit_texts,
}
