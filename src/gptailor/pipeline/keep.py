"""From the chosen candidate to a sealed bundle: saved, reloaded, compared."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

from gptailor.models.approach import adapt_full, save_adapter
from gptailor.models.bundle import write_bundle
from gptailor.models.predictor import Predictor
from gptailor.models.readout import probabilities_of
from gptailor.models.saved import reload_parity, save_model
from gptailor.pipeline.classify import classify_rows
from gptailor.pipeline.kinds import kind_of
from gptailor.pipeline.out_of_fold import run_probabilities
from gptailor.pipeline.prepare import Prepared
from gptailor.pipeline.suspects import (
    Suspect,
    merge_suspects,
    suspects_by_model,
    suspects_in_data,
    suspects_out_of_fold,
)
from gptailor.pipeline.tokens import sequences_of
from gptailor.pipeline.workshop import Candidate, NoFoldsError, Workshop, few_rows
from gptailor.recipe import Recipe
from gptailor.types import Bundle

PROBES = 4  # texts whose answers travel with the model and are replayed wherever it is loaded
PARITY_ROWS = 16


def keep(folder: Path, shop: Workshop, chosen: Candidate) -> tuple[Bundle, Predictor, dict[str, float]]:
    """Saves the model, proves that what was saved is what was trained, and seals the bundle."""
    path = folder / "model"
    rows = shop.tokens.rows["validation"][:PARITY_ROWS]
    save_model(path, model=chosen.model, tokenizer=shop.tokenizer, max_tokens=shop.tokens.max_tokens)
    if chosen.adapter is not None:
        save_adapter(folder / "adapter", chosen.adapter, shop.base)
    logits = classify_rows(adapt_full(chosen.model), rows, pad_id=shop.encoder.pad_id)
    parity = {
        "reload": reload_parity(path, sequences_of(rows), logits, pad_id=shop.encoder.pad_id),
        **chosen.parity,
    }
    form, temperature, threshold = shop.kind.settle(chosen.validation_logits, chosen.validation_answers)
    bundle = Bundle(
        path=path,
        task="classification",
        base=shop.base.name,
        base_revision=shop.base.revision,
        approach=chosen.approach,
        label_names=list(shop.label_names),
        max_tokens=shop.tokens.max_tokens,
        too_long=shop.tokens.too_long,
        temperature=temperature,
        threshold=threshold,
        clean=_repair_settings(shop.recipe),
        scores={shop.kind.validation_key: shop.kind.told(chosen.score)},
        answer=form,
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
    return bundle, predictor, parity


def find_suspects(
    shop: Workshop, prepared: Prepared, chosen: Candidate, bundle: Bundle, *, frozen: Candidate | None
) -> list[Suspect]:
    """Rows to look at again, each once: from the data, then those that models doubt, most suspect first.

    With one label a row and a frozen candidate, training and validation rows are ranked by models that
    were fitted without them. Else, and where no folds can be made, validation rows come whose label the
    chosen model contradicts and is sure.
    """
    form, in_data = bundle.answer, suspects_in_data(prepared)
    if frozen is not None and form.kind == "single":
        with contextlib.suppress(NoFoldsError):
            ranked, doubted = run_probabilities(shop, frozen.model)
            return merge_suspects([*in_data, *suspects_out_of_fold(ranked, doubted, prepared)])
    examples = list(shop.tokens.examples["validation"])
    if few_rows(shop):  # then the answers are out of fold, over both parts
        examples = [*shop.tokens.examples["train"], *examples]
    probabilities = probabilities_of(chosen.validation_logits, form, temperature=bundle.temperature)
    return merge_suspects([*in_data, *suspects_by_model(examples, probabilities, prepared, kind_of(form))])


def _repair_settings(recipe: Recipe) -> dict[str, bool]:
    clean = recipe.data.clean
    return {
        "repair_text": clean.repair_text,
        "unescape_entities": clean.unescape_entities,
        "drop_control": clean.drop_control,
        "squeeze_space": clean.squeeze_space,
    }
