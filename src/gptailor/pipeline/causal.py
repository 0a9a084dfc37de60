"""What all tasks share whose model predicts text: the approach, what may change, how it is kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gptailor.errors import ModelError
from gptailor.models.approach import (
    Adapted,
    adapt_full,
    adapt_lora,
    adapter_state,
    merge_lora,
    save_adapter,
)
from gptailor.models.forward import keeps_keys_and_values
from gptailor.models.load import (
    build_scratch_language_model,
    load_config,
    load_trainable_language_model,
    recompute_activations,
)
from gptailor.models.names import Base
from gptailor.models.saved import replay_nats, save_model, token_nats, within_tolerance
from gptailor.recipe import (
    AutoApproach,
    FrozenApproach,
    FullApproach,
    LoraApproach,
    Recipe,
    ScratchApproach,
)

LARGEST_FULL = 50_000_000  # weights; above, `auto` means LoRA

TrainableText = FullApproach | LoraApproach | ScratchApproach


def choose_text_approach(recipe: Recipe, base: Base) -> TrainableText:
    """What `auto` means here: every weight of a small base, LoRA for a large one."""
    approach = recipe.approach
    assert not isinstance(approach, FrozenApproach)  # refused before anything was read
    if isinstance(approach, AutoApproach):
        return FullApproach() if estimate_weights(base, writes=True) <= LARGEST_FULL else LoraApproach()
    return approach


def estimate_weights(base: Base, *, writes: bool) -> int:
    """About how many weights a base has, by its shape; with `writes` those of its vocabulary's head, too."""
    config: Any = load_config(base)
    width, layers = int(config.hidden_size), int(config.num_hidden_layers)
    tables = 2 if writes and not getattr(config, "tie_word_embeddings", True) else 1
    return 12 * layers * width**2 + tables * int(config.vocab_size) * width


def adapt_causal(
    recipe: Recipe, base: Base, tokenizer: PreTrainedTokenizerBase, settings: TrainableText, *, device: str
) -> Adapted:
    """Loads or builds the language model and chooses the weights that may change."""
    dropouts = {"dropout": recipe.train.dropout, "attention_dropout": recipe.train.attention_dropout}
    if isinstance(settings, ScratchApproach):
        model = build_scratch_language_model(
            base,
            tokenizer,
            seed=recipe.seed,
            **dropouts,
            layers=settings.layers,
            width=settings.width,
            heads=settings.heads,
        )
    else:
        model = load_trainable_language_model(base, tokenizer, **dropouts)
    if not keeps_keys_and_values(model):
        raise ModelError(
            f"its family ({model.config.model_type}) can't write here: it keeps no keys and values.",
            where=f"base {base.name!r}",
            fix="Use another base, such as one of GPT-2's, GPT-Neo's, Llama's or Qwen's family.",
        )
    return choose_weights(recipe, model, settings, device=device)


def choose_weights(
    recipe: Recipe, model: PreTrainedModel, settings: TrainableText, *, device: str
) -> Adapted:
    """The model on its device, with all of its weights to be trained, or adapters beside them."""
    model.to(device)  # type: ignore[arg-type]
    if recipe.train.gradient_checkpointing:
        recompute_activations(model)
    if isinstance(settings, LoraApproach):
        return adapt_lora(
            model,
            rank=settings.rank,
            alpha=settings.alpha,
            dropout=settings.dropout,
            targets=settings.targets,
            seed=recipe.seed,
        )
    return adapt_full(model)


def save_causal(
    folder: Path,
    adapted: Adapted,
    tokenizer: PreTrainedTokenizerBase,
    *,
    base: Base,
    probe: Sequence[int],
    decode: Callable[[list[int]], str],
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Saves model and adapter into the run folder, and proves that what was saved is what was trained.

    Returns the probes for the bundle, and the largest differences in nats: of merging, of reloading.
    """
    ids, parity = list(probe), {}
    trained = token_nats(adapted.plain, ids)
    model = adapted.plain
    if adapted.trained is not adapted.plain:
        save_adapter(folder / "adapter", adapter_state(adapted), base)
        model = merge_lora(adapted)
        merged = token_nats(model, ids)
        difference = max(abs(one - other) for one, other in zip(merged, trained, strict=True))
        parity["merge"] = within_tolerance(
            difference, "the log-probabilities with the adapter merged", where=folder
        )
    model.eval()
    save_model(folder / "model", model=model, tokenizer=tokenizer)
    probes = [{"text": decode(ids), "token_ids": ids, "nats": token_nats(model, ids)}]
    parity["reload"] = replay_nats(folder / "model", probes)
    return probes, parity


def text_ends(tokenizer: Any, base: Base) -> tuple[int, int]:
    """The tokens a document begins and ends with."""
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.bos_token_id
    if end is None:
        raise ModelError(
            "its tokenizer has no end-of-text token.",
            where=f"base {base.name!r}",
            fix="Use a base whose tokenizer has one (eos_token).",
        )
    begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else end
    return int(begin), int(end)
