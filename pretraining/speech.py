"""Short texts as people speak and judge: first and second person, questions, words of opinion.

Running prose is mostly told in the third person, while much of what people classify is said to somebody.
These sentences come from the same training tokens as the rest and are taught with them (`teacher.py`).
Nothing here is chosen by the topics of an evaluation file.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from train import load_tokenizer

SPOKEN = re.compile(r"\b(I|I'm|I've|my|me|you|your|we|our)\b|\?")
JUDGED = re.compile(
    r"\b(good|bad|great|terrible|awful|beautiful|dull|boring|funny|love[ds]?|hate[ds]?|enjoy\w*|poor|excellent|"
    r"best|worst|charming|clever|tedious|brilliant|moving|sad|happy|delight\w*|wonderful|disappoint\w*|"
    r"impress\w*|silly|stupid|fresh|powerful|problem)\b",
    re.I,
)
SENTENCE = re.compile(r"(?<=[.!?])[\"'”’]?\s+|\n+")
STRETCH, STRIDE = 2000, 4000  # tokens read at a time, and between beginnings


def sentences(work: Path, name: str, dice: random.Random, *, stretches: int) -> Iterator[str]:
    """Sentences of 15 to 170 characters from random stretches of a part."""
    tokenizer = load_tokenizer(work)
    tokens = np.memmap(work / f"{name}.train.bin", np.uint16, "r")
    starts = list(range(0, len(tokens) - STRIDE, STRIDE))
    dice.shuffle(starts)
    for start in starts[:stretches]:
        text = tokenizer.decode(tokens[start : start + STRETCH].tolist(), skip_special_tokens=True)
        for piece in SENTENCE.split(text)[1:-1]:
            sentence = piece.strip(' "“”\n')
            if 15 <= len(sentence) <= 170:
                yield sentence


def roughened(sentence: str, dice: random.Random) -> str:
    """As people type: three in twenty without the last full stop, as many a fragment."""
    kind = dice.random()
    if kind < 0.15:
        return sentence.rstrip(".")
    if kind >= 0.3:
        return sentence
    words = sentence.split()
    start = dice.randrange(max(1, len(words) - 5))
    return " ".join(words[start : start + dice.randint(4, 14)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="+", help="names of corpus parts")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--stretches", type=int, default=7000, help="how many are read of each part")
    arguments = parser.parse_args()
    dice, kept = random.Random(11), dict[str, None]()
    for name in arguments.parts:
        for sentence in sentences(arguments.work, name, dice, stretches=arguments.stretches):
            wanted = SPOKEN.search(sentence) or JUDGED.search(sentence)
            if wanted and dice.random() < (0.9 if "?" in sentence else 0.6):
                kept[sentence] = None
    pieces = [roughened(sentence, dice) for sentence in kept]
    (arguments.work / "speech.pieces.json").write_text(json.dumps(pieces))
    print(f"{len(pieces):,} short texts")


if __name__ == "__main__":
    main()
