"""ONNX: a saved model as a graph for onnxruntime, for texts of any number and length."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gptailor.errors import MissingExtraError, ModelError
from gptailor.models.load import head_name, load_saved_classifier, load_saved_language_model
from gptailor.models.names import first_line
from gptailor.models.replay import probe_difference, refuse_difference
from gptailor.types import Bundle, FloatArray

# A file of this format ends at 2 GiB; larger weights lie beside it.
LARGEST_IN_ONE_FILE = 1_900_000_000
LONGEST_CHECKED = 1024  # tokens; a language model's logits of more would fill the memory

Run = Callable[[Sequence[Sequence[int]]], list[FloatArray]]  # sequences to the logits of each


class ClassifierGraph(nn.Module):
    """What the predictor computes: the state at the last real token, the head, the temperature.

    The second output holds the numbers themselves where the model answers with a number.
    """

    inputs, outputs = ("input_ids", "last"), ("logits", "probabilities")

    def __init__(self, model: Any, bundle: Bundle) -> None:
        super().__init__()
        self.model, self.head = model.base_model, getattr(model, head_name(model))
        self.temperature, self.form = bundle.temperature, bundle.answer

    def forward(self, input_ids: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T) token ids padded on the right and (B,) positions of the last real ones to twice (B, C)."""
        hidden = self.model(input_ids=input_ids, use_cache=False).last_hidden_state
        logits = self.head(hidden[torch.arange(last.shape[0]), last])
        if self.form.kind == "score":
            return logits, self.form.mean + self.form.deviation * logits
        scaled = logits / self.temperature
        return logits, scaled.sigmoid() if self.form.kind == "multiple" else scaled.softmax(-1)


class LanguageGraph(nn.Module):
    """Logits of the next token at every position, without a key-value cache."""

    inputs, outputs = ("input_ids",), ("logits",)

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Tensor:
        """(B, T) token ids, padded on the right if at all, to (B, T, V) logits."""
        logits: Tensor = self.model(input_ids=input_ids, use_cache=False).logits
        return logits


Graph = ClassifierGraph | LanguageGraph


def write_onnx(bundle: Bundle, path: Path) -> dict[str, Any]:
    """Writes a bundle's model to `path` and compares it, run by onnxruntime, with what PyTorch computes.

    Returns what the graph takes and gives, and the largest differences of logits: on the stored probes,
    and on random texts in batches of several sizes.

    Raises:
        MissingExtraError: onnx, onnxscript or onnxruntime isn't installed.
        ModelError: PyTorch can't export this architecture, or the file answers differently.
    """
    _need_libraries()
    graph = _build_graph(bundle)
    opset = _export(graph, path, where=str(bundle.path))
    run = _onnx_runner(path, graph)
    by_probes = probe_difference(bundle.probes, lambda ids: run([ids])[0])
    by_chance = _random_difference(graph, run, max_tokens=min(bundle.max_tokens, LONGEST_CHECKED))
    return {
        "parity": refuse_difference(float(np.max([by_probes, by_chance])), where=bundle.path),
        "parity_random": by_chance,
        "inputs": list(graph.inputs),
        "outputs": list(graph.outputs),
        "opset": opset,
    }


def _need_libraries() -> None:
    for library in ("onnx", "onnxscript", "onnxruntime"):
        try:
            __import__(library)
        except ImportError:
            raise MissingExtraError(library, "onnx") from None


def _build_graph(bundle: Bundle) -> Graph:
    if bundle.task == "classification":
        return ClassifierGraph(load_saved_classifier(bundle.path), bundle)
    return LanguageGraph(load_saved_language_model(bundle.path))


def _export(graph: Graph, path: Path, *, where: str) -> int:
    """Writes the file; returns its version of the operators."""
    # Two texts of several tokens: torch.export takes a 0 or a 1 for a constant.
    example = tuple(
        torch.tensor([[0, 1, 2, 3], [3, 2, 1, 0]] if n == "input_ids" else [3, 2]) for n in graph.inputs
    )
    any_size = torch.export.Dim.DYNAMIC
    sizes: dict[str, Any] = {"input_ids": {0: any_size, 1: any_size}, "last": {0: any_size}}
    with _quietly():
        try:
            program: Any = torch.onnx.export(
                graph.eval(),
                example,
                dynamo=True,
                dynamic_shapes={name: sizes[name] for name in graph.inputs},
                input_names=list(graph.inputs),
                output_names=list(graph.outputs),
                verbose=False,
            )
        except (
            Exception
        ) as error:  # torch.export's and the exporter's own kinds, and what a model's code raises
            raise ModelError(
                f"PyTorch can't turn this architecture into ONNX: {first_line(error)}",
                where=where,
                fix="Use --to hf, or report it with RUN/model/config.json.",
            ) from None
    size = sum(weight.nbytes for weight in graph.parameters())
    program.save(path, external_data=size > LARGEST_IN_ONE_FILE)
    return int(program.model.opset_imports[""])


@contextmanager
def _quietly() -> Iterator[None]:
    """Without what the exporter says to its own developers."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message=".*LeafSpec", category=FutureWarning
            )  # in torch's own copies
            yield
    finally:
        logger.setLevel(level)


def _onnx_runner(path: Path, graph: Graph) -> Run:
    """The file as onnxruntime runs it on the processor."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(sequences: Sequence[Sequence[int]]) -> list[FloatArray]:
        found = session.run(["logits"], {n: t.numpy() for n, t in _inputs(graph, sequences).items()})
        return _rows(graph, found[0], sequences)

    return run


def _torch_runner(graph: Graph) -> Run:
    def run(sequences: Sequence[Sequence[int]]) -> list[FloatArray]:
        with torch.inference_mode():
            found = graph(**_inputs(graph, sequences))
        return _rows(graph, (found[0] if isinstance(found, tuple) else found).numpy(), sequences)

    return run


def _inputs(graph: Graph, sequences: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """Sequences padded on the right. What stands there doesn't matter: no token sees what comes after it."""
    ids = torch.zeros(len(sequences), max(map(len, sequences)), dtype=torch.long)
    for row, sequence in zip(ids, sequences, strict=True):
        row[: len(sequence)] = torch.tensor(list(sequence))
    last = torch.tensor([len(sequence) - 1 for sequence in sequences])
    return {name: value for name, value in {"input_ids": ids, "last": last}.items() if name in graph.inputs}


def _rows(graph: Graph, logits: Any, sequences: Sequence[Sequence[int]]) -> list[FloatArray]:
    """The logits of each sequence, without those of its padding."""
    logits = np.asarray(logits, np.float64)
    if isinstance(graph, ClassifierGraph):
        return list(logits)
    return [row[: len(sequence)] for row, sequence in zip(logits, sequences, strict=True)]


def _random_difference(graph: Graph, run: Run, *, max_tokens: int) -> float:
    """The largest difference from PyTorch, which sees each text alone, on batches of random texts."""
    rng = np.random.default_rng(0)
    vocabulary = int(graph.model.config.vocab_size)
    middle = max(1, max_tokens // 3)
    differences = []
    for lengths in ([1], [max_tokens], [2, middle, 1], rng.integers(1, middle + 1, size=5).tolist()):
        sequences = [rng.integers(vocabulary, size=length).tolist() for length in lengths]
        alone = [_torch_runner(graph)([sequence])[0] for sequence in sequences]
        differences += [np.abs(a - b).max() for a, b in zip(run(sequences), alone, strict=True)]
    return float(np.max(differences))
