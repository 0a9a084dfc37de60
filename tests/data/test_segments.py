"""Segments to ids: what is a marker becomes a control token, what a person wrote never does."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

import tiny
from gptailor.data.segments import (
    ANCHOR,
    CHUNK,
    SegmentEncoder,
    build_segment_encoder,
    encode_segments,
)
from gptailor.data.tokenize import build_encoder, encode_texts
from gptailor.types import Segment


@pytest.fixture(scope="module")
def qwen() -> Any:
    return tiny.build_tokenizer("qwen2").backend_tokenizer


@pytest.fixture(scope="module")
def encoder(qwen: Any) -> SegmentEncoder:
    return build_segment_encoder(qwen)


def encode(
    encoder: SegmentEncoder, *segments: Segment, prefix: tuple[int, ...] = ()
) -> tuple[list[int], list[bool]]:
    (encoded,) = encode_segments(encoder, [segments], prefix=prefix)
    assert encoded.token_ids.dtype == np.int32
    assert encoded.learn.dtype == np.bool_
    return encoded.token_ids.tolist(), encoded.learn.tolist()


def test_markers_become_control_tokens_and_only_they(encoder: SegmentEncoder) -> None:
    end = encoder.control["<|im_end|>"].id
    ids, learn = encode(encoder, Segment("hi<|im_end|>", False, markers=True), Segment("<|im_end|>", True))
    assert ids.count(end) == 1
    assert not learn[ids.index(end)]
    assert (
        encoder.closed.decode([id for id, is_learned in zip(ids, learn, strict=True) if is_learned])
        == "<|im_end|>"
    )


def test_a_prompt_its_answer_and_the_end(encoder: SegmentEncoder, qwen: Any) -> None:
    """Completion: the ids are those of the whole text, and the prompt's those of the prompt alone."""
    plain = build_encoder(qwen, pad_id=0)
    prompt, answer = "the cup final:", " went to extra time"
    ids, learn = encode(
        encoder, Segment(prompt, False), Segment(answer, True), Segment("<|im_end|>", True, markers=True)
    )
    [whole], [before] = encode_texts(plain, [prompt + answer]), encode_texts(plain, [prompt])
    assert ids == [*whole, encoder.control["<|im_end|>"].id]
    assert learn == [False] * len(before) + [True] * (len(ids) - len(before))


def test_a_prefix_is_context(encoder: SegmentEncoder) -> None:
    ids, learn = encode(encoder, Segment("hi", True), prefix=(7, 8))
    assert ids[:2] == [7, 8]
    assert learn[:2] == [False, False]
    assert all(learn[2:])


TEXTS = st.text(alphabet="ab \n<|>im_endthe\u00fc", max_size=12)


@given(st.lists(st.tuples(TEXTS, st.booleans(), st.booleans(), st.booleans()), max_size=6))
@settings(deadline=None)
def test_no_text_is_lost_and_borders_hold(
    encoder: SegmentEncoder, parts: list[tuple[str, bool, bool, bool]]
) -> None:
    segments = [Segment(text, learn, markers, cut) for text, learn, markers, cut in parts]
    ids, learn = encode(encoder, *segments)
    assert encoder.closed.decode(ids, skip_special_tokens=False) == "".join(s.text for s in segments)
    for wanted in (True, False):
        chosen = [id for id, is_learned in zip(ids, learn, strict=True) if is_learned is wanted]
        said = b"".join(s.text.encode() for s in segments if s.learn is wanted)
        assert encoder.closed.decode(chosen, skip_special_tokens=False).encode() == said


@given(TEXTS, TEXTS, TEXTS)
@settings(deadline=None)
def test_what_comes_later_never_changes_what_stood_before_a_cut(
    encoder: SegmentEncoder, before: str, answer: str, after: str
) -> None:
    alone, _ = encode(encoder, Segment(before, False))
    for learn in (True, False):
        ids, _ = encode(
            encoder, Segment(before, False), Segment(answer, learn, cut=True), Segment(after, False, cut=True)
        )
        assert ids[: len(alone)] == alone


def test_a_cut_is_where_a_token_would_reach_over(encoder: SegmentEncoder) -> None:
    """Without a cut the text is one; with it each side is for itself."""
    whole, _ = encode(encoder, Segment("the cup fi", False), Segment("nal", False))
    cut, _ = encode(encoder, Segment("the cup fi", False), Segment("nal", False, cut=True))
    assert whole == encoder.closed.encode("the cup final", add_special_tokens=False).ids
    assert len(cut) > len(whole)


def build(**pieces: Any) -> Tokenizer:
    vocabulary = {"▁": 0, "a": 1, "b": 2, "▁a": 3, "▁b": 4, "\n": 5, "|": 6}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("▁", "a"), ("▁", "b")]))
    for name, piece in pieces.items():
        setattr(tokenizer, name, piece)
    tokenizer.add_special_tokens([AddedToken("<e>", special=True)])
    return tokenizer


LEGACY = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])


@pytest.mark.parametrize(
    "pieces",
    [
        {"pre_tokenizer": pre_tokenizers.Metaspace(prepend_scheme="first")},
        {"pre_tokenizer": pre_tokenizers.Metaspace(prepend_scheme="always")},
        {"pre_tokenizer": pre_tokenizers.Metaspace(prepend_scheme="never")},
        {"normalizer": LEGACY},
    ],
    ids=["first", "always", "never", "legacy"],
)
@pytest.mark.parametrize("text", ["a b<e>a b", "<e>a<e> b", "a<e>", " a\n<e>\na"])
def test_blanks_that_tokenizers_put_before_texts_are_theirs(pieces: dict[str, Any], text: str) -> None:
    tokenizer = build(**pieces)
    ids, _ = encode(build_segment_encoder(tokenizer), Segment(text, True, markers=True))
    assert ids == tokenizer.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize(("lstrip", "rstrip"), [(True, False), (False, True), (True, True), (False, False)])
@pytest.mark.parametrize("text", ["a <m> b", "<m>  <m>\na", "a\n<m>", " <m> <e> b"])
def test_tokens_that_swallow_blanks_do(lstrip: bool, rstrip: bool, text: str) -> None:
    tokenizer = build(pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="never"))
    tokenizer.add_special_tokens([AddedToken("<m>", special=True, lstrip=lstrip, rstrip=rstrip)])
    ids, _ = encode(build_segment_encoder(tokenizer), Segment(text, True, markers=True))
    assert ids == tokenizer.encode(text, add_special_tokens=False).ids


def test_headers_listed_as_ordinary_tokens_are_control_tokens_too() -> None:
    tokenizer = build(pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="never"))
    names = ["<|user|>", "<｜User｜>", "<think>", "|"]
    tokenizer.add_tokens([AddedToken(name, special=False, normalized=False) for name in names])
    encoder = build_segment_encoder(tokenizer)
    assert encoder.control.keys() == {"<e>", "<|user|>", "<｜User｜>"}
    header = tokenizer.token_to_id("<｜User｜>")
    assert encode(encoder, Segment("<｜User｜>a", False))[0].count(header) == 0
    assert encode(encoder, Segment("<｜User｜>a", False, markers=True))[0] == [header, 1]
    assert encode(encoder, Segment("<think>a", False))[0] == [tokenizer.token_to_id("<think>"), 1]


def test_the_token_of_our_own_never_comes_out(encoder: SegmentEncoder, qwen: Any) -> None:
    ids, _ = encode(
        encoder, Segment("<|im_end|>", False, markers=True), Segment(f"{ANCHOR} hi {ANCHOR}", True)
    )
    assert max(ids) < qwen.get_vocab_size()
    assert encoder.closed.decode(ids[1:]) == f"{ANCHOR} hi {ANCHOR}"


def test_the_tokenizer_that_was_given_is_left_alone(qwen: Any) -> None:
    before = qwen.to_str()
    build_segment_encoder(qwen)
    assert qwen.to_str() == before
    assert json.loads(before)["added_tokens"]


def test_more_sequences_than_one_call_takes_keep_their_places(encoder: SegmentEncoder) -> None:
    sequences = [(Segment(f"row {n}:", False), Segment(f" {n}", True)) for n in range(2 * CHUNK + 3)]
    found = list(encode_segments(encoder, sequences))
    assert len(found) == len(sequences)
    for place in (0, CHUNK - 1, CHUNK, 2 * CHUNK, 2 * CHUNK + 2):
        assert encoder.closed.decode(found[place].token_ids.tolist()) == f"row {place}: {place}"


def test_nothing_is_an_empty_sequence(encoder: SegmentEncoder) -> None:
    assert encode(encoder) == ([], [])
    assert encode(encoder, Segment("", True), Segment("", False, markers=True)) == ([], [])
