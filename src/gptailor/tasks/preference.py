"""Preference: one prompt and two answers, of which somebody chose one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gptailor.errors import DataError, did_you_mean
from gptailor.tasks.cells import Mend, is_empty, kind_of
from gptailor.tasks.chat import opening
from gptailor.tasks.columns import AmbiguousRoleError
from gptailor.tasks.conversation import (
    Conversation,
    Faults,
    Turn,
    asked_turns,
    dialogue_of,
    read_conversation,
    told,
)
from gptailor.tasks.rendering import TemplateRefusal, render_answer
from gptailor.tasks.writing import ChatTemplate
from gptailor.types import Example, RawExample, Reason, RejectedRow, Segment

NAMES: dict[str, tuple[str, ...]] = {
    "prompt": ("prompt", "question", "instruction", "query", "input", "conversations", "messages"),
    "chosen": ("chosen", "accepted", "preferred", "chosen_response", "response_chosen", "preferred_output"),
    "rejected": (
        "rejected",
        "dispreferred",
        "rejected_response",
        "response_rejected",
        "non_preferred_output",
    ),
    "system": ("system", "system_prompt"),
    "chosen_score": ("chosen_score", "score_chosen", "chosen_rating"),
    "rejected_score": ("rejected_score", "score_rejected", "rejected_rating"),
}


@dataclass(frozen=True, slots=True)
class PreferenceRoles:
    """Columns; "" where there is none. Without a prompt, both answers are whole dialogues."""

    chosen: str
    rejected: str
    prompt: str = ""
    system: str = ""
    scores: tuple[str, str] = ("", "")
    says: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Preference:
    """The turns before the answer, and both answers."""

    turns: tuple[Turn, ...]
    chosen: str
    rejected: str
    source: str
    row: int


class _Unusable(Exception):
    """Why a row can't be used."""

    def __init__(self, detail: str, reason: Reason = "unreadable") -> None:
        self.detail, self.reason = detail, reason
        super().__init__(detail)


def infer_preference(
    columns: Sequence[str],
    *,
    prompt: str | None = None,
    chosen: str | None = None,
    rejected: str | None = None,
) -> PreferenceRoles:
    """The columns of the prompt and the two answers, as named by the person or by custom.

    Raises:
        AmbiguousRoleError: several columns are named for one of them.
        DataError: a named column doesn't exist, or there are no two answers.
    """
    given = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    for role, column in given.items():
        if column is not None and column not in columns:
            raise DataError(
                f"there is no column {column!r} for the {role}.{did_you_mean(column, columns)}",
                fix=f"Columns are: {', '.join(columns)}.",
            )
    found: dict[str, str] = {}
    for role, names in NAMES.items():
        named = [column for column in columns if column.strip().lower() in names]
        fits = [own] if (own := given.get(role)) else named
        if role == "prompt" and "prompt" in fits:
            fits = ["prompt"]  # beside it, messages are often the chosen dialogue once more
        if len(fits) > 1:
            raise AmbiguousRoleError(
                f"{len(fits)} columns could be the {role}: {', '.join(fits)}.",
                role=role,
                candidates=fits,
                fix="Name the one that counts, or take the others away.",
            )
        found[role] = fits[0] if fits else ""
    missing = [role for role in ("chosen", "rejected") if not found[role]]
    if missing:
        raise DataError(
            f"no column is named for the {' and the '.join(missing)} answer.",
            fix=f"Columns are: {', '.join(columns)}. Preference needs prompt, chosen and rejected; name "
            "them with --prompt COLUMN --set data.chosen=COLUMN --set data.rejected=COLUMN.",
        )
    before = found["prompt"] or "the common beginning of both"
    return PreferenceRoles(
        chosen=found["chosen"],
        rejected=found["rejected"],
        prompt=found["prompt"],
        system=found["system"],
        scores=(found["chosen_score"], found["rejected_score"]),
        says=(f"preference: prompt={before}, chosen={found['chosen']}, rejected={found['rejected']}",),
    )


def to_preference(
    row: RawExample, roles: PreferenceRoles, *, mend: Mend | None = None
) -> Preference | RejectedRow:
    """The prompt and both answers of a row, whichever of the common layouts it has; or why it has none.

    Args:
        row: Named fields as they stand in the file.
        roles: Which columns to look at.
        mend: Repairs every text, after JSON is unpacked.
    """
    try:
        turns, chosen, rejected = _read(row, roles, mend)
        _refuse_tie(row, roles, chosen, rejected)
    except _Unusable as error:
        return RejectedRow(row.source, row.row, error.reason, error.detail)
    return Preference(turns, chosen, rejected, row.source, row.row)


def to_example(
    row: RawExample, roles: PreferenceRoles, template: ChatTemplate, *, mend: Mend | None = None
) -> Example | RejectedRow:
    """A row as the prompt, unlearned, the chosen answer, learned, and the rejected one.

    Raises:
        ModelError: the template goes beyond its limits.
    """
    read = to_preference(row, roles, mend=mend)
    if isinstance(read, RejectedRow):
        return read
    try:
        before, chosen = render_answer((*read.turns, Turn("assistant", read.chosen, learn=True)), template)
        other, rejected = render_answer((*read.turns, Turn("assistant", read.rejected, learn=True)), template)
    except TemplateRefusal as error:
        return RejectedRow(row.source, row.row, "unreadable", f"the chat template refuses it: {error}")
    if before != other:
        detail = "the chat template writes the prompt otherwise for each answer"
        return RejectedRow(row.source, row.row, "unreadable", detail)
    return Example(
        segments=(*before, *_learned(chosen)),
        rejected=_learned(rejected),
        source=row.source,
        row=row.row,
        group=opening(read.turns),
    )


def _learned(answer: tuple[Segment, ...]) -> tuple[Segment, ...]:
    """An answer up to its end token; what a template writes behind it is nobody's choice."""
    last = max(place for place, segment in enumerate(answer) if segment.learn)
    return answer[: last + 1]


# --- layouts ---------------------------------------------------------------------------------------


def _read(row: RawExample, roles: PreferenceRoles, mend: Mend | None) -> tuple[tuple[Turn, ...], str, str]:
    """The turns of the prompt and both answers."""
    chosen, rejected = (dialogue_of(row.fields.get(column, "")) for column in (roles.chosen, roles.rejected))
    before = dialogue_of(row.fields.get(roles.prompt, "")) if roles.prompt else ""
    system = row.fields.get(roles.system, "") if roles.system else ""
    if not is_empty(before):
        given = _conversation(before, "prompt", system, mend, needs_answer=False).turns
        one, other = (
            _answer_to(before, column, value, mend)
            for column, value in ((roles.chosen, chosen), (roles.rejected, rejected))
        )
        return given, one, other
    both = []
    for column, value in ((roles.chosen, chosen), (roles.rejected, rejected)):
        if not isinstance(value, list):
            raise _Unusable(f"there is no prompt, and {column} is no dialogue that begins with one")
        both.append(_conversation(value, column, system, mend).turns)
    left, right = both
    if left[:-1] != right[:-1]:
        pairs = enumerate(zip(left, right, strict=False), start=1)
        part = next((i for i, (a, b) in pairs if a != b), min(len(left), len(right)))
        where = "have no common beginning" if part == 1 else f"part at turn {part}, before the last answer"
        raise _Unusable(f"{roles.chosen} and {roles.rejected} {where}")
    if len(left) == 1:
        raise _Unusable("the dialogues hold one answer and nothing that it answers", "no_text")
    return left[:-1], left[-1].text, right[-1].text


def _conversation(
    value: Any, column: str, system: str, mend: Mend | None, *, needs_answer: bool = True
) -> Conversation:
    turns = value if needs_answer else asked_turns(value)
    read = read_conversation(turns, system=system, mend=mend, needs_answer=needs_answer)
    if isinstance(read, Faults):
        empty = all("empty content" in fault for fault in read.says)
        raise _Unusable(f"{column}: {told(read)}", "nothing_to_learn" if empty else read.reason)
    return read


def _answer_to(prompt: Any, column: str, value: Any, mend: Mend | None) -> str:
    """The answer in a column: a text, one turn, or the whole dialogue that begins with the prompt."""
    if isinstance(value, str):
        if not value.strip():
            raise _Unusable(f"{column} is empty", "nothing_to_learn")
        return mend(value) if mend else value
    if not isinstance(value, list):
        raise _Unusable(f"{column} is {kind_of(value)}, not an answer")
    turns = _conversation(value, column, "", mend).turns
    asked = _conversation(prompt, "prompt", "", mend, needs_answer=False).turns
    before = turns[:-1]
    if before and before != asked:
        raise _Unusable(f"{column} doesn't begin with the prompt")
    return turns[-1].text


def _refuse_tie(row: RawExample, roles: PreferenceRoles, chosen: str, rejected: str) -> None:
    if chosen.strip() == rejected.strip():
        raise _Unusable(f"{roles.chosen} and {roles.rejected} are the same answer", "conflict")
    scores = [row.fields.get(column, "").strip() for column in roles.scores if column]
    if len(scores) == 2 and scores[0] and _number(scores[0]) == _number(scores[1]):
        raise _Unusable(f"a tie: both answers have the score {scores[0]}", "conflict")


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
