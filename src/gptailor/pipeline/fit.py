"""The straight line from a file to a finished run. Read this first."""

from __future__ import annotations

import dataclasses
import datetime
import json
import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gptailor import __version__
from gptailor.data.ledger import summarize, write_ledger
from gptailor.data.tokenize import build_encoder
from gptailor.errors import DataError
from gptailor.evaluate.calibrate import choose_threshold, fit_temperature, softmax
from gptailor.evaluate.metrics import as_json
from gptailor.evaluate.run import evaluate_logits, evaluation_details, overfitting_in_words
from gptailor.launch import StopRequest, catch_signals, one_writer, resolve_environment, write_atomically
from gptailor.models.approach import adapt_full, save_adapter
from gptailor.models.bundle import reload_parity, save_model, write_bundle
from gptailor.models.load import load_config, load_tokenizer
from gptailor.models.names import context_length, resolve_base
from gptailor.models.predictor import Predictor
from gptailor.pipeline.folder import claim_folder, open_for_fit, refuse_other_data
from gptailor.pipeline.frozen import run_frozen
from gptailor.pipeline.ladder import Ladder, climb, judge
from gptailor.pipeline.prepare import Prepared, prepare
from gptailor.pipeline.run import Run
from gptailor.pipeline.story import tell
from gptailor.pipeline.suspects import (
    Suspect,
    suspects_by_model,
    suspects_in_data,
    write_suspects,
)
from gptailor.pipeline.tokens import TokenizedParts, ledger_lines, sequences_of, tokenize_parts
from gptailor.pipeline.trained import run_trained
from gptailor.pipeline.training import TrainingPlace, classify_rows
from gptailor.pipeline.workshop import Candidate, Workshop, few_rows
from gptailor.recipe import (
    AutoApproach,
    FrozenApproach,
    FullApproach,
    Recipe,
    dump_recipe,
)
from gptailor.types import Bundle, Part

PROBES = 4  # texts whose answers travel with the model and are replayed wherever it is loaded
PARITY_ROWS = 16
LONGEST_AUTO_SECONDS = 30 * 60
STARTER_LICENSE = "CC BY-SA 4.0 (see LICENSE.md of the starter)"


@dataclass(frozen=True, slots=True)
class Listener:
    """Who hears how a run goes. `say` takes a line of words, `show` a line of metrics.jsonl."""

    say: Callable[[str], None] = lambda _: None
    show: Callable[[Mapping[str, Any]], None] = lambda _: None


def fit_recipe(recipe: Recipe, *, overwrite: bool = False, listener: Listener | None = None) -> Run:
    """Reads, cleans, splits, tokenizes, trains, compares, tests and reports; resumes what was begun.

    Raises:
        GptailorError: something the person can mend; the message says what.
    """
    listener = listener or Listener()
    folder = claim_folder(recipe, overwrite=overwrite)
    with one_writer(folder), catch_signals() as stop:
        if open_for_fit(folder, recipe):
            listener.say(f"{folder} is finished; nothing to do")
            return Run(folder)
        began = time.perf_counter()
        prepared = prepare(recipe, listener.say)
        refuse_other_data(folder, prepared.data_hash)
        shop = open_workshop(recipe, prepared, folder, listener)
        write_data(folder, prepared, shop.tokens)
        candidates = run_candidates(shop, folder, listener, stop)
        chosen = max(candidates, key=lambda candidate: candidate.macro_f1)  # ties: the first, frozen
        bundle, predictor, parity = keep(folder, shop, chosen)
        write_suspects(folder / "data" / "suspects.csv", find_suspects(shop, prepared, chosen, bundle))
        frozen = next((c for c in candidates if c.approach == "frozen"), None)
        ladder = climb(shop, chosen, frozen, say=listener.say)
        listener.say("opening the sealed test set")
        report, details = test(folder, shop, chosen, predictor, ladder)
        report["training"]["total_seconds"] = round(time.perf_counter() - began, 2)
        details = {**details, **describe(shop, chosen, candidates, bundle=bundle, parity=parity)}
        tell(folder, report, details, prepared=prepared, tokens=shop.tokens)
    return Run(folder)


def open_workshop(recipe: Recipe, prepared: Prepared, folder: Path, listener: Listener) -> Workshop:
    """Finds the base, tokenizes the data, and settles the environment of the run."""
    base = resolve_base(recipe.base, revision=recipe.revision)
    tokenizer: Any = load_tokenizer(base)
    encoder = build_encoder(tokenizer.backend_tokenizer, pad_id=tokenizer.pad_token_id)
    config = load_config(base)
    if base.kind == "run":
        labels = ", ".join(list((config.id2label or {}).values())[:6])
        listener.say(f"base {base.name} is a run: its old head ({labels}) is dropped, its body goes on")
    context = context_length(config)
    tokens = tokenize_parts(prepared, encoder, recipe.data, context=context)
    for part in ("train", "validation", "test"):
        if not tokens.rows[part]:
            raise DataError(
                f"no row is left for {part}.", where=recipe.data.train, fix="Add rows, or change data.split."
            )
    environment, changed = resolve_environment(folder / "environment.json", {"base_revision": base.revision})
    environment["changed"] = changed
    for change in changed:
        listener.say(f"this machine differs from where the run began, so it is not bit-exact: {change}")
    return Workshop(recipe, base, tokenizer, encoder, tokens, prepared.label_names, environment)


def write_data(folder: Path, prepared: Prepared, tokens: TokenizedParts) -> None:
    """The ledger: one line per input row, and its sums, which come out."""
    (folder / "data").mkdir(exist_ok=True)
    lines = ledger_lines(prepared, tokens)
    write_ledger(folder / "data" / "ledger.jsonl", lines)
    summary = summarize(lines, read=prepared.read)
    summary["data_hash"] = prepared.data_hash
    summary["roles"] = {"text": prepared.roles.text, "label": prepared.roles.label}
    write_atomically(folder / "data" / "summary.json", json.dumps(summary, indent=1))


def run_candidates(shop: Workshop, folder: Path, listener: Listener, stop: StopRequest) -> list[Candidate]:
    """The recipe's approach; for `auto`, frozen and full."""
    approach = shop.recipe.approach
    place = TrainingPlace(
        folder=folder / "checkpoints",
        log=folder / "metrics.jsonl",
        seed=shop.recipe.seed,
        environment=shop.environment,
        stop=stop,
        show=listener.show,
        say=listener.say,
    )
    if isinstance(approach, FrozenApproach):
        listener.say("computing features, fitting the head")
        return [run_frozen(shop, approach)]
    if isinstance(approach, AutoApproach):
        listener.say("frozen: computing features, fitting the head")
        frozen = run_frozen(shop, FrozenApproach())
        listener.say(f"frozen: validation macro-F1 {frozen.macro_f1:.3f}")
        with stop.deferred():
            full = run_trained(shop, FullApproach(), place, longest_seconds=LONGEST_AUTO_SECONDS)
        return [frozen] if full is None else [frozen, full]
    with stop.deferred():
        trained = run_trained(shop, approach, place)
    return [] if trained is None else [trained]


def keep(folder: Path, shop: Workshop, chosen: Candidate) -> tuple[Bundle, Predictor, dict[str, float]]:
    """Saves the model, proves that what was saved is what was trained, and seals the bundle."""
    path = folder / "model"
    rows = shop.tokens.rows["validation"][:PARITY_ROWS]
    save_model(path, model=chosen.model, tokenizer=shop.tokenizer)
    if chosen.adapter is not None:
        save_adapter(folder / "adapter", chosen.adapter)
    temperature = fit_temperature(chosen.validation_logits, chosen.validation_answers)
    threshold = choose_threshold(softmax(chosen.validation_logits, temperature), chosen.validation_answers)
    bundle = Bundle(
        path=path,
        task=shop.recipe.task,
        base=shop.base.name,
        base_revision=shop.base.revision,
        approach=chosen.approach,
        label_names=list(shop.label_names),
        max_tokens=shop.tokens.max_tokens,
        too_long=shop.tokens.too_long,
        temperature=temperature,
        threshold=threshold,
        clean=_repair_settings(shop.recipe),
        scores={"validation_macro_f1": chosen.macro_f1},
    )
    write_bundle(bundle)
    predictor = Predictor(path)
    texts = [example.text for example in shop.tokens.examples["validation"][:PROBES]]
    encoded = [predictor.encode(text) for text in texts]
    probes = [
        {
            "text": text,
            "token_ids": [list(s) for s in item.sequences],
            "logits": predictor.logits([item])[0].tolist(),
        }
        for text, item in zip(texts, encoded, strict=True)
    ]
    bundle = dataclasses.replace(bundle, probes=probes)
    write_bundle(bundle)
    logits = classify_rows(adapt_full(chosen.model), rows, pad_id=shop.encoder.pad_id)
    parity = {
        "reload": reload_parity(path, sequences_of(rows), logits, pad_id=shop.encoder.pad_id),
        **chosen.parity,
    }
    return bundle, Predictor(path), parity


def find_suspects(shop: Workshop, prepared: Prepared, chosen: Candidate, bundle: Bundle) -> list[Suspect]:
    """Rows to look at again: from the data, and from validation answers that are sure of another label."""
    examples = list(shop.tokens.examples["validation"])
    if few_rows(shop):  # then the answers are out of fold, over both parts
        examples = [*shop.tokens.examples["train"], *examples]
    probabilities = softmax(chosen.validation_logits, bundle.temperature)
    return [*suspects_in_data(prepared), *suspects_by_model(examples, probabilities, prepared)]


def test(
    folder: Path,
    shop: Workshop,
    chosen: Candidate,
    predictor: Predictor,
    ladder: Ladder,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Opens the sealed test set once, through the saved bundle, and puts the numbers together."""
    recipe, bundle = shop.recipe, predictor.bundle
    settings: dict[str, Any] = {
        "label_names": shop.label_names,
        "temperature": bundle.temperature,
        "resamples": recipe.evaluate.resamples,
        "seed": recipe.seed,
    }
    examples = shop.tokens.examples["test"]
    encoded = [item for item in predictor.encode_many([example.text for example in examples]) if item]
    logits = predictor.logits(encoded)
    answers = np.array([example.label for example in examples])
    tested = evaluate_logits(logits, answers, split="test", **settings)
    validated = evaluate_logits(
        chosen.validation_logits, chosen.validation_answers, split="validation", **settings
    )
    assert tested.predictions is not None
    baselines, verdict = judge(
        shop, ladder, answers=answers, predictions=tested.predictions.probabilities.argmax(axis=1)
    )
    note_opening(
        folder, command="fit", scores=as_json({k: tested.scores[k] for k in ("accuracy", "macro_f1")})
    )
    report: dict[str, Any] = {
        "version": 1,
        "task": recipe.task,
        "base": shop.base.name,
        "approach": chosen.approach,
        "seed": recipe.seed,
        "data": _data_counts(folder, shop.tokens),
        "test": {"rows": tested.size, **as_json(tested.scores)},
        "validation": {"rows": validated.size, **as_json(validated.scores)},
        "baselines": baselines,
        "verdict": verdict,
        "training": training_numbers(chosen, shop),
        "environment": dict(shop.environment),
    }
    details = as_json(evaluation_details(logits, answers, threshold=bundle.threshold, **settings))
    report["test"]["at_threshold"] = details["at_threshold"]
    details["probabilities"] = tested.predictions.probabilities
    return report, details


def describe(
    shop: Workshop,
    chosen: Candidate,
    candidates: list[Candidate],
    *,
    bundle: Bundle,
    parity: Mapping[str, float],
) -> dict[str, Any]:
    """What the page says of the model beside its scores."""
    resolved = resolved_recipe(shop, chosen)
    return {
        "created": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "version": __version__,
        "base_details": {
            "name": shop.base.name,
            "revision": bundle.base_revision,
            "parameters": sum(parameter.numel() for parameter in chosen.model.parameters()),
            **({"license": STARTER_LICENSE} if shop.base.kind == "starter" else {}),
        },
        "curves": chosen.trained.curves,
        "strengths": list(chosen.strengths),
        "candidates": [
            {
                "approach": candidate.approach,
                "validation_macro_f1": candidate.macro_f1,
                "seconds": candidate.seconds,
                "chosen": candidate is chosen,
            }
            for candidate in candidates
        ],
        "overfitting": overfitting_in_words(chosen.trained.curves, best_step=chosen.trained.best_step),
        "parity": dict(parity),
        "recipe": dump_recipe(resolved),
    }


def resolved_recipe(shop: Workshop, chosen: Candidate) -> Recipe:
    """The recipe with everything that was decided written in, so that it repeats the run."""
    recipe = shop.recipe
    approach = recipe.approach
    if isinstance(approach, AutoApproach):
        approach = FrozenApproach() if chosen.approach == "frozen" else FullApproach()
    located = {
        key: str(Path(value).resolve())
        for key in ("train", "validation", "test")
        if (value := getattr(recipe.data, key)) is not None and Path(value).exists()
    }
    data = recipe.data.model_copy(update={**located, "max_tokens": shop.tokens.max_tokens})
    revision = shop.base.revision if shop.base.kind == "hub" else recipe.revision
    return recipe.model_copy(update={"data": data, "approach": approach, "revision": revision})


def training_numbers(chosen: Candidate, shop: Workshop) -> dict[str, Any]:
    """The report's `training` object."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    trained = chosen.trained
    return {
        "steps": trained.steps,
        "best_step": trained.best_step,
        "seconds": round(chosen.seconds, 2),
        "tokens_per_second": round(trained.tokens / trained.seconds) if trained.seconds else None,
        "peak_memory_bytes": peak,
        "stopped": trained.stopped,
        "validation_macro_f1": round(chosen.macro_f1, 6),
        "overfitting": overfitting_in_words(trained.curves, best_step=trained.best_step),
        "bit_exact": bool(shop.environment.get("bit_exact", True)),
    }


def note_opening(folder: Path, *, command: str, scores: Mapping[str, Any]) -> None:
    """Each look at the sealed test set is a line in openings.jsonl."""
    line = {
        "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command,
        "scores": scores,
    }
    with (folder / "openings.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def _data_counts(folder: Path, tokens: TokenizedParts) -> dict[str, Any]:
    summary = json.loads((folder / "data" / "summary.json").read_text(encoding="utf-8"))
    summary = {key: value for key, value in summary.items() if key not in ("data_hash", "roles")}
    summary["tokens"]["padding"] = _padding(tokens, "train")
    return dict(summary)


def _padding(tokens: TokenizedParts, part: Part) -> int:
    """Pads of one epoch, had every batch of sixteen neighbors by length been padded to its longest."""
    lengths = np.sort([len(row.token_ids) for row in tokens.rows[part]])
    batches = np.array_split(lengths, range(16, len(lengths), 16))
    return int(sum(len(batch) * batch.max() - batch.sum() for batch in batches if len(batch)))


def _repair_settings(recipe: Recipe) -> dict[str, bool]:
    clean = recipe.data.clean
    return {
        "repair_text": clean.repair_text,
        "unescape_entities": clean.unescape_entities,
        "drop_control": clean.drop_control,
        "squeeze_space": clean.squeeze_space,
    }
