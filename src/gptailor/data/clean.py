"""Repairs texts, merges label spellings, and drops rows that can't teach anything, each with its reason."""

from __future__ import annotations

import html
import json
import re
import sys
import unicodedata
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from html.entities import html5
from itertools import islice

import ftfy
import numpy as np

from gptailor.data.store import store_rows
from gptailor.data.views import each, picked
from gptailor.errors import number_of
from gptailor.recipe import CleanSettings
from gptailor.types import AnswerKind, RawExample, Reason, RejectedRow

EXAMPLES_PER_KIND = 5
EXCERPT = 60  # characters shown on each side of a change
TYPO_LENGTH = 5  # shorter labels differ by one letter too easily: cat, car
TYPO_SHARE = 0.01  # of the other label's rows
LONGEST_LABEL = 100  # a longer "label" is a text in the wrong column; its typos are not worth the time

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
    r"&(?:(?:amp|#0*38|#[xX]0*26);)+"
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


@dataclass(frozen=True, slots=True)
class CleanResult:
    """What cleaning kept and what it did. Every row that came in is in `rows` or in `rejected`, in order."""

    rows: Sequence[RawExample]
    rejected: list[RejectedRow]
    repaired: int  # rows whose text changed
    label_merges: dict[str, str] = field(default_factory=dict)  # spelling -> kept spelling
    label_suspicions: list[tuple[str, str]] = field(default_factory=list)  # (rarer, commoner), not merged
    rare_labels: dict[str, int] = field(
        default_factory=dict
    )  # label -> its rows; taken out of sets of labels
    examples: dict[str, list[tuple[str, str]]] = field(default_factory=dict)  # kind -> (before, after)


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
    if _is_plain(text):
        return text
    return _run(text, _steps(repair_text, unescape_entities, drop_control, squeeze_space))[0]


def clean_rows(
    rows: Sequence[RawExample],
    *,
    settings: CleanSettings,
    label_role: str | None = "label",
    text_roles: Sequence[str] = ("text",),
    protected: bool = False,
    known: CleanResult | None = None,
    kind: AnswerKind = "single",
) -> CleanResult:
    """Repairs rows and drops those without text or label, duplicates, conflicts and rare labels.

    Args:
        rows: Rows whose fields are named by role.
        settings: What may be done.
        label_role: The label's role, or None for a task without labels.
        text_roles: The roles that are repaired. A row without a word in any of them has no text.
        protected: The rows are a given validation or test file: repaired the same way, but a row goes
            only for want of text or label, and labels merge only over case and white space.
        known: The training rows' result. Labels are then spelled as in training (its merges included),
            and a label that training doesn't know stays as it is.
        kind: What a label cell holds: a label; several, as a JSON array of texts that may be empty; a number,
            which is neither merged nor rare. In a set of labels a rare one is taken out, and the row goes
            where none is left.
    """
    mender = _Mender(settings, label_role, text_roles, kind)
    mended = store_rows(map(mender.mend, rows))
    labels = mender.labels
    fates: dict[int, RejectedRow] = {}
    _drop_empty(mended, mender, fates, text_roles)

    merges: dict[str, str] = {}
    suspicions: list[tuple[str, str]] = []
    rare: dict[str, int] = {}
    if label_role is not None and kind != "score":
        counts = _label_counts(labels, fates, kind)
        merges, suspicions = _label_spellings(counts, settings, label_role, protected, known, kind)
        if merges:
            spell = partial(_each_label, change=lambda label: merges.get(label, label), kind=kind)
            labels = [spell(label) for label in labels]
            mended = each(mended, lambda row: _with(row, {label_role: spell(row.fields[label_role])}))

    if not protected:
        _drop_repeats(mended, mender.hashes, labels, fates, settings, text_roles)
    if label_role is not None and kind == "multiple":
        rare = known.rare_labels if known else _rare(labels, fates, settings, kind)
        if rare:
            mended = _without_rare(mended, fates, rare, settings.minimum_class_size, label_role)
    elif label_role is not None and kind == "single" and not protected:
        _drop_rare(mended, labels, fates, settings.minimum_class_size)
    is_kept = np.ones(len(mended), dtype=bool)
    is_kept[list(fates)] = False
    return CleanResult(
        rows=picked(mended, np.flatnonzero(is_kept)),
        rejected=[fates[i] for i in sorted(fates)],
        repaired=mender.repaired,
        label_merges=merges,
        label_suspicions=suspicions,
        rare_labels=rare,
        examples=mender.examples,
    )


def merge_labels(counts: Mapping[str, int]) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Which spellings of labels mean the same.

    Labels that differ only by case and white space merge into the commonest spelling. One typo (a letter
    inserted, missing, replaced, or two swapped) merges only where both labels have five characters or
    more and no digit, and the rarer has at most 1 % of the commoner's rows. A leading "a" is never a
    typo: atypical is not typical.

    Returns:
        (spelling -> kept spelling, for those that change; pairs (rarer, commoner) that look alike but
        were not merged).
    """
    spellings: dict[str, list[str]] = defaultdict(list)
    for label in counts:
        spellings[_squeezed(label).casefold()].append(label)
    kept = {
        key: _squeezed(min(same, key=lambda label: (-counts[label], label)))
        for key, same in spellings.items()
    }
    totals = {key: sum(counts[label] for label in same) for key, same in spellings.items()}
    targets, suspicions = _merge_typos(totals)
    merges = {
        label: kept[targets.get(key, key)]
        for key, same in spellings.items()
        for label in same
        if label != kept[targets.get(key, key)]
    }
    return merges, [(kept[rare], kept[common]) for rare, common in suspicions]


# --- repairing -------------------------------------------------------------------------------------


def _is_plain(text: str) -> bool:
    return text.isascii() and not ASCII_SUSPECT.search(text) and text[:1] != " " and text[-1:] != " "


def _steps(repair_text: bool, unescape_entities: bool, drop_control: bool, squeeze_space: bool) -> list[Step]:
    wanted: list[tuple[bool, Step]] = [
        (True, ("mojibake", _mend_surrogates)),
        (repair_text, ("mojibake", _mend_mojibake)),
        (unescape_entities, ("entities", _unescape)),
        (drop_control, ("control", _drop_control)),
        (squeeze_space, ("space", _squeeze)),
    ]
    return [step for is_wanted, step in wanted if is_wanted]


def _run(text: str, steps: Sequence[Step]) -> tuple[str, dict[str, tuple[str, str]]]:
    """The steps over and over until nothing changes; and the first change of each kind."""
    changes: dict[str, tuple[str, str]] = {}
    for _ in range(MAX_PASSES):
        start = text
        for kind, step in steps:
            before, text = text, step(text)
            if text != before:
                changes.setdefault(kind, (before, text))
        if text == start or _is_plain(text):
            break
    return text, changes


def _mend_surrogates(text: str) -> str:
    if text.isascii() or not SURROGATE.search(text):
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _mend_mojibake(text: str) -> str:
    if not MOJIBAKE_SUSPECT.search(text) and unicodedata.is_normalized("NFC", text):
        return text
    return ftfy.fix_text(text, MOJIBAKE)


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


class _Mender:
    """Repairs one row after the other, and keeps what the rest of cleaning asks of all of them."""

    def __init__(
        self, settings: CleanSettings, label_role: str | None, text_roles: Sequence[str], kind: AnswerKind
    ) -> None:
        self.steps = _steps(
            settings.repair_text, settings.unescape_entities, settings.drop_control, settings.squeeze_space
        )
        self.label_role, self.text_roles, self.kind = label_role, text_roles, kind
        self.repaired = 0  # rows whose text changed
        self.examples: dict[str, list[tuple[str, str]]] = {}
        self.empty: list[int] = []  # rows without text
        self.labels: list[str] = []  # each row's; equal ones are one object
        self.hashes = array("q")  # of each row's texts as repaired: rows with equal texts have equal ones

    def mend(self, row: RawExample) -> RawExample:
        fields: dict[str, str] = {}
        for role in self.text_roles:
            text = row.fields.get(role, "")
            if not _is_plain(text):
                fields[role] = self._mended_text(text)
        self.repaired += any(row.fields.get(role, "") != text for role, text in fields.items())
        if self.label_role is not None:
            cell = row.fields.get(self.label_role, "")
            fields[self.label_role] = label = sys.intern(_each_label(cell, self._mended_label, self.kind))
            self.labels.append(label)
        row = _with(row, fields)
        texts = _texts(row, self.text_roles)
        if self.text_roles and not any(text.strip() for text in texts):
            self.empty.append(len(self.hashes))
        self.hashes.append(hash(texts))
        return row

    def _mended_text(self, text: str) -> str:
        mended, changes = _run(text, self.steps)
        for change, (before, after) in changes.items():
            shown = self.examples.setdefault(change, [])
            if len(shown) < EXAMPLES_PER_KIND:
                shown.append(_excerpts(before, after))
        return mended

    def _mended_label(self, label: str) -> str:
        return _squeezed(label if _is_plain(label) else _run(label, self.steps)[0])


def _texts(row: RawExample, text_roles: Sequence[str]) -> tuple[str, ...]:
    """What makes a row a duplicate of another; without roles for texts, all its fields."""
    return tuple([row.fields.get(role, "") for role in text_roles or sorted(row.fields)])


def _with(row: RawExample, fields: Mapping[str, str]) -> RawExample:
    if all(row.fields.get(role) == text for role, text in fields.items()):
        return row
    return replace(row, fields={**row.fields, **fields})


def _excerpts(before: str, after: str) -> tuple[str, str]:
    """Both texts around their first difference."""
    same = next((i for i, (b, a) in enumerate(zip(before, after, strict=False)) if b != a), None)
    start = max(0, (min(len(before), len(after)) if same is None else same) - EXCERPT)
    return before[start : start + 2 * EXCERPT], after[start : start + 2 * EXCERPT]


# --- labels ----------------------------------------------------------------------------------------


def _labels_of(cell: str, kind: AnswerKind) -> list[str]:
    """The labels in a cell."""
    return list(json.loads(cell)) if kind == "multiple" and cell else [cell]


def _each_label(cell: str, change: Callable[[str], str], kind: AnswerKind) -> str:
    """The cell with each of its labels changed; of several, each stands once and in order."""
    if kind != "multiple" or not cell:
        return change(cell)
    changed = {change(label) for label in _labels_of(cell, kind)} - {""}
    return json.dumps(sorted(changed), ensure_ascii=False)


def _label_counts(labels: Sequence[str], fates: Mapping[int, RejectedRow], kind: AnswerKind) -> Counter[str]:
    """Rows that carry each label, the dropped ones left out."""
    cells = Counter(label for i, label in enumerate(labels) if i not in fates)
    counts: Counter[str] = Counter()
    for cell, count in cells.items():
        for label in _labels_of(cell, kind):
            counts[label] += count
    return counts


def _squeezed(label: str) -> str:
    return " ".join(label.split())


def _label_spellings(
    counts: Mapping[str, int],
    settings: CleanSettings,
    label_role: str,
    protected: bool,
    known: CleanResult | None,
    kind: AnswerKind,
) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """(spelling -> kept spelling; look-alikes), by the rows themselves or by what training knows."""
    if known is not None:
        cells = (cell for row in known.rows if (cell := row.fields.get(label_role, "")))
        names = {label: label for cell in cells for label in (*_labels_of(cell, kind), *known.rare_labels)}
        names |= known.label_merges
        folded = {_squeezed(label).casefold(): kept for label, kept in names.items()}
        found = {
            label: names.get(label, folded.get(label.casefold(), label) if settings.merge_labels else label)
            for label in counts
        }
        return {label: kept for label, kept in found.items() if label != kept}, []
    merges, suspicions = merge_labels(counts)
    wrong = {
        label: kept
        for label, kept in merges.items()
        if not settings.merge_labels or (protected and label.casefold() != kept.casefold())
    }
    merges = {label: kept for label, kept in merges.items() if label not in wrong}
    return merges, [*wrong.items(), *suspicions]


def _merge_typos(totals: Mapping[str, int]) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """(folded label -> the one it is a typo of; other look-alikes as (rarer, commoner))."""
    near: dict[str, list[str]] = defaultdict(list)
    order = sorted(totals, key=lambda label: (-totals[label], label))
    rank = {label: place for place, label in enumerate(order)}
    for one, other in _look_alikes(totals):
        rare, common = sorted((one, other), key=rank.__getitem__, reverse=True)
        near[rare].append(common)
    targets: dict[str, str] = {}
    suspicions: list[tuple[str, str]] = []
    for rare in order:
        commons = sorted(near[rare], key=rank.__getitem__)
        fitting = [
            common
            for common in commons
            if common not in targets
            and _is_typo(rare, common)
            and totals[rare] <= TYPO_SHARE * totals[common]
        ]
        if len(fitting) == 1:  # two would be a guess
            targets[rare] = fitting[0]
        else:
            suspicions += [(rare, common) for common in commons]
    return targets, suspicions


def _look_alikes(labels: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of labels without digits, one edit apart or equal in all their letters.

    Labels one edit apart share a string that one or no deletion makes of both, so a table of these
    finds them without comparing all pairs.
    """
    table: dict[str, list[str]] = defaultdict(list)
    for label in labels:
        if any(letter.isdigit() for letter in label) or not 2 < len(label) <= LONGEST_LABEL:
            continue
        shorter = {label[:i] + label[i + 1 :] for i in range(len(label))}
        letters = "".join(filter(str.isalnum, label))
        for form in {label, *shorter, letters}:
            table[form].append(label)
    pairs = {
        (min(one, other), max(one, other))
        for same in table.values()
        for i, one in enumerate(same)
        for other in same[:i]
    }
    return sorted(pair for pair in pairs if _is_one_edit(*pair) or _has_same_letters(*pair))


def _has_same_letters(one: str, other: str) -> bool:
    letters = "".join(filter(str.isalnum, one))
    return bool(letters) and letters == "".join(filter(str.isalnum, other))


def _is_typo(one: str, other: str) -> bool:
    short, long = sorted((one, other), key=len)
    return len(short) >= TYPO_LENGTH and long != f"a{short}" and _is_one_edit(short, long)


def _is_one_edit(one: str, other: str) -> bool:
    """Whether one insertion, deletion, substitution or swap of neighbors makes one of the other."""
    short, long = sorted((one, other), key=len)
    start = next((i for i, (s, o) in enumerate(zip(short, long, strict=False)) if s != o), len(short))
    if len(long) == len(short) + 1:
        return short[start:] == long[start + 1 :]
    if len(long) != len(short) or start == len(short):
        return False
    swapped = short[start : start + 2] == long[start : start + 2][::-1]
    return short[start + 1 :] == long[start + 1 :] or (swapped and short[start + 2 :] == long[start + 2 :])


# --- dropping --------------------------------------------------------------------------------------


def _drop_empty(
    rows: Sequence[RawExample],
    mender: _Mender,
    fates: dict[int, RejectedRow],
    text_roles: Sequence[str],
) -> None:
    for i, label in enumerate(mender.labels):
        if not label:
            fates[i] = _rejected(rows[i], "no_label", "the label is empty")
    for i in mender.empty:
        fates[i] = _rejected(rows[i], "no_text", f"there is no text in {' or '.join(text_roles)}")


def _drop_repeats(
    rows: Sequence[RawExample],
    hashes: Sequence[int],
    labels: Sequence[str],
    fates: dict[int, RejectedRow],
    settings: CleanSettings,
    text_roles: Sequence[str],
) -> None:
    """Conflicts and exact duplicates, by text exactly as repaired."""
    same_text: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for i in _not_alone(hashes):
        if i not in fates:
            same_text[_texts(rows[i], text_roles)].append(i)
    for same in same_text.values():
        if len(same) == 1:
            continue
        first: dict[str, int] = {}
        for i in same:
            first.setdefault(labels[i] if labels else "", i)
        if len(first) > 1 and settings.drop_conflicts:
            names = _some([f'"{label}"' for label in first])
            for i in same:
                # No more than are named: a short text can be a conflict of thousands of rows.
                others = _places(rows[i], [rows[j] for j in islice((j for j in same if j != i), 6)])
                fates[i] = _rejected(
                    rows[i], "conflict", f"same text as {others}, but the labels are {names}"
                )
        elif settings.drop_duplicates:
            what = "text and label" if labels else "text"
            for i in same:
                original = first[labels[i] if labels else ""]
                if i != original:
                    place = _places(rows[i], [rows[original]])
                    fates[i] = _rejected(rows[i], "duplicate", f"same {what} as {place}")


def _not_alone(hashes: Sequence[int]) -> list[int]:
    """Places whose hash others have, too, in order."""
    values = np.array(hashes, dtype=np.int64)
    order = np.argsort(values, kind="stable")
    equal = values[order[1:]] == values[order[:-1]]
    places: list[int] = np.unique(np.concatenate([order[1:][equal], order[:-1][equal]])).tolist()
    return places


def _drop_rare(
    rows: Sequence[RawExample], labels: Sequence[str], fates: dict[int, RejectedRow], minimum: int
) -> None:
    counts = Counter(label for i, label in enumerate(labels) if i not in fates)
    rare = {label for label, count in counts.items() if count < minimum}
    for i, label in enumerate(labels) if rare else ():
        if i not in fates and label in rare:
            has = f'label "{label}" has {number_of(counts[label], "row")}'
            fates[i] = _rejected(rows[i], "rare_label", f"{has}; {minimum} are needed")


def _rare(
    labels: Sequence[str], fates: Mapping[int, RejectedRow], settings: CleanSettings, kind: AnswerKind
) -> dict[str, int]:
    counts = _label_counts(labels, fates, kind)
    return {label: count for label, count in counts.items() if count < settings.minimum_class_size}


def _without_rare(
    rows: Sequence[RawExample],
    fates: dict[int, RejectedRow],
    rare: Mapping[str, int],
    minimum: int,
    label_role: str,
) -> Sequence[RawExample]:
    """Takes rare labels out of the sets; a row that carried no other is dropped."""

    def kept() -> Iterator[RawExample]:
        for i, row in enumerate(rows):
            carried = _labels_of(row.fields[label_role], "multiple") if i not in fates else []
            left = [label for label in carried if label not in rare]
            if carried and not left:
                names = ", ".join(f'"{label}"' for label in carried)
                detail = f"no label but {names}; {minimum} rows of each are needed"
                fates[i] = _rejected(row, "rare_label", detail)
            elif len(left) < len(carried):
                row = _with(row, {label_role: json.dumps(left, ensure_ascii=False)})
            yield row

    return store_rows(kept())


def _places(row: RawExample, others: Sequence[RawExample]) -> str:
    """`row 12, row 40 and more`; rows of another file with its name."""
    names = [
        f"row {other.row}" + ("" if other.source == row.source else f" of {other.source}") for other in others
    ]
    return _some(names)


def _some(names: Sequence[str], shown: int = 5) -> str:
    return ", ".join(names[:shown]) + (" and more" if len(names) > shown else "")


def _rejected(row: RawExample, reason: Reason, detail: str) -> RejectedRow:
    return RejectedRow(source=row.source, row=row.row, reason=reason, detail=detail)
