"""The lean body is GPT-2's: hidden states and gradients are transformers' own, however it is called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel

import gptailor.models.lean as lean_body
from gptailor.launch import Precision, precision_context
from gptailor.models.approach import adapt_lora
from gptailor.models.dropout import hashed, stream
from gptailor.models.lean import LeanBody, can_compile, coarseness, grid_of, is_lean, lean_training, states_at
from gptailor.models.load import recompute_activations
from gptailor.train.loop import accumulate, training_steps
from gptailor.train.loss import language_loss
from gptailor.train.optimize import build_optimizer
from gptailor.train.workers import Workers
from gptailor.types import Batch

VOCABULARY = 120


def build(*, dropout: float = 0.0, attention_dropout: float = 0.0, **changes: Any) -> Any:
    """A classifier whose attention and norms have an opinion."""
    torch.manual_seed(0)
    settings = {"n_layer": 2, "n_embd": 32, "n_head": 4, "n_positions": 400, "vocab_size": VOCABULARY}
    model = GPT2ForSequenceClassification(
        GPT2Config(
            **(settings | changes),
            resid_pdrop=dropout,
            embd_pdrop=dropout,
            attn_pdrop=attention_dropout,
            pad_token_id=0,
        )
    )
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return model.train()


def packed_positions() -> Tensor:
    """Three texts in a row, then two."""
    return torch.tensor([[*range(5), *range(8), *range(7)], [*range(12), *range(8)]])


def batch_of(input_ids: Tensor, lengths: list[int] | None = None, positions: Tensor | None = None) -> Batch:
    rows, width = input_ids.shape
    lengths = lengths or [width] * rows
    return Batch(
        input_ids=input_ids,
        last=torch.tensor(lengths) - 1,
        num_targets=rows,
        num_tokens=sum(lengths),
        rows=tuple(str(row) for row in range(rows)),
        positions=positions,
    )


def padded(positions: Tensor | None = None) -> Batch:
    return batch_of(torch.randint(1, VOCABULARY, (4, 20)), [20, 3, 11, 1], positions)


def packed_and_padded() -> Batch:
    positions = torch.arange(20).repeat(4, 1)
    positions[0, 12:] = torch.arange(8)
    positions[2, 4:] = torch.arange(16)
    return padded(positions)


BATCHES: dict[str, Callable[[], Batch]] = {
    "short": lambda: batch_of(torch.randint(1, VOCABULARY, (3, 20))),
    "one row": lambda: batch_of(torch.randint(1, VOCABULARY, (1, 9))),
    "one token": lambda: batch_of(torch.randint(1, VOCABULARY, (1, 1))),
    "long": lambda: batch_of(torch.randint(1, VOCABULARY, (2, 300))),
    "packed": lambda: batch_of(torch.randint(1, VOCABULARY, (2, 20)), positions=packed_positions()),
    "padded": padded,
    "packed and padded": packed_and_padded,
}


def real_places(batch: Batch) -> Tensor:
    """Flat places of all real tokens."""
    width = batch.input_ids.shape[1]
    return (torch.arange(width) <= batch.last[:, None]).flatten().nonzero()[:, 0]


def step_of(model: Any, batch: Batch, leaves: list[Tensor], places: Tensor | None = None) -> list[Tensor]:
    """Hidden states, then the gradients of a sum over them that no symmetry makes zero."""
    hidden = states_at(model, batch, real_places(batch) if places is None else places)
    slope = torch.sin(torch.arange(hidden.numel(), dtype=torch.float64)).view_as(hidden).to(hidden.dtype)
    return [hidden, *gradients((hidden * slope).sum(), leaves)]


def gradients(value: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    """Dense, as transformers' are."""
    found = torch.autograd.grad(value, leaves)
    return [slope.to_dense() if slope.is_sparse else slope for slope in found]


def assert_near(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    """Relative to each tensor's largest value; one that is all rounding is measured against 1e-3."""
    for one, other in zip(found, expected, strict=True):
        scale = max(other.abs().max().item(), 1e-3)
        assert (one.to(other.dtype) - other).abs().max().item() <= tolerance * scale


@pytest.mark.parametrize("kind", BATCHES)
@pytest.mark.parametrize(("dtype", "bar"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_hidden_states_and_gradients_are_transformers(kind: str, dtype: torch.dtype, bar: float) -> None:
    model = build().to(dtype)
    batch = BATCHES[kind]()
    leaves = list(model.base_model.parameters())
    expected = step_of(model, batch, leaves)
    with lean_training(model, precision="fp32") as lean:
        assert lean is not None
        found = step_of(model, batch, leaves)
    assert_near(found, expected, bar)
    assert torch.equal(step_of(model, batch, leaves)[0], expected[0]), "transformers' own code is back"


WANTED = {
    "last": [19, 22, 50, 60],
    "some": [0, 1, 11, 12, 13, 22, 44, 50, 60],
    "one": [50],
    "turned": [60, 1, 44],
}


@pytest.mark.parametrize("kind", ["padded", "packed and padded"])
@pytest.mark.parametrize("places", WANTED)
@pytest.mark.parametrize("layers", [1, 2])
def test_what_is_asked_for_is_transformers_and_padding_nobodys(kind: str, places: str, layers: int) -> None:
    model = build(n_layer=layers).double()
    batch, wanted = BATCHES[kind](), torch.tensor(WANTED[places])
    leaves = list(model.base_model.parameters())
    expected = step_of(model, batch, leaves, wanted)
    with lean_training(model, precision="fp32"):
        found = step_of(model, batch, leaves, wanted)
        batch.input_ids[1, 3:] = 7
        batch.input_ids[3, 1:] = 9
        others = step_of(model, batch, leaves, wanted)
    assert_near(found, expected, 1e-10)
    assert all(torch.equal(one, other) for one, other in zip(found, others, strict=True))


def build_language_model(model: Any) -> Any:
    """With the classifier's body; its output layer is the embedding."""
    language_model: Any = GPT2LMHeadModel(model.config).to(model.dtype)
    language_model.transformer.load_state_dict(model.transformer.state_dict())
    return language_model.train()


def gradients_of_a_step(
    model: Any, lean: LeanBody | None, *, workers: int = 1, precision: Precision = "fp32"
) -> list[Tensor]:
    """Of all weights but a classifier's head, over four micro-batches; some tokens are learned twice."""
    torch.manual_seed(1)
    places = torch.tensor([0, 2, 19, 22, 42])
    batches = [
        replace(batch, learned=places, targets=torch.tensor([5, 1999, 5, 7, 8]), num_targets=len(places))
        for batch in [padded(), BATCHES["short"](), padded(), padded()]
    ]

    def loss(batch: Batch) -> tuple[Tensor, int]:
        if isinstance(model, GPT2LMHeadModel):
            return language_loss(model, model.lm_head, batch), batch.num_targets
        return states_at(model, batch, places).square().sum(), batch.num_targets

    model.zero_grad()
    weights = [weight for name, weight in model.named_parameters() if not name.startswith("score")]
    context = partial(precision_context, precision, "cpu")
    accumulate(batches, loss, weights=weights, precision=context, workers=Workers(workers), lean=lean)
    assert not any(weight.grad is None or weight.grad.is_sparse for weight in weights)
    return [weight.grad.clone() for weight in weights if weight.grad is not None]


@pytest.mark.parametrize("tied", [False, True], ids=["classifier", "language model"])
@pytest.mark.parametrize("workers", [1, 2])
def test_micro_batches_add_up_to_transformers_gradients(tied: bool, workers: int) -> None:
    """A vocabulary so large that its gradient is sparse, and one that is the output layer's, too."""
    model = build(vocab_size=2000).double()
    if tied:
        model = build_language_model(model)
    expected = gradients_of_a_step(model, None, workers=workers)
    with lean_training(model, precision="fp32") as lean:
        assert_near(gradients_of_a_step(model, lean, workers=workers), expected, 1e-10)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_output_layers_copy_is_as_near_to_the_truth_as_autocast_is(workers: int) -> None:
    """The copy's gradient and that of what was looked up are both the embedding's."""
    model = build_language_model(build(vocab_size=2000))
    truth = gradients_of_a_step(model, None)
    autocast = gradients_of_a_step(model, None, precision="bf16")
    with lean_training(model, precision="bf16") as lean:
        assert lean is not None
        assert model.transformer.wte.weight in lean.copies
        found = gradients_of_a_step(model, lean, workers=workers, precision="bf16")

    def errors(step: list[Tensor]) -> list[float]:
        return [((one - true).norm() / true.norm()).item() for one, true in zip(step, truth, strict=True)]

    assert 0 < sum(errors(found)) < 1.3 * sum(errors(autocast))
    assert errors(found)[0] < 1.3 * errors(autocast)[0], "the embedding's"


def test_a_gradient_that_is_kept_is_that_of_its_step_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = {step: [padded(), padded()] for step in (1, 2, 3)}

    def moved(large: int) -> list[Tensor]:
        monkeypatch.setattr(lean_body, "LARGE", large)
        model = build(vocab_size=2000).double()
        optimizer = build_optimizer(model, learning_rate=0.01, head_learning_rate=0.01, weight_decay=0.1)
        embedding = model.transformer.wte.weight

        def loss(batch: Batch) -> tuple[Tensor, int]:
            return states_at(model, batch, torch.tensor([0, 2, 22])).square().sum(), batch.num_targets

        with lean_training(model, precision="fp32") as lean:
            for result in training_steps(
                model,
                optimizer,
                batches=batches.__getitem__,
                loss=loss,
                rate=lambda _: 1.0,
                steps=range(1, 4),
                lean=lean,
            ):
                assert (embedding.grad is not None) == (large == 0), result.step
        assert embedding.grad is None, "it is kept no longer than training lasts"
        return list(model.parameters())

    assert_near(moved(0), moved(2**62), 1e-12)


@given(st.lists(st.integers(1, 70), min_size=1, max_size=12), st.integers(0, 9))
@settings(deadline=None)
def test_a_grid_has_all_tokens_little_padding_and_one_of_few_sizes(lengths: list[int], more: int) -> None:
    width = max(lengths) + more
    grid = grid_of(torch.tensor(lengths), width)
    count, size = sum(lengths), len(grid.places)
    assert count <= size <= min(count * 1.07, len(lengths) * width)
    assert size % coarseness(count) == 0 or size == len(lengths) * width
    real = {row * width + place for row, length in enumerate(lengths) for place in range(length)}
    assert real <= set(grid.places.tolist())
    assert torch.equal(grid.token.flatten()[grid.places], torch.arange(size))
    assert grid.is_computed.flatten().nonzero()[:, 0].equal(grid.places)


@pytest.mark.parametrize("kind", ["short", "packed", "padded"])
def test_adapters_are_pefts(kind: str) -> None:
    model = build().double()
    adapted = adapt_lora(model, rank=3, alpha=5, dropout=0.0, targets=(), seed=0)
    leaves = [w for name, w in adapted.trained.named_parameters() if "lora" in name]
    with torch.no_grad():
        for weight in leaves:
            weight.normal_()
    batch = BATCHES[kind]()
    expected = step_of(model, batch, leaves)
    with lean_training(model, precision="fp32") as lean:
        assert lean is not None
        found = step_of(model, batch, leaves)
    assert_near(found, expected, 1e-10)


def test_bf16_is_as_near_to_the_truth_as_autocast_is() -> None:
    model = build()
    batch = BATCHES["padded"]()
    leaves = list(model.base_model.parameters())
    truth = step_of(model, batch, leaves)
    with precision_context("bf16", "cpu"):
        autocast = step_of(model, batch, leaves)
    with lean_training(model, precision="bf16") as lean:
        assert lean is not None
        copies = dict(lean.leaves())
        found = step_of(model, batch, [copies.get(leaf, leaf) for leaf in leaves])
    assert {copy.dtype for copy in copies.values()} == {torch.bfloat16}
    assert len(copies) == 8 * 2, "the matrices and their biases, in every layer"

    def error(step: list[Tensor]) -> float:
        return sum(
            ((one.float() - true).norm() / true.norm()).item() for one, true in zip(step, truth, strict=True)
        )

    assert 0 < error(found) < 1.3 * error(autocast)


def test_copies_follow_the_weights() -> None:
    model = build()
    with lean_training(model, precision="bf16") as lean:
        assert lean is not None
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(1.5)
        lean.refresh()
        for weight, copy in lean.leaves():
            assert torch.equal(copy, weight.bfloat16())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_evaluation_runs_transformers_own_code(precision: Precision) -> None:
    model = build()
    batch = BATCHES["padded"]()
    with torch.inference_mode():
        expected = states_at(model.eval(), batch, real_places(batch))
    with lean_training(model, precision=precision), torch.inference_mode():
        for training in (False, True):
            found = states_at(model.train(training), batch, real_places(batch))
            assert torch.equal(found, expected)


def test_dropout_is_a_function_of_the_stream() -> None:
    model = build(dropout=0.2, attention_dropout=0.3)
    batch = BATCHES["padded"]()

    def hidden(seed: int) -> Tensor:
        with stream(seed):
            return states_at(model, batch, real_places(batch))

    with lean_training(model, precision="fp32"):
        torch.manual_seed(1)
        first = hidden(7)
        torch.manual_seed(2)
        assert torch.equal(hidden(7), first)
        assert not torch.equal(hidden(8), first)


@pytest.mark.parametrize("which", ["dropout", "attention_dropout"])
def test_dropout_leaves_the_mean_as_it_is(which: str) -> None:
    """Over many streams, the first layer's output is what it is without; its spread is transformers'."""
    model = build(**{which: 0.3}, n_layer=1, n_embd=16, n_head=2)
    batch = batch_of(torch.randint(1, VOCABULARY, (1, 12)).expand(64, -1))

    def seen() -> Tensor:
        states = []
        for seed in range(12):
            torch.manual_seed(seed)
            with stream(seed):
                states.append(states_at(model, batch, real_places(batch)).detach().view(64, 12, -1))
        return torch.cat(states)

    theirs = seen()
    with lean_training(model, precision="fp32"):
        ours = seen()
    spread = theirs.std(0)
    assert ((ours.mean(0) - theirs.mean(0)).abs() <= 6 * spread / len(theirs) ** 0.5 + 1e-3).all()
    assert (ours.std(0) / spread).mean().item() == pytest.approx(1, abs=0.05)


def test_hashed_numbers_look_random() -> None:
    """Even bits, and neither neighbors nor streams that know of each other."""
    seeds = torch.tensor([1, 2, 123_456_789, -5], dtype=torch.int32)
    streams = torch.stack([hashed(torch.Size((300, 400)), seed).flatten() for seed in seeds]).double() / 2**31
    size = streams.shape[1]
    assert (streams.mean(1).abs() < 5 * 3**-0.5 / size**0.5).all()
    assert (streams.var(1) - 1 / 3).abs().max() < 0.01
    for lag in (1, 2, 400):
        together = (streams[:, :-lag] * streams[:, lag:]).mean(1) * 3
        assert (together.abs() < 5 / size**0.5).all()
    assert (torch.corrcoef(streams) - torch.eye(4)).abs().max() < 5 / size**0.5


@pytest.mark.parametrize(
    "changes",
    [
        {"activation_function": "relu"},
        {"scale_attn_by_inverse_layer_idx": True},
        {"reorder_and_upcast_attn": True},
        {"scale_attn_weights": False},
    ],
    ids=str,
)
def test_other_kinds_of_gpt2_are_left_alone(changes: dict[str, Any]) -> None:
    model = build(**changes)
    assert not is_lean(model)
    with lean_training(model, precision="fp32") as lean:
        assert lean is None


@pytest.mark.skipif(not can_compile(), reason="no C++ compiler here")
@pytest.mark.filterwarnings("default")  # torch's compiler warns of what it does itself
def test_compiled_is_what_it_was() -> None:
    """Values and gradients; the dropout of compiled code is another, and as random."""
    model = build()
    batch = BATCHES["padded"]()
    leaves = list(model.base_model.parameters())
    expected = step_of(model, batch, leaves)
    with lean_training(model, precision="fp32", compiled=True):
        found = step_of(model, batch, leaves)
    assert_near(found, expected, 1e-5)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_recomputed_activations_change_no_gradient(dropout: float) -> None:
    model = build(dropout=dropout, attention_dropout=dropout)
    batch = BATCHES["padded"]()
    leaves = list(model.base_model.parameters())

    def step() -> list[Tensor]:
        with lean_training(model, precision="fp32"), stream(5):
            return step_of(model, batch, leaves)

    expected = step()
    recompute_activations(model)
    assert_near(step(), expected, 1e-6)
