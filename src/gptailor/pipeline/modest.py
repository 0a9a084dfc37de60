"""A verdict that says no more than the test rows can."""

from __future__ import annotations

from typing import Any

from gptailor.evaluate.resampling import FEWEST_UNITS, Resampling

FEWEST_ROWS = 10  # test rows; what isn't clear from fewer is no reason for advice


def few_in_words(telling: Any, resampling: Resampling, *, decided: bool) -> str:
    """Why the test rows are too few to tell two models apart, or, where their difference seems decided, to be
    sure of it; "" where they are enough.

    A bootstrap of five rows that tell the two apart and all agree leaves no doubt, and a sign test does. A
    group speaks once.

    Args:
        telling: (N,) whether each row tells the two apart.
        resampling: With the groups of the rows.
        decided: Whether the interval of their difference leaves zero out.
    """
    told = resampling.told(len(telling))
    if not decided:
        return f"on {told}: too few to tell" if len(telling) < FEWEST_ROWS else ""
    speak = resampling.of(telling).num_groups(int(telling.sum()))
    if speak >= FEWEST_UNITS:
        return ""
    verb = "tells" if speak == 1 else "tell"
    return f"but only {speak} of {told} {verb} the two apart: too few to say"


def kept_modest(said: dict[str, Any], telling: Any, resampling: Resampling) -> dict[str, Any]:
    """The verdict, unless too few rows speak; see `few_in_words`."""
    low, high = said["difference"]["low"], said["difference"]["high"]
    decided = low is not None and (low > 0 or high < 0)
    few = few_in_words(telling, resampling, decided=decided)
    if not few:
        return {**said, "says": said["says"] + resampling.caveat(len(telling))}
    says = said["says"]  # what it advises goes
    stem = says.rpartition(":")[0] if decided else says.partition(";" if ";" in says else ":")[0]
    return {**said, "worth_it": False, "too_few": True, "says": f"{stem}, {few}."}
