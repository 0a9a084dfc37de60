"""Plots as inline SVG: small pure functions from numbers to markup.

Plots with text are drawn 360 units wide: on a phone they keep their size, on a desk they grow. Bars
are drawn in percent of their place, beside text that is plain HTML. Values that aren't finite are
left out; a plot without values is the empty string.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from gptailor.report.facts import Measured, clip, count_text, finite, score_text, share_text, visible
from gptailor.report.svg import (
    BELOW,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Scale,
    axis_text,
    drawing,
    element,
    mark_line,
    nice_ticks,
    path,
    text,
    x_axis,
    y_axis,
)

NUMBERED_CLASSES = 12  # up to here a confusion matrix has names and numbers
_TITLED_CELLS = 400  # in a large matrix, how many cells (the largest) have a tooltip
_LEVELS = 8

Bin = tuple[float, float, float]  # confidence, accuracy, count
Cell = tuple[int, int, float, float]  # row, column, count, share of the row


@dataclass(frozen=True, slots=True)
class Series:
    """A line: `points` are (x, y); `tone` names its color (`a`, `b`, `c`)."""

    name: str
    points: Sequence[tuple[float, float]]
    tone: str = "a"
    dots: bool = False


def bar(
    score: float, low: float | None = None, high: float | None = None, *, top: float, tone: str
) -> Markup:
    """A horizontal bar from 0 to `score` with the whisker of its interval, as wide as its place."""

    def at(value: float) -> str:
        return f"{min(max(100 * value / top, 0), 100) if top > 0 else 0:.2f}%"

    parts = [
        element("rect", x=0, y=3, width="100%", height=12, rx=3, class_="track"),
        element("rect", x=0, y=3, width=at(score), height=12, rx=3, class_=f"fill-{tone}"),
    ]
    if low is not None and high is not None:
        for look in ("halo", "whisker"):  # the halo sets the whisker off from the bar
            parts.append(element("line", x1=at(low), x2=at(high), y1=9, y2=9, class_=look))
            parts += [element("line", x1=at(v), x2=at(v), y1=5, y2=13, class_=look) for v in (low, high)]
    return element("svg", *parts, class_="bar", width="100%", height=18, aria_hidden="true")


def score_bar(score: Measured, *, top: float, tone: str) -> Markup:
    """The bar of a score."""
    return bar(score.value, score.low, score.high, top=top, tone=tone)


def strip(parts: Sequence[tuple[str, float, str]], *, label: str) -> Markup:
    """One bar cut into shares: (name, amount, tone) each, as wide as its place."""
    whole = sum(amount for _, amount, _ in parts)
    pieces, start = [], 0.0
    for name, amount, tone in parts:
        if amount <= 0 or not math.isfinite(whole):
            continue
        share = amount / whole
        title = element("title", f"{name}: {count_text(amount)} ({share_text(share)})")
        place = {"x": f"{100 * start:.3f}%", "width": f"{100 * share:.3f}%"}
        pieces.append(element("rect", title, **place, y=0, height=22, class_=f"fill-{tone} piece"))
        start += share
    return element("svg", *pieces, class_="strip", width="100%", height=22, role="img", aria_label=label)


def difference(value: float, low: float, high: float, *, tone: str, label: str, reach: float = 0.0) -> Markup:
    """A dot with its interval beside a line at zero; `reach` is the least that both sides hold."""
    reach = 1.15 * max(abs(low), abs(high), abs(value), reach, 1e-9)
    scale = Scale(-reach, reach, 2, 98)

    def at(v: float) -> str:
        return f"{scale(v):.2f}%"

    parts = [
        element("line", x1="0%", x2="100%", y1=16, y2=16, class_="axis"),
        element("line", x1=at(0), x2=at(0), y1=4, y2=28, class_="zero"),
        element("line", x1=at(low), x2=at(high), y1=16, y2=16, class_=f"reach line-{tone}"),
        element("circle", cx=at(value), cy=16, r=7, class_=f"fill-{tone} dot"),
    ]
    return element("svg", *parts, class_="difference", width="100%", height=32, role="img", aria_label=label)


def line_chart(
    series: Sequence[Series],
    *,
    label: str,
    x_title: str,
    y_title: str = "",
    height: float = 222.0,
    mark: tuple[float, str] | None = None,
    log_x: bool = False,
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
    band: Sequence[tuple[float, float, float]] = (),
) -> Markup:
    """Lines over a shared axis. `mark` is a labelled upright line; the ranges fix an axis.

    `band` is an area of (x, low, high) behind the lines.
    """
    series = [Series(s.name, _finite_points(s.points, log_x), s.tone, s.dots) for s in series]
    points = [p for s in series for p in s.points]
    if not points:
        return Markup("")
    held = [y for _, y in points] + [y for _, *edges in band for y in edges]
    low, high = y_range or (min(held), max(held))
    left, right = x_range or (min(x for x, _ in points), max(x for x, _ in points))
    ticks = nice_ticks(low, high)
    bottom = height - BELOW
    y = Scale(min(low, ticks[0]), max(high, ticks[-1]), bottom, TOP)
    x = Scale(left, right, LEFT, RIGHT, log_x)
    drawn = [*y_axis(y, ticks, y_title), *x_axis(x, bottom, x_title), *mark_line(mark, x, bottom)]
    if band:
        around = [(x(at), y(top)) for at, _, top in band] + [(x(at), y(under)) for at, under, _ in band[::-1]]
        drawn.append(element("path", d=f"{path(around)}Z", class_="band"))
    for one in series:
        drawn += _line(one, x, y, x_title)
    return drawing(drawn, height, label)


def reliability_diagram(before: Sequence[Bin], after: Sequence[Bin], *, label: str) -> Markup:
    """Accuracy over confidence, a circle for each bin; the diagonal is perfect."""
    height = 332.0
    x, y = Scale(0, 1, LEFT, RIGHT), Scale(0, 1, height - BELOW, TOP)
    ticks = [0.0, 0.25, 0.5, 0.75, 1.0]
    drawn = [
        *y_axis(y, ticks, "share right"),
        *x_axis(x, height - BELOW, "probability given", ticks),
        element("line", x1=x(0), y1=y(0), x2=x(1), y2=y(1), class_="ideal"),
    ]
    for bins, tone, when in ((before, "b", "before"), (after, "a", "after")):
        kept = [b for b in bins if all(math.isfinite(v) for v in b) and b[2] > 0]
        most = max((count for _, _, count in kept), default=1.0)
        if len(kept) > 1:
            line = path([(x(sure), y(right)) for sure, right, _ in kept])
            drawn.append(element("path", d=line, class_=f"line line-{tone}"))
        for sure, right, count in kept:
            said = f"{share_text(sure)} sure, {share_text(right)} right ({count_text(count)} rows, {when})"
            place = {"cx": x(sure), "cy": y(right), "r": 3 + 6 * math.sqrt(count / most)}
            drawn.append(element("circle", element("title", said), **place, class_=f"bubble-{tone}"))
    return drawing(drawn, height, label)


def scatter(points: Sequence[tuple[float, float]], *, label: str) -> Markup:
    """What the model says over what is true, a dot for each row; the diagonal is perfect."""
    kept = _finite_points(points, log_x=False)
    if not kept:
        return Markup("")
    height = 332.0
    ticks = nice_ticks(min(map(min, kept)), max(map(max, kept)))
    low, high = min(ticks[0], *map(min, kept)), max(ticks[-1], *map(max, kept))
    x, y = Scale(low, high, LEFT, RIGHT), Scale(low, high, height - BELOW, TOP)
    drawn = [
        *y_axis(y, ticks, "answer"),
        *x_axis(x, height - BELOW, "true number", ticks),
        element("line", x1=x(low), y1=y(low), x2=x(high), y2=y(high), class_="ideal"),
    ]
    for true, given in kept:
        said = element("title", f"{axis_text(given)} where {axis_text(true)} is true")
        drawn.append(element("circle", said, cx=x(true), cy=y(given), r=3, class_="bubble-a"))
    return drawing(drawn, height, label)


def histogram(
    counts: Sequence[float],
    edges: Sequence[float],
    *,
    label: str,
    x_title: str,
    y_title: str = "rows",
    limit: float | None = None,
    mark: tuple[float, str] | None = None,
) -> Markup:
    """Bars between `edges` (one more than `counts`); those beyond `limit` are in the warning color.

    `mark` is a labelled upright line.
    """
    bars = zip(edges, edges[1:], counts, strict=False)
    kept = [(a, b, c) for a, b, c in bars if all(math.isfinite(v) for v in (a, b, c)) and b > a]
    if not kept:
        return Markup("")
    height = 222.0
    bottom = height - BELOW
    ticks = nice_ticks(0, max(c for _, _, c in kept) or 1)
    x, y = Scale(kept[0][0], kept[-1][1], LEFT, RIGHT), Scale(0, ticks[-1], bottom, TOP)
    drawn = y_axis(y, ticks, y_title)
    for low, high, count in kept:
        tone = "warn" if limit is not None and low >= limit else "a"
        title = element("title", f"{axis_text(low)} to {axis_text(high)}: {count_text(count)}")
        place = {
            "x": x(low),
            "width": max(x(high) - x(low) - 1, 0.8),
            "y": y(count),
            "height": bottom - y(count),
        }
        drawn.append(element("rect", title, **place, class_=f"fill-{tone}"))
    drawn += x_axis(x, bottom, x_title)
    if mark is not None and x.low < mark[0] < x.high:
        drawn += mark_line(mark, x, bottom)
    return drawing(drawn, height, label)


def heat_map(matrix: Sequence[Sequence[float]], names: Sequence[str], *, label: str) -> Markup:
    """A confusion matrix: rows are the true classes, columns the predictions, shades the share of the row.

    Up to `NUMBERED_CLASSES` classes it has names and numbers; beyond, only shades, and tooltips for
    the largest cells, so that a page with hundreds of classes stays small.
    """
    size = min(len(matrix), len(names))
    cells = [
        (row, column, float(matrix[row][column]), _row_share(matrix[row], column))
        for row in range(size)
        for column in range(min(size, len(matrix[row])))
        if (finite(matrix[row][column]) or 0) > 0
    ]
    if size == 0:
        return Markup("")
    draw = _numbered_cells if size <= NUMBERED_CLASSES else _shaded_cells
    return draw(cells, [clip(visible(n), 40) for n in names[:size]], label)


def _numbered_cells(cells: Sequence[Cell], names: Sequence[str], label: str) -> Markup:
    short = [clip(n, 13) for n in names]
    reach = 6.4 * max(len(n) for n in short)  # about the width of the longest name
    left = 12 + reach
    side = min((WIDTH - left) / len(names), 100.0)
    upright = reach > side - 4
    above = 12 + reach if upright else 24.0
    drawn = []
    for index, name in enumerate(short):
        middle = (index + 0.5) * side - 1
        drawn.append(text(name, left - 6, above + middle + 4, class_="name", text_anchor="end"))
        if upright:
            place = f"translate({left + middle + 4:.1f} {above - 6:.1f}) rotate(-90)"
            drawn.append(text(name, 0, 0, class_="name", transform=place))
        else:
            drawn.append(text(name, left + middle, above - 8, class_="name", text_anchor="middle"))
        corners = [{"x": left + column * side, "y": above + index * side} for column in range(len(names))]
        drawn += [element("rect", **c, width=side - 2, height=side - 2, rx=3, class_="cell") for c in corners]
    for row, column, count, share in cells:
        x, y, shade = left + column * side, above + row * side, _shade(share)
        size = {"x": x, "y": y, "width": side - 2, "height": side - 2, "rx": 3.0, "fill_opacity": shade}
        tone = "hit" if row == column else "miss"
        drawn.append(element("rect", _cell_title(names, row, column, count, share), **size, class_=tone))
        look = "number strong" if shade > 0.55 else "number"
        middle = side / 2 - 1
        drawn.append(text(count_text(count), x + middle, y + middle + 4, text_anchor="middle", class_=look))
    return drawing(drawn, above + len(names) * side, label)


def _shaded_cells(cells: Sequence[Cell], names: Sequence[str], label: str) -> Markup:
    side = WIDTH / len(names)
    levels: dict[tuple[str, int], list[str]] = {}
    for row, column, _, share in cells:
        key = ("hit" if row == column else "miss", math.ceil(_shade(share) * _LEVELS))
        square = f"M{column * side:.1f} {row * side:.1f}h{side:.1f}v{side:.1f}h-{side:.1f}z"
        levels.setdefault(key, []).append(square)
    drawn = [element("rect", x=0, y=0, width=WIDTH, height=WIDTH, class_="cell")]
    for (tone, level), squares in sorted(levels.items()):
        drawn.append(element("path", d="".join(squares), class_=tone, fill_opacity=level / _LEVELS))
    largest = sorted(cells, key=lambda cell: (cell[0] == cell[1], -cell[2]))[:_TITLED_CELLS]
    for row, column, count, share in largest:
        title = _cell_title(names, row, column, count, share)
        place = {"x": column * side, "y": row * side, "width": side, "height": side}
        drawn.append(element("rect", title, **place, class_="clear"))
    return drawing(drawn, WIDTH, label)


def _cell_title(names: Sequence[str], row: int, column: int, count: float, share: float) -> Markup:
    what = "right" if row == column else f"taken for {names[column]}"
    return element("title", f"{names[row]}, {what}: {count_text(count)} ({share_text(share)})")


def _row_share(row: Sequence[float], column: int) -> float:
    whole = sum(finite(v) or 0.0 for v in row)
    return float(row[column]) / whole if whole > 0 else 0.0


def _shade(share: float) -> float:
    """Opacity of a cell; even one lonely mistake can be seen."""
    return float(min(1.0, 0.14 + 0.86 * max(share, 0.0) ** 0.7))


def _line(one: Series, x: Scale, y: Scale, x_title: str) -> list[Markup]:
    places = [(x(a), y(b)) for a, b in one.points]
    parts = [element("path", d=path(places), class_=f"line line-{one.tone}")] if len(places) > 1 else []
    shown = one.dots or len(places) == 1
    radius = (3.5 if len(places) <= 12 else 2.4) if shown else 5.0
    for (at_x, at_y), (a, b) in zip(places, one.points, strict=True):
        title = element("title", f"{one.name} {score_text(b)} at {x_title} {axis_text(a)}")
        look = f"fill-{one.tone}" if shown else "clear"
        parts.append(element("circle", title, cx=at_x, cy=at_y, r=radius, class_=look))
    return parts


def _finite_points(points: Sequence[tuple[float, float]], log_x: bool) -> list[tuple[float, float]]:
    return [(a, b) for a, b in points if math.isfinite(a) and math.isfinite(b) and (a > 0 or not log_x)]
