"""A verdict that says no more than the test rows can."""

from __future__ import annotations

from typing import Any

from gptailor.evaluate.resampling import Resampling

FEWEST_ROWS = 10  # test rows; what isn't clear from fewer is no reason for advice
FEWEST_TELLERS = 6  # test rows, or groups of them, on which one of two models alone is right


def kept_modest(said: dict[str, Any], telling: Any, resampling: Resampling) -> dict[str, Any]:
    """The verdict, unless too few rows speak: a bootstrap of five rows that all agree leaves no doubt, and
    the sign test, by which that happens by chance in one of sixteen cases, does. A group speaks once.

    Args:
        said: The verdict.
        telling: (N,) see `tellers`.
        resampling: With the groups of the rows.
    """
    decided = said["difference"]["low"] > 0 or said["difference"]["high"] < 0
    if not decided and len(telling) < FEWEST_ROWS:
        stem = said["says"].partition(";" if ";" in said["says"] else ":")[0]
        says = f"{stem}, on {resampling.told(len(telling))}: too few to tell."
        return {**said, "worth_it": False, "too_few": True, "says": says}
    speak = resampling.of(telling).num_groups(int(telling.sum()))
    if speak >= FEWEST_TELLERS or not decided:
        return {**said, "says": said["says"] + resampling.caveat(len(telling))}
    told = f"{resampling.told(len(telling))} {'tells' if speak == 1 else 'tell'} the two apart"
    says = f"{said['says'].rpartition(':')[0]}, but only {speak} of {told}: too few to say."
    return {**said, "worth_it": False, "too_few": True, "says": says}
