"""The rungs below a model that writes: the prompt's own text, its first sentence, the nearest known answer.

What a person would try before any training. For a summary the first sentence is hard to beat; where prompts
repeat themselves, so is the answer of the row that looks most alike. Of two answers the one whose words look
chosen often is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from scipy.sparse import csr_matrix, hstack
from sklearn.feature_extraction.text import TfidfVectorizer

from gptailor.errors import DataError
from gptailor.evaluate.baselines import FOLDS, fit_tfidf
from gptailor.types import FloatArray, IntArray

CHUNK_CELLS = 4_000_000  # similarities held at once: about 50 MB
# The search reads no more than this, so that its n-grams fit in memory (about 1 GB) and a minute or two.
# A long prompt counts with its beginning and its end: the instruction or the question stands there.
READ_CHARACTERS = 2_000
TRAIN_CHARACTERS = 10_000_000
SENTENCE_END = re.compile(r"(?<![.!?…])[.!?…]+[\"'”’»)\]]*(?=\s)|[。！？]+[」』”]*|\n\s*\n")
NEXT_CHARACTER = re.compile(r"\S")
LONGEST_SHORTENED = 20
ABBREVIATIONS = frozenset(
    [
        *("al", "approx", "ca", "cf", "dr", "e.g", "eq", "eqs", "fig", "figs", "i.e", "jr"),
        *("mr", "mrs", "ms", "prof", "sr", "st", "vs", "z.b"),
    ]
)


def copy(prompts: Sequence[str]) -> list[str]:
    """Each prompt as it is."""
    return list(prompts)


def lead(prompts: Sequence[str]) -> list[str]:
    """The first sentence of each prompt, or all of it where no sentence ends.

    A sentence ends with its mark before a space and anything but a small letter, and with an empty line; not
    after an initial or a common abbreviation ("Dr.").
    """
    return [_first_sentence(prompt.strip()) for prompt in prompts]


def nearest(
    prompts: Sequence[str], *, train_prompts: Sequence[str], train_answers: Sequence[str]
) -> list[str]:
    """The answer of the training row whose prompt is most like each prompt; of equals the first.

    Alike is the cosine of TF-IDF vectors, half of words 1-2 and half of characters 2-5 inside words, as in
    `baselines`. Of more training text than `TRAIN_CHARACTERS`, rows at even distances are searched.

    Args:
        prompts: M texts to answer.
        train_prompts: N texts with known answers.
        train_answers: Those answers, in the same order.

    Raises:
        DataError: There is no training row.
    """
    if len(train_prompts) != len(train_answers):
        raise ValueError(f"{len(train_prompts)} prompts but {len(train_answers)} answers")
    if not train_prompts:
        raise DataError("there is no training row for a baseline.", fix="Give rows with answers to train on.")
    rows = _searched_rows([len(text) for text in train_prompts])
    known = [_ends(train_prompts[row]) for row in rows]
    vectorizers = _fitted_vectorizers(known)
    if not vectorizers:  # no training prompt has a character to compare
        return [train_answers[0]] * len(prompts)
    by_feature = csr_matrix(_vectors(vectorizers, known).T)
    found: list[int] = []
    for chunk in _chunks([_ends(prompt) for prompt in prompts], max(1, CHUNK_CELLS // len(known))):
        similarities = (_vectors(vectorizers, chunk) @ by_feature).toarray()  # (rows of the chunk, N)
        found.extend(similarities.argmax(axis=1).tolist())
    return [train_answers[rows[place]] for place in found]


def fit_taste(
    chosen: Sequence[str], rejected: Sequence[str], *, groups: IntArray, seed: int = 0
) -> Callable[[Sequence[str]], FloatArray]:
    """Learns from N pairs of answers how much a text looks like one that is chosen.

    `baselines.fit_tfidf` on the answers by themselves, whatever was asked: words, length and manner. Of more
    text than `TRAIN_CHARACTERS`, pairs at even distances teach.

    Args:
        chosen: The answers that were preferred.
        rejected: The others, in the same order.
        groups: (N,) ids of pairs that no fold may tell apart.
        seed: Of the folds and of the solver.

    Returns:
        From M texts to (M,) numbers, higher for what looks chosen; all 0 where no text has a character.
    """
    rows = _searched_rows(
        [min(len(a) + len(b), READ_CHARACTERS) for a, b in zip(chosen, rejected, strict=True)]
    )
    texts = [_ends(side[row]) for side in (chosen, rejected) for row in rows]
    found, units = np.unique(groups[rows], return_inverse=True)
    if len(found) < FOLDS:
        found = units = np.arange(len(rows))
    folds = (np.random.default_rng(seed).permutation(len(found)) % FOLDS)[units]
    fitted = fit_tfidf(
        texts, np.repeat([1, 0], len(rows)), folds=np.tile(folds, 2) if len(rows) > 1 else None, seed=seed
    )

    def taste(texts: Sequence[str]) -> FloatArray:
        if fitted.strength is None or not len(texts):
            return np.zeros(len(texts))
        found: FloatArray = fitted.pipeline.decision_function([_ends(text) for text in texts])
        return found

    return taste


def _first_sentence(text: str) -> str:
    for end in SENTENCE_END.finditer(text):
        if end.group().isspace():
            return text[: end.start()].rstrip()
        # Only the near surroundings are copied: a long list has many dots that end no sentence.
        before = text[max(0, end.start() - LONGEST_SHORTENED) : end.start()].split()
        shortened = end.group() == "." and before and _is_shortened(before[-1].lstrip("(["))
        following = NEXT_CHARACTER.search(text, end.end())
        if not shortened and not (following and following.group().islower()):
            return text[: end.end()]
    return text


def _is_shortened(word: str) -> bool:
    """An initial or an abbreviation, given without its last dot."""
    return word.lower() in ABBREVIATIONS or (len(word) == 1 and word.isupper() and word != "I")


def _ends(text: str) -> str:
    """A long text's beginning and end."""
    half = READ_CHARACTERS // 2
    return text if len(text) <= READ_CHARACTERS else f"{text[:half]} {text[-half:]}"


def _searched_rows(lengths: Sequence[int]) -> list[int]:
    """Numbers of the rows that are searched: all, or as many at even distances as the limit allows."""
    total = sum(min(length, READ_CHARACTERS) for length in lengths)
    if total <= TRAIN_CHARACTERS:
        return list(range(len(lengths)))
    wanted = max(1, int(len(lengths) * TRAIN_CHARACTERS / total))
    return [row * len(lengths) // wanted for row in range(wanted)]


def _fitted_vectorizers(texts: Sequence[str]) -> list[TfidfVectorizer]:
    """Both kinds of n-grams, less one that would find nothing (texts of emoji have no words)."""
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, dtype=np.float32)
    characters = TfidfVectorizer(ngram_range=(2, 5), analyzer="char_wb", sublinear_tf=True, dtype=np.float32)
    usable = [each for each in (words, characters) if any(map(each.build_analyzer(), texts))]
    return [each.fit(texts) for each in usable]


def _vectors(vectorizers: Sequence[TfidfVectorizer], texts: Sequence[str]) -> csr_matrix:
    """One row per text; each kind of n-grams has length 1, so that both count alike."""
    return hstack([each.transform(texts) for each in vectorizers], format="csr")


def _chunks(texts: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    for start in range(0, len(texts), size):
        yield texts[start : start + size]
