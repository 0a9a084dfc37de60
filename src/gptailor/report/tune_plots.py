"""The plots of a search: the trials in their order, and all settings of all trials side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from gptailor.report.facts import clip, score_text
from gptailor.report.svg import (
    BELOW,
    LEFT,
    RIGHT,
    TOP,
    Scale,
    axis_text,
    drawing,
    element,
    nice_ticks,
    path,
    text,
    x_axis,
    y_axis,
)

Trial = Mapping[str, Any]
SHOWN_AXES = 5
LINE_HEIGHT = 240.0


def history(trials: Sequence[Trial], *, metric: str, higher_is_better: bool) -> Markup:
    """Each trial's score, and the best so far as a line; given-up trials are hollow."""
    ended = (one for one in trials if one["state"] in ("complete", "pruned"))
    shown = [one for one in ended if one["score"] is not None and math.isfinite(one["score"])]
    if not shown:
        return Markup("")
    scores = [float(one["score"]) for one in shown]
    ticks = nice_ticks(min(scores), max(scores))
    height = 222.0
    bottom = height - BELOW
    y = Scale(min(*scores, ticks[0]), max(*scores, ticks[-1]), bottom, TOP)
    x = Scale(0, max(1, max(one["trial"] for one in shown)), LEFT + 6, RIGHT - 6)
    parts = [*y_axis(y, ticks, metric), *x_axis(x, bottom, "trial", _whole_ticks(x.high))]
    better = max if higher_is_better else min
    places: list[tuple[float, float]] = []
    best: float | None = None
    for one in shown:
        if one["state"] != "complete":
            continue
        last, best = best, one["score"] if best is None else better(best, one["score"])
        if last is not None and best != last:
            places.append((x(one["trial"]), y(last)))
        places.append((x(one["trial"]), y(best)))
    if places:
        parts.append(element("path", d=path(places), class_="line line-a"))
    for one in shown:
        look = "bubble-a" if one["state"] == "complete" else "bubble-b"
        title = element("title", f"trial {one['trial']}: {score_text(one['score'])}")
        at = {"cx": x(one["trial"]), "cy": y(one["score"])}
        parts.append(element("circle", title, **at, r=5.0 if one.get("own") else 3.5, class_=look))
    return drawing(parts, height, f"{metric} of every trial")


def parallel_coordinates(
    trials: Sequence[Trial], names: Sequence[str], *, metric: str, winner: int
) -> Markup:
    """One upright axis per setting, one line per finished trial; the winner's line stands out."""
    shown = [
        one for one in trials if one["state"] == "complete" and one["score"] is not None and one["settings"]
    ]
    varied = [name for name in names if len(_known([value_of(one, name) for one in shown])) > 1]
    names = varied[:SHOWN_AXES]
    if len(shown) < 3 or not names:
        return Markup("")
    axes = [*(_axis([value_of(one, name) for one in shown]) for name in names)]
    axes.append(_axis([one["score"] for one in shown]))
    titles = [*(setting_name(name) for name in names), metric]
    xs = [LEFT + (RIGHT - LEFT) * place / (len(axes) - 1) for place in range(len(axes))]
    parts: list[Markup] = []
    ordered = sorted(range(len(shown)), key=lambda place: shown[place]["trial"] == winner)
    for place in ordered:
        places = [(x, heights[place]) for x, (heights, _) in zip(xs, axes, strict=True)]
        known = [(x, y) for x, y in places if y is not None]
        won = shown[place]["trial"] == winner
        title = element("title", f"trial {shown[place]['trial']}: {score_text(shown[place]['score'])}")
        look = "line line-b" if won else "line line-a"
        width = 3.0 if won else 1.0
        opacity = 1.0 if won else 0.45
        parts.append(
            element("path", title, d=path(known), class_=look, stroke_width=width, stroke_opacity=opacity)
        )
    for place, (x, (_, ticks)) in enumerate(zip(xs, axes, strict=True)):
        parts.append(element("line", x1=x, x2=x, y1=TOP, y2=LINE_HEIGHT - BELOW, class_="axis"))
        for height, words in ticks:
            parts.append(text(clip(words, 10), x, height - 3, text_anchor="middle", class_="name"))
        row = LINE_HEIGHT - BELOW + (14 if place % 2 == 0 else 28)  # in two rows, for names are long
        parts.append(text(clip(titles[place], 24), x, row, text_anchor="middle", class_="title"))
    return drawing(parts, LINE_HEIGHT, "settings and score of every finished trial")


def setting_name(name: str) -> str:
    """`train.learning_rate[lora]` as `learning rate (lora)`, `approach[lora].rank` as `rank`."""
    leaf = name.rpartition(".")[2].replace("_", " ")
    return leaf.replace("[", " (").replace("]", ")")


def value_of(trial: Trial, name: str) -> Any:
    """A trial's setting; null is what is usual, and None a setting that it hasn't."""
    settings = trial["settings"]
    return "usual" if name in settings and settings[name] is None else settings.get(name)


def _axis(values: Sequence[Any]) -> tuple[list[float | None], list[tuple[float, str]]]:
    """Heights of the values (None: the trial hasn't the setting), and labelled heights."""
    bottom, top = LINE_HEIGHT - BELOW - 8, TOP + 12
    known = [value for value in values if value is not None]
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in known):
        low, high = float(min(known)), float(max(known))
        scale = Scale(low, high, bottom, top, low > 0 and high / low > 20)
        ends = [(scale(low), axis_text(low)), (scale(high), axis_text(high))]
        return [None if value is None else scale(float(value)) for value in values], ends
    kinds = sorted({_key(value) for value in known})
    scale = Scale(0, max(1, len(kinds) - 1), bottom, top)
    heights = {kind: scale(place) for place, kind in enumerate(kinds)}
    return [None if value is None else heights[_key(value)] for value in values], [
        (height, kind) for kind, height in heights.items()
    ]


def _key(value: Any) -> str:
    return str(value)


def _known(values: Sequence[Any]) -> set[str]:
    return {_key(value) for value in values if value is not None}


def _whole_ticks(high: float) -> list[float]:
    return [tick for tick in nice_ticks(0, high) if tick == int(tick) and tick <= high]
