"""The predictor: a bundle in memory, from text to calibrated probabilities.

One prompt maker for all: evaluation, `predict` and the server repair, encode and compute here, so what is
served is token for token what was trained and bit for bit what was evaluated.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer

from gptailor.data.repair import repair
from gptailor.data.tokenize import Encoder, TooLong, build_encoder, encode_texts, fit_length
from gptailor.errors import InputError, ModelError
from gptailor.launch import Precision
from gptailor.models.bundle import LONGEST_TEXT, find_model_folder, name_of, read_bundle
from gptailor.models.forward import FixedShapes, compute_features, tokens_per_pass
from gptailor.models.load import head_name, load_saved_classifier
from gptailor.models.names import served_version
from gptailor.models.packed import DTYPES, PackedGPT2, packed_gpt2
from gptailor.models.readout import Answer as Answer
from gptailor.models.readout import probabilities_of, read_answer
from gptailor.types import FloatArray

CHUNK = 2048  # texts in memory at once when a file is predicted
PROBE_TOLERANCE = 1e-3  # of logits in fp32
BF16_TOLERANCE = 0.1  # of probabilities in bf16; of the deviation where the answer is a number


@dataclass(frozen=True, slots=True)
class EncodedText:
    """A text ready to be computed: one sequence, or several windows of a long text."""

    sequences: tuple[tuple[int, ...], ...]
    num_tokens: int
    truncated: bool
    shape: tuple[int, int]  # texts of one shape may be computed together, shape[0] rows at a time
    rows: int = 1


class Predictor:
    """A loaded bundle. Immutable after loading; used from one thread at a time.

    Args:
        folder: A model folder.
        precision: `bf16` is faster, and its probabilities are off by a measured little (`verify_probes`).
    """

    max_characters = LONGEST_TEXT

    def __init__(self, folder: Path, *, precision: Precision = "fp32") -> None:
        self.bundle = read_bundle(folder)
        self.name = name_of(folder)
        self.precision = precision
        # Another precision gives other answers, so it has a version of its own.
        self.version = served_version(folder) + ("" if precision == "fp32" else f"-{precision}")
        self.label_names = tuple(self.bundle.label_names)
        self.form = self.bundle.answer
        self.threshold = self.bundle.threshold
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        self.encoder: Encoder = build_encoder(tokenizer.backend_tokenizer, pad_id=tokenizer.pad_token_id)
        self._folder = folder
        self._model = self._load(folder)

    def encode(self, text: str) -> EncodedText:
        """Repairs and encodes one text.

        Raises:
            InputError: nothing is left of it after cleaning, or the tokenizer knows none of it.
        """
        encoded = self.encode_many([text])[0]
        if encoded is None:
            raise InputError("the text is empty.", fix="Send some text.")
        return encoded

    def encode_many(self, texts: Sequence[str]) -> list[EncodedText | None]:
        """The same for many texts at once; None where nothing is left to read."""
        repaired = [repair(text, **self.bundle.clean) for text in texts]
        ids = encode_texts(self.encoder, repaired)
        return [self._fit(tokens) if tokens else None for tokens in ids]

    def run(self, batch: Sequence[EncodedText]) -> FloatArray:
        """(n, C) calibrated probabilities."""
        return self.probabilities(self.logits(batch))

    def logits(self, batch: Sequence[EncodedText]) -> FloatArray:
        """(n, C) logits before the temperature; a long text's windows are averaged."""
        sequences = [sequence for encoded in batch for sequence in encoded.sequences]
        flat = self._model.logits(sequences)
        counts = [len(encoded.sequences) for encoded in batch]
        if len(flat) == len(batch):
            return flat
        return np.stack([part.mean(axis=0) for part in np.split(flat, np.cumsum(counts)[:-1])])

    def probabilities(self, logits: FloatArray) -> FloatArray:
        """What the logits mean, with the bundle's temperature, row by row in float64."""
        return probabilities_of(logits, self.form, temperature=self.bundle.temperature)

    def predict(self, texts: Iterable[str]) -> Iterator[Answer | None]:
        """One answer per text, in order, in constant memory; None for an empty text."""
        held: list[str] = []
        for text in texts:
            held.append(text)
            if len(held) == CHUNK:
                yield from self._predict_chunk(held)
                held = []
        yield from self._predict_chunk(held)

    def answer(self, probabilities: FloatArray, *, truncated: bool) -> Answer:
        """Names one row of probabilities. A single label is always the most probable one."""
        return read_answer(
            probabilities, self.label_names, self.form, threshold=self.threshold, truncated=truncated
        )

    def verify_probes(self) -> float:
        """Replays the stored probes; returns the largest difference of their probabilities.

        Raises:
            ModelError: this machine doesn't give the answers that were stored.
        """
        off = 0.0
        for probe in self.bundle.probes:
            encoded = self.encode(probe["text"])
            if [list(sequence) for sequence in encoded.sequences] != probe["token_ids"]:
                raise ModelError(
                    "a stored probe is tokenized differently than in training.",
                    where=str(self.bundle.path),
                    fix="The tokenizer was changed; fit again.",
                )
            found, stored = self.logits([encoded]), np.array([probe["logits"]])
            difference = float(np.abs(found - stored).max())
            apart = np.abs(self.probabilities(found) - self.probabilities(stored))
            off = float(np.maximum(off, apart.max()))  # Python's own would pass over NaN
            if self.precision == "fp32" and not difference <= PROBE_TOLERANCE:
                raise ModelError(
                    f"a stored probe is answered differently (logits differ by {difference:.2g}).",
                    where=str(self.bundle.path),
                    fix="The weights or the libraries changed; fit again.",
                )
            if not off <= BF16_TOLERANCE * (self.form.deviation if self.form.kind == "score" else 1):
                raise ModelError(
                    f"in {self.precision} a stored probe's answer is off by {off:.2g}.",
                    where=str(self.bundle.path),
                    fix="Use fp32, which is the default.",
                )
        return off

    def _predict_chunk(self, texts: Sequence[str]) -> Iterator[Answer | None]:
        encoded = self.encode_many(texts)
        readable = [item for item in encoded if item is not None]
        rows = iter(self.run(readable)) if readable else iter(())
        for item in encoded:
            yield None if item is None else self.answer(next(rows), truncated=item.truncated)

    def _fit(self, ids: Sequence[int]) -> EncodedText:
        # A file's rows can't be dropped when they are predicted, so `drop` reads the head here.
        too_long: TooLong = "window" if self.bundle.too_long == "window" else "cut"
        fitted = fit_length(self.encoder, ids, max_tokens=self.bundle.max_tokens, too_long=too_long)
        sequences = tuple(tuple(tokens) for tokens, _ in fitted)
        rows, shape = self._model.place([len(sequence) for sequence in sequences])
        return EncodedText(
            sequences=sequences,
            num_tokens=sum(map(len, sequences)),
            truncated=any(cut for _, cut in fitted),
            shape=shape,
            rows=rows,
        )

    def features(self, texts: Sequence[str]) -> FloatArray:
        """(N, H) hidden states that the head reads, of texts that can be read; of a long one its head's."""
        encoded = self.encode_many(texts)
        sequences = [item.sequences[0] for item in encoded if item is not None]
        return compute_features(load_saved_classifier(self._folder), sequences, pad_id=self.encoder.pad_id)

    def _load(self, folder: Path) -> PackedGPT2 | FixedShapes:
        """The model in the form that computes: GPT-2 packed where that keeps every bit, else as it is."""
        model: Any = load_saved_classifier(folder)
        head = getattr(model, head_name(model))
        packed = packed_gpt2(model, head, precision=self.precision)
        if packed is not None:
            return packed
        narrow(model, self.precision)
        return FixedShapes(
            model,
            head,
            max_tokens=self.bundle.max_tokens,
            pad_id=self.encoder.pad_id,
            per_pass=tokens_per_pass(model),
        )


def narrow(model: Any, precision: Precision) -> None:
    """Weights in this precision. Rotary frequencies stay as they are: in bf16 the two-thousandth position
    would be most of a radian off."""
    kept = {name: buffer for name, buffer in model.named_buffers() if name.endswith("inv_freq")}
    model.to(DTYPES[precision])
    for name, buffer in kept.items():
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, buffer)


def load_predictor(run: Path, *, precision: Precision = "fp32") -> Predictor:
    """Loads a run folder or a model folder and replays its probes.

    Raises:
        ModelError: it isn't a finished run, is damaged, or answers differently here.
    """
    folder = find_model_folder(run)
    if read_bundle(folder).task != "classification":
        raise ModelError(
            "is a language model; it has no labels to answer with.",
            where=str(run),
            fix='Use `gptailor predict RUN --input "..."` to see how it goes on with a text.',
        )
    predictor = Predictor(folder, precision=precision)
    predictor.verify_probes()
    return predictor
