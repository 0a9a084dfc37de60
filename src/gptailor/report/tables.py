"""Lists and tables, cut to what a page can hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gptailor.report.facts import clip


@dataclass(frozen=True, slots=True)
class Pieces:
    """A list cut in three: shown, behind a click, and only counted."""

    first: Sequence[Any]
    rest: Sequence[Any]
    left_off: int


def pieces(found: Sequence[Any], *, shown: int, most: int = 60) -> Pieces:
    """Cuts a list after `shown` and after `most`; a rest of one or two isn't worth a click."""
    if len(found) <= shown + 2:
        return Pieces(found, (), 0)
    return Pieces(found[:shown], found[shown:most], max(0, len(found) - most))


def table(
    label: str, heads: Sequence[str], rows: Sequence[Sequence[Any]], *, right: Sequence[int] = ()
) -> dict[str, Any] | None:
    """A table for the template, or None where it has no rows. `right` are the columns of numbers."""
    if not rows:
        return None
    cells = [[clip(cell, 200) for cell in row] for row in rows]
    return {"label": label, "heads": list(heads), "rows": cells, "right": list(right)}
