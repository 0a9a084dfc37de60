"""Corpus to tokens: read, hold out, decontaminate, train the tokenizer, write uint16 token files.

Run once before `train.py`; everything lands in a work folder that git ignores.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import lzma
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

END_OF_TEXT, PAD = "<|endoftext|>", "<|pad|>"
NGRAM = 13  # words; the usual length for contamination checks (GPT-3 paper, appendix C)
WORD = re.compile(r"\w+")
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def documents(path: Path) -> Iterator[str]:
    """The documents of one xz part, separated by lines that hold only the end-of-text mark."""
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        held: list[str] = []
        for line in lines:
            if line.strip() == END_OF_TEXT:
                yield "".join(held).strip()
                held = []
            else:
                held.append(line)
        if held:
            yield "".join(held).strip()


def word_hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")


class NgramHasher:
    """Hashes every run of 13 words to 64 bits; keeps the word hashes it has met."""

    def __init__(self) -> None:
        self.known: dict[str, int] = {}

    def __call__(self, text: str) -> npt.NDArray[np.uint64]:
        known = self.known
        hashes = []
        for word in WORD.findall(text.lower()):
            if word not in known:
                known[word] = word_hash(word)
            hashes.append(known[word])
        if len(hashes) < NGRAM:
            return np.empty(0, np.uint64)
        words = np.array(hashes, np.uint64)
        total = np.zeros(len(words) - NGRAM + 1, np.uint64)
        for offset in range(NGRAM):
            total = total * MULTIPLIER + words[offset : len(words) - NGRAM + 1 + offset]
        return total


def contamination_set(folder: Path, hasher: NgramHasher) -> npt.NDArray[np.uint64]:
    """Every 13-gram of every evaluation file, sorted."""
    import gzip

    found = []
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.parent.name == "gpt2_bpe":
            continue
        raw = path.read_bytes()
        raw = gzip.decompress(raw) if path.suffix == ".gz" else raw
        text = raw.decode("utf-8", errors="replace").replace("\\n", " ")
        found.append(hasher(text))
    return np.unique(np.concatenate(found))


def contaminated(grams: npt.NDArray[np.uint64], forbidden: npt.NDArray[np.uint64]) -> bool:
    if len(grams) == 0:
        return False
    places = np.searchsorted(forbidden, grams)
    places[places == len(forbidden)] = 0
    return bool((forbidden[places] == grams).any())


def train_tokenizer(texts: Iterator[str], vocabulary: int) -> Tokenizer:
    """Byte-level BPE with an end-of-text and a padding token of its own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--against", type=Path, required=True, help="evaluation files to keep out")
    parser.add_argument("--work", type=Path, default=Path("pretraining/work"))
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--megabytes", type=float, default=60, help="of text from each part")
    arguments = parser.parse_args()
    work: Path = arguments.work
    work.mkdir(parents=True, exist_ok=True)

    hasher = NgramHasher()
    forbidden = contamination_set(arguments.against, hasher)
    kept: dict[str, list[str]] = {}
    held_out: dict[str, list[str]] = {}
    report: dict[str, dict[str, int]] = {}
    for part in sorted(arguments.corpus.glob("*.xz")):
        texts, size, dropped = [], 0, 0
        everything = list(documents(part))
        boundary = len(everything) - max(1, len(everything) // 100)
        for text in everything[:boundary]:
            if size > arguments.megabytes * 1e6:
                break
            if len(text) < 200 or "formula_" in text:
                continue
            if contaminated(hasher(text), forbidden):
                dropped += 1
                continue
            texts.append(text)
            size += len(text.encode())
        name = part.name.removesuffix(".txt.xz")
        kept[name], held_out[name] = texts, everything[boundary:]
        report[name] = {"documents": len(texts), "bytes": size, "contaminated": dropped}
        print(name, report[name], flush=True)

    sample = (text[:4000] for texts in kept.values() for text in texts[:: max(1, len(texts) // 3000)])
    tokenizer = train_tokenizer(sample, arguments.vocabulary)
    tokenizer.save(str(work / "tokenizer.json"))
    end = tokenizer.token_to_id(END_OF_TEXT)
    for name, texts in kept.items():
        for split, chosen in (("train", texts), ("held_out", held_out[name])):
            with (work / f"{name}.{split}.bin").open("wb") as out:
                for start in range(0, len(chosen), 256):
                    for encoding in tokenizer.encode_batch_fast(chosen[start : start + 256]):
                        np.array([*encoding.ids, end], np.uint16).tofile(out)
            (work / f"{name}.{split}.bytes").write_text(str(sum(len(t.encode()) for t in chosen)))
        sentences = [s for t in texts for s in re.split(r"(?<=[.!?])\s+|\n+", t) if 25 <= len(s) <= 220]
        step = max(1, len(sentences) // 60_000)
        (work / f"{name}.sentences.json").write_text(json.dumps(sentences[::step]))
    (work / "corpus.json").write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
