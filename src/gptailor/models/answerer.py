"""The answerer: a bundle whose answer is text, in memory, from a request to what is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from gptailor.data.clean import repair
from gptailor.data.feeder import Feeder
from gptailor.data.segments import build_segment_encoder, counter_of
from gptailor.errors import InputError, ModelError
from gptailor.models.bundle import find_model_folder, read_bundle
from gptailor.models.decode import Decoder, Generated, Request
from gptailor.models.generate import generate
from gptailor.models.load import load_saved_language_model, load_tokenizer
from gptailor.models.names import Base, context_length
from gptailor.models.sampling import Sampling
from gptailor.tasks.form import ChatForm, PlainForm, TextForm, reserve, restore_form
from gptailor.types import Bundle, RawExample, RejectedRow, Segment

LANGUAGE_LENGTH = 128  # tokens that a language model writes unless told otherwise


class Answerer:
    """A loaded model that answers with text. Immutable after loading; used from one thread at a time.

    A request becomes the very token ids that training saw for such a row: same repair, same template, same
    cut of what is too long.
    """

    def __init__(self, folder: Path, bundle: Bundle) -> None:
        self.bundle = bundle
        self.name = folder.parent.name if folder.name == "model" else folder.name
        self.tokenizer: Any = load_tokenizer(Base(folder.name, folder, "", "folder"))
        self.model = load_saved_language_model(folder)
        self.context = context_length(self.model.config)
        self.pad = int(self.tokenizer.pad_token_id)
        encoder = build_segment_encoder(self.tokenizer.backend_tokenizer)
        clean: dict[str, Any] = {**bundle.clean, "squeeze_space": False}
        mend: Callable[[str], str] = partial(repair, **clean)
        state = dict(bundle.form) or self._plain_state()
        self.max_tokens = bundle.max_tokens
        self.end_ids = frozenset(int(token) for token in state["end_ids"])
        self._closed = encoder.closed
        self._encode = counter_of(encoder)
        self.form: TextForm = restore_form(
            state,
            max_tokens=bundle.max_tokens,
            encode=self._encode,
            end=str(self.tokenizer.eos_token),
            control=list(encoder.control),
            mend=mend,
        )
        self.is_chat = isinstance(self.form, ChatForm)
        self.feeder = Feeder(
            encoder,
            tuple(int(token) for token in state["prefix"]),
            bundle.max_tokens,
            reserve(self.form.max_new_tokens, bundle.max_tokens),
            chat=self.is_chat,
        )

    @property
    def max_new_tokens(self) -> int:
        """Longest answer unless a request says otherwise."""
        return min(self.form.max_new_tokens, self.max_tokens)

    def feed(self, segments: Sequence[Segment]) -> tuple[int, ...]:
        """The token ids of one prompt.

        Raises:
            InputError: a conversation leaves no room for an answer.
        """
        [ids] = self.feeder.feed([segments])
        if ids is None:
            raise InputError(
                f"the conversation is longer than {self.max_tokens - self.feeder.reserve:,} tokens, "
                "which is as far as the model reads with an answer.",
                where="messages",
                fix="Leave out its earliest turns.",
            )
        return ids or tuple(self.end_ids)[:1]

    def feed_text(self, text: str) -> tuple[int, ...]:
        """The token ids for one text; see `TextForm.ask_text`."""
        return self.feed(self.form.ask_text(text))

    def feed_messages(self, messages: Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
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
        return self.feed(self.form.ask_messages(messages))

    def feed_row(self, row: RawExample) -> tuple[int, ...] | RejectedRow:
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
        return generate(
            self.model,
            prompts,
            sampling or Sampling(max_new_tokens=self.max_new_tokens),
            decode=self.decode,
            end=self.end_ids,
            pad=self.pad,
        )

    def decoder(self) -> Decoder:
        """A decoder of its own, for requests that come and go."""
        return Decoder(self.model, decode=self.decode, end=self.end_ids, pad=self.pad)

    def decode(self, ids: Sequence[int]) -> str:
        """Token ids as text, special tokens left out."""
        text: str = self._closed.decode(list(ids), skip_special_tokens=True)
        return text

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
        ModelError: it isn't a finished run, or is a classifier.
    """
    folder = find_model_folder(run)
    bundle = read_bundle(folder)
    if bundle.task == "classification":
        raise ModelError(
            "is a classifier; it labels texts and doesn't write any.",
            where=str(run),
            fix="Use a run whose answer is text.",
        )
    return Answerer(folder, bundle)
