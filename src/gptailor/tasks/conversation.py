"""Conversations as people store them, OpenAI's and ShareGPT's; every fault of one is told at once."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from gptailor.errors import did_you_mean, number_of
from gptailor.tasks.cells import Mend, is_empty, kind_of, parse_nested
from gptailor.types import Reason

ROLES = ("system", "developer", "user", "assistant")
SYSTEM = ("system", "developer")
TOOL_ROLES = ("tool", "function", "function_call", "observation")
SHAREGPT_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "bot": "assistant",
}
KEYS = ("role", "content", "name", "weight")
SHAREGPT_KEYS = ("from", "value", "weight")
UNTRAINED = {
    "tool_calls": "tool calls",
    "function_call": "function calls",
    "tool_call_id": "results of tools",
    "tools": "tools",
    "functions": "functions",
    "audio": "sound",
    "images": "images",
    "videos": "videos",
}
UNTRAINED_PARTS = {
    "image_url": "an image",
    "image": "an image",
    "input_image": "an image",
    "input_audio": "sound",
    "audio": "sound",
    "video": "a video",
    "file": "a file",
}
# hh_rlhf's dialogues: a blank line, who speaks, a colon (Bai et al. 2022, https://github.com/anthropics/hh-rlhf).
SPEAKER = re.compile(r"(?:\A|\n\n)(Human|Assistant):")
SPEAKERS = {"Human": "user", "Assistant": "assistant"}
MOST_TOLD = 20  # faults of one conversation
LONGEST_QUOTE = 60  # characters
IGNORED = ("refusal", "annotations", "id")  # what an answer of an API carries beside its text


@dataclass(frozen=True, slots=True)
class Turn:
    """One message. `learn` is true for the assistant's, unless its weight is 0."""

    role: str  # one of ROLES
    text: str
    learn: bool = False
    name: str = ""


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns in order; the last is the assistant's."""

    turns: tuple[Turn, ...]
    remarks: tuple[str, ...] = ()  # what is odd about it, though it can be trained on


@dataclass(frozen=True, slots=True)
class Faults:
    """Everything that keeps a value from being a conversation."""

    says: tuple[str, ...]
    reason: Reason = "unreadable"


def read_conversation(
    value: Any,
    *,
    system: str = "",
    mend: Mend | None = None,
    needs_answer: bool = True,
    empty_answers: bool = False,
) -> Conversation | Faults:
    """A parsed JSON value as a conversation, or all that is wrong with it.

    Args:
        value: An array of turns `{"role", "content"}` or `{"from", "value"}`, or an object that holds one as
            `messages` or `conversations`.
        system: A system text that stands beside the turns.
        mend: Repairs every text.
        needs_answer: Whether the last turn must be the assistant's; a prompt's is not.
        empty_answers: Whether the assistant may have said nothing, as a model may that is served; an empty
            system turn is left out then.
    """
    faults: list[str] = []
    if isinstance(value, Mapping):
        faults += _beside(value)
        system = system or str(value.get("system") or "")
        value = next((value[key] for key in ("messages", "conversations") if key in value), value)
    if not isinstance(value, list):
        return Faults((*faults, f"the conversation is {kind_of(value)}, not an array of turns"))
    if not value:
        return Faults((*faults, "the conversation has no turns"))
    may_be_empty = ("assistant", *SYSTEM) if empty_answers else ()
    turns = [
        _read_turn(message, number, faults, mend, may_be_empty)
        for number, message in enumerate(value, start=1)
    ]
    read = [turn for turn in turns if turn is not None]
    if empty_answers:  # a client's blank field for it
        read = [turn for turn in read if turn.role not in SYSTEM or turn.text.strip()]
        if not read and not faults:
            return Faults(("the conversation has no turns",))
    if system.strip():
        beside = Turn("system", mend(system) if mend else system)
        if not read or read[0].role not in SYSTEM:
            read.insert(0, beside)
        elif read[0].text != beside.text:
            faults.append("a system text stands beside the turns, and another in the first of them")
    nothing = _nothing_to_learn(value, read, whole=len(read) >= len(value)) if needs_answer else ()
    if faults:
        return Faults((*faults, *nothing))
    if nothing:
        return Faults(nothing, "nothing_to_learn")
    remarks = (
        () if any(turn.role == "user" for turn in read) else ("no user turn: the assistant answers nothing",)
    )
    return Conversation(tuple(read), remarks)


def dialogue_of(cell: str) -> Any:
    """A cell as an array of turns, where it holds turns in any spelling; else as it is."""
    value = parse_nested(cell)
    if value == []:
        return ""
    if isinstance(value, str) and (turns := spoken_turns(value)):
        return turns
    if isinstance(value, dict) and ("role" in value or "from" in value):
        return [value]
    if isinstance(value, dict):
        return next((value[key] for key in ("messages", "conversations") if key in value), cell)
    return value if isinstance(value, list) and value and isinstance(value[0], dict) else cell


def asked_turns(value: Any) -> list[Any]:
    """What somebody is to answer as turns: an array of them, a written dialogue, or one turn of the user."""
    if isinstance(value, str):
        value = spoken_turns(value) or [{"role": "user", "content": value}]
    if value and value[-1] == {"role": "assistant", "content": ""}:
        return list(value[:-1])  # hh_rlhf's prompts end with "Assistant:"
    return list(value)


def spoken_turns(text: str) -> list[dict[str, str]]:
    """`Human: ... Assistant: ...` as turns; none for any other text."""
    if not SPEAKER.match(text):
        return []
    marks = list(SPEAKER.finditer(text))
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    return [
        {"role": SPEAKERS[mark[1]], "content": text[mark.end() : end].strip()}
        for mark, end in zip(marks, ends, strict=True)
    ]


def told(faults: Faults) -> str:
    """The faults in one line; of very many the first."""
    line, more = "; ".join(faults.says[:MOST_TOLD]), len(faults.says) - MOST_TOLD
    return f"{line}; and {number_of(more, 'fault')} more" if more > 0 else line


def _quoted(value: Any) -> str:
    """Somebody's own words, bounded."""
    shown = repr(value)
    return shown if len(shown) <= LONGEST_QUOTE else f"{shown[: LONGEST_QUOTE - 3]}..."


def _beside(value: Mapping[str, Any]) -> list[str]:
    """What stands beside the turns and can't be trained on."""
    return [
        f"it comes with {what} ({key}), which can't be trained on yet"
        for key, what in UNTRAINED.items()
        if not is_empty(value.get(key))
    ]


def _nothing_to_learn(value: list[Any], turns: list[Turn], *, whole: bool) -> tuple[str, ...]:
    """Why there is no answer to learn. Turns that couldn't be read say so themselves."""
    roles = [_role_of(message) for message in value]
    if "assistant" not in roles:
        return ("there is no assistant turn, so nothing to learn",) if whole or None not in roles else ()
    if roles[-1] in ROLES and roles[-1] != "assistant":
        return (f"the last turn is the {roles[-1]}'s, not the assistant's",)
    if whole and not any(turn.learn for turn in turns):
        return ("every assistant turn has the weight 0, so there is nothing to learn",)
    return ()


def _role_of(message: Any) -> str | None:
    if not isinstance(message, Mapping):
        return None
    role = message.get("role", message.get("from"))
    return SHAREGPT_ROLES.get(role, role) if isinstance(role, str) else None


def _read_turn(
    message: Any, number: int, faults: list[str], mend: Mend | None, may_be_empty: Collection[str]
) -> Turn | None:
    """One turn; None where it has faults, which are added to the list."""
    before = len(faults)

    def fault(what: str) -> None:
        faults.append(f"turn {number} {what}")

    if not isinstance(message, Mapping):
        fault(f"is {kind_of(message)}, not an object")
        return None
    keys = SHAREGPT_KEYS if "from" in message and "role" not in message else KEYS
    role = _role_of(message)
    told_role = message.get(keys[0])
    if told_role is None:
        fault(f"has no {keys[0]}")
    elif role in TOOL_ROLES:
        fault(f"has the role {role!r}: tools can't be trained on yet")
    elif role not in ROLES:
        hint = did_you_mean(str(told_role), [*ROLES, *(SHAREGPT_ROLES if keys is SHAREGPT_KEYS else ())])
        fault(f"has the role {_quoted(told_role)}, which is none of {', '.join(ROLES)}.{hint}")
    _check_keys(message, keys, fault)
    calls = any(not is_empty(message.get(key)) for key in UNTRAINED)
    text: str | None = message.get(keys[1])
    if not isinstance(text, str) or text.strip() or role not in may_be_empty:
        text = _content(text, fault, missing=keys[1] not in message, excused=calls)
    learn = _weight(message.get("weight"), role, fault)
    name = message.get("name") or ""
    if not isinstance(name, str):
        fault(f"has a name that is {kind_of(name)}")
    if len(faults) > before or role is None or text is None:
        return None
    return Turn(role, mend(text) if mend else text, learn, str(name))


def _check_keys(message: Mapping[str, Any], keys: tuple[str, ...], fault: Any) -> None:
    for key, value in message.items():
        if key in keys or key in IGNORED or is_empty(value):
            continue
        if key in UNTRAINED:
            fault(f"holds {UNTRAINED[key]} ({key}), which can't be trained on yet")
        else:
            hint = did_you_mean(str(key), keys)
            fault(f"has the key {_quoted(key)}, which means nothing here.{hint}")


def _content(value: Any, fault: Any, *, missing: bool, excused: bool) -> str | None:
    """The text of a turn: a text, or an array of text parts."""
    if isinstance(value, list):
        texts = []
        for part in value:
            kind = part.get("type") if isinstance(part, Mapping) else None
            if isinstance(part, Mapping) and isinstance(part.get("text"), str):
                texts.append(part["text"])
            elif isinstance(kind, str) and kind in UNTRAINED_PARTS:
                fault(f"holds {UNTRAINED_PARTS[kind]}; only text can be trained on")
                return None
            else:
                fault(f"has a part of the content that is {kind_of(part)} without text")
                return None
        value = "".join(texts)
    if isinstance(value, str) and value.strip():
        return value
    if excused:
        return None  # what it holds instead was told
    if missing:
        fault("has no content")
    elif value is None or isinstance(value, str):
        fault("has an empty content")
    else:
        fault(f"has a content that is {kind_of(value)}, not text")
    return None


def _weight(value: Any, role: str | None, fault: Any) -> bool:
    """Whether a turn is learned. OpenAI's weight is 0 or 1, on assistant turns only."""
    if value is None:
        return role == "assistant"
    if isinstance(value, bool) or value not in (0, 1):
        fault(f"has the weight {_quoted(value)}; a weight is 0 or 1")
    elif role in ROLES and role != "assistant":
        fault(f"has a weight, but only the assistant's turns can have one, not {role!r}")
    return role == "assistant" and value == 1
