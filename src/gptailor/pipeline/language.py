"""Language modeling, from documents to a sealed model: the straight line of `--task language`."""

from __future__ import annotations

import itertools
import json
import math
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gptailor.data.batch import to_device
from gptailor.data.blocks import TokenStore, block_lengths, collate_blocks, is_whole, num_blocks, open_store
from gptailor.data.ledger import summarize, write_ledger
from gptailor.data.tokenize import Encoder, build_encoder
from gptailor.errors import DataError, ModelError
from gptailor.evaluate.language import PieceNats, piece_nats
from gptailor.launch import Precision, StopRequest, precision_context, resolve_environment, write_atomically
from gptailor.models.approach import Adapted
from gptailor.models.forward import keeps_documents_apart
from gptailor.models.generate import FREELY, continue_text
from gptailor.models.load import (
    load_config,
    load_tokenizer,
)
from gptailor.models.names import Base, context_length, resolve_base
from gptailor.models.vocabulary import choose_vocabulary, train_tokenizer
from gptailor.pipeline.causal import (
    TrainableText,
    adapt_causal,
    choose_text_approach,
    text_ends,
)
from gptailor.pipeline.documents import PreparedDocuments, marks_by_part, prepare_documents
from gptailor.pipeline.documents_tokens import (
    choose_block,
    kept_pieces,
    ledger_lines,
    repair_document,
    write_tokens,
)
from gptailor.pipeline.folder import ENVIRONMENT, base_revision_of, file_hashes, refuse_other_data
from gptailor.pipeline.language_story import finish_language, seal
from gptailor.pipeline.objective import Objective, Validation
from gptailor.pipeline.place import Listener, Trained, TrainingPlace
from gptailor.pipeline.settle import settle_plan, tell_cost
from gptailor.pipeline.task import refuse_frozen
from gptailor.pipeline.taught import is_written, keep_taught, taught_before
from gptailor.pipeline.training import train
from gptailor.recipe import (
    Recipe,
    ScratchApproach,
)
from gptailor.train.loss import language_loss
from gptailor.types import PARTS, Batch, Part

VALIDATION_BLOCKS = 96  # looked at during training, spread over the part; the end looks at all
PROMPTS, PROMPT_TOKENS, SAMPLE_TOKENS = 4, 24, 64
TOKENIZER_TEXT = 50_000_000  # characters that a tokenizer of one's own is trained on, at most


@dataclass(frozen=True, slots=True)
class LanguageShop:
    """What a language run works with."""

    recipe: Recipe
    base: Base
    tokenizer: PreTrainedTokenizerBase
    encoder: Encoder
    stores: dict[Part, TokenStore]
    block: int  # tokens of a block
    begin: int  # the token that every document begins with
    end: int  # and the one it ends with
    environment: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Sample:
    """How a held-out text goes on: in truth, by the base, and by the result."""

    prompt: str
    prompt_ids: tuple[int, ...]
    reference: str
    before: str | None = None
    after: str | None = None


@dataclass(frozen=True, slots=True)
class LanguageResult:
    """A trained language model and how it did on all of validation."""

    approach: TrainableText
    adapted: Adapted
    trained: Trained
    validation: PieceNats
    samples: list[Sample]


def fit_language(
    recipe: Recipe, folder: Path, listener: Listener, stop: StopRequest, rival: Path | None
) -> None:
    """Documents to a finished run folder; resumes what was begun there.

    Raises:
        GptailorError: something the person can mend; the message says what.
    """
    began = time.perf_counter()
    prepared, shop, result = open_and_train(recipe, folder, listener, stop)
    finish_language(folder, shop, result, prepared=prepared, say=listener.say, began=began, rival=rival)


def seal_language(recipe: Recipe, folder: Path, listener: Listener, stop: StopRequest) -> None:
    """Documents to a model that is saved and proven; the test documents stay sealed."""
    _, shop, result = open_and_train(recipe, folder, listener, stop)
    seal(folder, shop, result)


def open_and_train(
    recipe: Recipe, folder: Path, listener: Listener, stop: StopRequest
) -> tuple[PreparedDocuments, LanguageShop, LanguageResult]:
    """Reads, divides, tokenizes, writes what became of every document, and trains."""
    refuse_frozen(recipe)
    prepared = prepare_documents(recipe, listener.say)
    refuse_other_data(folder, prepared.data_hash)
    shop = open_language_shop(recipe, prepared, folder, listener)
    open_for_teaching(folder, prepared, shop, listener)
    samples = choose_samples(shop)
    place = TrainingPlace.of_run(
        folder, seed=recipe.seed, environment=shop.environment, stop=stop, listener=listener
    )
    with stop.deferred():
        return prepared, shop, train_language(shop, samples, place)


def open_language_shop(
    recipe: Recipe, prepared: PreparedDocuments, folder: Path, listener: Listener
) -> LanguageShop:
    """Finds the base and its tokenizer (or trains one), and tokenizes to disk, once."""
    base = resolve_base(recipe.base, revision=base_revision_of(folder) or recipe.revision)
    context = context_length(load_config(base))
    _clear_leftovers(folder / "data")
    own = isinstance(recipe.approach, ScratchApproach)
    if own:
        tokenizer = own_tokenizer(recipe, prepared, folder / "data" / "tokenizer", context, listener)
    else:
        tokenizer = load_tokenizer(base)
    block = choose_block(recipe.data.max_tokens, context)
    backend: Any = tokenizer
    encoder = build_encoder(backend.backend_tokenizer, pad_id=int(backend.pad_token_id))
    begin, end = text_ends(backend, base)
    tokens = folder / "data" / "tokens"
    if all(is_whole(tokens / part) for part in PARTS):
        stores = {part: open_store(tokens / part) for part in PARTS}
    else:
        listener.say("tokenizing")
        stores = write_tokens(
            prepared,
            encoder,
            tokens,
            settings=recipe.data,
            vocabulary=len(backend),
            ends=(begin, end),
        )
    for part in PARTS:
        if stores[part].num_targets == 0:
            raise DataError(
                f"the text of {part} is not one token long.", where=recipe.data.train, fix="Give more text."
            )
    environment, changed = resolve_environment(folder / ENVIRONMENT, {"base_revision": base.revision})
    environment["changed"] = changed
    for change in changed:
        listener.say(f"this machine differs from where the run began, so it is not bit-exact: {change}")
    return LanguageShop(recipe, base, tokenizer, encoder, stores, block, begin, end, environment)


def own_tokenizer(
    recipe: Recipe, prepared: PreparedDocuments, folder: Path, context: int, listener: Listener
) -> PreTrainedTokenizerBase:
    """A byte-level BPE trained on the training text (never on held-out text), kept in the run folder."""
    if (folder / "tokenizer.json").exists():
        return load_tokenizer(Base("own", folder, "", "folder"))
    file = prepared.files[0]
    size = sum(
        count
        for count, part in zip(file.documents.piece_bytes, file.parts.tolist(), strict=True)
        if part == 0
    )
    assert isinstance(recipe.approach, ScratchApproach)
    vocabulary = recipe.approach.vocabulary or choose_vocabulary(size)
    listener.say(f"training a tokenizer of {vocabulary:,} tokens")
    tokenizer = train_tokenizer(_training_texts(prepared, recipe), vocabulary=vocabulary, context=context)
    tokenizer.save_pretrained(folder)
    return load_tokenizer(Base("own", folder, "", "folder"))


def open_for_teaching(
    folder: Path, prepared: PreparedDocuments, shop: LanguageShop, listener: Listener
) -> None:
    """Writes what became of every document, and which texts teach; says which taught the base already."""
    approach = shop.recipe.approach.kind
    written = is_written(folder)  # the training text may be a gigabyte
    parts: tuple[Part, ...] = ("validation", "test") if written else PARTS
    marks = marks_by_part(prepared, shop.recipe.data, *parts)
    before, told = taught_before(shop.base, approach, marks, one="document")
    if told:
        listener.say(told)
        prepared.notes.append(told)
    write_data(folder, prepared, shop, taught_before=before)
    if not written:
        keep_taught(folder, marks, shop.base, approach)


def write_data(
    folder: Path, prepared: PreparedDocuments, shop: LanguageShop, *, taught_before: Mapping[str, int]
) -> None:
    """The ledger: one line per document, and its sums, which come out."""
    path = folder / "data"
    path.mkdir(exist_ok=True)
    write_ledger(path / "ledger.jsonl", ledger_lines(prepared, shop.stores))
    summary = summarize(ledger_lines(prepared, shop.stores), read=prepared.read)
    summary["bytes"] = {part: int(shop.stores[part].piece_bytes.sum()) for part in PARTS}
    summary["divided"] = prepared.files[0].divided
    summary["near_duplicate_groups"] = prepared.files[0].near_groups
    if summary["divided"]:
        summary |= {part: len(np.unique(shop.stores[part].piece_documents)) for part in PARTS}
    summary["data_hash"] = prepared.data_hash
    summary["files"] = file_hashes(shop.recipe) or {}
    if taught_before:
        summary["taught_before"] = taught_before
    write_atomically(path / "summary.json", json.dumps(summary, indent=1))


def train_language(shop: LanguageShop, samples: list[Sample], place: TrainingPlace) -> LanguageResult:
    """Adapts, trains and returns the best weights on validation, adapters still in place."""
    approach = choose_text_approach(shop.recipe, shop.base)
    adapted = adapt_causal(
        shop.recipe, shop.base, shop.tokenizer, approach, device=shop.environment["device"]
    )
    objective = language_objective(shop, adapted)
    if not isinstance(approach, ScratchApproach):
        samples = [replace(s, before=continue_sample(shop, adapted.plain, s.prompt_ids)) for s in samples]
    plan = settle_plan(shop.recipe.train, shop.environment, adapted, objective, approach.kind, place)
    tell_cost(place, approach.kind, shop.environment)
    trained = train(adapted, objective, plan=plan, settings=shop.recipe.train, place=place)
    samples = [replace(s, after=continue_sample(shop, adapted.plain, s.prompt_ids)) for s in samples]
    validation = nats_on(shop, adapted, "validation")
    return LanguageResult(approach, adapted, trained, validation, samples)


def language_objective(shop: LanguageShop, adapted: Adapted) -> Objective:
    """Cross-entropy of the next token over packed blocks; the score is the negative validation loss."""
    if not keeps_documents_apart(adapted.plain):
        raise ModelError(
            "documents that lie in one row would see each other with this base.",
            where=f"base {shop.base.name!r}",
            fix="Use another base, such as one of GPT-2's, GPT-Neo's, Llama's or Qwen's family.",
        )
    device = adapted.plain.device
    store, block = shop.stores["train"], shop.block

    def batch(chosen: Sequence[int]) -> Batch:
        return to_device(collate_blocks(store, chosen, length=block, where=shop.recipe.data.train), device)

    def loss(batch: Batch) -> tuple[Any, int]:
        return language_loss(adapted.plain, adapted.head, batch), batch.num_targets

    total = num_blocks(shop.stores["validation"], block)
    looked_at = np.unique(
        np.linspace(0, total - 1, min(total, VALIDATION_BLOCKS)).round().astype(int)
    ).tolist()

    def validate(precision: Precision) -> Validation:
        pieces = nats_on(shop, adapted, "validation", blocks=looked_at, precision=precision)
        return Validation(pieces.loss, -pieces.loss, {"bits_per_byte": pieces.bits_per_byte})

    return Objective(block_lengths(store, block), batch, loss, validate, new_head=False)


def nats_on(
    shop: LanguageShop,
    adapted: Adapted,
    part: Part,
    *,
    blocks: Sequence[int] | None = None,
    precision: Precision = "fp32",
) -> PieceNats:
    """What a part costs the model; all of it, or the chosen blocks."""
    store = shop.stores[part]
    was_training = adapted.trained.training
    adapted.trained.eval()
    with precision_context(precision, adapted.plain.device.type):
        found = piece_nats(
            adapted.plain,
            adapted.head,
            store,
            length=shop.block,
            blocks=list(range(num_blocks(store, shop.block))) if blocks is None else blocks,
        )
    adapted.trained.train(was_training)
    return found


def choose_samples(shop: LanguageShop) -> list[Sample]:
    """Beginnings of held-out texts, spread over validation, with how they really go on."""
    store = shop.stores["validation"]
    ends = np.append(store.begins[1:], len(store.tokens))
    room = ends - store.begins - 1
    starts = store.begins[room >= 2 * PROMPT_TOKENS] + 1
    if len(starts) < PROMPTS:  # a few long documents: the beginnings of their pieces
        starts = store.piece_starts[store.piece_starts + PROMPT_TOKENS + 8 < len(store.tokens)]
    if not len(starts):
        return []
    chosen = starts[np.unique(np.linspace(0, len(starts) - 1, PROMPTS).round().astype(int))]
    samples = []
    for start in chosen.tolist():
        ids = np.asarray(store.tokens[start : start + PROMPT_TOKENS]).tolist()
        rest = np.asarray(
            store.tokens[start + PROMPT_TOKENS : start + PROMPT_TOKENS + SAMPLE_TOKENS]
        ).tolist()
        rest = rest[: rest.index(shop.end)] if shop.end in rest else rest
        samples.append(Sample(decode(shop, ids), (shop.begin, *ids), decode(shop, rest)))
    return samples


def continue_sample(shop: LanguageShop, model: PreTrainedModel, prompt: Sequence[int]) -> str:
    """A continuation drawn from the recipe's seed."""
    pad: Any = shop.tokenizer.pad_token_id
    sampling = replace(FREELY, max_new_tokens=SAMPLE_TOKENS, seed=shop.recipe.seed)
    own_decode = partial(decode, shop)
    return continue_text(model, prompt, sampling, decode=own_decode, end=shop.end, pad=int(pad))


def decode(shop: LanguageShop, ids: Sequence[int]) -> str:
    """Token ids as text, special tokens left out."""
    text: str = shop.encoder.backend.decode(list(ids), skip_special_tokens=True)
    return text


def _clear_leftovers(data: Path) -> None:
    """Removes tokens of another beginning: other settings, or data that changed before the ledger was."""
    if not (data / "summary.json").exists():
        for name in ("tokens", "tokenizer"):
            shutil.rmtree(data / name, ignore_errors=True)


def _training_texts(prepared: PreparedDocuments, recipe: Recipe) -> Iterator[str]:
    """Training pieces, evenly thinned where there is more than a tokenizer needs."""
    file, settings = prepared.files[0], recipe.data
    total = sum(file.documents.piece_bytes)
    stride = max(1, math.ceil(total / TOKENIZER_TEXT))
    pieces = (piece for part, _, piece, _ in kept_pieces(file, settings) if part == "train")
    for piece in itertools.islice(pieces, 0, None, stride):
        yield repair_document(piece.text, settings.clean)
