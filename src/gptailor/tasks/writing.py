"""What a chat template makes of turns, and which of its characters are somebody's text.

A person's text must never become a control token. So every character with which one could begin is swapped
for a private one before the template runs: what spells a control token afterwards is the template's own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Literal

from gptailor.tasks.conversation import Turn
from gptailor.tasks.sandbox import TemplateRefusal, run_template

PRIVATE = range(0xF0000, 0xFFFFE)  # code points that mean nothing to anybody


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """How a base writes conversations."""

    source: str  # Jinja, as transformers reads it
    control: tuple[str, ...]  # strings of the vocabulary's control tokens
    tokens: Mapping[str, str]  # bos_token, eos_token and so on, as the template names them
    origin: Literal["base", "ours"]
    now: datetime  # what a template takes for today: kept, or a resumed run would write other texts


@dataclass(frozen=True, slots=True)
class Rendering:
    """A conversation as the template writes it.

    `lasting` has the length of `text`; in it every character of a person's text with which a control token
    could begin is another, private one, so that what spells a control token in it is the template's own.
    """

    text: str
    lasting: str
    spans: tuple[tuple[int, int], ...] = ()  # of {% generation %}


def write(template: ChatTemplate, turns: Sequence[Turn], *, prompt: bool = False) -> Rendering:
    """What the template writes, and which of its characters a control token may begin with."""
    plain = _run(template, turns, prompt, {})
    texts = "".join(turn.text + turn.name for turn in turns)
    first = sorted({token[0] for token in template.control} & set(texts))
    if not first:
        return plain
    private = (chr(point) for point in PRIVATE if chr(point) not in texts)
    stand_ins = dict(zip(first, private, strict=False))
    strict = _run(template, turns, prompt, stand_ins)
    if strict.text == plain.text:
        return strict
    # The template looks into the texts, for the end of a reasoning perhaps. Then only whole control
    # tokens are hidden from it, which gives the same unless it puts some together out of their parts.
    gentle = _run(template, turns, prompt, stand_ins, only=control_tokens(template))
    if gentle.text != plain.text or _own(template, gentle) != _own(template, strict):
        raise TemplateRefusal("the chat template makes control tokens out of what stands in a turn")
    return gentle


def _run(
    template: ChatTemplate,
    turns: Sequence[Turn],
    prompt: bool,
    stand_ins: Mapping[str, str],
    only: re.Pattern[str] | None = None,
) -> Rendering:
    """Runs the template with stand-ins for the characters that control tokens begin with."""
    table = str.maketrans(dict(stand_ins))

    def hidden(text: str) -> str:
        if only is None:
            return text.translate(table)
        return only.sub(lambda match: match[0][0].translate(table) + match[0][1:], text)

    knows_developer = "developer" in template.source
    messages = []
    for turn in turns:
        role = "system" if turn.role == "developer" and not knows_developer else turn.role
        name = {"name": hidden(turn.name)} if turn.name else {}
        messages.append({"role": role, "content": hidden(turn.text), **name})
    variables = {
        **template.tokens,
        "messages": messages,
        "tools": None,
        "documents": None,
        "add_generation_prompt": prompt,
    }
    written = run_template(template.source, variables, now=template.now)
    back = str.maketrans({stand_in: letter for letter, stand_in in stand_ins.items()})
    return Rendering(written.text.translate(back), written.text, written.spans)


def _own(template: ChatTemplate, written: Rendering) -> list[str]:
    return control_tokens(template).findall(written.lasting)


def control_tokens(template: ChatTemplate) -> re.Pattern[str]:
    """Finds the control tokens; of two that begin at one place, the longer."""
    return _alternatives(template.control)


@lru_cache(maxsize=32)
def _alternatives(strings: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, strings)) or r"(?!)")
