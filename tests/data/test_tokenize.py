"""A person's text is encoded as text only, whatever it spells, and nothing is cut uncounted."""

from __future__ import annotations

import copy
import itertools
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerBase

import tiny
from gptailor.data.segments import build_segment_encoder, encode_segments
from gptailor.data.tokenize import (
    CHUNK,
    Encoder,
    TooLong,
    build_encoder,
    encode_all,
    encode_texts,
    fit_length,
    fit_rows,
    token_lengths,
)
from gptailor.models.load import load_tokenizer
from gptailor.models.names import resolve_base
from gptailor.types import Example, Segment, TokenizedExample

# What goes around every text: nothing, a begin token, an end token as the starter's, and both.
KINDS = (*tiny.FAMILIES, "ends", "both")
AROUND = {"llama": (1, 0), "ends": (0, 1), "both": (1, 1)}


def control_strings() -> list[str]:
    """500 strings that spell control tokens: of these tokenizers, of other families, and nearly so."""
    spelled = [
        *("<|endoftext|>", "<|pad|>", "<s>", "</s>", "<|im_end|>", "<|im_start|>", "<pad>", "<unk>", "[PAD]"),
        *(
            "[INST]",
            "[/INST]",
            "<<SYS>>",
            "<|eot_id|>",
            "<|begin_of_text|>",
            "<bos>",
            "<eos>",
            "<mask>",
            "[CLS]",
        ),
        *(
            "<|user|>",
            "<|assistant|>",
            "<start_of_turn>",
            "<end_of_turn>",
            "<|fim_prefix|>",
            "<think>",
            "▁<s>",
        ),
    ]
    frames = [
        *(
            "{0}",
            "{0}{0}",
            " {0} ",
            "the cup{0}final",
            "the bank {0} the rate",
            "{0}\nSystem: obey",
            "\t{0}\u200b",
        ),
        *("<{0}>", "{0}{1}", "{1} {0}", "a{0}b{1}c{0}", "{0}" * 9, "“{0}”", "é{0}👍", "{0}\x00", "\u202e{0}"),
        *("{0} {0} {0}", "|{0}|", "text</s>{0}<s>text", "{0}<|endoftext|>", "<|endoftext|>{0}"),
    ]
    pairs = itertools.product(frames, zip(spelled, spelled[1:] + spelled[:1], strict=True))
    strings = dict.fromkeys(frame.format(*words) for frame, words in pairs)
    return list(strings)[:500]


@pytest.fixture(scope="module")
def tokenizers(
    tiny_bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, PreTrainedTokenizerBase]:
    """As the pipeline loads them, and two that also end a text, as the starter's does."""
    paths = dict(tiny_bases)
    for kind, template in (("ends", "$A <|endoftext|>"), ("both", "<|endoftext|> $A <|endoftext|>")):
        paths[kind] = tiny.build_base(tmp_path_factory.mktemp(kind), "gpt2")
        changed: Any = load_tokenizer(resolve_base(str(paths[kind])))
        changed.backend_tokenizer.post_processor = TemplateProcessing(
            single=template, special_tokens=[("<|endoftext|>", 0)]
        )
        changed.save_pretrained(paths[kind])
    return {kind: load_tokenizer(resolve_base(str(path))) for kind, path in paths.items()}


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request: pytest.FixtureRequest, tokenizers: dict[str, Any]) -> Any:
    return tokenizers[request.param]


def encoder_of(tokenizer: Any) -> Encoder:
    return build_encoder(tokenizer.backend_tokenizer, pad_id=tokenizer.pad_token_id)


def examples_of(texts: list[str]) -> list[Example]:
    return [
        Example((Segment(text, False),), "rows.csv", row, label=row % 3) for row, text in enumerate(texts)
    ]


def test_control_strings_stay_text(tokenizer: Any) -> None:
    strings = control_strings()
    assert len(strings) == 500
    encoder = encoder_of(tokenizer)
    control = set(tokenizer.all_special_ids)
    assert {tokenizer.pad_token_id, tokenizer.eos_token_id} <= control
    for text, ids in zip(strings, encode_texts(encoder, strings), strict=True):
        assert not control & set(ids), text
        assert encoder.backend.decode(ids, skip_special_tokens=False) == text


def test_control_strings_would_not_stay_text_by_default(tokenizer: Any) -> None:
    """The control: without our setting the same strings give control tokens."""
    open_tokenizer = type(tokenizer.backend_tokenizer).from_str(tokenizer.backend_tokenizer.to_str())
    open_tokenizer.encode_special_tokens = False
    control = set(tokenizer.all_special_ids)
    found = [open_tokenizer.encode(text, add_special_tokens=False).ids for text in control_strings()]
    assert sum(bool(control & set(ids)) for ids in found) > 50


def test_control_tokens_stand_only_around_a_tokenized_text(tokenizer: Any) -> None:
    encoder = encoder_of(tokenizer)
    control = set(tokenizer.all_special_ids)
    before, after = len(encoder.prefix), len(encoder.suffix)
    for index, sequences in enumerate(
        sequences_of(encoder, control_strings(), max_tokens=16, too_long="window")
    ):
        assert sequences, index
        for sequence in sequences:
            inside = sequence.token_ids[before : len(sequence.token_ids) - after]
            assert len(inside)
            assert not control & set(inside.tolist())


@pytest.mark.parametrize("kind", KINDS)
def test_what_goes_around_a_text_is_found(tokenizers: dict[str, Any], kind: str) -> None:
    encoder = encoder_of(tokenizers[kind])
    before, after = AROUND.get(kind, (0, 0))
    assert (encoder.prefix, encoder.suffix) == ((0,) * before, (0,) * after)
    assert encoder.overhead == before + after
    assert encoder.pad_id not in (*encoder.prefix, *encoder.suffix)


@given(st.text(min_size=1, max_size=60))
@settings(max_examples=60, deadline=None)
def test_ids_are_those_of_transformers(tokenizers: dict[str, Any], text: str) -> None:
    for tokenizer in tokenizers.values():
        encoder = encoder_of(tokenizer)
        ((ids, cut),) = fit_length(encoder, encode_texts(encoder, [text])[0], max_tokens=999, too_long="cut")
        assert ids == tokenizer(text, split_special_tokens=True)["input_ids"]
        assert ids == tokenizer(text)["input_ids"]  # the saved tokenizer does the same by default
        assert cut == 0


def test_ids_of_control_strings_are_those_of_transformers(tokenizer: Any) -> None:
    encoder = encoder_of(tokenizer)
    strings = control_strings()
    theirs = tokenizer(strings, split_special_tokens=True)["input_ids"]
    ours = [[*encoder.prefix, *ids, *encoder.suffix] for ids in encode_texts(encoder, strings)]
    assert ours == theirs


def test_tokenizer_that_was_given_is_left_alone(tokenizer: Any) -> None:
    tokenizer.backend_tokenizer.enable_truncation(5)
    tokenizer.backend_tokenizer.enable_padding(length=9)
    try:
        before = tokenizer.backend_tokenizer.to_str()
        encoder = encoder_of(tokenizer)
        assert tokenizer.backend_tokenizer.to_str() == before
        text = "the cup final went to extra time " * 5
        (ids,) = encode_texts(encoder, [text])
        assert len(ids) > 9
        assert encoder.backend.decode(ids) == text
    finally:
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()


around = st.lists(st.integers(900, 999), max_size=2).map(tuple)
id_lists = st.lists(st.integers(0, 899), min_size=1, max_size=60)


def bare_encoder(prefix: tuple[int, ...], suffix: tuple[int, ...]) -> Encoder:
    backend: Any = None
    return Encoder(backend, prefix, suffix, pad_id=1000)


@given(id_lists, around, around, st.integers(8, 70))
@settings(deadline=None)
def test_cut_keeps_the_head_and_what_goes_around_it(
    ids: list[int], prefix: tuple[int, ...], suffix: tuple[int, ...], max_tokens: int
) -> None:
    encoder = bare_encoder(prefix, suffix)
    ((sequence, cut),) = fit_length(encoder, ids, max_tokens=max_tokens, too_long="cut")
    room = max_tokens - len(prefix) - len(suffix)
    assert sequence == [*prefix, *ids[:room], *suffix]
    assert len(sequence) <= max_tokens
    assert cut == len(ids) - (len(sequence) - len(prefix) - len(suffix)) == max(0, len(ids) - room)


@given(id_lists, around, around, st.integers(8, 70))
@settings(deadline=None)
def test_windows_hold_every_token_in_order(
    ids: list[int], prefix: tuple[int, ...], suffix: tuple[int, ...], max_tokens: int
) -> None:
    encoder = bare_encoder(prefix, suffix)
    windows = fit_length(encoder, ids, max_tokens=max_tokens, too_long="window")
    held: list[int] = []
    for sequence, cut in windows:
        assert cut == 0
        assert len(sequence) <= max_tokens
        assert tuple(sequence[: len(prefix)]) == prefix
        assert tuple(sequence[len(sequence) - len(suffix) :]) == suffix
        held.extend(sequence[len(prefix) : len(sequence) - len(suffix)])
    assert held == ids
    assert len(windows) == -(-len(ids) // (max_tokens - encoder.overhead))


@given(id_lists, around, around, st.integers(8, 70))
@settings(deadline=None)
def test_drop_leaves_out_what_does_not_fit_and_only_that(
    ids: list[int], prefix: tuple[int, ...], suffix: tuple[int, ...], max_tokens: int
) -> None:
    encoder = bare_encoder(prefix, suffix)
    whole = [*prefix, *ids, *suffix]
    expected = [(whole, 0)] if len(whole) <= max_tokens else []
    assert fit_length(encoder, ids, max_tokens=max_tokens, too_long="drop") == expected


def sequences_of(
    encoder: Encoder, texts: list[str], *, max_tokens: int, too_long: TooLong
) -> list[list[TokenizedExample]]:
    """The sequences of each text, in order."""
    examples = examples_of(texts)
    encoded = encode_all(encoder, texts)
    rows = fit_rows(encoder, encoded, examples, first=0, max_tokens=max_tokens, too_long=too_long)
    found: list[list[TokenizedExample]] = [[] for _ in texts]
    for place, row in zip(rows.places.tolist(), rows, strict=True):
        found[place].append(row)
    return found


@given(
    st.lists(st.text(max_size=60), max_size=8), st.integers(8, 30), st.sampled_from(["cut", "drop", "window"])
)
@settings(max_examples=60, deadline=None)
def test_rows_are_those_of_one_text_at_a_time(
    tokenizers: dict[str, Any], texts: list[str], max_tokens: int, too_long: TooLong
) -> None:
    for tokenizer in tokenizers.values():
        encoder = encoder_of(tokenizer)
        found = sequences_of(encoder, texts, max_tokens=max_tokens, too_long=too_long)
        for text, sequences in zip(texts, found, strict=True):
            (ids,) = encode_texts(encoder, [text])
            fitted = fit_length(encoder, ids, max_tokens=max_tokens, too_long=too_long) if ids else []
            assert [(row.token_ids.tolist(), row.cut) for row in sequences] == fitted


LONG = "the bank raised its rate again this quarter and the cup final went to extra time " * 3


@pytest.mark.parametrize("too_long", ["cut", "drop", "window"])
def test_every_token_of_every_row_is_accounted_for(tokenizer: Any, too_long: TooLong) -> None:
    texts = ["the goal", LONG, "🦊" * 40, "x", "<|endoftext|>" * 9, LONG[:50]]
    encoder = encoder_of(tokenizer)
    lengths = token_lengths(encoder, texts)
    found = sequences_of(encoder, texts, max_tokens=24, too_long=too_long)
    for index, sequences in enumerate(found):
        if too_long == "drop" and lengths[index] > 24:
            assert sequences == []
            continue
        kept = sum(len(sequence.token_ids) - encoder.overhead for sequence in sequences)
        assert kept + sum(sequence.cut for sequence in sequences) == lengths[index] - encoder.overhead
        for sequence in sequences:
            assert (sequence.source, sequence.row, sequence.label) == ("rows.csv", index, index % 3)
            assert sequence.token_ids.dtype == np.int32
            assert np.flatnonzero(sequence.learn).tolist() == [len(sequence.token_ids) - 1]
    assert any(length > 24 for length in lengths)


def test_more_texts_than_one_call_takes_keep_their_places(tokenizers: dict[str, Any]) -> None:
    encoder = encoder_of(tokenizers["ends"])
    texts = [f"row {row}" for row in range(2 * CHUNK + 3)]
    found = sequences_of(encoder, texts, max_tokens=64, too_long="cut")
    for index in (0, CHUNK - 1, CHUNK, 2 * CHUNK, 2 * CHUNK + 2):
        (sequence,) = found[index]
        assert encoder.backend.decode(sequence.token_ids[:-1].tolist()) == texts[index]
        assert sequence.token_ids[-1] == encoder.suffix[0]
    assert (token_lengths(encoder, texts) == [len(rows[0].token_ids) for rows in found]).all()


def test_headers_that_a_vocabulary_lists_as_ordinary_tokens_are_no_tokens_in_a_text() -> None:
    """So some list the headers of their turns; a person's text would begin one."""
    backend = tiny.build_tokenizer("gpt2").backend_tokenizer
    backend.add_tokens([AddedToken("<｜User｜>", special=False, normalized=False)])
    header = backend.token_to_id("<｜User｜>")
    assert header in backend.encode("a <｜User｜> b").ids
    (ids,) = encode_texts(build_encoder(backend, pad_id=0), ["a <｜User｜> b"])
    assert header not in ids
    assert backend.decode(ids, skip_special_tokens=False) == "a <｜User｜> b"


def test_a_copied_or_pickled_encoder_still_takes_control_tokens_for_text() -> None:
    backend = tiny.build_tokenizer("gpt2").backend_tokenizer
    texts = ["a <|endoftext|> b", "<|endoftext|>"]
    encoder, segments = build_encoder(backend, pad_id=3), build_segment_encoder(backend)
    for again in (pickle.loads(pickle.dumps(encoder)), copy.deepcopy(encoder)):
        assert encode_texts(again, texts) == encode_texts(encoder, texts)
        assert (again.prefix, again.suffix, again.pad_id) == (encoder.prefix, encoder.suffix, 3)
    marker = Segment("<|endoftext|>", learn=False, markers=True)
    rows = [(Segment(text, learn=True), marker) for text in texts]
    for made in (pickle.loads(pickle.dumps(segments)), copy.deepcopy(segments)):
        for ours, theirs in zip(encode_segments(made, rows), encode_segments(segments, rows), strict=True):
            assert ours.token_ids.tolist() == theirs.token_ids.tolist()
