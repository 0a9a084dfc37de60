"""An approach is a choice of weights that may change: one function each, one trainer for all."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from gptailor.errors import ModelError, did_you_mean
from gptailor.models.load import head_name, output_layer
from gptailor.models.names import Base, first_line
from gptailor.types import FloatArray, IntArray


@dataclass(frozen=True, slots=True)
class Adapted:
    """A model ready to train. `trained` is what the optimizer sees, `plain` what batches go through.

    For LoRA the two differ: `trained` is peft's wrapper around `plain`, whose layers now carry adapters.
    """

    plain: PreTrainedModel
    trained: nn.Module
    head: nn.Module


def adapt_full(model: PreTrainedModel) -> Adapted:
    """Every weight may change."""
    return Adapted(plain=model, trained=model, head=head_of(model))


def head_of(model: PreTrainedModel) -> nn.Module:
    """What reads the last hidden state: the classification head, or the output layer over the vocabulary."""
    return getattr(model, head_name(model)) if _classifies(model) else output_layer(model)


def _classifies(model: PreTrainedModel) -> bool:
    return type(model).__name__.endswith("ForSequenceClassification")


def adapt_lora(
    model: PreTrainedModel, *, rank: int, alpha: float, dropout: float, targets: Sequence[str], seed: int
) -> Adapted:
    """Low-rank adapters on the linear layers of the body; a classifier's new head is trained whole.

    Raises:
        ModelError: a target named in the recipe isn't in the model.
    """
    from peft import LoraConfig, TaskType, get_peft_model

    found = linear_layers(model)
    for target in targets:
        if target not in found:
            raise ModelError(
                f"has no layer {target!r}; it has {', '.join(found)}.{did_you_mean(target, found)}",
                where="approach.targets",
                fix="Name layers of this base, or leave targets empty for all of them.",
            )
    new_head = head_name(model) if _classifies(model) else None  # peft puts its own module there
    settings = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # peft divides it; a float is fine
        lora_dropout=dropout,
        target_modules=list(targets) or found,
        modules_to_save=[new_head] if new_head else None,
        task_type=TaskType.SEQ_CLS if new_head else TaskType.CAUSAL_LM,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
    )
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    try:
        with warnings.catch_warnings():
            # peft asks transformers about gradient checkpointing by a name that is being retired.
            warnings.simplefilter("ignore", FutureWarning)
            wrapped: Any = get_peft_model(model, settings)
    except ValueError as error:
        raise ModelError(
            f"can't carry adapters: {first_line(error)}",
            where=f"base {model.config.name_or_path!r}",
            fix="Name its layers in approach.targets, or use another approach.",
        ) from None
    finally:
        torch.random.set_rng_state(state)
    return Adapted(
        plain=model, trained=wrapped, head=getattr(model, new_head) if new_head else output_layer(model)
    )


def linear_layers(model: PreTrainedModel) -> list[str]:
    """The short names of the body's linear and Conv1D layers, sorted; the head is not among them."""
    head = head_of(model)
    return sorted(
        {
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear | Conv1D) and module is not head
        }
    )


def merge_lora(adapted: Adapted) -> PreTrainedModel:
    """Adds the adapters into the fp32 weights and takes peft's wrapper off."""
    wrapped: Any = adapted.trained
    merged = wrapped.merge_and_unload(safe_merge=True)
    merged.eval()
    return merged  # type: ignore[no-any-return]


def adapter_state(adapted: Adapted) -> tuple[Any, dict[str, torch.Tensor]]:
    """peft's configuration and the adapters' weights, to be saved beside the merged model."""
    from peft import get_peft_model_state_dict

    wrapped: Any = adapted.trained
    # The embedding may have grown by the pad token; it isn't trained, and the head is saved anyway.
    saved = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    state = {name: tensor.detach().clone() for name, tensor in saved.items()}
    return wrapped.peft_config["default"], state


def save_adapter(folder: Path, adapter: tuple[Any, dict[str, torch.Tensor]], base: Base) -> None:
    """Writes the adapter as peft lays it out; `PeftModel.from_pretrained` loads it onto the base."""
    settings, state = adapter
    # By what others know it, not by where it lies here.
    settings.base_model_name_or_path = base.name
    settings.revision = base.revision if base.kind == "hub" else None
    folder.mkdir(parents=True, exist_ok=True)
    settings.save_pretrained(folder)
    save_file(
        {name: tensor.contiguous() for name, tensor in state.items()}, folder / "adapter_model.safetensors"
    )


def put_adapter(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """The base with a saved adapter on it, as any other tool would put it there."""
    from peft import PeftModel

    with warnings.catch_warnings():
        # peft asks transformers about gradient checkpointing by a name that is being retired.
        warnings.simplefilter("ignore", FutureWarning)
        wrapped: Any = PeftModel.from_pretrained(model, folder)
    wrapped.eval()
    return wrapped  # type: ignore[no-any-return]


def fit_frozen_head(
    features: FloatArray,
    labels: IntArray,
    *,
    num_labels: int,
    strength: float,
    class_weight: str | dict[int, float] | None = None,
    start: FloatArray | None = None,
) -> FloatArray:
    """(C, H) weights of a logistic head without intercept on (N, H) features.

    `start`: weights to begin with, such as those at another strength, which are found in half the steps.

    Features are scaled to unit root mean square for the fit and the scale is folded into the weights,
    so that the head reads the hidden state as it is. Classes absent from `labels` get weights that lose.
    """
    from sklearn.linear_model import LogisticRegression

    scale = _scale_of(features)
    present = np.unique(labels)
    # float64 and a tight tolerance: the same weights on every run of the same machine.
    solver = LogisticRegression(
        C=strength, fit_intercept=False, max_iter=2000, tol=1e-5, class_weight=class_weight, warm_start=True
    )
    if start is not None:
        begin = start[present] * scale
        solver.coef_ = begin if len(present) > 2 else begin[1:] - begin[:1]
    with _one_thread(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The number of unique classes")  # it takes many for a regression
        solver.fit(features / scale, labels)
    weights = np.zeros((num_labels, features.shape[1]))
    if len(present) == 2 and solver.coef_.shape[0] == 1:
        weights[present[0]], weights[present[1]] = -solver.coef_[0] / 2, solver.coef_[0] / 2
    else:
        weights[present] = solver.coef_
    folded: FloatArray = weights / scale
    return folded


def fit_frozen_label_heads(features: FloatArray, labels: IntArray, *, strength: float) -> FloatArray:
    """(C, H) weights of one logistic head for every column of the (N, C) labels, each 0 or 1.

    As `fit_frozen_head`, a label at a time. One that no row carries, or every row, has nothing to be fitted
    to: its logit is -10 or 10 at the mean row.
    """
    from sklearn.linear_model import LogisticRegression

    scale = _scale_of(features)
    scaled = features / scale
    mean = scaled.mean(axis=0)
    weights = np.empty((labels.shape[1], features.shape[1]))
    # Newton's method: a Hessian of (H, H) is cheap, and a few steps are exact where L-BFGS takes hundreds.
    solver = LogisticRegression(
        C=strength, fit_intercept=False, solver="newton-cholesky", max_iter=200, tol=1e-5
    )
    with _one_thread():
        for place, column in enumerate(labels.T):
            if column.min() == column.max():
                weights[place] = (20 * column[0] - 10) * mean / max(float(mean @ mean), 1e-8)
            else:
                weights[place] = solver.fit(scaled, column).coef_[0]
    folded: FloatArray = weights / scale
    return folded


def fit_frozen_number_head(features: FloatArray, numbers: FloatArray, *, strength: float) -> FloatArray:
    """(1, H) weights of a ridge regression without intercept on (N, H) features to (N,) numbers."""
    from sklearn.linear_model import Ridge

    scale = _scale_of(features)
    with _one_thread():
        solver = Ridge(alpha=1 / strength, fit_intercept=False, solver="svd").fit(features / scale, numbers)
    folded: FloatArray = solver.coef_[None] / scale
    return folded


def _scale_of(features: FloatArray) -> FloatArray:
    """(H,) root mean square of each feature."""
    scale: FloatArray = np.sqrt((features**2).mean(axis=0)) + 1e-8
    return scale


def _one_thread() -> Any:
    """These products are small; on a busy machine, threads that wait for each other took ten times as long.

    The weights then don't depend on the number of cores, either.
    """
    from threadpoolctl import threadpool_limits  # comes with scikit-learn

    return threadpool_limits(limits=1)


def set_head(model: PreTrainedModel, weights: FloatArray) -> None:
    """Puts (C, H) weights into the classification head, without a bias."""
    head = getattr(model, head_name(model))
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(weights))
        if head.bias is not None:
            head.bias.zero_()


def weights_of(adapted: Adapted, into: dict[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
    """A copy of the weights that may change, in main memory; into an older copy, where there is one."""
    copies = into or {}
    for name, parameter in adapted.trained.named_parameters():
        if not parameter.requires_grad:
            continue
        if name in copies:
            copies[name].copy_(parameter.detach())
        else:
            copies[name] = parameter.detach().to("cpu", copy=True)
    return copies


def put_weights(adapted: Adapted, weights: dict[str, torch.Tensor]) -> None:
    """Puts copied weights back."""
    with torch.no_grad():
        for name, parameter in adapted.trained.named_parameters():
            if name in weights:
                parameter.copy_(weights[name])
