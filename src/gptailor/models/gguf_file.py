"""GGUF: a saved language model as one file for llama.cpp and what is built on it."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from gptailor.data.tokenize import build_encoder
from gptailor.errors import MissingExtraError, ModelError
from gptailor.models.around import begin_token
from gptailor.models.gguf_run import compare_with_llama_cpp
from gptailor.models.gguf_words import Vocabulary, read_vocabulary, refuse
from gptailor.models.load import load_saved_language_model, load_tokenizer
from gptailor.models.names import Base
from gptailor.models.replay import probe_difference, refuse_difference, torch_answers
from gptailor.types import Bundle

StoredPrecision = Literal["fp32", "bf16", "fp16"]
PRECISIONS: tuple[StoredPrecision, ...] = ("fp32", "bf16", "fp16")
FAMILIES = ("gpt2", "llama", "qwen2")  # the names are those of transformers and of llama.cpp alike
# What llama.cpp computes for these families, whatever config.json says.
FIXED = {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "hidden_act": ("silu",),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "use_sliding_window": (False,),
}
# Where rotary positions may be stretched, llama.cpp takes a factor for each frequency (Llama 3.1's kind too).
STRETCHED = {"llama": ("default", "linear", "llama3"), "qwen2": ("default",), "gpt2": ("default",)}

Array = npt.NDArray[np.generic]


def write_gguf(bundle: Bundle, path: Path, *, name: str, precision: StoredPrecision) -> dict[str, Any]:
    """Writes a language bundle to `path` and reads it back: every tensor bit by bit, then as a model.

    Returns what was written, the largest difference from the stored probes when transformers' own reader
    loads the file, and what llama.cpp makes of it where it is installed.

    Raises:
        MissingExtraError: gguf isn't installed.
        ModelError: the architecture, the tokenizer or a weight can't be written, or reads back differently.
    """
    try:
        import gguf
    except ImportError:
        raise MissingExtraError("gguf", "gguf") from None
    model: Any = load_saved_language_model(bundle.path)
    _refuse_other_shapes(model.config, bundle.path)
    tokenizer: Any = load_tokenizer(Base(bundle.path.name, bundle.path, "", "folder"))
    words = read_vocabulary(
        tokenizer,
        size=int(model.config.vocab_size),
        begin=begin_token(tokenizer, bundle),
        where=str(bundle.path),
    )
    tensors = dict(_tensors(model, precision, where=str(bundle.path)))
    writer: Any = gguf.GGUFWriter(path, str(model.config.model_type))
    _write_shape(writer, model.config, name=name, precision=precision)
    _write_words(writer, words)
    for key, (data, kind) in tensors.items():
        writer.add_tensor(key, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    _refuse_other_tensors(path, tensors, where=str(bundle.path))
    difference = probe_difference(bundle.probes, torch_answers(_read_again(path, model.config)))
    exact = precision == "fp32"  # the others round each weight
    if exact:
        refuse_difference(difference, where=bundle.path)
    encoder = build_encoder(tokenizer.backend_tokenizer, pad_id=words.pad)
    return {
        "parity": difference,
        "precision": precision,
        "tokenizer": words.cut,
        "adds_begin": words.adds_begin,
        "llama_cpp": compare_with_llama_cpp(path, bundle, encoder, exact=exact),
    }


def _refuse_other_shapes(config: Any, where: Path) -> None:
    """Raises ModelError where llama.cpp would compute something else than transformers does."""
    kind = str(config.model_type)
    if kind not in FAMILIES:
        raise refuse(f"its architecture is {kind!r}; GGUF is written for {', '.join(FAMILIES)}.", str(where))
    for key, allowed in FIXED.items():
        value = getattr(config, key, allowed[0])
        if value not in allowed:
            raise refuse(f"llama.cpp doesn't know {key} = {value!r} for {kind}.", str(where))
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rope not in STRETCHED[kind]:
        raise refuse(f"its rotary positions are of the kind {rope!r}, which is not written yet.", str(where))


def _write_shape(writer: Any, config: Any, *, name: str, precision: StoredPrecision) -> None:
    """The sizes under llama.cpp's keys."""
    import gguf

    kinds = {"fp32": "ALL_F32", "bf16": "MOSTLY_BF16", "fp16": "MOSTLY_F16"}
    width, heads = int(config.hidden_size), int(config.num_attention_heads)
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType[kinds[precision]])
    writer.add_vocab_size(int(config.vocab_size))
    writer.add_context_length(int(config.max_position_embeddings))
    writer.add_embedding_length(width)
    writer.add_block_count(int(config.num_hidden_layers))
    writer.add_head_count(heads)
    if config.model_type == "gpt2":
        writer.add_feed_forward_length(int(config.n_inner or 4 * width))
        writer.add_layer_norm_eps(float(config.layer_norm_epsilon))
        return
    size = int(getattr(config, "head_dim", None) or width // heads)
    writer.add_feed_forward_length(int(config.intermediate_size))
    writer.add_head_count_kv(int(config.num_key_value_heads))
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_layer_norm_rms_eps(float(config.rms_norm_eps))
    writer.add_rope_dimension_count(size)
    writer.add_rope_freq_base(float(config.rope_parameters["rope_theta"]))


def _write_words(writer: Any, words: Vocabulary) -> None:
    writer.add_tokenizer_model("gpt2")  # llama.cpp's name for byte-level BPE
    writer.add_tokenizer_pre(words.cut)
    writer.add_token_list(list(words.tokens))
    writer.add_token_types(list(words.kinds))
    writer.add_token_merges(list(words.merges))
    if words.begin is not None:
        writer.add_bos_token_id(words.begin)
    writer.add_eos_token_id(words.end)
    writer.add_pad_token_id(words.pad)
    writer.add_add_bos_token(words.adds_begin)
    writer.add_add_eos_token(False)  # it would end a prompt
    if words.chat_template is not None:
        writer.add_chat_template(words.chat_template)


def _tensors(
    model: PreTrainedModel, precision: StoredPrecision, *, where: str
) -> Iterator[tuple[str, tuple[Array, Any]]]:
    """Names, values and types as llama.cpp wants them."""
    import gguf

    config: Any = model.config
    kinds = gguf.GGMLQuantizationType
    kind = {"fp32": kinds.F32, "bf16": kinds.BF16, "fp16": kinds.F16}[precision]
    family = {value: key for key, value in gguf.MODEL_ARCH_NAMES.items()}[config.model_type]
    names = gguf.get_tensor_name_map(family, int(config.num_hidden_layers))
    transposed = {f"{key}.weight" for key, part in model.named_modules() if isinstance(part, Conv1D)}
    for key, weight in model.named_parameters():  # tied ones come once
        value = weight.detach()
        if key in transposed:
            value = value.T
        if config.model_type == "llama" and (".q_proj." in key or ".k_proj." in key):
            heads = config.num_attention_heads if ".q_proj." in key else config.num_key_value_heads
            value = _interleave(value, int(heads))
        name = names.get_name(key, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise refuse(f"llama.cpp has no place for its weight {key!r}.", where)
        # Vectors are small and, as llama.cpp's own converter has it, stay whole; so do positions.
        own = kinds.F32 if value.ndim == 1 or name.startswith("position_embd") else kind
        yield name, (_rounded(value, own, key, where), own)
    factors = _rope_factors(model)
    if factors is not None:
        yield "rope_freqs.weight", (factors, kinds.F32)


def _interleave(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rotary pairs side by side, as llama.cpp turns Llama's; transformers keeps them half a head apart."""
    halves = weight.reshape(heads, 2, -1, *weight.shape[1:])
    return halves.transpose(1, 2).reshape(weight.shape)


def _rope_factors(model: Any) -> npt.NDArray[np.float32] | None:
    """By how much each rotary frequency is slower than an unstretched model's; None where none is."""
    rotary = getattr(model.base_model, "rotary_emb", None)
    if rotary is None:
        return None
    config = model.config
    size = int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
    exponents = torch.arange(0, size, 2, dtype=torch.float64) / size
    plain = float(config.rope_parameters["rope_theta"]) ** -exponents
    factors: npt.NDArray[np.float32] = (plain / rotary.inv_freq.double()).float().numpy()
    return None if np.allclose(factors, 1, rtol=1e-5) else factors


def _rounded(value: torch.Tensor, kind: Any, key: str, where: str) -> Array:
    """The weight in its type; bf16, which numpy doesn't have, as bytes."""
    import gguf

    whole = np.ascontiguousarray(value.float().numpy())
    if kind == gguf.GGMLQuantizationType.F16 and np.abs(whole).max() > np.finfo(np.float16).max:
        raise refuse(f"its weight {key!r} is too large for fp16.", where, fix="Use --precision bf16 or fp32.")
    rounded: Array = gguf.quantize(whole, kind)
    return rounded


def _refuse_other_tensors(path: Path, tensors: dict[str, tuple[Array, Any]], *, where: str) -> None:
    """Raises ModelError unless the file holds exactly these tensors."""
    import gguf

    found = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    same = found.keys() == tensors.keys() and all(
        found[key].tensor_type == kind and np.array_equal(found[key].data, data)
        for key, (data, kind) in tensors.items()
    )
    if not same:
        raise ModelError(
            "what was written doesn't read back as it was.",
            where=where,
            fix="Check the disk, and export again.",
        )


def _read_again(path: Path, config: Any) -> PreTrainedModel:
    """The file as transformers' own reader of this format loads it: names and layouts must be right."""
    from transformers import AutoModelForCausalLM

    with contextlib.redirect_stderr(io.StringIO()):  # its progress bar heeds no setting
        model: Any = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, config=config, dtype=torch.float32
        )
    model.eval()
    return model  # type: ignore[no-any-return]
