"""A tokenizer of one's own: byte-level BPE trained on the data, for models trained from scratch."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

END_OF_TEXT, PAD = "<|endoftext|>", "<|pad|>"
SMALLEST, LARGEST = 512, 16_384
BYTES_PER_TOKEN_OF_VOCABULARY = 200  # training text for each entry, where the recipe leaves the size open


def choose_vocabulary(num_bytes: int) -> int:
    """A size for this much training text: a power of two, so many that each token is met often enough."""
    wanted = max(1, num_bytes // BYTES_PER_TOKEN_OF_VOCABULARY)
    return min(LARGEST, max(SMALLEST, 1 << (wanted.bit_length() - 1)))


def train_tokenizer(texts: Iterable[str], *, vocabulary: int, context: int) -> PreTrainedTokenizerBase:
    """Byte-level BPE (as GPT-2's) with an end-of-text and a padding token of its own.

    Every text can be encoded, since the alphabet is the 256 bytes. Encoding a text as a whole appends the
    end-of-text token, so that a classifier on such a base reads that position.
    """
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    backend.post_processor = TemplateProcessing(
        single=f"$A {END_OF_TEXT}", special_tokens=[(END_OF_TEXT, backend.token_to_id(END_OF_TEXT))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=PAD,
        padding_side="right",
        model_max_length=context,
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,
    )
