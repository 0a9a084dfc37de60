"""The answerer: a bundle whose answer is text, in memory, from a request to what is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from gptailor.data.feeder import Feeder, PromptIds
from gptailor.data.repair import repair
from gptailor.data.segments import build_segment_encoder, counter_of, text_behind
from gptailor.errors import InputError, ModelError, PromptTooLong, did_you_mean
from gptailor.models.bundle import LONGEST_TEXT, name_of, read_writing_bundle
from gptailor.models.decode import Decoder, Generated, Request
from gptailor.models.generate import FREELY, generate
from gptailor.models.load import load_saved_language_model, load_tokenizer
from gptailor.models.names import Base, context_length, served_version
from gptailor.models.replay import probe_difference, torch_answers
from gptailor.models.sampling import Sampling
from gptailor.models.saved import PARITY_TOLERANCE
from gptailor.tasks.chat_form import ChatForm
from gptailor.tasks.completion_form import CompletionForm
from gptailor.tasks.form import PlainForm, TextForm, reserve
from gptailor.tasks.restore import restore_form
from gptailor.types import Bundle, RawExample, RejectedRow, Segment

LANGUAGE_LENGTH = 128  # tokens that a language model writes unless told otherwise
# Tokens of a prompt and its answer, unless training read more: the cache for a context of 131,072, as some
# bases of a billion weights have it, would take tens of gigabytes.
LONGEST_CONTEXT = 8192
CHARACTERS_A_TOKEN = 16  # more than any text has on average


class Answerer:
    """A loaded model that answers with text. Immutable after loading; used from one thread at a time.

    A request becomes the very token ids that training saw for such a row: same repair, same template, same
    cut of what is too long.
    """

    def __init__(self, folder: Path, bundle: Bundle) -> None:
        self.bundle = bundle
        self.name = name_of(folder)
        self.tokenizer: Any = load_tokenizer(Base(folder.name, folder, "", "folder"))
        self.model = load_saved_language_model(folder)
        self.context = min(context_length(self.model.config), max(LONGEST_CONTEXT, bundle.max_tokens))
        self.pad = int(self.tokenizer.pad_token_id)
        encoder = build_segment_encoder(self.tokenizer.backend_tokenizer)
        clean: dict[str, Any] = {**bundle.clean, "squeeze_space": False}
        mend: Callable[[str], str] = partial(repair, **clean)
        state = dict(bundle.form) or self._plain_state()
        self.max_tokens = bundle.max_tokens
        self.no_repeat = int(state.get("no_repeat", 0))
        self.end_ids = frozenset(int(token) for token in state["end_ids"])
        self._segments = encoder
        self._encode = counter_of(encoder)
        self.form: TextForm = restore_form(
            state,
            max_tokens=bundle.max_tokens,
            encode=self._encode,
            end=str(self.tokenizer.eos_token),
            control=list(encoder.control),
            mend=mend,
        )
        self._control = {token.id: string for string, token in encoder.control.items()}
        self.is_chat = isinstance(self.form, ChatForm)
        self.feeder = Feeder(
            encoder,
            tuple(int(token) for token in state["prefix"]),
            bundle.max_tokens,
            reserve(self.form.max_new_tokens, bundle.max_tokens, chat=self.is_chat),
            chat=self.is_chat,
        )

    @property
    def max_prompt_tokens(self) -> int:
        """Longest prompt that is answered as it is; those of a template's may be cut, in files."""
        return self.feeder.max_tokens - self.feeder.reserve

    @property
    def max_characters(self) -> int:
        """Longest text that is looked at: more than the model can read, whatever its tokens are."""
        return max(LONGEST_TEXT, CHARACTERS_A_TOKEN * self.context)

    @property
    def max_new_tokens(self) -> int:
        """Longest answer unless a request says otherwise."""
        return min(self.form.max_new_tokens, self.max_tokens)

    @property
    def usual(self) -> Sampling:
        """How it answers unless a request says otherwise: greedily, as it was tested; texts go on freely."""
        if self.task == "language":
            return replace(FREELY, max_new_tokens=self.max_new_tokens)
        return Sampling(max_new_tokens=self.max_new_tokens, no_repeat=self.no_repeat)

    @cached_property
    def version(self) -> str:
        """A hash of the model's files."""
        return served_version(self.bundle.path)

    @property
    def task(self) -> str:
        """The task it was trained for."""
        return self.bundle.task

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that a prompt is made of; none where a text is fed as it stands, or a conversation."""
        return self.form.roles.inputs if isinstance(self.form, CompletionForm) else ()

    @property
    def template(self) -> str | None:
        """How a prompt is written: a pattern over the columns, or a chat template's source."""
        if isinstance(self.form, CompletionForm):
            return self.form.roles.template.prompt
        return self.form.template.source if isinstance(self.form, ChatForm) else None

    def feed(self, segments: Sequence[Segment], *, whole: bool = False) -> PromptIds:
        """The token ids of one prompt. `whole`: one that is too long isn't cut as in training.

        Raises:
            PromptTooLong: a conversation, or what isn't to be cut, leaves no room for an answer.
        """
        return self._fed(replace(self.feeder, chat=self.is_chat or whole), segments)

    def feed_text(self, text: str, *, whole: bool = False) -> PromptIds:
        """The token ids for one text; see `TextForm.ask_text`."""
        return self.feed(self.form.ask_text(text), whole=whole)

    def feed_raw(self, text: str) -> PromptIds:
        """The token ids for a prompt as it stands: no template, no repair, as long as the model reads."""
        segments = [Segment(text, learn=False)] if text else []
        return self._fed(replace(self.feeder, max_tokens=self.context, reserve=1, chat=True), segments)

    def feed_values(self, values: Mapping[str, str], *, whole: bool = False) -> PromptIds:
        """The token ids for the template's columns, given by name.

        Raises:
            InputError: the model has no such columns, or they hold no text.
        """
        if not isinstance(self.form, CompletionForm) or not self.columns:
            raise InputError("this model has no columns.", where="values", fix="Give a prompt.")
        known, optional = self.columns, self.form.roles.template.optional
        for name in values:
            if name not in known:
                hint = did_you_mean(name, known)
                raise InputError(
                    f"there is no column {name!r}.{hint}", where="values", fix=f"Give {', '.join(known)}."
                )
        missing = [name for name in known if name not in values and name != optional]
        if missing:
            raise InputError(
                f"{', '.join(missing)} is missing.", where="values", fix=f"Give {', '.join(known)}."
            )
        asked = self.form.ask(RawExample(dict(values), "values", 1))
        if isinstance(asked, RejectedRow):
            raise InputError(f"{asked.detail}.", where="values", fix="Give some text.")
        return self.feed(asked, whole=whole)

    def _fed(self, feeder: Feeder, segments: Sequence[Segment]) -> PromptIds:
        [ids] = feeder.feed([segments])
        if ids is None:
            raise self._too_long(feeder)
        return ids or PromptIds(tuple(self.end_ids)[:1])

    def _too_long(self, feeder: Feeder) -> PromptTooLong:
        what, fix = ("conversation", "Leave out its earliest turns.")
        if not self.is_chat or feeder.reserve == 1:
            what, fix = "prompt", "Shorten it."
        return PromptTooLong(
            f"the {what} is longer than {feeder.max_tokens - feeder.reserve:,} tokens, "
            "which is as far as the model reads with an answer.",
            where="messages" if what == "conversation" else "prompt",
            fix=fix,
        )

    def feed_messages(self, messages: Sequence[Mapping[str, Any]]) -> PromptIds:
        """The token ids for a conversation in OpenAI's layout.

        Raises:
            InputError: the model isn't for chats, or the conversation has a fault.
        """
        if not isinstance(self.form, ChatForm):
            raise InputError(
                "this model wasn't trained on conversations.",
                where="messages",
                fix="Ask it by /v1/completions, with a prompt.",
            )
        return self.feed(self.form.ask_messages(messages, check=self._check_room))

    def _check_room(self, segments: Sequence[Segment]) -> None:
        """Refuses a conversation that is far too long, wherever its answers begin: no token reaches over
        such a place, which may save a token here and there, and never half of them.
        """
        room = self.feeder.max_tokens - self.feeder.reserve
        if replace(self.feeder, max_tokens=2 * room, reserve=0).feed([segments]) == [None]:
            raise self._too_long(self.feeder)

    def feed_row(self, row: RawExample) -> PromptIds | RejectedRow:
        """The token ids for a row of a file, or why it can't be asked."""
        asked = self.form.ask(row)
        if isinstance(asked, RejectedRow):
            return asked
        try:
            return self.feed(asked)
        except InputError as error:
            return RejectedRow(row.source, row.row, "too_long", error.what)

    def request(self, prompt: Sequence[int], sampling: Sampling, *, top: int = 0) -> Request:
        """A request for the decoder."""
        return Request(tuple(prompt), sampling, top)

    def answer(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling | Sequence[Sampling] | None = None
    ) -> list[Generated]:
        """What is written after each prompt; greedy unless told otherwise."""
        written = generate(
            self.model,
            prompts,
            sampling or self.usual,
            decode=self.decode,
            end=self.end_ids,
            pad=self.pad,
            context=self.context,
        )
        cut = [isinstance(prompt, PromptIds) and prompt.left_out > 0 for prompt in prompts]
        return [replace(one, truncated=own) for one, own in zip(written, cut, strict=True)]

    def shown(self, answer: Generated) -> str:
        """An answer as a person reads it; of a text that goes on, the blank it begins with is a part."""
        return answer.text if self.task == "language" else answer.text.strip()

    def decoder(self) -> Decoder:
        """A decoder of its own, for requests that come and go."""
        return Decoder(self.model, decode=self.decode, end=self.end_ids, pad=self.pad, context=self.context)

    def decode(self, ids: Sequence[int]) -> str:
        """Token ids as text, special tokens left out."""
        text: str = self._segments.closed.decode(list(ids), skip_special_tokens=True)
        return text

    def token_text(self, token_id: int) -> str:
        """A token as text, its leading blank kept; for a piece of a character, U+FFFD."""
        return self._control.get(token_id) or self.text_behind([token_id])

    def text_behind(self, ids: Sequence[int]) -> str:
        """The text of token ids that have others before them."""
        return text_behind(self._segments, ids)

    def verify_probes(self) -> None:
        """Asks the stored probes again.

        Raises:
            ModelError: this machine doesn't give the answers that were stored.
        """
        if not self.bundle.probes:
            return
        difference = probe_difference(self.bundle.probes, torch_answers(self.model))
        if not difference <= PARITY_TOLERANCE:
            raise ModelError(
                f"a stored probe is answered differently (nats differ by {difference:.2g}).",
                where=str(self.bundle.path),
                fix="The weights or the libraries changed; fit again.",
            )

    def count_text(self, text: str) -> int:
        """How many tokens a text has."""
        return len(self._encode([text])[0])

    def _plain_state(self) -> dict[str, Any]:
        """The form of a language model: a text as it stands, after the token that began its documents."""
        end = self.tokenizer.eos_token_id
        end = self.tokenizer.bos_token_id if end is None else end
        begin = self.tokenizer.bos_token_id
        state = PlainForm(LANGUAGE_LENGTH).state()
        return {**state, "prefix": [int(end if begin is None else begin)], "end_ids": [int(end)]}


def load_answerer(run: Path) -> Answerer:
    """The model of a run folder or a model folder.

    Raises:
        ModelError: it isn't a finished run, is a classifier, or doesn't give the answers that were stored.
    """
    bundle = read_writing_bundle(run)
    answerer = Answerer(bundle.path, bundle)
    answerer.verify_probes()
    return answerer
