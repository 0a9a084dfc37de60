"""From a trained language model to a finished run: sealed, tested once, compared, told."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gptailor import __version__
from gptailor.data.blocks import num_blocks, targets_by_piece
from gptailor.evaluate.language import (
    PieceNats,
    at_constant_cost,
    bits_difference,
    compressed_bits_per_byte,
    loss_difference,
    num_units,
    of_how_few,
    piece_nats,
    saves_enough,
    saving_in_words,
    text_scores,
    unigram_nats,
)
from gptailor.evaluate.metrics import as_json
from gptailor.evaluate.resampling import FEWEST_UNITS, Resampling
from gptailor.models.approach import adapt_full
from gptailor.models.bundle import find_model_folder, read_bundle, write_bundle
from gptailor.models.load import (
    load_saved_language_model,
    load_trainable_language_model,
)
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
from gptailor.recipe import ScratchApproach, dump_recipe
from gptailor.types import Bundle, Score

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from gptailor.pipeline.documents import PreparedDocuments
    from gptailor.pipeline.language import LanguageResult, LanguageShop

PARITY_TOKENS = 64
SEEN_BY_XZ = 1_200_000  # tokens of the training text: its window reaches no further back
MOST_COMPRESSED = 4_000_000  # tokens of a held-out part that xz is asked for: it holds them in memory
HARDEST = 8  # held-out pieces on the page
SHOWN_CHARACTERS = 400
BASELINE_NAMES = {
    "base": "the base as it came",
    "unigram": "token frequencies alone",
    "xz": "the compressor xz",
}


def finish_language(
    folder: Path,
    shop: LanguageShop,
    result: LanguageResult,
    *,
    prepared: PreparedDocuments,
    say: Callable[[str], None],
    began: float,
    rival: Path | None = None,
) -> None:
    """Saves the model, opens the sealed test once through what was saved, and writes the report.

    A rival (`tune`'s own recipe before tuning) is asked the same documents at the same opening.
    """
    bundle, parity = seal(folder, shop, result)
    say("baselines")
    rungs, notes = baselines(shop, result, part="validation")
    say("opening the sealed test set")
    model = load_saved_language_model(bundle.path)
    model.to(shop.environment["device"])
    tested = _nats(model, shop, "test")
    tested_rungs, _ = baselines(shop, result, part="test")
    resampling = Resampling(shop.recipe.evaluate.resamples, shop.recipe.seed)
    drawn = drawn_together(tested, prepared)
    tested_rungs = {name: drawn_together(nats, prepared) for name, nats in tested_rungs.items()}
    scores = _scored(tested, prepared, resampling)
    against: dict[str, Any] = (
        {} if rival is None else {"default": against_rival(shop, rival, drawn, resampling)}
    )
    note_opening(folder, scores=as_json({"bits_per_byte": scores["bits_per_byte"]}))
    report: dict[str, Any] = {
        "version": 1,
        "task": "language",
        "base": shop.base.name,
        "approach": result.approach.kind,
        "seed": shop.recipe.seed,
        "data": _data_counts(folder, shop),
        "test": as_json(scores),
        "validation": as_json(_scored(result.validation, prepared, resampling)),
        "baselines": {
            **{name: _rung_scores(name, nats, resampling) for name, nats in tested_rungs.items()},
            **{name: {"skipped": reason} for name, reason in notes.items()},
        },
        "verdict": judge_language(drawn, rungs, tested_rungs, resampling),
        **against,
        "training": text_training_numbers(result.trained, result.validation, shop.environment, began=began),
        "environment": dict(shop.environment),
    }
    places = [place_of(key, prepared) for key in tested.documents.tolist()]
    write_bits(folder / BITS, places, drawn)
    tell_language(folder, shop, result, report, tested=tested, parity=parity, prepared=prepared)


def against_rival(shop: LanguageShop, rival: Path, ours: PieceNats, resampling: Resampling) -> dict[str, Any]:
    """A rival's scores on the test documents, and how far we are ahead, in nats per token."""
    bundle = read_bundle(find_model_folder(rival))
    model = load_saved_language_model(bundle.path)
    model.to(shop.environment["device"])
    theirs = replace(_nats(model, shop, "test"), documents=ours.documents)
    scores = as_json(text_scores(theirs, resampling=resampling))
    return {
        "approach": bundle.approach,
        **scores,
        "difference": as_json(loss_difference(ours, theirs, resampling=resampling)),
    }


def drawn_together(pieces: PieceNats, prepared: PreparedDocuments) -> PieceNats:
    """The pieces with a number for what their document was drawn with, in place of the document's own."""
    count = len(prepared.files)
    keys, places = np.unique(pieces.documents, return_inverse=True)
    found = [int(prepared.files[key % count].together[key // count]) * count + key % count for key in keys]
    return replace(pieces, documents=np.array(found, np.int64)[places])


def place_of(key: int, prepared: PreparedDocuments) -> tuple[str, int]:
    """Source and row of a document by its number in the stores."""
    source, row = prepared.files[key % len(prepared.files)].documents.place(key // len(prepared.files))
    return source, row


def seal(folder: Path, shop: LanguageShop, result: LanguageResult) -> tuple[Bundle, dict[str, float]]:
    """Saves model, adapter and bundle, and proves that what was saved is what was trained."""
    tokens = shop.stores["validation"].tokens[: min(PARITY_TOKENS, shop.block)]
    probes, parity = save_causal(
        folder,
        result.adapted,
        shop.tokenizer,
        base=shop.base,
        probe=np.asarray(tokens).tolist(),
        decode=lambda ids: shop.encoder.backend.decode(ids, skip_special_tokens=True),
    )
    bundle = Bundle(
        path=folder / "model",
        task="language",
        base=shop.base.name,
        base_revision=shop.base.revision,
        approach=result.approach.kind,
        label_names=[],
        max_tokens=shop.block,
        too_long="cut",
        temperature=1.0,
        threshold=None,
        clean=text_repairs(shop.recipe.data.clean),
        scores={"validation_bits_per_byte": result.validation.bits_per_byte},
        probes=probes,
    )
    write_bundle(bundle)
    return bundle, parity


def baselines(
    shop: LanguageShop, result: LanguageResult, *, part: Any
) -> tuple[dict[str, PieceNats], dict[str, str]]:
    """What the same pieces cost the base before training, token frequencies, and a compressor."""
    if shop.recipe.evaluate.baselines == "none":
        return {}, {}
    store, train = shop.stores[part], shop.stores["train"]
    vocabulary = len(shop.tokenizer)
    found = {"unigram": unigram_nats(train, store, vocabulary=vocabulary, length=shop.block)}
    bits = compressed_bits_per_byte(
        _text(shop, train.tokens[-SEEN_BY_XZ:]), _text(shop, store.tokens[:MOST_COMPRESSED])
    )
    found["xz"] = at_constant_cost(found["unigram"], bits)
    if isinstance(result.approach, ScratchApproach):
        return found, {"base": "trained from scratch, with a tokenizer of its own"}
    model = load_trainable_language_model(shop.base, shop.tokenizer)
    model.to(shop.environment["device"])
    return {"base": _nats(model, shop, part), **found}, {}


def judge_language(
    ours: PieceNats,
    validation: Mapping[str, PieceNats],
    tested: Mapping[str, PieceNats],
    resampling: Resampling,
) -> dict[str, Any]:
    """Against the best baseline on validation, in bits per byte on test; lower is better."""
    if not tested:
        return {"best_baseline": None, "difference": None, "worth_it": None, "says": "No baseline was run."}
    best = min(validation, key=lambda name: validation[name].bits_per_byte)
    gap = bits_difference(ours, tested[best], resampling=resampling)
    name = BASELINE_NAMES[best]
    if num_units(ours) < FEWEST_UNITS:
        says = f"{gap.value:+.3f} bits per byte against {name}, on too little held-out text to tell."
        told = {"best_baseline": best, "difference": as_json(gap), "worth_it": False, "says": says}
        return {**told, "too_few": True}
    if gap.high < 0:
        says = saving_in_words(gap, tested[best], name=name)
    elif gap.low > 0:
        says = f"The model needs {gap.value:.3f} bits per byte more than {name}: don't use it."
    else:
        says = (
            f"No clear difference: {gap.value:+.3f} bits per byte against {name} "
            f"({gap.low:+.3f} to {gap.high:+.3f}); more text would tell."
        )
    return {
        "best_baseline": best,
        "difference": as_json(gap),
        "worth_it": saves_enough(gap, tested[best]),
        "says": says + of_how_few(ours),
    }


def tell_language(
    folder: Path,
    shop: LanguageShop,
    result: LanguageResult,
    report: Mapping[str, Any],
    *,
    tested: PieceNats,
    parity: Mapping[str, float],
    prepared: PreparedDocuments,
) -> None:
    """Writes everything; report.json last, because a folder with it is finished."""
    recipe = shop.recipe
    data = {"max_tokens": shop.block}
    resolved = settled_recipe(recipe, shop.base, data=data, approach=result.approach)
    model = result.adapted.plain
    train = shop.stores["train"]
    details: dict[str, Any] = {
        "created": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "version": __version__,
        "title": folder.name,
        "command": REPEAT,
        "base_details": base_details(shop.base, model),
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
        "samples": [
            {"prompt": s.prompt, "before": s.before, "after": s.after, "reference": s.reference}
            for s in result.samples
        ],
        "hardest": hardest(shop, tested, prepared),
        "block_tokens": shop.block,
        "begin_ids": [shop.begin],
        "tokenizer": {
            "vocabulary": len(shop.tokenizer),
            "bytes_per_token": float(train.piece_bytes.sum() / max(1, train.num_targets)),
        },
        "lengths": _length_histogram(shop),
        "notes": prepared.notes,
        "recipe": dump_recipe(resolved),
        "openings": openings_of(folder),
    }
    write_outcome(folder, report, details)


def hardest(shop: LanguageShop, tested: PieceNats, prepared: PreparedDocuments) -> list[dict[str, Any]]:
    """The test pieces that surprise the model most, by bits per byte; very short ones left aside."""
    store = shop.stores["test"]
    ends = np.append(store.piece_starts[1:], len(store.tokens))
    bits = tested.nats / np.maximum(1, tested.bytes) / np.log(2)
    order = [place for place in np.argsort(-bits, kind="stable").tolist() if tested.bytes[place] >= 80]
    pieces = np.flatnonzero(targets_by_piece(store))  # those in `tested`: cleaning may leave nothing of one
    found = []
    for place in order[:HARDEST]:
        source, row = place_of(int(tested.documents[place]), prepared)
        piece = pieces[place]
        ids = np.asarray(store.tokens[store.piece_starts[piece] : ends[piece]]).tolist()
        text = shop.encoder.backend.decode(ids, skip_special_tokens=True)
        found.append(
            {
                "text": text[:SHOWN_CHARACTERS].strip(),
                "bits_per_byte": float(bits[place]),
                "where": f"{source}:{row}",
            }
        )
    return found


def _nats(model: PreTrainedModel, shop: LanguageShop, part: Any) -> PieceNats:
    store = shop.stores[part]
    adapted = adapt_full(model)
    adapted.plain.eval()
    blocks = range(num_blocks(store, shop.block))
    return piece_nats(adapted.plain, adapted.head, store, length=shop.block, blocks=blocks)


def _scored(pieces: PieceNats, prepared: PreparedDocuments, resampling: Resampling) -> dict[str, int | Score]:
    return {
        "documents": len(np.unique(pieces.documents)),
        "tokens": int(pieces.tokens.sum()),
        "bytes": int(pieces.bytes.sum()),
        **text_scores(drawn_together(pieces, prepared), resampling=resampling),
    }


def _rung_scores(name: str, nats: PieceNats, resampling: Resampling) -> dict[str, Any]:
    """A compressor has no tokens, so no perplexity, and is known as a whole only, so no interval."""
    if name == "xz":
        return {"bits_per_byte": {"value": round(nats.bits_per_byte, 6)}}
    scores: dict[str, Any] = as_json(text_scores(nats, resampling=resampling))
    return scores


def _data_counts(folder: Path, shop: LanguageShop) -> dict[str, Any]:
    summary = json.loads((folder / "data" / "summary.json").read_text(encoding="utf-8"))
    for key in ("data_hash", "files"):
        summary.pop(key, None)
    store = shop.stores["train"]
    summary["tokens"]["padding"] = num_blocks(store, shop.block) * shop.block - max(0, len(store.tokens) - 1)
    return dict(summary)


def _text(shop: LanguageShop, tokens: Any) -> str:
    text: str = shop.encoder.backend.decode(np.asarray(tokens).tolist(), skip_special_tokens=True)
    return text


def _length_histogram(shop: LanguageShop) -> dict[str, Any]:
    """Tokens of the training documents (of a divided one, its training stretch)."""
    store = shop.stores["train"]
    lengths = np.diff(np.append(store.begins, len(store.tokens)))
    longest = int(lengths.max())
    counts, edges = np.histogram(lengths, bins=min(30, max(4, longest // 4)), range=(0, longest + 1))
    return {
        "counts": counts.tolist(),
        "edges": [round(float(edge), 1) for edge in edges],
        "max_tokens": shop.block,
        "longest": longest,
        "cut_rows": 0,
        "cut_tokens": 0,
    }
