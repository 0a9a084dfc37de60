"""Chat: conversations in which only the assistant's turns are learned, each with its end token."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from gptailor.errors import DataError, did_you_mean
from gptailor.tasks.cells import Mend, is_empty, parse_nested
from gptailor.tasks.columns import AmbiguousRoleError
from gptailor.tasks.completion import infer_completion, to_pair
from gptailor.tasks.conversation import (
    Conversation,
    Faults,
    Turn,
    asked_turns,
    dialogue_of,
    read_conversation,
    told,
)
from gptailor.tasks.pattern import Piece
from gptailor.tasks.recognize import CompletionRoles
from gptailor.tasks.rendering import TemplateRefusal, render
from gptailor.tasks.writing import ChatTemplate
from gptailor.types import Example, RawExample, RejectedRow

__all__ = [
    "ChatRoles",
    "Conversation",
    "Faults",
    "Turn",
    "infer_chat",
    "read_conversation",
    "to_conversation",
    "to_examples",
]

TELLING_BYTES = 20  # of what the user says first, for two conversations to be taken for one
LOOKED_AT = 200  # rows that are parsed to find the column of the conversations
SYSTEM_NAMES = ("system", "system_prompt", "system_message")
BESIDE = ("tools", "functions", "images", "videos", "audio", "audios")  # columns that change what turns mean
PREFERENCE_NAMES = frozenset(["chosen", "rejected"])


@dataclass(frozen=True, slots=True)
class ChatRoles:
    """Where the turns of a row stand."""

    layout: Literal["turns", "pair"]
    turns: str = ""  # column of the array of turns
    pair: CompletionRoles | None = None  # for one question and its answer
    system: str = ""  # column of a system text
    beside: tuple[str, ...] = ()  # columns that must be empty
    says: tuple[str, ...] = ()


def infer_chat(
    columns: Sequence[str],
    rows: Sequence[RawExample],
    *,
    turns: str | None = None,
    prompt: str | None = None,
    completion: str | None = None,
) -> ChatRoles:
    """The column of the conversations; where there is none, the columns of a question and its answer.

    Args:
        columns: All columns there are.
        rows: Some rows.
        turns: The person's column of the conversations.
        prompt: The person's column of the question, or a template.
        completion: The person's column of the answer, or a template.

    Raises:
        AmbiguousRoleError: several columns fit equally well.
        DataError: a named column doesn't exist, or none fits.
    """
    if turns is not None and turns not in columns:
        raise DataError(
            f"there is no column {turns!r}.{did_you_mean(turns, columns)}",
            fix=f"Columns are: {', '.join(columns)}.",
        )
    system = next((column for column in columns if column.strip().lower() in SYSTEM_NAMES), "")
    beside = tuple(column for column in columns if column.strip().lower() in BESIDE)
    if prompt is None and completion is None:
        found = [turns] if turns else [c for c in columns if _holds_turns(c, rows)]
        if {column.lower() for column in found} >= PREFERENCE_NAMES:
            raise DataError(
                "chosen and rejected conversations are for --task preference, not for chat.",
                fix="Use --task preference, or name one column with --prompt and one with --completion.",
            )
        if len(found) > 1:
            raise AmbiguousRoleError(
                f"{len(found)} columns hold conversations: {', '.join(found)}.",
                role="text",
                candidates=found,
                fix=f"Choose with {' or '.join(f'--text {shlex.quote(column)}' for column in found)}.",
            )
        if found:
            says = (f"chat: every row's turns are in {found[0]}",)
            return ChatRoles("turns", turns=found[0], system=system, beside=beside, says=says)
    pair = infer_completion(columns, rows, prompt=prompt, completion=completion)
    asked = "+".join(pair.inputs)
    says = (f"chat: every row is one question ({asked}) and its answer ({'+'.join(pair.answer)})",)
    bare = _bare(
        pair,
        keep_prompt=prompt is not None and prompt not in columns,
        keep_completion=completion is not None and completion not in columns,
    )
    return ChatRoles("pair", pair=bare, system=system, beside=beside, says=says)


def to_conversation(
    row: RawExample, roles: ChatRoles, *, mend: Mend | None = None, needs_answer: bool = True
) -> Conversation | RejectedRow:
    """The turns of a row, or every fault of it in words.

    Args:
        row: Named fields as they stand in the file.
        roles: Where the turns stand.
        mend: Repairs every text, after JSON is unpacked.
        needs_answer: Whether the last turn must be the assistant's; for prediction it isn't.
    """
    beside = {column.strip().lower(): row.fields.get(column, "") for column in roles.beside}
    if roles.pair is not None:
        found = _pair_turns(row, roles.pair, mend, needs_answer)
        if isinstance(found, RejectedRow):
            return found
        value: Any = found
    else:
        cell = row.fields.get(roles.turns, "")
        if is_empty(cell):
            return RejectedRow(row.source, row.row, "no_text", f"{roles.turns} is empty")
        value = parse_nested(cell)
        whole = isinstance(value, dict) and not {"messages", "conversations"}.isdisjoint(value)
        if not (needs_answer or whole):
            value = asked_turns(dialogue_of(cell))  # a question may also stand there as bare text
    system = row.fields.get(roles.system, "") if roles.system else ""
    if roles.pair is not None and mend is not None:
        system, mend = mend(system), None  # the turns are mended already
    if isinstance(value, list):
        value = {**beside, "messages": value}
    read = read_conversation(value, system=system, mend=mend, needs_answer=needs_answer)
    if isinstance(read, Faults):
        return RejectedRow(row.source, row.row, read.reason, told(read))
    return read


def to_examples(
    row: RawExample, roles: ChatRoles, template: ChatTemplate, *, mend: Mend | None = None
) -> tuple[Example, ...] | RejectedRow:
    """A row as one example, or as one for each answer where the base's template rewrites what came before.

    Raises:
        ModelError: the template goes beyond its limits.
    """
    conversation = to_conversation(row, roles, mend=mend)
    if isinstance(conversation, RejectedRow):
        return conversation
    return examples_of(conversation, row, roles, template)


def examples_of(
    conversation: Conversation, row: RawExample, roles: ChatRoles, template: ChatTemplate
) -> tuple[Example, ...] | RejectedRow:
    """`to_examples` of a row whose conversation is read already."""
    try:
        sequences = render(conversation.turns, template)
    except TemplateRefusal as error:
        return RejectedRow(row.source, row.row, "unreadable", f"the chat template refuses it: {error}")
    together = roles.pair.keep_together if roles.pair else ()
    kept = [value for column in together if (value := row.fields.get(column, "").strip())]
    group = "\n".join(kept) or opening(conversation.turns)
    return tuple(
        Example(segments=segments, source=row.source, row=row.row, group=group) for segments in sequences
    )


def opening(turns: Sequence[Turn]) -> str:
    """What a conversation begins with, up to the first answer: conversations with the same stay together.

    A greeting that comes before anyone asked is no answer. Nor does "Hello" tell of the user what two
    conversations have in common: then it is all up to the answer by which the user has said more.
    """
    said, end = 0, 0
    for place, turn in enumerate(turns):
        if turn.role == "user":
            said += len(turn.text.encode(errors="replace"))
        elif turn.role == "assistant" and said:
            end = place
            if said >= TELLING_BYTES:
                break
    return "\n".join(turn.text for turn in turns[: end or len(turns)])


def _holds_turns(column: str, rows: Sequence[RawExample]) -> bool:
    """Whether the filled cells of a column are mostly arrays of objects with a role or a speaker."""
    cells = [cell for row in rows[:LOOKED_AT] if not is_empty(cell := row.fields.get(column, ""))]
    found = sum(_is_turns(parse_nested(cell)) for cell in cells)
    return bool(cells) and 2 * found >= len(cells)


def _is_turns(value: Any) -> bool:
    if isinstance(value, dict):
        value = value.get("messages", value.get("conversations"))
    return isinstance(value, list) and any(
        isinstance(turn, dict) and ({"role", "content"} & turn.keys() or "from" in turn) for turn in value
    )


def _bare(pair: CompletionRoles, *, keep_prompt: bool, keep_completion: bool) -> CompletionRoles:
    """The columns without a preset's words, which the chat template's own markers make needless."""

    def side(columns: Sequence[str], between: str) -> tuple[Piece, ...]:
        return tuple(Piece(between if place else "", c) for place, c in enumerate(columns))

    inputs = [column for column in pair.inputs if column != pair.template.optional]
    return replace(
        pair,
        prompt=pair.prompt if keep_prompt else side(pair.inputs, "\n\n"),
        short=side(inputs, "\n\n"),
        completion=pair.completion if keep_completion else side(pair.answer, "\n\n"),
    )


def _pair_turns(
    row: RawExample, roles: CompletionRoles, mend: Mend | None, needs_answer: bool
) -> list[dict[str, str]] | RejectedRow:
    pair = to_pair(row, roles, mend=mend, needs_answer=needs_answer)
    if isinstance(pair, RejectedRow):
        return pair
    turns = [{"role": "user", "content": pair.prompt}] if pair.prompt else []
    turns += [{"role": "assistant", "content": text} for text in pair.completions[:1]]
    return turns if needs_answer else turns[:1]
