"""Means over images whose prompts, not the images, are the units of chance."""

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

from ..statistics import Score, mean_interval

INTERVAL = "bootstrap by prompt"


class _Scale(Protocol):
    @property
    def higher_is_better(self) -> bool: ...
    @property
    def unit(self) -> str: ...


def mean_by_prompt(
    scale: _Scale,
    groups: Mapping[str, Sequence[float]],
    unscored: int,
    note: str = "",
    *,
    paired: bool = False,
) -> Score:
    """The mean of all images' values, None when there is no image, and ``mean_interval``'s ends.

    Args:
        scale: The metric, for its direction and unit.
        groups: Prompt to its images' values. Those that are not finite are unscored.
        unscored, note: As in ``Score``.
        paired: Whether each value is of an image and its reference.
    """
    finite = [[x for x in group if math.isfinite(x)] for group in groups.values()]
    values = [x for group in finite for x in group]
    unscored += sum(map(len, groups.values())) - len(values)
    notes = [note] * bool(note) + ["no image could be measured"] * (not values)
    return Score(
        value=math.fsum(values) / len(values) if values else None,
        n=len(values),
        interval=mean_interval(finite),
        higher_is_better=scale.higher_is_better,
        unit=scale.unit,
        n_reference=len(values) if paired else None,
        unscored=unscored,
        note="; ".join(notes),
    )
