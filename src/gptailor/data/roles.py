"""Which column is the text and which the label: taken from the person, or plain from names and values."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from gptailor.errors import DataError, did_you_mean
from gptailor.types import RawExample

TEXT_NAMES = frozenset(
    [
        "abstract",
        "article",
        "body",
        "clean_text",
        "comment",
        "comments",
        "content",
        "description",
        "doc",
        "document",
        "email",
        "full_text",
        "headline",
        "headlines",
        "input",
        "message",
        "messages",
        "passage",
        "phrase",
        "post",
        "prompt",
        "query",
        "question",
        "review",
        "review_text",
        "reviews",
        "sentence",
        "sentences",
        "sms",
        "statement",
        "subject",
        "summary",
        "text",
        "text_cleaned",
        "texts",
        "title",
        "tweet",
        "tweets",
        "utterance",
    ]
)
LABEL_NAMES = frozenset(
    [
        "airline_sentiment",
        "categories",
        "category",
        "class",
        "class_index",
        "class_name",
        "classes",
        "classification",
        "emotion",
        "genre",
        "gold",
        "ground_truth",
        "gt",
        "intent",
        "is_spam",
        "label",
        "label_int",
        "label_name",
        "label_text",
        "labels",
        "polarity",
        "rating",
        "sentiment",
        "spam",
        "stars",
        "tag",
        "tags",
        "target",
        "targets",
        "topic",
        "topics",
        "toxic",
    ]
)
LOOKED_AT = 2000  # rows that are looked at to tell columns apart


class AmbiguousColumnError(DataError):
    """Several columns fit a role equally well. `role` is "text" or "label"."""

    def __init__(self, role: str, candidates: Sequence[str], listing: str) -> None:
        self.role, self.candidates = role, tuple(candidates)
        choices = [*candidates, "+".join(candidates)] if role == "text" else candidates
        super().__init__(
            f"{len(candidates)} columns could be the {role}:\n{listing}",
            fix=f"Choose with {' or '.join(f'--{role} {shlex.quote(choice)}' for choice in choices)}.",
        )


@dataclass(frozen=True, slots=True)
class Roles:
    """Column names; `a+b` means both, joined with a space."""

    text: str
    label: str | None


@dataclass(frozen=True, slots=True)
class _Shape:
    """What the values of one column look like."""

    values: Sequence[str]  # without the empty ones
    distinct: int
    words: float  # a value, on average
    filled: float  # share of the rows

    @property
    def like_label(self) -> bool:
        """Few distinct values, each short and repeated."""
        few = 2 <= self.distinct <= max(2, min(500, len(self.values) // 3))
        return few and self.filled >= 0.9 and max(map(len, self.values)) <= 60

    @property
    def like_label_sets(self) -> bool:
        """Arrays: several labels each, or none."""
        return bool(self.values) and all(v.strip()[0] == "[" and v.strip()[-1] == "]" for v in self.values)

    @property
    def like_text(self) -> bool:
        """Several words a value, mostly distinct."""
        return self.words >= 3 and self.distinct >= 0.5 * len(self.values) and self.filled >= 0.5

    @property
    def examples(self) -> str:
        shown = list(dict.fromkeys(self.values))[:2]
        return ", ".join(repr(value if len(value) <= 40 else value[:37] + "...") for value in shown)


def infer_roles(
    columns: Sequence[str],
    rows: Sequence[RawExample],
    *,
    text: str | None,
    label: str | None,
    need_label: bool = True,
) -> Roles:
    """The text column and the label column. What the person named wins; the rest must be plain.

    Args:
        columns: All columns there are.
        rows: Some rows; the first 2,000 are looked at.
        text: The person's text column, or `a+b`.
        label: The person's label column.
        need_label: Whether rows without a label are of no use. If not, no label is looked for.

    Raises:
        AmbiguousColumnError: two columns fit equally well. It lists them with two values each and the
            option to type.
        DataError: a named column doesn't exist, or none fits.
    """
    for given, option in ((text, "--text"), (label, "--label")):
        if given is not None:
            _check_exists(given, columns, option)
    shapes = {column: _shape(column, rows) for column in columns}
    free = [column for column in columns if column not in _parts(text, columns)]
    if label is None and need_label:
        label = _infer_label(free, shapes)
    if text is None:
        text = _infer_text([column for column in columns if column not in _parts(label, columns)], shapes)
    return Roles("+".join(_parts(text, columns)), label)


def _parts(name: str | None, columns: Sequence[str]) -> list[str]:
    """`a+b` as its columns; a column whose own name holds a plus stays whole."""
    if name is None:
        return []
    return [name] if name in columns else [part.strip() for part in name.split("+")]


def _check_exists(name: str, columns: Sequence[str], option: str) -> None:
    for part in _parts(name, columns):
        if part not in columns:
            raise DataError(
                f"there is no column {part!r}.{did_you_mean(part, columns)}",
                fix=f"Columns are: {', '.join(columns)}. Choose with {option}.",
            )


def _shape(column: str, rows: Sequence[RawExample]) -> _Shape:
    looked_at = rows[:LOOKED_AT]
    values = [value for row in looked_at if (value := row.fields.get(column, "")).strip()]
    words = sum(len(value.split()) for value in values) / max(len(values), 1)
    return _Shape(values, len(set(values)), words, len(values) / max(len(looked_at), 1))


def _infer_label(columns: Sequence[str], shapes: dict[str, _Shape]) -> str:
    filled = [c for c in columns if shapes[c].values and not shapes[c].like_text]
    named = [c for c in filled if c.strip().lower() in LABEL_NAMES]
    candidates = named or [c for c in columns if shapes[c].like_label or shapes[c].like_label_sets]
    if len(candidates) > 1:
        candidates = _without_renamings(candidates, shapes)
    if len(candidates) == 1:
        return candidates[0]
    if not candidates:
        raise DataError(
            "no column looks like a label (few distinct values, each repeated).",
            fix=f"{_listing(list(shapes), shapes)}\n"
            "Name it with --label COLUMN; where an answer is written, a prompt and an answer with --prompt "
            "COLUMN --completion COLUMN; or learn from texts alone with --task language.",
        )
    raise AmbiguousColumnError("label", candidates, _listing(candidates, shapes))


def _without_renamings(candidates: list[str], shapes: dict[str, _Shape]) -> list[str]:
    """Drops columns that say the same as an earlier choice in other words, such as 0 beside World."""
    kept: list[str] = []
    for column in sorted(candidates, key=lambda c: (_mostly_numbers(shapes[c].values), candidates.index(c))):
        values = shapes[column].values
        if not any(_one_to_one(shapes[other].values, values) for other in kept):
            kept.append(column)
    return sorted(kept, key=candidates.index)


def _one_to_one(left: Sequence[str], right: Sequence[str]) -> bool:
    pairs = set(zip(left, right, strict=False))
    return len(left) == len(right) > len(pairs) and len(pairs) == len(set(left)) == len(set(right))


def _mostly_numbers(values: Sequence[str]) -> bool:
    return 2 * sum(value.strip().lstrip("+-").replace(".", "", 1).isdigit() for value in values) > len(values)


def _infer_text(columns: Sequence[str], shapes: dict[str, _Shape]) -> str:
    named = [c for c in columns if c.strip().lower() in TEXT_NAMES and shapes[c].values]
    candidates = named or [c for c in columns if shapes[c].like_text]
    if not candidates and len(columns) == 1:
        candidates = list(columns)
    if not candidates:
        others = [
            c
            for c in columns
            if shapes[c].distinct > 0.5 * len(shapes[c].values) and not _mostly_numbers(shapes[c].values)
        ]
        candidates = [c for c in others if shapes[c].filled >= 0.5]
    if len(candidates) == 1:
        return candidates[0]
    if not candidates:
        raise DataError(
            "no column looks like the text.",
            fix=f"{_listing(list(shapes), shapes)}\nName it with --text COLUMN.",
        )
    raise AmbiguousColumnError("text", candidates, _listing(candidates, shapes))


def _listing(columns: list[str], shapes: dict[str, _Shape]) -> str:
    return "\n".join(
        f"  {column} ({len(shapes[column].values):,} values, {shapes[column].distinct:,} distinct): "
        f"{shapes[column].examples or 'empty'}"
        for column in columns
    )
