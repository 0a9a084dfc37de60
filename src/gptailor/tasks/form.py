"""What a row of a text task means, whichever task it is: what is learned, what is asked, what was answered.

A form is made once from the file's columns and the base's tokenizer, and once more from the bundle. The
server reads a request through the same form as training read the rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from gptailor.tasks.cells import Mend
from gptailor.types import Example, RawExample, RejectedRow, Segment


@dataclass(frozen=True, slots=True)
class TextRow:
    """What one row gives: the sequences to learn, and the question whose answer is compared."""

    sequences: tuple[Example, ...]
    prompt: tuple[Segment, ...]  # what the model is fed before it answers
    asked: str  # the prompt as a person reads it
    given: str  # what the answer is made from: the text to translate, the last question, without the template
    references: tuple[str, ...]  # answers that are right; the first is learned
    source: str
    row: int
    windowed: bool | None = None  # the context was cut: does the window hold an answer? None: not cut
    left_out: int = 0  # tokens of the context that lie outside its window
    varies: tuple[str, ...] = ()  # what is asked, by columns, without a template's words and the system's
    system: str = ""  # what a chat's system says
    together: str = ""  # the person's group, which stays in one part as the form's own does
    near: str = ""  # the near-duplicates it stays with
    time: str = ""  # what the person orders rows by
    slices: tuple[tuple[str, str], ...] = ()  # the person's columns to score by, with the row's values
    remarks: tuple[str, ...] = ()  # what is odd about it, though it can be trained on

    @property
    def group(self) -> str:
        return self.sequences[0].group


class TextForm(Protocol):
    """How rows and requests of one task become segments."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """Scores of its answers, the one that decides first."""

    @property
    def max_new_tokens(self) -> int:
        """How long an answer may get unless somebody says otherwise."""

    @property
    def says(self) -> tuple[str, ...]:
        """What was taken from the columns, in words."""

    def read(self, row: RawExample) -> TextRow | RejectedRow:
        """A row with its answer."""

    def ask(self, row: RawExample) -> tuple[Segment, ...] | RejectedRow:
        """What the model is fed for a row whose answer nobody knows."""

    def ask_text(self, text: str) -> tuple[Segment, ...]:
        """What the model is fed for a text that stands alone."""

    def state(self) -> dict[str, Any]:
        """All that a bundle needs to make this form again."""


@dataclass(frozen=True, slots=True)
class PlainForm:
    """A language model: a text is fed as it stands."""

    max_new_tokens: int = 128
    mend: Mend | None = None

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("bits_per_byte",)

    @property
    def says(self) -> tuple[str, ...]:
        return ()

    def read(self, row: RawExample) -> TextRow | RejectedRow:
        raise NotImplementedError("documents are read by pipeline.documents")

    def ask(self, row: RawExample) -> tuple[Segment, ...] | RejectedRow:
        text = row.fields.get("text", next(iter(row.fields.values()), ""))
        if not text.strip():
            return RejectedRow(row.source, row.row, "no_text", "there is no text")
        return self.ask_text(text)

    def ask_text(self, text: str) -> tuple[Segment, ...]:
        return (Segment(self.mend(text) if self.mend else text, learn=False),)

    def state(self) -> dict[str, Any]:
        return {"kind": "plain", "max_new_tokens": self.max_new_tokens}


def reserve(max_new_tokens: int, max_tokens: int, *, chat: bool = False) -> int:
    """Tokens that are kept free for the answer, whatever its prompt: at most half of the longest sequence.

    Of a chat at most a quarter: nothing of its prompt can be cut, and answers are mostly much shorter.
    """
    return min(max_new_tokens, max_tokens // (4 if chat else 2))
