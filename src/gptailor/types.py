"""The plain types that flow from file to bundle. No behaviour, no torch import.

RawExample --task--> Example --tokenize--> TokenizedExample --batch--> Batch
   --train--> StepResult ... --> Checkpoint --> EvalReport --> Bundle --> Predictor
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor

Task = Literal["classification", "completion", "language", "chat", "preference"]
Part = Literal["train", "validation", "test"]
PARTS: tuple[Part, ...] = ("train", "validation", "test")
# What a classification row is answered with: one label, a set of labels, or a number.
AnswerKind = Literal["single", "multiple", "score"]
# Such an answer as the trainer sees it: the label's number; 0 or 1 for every label, (C,); the number itself.
Label = int | tuple[int, ...] | float
IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

# Why a row is not used. A closed list: read = train + validation + test + the sum of these.
Reason = Literal[
    "unreadable",  # the parser could not make a row of it
    "no_text",
    "no_label",
    "duplicate",  # same text and label as an earlier row
    "conflict",  # same text, different labels
    "rare_label",
    "leak_exact",  # stands in the given test or validation file
    "leak_near",
    "leak_group",  # its group stands there
    "too_long",  # its answer doesn't fit; any other row only with too_long: drop
    "nothing_to_learn",  # not one token that the loss could see
    "reviewed",  # a person's corrections say drop
]


@dataclass(frozen=True, slots=True)
class RawExample:
    """One row as it stands in the file, every value still text."""

    fields: Mapping[str, str]
    source: str  # the file's name as the person gave it
    row: int  # the record's line in the file, from 1 (the record's index for JSON arrays and Parquet)


@dataclass(frozen=True, slots=True)
class RejectedRow:
    """A row that could not be read or used, and why."""

    source: str
    row: int
    reason: Reason
    detail: str
    # What could be read of it, where someone asks for its other columns.
    fields: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of text, and whether the loss looks at its tokens.

    Only where `markers` is true do the strings of control tokens (`<|im_end|>`) become these tokens; anywhere
    else they are what a person wrote, and stay text. Where `cut` is true no token reaches over the beginning
    of the segment (none ever reaches from what isn't learned into what is, or back): an answer begins there,
    learned or not, and when it was made, what stands before it had been encoded alone. `left_out` counts the
    tokens that a window in place of a long context lacks.
    """

    text: str
    learn: bool
    markers: bool = False
    cut: bool = False
    left_out: int = 0


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """What the rows of a classification run are answered with, and how an answer is read off the head."""

    kind: AnswerKind = "single"
    separator: str = ""  # multiple: stands between the labels of an answer; empty: a JSON array is written
    cutoff: float = 0.5  # multiple: a label is given from this probability on
    mean: float = 0.0  # score: the head learns (number - mean) / deviation, both of the training rows
    deviation: float = 1.0


@dataclass(frozen=True, slots=True)
class Example:
    """What a row means for a task."""

    segments: tuple[Segment, ...]
    source: str
    row: int
    label: Label | None = None
    rejected: tuple[Segment, ...] = ()  # preference: the answer that was not chosen
    group: str = ""  # rows of one group stay together; empty: for itself
    time: str = ""
    slices: tuple[tuple[str, str], ...] = ()  # columns that the test is scored by, with its values

    @property
    def text(self) -> str:
        return "".join(segment.text for segment in self.segments)


@dataclass(frozen=True, slots=True)
class TokenizedExample:
    """Token ids of one example (or of one window of it).

    Shapes: `token_ids` (T,), `learn` (T,) bool. `cut` counts the tokens that did not fit.
    """

    token_ids: npt.NDArray[np.int32]
    learn: npt.NDArray[np.bool_]
    source: str
    row: int
    label: Label | None = None
    cut: int = 0
    group: str = ""  # as of the example: also of what is cut into folds, none is cut through


@dataclass(frozen=True, slots=True)
class Batch:
    """What one forward pass sees. Padding is on the right and known by position, never by token id.

    Shapes: `input_ids` (B, T); `last` (B,) the position of each row's last real token;
    `labels` (B,) for classification, (B, C) where a row may carry several. For the text tasks `learned` (L,)
    are the flat positions in (B, T) whose next token the loss looks at, `targets` (L,) those next tokens, and
    `positions` (B, T) start again at 0 with every document of a packed row.
    """

    input_ids: Tensor
    last: Tensor
    num_targets: int
    num_tokens: int  # real ones, padding not counted
    rows: tuple[str, ...]  # "file:row" of each example, for error messages
    labels: Tensor | None = None
    targets: Tensor | None = None
    learned: Tensor | None = None
    positions: Tensor | None = None
    reference: Tensor | None = None  # preference: (B,) log-likelihoods of the answers under the base


@dataclass(frozen=True, slots=True)
class StepResult:
    """One optimizer step. `loss` is in nats per target over the whole step."""

    step: int
    loss: float
    grad_norm: float
    learning_rate: float
    num_targets: int
    num_tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A whole, verified checkpoint on disk."""

    path: Path
    step: int
    score: float | None  # the validation score it had, higher is better


@dataclass(frozen=True, slots=True)
class Score:
    """A number with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Predictions:
    """Answers for a list of rows, in their order.

    Shapes: `probabilities` (N, C), or (N, 1) numbers; `answers` (N,) the true class or number, (N, C) 0 or 1
    for each label, or None where nobody knows.
    """

    probabilities: FloatArray
    answers: IntArray | FloatArray | None


@dataclass(frozen=True, slots=True)
class EvalReport:
    """Scores of one model on one split. `scores` may nest (`per_class`)."""

    split: str
    size: int
    scores: Mapping[str, Any]
    baselines: Mapping[str, Any] = field(default_factory=dict)
    predictions: Predictions | None = None


@dataclass(frozen=True, slots=True)
class Bundle:
    """What `model/gptailor.json` holds beside the weights: all that serving needs to repeat training."""

    path: Path
    task: Task
    base: str
    base_revision: str
    approach: str
    label_names: Sequence[str]
    max_tokens: int
    too_long: str
    temperature: float
    threshold: float | None
    clean: Mapping[str, bool]
    scores: Mapping[str, Any]
    probes: Sequence[Mapping[str, Any]] = ()
    form: Mapping[str, Any] = field(default_factory=dict)  # text tasks: how a request becomes a prompt
    answer: AnswerForm = field(default_factory=AnswerForm)  # classification
