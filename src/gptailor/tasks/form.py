"""What a row of a text task means, whichever task it is: what is learned, what is asked, what was answered.

A form is made once from the file's columns and the base's tokenizer, and once more from the bundle. The
server reads a request through the same form as training read the rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Protocol

from gptailor.errors import InputError
from gptailor.tasks.cells import Mend, answers_in
from gptailor.tasks.chat import ChatRoles, to_conversation, to_examples
from gptailor.tasks.completion import Pair, example_of, shorten, to_pair
from gptailor.tasks.conversation import Conversation, Faults, Turn, read_conversation, told
from gptailor.tasks.pattern import Piece, Template
from gptailor.tasks.preference import PreferenceRoles, to_preference
from gptailor.tasks.preference import to_example as to_preference_example
from gptailor.tasks.presets import PRESETS
from gptailor.tasks.recognize import CompletionRoles
from gptailor.tasks.rendering import TemplateRefusal, choose_template, render_prompt
from gptailor.tasks.windows import Encode
from gptailor.tasks.writing import ChatTemplate
from gptailor.types import Example, RawExample, RejectedRow, Segment

CHAT_METRICS = ("chrf", "rouge_l")
CHAT_LENGTH = 256  # tokens of an answer, at most
PREFERENCE_METRICS = ("preference_accuracy",)
SIDES = ("prompt", "short", "completion")  # of a template, as pieces


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

    @property
    def group(self) -> str:
        return self.sequences[0].group

    @property
    def time(self) -> str:
        return self.sequences[0].time


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
        shown, holds = self._shortened(row)
        pair = to_pair(shown, self.roles, mend=self.mend)
        if isinstance(pair, RejectedRow):
            return pair
        references = tuple(dict.fromkeys(text.strip() for text in pair.completions))
        windowed = None if holds is None else any(reference in holds for reference in references)
        if holds is not None and self.roles.keep_together:
            # A window is another text than its context; rows of one context still stay together.
            whole = to_pair(row, self.roles, mend=self.mend)
            pair = pair if isinstance(whole, RejectedRow) else replace(pair, group=whole.group)
        return TextRow(
            sequences=(example_of(pair, end=self.end),),
            prompt=_prompt_of(pair),
            asked=pair.prompt,
            given=self._given(shown),
            references=references,
            source=row.source,
            row=row.row,
            windowed=windowed,
        )

    def ask(self, row: RawExample) -> tuple[Segment, ...] | RejectedRow:
        shown, _ = self._shortened(row)
        pair = to_pair(shown, self.roles, mend=self.mend, needs_answer=False)
        return pair if isinstance(pair, RejectedRow) else _prompt_of(pair)

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
                fix=f"Give them by name, or the whole prompt as the template writes it: "
                f"{self.roles.template.prompt!r}.",
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
        texts = {column: " ".join(answers_in(row.fields.get(column, ""))) for column in self.roles.inputs}
        return texts.get(self.roles.context) or " ".join(filter(None, texts.values()))

    def _shortened(self, row: RawExample) -> tuple[RawExample, str | None]:
        """The row with a window in place of a context that is too long, and that window."""
        found = shorten(
            row,
            self.roles,
            max_tokens=self.max_tokens,
            reserve=reserve(self.max_new_tokens, self.max_tokens),
            encode=self.encode,
            mend=self.mend,
        )
        return (row, None) if found is None else (found.row, found.window.text)


@dataclass(frozen=True, slots=True)
class ChatForm:
    """Conversations by a chat template."""

    roles: ChatRoles
    template: ChatTemplate
    max_new_tokens: int = CHAT_LENGTH
    mend: Mend | None = None

    @property
    def metrics(self) -> tuple[str, ...]:
        return CHAT_METRICS

    @property
    def says(self) -> tuple[str, ...]:
        return self.roles.says

    def read(self, row: RawExample) -> TextRow | RejectedRow:
        conversation = to_conversation(row, self.roles, mend=self.mend)
        if isinstance(conversation, RejectedRow):
            return conversation
        examples = to_examples(row, self.roles, self.template, mend=self.mend)
        if isinstance(examples, RejectedRow):
            return examples
        *before, last = conversation.turns
        prompt = _rendered(before, self.template, row)
        if isinstance(prompt, RejectedRow):
            return prompt
        asked, given = spoken(before), before[-1].text if before else ""
        return TextRow(examples, prompt, asked, given, (last.text.strip(),), row.source, row.row)

    def ask(self, row: RawExample) -> tuple[Segment, ...] | RejectedRow:
        conversation = to_conversation(row, self.roles, mend=self.mend, needs_answer=False)
        if isinstance(conversation, RejectedRow):
            return conversation
        return _rendered(conversation.turns, self.template, row)

    def ask_text(self, text: str) -> tuple[Segment, ...]:
        """The text as the user's turn; where training made that turn of one column, as it made it."""
        inputs = self.roles.pair.inputs if self.roles.pair else ()
        found = self.ask(RawExample({inputs[0]: text}, "input", 1)) if len(inputs) == 1 else None
        if found is None or isinstance(found, RejectedRow):
            return self.ask_messages([{"role": "user", "content": text}])
        return found

    def ask_messages(self, messages: Sequence[Mapping[str, Any]]) -> tuple[Segment, ...]:
        """What the model is fed for a conversation in OpenAI's layout.

        Raises:
            InputError: the conversation has a fault, or the template can't write it.
        """
        return ask_messages(messages, self.template, mend=self.mend)

    def state(self) -> dict[str, Any]:
        return chat_state(self.roles, self.template, self.max_new_tokens)


@dataclass(frozen=True, slots=True)
class PreferenceForm:
    """One prompt, two answers, written by a chat template."""

    roles: PreferenceRoles
    template: ChatTemplate
    max_new_tokens: int = CHAT_LENGTH
    mend: Mend | None = None

    @property
    def metrics(self) -> tuple[str, ...]:
        return PREFERENCE_METRICS

    @property
    def says(self) -> tuple[str, ...]:
        return self.roles.says

    def read(self, row: RawExample) -> TextRow | RejectedRow:
        example = to_preference_example(row, self.roles, self.template, mend=self.mend)
        if isinstance(example, RejectedRow):
            return example
        preference = to_preference(row, self.roles, mend=self.mend)
        assert not isinstance(preference, RejectedRow)  # or the example would have been
        prompt = _rendered(preference.turns, self.template, row)
        if isinstance(prompt, RejectedRow):
            return prompt
        asked, given = spoken(preference.turns), preference.turns[-1].text
        answers = (preference.chosen, preference.rejected)
        return TextRow((example,), prompt, asked, given, answers, row.source, row.row)

    def ask(self, row: RawExample) -> tuple[Segment, ...] | RejectedRow:
        return ChatForm(_prompt_alone(self.roles), self.template, mend=self.mend).ask(row)

    def ask_text(self, text: str) -> tuple[Segment, ...]:
        return self.ask_messages([{"role": "user", "content": text}])

    def ask_messages(self, messages: Sequence[Mapping[str, Any]]) -> tuple[Segment, ...]:
        """As `ChatForm.ask_messages`."""
        return ask_messages(messages, self.template, mend=self.mend)

    def state(self) -> dict[str, Any]:
        """As a chat is served, with the columns that a new file of preferences is read by."""
        roles = {key: value for key, value in dataclasses.asdict(self.roles).items() if key != "says"}
        chat = chat_state(_prompt_alone(self.roles), self.template, self.max_new_tokens)
        return {**chat, "preference": roles}


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


def restore_preference_form(state: Mapping[str, Any], chat: ChatForm) -> PreferenceForm:
    """The form that a preference run's rows were read by, from the bundle's state and its chat."""
    kept = dict(state["preference"])
    roles = PreferenceRoles(**{**kept, "scores": tuple(kept["scores"])})
    return PreferenceForm(roles, chat.template, chat.max_new_tokens, chat.mend)


def restore_form(
    state: Mapping[str, Any],
    *,
    max_tokens: int,
    encode: Encode,
    end: str,
    control: Sequence[str],
    mend: Mend | None,
) -> TextForm:
    """The form that a bundle's state was made of."""
    kind, longest = state["kind"], int(state["max_new_tokens"])
    if kind == "plain":
        return PlainForm(longest, mend)
    if kind == "chat":
        given = state["template"]
        template = choose_template(
            given["source"],
            control=control,
            tokens=given["tokens"],
            now=datetime.fromisoformat(given["now"]),
        )
        pair = state["pair"] and _completion_roles(state["pair"])
        roles = ChatRoles(
            state["layout"], state["turns"], pair or None, state["system"], tuple(state["beside"])
        )
        return ChatForm(roles, template, longest, mend)
    return CompletionForm(_completion_roles(state), end, max_tokens, longest, encode, mend)


def chat_state(roles: ChatRoles, template: ChatTemplate, max_new_tokens: int) -> dict[str, Any]:
    """What a bundle keeps of a chat."""
    pair = None
    if roles.pair is not None:
        pair = CompletionForm(roles.pair, "", 0, max_new_tokens, lambda _: []).state()
    return {
        "kind": "chat",
        "layout": roles.layout,
        "turns": roles.turns,
        "pair": pair,
        "system": roles.system,
        "beside": list(roles.beside),
        "max_new_tokens": max_new_tokens,
        "template": {
            "source": template.source,
            "tokens": dict(template.tokens),
            "now": template.now.isoformat(),
        },
    }


def ask_messages(
    messages: Sequence[Mapping[str, Any]], template: ChatTemplate, *, mend: Mend | None
) -> tuple[Segment, ...]:
    """The segments a model is fed before it answers a conversation in OpenAI's layout.

    Raises:
        InputError: the conversation has a fault, or the template can't write it.
    """
    read: Conversation | Faults = read_conversation(list(messages), mend=mend, needs_answer=False)
    if isinstance(read, Faults):
        raise InputError(told(read), where="messages", fix="Mend the conversation.")
    try:
        return render_prompt(read.turns, template)
    except TemplateRefusal as error:
        raise InputError(
            f"the model's chat template refuses it: {error}", where="messages", fix="Change the turns."
        ) from None


def spoken(turns: Sequence[Turn]) -> str:
    """Turns as a person reads them; one alone is just its text."""
    if len(turns) == 1:
        return turns[0].text
    return "\n".join(f"{turn.role}: {turn.text}" for turn in turns)


def _prompt_of(pair: Pair) -> tuple[Segment, ...]:
    return (Segment(pair.prompt, learn=False),) if pair.prompt else ()


def _rendered(
    turns: Sequence[Turn], template: ChatTemplate, row: RawExample
) -> tuple[Segment, ...] | RejectedRow:
    try:
        return render_prompt(turns, template)
    except TemplateRefusal as error:
        return RejectedRow(row.source, row.row, "unreadable", f"the chat template refuses it: {error}")


def _prompt_alone(roles: PreferenceRoles) -> ChatRoles:
    """The column of a preference's prompt, read as a conversation that wants an answer."""
    return ChatRoles("turns", turns=roles.prompt or "prompt", system=roles.system)


def _completion_roles(state: Mapping[str, Any]) -> CompletionRoles:
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
