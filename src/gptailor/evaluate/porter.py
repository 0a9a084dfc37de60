"""English word stems, for ROUGE: the Porter stemmer in the form that rouge-score uses.

The rules are those of Porter 1980, "An algorithm for suffix stripping", with the small changes that NLTK
makes by default and that rouge-score has by it: an own table of odd words, short words kept, -ied as
-ies, y to i only after a consonant, and short stems such as "us" of "used" completed to "use". Numbers
that are compared with rouge-score's need these very stems; why they are written out here stands in
docs/decisions.
"""

from __future__ import annotations

from functools import lru_cache

VOWELS = "aeiou"
ODD_WORDS = {
    "skies": "sky",
    "sky": "sky",
    "dying": "die",
    "lying": "lie",
    "tying": "tie",
    "news": "news",
    "innings": "inning",
    "inning": "inning",
    "outings": "outing",
    "outing": "outing",
    "cannings": "canning",
    "canning": "canning",
    "howe": "howe",
    "proceed": "proceed",
    "exceed": "exceed",
    "succeed": "succeed",
}
# Steps 2 and 3: an ending and what it turns into, if a stem with measure 1 or more stands before it.
# The first ending that fits decides, so a longer one stands before the shorter one that it ends in.
STEP_2 = {
    "ational": "ate",
    "tional": "tion",
    "enci": "ence",
    "anci": "ance",
    "izer": "ize",
    "biliti": "ble",
    "bli": "ble",
    "entli": "ent",
    "eli": "e",
    "ousli": "ous",
    "ization": "ize",
    "ation": "ate",
    "ator": "ate",
    "alism": "al",
    "iveness": "ive",
    "fulness": "ful",
    "ousness": "ous",
    "aliti": "al",
    "iviti": "ive",
    "fulli": "ful",
}
STEP_3 = {"icate": "ic", "ative": "", "alize": "al", "iciti": "ic", "ical": "ic", "ful": "", "ness": ""}
# Step 4: endings that fall if the measure before them is 2 or more.
STEP_4 = (
    *("al", "ance", "ence", "er", "ic", "able", "ible", "ant", "ement", "ment", "ent"),
    *("sion", "tion", "ou", "ism", "ate", "iti", "ous", "ive", "ize"),
)


@lru_cache(maxsize=2**17)
def stem(word: str) -> str:
    """The stem of a word in lower case; words of one or two letters are their own."""
    if word in ODD_WORDS:
        return ODD_WORDS[word]
    if len(word) <= 2:
        return word
    word = _without_past(_without_plural(word))
    if word.endswith("y") and len(word) > 2 and _shape(word)[-2] == "c":
        word = word[:-1] + "i"
    word = _without_long_suffix(_swapped(_step_2(word), STEP_3))
    return _without_last_letter(word)


def _shape(word: str) -> str:
    """One letter a letter: v for a vowel, c for a consonant; y is a vowel after a consonant."""
    shape = ""
    for letter in word:
        shape += "v" if letter in VOWELS or (letter == "y" and shape.endswith("c")) else "c"
    return shape


def _measure(word: str) -> int:
    """How often vowels are followed by consonants: Porter's m."""
    return _shape(word).count("vc")


def _closes_short(word: str) -> bool:
    """Porter's *o: consonant, vowel, consonant other than w, x, y; or just a vowel and a consonant."""
    shape = _shape(word)
    return (shape.endswith("cvc") and word[-1] not in "wxy") or shape == "vc"


def _without_plural(word: str) -> str:
    """Step 1a."""
    if word.endswith("ies"):
        return word[:-1] if len(word) == 4 else word[:-2]
    if word.endswith("sses"):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith("ss") else word


def _without_past(word: str) -> str:
    """Step 1b: -ied, -eed, -ed and -ing."""
    if word.endswith("ied"):
        return word[:-1] if len(word) == 4 else word[:-2]
    if word.endswith("eed"):
        return word[:-1] if _measure(word[:-3]) > 0 else word
    for ending in ("ed", "ing"):
        before = word.removesuffix(ending)
        if before != word:  # the first ending that fits decides
            return _completed(before) if "v" in _shape(before) else word
    return word


def _completed(word: str) -> str:
    """What -ed or -ing was taken from, made a word again: hopp to hop, fil to file."""
    if word.endswith(("at", "bl", "iz")):
        return word + "e"
    if len(word) > 1 and word[-1] == word[-2] and _shape(word)[-1] == "c":
        return word if word[-1] in "lsz" else word[:-1]
    return word + "e" if _measure(word) == 1 and _closes_short(word) else word


def _step_2(word: str) -> str:
    if word.endswith("alli") and _measure(word[:-4]) > 0:
        return _step_2(word[:-2])
    if word.endswith("logi"):  # its l counts as the stem's, so that "geo" is long enough
        return word[:-1] if _measure(word[:-3]) > 0 else word
    return _swapped(word, STEP_2)


def _swapped(word: str, endings: dict[str, str]) -> str:
    """The word with the first ending that fits replaced, if what stands before it is long enough."""
    for ending, replacement in endings.items():
        if word.endswith(ending):
            before = word.removesuffix(ending)
            return before + replacement if _measure(before) > 0 else word
    return word


def _without_long_suffix(word: str) -> str:
    """Step 4."""
    for ending in STEP_4:
        if word.endswith(ending):
            before = word.removesuffix("ion" if ending.endswith("ion") else ending)
            return before if _measure(before) > 1 else word
    return word


def _without_last_letter(word: str) -> str:
    """Step 5: a final e, then one of two final l."""
    if word.endswith("e"):
        before = word[:-1]
        measure = _measure(before)
        if measure > 1 or (measure == 1 and not _closes_short(before)):
            word = before
    return word[:-1] if word.endswith("ll") and _measure(word[:-1]) > 1 else word
