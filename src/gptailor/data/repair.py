"""Mends texts: mojibake, entities, control characters, blanks. What is the writer's own stays."""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import cache
from html.entities import html5

import ftfy

EXCERPT = 60  # characters shown on each side of a change
FEW_CHARACTERS = 4000  # so many marks are composed in milliseconds
MOST_MARKS = 64  # on one letter; Unicode's stream-safe format has 30 (UAX #15)

Step = tuple[str, Callable[[str], str]]

# A text that a fix only uncovers (an entity inside an entity) takes another pass; real text needs
# three at most. The bound keeps hostile text linear.
MAX_PASSES = 16

# In plain ASCII nothing but these needs a closer look.
ASCII_SUSPECT = re.compile("[\x00-\x1f\x7f&;]|  ")

# Quotes, ligatures and full-width letters are the writer's own: only damage is mended. Control
# characters and entities have steps of their own.
MOJIBAKE = ftfy.TextFixerConfig(
    unescape_html=False,
    fix_latin_ligatures=False,
    fix_character_width=False,
    uncurl_quotes=False,
    fix_line_breaks=False,
    fix_surrogates=False,
    remove_control_chars=False,
    explain=False,
)
# ftfy takes for mojibake only what stands beside another character that isn't ASCII, the C1 controls, and
# four letters by their neighbors. The lone accents of most languages need no closer look.
MOJIBAKE_SUSPECT = re.compile("[^\x00-\x7f]{2}|[\x1b\x80-\x9f\xc2\xc3\u0152\u0153]")
SURROGATE = re.compile("[\ud800-\udfff]")

# A semicolon is asked for, because `?a=1&section=2` holds no section sign. Five names are safe without.
# Runs of escaped ampersands go at once, so that depth costs nothing.
ENTITY = re.compile(
    r"&(?:(?:amp|#0{0,9}38|#[xX]0{0,9}26);)+"
    r"|&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});"
    r"|&(?:amp|lt|gt|quot|nbsp)(?![A-Za-z0-9=;])"
)
# AG News and its kin went through a step that wrote a blank for each ampersand: ` #39;` was `&#39;`.
# Only names and numbers of marks, never of letters. `amp;` is also a word before a semicolon, so it
# must stand after two blanks (`Barnes  amp; Noble`) or before a letter (`AT amp;T`).
LOST_AMPERSAND = re.compile(
    r"(?:(?<![^\n])| )(quot|apos|lt|gt|hellip|(?:nbsp;)*nbsp"
    r"|#(?:3[469]|133|14[5-9]|15[01]|16[039]|174|821[1267]|822[01]|8230|8364));"
    r"| (?:(?<=  )amp;|amp;(?=\S))"
)

LINE_BREAK = re.compile("\r\n?|[\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")
CONTROL = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x9f\xad\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ufffe\uffff]"
)
# The joiners are part of spelling between emoji and between letters of many scripts (Persian, Hindi),
# and nothing but noise elsewhere.
JOINING = "[\u0590-\u1fff\u2100-\u2fff\u3001-\ud7ff\uf900-\ufefe\U00010000-\U000dffff]"
STRAY_JOINER = re.compile(f"(?<!{JOINING})[\u200c\u200d]|[\u200c\u200d](?!{JOINING})")
# Tag characters spell three flags (England, Scotland, Wales); elsewhere they hide text from the reader.
TAGS = re.compile("(\U0001f3f4[\U000e0020-\U000e007e]+\U000e007f)|[\U000e0000-\U000e007f]")

BLANKS = re.compile("[ \t\xa0\u1680\u2000-\u200a\u202f\u205f\u3000]+")


def repair(
    text: str,
    *,
    repair_text: bool = True,
    unescape_entities: bool = True,
    drop_control: bool = True,
    squeeze_space: bool = True,
) -> str:
    """Mends one text. Mending twice changes nothing more, and no string raises.

    Args:
        text: Any string, lone surrogates included (they always become U+FFFD).
        repair_text: Mend mojibake and compose Unicode (NFC).
        unescape_entities: Turn HTML entities into characters, also those whose ampersand was lost.
        drop_control: Drop control and invisible characters; every kind of line break becomes a newline.
        squeeze_space: Squeeze runs of blanks to one, runs of newlines to two, and trim the ends.
    """
    if is_plain(text):
        return text
    steps = steps_of(
        repair_text=repair_text,
        unescape_entities=unescape_entities,
        drop_control=drop_control,
        squeeze_space=squeeze_space,
    )
    return run_steps(text, steps)[0]


def is_plain(text: str) -> bool:
    """Whether nothing in it needs a closer look."""
    return text.isascii() and not ASCII_SUSPECT.search(text) and text[:1] != " " and text[-1:] != " "


def steps_of(
    *, repair_text: bool, unescape_entities: bool, drop_control: bool, squeeze_space: bool
) -> list[Step]:
    """What is done to a text, in order; see `repair`."""
    wanted: list[tuple[bool, Step]] = [
        (True, ("mojibake", _mend_surrogates)),
        (repair_text, ("mojibake", _mend_mojibake)),
        (unescape_entities, ("entities", _unescape)),
        (drop_control, ("control", _drop_control)),
        (squeeze_space, ("space", _squeeze)),
    ]
    return [step for is_wanted, step in wanted if is_wanted]


def run_steps(text: str, steps: Sequence[Step]) -> tuple[str, dict[str, tuple[str, str]]]:
    """The steps over and over until nothing changes; and the first change of each kind."""
    changes: dict[str, tuple[str, str]] = {}
    for _ in range(MAX_PASSES):
        start = text
        for kind, step in steps:
            before, text = text, step(text)
            if text != before:
                changes.setdefault(kind, (before, text))
        if text == start or is_plain(text):
            break
    return text, changes


def _mend_surrogates(text: str) -> str:
    if text.isascii() or not SURROGATE.search(text):
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _mend_mojibake(text: str) -> str:
    if len(text) > FEW_CHARACTERS and not text.isascii() and _stacked_marks().search(text):
        return ftfy.fix_text(text, MOJIBAKE._replace(normalization=None))
    if not MOJIBAKE_SUSPECT.search(text) and unicodedata.is_normalized("NFC", text):
        return text
    return ftfy.fix_text(text, MOJIBAKE)


@cache
def _stacked_marks() -> re.Pattern[str]:
    """More combining marks in a row than any writing has: composing them takes the square of their number, so
    a text of 100,000 would hold up a whole server for twelve seconds.
    """
    marks = [code for code in range(0x300, 0x20000) if unicodedata.combining(chr(code))]
    return re.compile(f"[{''.join(map(chr, marks))}]{{{MOST_MARKS + 1},}}")


def _unescape(text: str) -> str:
    if "&" in text:
        text = ENTITY.sub(_character, text)
    if ";" in text:
        text = LOST_AMPERSAND.sub(lambda match: html.unescape(f"&{match[1] or 'amp'};"), text)
    return text


def _character(match: re.Match[str]) -> str:
    entity = match[0]
    if entity.endswith(";") and entity.count(";") > 1:
        return "&"
    # html.unescape also reads the beginning of a name (&notit; as a not sign), which mends nothing.
    is_known = entity[1] == "#" or entity[1:] in html5
    return html.unescape(entity) if is_known else entity


def _drop_control(text: str) -> str:
    text = CONTROL.sub("", LINE_BREAK.sub("\n", text))
    if text.isascii():
        return text
    return STRAY_JOINER.sub("", TAGS.sub(lambda match: match[1] or "", text))


def _squeeze(text: str) -> str:
    text = BLANKS.sub(" ", text)
    if "\n" in text:
        text = re.sub(r"\n{3,}", "\n\n", re.sub(r" ?\n ?", "\n", text))
    return text.strip(" \n")


def excerpts(before: str, after: str) -> tuple[str, str]:
    """Both texts around their first difference."""
    same = next((i for i, (b, a) in enumerate(zip(before, after, strict=False)) if b != a), None)
    start = max(0, (min(len(before), len(after)) if same is None else same) - EXCERPT)
    return before[start : start + 2 * EXCERPT], after[start : start + 2 * EXCERPT]
