"""Conversations as text that a base was, or will be, trained to read: only the assistant's turns are learned.

Two things are found rather than assumed. Where an answer begins: at the end of what the template writes
without it, which is exactly what a server feeds the model. And which control tokens are the template's own:
those that don't begin with a character of somebody's text.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from itertools import pairwise

from gptailor.errors import ModelError
from gptailor.tasks.conversation import Turn
from gptailor.tasks.sandbox import TemplateRefusal
from gptailor.tasks.writing import ChatTemplate, Rendering, control_tokens, write
from gptailor.types import Segment

__all__ = [
    "CHATML",
    "PLAIN",
    "ChatTemplate",
    "Check",
    "Rendering",
    "TemplateRefusal",
    "choose_template",
    "find_end",
    "render",
    "render_answer",
    "render_prompt",
]

Check = Callable[[Sequence[Segment]], object]  # of a prompt whose earlier answers aren't found yet

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# For a vocabulary without ChatML's tokens. A turn begins where the end token was, and no text can spell
# that, so nobody can forge a turn by writing its header.
PLAIN = (
    "{% for message in messages %}"
    "{{ message['role'] + ':\\n' + message['content'] + eos_token }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:\\n' }}{% endif %}"
)
BEGIN = "{{ bos_token }}"  # before either, for a base that read its begin token before every text
INSTEAD = "Take the base's chat_template away so that Gptailor's own is used, or mend it."


def choose_template(
    source: str | None,
    *,
    control: Collection[str],
    tokens: Mapping[str, str],
    now: datetime,
    begins: bool = False,
) -> ChatTemplate:
    """The base's own template; ours where it has none: ChatML, or plain text with the base's end token.

    Args:
        source: The base's template, if it has one.
        control: The strings of the vocabulary's control tokens.
        tokens: The tokenizer's named tokens, such as `{"eos_token": "</s>"}`.
        now: What the template takes for today.
        begins: Whether the tokenizer itself writes its begin token before a text.

    Raises:
        ModelError: the base has neither a template nor an end token, or its template can't be used.
    """
    ordered = tuple(sorted(control, key=lambda token: (-len(token), token)))
    if source is not None:
        template = ChatTemplate(source, ordered, dict(tokens), "base", now)
        find_end(template)
        return template
    if {"<|im_start|>", "<|im_end|>"} <= set(control):
        return ChatTemplate(BEGIN * begins + CHATML, ordered, dict(tokens), "ours", now)
    if tokens.get("eos_token", "") not in ordered:
        raise ModelError(
            "the base has no chat template and no end token, so no answer could ever end.",
            fix="Choose a base whose tokenizer has an eos_token.",
        )
    return ChatTemplate(BEGIN * begins + PLAIN, ordered, dict(tokens), "ours", now)


def find_end(template: ChatTemplate) -> str:
    """The control token that ends an answer, found by writing one.

    Raises:
        ModelError: the template ends an answer without one, so that a model could not learn to stop.
    """
    turns = (Turn("user", "Good day."), Turn("assistant", "Good day to you.", learn=True))
    try:
        written = write(template, turns)
        begin = len(write(template, turns[:1], prompt=True).text)
    except TemplateRefusal as error:
        raise ModelError(
            f"the chat template can't write a question and an answer: {error}", fix=INSTEAD
        ) from None
    matches = list(control_tokens(template).finditer(written.lasting, begin))
    if not matches or written.text[matches[-1].end() :].strip():
        raise ModelError(
            "the chat template ends an answer without a control token, so a model would never learn to stop.",
            fix=INSTEAD,
        )
    return matches[-1][0]


def render(turns: Sequence[Turn], template: ChatTemplate) -> tuple[tuple[Segment, ...], ...]:
    """A conversation as one sequence of segments: the learned turns with their end tokens are learned.

    A template that rewrites what came before, such as one that drops the reasoning of earlier answers,
    gives one sequence for each learned turn: the conversation up to it as the model will then read it.

    Raises:
        TemplateRefusal: the template can't write this conversation, in words.
        ModelError: the template goes beyond its limits.
    """
    whole = write(template, turns)
    starts = _answer_starts(template, turns, whole)
    spans = _learned_spans(template, turns, whole, starts)
    if spans is not None:
        return (_segments(template, whole, spans, starts),)
    sequences = []
    for place, turn in enumerate(turns):
        if turn.learn:
            before, answer = render_answer(turns[: place + 1], template)
            sequences.append((*before, *answer))
    return tuple(sequences)


def render_prompt(
    turns: Sequence[Turn], template: ChatTemplate, *, check: Check | None = None
) -> tuple[Segment, ...]:
    """What a server feeds the model before it answers. Raises as `render`, and what `check` raises.

    `check` sees the prompt before it is known where the earlier answers begin, which takes one rendering
    for each of them: a prompt that is far too long should be refused by then.
    """
    written = write(template, turns, prompt=True)
    if check is not None and any(turn.role == "assistant" for turn in turns):
        check(_segments(template, written, [], []))
    return _segments(template, written, [], _answer_starts(template, turns, written))


def render_answer(
    turns: Sequence[Turn], template: ChatTemplate
) -> tuple[tuple[Segment, ...], tuple[Segment, ...]]:
    """The prompt, and the last turn's answer with its end token. Raises as `render`."""
    whole = write(template, turns)
    starts = _answer_starts(template, turns, whole)
    begin = starts[-1]
    if begin is None:
        raise TemplateRefusal(
            "the chat template writes the beginning otherwise when an answer follows, "
            "so training and serving would not match"
        )
    end = _end_of_answer(template, whole, begin, whole)
    if end is None:
        raise TemplateRefusal("the chat template ends this answer without a control token")
    segments = _segments(template, whole, _marked(template, whole, [(begin, end)]), starts)
    first = next(place for place, segment in enumerate(segments) if segment.learn)
    return segments[:first], segments[first:]


# --- where answers are -----------------------------------------------------------------------------


def _answer_starts(template: ChatTemplate, turns: Sequence[Turn], whole: Rendering) -> list[int | None]:
    """Where each answer begins: behind what is written without it; None if that is written otherwise."""
    befores = [
        write(template, turns[:place], prompt=True).text
        for place, turn in enumerate(turns)
        if turn.role == "assistant"
    ]
    return [len(before) if whole.text.startswith(before) else None for before in befores]


def _learned_spans(
    template: ChatTemplate, turns: Sequence[Turn], whole: Rendering, starts: Sequence[int | None]
) -> list[tuple[int, int]] | None:
    """(start, end) of each learned turn; None if the template writes it otherwise when more follows."""
    places = [place for place, turn in enumerate(turns) if turn.role == "assistant"]
    spans = []
    for place, begin in zip(places, starts, strict=True):
        upto = whole if place == len(turns) - 1 else write(template, turns[: place + 1])
        end = None if begin is None else _end_of_answer(template, whole, begin, upto)
        if begin is None or end is None:
            return None
        spans.append((begin, end))
    found = zip(_marked(template, whole, spans), places, strict=True)
    return [span for span, place in found if turns[place].learn]


def _end_of_answer(template: ChatTemplate, whole: Rendering, begin: int, upto: Rendering) -> int | None:
    """Where the end token of an answer ends: the last one that is there with or without what follows."""
    same = _same_beginning(whole.text, upto.text)
    for written in (whole, upto):  # two tokens may begin alike
        found = control_tokens(template).finditer(written.lasting, begin)
        same = next((m.start() for m in found if m.start() < same < m.end()), same)
    ends = [m.end() for m in control_tokens(template).finditer(whole.lasting, begin, same)]
    # Some templates end the whole with a further token, which later turns push away.
    rest = control_tokens(template).sub("", upto.lasting[same:])
    if not ends or whole.text[ends[-1] : same].strip() or rest.strip():
        return None
    return ends[-1]


def _same_beginning(one: str, other: str) -> int:
    """How many characters two texts have in common at their beginning."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _marked(template: ChatTemplate, whole: Rendering, spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """What the template itself marks as generated, where it marks as many answers as there are.

    An end token right behind a mark is learned too, or the model would not learn to stop.
    """
    marks = list(whole.spans)[-len(spans) :]
    if len(whole.spans) < len(spans) or any(
        start >= end or mark[0] >= end or mark[1] <= start
        for (start, end), mark in zip(spans, marks, strict=True)
    ):
        return spans
    found = []
    for start, end in marks:
        behind = control_tokens(template).match(whole.lasting, end)
        ended = any(m.end() == end for m in control_tokens(template).finditer(whole.lasting, start, end))
        found.append((start, end if ended or behind is None else behind.end()))
    return found


def _segments(
    template: ChatTemplate,
    written: Rendering,
    spans: Sequence[tuple[int, int]],
    starts: Sequence[int | None],
) -> tuple[Segment, ...]:
    """The text cut where answers begin and end, and around what only looks like a control token."""
    kept = {
        place
        for place, (own, stand_in) in enumerate(zip(written.text, written.lasting, strict=True))
        if own != stand_in and control_tokens(template).match(written.text, place)
    }
    cuts = {place for place in starts if place is not None}
    cuts |= {place for span in (*spans, *written.spans) for place in span}
    edges = {0, len(written.text), *cuts, *(edge for place in kept for edge in (place, place + 1))}
    return tuple(
        Segment(
            written.text[start:end],
            learn=any(a <= start < b for a, b in spans),
            markers=start not in kept,
            cut=start in cuts,
        )
        for start, end in pairwise(sorted(edges))
    )
