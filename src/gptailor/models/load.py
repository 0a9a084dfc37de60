"""From a base to weights: read its tokenizer, build a classifier or a language model on it.

Safetensors only, and no code from an artifact: architectures come from the installed transformers.
The only place that talks to transformers' Auto classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.activations import NewGELUActivation
from transformers.models.auto import modeling_auto as auto

from gptailor.errors import GptailorError, ModelError
from gptailor.models.forward import refuse_looking_ahead
from gptailor.models.names import Base, first_line, read_config_file
from gptailor.models.vocabulary import PAD
from gptailor.types import AnswerKind

SAFELY: dict[str, Any] = {"use_safetensors": True, "trust_remote_code": False, "local_files_only": True}
DROPOUT_KEYS = (
    *("resid_pdrop", "embd_pdrop", "resid_dropout", "embed_dropout", "hidden_dropout"),
    *("dropout", "residual_dropout", "embedding_dropout", "hidden_dropout_prob"),
)
ATTENTION_DROPOUT_KEYS = ("attn_pdrop", "attention_dropout", "attention_probs_dropout_prob")
# transformers' own names, so that any tool that trains or serves the folder takes the right loss.
PROBLEM_TYPES: dict[AnswerKind, str] = {
    "single": "single_label_classification",
    "multiple": "multi_label_classification",
    "score": "regression",
}

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


def load_tokenizer(base: Base) -> PreTrainedTokenizerBase:
    """The base's tokenizer: right padding, a pad token that text can't produce, special strings kept text."""
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(
            base.path, use_fast=True, trust_remote_code=False, local_files_only=True
        )
    except Exception as error:
        raise ModelError(
            f"its tokenizer can't be loaded: {first_line(error)}",
            where=f"base {base.name!r}",
            fix="The folder needs a tokenizer.json that the installed transformers can read.",
        ) from None
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            "its tokenizer has no tokenizer.json.",
            where=f"base {base.name!r}",
            fix="Convert it once with transformers' fast tokenizers and save it beside the weights.",
        )
    if not tokenizer.backend_tokenizer.encode("a", add_special_tokens=False).ids:  # made of nothing
        raise ModelError(
            "it has no tokenizer: there is no tokenizer.json, and no vocabulary in other files.",
            where=f"base {base.name!r}",
            fix="Save the tokenizer of the model that it comes from beside its weights.",
        )
    tokenizer.padding_side = "right"
    tokenizer.truncation_side = "right"
    tokenizer.split_special_tokens = True
    tokenizer.init_kwargs["split_special_tokens"] = True
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id in (
        tokenizer.eos_token_id,
        tokenizer.bos_token_id,
        tokenizer.unk_token_id,
    ):
        tokenizer.add_special_tokens({"pad_token": PAD})
    return tokenizer  # type: ignore[no-any-return]


def load_config(base: Base, *, classifies: bool = False) -> Any:
    """The base's configuration; only architectures that the installed transformers knows.

    If it `classifies`, only those of which transformers has a classifier.

    Raises:
        ModelError: the architecture is unknown or would need code from the artifact.
    """
    raw = read_config_file(base.path)
    try:
        config: Any = AutoConfig.from_pretrained(base.path, trust_remote_code=False, local_files_only=True)
    except Exception as error:
        raise ModelError(
            f"its config.json can't be used: {first_line(error)}",
            where=f"base {base.name!r}",
            fix="Use a causal language model of an architecture that transformers knows.",
        ) from None
    kind = str(config.model_type)
    what = None
    if config.get_text_config() is not config:
        what = f"{kind!r} reads more than text."
    elif raw.get("is_encoder_decoder") or getattr(config, "is_encoder_decoder", False):
        what = f"{kind!r} is an encoder-decoder, not a GPT."
    elif kind in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES or kind not in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        what = f"{kind!r} is not a causal language model."
    elif classifies and kind not in auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES:
        what = f"the installed transformers has no classifier for {kind!r}."
    if what is not None:
        raise ModelError(
            what,
            where=f"base {base.name!r}",
            fix="Use a base of the GPT family: GPT-2, GPT-Neo, Llama, Qwen, Mistral and their kin.",
        )
    return config


def load_classifier(
    base: Base,
    tokenizer: PreTrainedTokenizerBase,
    *,
    label_names: Sequence[str],
    seed: int,
    dropout: float = 0.0,
    attention_dropout: float = 0.0,
    kind: AnswerKind = "single",
) -> PreTrainedModel:
    """The base in fp32 with a new head of `len(label_names)` rows, drawn from the seed.

    A base that is itself a classifier gives its body; its old head is dropped.

    Raises:
        ModelError: a weight of the body is missing, or has another shape than config.json says, or
            a token sees what comes after it.
    """
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    try:
        config = _classifier_config(
            base,
            tokenizer,
            label_names=label_names,
            dropout=dropout,
            attention_dropout=attention_dropout,
            kind=kind,
        )
        model, found = AutoModelForSequenceClassification.from_pretrained(
            base.path,
            config=config,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # of the old head; anything else is refused below
            output_loading_info=True,
            **SAFELY,
        )
    except GptailorError:
        raise
    except Exception as error:
        raise _unloadable(error, base) from None
    finally:
        torch.random.set_rng_state(state)
    _refuse_random_weights(found, base, head=head_name(model))
    refuse_looking_ahead(model, base.name)
    _refuse_non_finite(model, base)
    _fit_vocabulary(model, tokenizer)
    _reset_head(model, seed)
    return _with_fused_activations(model)


def build_scratch(
    base: Base,
    tokenizer: PreTrainedTokenizerBase,
    *,
    label_names: Sequence[str],
    seed: int,
    dropout: float = 0.0,
    attention_dropout: float = 0.0,
    layers: int | None = None,
    width: int | None = None,
    heads: int | None = None,
    kind: AnswerKind = "single",
) -> PreTrainedModel:
    """The base's architecture with random weights drawn from the seed, at the base's size or one given."""
    config = _classifier_config(
        base,
        tokenizer,
        label_names=label_names,
        dropout=dropout,
        attention_dropout=attention_dropout,
        kind=kind,
    )
    model = _from_config(
        AutoModelForSequenceClassification, config, seed=seed, layers=layers, width=width, heads=heads
    )
    _fit_vocabulary(model, tokenizer)
    _reset_head(model, seed)
    return _with_fused_activations(model)


def load_trainable_language_model(
    base: Base, tokenizer: PreTrainedTokenizerBase, *, dropout: float = 0.0, attention_dropout: float = 0.0
) -> PreTrainedModel:
    """The base in fp32 as it is, to go on with predicting text.

    Raises:
        ModelError: a weight is missing, its output layer among them, or a token sees what comes after it.
    """
    config = _language_config(base, tokenizer, dropout=dropout, attention_dropout=attention_dropout)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            base.path,
            config=config,
            dtype=torch.float32,
            output_loading_info=True,
            **SAFELY,
        )
    except Exception as error:
        raise _unloadable(error, base) from None
    model, found = loaded
    _refuse_random_weights(found, base, head=None)
    refuse_looking_ahead(model, base.name)
    _refuse_non_finite(model, base)
    _fit_vocabulary(model, tokenizer)
    _refuse_odd_logits(model, base)
    return _with_fused_activations(model)


def build_scratch_language_model(
    base: Base,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int,
    dropout: float = 0.0,
    attention_dropout: float = 0.0,
    layers: int | None = None,
    width: int | None = None,
    heads: int | None = None,
) -> PreTrainedModel:
    """The base's architecture with random weights and as many tokens as the tokenizer has."""
    config = _language_config(base, tokenizer, dropout=dropout, attention_dropout=attention_dropout)
    config.vocab_size = len(tokenizer)
    config.pad_token_id = tokenizer.pad_token_id
    config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    model = _from_config(AutoModelForCausalLM, config, seed=seed, layers=layers, width=width, heads=heads)
    _refuse_odd_logits(model, base)
    return _with_fused_activations(model)


def load_language_model(base: Base) -> PreTrainedModel:
    """The base as a language model, for zero- and few-shot.

    Raises:
        ModelError: it has no words to predict, or can't be loaded; no memory is left, say.
    """
    wordless = ModelError(
        "has no language-model head",
        where=f"base {base.name!r}",
        fix="Take a base that writes, or leave out the baselines that need it.",
    )
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            base.path,
            dtype=torch.float32,
            output_loading_info=True,
            **SAFELY,
        )
    except ValueError:  # no such class for its kind
        raise wordless from None
    except Exception as error:
        told = "no memory is left" if isinstance(error, MemoryError) else first_line(error)
        fix = "Give it more memory, or leave out the baselines that need the base."
        raise ModelError(f"can't be loaded once more: {told}", where=f"base {base.name!r}", fix=fix) from None
    model, found = loaded
    if found["missing_keys"]:  # a classifier's folder has no output layer, unless that is the embedding
        raise wordless
    fused = _with_fused_activations(model)
    fused.eval()
    return fused


def load_saved_classifier(folder: Path) -> PreTrainedModel:
    """A saved `model/` folder of a classifier, as any other tool would load it."""
    return _load_saved(AutoModelForSequenceClassification, folder, "classifier")


def load_saved_language_model(folder: Path) -> PreTrainedModel:
    """A saved `model/` folder of a language model, as any other tool would load it."""
    return _load_saved(AutoModelForCausalLM, folder, "language model")


def _load_saved(auto_class: Any, folder: Path, kind: str) -> PreTrainedModel:
    try:
        model = auto_class.from_pretrained(
            folder,
            dtype=torch.float32,
            **SAFELY,
        )
    except Exception as error:
        raise ModelError(
            f"can't be loaded: {first_line(error)}",
            where=str(folder),
            fix=f"The folder is damaged or not a {kind}; fit again.",
        ) from None
    fused = _with_fused_activations(model)
    fused.eval()
    return fused


def head_name(model: PreTrainedModel) -> str:
    """The attribute that holds the classification head (`score` in the GPT family)."""
    for name in ("score", "classifier", "classification_head"):
        if isinstance(getattr(model, name, None), torch.nn.Linear):
            return name
    raise ModelError(
        f"{type(model).__name__} has no linear classification head.",
        where="base",
        fix="Use a base of the GPT family: GPT-2, GPT-Neo, Llama, Qwen, Mistral and their kin.",
    )


def _unloadable(error: Exception, base: Base) -> ModelError:
    return ModelError(
        f"its weights can't be loaded: {first_line(error)}",
        where=f"base {base.name!r}",
        fix="Check that config.json and the safetensors files belong together.",
    )


def _from_config(
    auto_class: Any,
    config: Any,
    *,
    seed: int,
    layers: int | None,
    width: int | None,
    heads: int | None,
) -> Any:
    """A model of random weights drawn from the seed."""
    _resize(config, layers=layers, width=width, heads=heads)
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    try:
        return auto_class.from_config(config, dtype=torch.float32)
    except ValueError as error:
        raise ModelError(
            f"this size can't be built: {first_line(error)}",
            where="approach scratch",
            fix="The width must be a multiple of the heads.",
        ) from None
    finally:
        torch.random.set_rng_state(state)


def _classifier_config(
    base: Base,
    tokenizer: PreTrainedTokenizerBase,
    *,
    label_names: Sequence[str],
    dropout: float,
    attention_dropout: float,
    kind: AnswerKind,
) -> Any:
    load_config(base, classifies=True)
    config = _language_config(base, tokenizer, dropout=dropout, attention_dropout=attention_dropout)
    config.num_labels = len(label_names)
    config.id2label = dict(enumerate(label_names))
    config.label2id = {name: place for place, name in enumerate(label_names)}
    config.problem_type = PROBLEM_TYPES[kind]
    return config


def takes_dropout(config: Any) -> bool:
    """Whether the architecture has dropout outside attention; Llama's, Qwen's and Mistral's have none."""
    return any(hasattr(config, key) for key in DROPOUT_KEYS)


def _language_config(
    base: Base, tokenizer: PreTrainedTokenizerBase, *, dropout: float, attention_dropout: float
) -> Any:
    config = load_config(base)
    # A pad token that was just added is set once the embedding has room for it (_fit_vocabulary).
    pad_id: Any = tokenizer.pad_token_id
    config.pad_token_id = pad_id if pad_id < config.vocab_size else None
    config.use_cache = False
    for key in DROPOUT_KEYS:
        if hasattr(config, key):
            setattr(config, key, dropout)
    for key in ATTENTION_DROPOUT_KEYS:
        if hasattr(config, key):
            setattr(config, key, attention_dropout)
    if hasattr(config, "classifier_dropout"):
        config.classifier_dropout = 0.0
    return config


def _refuse_odd_logits(model: PreTrainedModel, base: Base) -> None:
    """Some architectures scale or cap their logits; our loss reads the plain output layer."""
    ids = torch.arange(4)[None]
    model.eval()
    with torch.inference_mode():
        theirs = model(input_ids=ids, use_cache=False).logits
        ours = output_layer(model)(model.base_model(input_ids=ids, use_cache=False).last_hidden_state)
    if not torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4):
        raise ModelError(
            "its logits are not those of its output layer (it scales or caps them).",
            where=f"base {base.name!r}",
            fix="Use a base of the GPT family: GPT-2, GPT-Neo, Llama, Qwen, Mistral and their kin.",
        )


def output_layer(model: PreTrainedModel) -> torch.nn.Module:
    """The linear layer from hidden states to the vocabulary."""
    layer: torch.nn.Module = model.get_output_embeddings()
    return layer


def recompute_activations(model: Any) -> None:
    """Activations are computed again in the backward pass: less memory, slower."""
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})


def _refuse_random_weights(found: Mapping[str, Any], base: Base, *, head: str | None) -> None:
    """transformers fills in what a file lacks or has in another shape with random numbers."""
    wrong = [f"{key} is missing" for key in found["missing_keys"]]
    wrong += [
        f"{key} is {tuple(has)} in the file and {tuple(wanted)} by config.json"
        for key, has, wanted in found["mismatched_keys"]
    ]
    wrong = sorted(line for line in wrong if head is None or not line.startswith(f"{head}."))
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise ModelError(
            f"its weights don't fit its config.json: {wrong[0]}{more}.",
            where=f"base {base.name!r}",
            fix="Check that config.json and the safetensors files belong together.",
        )


def _with_fused_activations(model: Any) -> PreTrainedModel:
    """GPT-2's GELU in one kernel instead of eight: the same function (Hendrycks & Gimpel 2016, tanh form).

    The configuration keeps its name, so what is saved stays what other tools know.
    """
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(module, name, torch.nn.GELU(approximate="tanh"))
    fused: PreTrainedModel = model
    return fused


def _refuse_non_finite(model: PreTrainedModel, base: Base) -> None:
    broken = [name for name, weight in model.named_parameters() if not bool(torch.isfinite(weight).all())]
    if broken:
        raise ModelError(
            f"{len(broken)} of its weights hold NaN or infinite values, the first is {broken[0]}.",
            where=f"base {base.name!r}",
            fix="The base is damaged: get it again, or use another revision.",
        )


def _fit_vocabulary(model: Any, tokenizer: Any) -> None:
    """Makes room for an added pad token; never shrinks (many bases pad their vocabulary)."""
    known = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > known:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        with torch.no_grad():  # not what chance left there: the same recipe gives the same bits
            model.get_input_embeddings().weight[known:] = 0
            # The mean of the others is never likelier than one in as many (Hewitt 2021, "Initializing New
            # Word Embeddings for Pretrained Language Models"); a logit of 0 would beat all of GPT-2's.
            head = model.get_output_embeddings()
            for values in (getattr(head, "weight", None), getattr(head, "bias", None)):
                if values is not None:
                    values[known:] = values[:known].mean(0)
    model.config.pad_token_id = tokenizer.pad_token_id


def _reset_head(model: Any, seed: int) -> None:
    """Draws the head from a stream of its own, so that it doesn't depend on how the body was loaded."""
    head = getattr(model, head_name(model))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        head.weight.normal_(0.0, float(getattr(model.config, "initializer_range", 0.02)), generator=generator)
        if head.bias is not None:
            head.bias.zero_()


def _resize(config: Any, *, layers: int | None, width: int | None, heads: int | None) -> None:
    """Changes the size through the configuration's common names."""
    if layers is not None:
        config.num_hidden_layers = layers
        if config.model_type == "gpt_neo":
            config.attention_types = [[["global", "local"], -(-layers // 2)]]
            config.attention_layers = (["global", "local"] * layers)[:layers]
        if getattr(config, "layer_types", None):
            config.layer_types = (list(config.layer_types) * layers)[:layers]
    if width is not None:
        if getattr(config, "intermediate_size", None):
            config.intermediate_size = config.intermediate_size * width // config.hidden_size
        config.hidden_size = width
        if getattr(config, "n_inner", None):
            config.n_inner = 4 * width
    if heads is not None:
        config.num_attention_heads = heads
        if getattr(config, "num_key_value_heads", None):
            config.num_key_value_heads = heads
    if (width or heads) and getattr(config, "head_dim", None):
        config.head_dim = config.hidden_size // config.num_attention_heads
