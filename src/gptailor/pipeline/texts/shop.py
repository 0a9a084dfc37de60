"""What a text run works with: its base, its form, its rows as tokens, and the settled environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from gptailor.data.feeder import Feeder
from gptailor.data.read import ReadResult
from gptailor.data.segments import SegmentEncoder, build_segment_encoder, counter_of, text_behind
from gptailor.data.tokenize import build_encoder
from gptailor.errors import ModelError
from gptailor.launch import remember, resolve_environment
from gptailor.models.load import load_config, load_tokenizer
from gptailor.models.names import Base, context_length, resolve_base
from gptailor.pipeline.columns import refuse_unknown_of_split
from gptailor.pipeline.folder import ENVIRONMENT, base_revision_of
from gptailor.pipeline.place import Listener
from gptailor.pipeline.texts.rows import FormMaker, PreparedTexts, prepare_texts
from gptailor.pipeline.texts.tokens import TextTokens, choose_longest, refuse_window, tokenize_texts
from gptailor.recipe import DataSettings, Recipe
from gptailor.tasks.cells import Mend
from gptailor.tasks.chat import infer_chat
from gptailor.tasks.chat_form import CHAT_LENGTH, ChatForm, PreferenceForm
from gptailor.tasks.completion import infer_completion
from gptailor.tasks.completion_form import CompletionForm
from gptailor.tasks.form import TextForm, reserve
from gptailor.tasks.preference import infer_preference
from gptailor.tasks.presets import PRESETS
from gptailor.tasks.rendering import choose_template, find_end
from gptailor.tasks.writing import ChatTemplate


@dataclass(frozen=True, slots=True)
class BaseText:
    """A base's tokenizer as a text task sees it."""

    base: Base
    tokenizer: PreTrainedTokenizerBase
    encoder: SegmentEncoder
    prefix: tuple[int, ...]
    begins: bool  # whether the tokenizer itself writes its begin token before a text
    end: str  # the string of the token that ends an answer outside of chats
    context: int

    @property
    def tokens(self) -> dict[str, str]:
        """The tokenizer's named tokens."""
        named: Mapping[str, Any] = self.tokenizer.special_tokens_map
        return {name: token for name, token in named.items() if isinstance(token, str)}


@dataclass(frozen=True, slots=True)
class TextShop:
    """Everything a text run works with."""

    recipe: Recipe
    text: BaseText
    prepared: PreparedTexts
    feeder: Feeder
    tokens: TextTokens
    end_ids: frozenset[int]
    environment: dict[str, Any]

    @property
    def base(self) -> Base:
        return self.text.base

    @property
    def form(self) -> TextForm:
        return self.prepared.form

    @property
    def metrics(self) -> tuple[str, ...]:
        """Scores of written answers, the one that decides first."""
        return tuple(self.recipe.evaluate.metrics) or self.form.metrics

    @property
    def max_new_tokens(self) -> int:
        """Longest answer that is written."""
        return min(self.form.max_new_tokens, self.feeder.max_tokens)

    def decode(self, ids: Any) -> str:
        """Token ids as text, special tokens left out."""
        text: str = self.text.encoder.closed.decode(list(ids), skip_special_tokens=True)
        return text

    def answer_bytes(self, ids: Any) -> int:
        """The bytes of an answer's token ids."""
        return len(text_behind(self.text.encoder, list(ids)).encode())


def open_base_text(recipe: Recipe, folder: Path) -> BaseText:
    """The base and its tokenizer.

    Raises:
        ModelError: its tokenizer has no token that ends a text.
    """
    base = resolve_base(recipe.base, revision=base_revision_of(folder) or recipe.revision)
    tokenizer: Any = load_tokenizer(base)
    if tokenizer.eos_token is None:
        raise ModelError(
            "its tokenizer has no end-of-text token, so no answer could ever end.",
            where=f"base {base.name!r}",
            fix="Use a base whose tokenizer has one (eos_token).",
        )
    around = build_encoder(tokenizer.backend_tokenizer, pad_id=int(tokenizer.pad_token_id))
    # GPT-2 and its kin write nothing before a text; in pretraining the end token stood there.
    begin = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    return BaseText(
        base,
        tokenizer,
        build_segment_encoder(tokenizer.backend_tokenizer),
        around.prefix or (int(begin),),
        tokenizer.bos_token_id is not None and around.prefix == (int(tokenizer.bos_token_id),),
        str(tokenizer.eos_token),
        context_length(load_config(base)),
    )


def open_text_shop(recipe: Recipe, folder: Path, listener: Listener) -> TextShop:
    """Reads, splits and tokenizes the rows, and settles the environment of the run."""
    refuse_window(recipe.data)
    text = open_base_text(recipe, folder)
    environment = settle_environment(folder / ENVIRONMENT, text, listener)
    longest = choose_longest(recipe.data.max_tokens, text.context)
    today = datetime.fromisoformat(environment["today"])
    prepared = prepare_texts(recipe, form_maker(recipe, text, longest, today), listener.say)
    chat = recipe.task != "completion"
    kept = reserve(prepared.form.max_new_tokens, longest, chat=chat)
    feeder = Feeder(text.encoder, () if chat else text.prefix, longest, kept, chat=chat)
    listener.say("tokenizing")
    tokens = tokenize_texts(prepared, feeder, recipe.data)
    return TextShop(recipe, text, prepared, feeder, tokens, end_ids(prepared.form, text), environment)


def settle_environment(path: Path, text: BaseText, listener: Listener) -> dict[str, Any]:
    """The environment of the run, with the day that a chat template takes for today: a run that goes on
    tomorrow must write the same texts.
    """
    environment, changed = resolve_environment(path, {"base_revision": text.base.revision})
    now = datetime.now(UTC).replace(tzinfo=None, microsecond=0).isoformat()
    environment.update(remember(path, {"today": now}))
    environment["changed"] = changed
    for change in changed:
        listener.say(f"this machine differs from where the run began, so it is not bit-exact: {change}")
    return environment


def form_maker(recipe: Recipe, text: BaseText, longest: int, today: datetime) -> FormMaker:
    """How the columns of the training file become a form, by the recipe's task."""
    data = recipe.data

    def make(file: ReadResult, mend: Mend) -> TextForm:
        refuse_unknown_of_split(data.split, file.columns, where=data.train)
        if recipe.task == "completion":
            return _completion_form(file, mend, data, text, longest)
        template = _template(text, today)
        length = data.max_new_tokens or CHAT_LENGTH
        if recipe.task == "chat":
            chat = infer_chat(
                file.columns, file.rows, turns=data.text, prompt=data.prompt, completion=data.completion
            )
            return ChatForm(chat, template, length, mend)
        roles = infer_preference(file.columns, prompt=data.prompt, chosen=data.chosen, rejected=data.rejected)
        return PreferenceForm(roles, template, length, mend)

    return make


def end_ids(form: TextForm, text: BaseText) -> frozenset[int]:
    """The tokens that end an answer: the end of text, and a chat template's end of turn."""
    ends = {text.end}
    if isinstance(form, ChatForm | PreferenceForm):
        ends.add(find_end(form.template))
    return frozenset(text.encoder.control[end].id for end in ends if end in text.encoder.control)


def _completion_form(
    file: ReadResult, mend: Mend, data: DataSettings, text: BaseText, longest: int
) -> CompletionForm:
    pair = {"source", "target"} if data.target else set()
    roles = infer_completion(
        file.columns,
        file.rows,
        prompt=data.prompt,
        completion=data.completion,
        preset=data.preset or ("translation" if pair <= set(file.columns) and pair else None),
    )
    length = data.max_new_tokens or PRESETS[roles.preset].max_new_tokens
    return CompletionForm(roles, text.end, longest, length, counter_of(text.encoder), mend)


def _template(text: BaseText, today: datetime) -> ChatTemplate:
    source = getattr(text.tokenizer, "chat_template", None)
    return choose_template(
        source if isinstance(source, str) else None,
        control=text.encoder.control,
        tokens=text.tokens,
        now=today,
        begins=text.begins,
    )
