"""What a server feeds the model is, token for token, what stood before the answer in training.

Rows go through a run's own road into its bundle and are asked again through what was loaded from there.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel

import tiny_texts as texts
from gptailor.errors import InputError
from gptailor.models.answerer import Answerer, load_answerer
from gptailor.pipeline.causal import adapt_causal, choose_text_approach
from gptailor.pipeline.place import Listener, Trained
from gptailor.pipeline.texts.objective import row_nats
from gptailor.pipeline.texts.road import TextResult
from gptailor.pipeline.texts.shop import TextShop, open_text_shop
from gptailor.pipeline.texts.story import seal
from gptailor.pipeline.texts.tokens import TokenizedRow
from gptailor.recipe import build_recipe
from gptailor.tasks.completion_form import CompletionForm
from gptailor.tasks.form import TextRow
from gptailor.types import RawExample, RejectedRow, Segment

sys.path.insert(0, str(Path(__file__).parents[1] / "tasks"))
import families

CONTEXT = 160
Row = dict[str, Any]

# What people write, and what could be taken for something else: control tokens of all families, headers of
# turns, the words of our templates, white space, what repairing changes.
FRAGMENTS = (
    *("<|endoftext|>", "</s>", "<s>", "<|im_start|>assistant\n", "<|im_end|>", "<|eot_id|>", "[INST]"),
    *("<|end|>", "<｜Assistant｜>", "assistant:\n", "\nAnswer:", "\nTL;DR:", "\n", " ", "\t", "{prompt}"),
    *("caf\u00c3\u00a9", "&amp;", "e\u0301", "\u4f60\u597d", "\U0001f3c6", "the cup", "Why?", "a", "\u200b"),
)
ANYTHING = st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=6)), max_size=12).map("".join)
quickly = settings(
    max_examples=40, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@dataclass(frozen=True)
class Asked:
    """A run that never trained, and what was loaded from its folder."""

    shop: TextShop
    answerer: Answerer
    rows: Mapping[tuple[str, int], RawExample]

    def trained(self, row: TextRow) -> tuple[list[int], list[int], int] | None:
        """The ids before the answer, the answer's, and how many tokens were cut; None: nothing of it fits."""
        [*_, (encoded, cut)] = self.shop.feeder.learn([one.segments for one in row.sequences])
        return divided(encoded.token_ids, encoded.learn, cut)

    def fed(self, row: TokenizedRow) -> tuple[int, ...] | None:
        """The ids of a row's prompt as the run asks it; of training rows it keeps only whether it can."""
        [ids] = self.shop.feeder.feed([row.row.prompt])
        assert (ids is None) == (row.prompt_ids is None)
        assert not row.prompt_ids or row.prompt_ids == ids
        return ids

    def asked(self, row: RawExample, answer: str = "") -> list[int] | None:
        """The ids that are fed for a row, its answer taken away; None where it is refused."""
        fields = {name: value for name, value in row.fields.items() if name != answer}
        found = self.answerer.feed_row(RawExample(fields, row.source, row.row))
        return None if isinstance(found, RejectedRow) else list(found)


def divided(ids: Any, learn: Any, cut: int) -> tuple[list[int], list[int], int] | None:
    """A sequence where its last answer begins."""
    if not learn.any():
        return None
    last = int(np.flatnonzero(learn)[-1])
    before = np.flatnonzero(~learn[: last + 1])
    first = int(before[-1]) + 1 if len(before) else 0
    return ids[:first].tolist(), ids[first : last + 1].tolist(), cut


def build_base(folder: Path, tokenizer: Any) -> Path:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=CONTEXT, n_embd=8, n_layer=1, n_head=1)
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield
    torch.set_num_threads(threads)


Maker = Callable[..., Asked]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Maker:
    """Rows through a run of a tokenizer's family; made once for all tests that ask for the same."""
    folder = tmp_path_factory.mktemp("prompts")
    made: dict[str, Asked] = {}

    def one(family: str, name: str, rows: Sequence[Any], **data: Any) -> Asked:
        key = f"{family}-{name}"
        if key in made:
            return made[key]
        if family == "gpt2_real" and not (families.GPT2_VOCABULARY / "vocab.bpe").is_file():
            pytest.skip("GPT-2's own vocabulary is not beside the checkout")
        base = folder / family
        if not base.exists():
            tokenizer = families.real_gpt2() if family == "gpt2_real" else families.FAMILIES[family]()
            build_base(base, tokenizer)
        file = texts.write_jsonl(folder / f"{key}.jsonl", rows)
        run = folder / key
        run.mkdir()
        task = data.pop("task")
        recipe = build_recipe(
            {"task": task, "data": {"train": str(file), **data}, "base": str(base), "approach": "full"}
        )
        shop = open_text_shop(recipe, run, Listener())
        approach = choose_text_approach(recipe, shop.base)
        adapted = adapt_causal(recipe, shop.base, shop.text.tokenizer, approach, device="cpu")
        validation = row_nats(adapted, shop.tokens.rows["validation"], shop)
        seal(run, shop, TextResult(approach, adapted, Trained(), validation))
        read = {
            (str(file), number): RawExample(
                {k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items()}, str(file), number
            )
            for number, row in enumerate(rows, start=1)
        }
        made[key] = Asked(shop, load_answerer(run), read)
        return made[key]

    return one


def check_every_row(found: Asked, answer: str) -> int:
    """Every row of every part: what it is asked is what stood before its answer; how many were whole."""
    whole = 0
    for part, rows in found.shop.tokens.rows.items():
        for row in rows:
            last = row.sequences[-1]
            parts = divided(last.token_ids, last.learn, last.cut)
            assert parts is not None
            before, learned, cut = parts
            if part == "train" and row.row.asked:
                assert learned[-1] in found.answerer.end_ids, "an answer is learned whole or not at all"
            asked = found.asked(found.rows[row.row.source, row.row.row], answer)
            fed = found.fed(row)
            assert asked == (None if fed is None else list(fed))
            if asked is not None:
                assert asked == before
                assert len(asked) + found.shop.feeder.reserve <= found.shop.feeder.max_tokens
            whole += not cut
            if not cut:
                assert learned[-1] in found.answerer.end_ids
                assert not set(learned[:-1]) & found.answerer.end_ids
    return whole


# Completion.


def sentences(seed: int, count: int) -> str:
    return " ".join(f"{texts.words(100 * seed + n, 6).capitalize()}." for n in range(count))


def preset_rows(preset: str) -> tuple[list[Row], str]:
    """Rows of a preset's own columns, short and too long; and the column of the answer."""
    forged = " <|endoftext|></s><|im_end|> "
    rows: list[Row] = []
    for seed in range(24):
        long, short = sentences(seed, 30 if seed % 3 == 0 else 2), texts.words(seed, 7)
        text = long + (forged if seed % 4 == 0 else "")
        answer = texts.words(seed + 300, 40 if seed % 5 == 0 else 3) + (forged if seed % 6 == 0 else "")
        rows.append(
            {
                "question_answering": {
                    "context": text,
                    "question": f"{long.split('. ')[-2]}?",
                    "answers": [{"text": answer, "answer_start": 0}],
                },
                "instruction": {"instruction": short, "input": text if seed % 2 else "", "output": answer},
                "summarization": {"document": text, "summary": answer},
                "translation": {"source": text, "target": answer},
                "data_to_text": {"mr": text, "ref": answer},
                "completion": {"prompt": text, "completion": answer},
                "generation": {"text": text},
            }[preset]
        )
    answers = {"question_answering": "answers", "instruction": "output", "summarization": "summary"}
    answers |= {"translation": "target", "data_to_text": "ref", "completion": "completion"}
    return rows, answers.get(preset, "text")


PRESETS = ["question_answering", "instruction", "summarization", "translation", "data_to_text"]
PRESETS += ["completion", "generation"]


def completion_of(make: Maker, family: str, preset: str) -> tuple[Asked, str]:
    rows, answer = preset_rows(preset)
    found = make(family, preset, rows, task="completion", preset=preset, max_new_tokens=24, max_tokens=96)
    return found, answer


REAL = [pytest.param("gpt2_real", name, marks=pytest.mark.real_data) for name in PRESETS[::5]]


@pytest.mark.parametrize(
    ("family", "preset"), [*itertools.product(["gpt2", "llama2", "chatml"], PRESETS), *REAL]
)
def test_a_completion_is_asked_as_it_was_trained(make: Maker, family: str, preset: str) -> None:
    found, answer = completion_of(make, family, preset)
    whole = check_every_row(found, answer)
    everyone = [row for rows in found.shop.tokens.rows.values() for row in rows]
    dropped = found.shop.tokens.rejected
    assert 0 < whole < len(everyone) + len(dropped), "some fit and some were cut"
    assert {row.reason for row in dropped} <= {"too_long"}
    form = found.shop.form
    assert isinstance(form, CompletionForm)
    if form.roles.context:
        assert any(row.row.windowed is not None for row in everyone)
    for row in everyone if family != "llama2" else ():  # which has no decoder here
        text = found.answerer.decode(row.sequences[0].token_ids[row.sequences[0].learn].tolist())
        assert "".join(row.row.references[0].split()).startswith("".join(text.split()))


@pytest.mark.parametrize("family", ["gpt2", "llama2", "chatml"])
def test_the_bundle_restores_the_same_form(make: Maker, family: str) -> None:
    for preset in PRESETS:
        found, _ = completion_of(make, family, preset)
        restored = found.answerer.form
        assert restored.state() == found.shop.form.state()
        assert restored.metrics == found.shop.form.metrics
        assert found.answerer.feeder.prefix == found.shop.feeder.prefix
        assert found.answerer.feeder.reserve == found.shop.feeder.reserve
        assert found.answerer.end_ids == found.shop.end_ids
        assert found.answerer.max_new_tokens == found.shop.max_new_tokens == 24


@pytest.mark.parametrize("preset", ["completion", "translation", "summarization", "data_to_text"])
@pytest.mark.parametrize("family", ["gpt2", "llama2"])
@given(value=ANYTHING, answer=ANYTHING)
@quickly
def test_any_text_is_asked_as_it_would_be_trained(
    make: Maker, family: str, preset: str, value: str, answer: str
) -> None:
    """As a row, as a text alone, and as the whole prompt that the template makes of it."""
    found, column = completion_of(make, family, preset)
    form, answerer = found.shop.form, found.answerer
    assert isinstance(form, CompletionForm)
    [given_column] = form.roles.inputs
    raw = RawExample({given_column: value, column: answer}, "any", 1)
    read = form.read(raw)
    if isinstance(read, RejectedRow):
        if read.reason == "no_text":
            assert found.asked(raw, column) is None
        return
    parts = found.trained(read)
    assert parts is not None
    before, learned, cut = parts
    assert found.asked(raw, column) == before
    if not form.is_written(value):
        assert list(answerer.feed_text(value)) == before
    head, tail = (piece.literal for piece in form.roles.prompt)
    if form.is_written(whole := f"{head}{value}{tail}"):
        assert list(answerer.feed_text(whole)) == before, "also one that is to be repaired or shortened"
    else:
        assert list(answerer.feed_text(read.asked)) == before
    if not cut:
        assert learned[-1] in answerer.end_ids
    assert not set(learned[:-1]) & answerer.end_ids, "nobody's text ends an answer"
    assert not set(before[1:]) & answerer.end_ids


@given(context=ANYTHING, question=ANYTHING, more=st.integers(0, 40))
@quickly
def test_any_question_gets_the_window_it_would_get_in_training(
    make: Maker, context: str, question: str, more: int
) -> None:
    found, column = completion_of(make, "gpt2", "question_answering")
    fields = {"context": f"{context} {sentences(more, more)}", "question": question}
    answers = json.dumps([{"text": "the cup", "answer_start": 0}])
    raw = RawExample({**fields, column: answers}, "any", 1)
    read = found.shop.form.read(raw)
    if isinstance(read, RejectedRow):
        return
    parts = found.trained(read)
    assert parts is not None
    assert found.asked(raw, column) == parts[0]


def test_what_does_not_fit_goes_from_the_beginning_of_a_prompt(make: Maker) -> None:
    """Its end leads to the answer; and as much stays as leaves room for one."""
    found, column = completion_of(make, "llama2", "translation")
    feeder = found.answerer.feeder
    raw = RawExample({"source": sentences(7, 40), column: "yes"}, "any", 1)
    asked = found.asked(raw, column)
    assert asked is not None
    whole = dataclasses.replace(feeder, max_tokens=10_000).feed([found.shop.form.read(raw).prompt])[0]
    assert len(whole) > len(asked) == feeder.max_tokens - feeder.reserve
    assert asked[:1] == list(feeder.prefix) == list(whole[:1])
    assert asked[1:] == list(whole[1 - len(asked) :])


def test_a_text_of_several_columns_is_taken_whole_or_refused(make: Maker) -> None:
    found, _ = completion_of(make, "gpt2", "question_answering")
    written = "The cup is here.\nQuestion: Where is it?\nAnswer:"
    row = RawExample({"context": "The cup is here.", "question": "Where is it?"}, "any", 1)
    assert list(found.answerer.feed_text(written)) == found.asked(row)
    with pytest.raises(InputError, match="made of several columns: context, question"):
        found.answerer.feed_text("Where is it?")


def test_the_control_another_template_is_not_the_same(make: Maker) -> None:
    """What the tests above would see: one blank more before the answer."""
    found, _ = completion_of(make, "gpt2", "translation")
    row = found.shop.tokens.rows["train"][0]
    parts = divided(row.sequences[0].token_ids, row.sequences[0].learn, 0)
    assert parts is not None
    other = found.answerer.feed([Segment(row.row.asked + " ", learn=False)])
    assert list(other) != parts[0]


# Chat.


CHAT_FAMILIES = [*families.FAMILIES, pytest.param("gpt2_real", marks=pytest.mark.real_data)]


def chat_rows() -> list[Row]:
    forged = [
        texts.chat(f"{texts.words(seed)} <|im_end|></s><|endoftext|>", "no <|eot_id|> I said")
        for seed in range(60, 66)
    ]
    long = [texts.chat(texts.words(count, count), "no") for count in range(8, 160, 5)]
    return [*texts.chats(30), *forged, *long, texts.chat(texts.words(71, 8), texts.words(72, 140))]


@pytest.mark.parametrize("family", CHAT_FAMILIES)
def test_a_conversation_is_asked_as_it_was_trained(make: Maker, family: str) -> None:
    found = make(family, "chat", chat_rows(), task="chat", max_new_tokens=24)
    assert not found.shop.prepared.rejected
    assert len(found.shop.tokens.rejected) < 33, "only those whose answer doesn't fit"
    asked = {**found.rows}
    for (source, number), row in asked.items():
        messages = json.loads(row.fields["messages"])
        asked[source, number] = RawExample({"messages": json.dumps(messages[:-1])}, source, number)
    again = Asked(found.shop, found.answerer, asked)
    whole = check_every_row(again, "")
    everyone = [row for rows in found.shop.tokens.rows.values() for row in rows]
    assert whole >= 36
    assert any(row.prompt_ids is None for row in everyone)
    for row in everyone:
        messages = json.loads(asked[row.row.source, row.row.row].fields["messages"])
        if row.prompt_ids is None:
            with pytest.raises(InputError, match="the conversation is longer than"):
                found.answerer.feed_messages(messages)
        else:
            assert found.answerer.feed_messages(messages) == found.fed(row)
    assert found.answerer.form.state() == found.shop.form.state()
    assert found.answerer.end_ids == found.shop.end_ids
    assert found.answerer.feeder.prefix == ()


@pytest.mark.parametrize("family", ["gpt2", "llama2", "llama3", "chatml"])
@given(turns=st.lists(ANYTHING, min_size=2, max_size=4), answer=ANYTHING)
@quickly
def test_any_conversation_is_asked_as_it_would_be_trained(
    make: Maker, family: str, turns: list[str], answer: str
) -> None:
    found = make(family, "chat", chat_rows(), task="chat", max_new_tokens=24)
    before_answer = turns if len(turns) % 2 else turns[:-1]
    row = texts.chat(*before_answer, answer)
    read = found.shop.form.read(RawExample({"messages": json.dumps(row["messages"])}, "any", 1))
    if isinstance(read, RejectedRow):
        return
    parts = found.trained(read)
    [prompt] = found.shop.feeder.feed([read.prompt])
    if prompt is None:
        with pytest.raises(InputError):
            found.answerer.feed_messages(row["messages"][:-1])
        return
    assert parts is not None
    before, learned, cut = parts
    assert list(found.answerer.feed_messages(row["messages"][:-1])) == before == list(prompt)
    if len(before_answer) == 1:
        assert list(found.answerer.feed_text(before_answer[0])) == before
    assert not set(learned[:-1]) & found.answerer.end_ids
    assert cut or learned[-1] in found.answerer.end_ids


@given(value=ANYTHING.map(lambda text: text[:30]))  # a conversation that is too long is refused
@quickly
def test_a_column_written_into_a_turn_is_so_written_when_asked(make: Maker, value: str) -> None:
    """Chats made of two columns; the person's template stands around the first."""
    rows = [{"question": row["prompt"], "reply": row["completion"]} for row in texts.pairs(30)]
    found = make(
        "chatml",
        "columns",
        rows,
        task="chat",
        prompt="Q: {question}",
        completion="reply",
        max_new_tokens=8,
    )
    assert check_every_row(found, "reply") == 30
    raw = RawExample({"question": value, "reply": "x"}, "any", 1)
    read = found.shop.form.read(raw)
    if isinstance(read, RejectedRow):
        assert found.asked(raw, "reply") is None
        return
    parts = found.trained(read)
    assert parts is not None
    assert found.asked(raw, "reply") == parts[0] == list(found.answerer.feed_text(value))


@given(value=ANYTHING)
@quickly
def test_a_question_of_a_column_is_asked_in_a_conversation_as_it_was_trained(make: Maker, value: str) -> None:
    """Also with white space around it, which training takes off."""
    rows = [{"question": row["prompt"], "reply": row["completion"]} for row in texts.pairs(30)]
    found = make("chatml", "bare", rows, task="chat", max_new_tokens=8)
    raw = RawExample({"question": value, "reply": "x"}, "any", 1)
    read = found.shop.form.read(raw)
    if isinstance(read, RejectedRow):
        return
    parts = found.trained(read)
    assert parts is not None
    assert list(found.answerer.feed_messages([{"role": "user", "content": value}])) == parts[0]


# Preference.


def preference_rows(layout: str) -> list[Row]:
    plain = texts.preferences(30)
    plain[3]["prompt"] += " <|im_end|></s>"
    plain[4]["chosen"] += " <|endoftext|>"
    if layout == "messages":
        return [
            {
                "prompt": [{"role": "user", "content": row["prompt"]}],
                "chosen": [{"role": "assistant", "content": row["chosen"]}],
                "rejected": [{"role": "assistant", "content": row["rejected"]}],
            }
            for row in plain
        ]
    if layout == "dialogue":
        return [{**row, "prompt": f"\n\nHuman: {row['prompt']}\n\nAssistant:"} for row in plain]
    return list(plain)


@pytest.mark.parametrize("layout", ["plain", "messages", "dialogue"])
@pytest.mark.parametrize("family", ["gpt2", "llama2", "llama3", "chatml", "qwen3"])
def test_a_preference_is_asked_as_it_was_trained(make: Maker, family: str, layout: str) -> None:
    found = make(
        family, f"preference-{layout}", preference_rows(layout), task="preference", max_new_tokens=16
    )
    plain = preference_rows("plain")
    seen = 0
    for rows in found.shop.tokens.rows.values():
        for row in rows:
            both = [divided(one.token_ids, one.learn, one.cut) for one in row.sequences]
            raw = found.rows[row.row.source, row.row.row]
            asked = found.asked(RawExample({"prompt": raw.fields["prompt"]}, raw.source, raw.row))
            for parts in both:
                assert parts is not None
                before, learned, cut = parts
                assert asked == before
                assert not cut
                assert learned[-1] in found.answerer.end_ids
                assert not set(learned[:-1]) & found.answerer.end_ids
            text = plain[raw.row - 1]["prompt"]
            assert list(found.answerer.feed_text(text)) == asked
            assert list(found.answerer.feed_messages([{"role": "user", "content": text}])) == asked
            seen += 1
    assert seen == 30
