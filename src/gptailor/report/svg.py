"""The pieces that plots are made of: elements, scales, axes.

Colors are CSS classes and no `style` attribute is used, so that a plot follows the page's theme and
a strict content security policy can stand.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from gptailor.report.facts import visible

WIDTH = 360.0
LEFT, RIGHT, TOP = 44.0, WIDTH - 14, 24.0  # the area of a plot with axes; below it stand 36 units of text
BELOW = 36.0


@dataclass(frozen=True, slots=True)
class Scale:
    """Maps values from `low` to `high` onto the units from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        share = (at - low) / (high - low) if high > low else 0.5
        return float(self.start + share * (self.end - self.start))


def element(name: str, *children: str, **attributes: str | float | None) -> Markup:
    """One SVG element. Text children and attributes are escaped; `class_` stands for `class`.

    Raises:
        ValueError: An attribute is NaN or infinite; callers leave such values out.
    """
    written = Markup("").join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), _attribute(value))
        for key, value in attributes.items()
        if value is not None
    )
    inside = Markup("").join(c if isinstance(c, Markup) else escape(visible(c)) for c in children)
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(name), written, inside)


def text(words: str, x: float, y: float, **attributes: str | float | None) -> Markup:
    """Words at a place; `y` is their baseline."""
    return element("text", words, x=x, y=y, **attributes)


def drawing(parts: Iterable[Markup], height: float, label: str) -> Markup:
    """A plot of `WIDTH` by `height` units that grows and shrinks with its place."""
    box = f"0 0 {WIDTH:g} {height:.0f}"
    return element("svg", *parts, class_="plot", viewBox=box, role="img", aria_label=label)


def path(places: Sequence[tuple[float, float]]) -> str:
    """Path data of a line through the places."""
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)


def nice_ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round values that span `low` to `high`, both covered."""
    if not high - low > max(1e-11, 1e-9 * max(abs(low), abs(high))):  # one value, give it room
        low, high = low - (abs(low) * 0.1 or 0.5), high + (abs(high) * 0.1 or 0.5)
    rough = (high - low) / (wanted - 1)
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next((m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= rough * 0.999), 10 * magnitude)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def axis_text(value: float) -> str:
    """An axis value without needless digits."""
    if value == 0:
        return "0"
    if abs(value) < 1e-3:
        return f"{value:.1e}".replace(".0e", "e").replace("e-0", "e-")
    if abs(value) >= 10_000:
        return f"{value / 1e6:g}M" if abs(value) >= 1e6 else f"{value / 1e3:g}k"
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.6g}"


def y_axis(y: Scale, ticks: Sequence[float], title: str = "") -> list[Markup]:
    """Grid lines with their values; the title stands above them."""
    parts = [text(title, 0, 10, class_="title")] if title else []
    for tick in ticks:
        parts.append(element("line", x1=LEFT, x2=RIGHT, y1=y(tick), y2=y(tick), class_="grid"))
        parts.append(text(axis_text(tick), LEFT - 6, y(tick) + 4, text_anchor="end"))
    return parts


def x_axis(x: Scale, bottom: float, title: str, ticks: Sequence[float] | None = None) -> list[Markup]:
    """The lower line with its values and title."""
    if ticks is None and x.log:
        first, last = math.floor(math.log10(x.low)), math.floor(math.log10(x.high) + 1e-9)
        steps = (1, 2, 5) if x.high < 100 * x.low else (1,)  # or a short axis would have no number
        ticks = [step * 10.0**power for power in range(first, last + 1) for step in steps]
    ticks = nice_ticks(x.low, x.high) if ticks is None else ticks
    parts = [element("line", x1=x.start, x2=x.end, y1=bottom, y2=bottom, class_="axis")]
    parts += [
        text(axis_text(tick), x(tick), bottom + 16, text_anchor="middle")
        for tick in ticks
        if x.low <= tick <= x.high
    ]
    return [*parts, text(title, x.end, bottom + 31, class_="title", text_anchor="end")]


def mark_line(mark: tuple[float, str] | None, x: Scale, bottom: float) -> list[Markup]:
    """A dashed upright line with its name above the plot."""
    if mark is None or not (x.low <= mark[0] <= x.high):
        return []
    at = x(mark[0])
    right = at > (x.start + x.end) / 2
    place = {"x": at - 5 if right else at + 5, "y": 12.0}
    line = element("line", x1=at, x2=at, y1=4, y2=bottom, class_="mark")
    return [line, text(mark[1], **place, class_="said", text_anchor="end" if right else "start")]


def _attribute(value: str | float) -> str:
    if isinstance(value, str):
        return visible(value)
    if not math.isfinite(value):
        raise ValueError(f"a plot was given {value}")
    return f"{value:.2f}".rstrip("0").rstrip(".")
