"""Completion as a form: a template over columns, cut by a rule over the prompt alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from gptailor.errors import InputError
from gptailor.tasks.cells import Mend
from gptailor.tasks.completion import Pair, Shortened, example_of, inputs_of, shorten, to_pair
from gptailor.tasks.form import TextRow, reserve
from gptailor.tasks.pattern import Piece, Template
from gptailor.tasks.presets import PRESETS
from gptailor.tasks.recognize import CompletionRoles
from gptailor.tasks.windows import Encode
from gptailor.types import RawExample, RejectedRow, Segment

SIDES = ("prompt", "short", "completion")  # of a template, as pieces


@dataclass(frozen=True, slots=True)
class CompletionForm:
    """A template over columns.

    Args:
        roles: What the columns mean.
        end: The string of the base's end token.
        max_tokens: Longest sequence.
        max_new_tokens: Longest answer.
        encode: Texts to token ids, to measure a context with.
        mend: Repairs every value.
    """

    roles: CompletionRoles
    end: str
    max_tokens: int
    max_new_tokens: int
    encode: Encode
    mend: Mend | None = None

    @property
    def metrics(self) -> tuple[str, ...]:
        return PRESETS[self.roles.preset].metrics

    @property
    def says(self) -> tuple[str, ...]:
        return self.roles.says

    def read(self, row: RawExample) -> TextRow | RejectedRow:
        cut = self._cut(row)
        shown = row if cut is None else cut.row
        pair = to_pair(shown, self.roles, mend=self.mend)
        if isinstance(pair, RejectedRow):
            return pair
        references = tuple(dict.fromkeys(text.strip() for text in pair.completions))
        if cut is not None and self.roles.keep_together:
            # A window is another text than its context; rows of one context still stay together.
            whole = to_pair(row, self.roles, mend=self.mend)
            pair = pair if isinstance(whole, RejectedRow) else replace(pair, group=whole.group)
        return TextRow(
            sequences=(example_of(pair, end=self.end),),
            prompt=_prompt_of(pair, cut),
            asked=pair.prompt,
            given=self._given(shown),
            references=references,
            source=row.source,
            row=row.row,
            windowed=None if cut is None else any(one in cut.window.text for one in references),
            left_out=0 if cut is None else cut.left_out,
            varies=tuple(inputs_of(shown, self.roles, mend=self.mend).values()),
        )

    def ask(self, row: RawExample) -> tuple[Segment, ...] | RejectedRow:
        cut = self._cut(row)
        pair = to_pair(row if cut is None else cut.row, self.roles, mend=self.mend, needs_answer=False)
        return pair if isinstance(pair, RejectedRow) else _prompt_of(pair, cut)

    def ask_text(self, text: str) -> tuple[Segment, ...]:
        """The text in place of the template's one column, also where the template wrote it already; a whole
        prompt over several columns stays as it is.
        """
        written = self.is_written(text)
        slots = [piece for piece in self.roles.prompt if piece.column]
        if (written and len(slots) > 1) or not slots:
            return (Segment(text, learn=False),) if text else ()
        if written:  # what was filled in is repaired and shortened as in training
            before = self.roles.prompt[0].literal
            after = "".join(piece.literal for piece in self.roles.prompt[1:])
            text = text[len(before) : len(text) - len(after)]
        if len(self.roles.inputs) > 1 and not self.roles.template.optional:
            columns = ", ".join(self.roles.inputs)
            raise InputError(
                f"the prompt is made of several columns: {columns}.",
                where="prompt",
                fix="Give them by name (in a file, in Python as a mapping, to a server as values), or the "
                f"whole prompt as the template writes it: {self.roles.template.prompt!r}.",
            )
        column = self.roles.question or self.roles.inputs[0]
        found = self.ask(RawExample({column: text}, "input", 1))
        if isinstance(found, RejectedRow):
            raise InputError("the text is empty.", where="prompt", fix="Give some text.")
        return found

    def is_written(self, text: str) -> bool:
        """Whether a text stands in the template already: it begins and ends as the template does. Where that
        is white space alone, filling it in comes to the same.
        """
        for pieces in (self.roles.prompt, self.roles.short):
            columns = [place for place, piece in enumerate(pieces) if piece.column]
            if not columns:
                continue
            first = "".join(piece.literal for piece in pieces[: columns[0] + 1])
            last = "".join(piece.literal for piece in pieces[columns[-1] + 1 :])
            if (first + last).strip() and text.startswith(first) and text.endswith(last):
                return True
        return False

    def state(self) -> dict[str, Any]:
        roles = self.roles
        return {
            "kind": "completion",
            "preset": roles.preset,
            "template": dataclasses.asdict(roles.template),
            **{side: [dataclasses.astuple(piece) for piece in getattr(roles, side)] for side in SIDES},
            "lists": sorted(roles.lists),
            "context": roles.context,
            "question": roles.question,
            "keep_together": list(roles.keep_together),
            "max_new_tokens": self.max_new_tokens,
        }

    def _given(self, row: RawExample) -> str:
        """Every value as the prompt holds it, or a model would be compared with a copy of other texts."""
        values = inputs_of(row, self.roles, mend=self.mend)
        texts = {column: value.strip() for column, value in values.items()}
        return texts.get(self.roles.context) or " ".join(filter(None, texts.values()))

    def _cut(self, row: RawExample) -> Shortened | None:
        """The row with a window in place of a context that is too long; None where nothing is."""
        return shorten(
            row,
            self.roles,
            max_tokens=self.max_tokens,
            reserve=reserve(self.max_new_tokens, self.max_tokens),
            encode=self.encode,
            mend=self.mend,
        )


def restore_completion_roles(state: Mapping[str, Any]) -> CompletionRoles:
    """The roles that a bundle holds."""
    prompt, short, completion = (tuple(Piece(*piece) for piece in state[side]) for side in SIDES)
    return CompletionRoles(
        preset=state["preset"],
        template=Template(**state["template"]),
        prompt=prompt,
        short=short,
        completion=completion,
        lists=frozenset(state["lists"]),
        context=state["context"],
        question=state["question"],
        keep_together=tuple(state["keep_together"]),
    )


def _prompt_of(pair: Pair, cut: Shortened | None) -> tuple[Segment, ...]:
    left_out = 0 if cut is None else cut.left_out
    return (Segment(pair.prompt, learn=False, left_out=left_out),) if pair.prompt else ()
