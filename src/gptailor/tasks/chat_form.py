"""Chat and preference as forms: conversations by a chat template, with one answer or with two."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gptailor.errors import InputError, ModelError
from gptailor.tasks.cells import Mend
from gptailor.tasks.chat import ChatRoles, examples_of, to_conversation
from gptailor.tasks.completion import Pair, inputs_of, to_pair
from gptailor.tasks.completion_form import CompletionForm
from gptailor.tasks.conversation import Conversation, Faults, Turn, read_conversation, told
from gptailor.tasks.form import TextRow
from gptailor.tasks.limits import one_deadline
from gptailor.tasks.pattern import fill
from gptailor.tasks.preference import PreferenceRoles, to_preference
from gptailor.tasks.preference import to_example as to_preference_example
from gptailor.tasks.recognize import CompletionRoles
from gptailor.tasks.rendering import Check, TemplateRefusal, render_prompt
from gptailor.tasks.writing import ChatTemplate
from gptailor.types import RawExample, RejectedRow, Segment

CHAT_METRICS = ("chrf", "rouge_l")
CHAT_LENGTH = 256  # tokens of an answer, at most
PREFERENCE_METRICS = ("preference_accuracy",)
SYSTEM = ("system", "developer")  # roles whose text is often that of every conversation


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
        examples = examples_of(conversation, row, self.roles, self.template)
        if isinstance(examples, RejectedRow):
            return examples
        # A last turn of weight 0 is one that its owner doesn't want: no answer to compare with.
        place = max(place for place, turn in enumerate(conversation.turns) if turn.learn)
        before, answer = conversation.turns[:place], conversation.turns[place]
        prompt = _rendered(before, self.template, row)
        if isinstance(prompt, RejectedRow):
            return prompt
        pair = self.roles.pair
        values = inputs_of(row, pair, mend=self.mend).values() if pair else ()
        return TextRow(
            sequences=examples,
            prompt=prompt,
            asked=spoken(before),
            given=before[-1].text if before else "",
            references=self._references(row, answer.text),
            source=row.source,
            row=row.row,
            varies=tuple(values) or (spoken(_without_system(before)),),
            system=_system_of(before),
            remarks=conversation.remarks,
        )

    def ask(self, row: RawExample) -> tuple[Segment, ...] | RejectedRow:
        conversation = to_conversation(row, self.roles, mend=self.mend, needs_answer=False)
        if isinstance(conversation, RejectedRow):
            return conversation
        turns = conversation.turns
        while turns and turns[-1].role == "assistant":  # the answer, in a file that holds it
            turns = turns[:-1]
        return _rendered(turns, self.template, row)

    def ask_text(self, text: str) -> tuple[Segment, ...]:
        """The text as the user's turn; where training made that turn of one column, as it made it."""
        inputs = self.roles.pair.inputs if self.roles.pair else ()
        found = self.ask(RawExample({inputs[0]: text}, "input", 1)) if len(inputs) == 1 else None
        if found is None or isinstance(found, RejectedRow):
            return self.ask_messages([{"role": "user", "content": text}])
        return found

    def ask_messages(
        self, messages: Sequence[Mapping[str, Any]], *, check: Check | None = None
    ) -> tuple[Segment, ...]:
        """What the model is fed for a conversation in OpenAI's layout; `check` as in `render_prompt`.

        Where training made the question of columns, their outer white space was taken off, as is here.

        Raises:
            InputError: the conversation has a fault, or the template can't write it within its limits.
        """
        strip = self.roles.pair is not None and _is_bare(self.roles.pair)
        return ask_messages(messages, self.template, mend=self.mend, strip=strip, check=check)

    def state(self) -> dict[str, Any]:
        return chat_state(self.roles, self.template, self.max_new_tokens)

    def _references(self, row: RawExample, learned: str) -> tuple[str, ...]:
        """The answer that is learned, and where it stands in a column of several the others."""
        pair = to_pair(row, self.roles.pair, mend=self.mend) if self.roles.pair else None
        others = pair.completions if isinstance(pair, Pair) else ()
        return tuple(dict.fromkeys(text.strip() for text in (learned, *others)))


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
        return TextRow(
            sequences=(example,),
            prompt=prompt,
            asked=spoken(preference.turns),
            given=preference.turns[-1].text,
            references=(preference.chosen, preference.rejected),
            source=row.source,
            row=row.row,
            varies=(spoken(_without_system(preference.turns)),),
            system=_system_of(preference.turns),
        )

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
    messages: Sequence[Mapping[str, Any]],
    template: ChatTemplate,
    *,
    mend: Mend | None,
    strip: bool = False,
    check: Check | None = None,
) -> tuple[Segment, ...]:
    """The segments a model is fed before it answers a conversation in OpenAI's layout.

    Args:
        messages: The turns.
        template: Writes them.
        mend: Repairs every text.
        strip: Takes the outer white space off what the user says.
        check: As in `render_prompt`.

    Raises:
        InputError: the conversation has a fault, or the template can't write it within its limits.
    """
    read: Conversation | Faults = read_conversation(
        list(messages), mend=mend, needs_answer=False, empty_answers=True
    )
    if isinstance(read, Faults):
        raise InputError(told(read), where="messages", fix="Mend the conversation.")
    turns = [
        dataclasses.replace(turn, text=turn.text.strip()) if strip and turn.role == "user" else turn
        for turn in read.turns
    ]
    try:
        with one_deadline():
            return render_prompt(turns, template, check=check)
    except TemplateRefusal as error:
        raise InputError(
            f"the model's chat template refuses it: {error}", where="messages", fix="Change the turns."
        ) from None
    except ModelError as error:  # it was tried when the model was loaded, so it is this conversation
        raise InputError(error.what, where="messages", fix="Shorten the conversation.") from None


def spoken(turns: Sequence[Turn]) -> str:
    """Turns as a person reads them; one alone is just its text."""
    if len(turns) == 1:
        return turns[0].text
    return "\n".join(f"{turn.role}: {turn.text}" for turn in turns)


def _without_system(turns: Sequence[Turn]) -> list[Turn]:
    return [turn for turn in turns if turn.role not in SYSTEM]


def _system_of(turns: Sequence[Turn]) -> str:
    return "\n".join(turn.text for turn in turns if turn.role in SYSTEM)


def _rendered(
    turns: Sequence[Turn], template: ChatTemplate, row: RawExample
) -> tuple[Segment, ...] | RejectedRow:
    try:
        return render_prompt(turns, template)
    except TemplateRefusal as error:
        return RejectedRow(row.source, row.row, "unreadable", f"the chat template refuses it: {error}")


def _is_bare(pair: CompletionRoles) -> bool:
    """Whether what columns are written into has no outer white space of its own."""
    written = fill(pair.prompt, dict.fromkeys(pair.inputs, "x"))
    return written == written.strip()


def _prompt_alone(roles: PreferenceRoles) -> ChatRoles:
    """The column of a preference's prompt, read as a conversation that wants an answer."""
    return ChatRoles("turns", turns=roles.prompt or "prompt", system=roles.system)
