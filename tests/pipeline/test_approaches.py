"""Every approach on every family: it finishes, loads anywhere, and moves what it should and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.pytorch_utils import Conv1D

import gptailor
import tiny
from gptailor.models.bundle import read_bundle
from gptailor.pipeline import training
from gptailor.pipeline.fit import fit_recipe
from gptailor.pipeline.place import Listener
from gptailor.pipeline.run import Run
from gptailor.recipe import build_recipe

APPROACHES = ("frozen", "full", "lora", "scratch")
ROWS = 330  # enough that settings aren't chosen by folds: one training each
LABELS = ["business", "health", "sports"]
TARGETS = {
    "gpt2": {"c_attn", "c_fc", "c_proj"},
    "gpt_neo": {"c_fc", "c_proj", "k_proj", "out_proj", "q_proj", "v_proj"},
    "llama": {"down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"},
    "qwen2": {"down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"},
}
TEXTS = [
    "the cup final in town 3",
    "the bank",
    "a vaccine trial and doctors again",
    "<|endoftext|> is text, and </s> too",
    "東京 🏆",
    "goal",
]
each_family = pytest.mark.parametrize("family", tiny.FAMILIES)


@dataclass(frozen=True)
class Fitted:
    """A finished run, and every parameter at its start and after each step, with whether it may move."""

    run: Run
    states: list[dict[str, tuple[Tensor, bool]]]


Fit = Callable[..., Fitted]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("approaches")


@pytest.fixture(scope="module")
def patch(folder: Path) -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPTAILOR_CACHE", str(folder / "cache"))
        yield patch


@pytest.fixture(scope="module")
def fit(folder: Path, tiny_bases: dict[str, Path], patch: pytest.MonkeyPatch) -> Fit:
    """Fits a tiny base in six steps, each combination once."""
    news = tiny.write_news(folder / "news.csv", rows=ROWS)
    fitted: dict[tuple[str, ...], Fitted] = {}
    original = training.training_steps

    def once(family: str, approach: str, *, source: Path = news, base: Path | None = None) -> Fitted:
        base = base or tiny_bases[family]
        key = (base.name, approach, source.stem)
        if key in fitted:
            return fitted[key]
        states: list[dict[str, tuple[Tensor, bool]]] = []

        def watched(model: nn.Module, *rest: Any, **named: Any) -> Iterator[Any]:
            def note() -> None:
                parameters = model.named_parameters()
                states.append({name: (p.detach().clone(), p.requires_grad) for name, p in parameters})

            note()
            for result in original(model, *rest, **named):
                note()
                yield result

        patch.setattr(training, "training_steps", watched)
        settings = {
            "base": str(base),
            "approach": approach,
            "train": {"length": "6 steps"},
            "evaluate": {"baselines": "none", "resamples": 100},
            "out": str(folder / "-".join(key)),
        }
        fitted[key] = Fitted(gptailor.fit(source, settings=settings), states)
        return fitted[key]

    return once


def load_anywhere(path: Path) -> tuple[Any, Any]:
    """As any other tool would: no word of ours."""
    return AutoModelForSequenceClassification.from_pretrained(path), AutoTokenizer.from_pretrained(path)


def logits_of(model: Any, tokenizer: Any, texts: Sequence[str]) -> np.ndarray[Any, Any]:
    with torch.no_grad():
        return np.asarray(model(**tokenizer(list(texts), padding=True, return_tensors="pt")).logits.double())


def weights_of(path: Path) -> dict[str, Tensor]:
    """A model folder's weights by the name they have in the body; the head as `score.weight`."""
    weights = load_file(path / "model.safetensors")
    return {name.removeprefix("transformer.").removeprefix("model."): w for name, w in weights.items()}


def moved(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> set[str]:
    """Names whose values differ; a row that was added for the pad token isn't looked at."""
    return {name for name in before if not torch.equal(before[name], after[name][: len(before[name])])}


@each_family
@pytest.mark.parametrize("approach", APPROACHES)
def test_a_fit_finishes_and_its_model_loads_and_answers_the_same_anywhere(
    family: str, approach: str, fit: Fit
) -> None:
    run = fit(family, approach).run
    assert run.report["approach"] == approach
    assert run.report["training"]["steps"] == (0 if approach == "frozen" else 6)
    model, tokenizer = load_anywhere(run.folder / "model")
    assert model.config.id2label == dict(enumerate(LABELS))
    assert model.config.label2id == {name: place for place, name in enumerate(LABELS)}
    assert not model.training
    encoded = [run.predictor.encode(text) for text in TEXTS]
    for text, item in zip(TEXTS, encoded, strict=True):
        assert tuple(tokenizer(text).input_ids) == item.sequences[0]
    ours = run.predictor.logits(encoded)
    assert np.abs(logits_of(model, tokenizer, TEXTS) - ours).max() < 1e-4
    for text, row in zip(TEXTS, ours, strict=True):
        assert np.abs(logits_of(model, tokenizer, [text])[0] - row).max() < 1e-4
    assert np.ptp(ours, axis=0).min() > 1e-3, "the answers don't depend on the texts"


@each_family
def test_a_saved_tokenizer_lets_no_tool_feed_more_than_the_run_reads(family: str, fit: Fit) -> None:
    folder = fit(family, "full").run.folder / "model"
    model, tokenizer = load_anywhere(folder)
    batch = tokenizer(["the bank " * 200], truncation=True, return_tensors="pt")
    assert batch.input_ids.shape == (1, read_bundle(folder).max_tokens)
    assert batch.input_ids.shape[1] < 64, "the model's own limit says nothing of the run's"
    with torch.no_grad():
        assert torch.isfinite(model(**batch).logits).all()


@each_family
def test_lora_adapts_all_linear_layers_of_the_body_and_nothing_else(
    family: str, fit: Fit, tiny_bases: dict[str, Path]
) -> None:
    adapter = fit(family, "lora").run.folder / "adapter"
    settings = json.loads((adapter / "adapter_config.json").read_text())
    assert set(settings["target_modules"]) == TARGETS[family]
    assert "score" in settings["modules_to_save"]
    body = AutoModelForSequenceClassification.from_pretrained(tiny_bases[family], num_labels=3).base_model
    layers = [name for name, part in body.named_modules() if isinstance(part, nn.Linear | Conv1D)]
    assert {name.rpartition(".")[2] for name in layers} == TARGETS[family]
    prefix = f"base_model.model.{'transformer' if family.startswith('gpt') else 'model'}."
    expected = {f"{prefix}{name}.lora_{side}.weight" for name in layers for side in "AB"}
    assert set(load_file(adapter / "adapter_model.safetensors")) == expected | {
        "base_model.model.score.weight"
    }


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks by an old name
@each_family
def test_the_adapter_on_the_base_gives_the_merged_models_logits(
    family: str, fit: Fit, tiny_bases: dict[str, Path]
) -> None:
    run = fit(family, "lora").run
    base = AutoModelForSequenceClassification.from_pretrained(tiny_bases[family], num_labels=3)
    adapted = PeftModel.from_pretrained(base, run.folder / "adapter").eval()
    merged, tokenizer = load_anywhere(run.folder / "model")
    for text in TEXTS:  # one by one: the plain base has no pad token
        difference = logits_of(adapted, tokenizer, [text]) - logits_of(merged, tokenizer, [text])
        assert np.abs(difference).max() < 1e-4
    with adapted.disable_adapter():
        difference = logits_of(adapted, tokenizer, TEXTS[:1]) - logits_of(merged, tokenizer, TEXTS[:1])
        assert np.abs(difference).max() > 1e-3, "the adapter does nothing"


@each_family
@pytest.mark.parametrize("approach", ["full", "lora", "scratch"])
def test_step_1_moves_every_trainable_tensor_and_no_other(family: str, approach: str, fit: Fit) -> None:
    states = fit(family, approach).states
    first, second = states[0], states[1]
    trainable = {name for name, (_, may_move) in first.items() if may_move}
    assert moved(*({n: t for n, (t, _) in state.items()} for state in (first, second))) == trainable
    if approach == "lora":
        assert all("lora_" in name or "modules_to_save" in name for name in trainable)
        assert any("original_module" in name for name in first.keys() - trainable)
    else:
        assert trainable == set(first)


@each_family
def test_lora_learns_both_its_matrices(family: str, fit: Fit) -> None:
    """At step 1 the gradient of A is zero because B is; from then on it must not only decay."""
    states = fit(family, "lora").states
    first, last = states[0], states[-1]
    for name in (name for name in first if "lora_A" in name):
        ratio = last[name][0] / first[name][0]
        assert ratio.std() > 1e-4, f"{name} only decays"


@each_family
def test_frozen_leaves_the_body_and_lora_leaves_what_it_does_not_adapt(
    family: str, fit: Fit, tiny_bases: dict[str, Path]
) -> None:
    base = {k: v for k, v in weights_of(tiny_bases[family]).items() if "lm_head" not in k}
    assert base
    assert not moved(base, weights_of(fit(family, "frozen").run.folder / "model"))
    changed = moved(base, weights_of(fit(family, "lora").run.folder / "model"))
    linear = {name for name in base if name.split(".")[-2] in TARGETS[family] and name.endswith("weight")}
    assert changed == linear


@each_family
def test_scratch_takes_nothing_but_the_shape_of_its_base(family: str, fit: Fit, tmp_path: Path) -> None:
    other = tiny.build_base(tmp_path / f"other-{family}", family, seed=9)
    one = weights_of(fit(family, "scratch").run.folder / "model")
    two = weights_of(fit(family, "scratch", base=other).run.folder / "model")
    assert one.keys() == two.keys()
    assert not moved(one, two)


# A run as a base.


@pytest.fixture(scope="module")
def mails(folder: Path) -> Path:
    """The news under other labels, and one fewer."""
    path = tiny.write_news(folder / "mails.csv", rows=ROWS)
    text = path.read_text().replace(",sports", ",later").replace(",business", ",urgent")
    path.write_text(text.replace(",health", ",urgent"))
    return path


@each_family
@pytest.mark.parametrize("approach", APPROACHES)
def test_a_run_is_a_base_for_other_labels(family: str, approach: str, fit: Fit, mails: Path) -> None:
    parent = fit(family, "full").run
    run = fit(family, approach, source=mails, base=parent.folder).run
    assert run.report["base"] == str(parent.folder)
    model, tokenizer = load_anywhere(run.folder / "model")
    assert model.config.id2label == {0: "later", 1: "urgent"}
    ours = run.predictor.logits([run.predictor.encode(text) for text in TEXTS])
    assert np.abs(logits_of(model, tokenizer, TEXTS) - ours).max() < 1e-4
    before, after = weights_of(parent.folder / "model"), weights_of(run.folder / "model")
    assert after.pop("score.weight").shape[0] == 2
    del before["score.weight"]
    assert {name: w.shape for name, w in before.items()} == {name: w.shape for name, w in after.items()}
    if approach == "frozen":
        assert not moved(before, after), "the body isn't the run's"
    if approach == "lora":
        assert len(moved(before, after)) < len(before)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_dropout_that_a_base_has_no_place_for_is_told(
    family: str, tiny_bases: dict[str, Path], tmp_path: Path
) -> None:
    said: list[str] = []
    recipe = build_recipe(
        {
            "data": {"train": str(tiny.write_news(tmp_path / "news.csv", rows=ROWS))},
            "base": str(tiny_bases[family]),
            "approach": "full",
            "train": {"length": "1 steps", "dropout": 0.2, "refit": False},
            "evaluate": {"baselines": "none", "resamples": 100},
            "out": str(tmp_path / "run"),
        }
    )
    fit_recipe(recipe, listener=Listener(say=said.append))
    assert any("no dropout outside attention" in line for line in said) == (family == "llama")
