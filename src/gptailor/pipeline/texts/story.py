"""From a trained text model to a finished run: sealed, tested once, compared, told."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import GenerationConfig

from gptailor import __version__
from gptailor.data.tokenize import build_encoder
from gptailor.evaluate.language import PieceNats, text_scores
from gptailor.evaluate.metrics import as_json
from gptailor.evaluate.resampling import Resampling
from gptailor.models.answerer import load_answerer
from gptailor.models.approach import adapt_full
from gptailor.models.bundle import write_bundle
from gptailor.pipeline.causal import save_causal
from gptailor.pipeline.finished import BITS
from gptailor.pipeline.folder import settled_recipe
from gptailor.pipeline.openings import note_opening, openings_of
from gptailor.pipeline.outcome import (
    REPEAT,
    base_details,
    text_repairs,
    text_training_numbers,
    write_bits,
    write_outcome,
)
from gptailor.pipeline.slices import score_text_slices, slice_columns
from gptailor.pipeline.texts.judge import (
    Tested,
    against_rival,
    judge_answers,
    judge_preferences,
    settle_no_repeat,
)
from gptailor.pipeline.texts.objective import resolve_preference, row_nats
from gptailor.pipeline.texts.tokens import TokenizedRow, length_histogram
from gptailor.recipe import dump_recipe
from gptailor.tasks.chat_form import ChatForm, PreferenceForm
from gptailor.tasks.completion_form import CompletionForm
from gptailor.types import Bundle

if TYPE_CHECKING:
    from gptailor.pipeline.texts.road import TextResult
    from gptailor.pipeline.texts.shop import TextShop

PARITY_TOKENS = 64
SAMPLES = 12
HARDEST = 8
SHOWN_CHARACTERS = 700


def finish_texts(
    folder: Path,
    shop: TextShop,
    result: TextResult,
    *,
    say: Callable[[str], None],
    began: float,
    rival: Path | None = None,
) -> None:
    """Saves the model, opens the sealed test once through what was saved, and writes the report.

    A rival (`tune`'s own recipe before tuning) is asked the same rows at the same opening.
    """
    parity = seal(folder, shop, result)
    trained: Any = result.adapted.plain
    trained.to("cpu")  # it was saved, and a graphics card needs the room for the base
    answerer = load_answerer(folder)
    answerer.model.to(shop.environment["device"])
    if shop.recipe.task != "preference" and (length := settle_no_repeat(shop, answerer, say)):
        kept = answerer.bundle
        write_bundle(replace(kept, form={**kept.form, "no_repeat": length}))
        answerer = load_answerer(folder)
        answerer.model.to(shop.environment["device"])
    say("opening the sealed test set")
    nats = row_nats(adapt_full(answerer.model), shop.tokens.rows["test"], shop)
    if shop.recipe.task == "preference":
        tested = judge_preferences(shop, answerer, result, say)
    else:
        tested = judge_answers(shop, answerer, nats, result, say)
    resampling = Resampling(shop.recipe.evaluate.resamples, shop.recipe.seed)
    scores = {**as_json(tested.scores), **as_json(text_scores(nats, resampling=resampling))}
    against: dict[str, Any] = {}
    if rival is not None:
        other = load_answerer(rival)
        other.model.to(shop.environment["device"])
        against["default"] = against_rival(shop, other, nats, tested)
    note_opening(folder, scores={k: scores[k] for k in list(scores)[:2]})
    report: dict[str, Any] = {
        "version": 1,
        "task": shop.recipe.task,
        "base": shop.base.name,
        "approach": result.approach.kind,
        "seed": shop.recipe.seed,
        "data": _data_counts(folder, shop),
        "test": {"rows": len(shop.tokens.rows["test"]), **scores},
        "validation": as_json(text_scores(result.validation, resampling=resampling)),
        "baselines": tested.baselines,
        "verdict": tested.verdict,
        **({} if shop.recipe.task == "preference" else {"slices": _slices(shop, nats, resampling)}),
        **against,
        "training": text_training_numbers(result.trained, result.validation, shop.environment, began=began),
        "environment": dict(shop.environment),
        **({"signatures": tested.signatures} if tested.signatures else {}),
    }
    tested.write_predictions(folder / "predictions.csv")
    places = [(row.row.source, row.row.row) for row in shop.tokens.rows["test"]]
    write_bits(folder / BITS, places, nats)
    tell_texts(folder, shop, result, report, tested=tested, nats=nats, parity=parity)


def _slices(shop: TextShop, nats: PieceNats, resampling: Resampling) -> dict[str, Any]:
    """The test rows' costs by the length of their prompts and by the person's columns."""
    rows = shop.tokens.rows["test"]
    lengths = np.array([sum(int((~one.learn).sum()) for one in row.right) for row in rows])
    columns = slice_columns([row.row for row in rows])
    return score_text_slices(nats, lengths=lengths, columns=columns, resampling=resampling)


def seal(folder: Path, shop: TextShop, result: TextResult) -> dict[str, float]:
    """Saves model, adapter and bundle, and proves that what was saved is what was trained."""
    tokenizer: Any = shop.text.tokenizer
    # The starter's tokenizer ends every text, for classifiers; before an answer that would be the end.
    tokenizer.backend_tokenizer.post_processor = without_suffix(tokenizer)
    if isinstance(shop.form, ChatForm | PreferenceForm):
        tokenizer.chat_template = shop.form.template.source  # so that any tool writes the same prompt
    # Other tools stop where a turn ends, too, and draw nothing unless they are asked to: what was measured.
    model: Any = result.adapted.plain
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=sorted(shop.end_ids),
        pad_token_id=tokenizer.pad_token_id,
    )
    probe = shop.tokens.rows["validation"][0].sequences[0].token_ids[:PARITY_TOKENS]
    probes, parity = save_causal(
        folder, result.adapted, shop.text.tokenizer, base=shop.base, probe=probe.tolist(), decode=shop.decode
    )
    assert shop.recipe.task is not None
    write_bundle(
        Bundle(
            path=folder / "model",
            task=shop.recipe.task,
            base=shop.base.name,
            base_revision=shop.base.revision,
            approach=result.approach.kind,
            label_names=[],
            max_tokens=shop.feeder.max_tokens,
            too_long="cut",
            temperature=1.0,
            threshold=None,
            clean=text_repairs(shop.recipe.data.clean),
            scores={"validation_bits_per_byte": result.validation.bits_per_byte},
            probes=probes,
            form={
                **shop.form.state(),
                "prefix": list(shop.feeder.prefix),
                "end_ids": sorted(shop.end_ids),
                "group": shop.recipe.data.split.group,
                "one_question": shop.prepared.one_question,
                "metrics": list(shop.recipe.evaluate.metrics),
                **({"loss": shop.recipe.preference.loss} if shop.recipe.task == "preference" else {}),
            },
        )
    )
    return parity


def without_suffix(tokenizer: Any) -> Any:
    """A post-processor that writes what the tokenizer writes before a text, and nothing behind it."""
    from tokenizers.processors import TemplateProcessing

    backend = tokenizer.backend_tokenizer
    around = build_encoder(backend, pad_id=0)
    if not around.suffix:
        return backend.post_processor
    names = {str(around.backend.id_to_token(token)): token for token in around.prefix}
    return TemplateProcessing(single=" ".join([*names, "$A"]), special_tokens=list(names.items()))


def tell_texts(
    folder: Path,
    shop: TextShop,
    result: TextResult,
    report: Mapping[str, Any],
    *,
    tested: Tested,
    nats: PieceNats,
    parity: Mapping[str, float],
) -> None:
    """Writes everything; report.json last, because a folder with it is finished."""
    repaired = shop.prepared.repaired
    told = [f"{repaired:,} texts were repaired"] if repaired else []
    details: dict[str, Any] = {
        "created": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "version": __version__,
        "title": folder.name,
        "command": REPEAT,
        "base_details": base_details(shop.base, result.adapted.plain),
        "curves": result.trained.curves,
        "candidates": [
            {
                "approach": result.approach.kind,
                "validation_bits_per_byte": result.validation.bits_per_byte,
                "seconds": result.trained.seconds,
                "chosen": True,
            }
        ],
        "parity": dict(parity),
        "begin_ids": list(shop.feeder.prefix),
        **_asked_by(shop),
        "samples": tested.samples[:SAMPLES],
        "hardest": hardest(shop, nats),
        "lengths": length_histogram(shop.tokens),
        "notes": [*shop.form.says, *told, *notes_on_windows(shop), *tested.notes, *shop.prepared.notes],
        "recipe": dump_recipe(resolved(shop, result)),
        "openings": openings_of(folder),
    }
    write_outcome(folder, report, details)


def _asked_by(shop: TextShop) -> dict[str, Any]:
    """What a prompt is made of, where that is more than one text."""
    if not isinstance(shop.form, CompletionForm):
        return {}
    roles = shop.form.roles
    several = len(roles.inputs) > 1 and not roles.template.optional
    return {
        **({"columns": list(roles.inputs)} if several else {}),
        **({"context_column": roles.context} if roles.context else {}),
    }


def resolved(shop: TextShop, result: TextResult) -> Any:
    """The recipe with what was decided: task, template's columns, lengths, approach, revision."""
    recipe = shop.recipe
    settled: dict[str, Any] = {"approach": result.approach}
    if recipe.task == "preference":
        settled["preference"] = resolve_preference(recipe.preference)
    longest = {"max_tokens": shop.feeder.max_tokens, "max_new_tokens": shop.form.max_new_tokens}
    return settled_recipe(recipe, shop.base, data=longest, **settled)


def hardest(shop: TextShop, nats: PieceNats) -> list[dict[str, Any]]:
    """The test answers that surprise the model most, by bits per byte; very short ones left aside."""
    rows: list[TokenizedRow] = shop.tokens.rows["test"]
    bits = nats.nats / np.maximum(1, nats.bytes) / np.log(2)
    order = [place for place in np.argsort(-bits, kind="stable").tolist() if nats.bytes[place] >= 20]
    return [
        {
            "text": f"{rows[place].row.asked[:300]}\n→ {rows[place].row.references[0]}"[:SHOWN_CHARACTERS],
            "bits_per_byte": float(bits[place]),
            "where": f"{rows[place].row.source}:{rows[place].row.row}",
        }
        for place in order[:HARDEST]
    ]


def notes_on_windows(shop: TextShop) -> list[str]:
    """What became of contexts that are too long, in words."""
    windows = [row.row.windowed for rows in shop.tokens.rows.values() for row in rows]
    cut = [holds for holds in windows if holds is not None]
    if cut and isinstance(shop.form, CompletionForm) and shop.form.roles.preset == "question_answering":
        without = 1 - sum(cut) / len(cut)
        return [
            f"{len(cut):,} contexts were cut to the part the question is most likely about; "
            f"{without:.0%} of these parts don't hold the answer"
        ]
    # A summary doesn't stand in its text.
    return [f"{len(cut):,} long texts were cut to what the model can read"] if cut else []


def _data_counts(folder: Path, shop: TextShop) -> dict[str, Any]:
    summary = json.loads((folder / "data" / "summary.json").read_text(encoding="utf-8"))
    for key in ("data_hash", "files"):
        summary.pop(key, None)
    lengths = np.sort([len(one.token_ids) for row in shop.tokens.rows["train"] for one in row.sequences])
    batches = [batch for batch in np.array_split(lengths, range(16, len(lengths), 16)) if len(batch)]
    summary["tokens"]["padding"] = int(sum(len(batch) * batch.max() - batch.sum() for batch in batches))
    return dict(summary)
