"""Corpus to tokens: read, hold out, decontaminate, train the tokenizer, write uint16 token files.

Run once before `train.py`; everything lands in a work folder that git ignores.
"""

from __future__ import annotations

import argparse
import gzip
import json
import lzma
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gptailor.data.overlap import build_ngram_set, shares_a_run
from gptailor.models.vocabulary import END_OF_TEXT, train_tokenizer


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


def held_out_from(documents: Sequence[str]) -> int:
    """Where the last hundredth of a part's documents begins, which nothing learns from."""
    return len(documents) - max(1, len(documents) // 100)


def evaluation_texts(folder: Path) -> Iterator[str]:
    """The text of every evaluation file, whatever its format."""
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.parent.name == "gpt2_bpe":
            continue
        raw = path.read_bytes()
        raw = gzip.decompress(raw) if path.suffix == ".gz" else raw
        yield raw.decode("utf-8", errors="replace").replace("\\n", " ")


def short_texts(texts: list[str], *, most: int, seed: str) -> Iterator[str]:
    """Sentences (half), runs of two to four (a third) and fragments of 3 to 12 words, from all documents."""
    dice = random.Random(seed)
    size = sum(map(len, texts))
    for text in texts:
        sentences = [s for s in re.split(r"(?<=[.!?])\s+|\n+", text) if 20 <= len(s) <= 260]
        share = most * len(text) / size
        for _ in range(int(share) + (dice.random() < share % 1) if len(sentences) >= 4 else 0):
            first, kind = dice.randrange(len(sentences)), dice.random()
            if kind < 0.5:
                yield sentences[first]
            elif kind < 0.83:
                yield " ".join(sentences[first : first + dice.randint(2, 4)])
            else:
                words = sentences[first].split()
                start = dice.randrange(max(1, len(words) - 4))
                yield " ".join(words[start : start + dice.randint(3, 12)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--against", type=Path, required=True, help="evaluation files to keep out")
    parser.add_argument("--work", type=Path, default=Path("pretraining/work"))
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--megabytes", type=float, default=150, help="of text from each part")
    parser.add_argument("--pieces", type=int, default=100_000, help="short texts to teach from, per part")
    arguments = parser.parse_args()
    work: Path = arguments.work
    work.mkdir(parents=True, exist_ok=True)

    forbidden = build_ngram_set(evaluation_texts(arguments.against))
    kept: dict[str, list[str]] = {}
    held_out: dict[str, list[str]] = {}
    report: dict[str, dict[str, int]] = {}
    for part in sorted(arguments.corpus.glob("*.xz")):
        texts, size, dropped = [], 0, 0
        everything = list(documents(part))
        boundary = held_out_from(everything)
        for text in everything[:boundary]:
            if size > arguments.megabytes * 1e6:
                break
            if len(text) < 200 or "formula_" in text:
                continue
            if shares_a_run(text, forbidden):
                dropped += 1
                continue
            texts.append(text)
            size += len(text.encode())
        name = part.name.removesuffix(".txt.xz")
        kept[name], held_out[name] = texts, everything[boundary:]
        report[name] = {"documents": len(texts), "bytes": size, "contaminated": dropped}
        print(name, report[name], flush=True)

    sample = (text[:4000] for texts in kept.values() for text in texts[:: max(1, len(texts) // 3000)])
    whole: Any = train_tokenizer(sample, vocabulary=arguments.vocabulary, context=512)
    whole.save_pretrained(work)
    tokenizer, end = whole.backend_tokenizer, int(whole.eos_token_id)
    for name, texts in kept.items():
        for split, chosen in (("train", texts), ("held_out", held_out[name])):
            with (work / f"{name}.{split}.bin").open("wb") as out:
                for start in range(0, len(chosen), 256):
                    for encoding in tokenizer.encode_batch_fast(
                        chosen[start : start + 256], add_special_tokens=False
                    ):
                        np.array([*encoding.ids, end], np.uint16).tofile(out)
            (work / f"{name}.{split}.bytes").write_text(str(sum(len(t.encode()) for t in chosen)))
        pieces = list(short_texts(texts, most=arguments.pieces, seed=name))
        (work / f"{name}.pieces.json").write_text(json.dumps(pieces))
    (work / "corpus.json").write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
