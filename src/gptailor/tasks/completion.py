"""Completion: a prompt and the answer to learn, by a template over any columns.

Translation, summarization, question answering and the like are values of it: see `PRESETS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from gptailor.tasks.cells import Mend, answers_in, parse_nested
from gptailor.tasks.columns import AmbiguousRoleError
from gptailor.tasks.pattern import Template, fill, parse_pattern
from gptailor.tasks.presets import PRESETS, Preset
from gptailor.tasks.recognize import CompletionRoles, infer_completion
from gptailor.tasks.windows import Encode, Window, choose_window
from gptailor.types import Example, RawExample, RejectedRow, Segment

__all__ = [
    "PRESETS",
    "AmbiguousRoleError",
    "CompletionRoles",
    "Pair",
    "Preset",
    "Shortened",
    "Template",
    "Window",
    "choose_window",
    "example_of",
    "infer_completion",
    "inputs_of",
    "parse_pattern",
    "shorten",
    "to_example",
    "to_pair",
]


@dataclass(frozen=True, slots=True)
class Pair:
    """A prompt and the answers its row gives; the first is learned, all are references."""

    prompt: str
    completions: tuple[str, ...]  # as they follow the prompt; empty where nobody knows the answer
    group: str  # pairs with an equal group stay in one part
    source: str
    row: int


@dataclass(frozen=True, slots=True)
class Shortened:
    """A row whose long context was cut to a window, that window, and the tokens outside it."""

    row: RawExample
    window: Window
    left_out: int


def to_pair(
    row: RawExample, roles: CompletionRoles, *, mend: Mend | None = None, needs_answer: bool = True
) -> Pair | RejectedRow:
    """What a row means.

    Args:
        row: Named fields as they stand in the file.
        roles: What the columns mean.
        mend: Repairs every value, after JSON is unpacked.
        needs_answer: Whether a row without an answer is of no use. It is of use for prediction.
    """
    values = inputs_of(row, roles, mend=mend)
    if values and not any(value.strip() for value in values.values()):
        return RejectedRow(row.source, row.row, "no_text", f"there is no text in {' or '.join(roles.inputs)}")
    optional = roles.template.optional
    pieces = roles.short if optional and not values.get(optional, "").strip() else roles.prompt
    prompt = fill(pieces, values)
    completions = _completions(row, roles, mend)
    if not completions and needs_answer:
        what = f"there is no answer in {' and '.join(roles.answer)}"
        return RejectedRow(row.source, row.row, "nothing_to_learn", what)
    kept = [value for column in roles.keep_together if (value := values[column].strip())]
    own = prompt if roles.inputs else next(iter(completions), "")
    return Pair(
        prompt=prompt,
        completions=completions,
        group="\n".join(kept) or own,
        source=row.source,
        row=row.row,
    )


def inputs_of(row: RawExample, roles: CompletionRoles, *, mend: Mend | None = None) -> dict[str, str]:
    """The text of each column of the prompt, repaired."""
    return {column: _input(row.fields.get(column, ""), column, roles, mend) for column in roles.inputs}


def to_example(
    row: RawExample, roles: CompletionRoles, *, end: str = "", mend: Mend | None = None
) -> Example | RejectedRow:
    """A row as segments: the prompt unlearned, the first answer learned, then the base's end token.

    Args:
        row: Named fields as they stand in the file.
        roles: What the columns mean.
        end: The string of the base's end token, so that stopping is learned; "" adds none.
        mend: Repairs every value, after JSON is unpacked.
    """
    pair = to_pair(row, roles, mend=mend)
    return pair if isinstance(pair, RejectedRow) else example_of(pair, end=end)


def example_of(pair: Pair, *, end: str = "") -> Example:
    """A pair as an example; see `to_example`."""
    answer = [Segment(text, learn=True) for text in pair.completions[:1]]
    return Example(
        segments=(
            *([Segment(pair.prompt, learn=False)] if pair.prompt else []),
            *answer,
            *([Segment(end, learn=True, markers=True)] if end and answer else []),
        ),
        source=pair.source,
        row=pair.row,
        group=pair.group,
    )


def shorten(
    row: RawExample,
    roles: CompletionRoles,
    *,
    max_tokens: int,
    reserve: int,
    encode: Encode,
    mend: Mend | None = None,
) -> Shortened | None:
    """The row with a window in place of its context, where prompt and answer together may not fit.

    It depends on the prompt alone, never on the answer, so that training, evaluation and serving read the
    same window. None where nothing has to be cut, or the template has no context to cut.

    Args:
        row: Named fields as they stand in the file.
        roles: What the columns mean.
        max_tokens: Longest sequence.
        reserve: Tokens to leave for the answer and what goes around a text.
        encode: Texts to token ids.
        mend: Repairs every value, after JSON is unpacked.
    """
    if not roles.context:
        return None
    context = _input(row.fields.get(roles.context, ""), roles.context, roles, mend).strip()
    bare = to_pair(
        replace(row, fields={**row.fields, roles.context: "x"}), roles, mend=mend, needs_answer=False
    )
    if not context or isinstance(bare, RejectedRow):
        return None
    question = ""
    if roles.question and roles.question != roles.context:
        question = _input(row.fields.get(roles.question, ""), roles.question, roles, mend)
    budget = max(1, max_tokens - reserve - len(encode([bare.prompt])[0]))
    window = choose_window(context, question, budget, encode)
    if len(window.text) == len(context):
        return None
    left_out = len(encode([context])[0]) - len(encode([window.text])[0])
    return Shortened(
        replace(row, fields={**row.fields, roles.context: window.text}), window, max(1, left_out)
    )


def _input(cell: str, column: str, roles: CompletionRoles, mend: Mend | None) -> str:
    value = parse_nested(cell) if column in roles.lists else cell
    text = " ".join(str(item) for item in value) if isinstance(value, list) else cell
    return mend(text) if mend else text


def _completions(row: RawExample, roles: CompletionRoles, mend: Mend | None) -> tuple[str, ...]:
    """Every answer of a row, written out. Only a template over one column can have several."""
    repair: Callable[[str], str] = mend or str
    columns = roles.answer
    if len(columns) > 1:
        values = {column: repair(row.fields.get(column, "")) for column in columns}
        return (fill(roles.completion, values),) if any(map(str.strip, values.values())) else ()
    [column] = columns
    cell = row.fields.get(column, "")
    answers = [repair(answer) for answer in (answers_in(cell) if column in roles.lists else [cell])]
    return tuple(
        dict.fromkeys(fill(roles.completion, {column: answer}) for answer in answers if answer.strip())
    )
