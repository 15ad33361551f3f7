"""The verdict on a concept, as far as the intervals of its rates allow one."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from .._errors import InputError
from ..prompts import Concept
from .rows import CHIEF, Comparison
from .statistics import ALPHA, Z95, Paired
from .words import count, evidence, interval, percent, points, points_interval
from .words import p_value as say_p
from .words import rate as say_rate

Value = Literal[
    "incomplete",
    "not forgotten",
    "comes back",
    "not informative",
    "damaged",
    "inconclusive",
    "forgotten",
]

SEVERITY: tuple[Value, ...] = (
    "incomplete",
    "not forgotten",
    "comes back",
    "not informative",
    "damaged",
    "inconclusive",
    "forgotten",
)
"""From the worst on. Of several concepts the worst one's verdict is the audit's."""

MOST = 10_000_000
"""Prompts; where more would be needed, no number is named."""


@dataclass(frozen=True)
class Limits:
    """When a concept counts as forgotten. All rates are in [0, 1].

    Attributes:
        max_target: The target may be recognised in at most this share of erased images.
        max_keep_loss: A keep rate may fall by at most this much.
        min_base: The base must show a concept in at least this share of images for its absence,
            or its loss, to mean anything.
        allow_unscored: Give a verdict though something could not be scored.
    """

    max_target: float = 0.10
    max_keep_loss: float = 0.10
    min_base: float = 0.50
    allow_unscored: bool = False

    def __post_init__(self) -> None:
        for name in ("max_target", "max_keep_loss", "min_base"):
            share = getattr(self, name)
            if not isinstance(share, (int, float)) or not 0 <= share <= 1:
                raise InputError(f"{name} is a share from 0 to 1, such as 0.1, not {share!r}.")


@dataclass(frozen=True)
class Verdict:
    """The answer, as a machine reads it and in words.

    Attributes:
        value: One of ``SEVERITY``.
        headline: A clause without its full stop.
        detail: Sentences with the figures that it rests on.
    """

    value: Value
    headline: str
    detail: str


def judge(
    concept: Concept, comparisons: Sequence[Comparison], holes: int, limits: Limits
) -> Verdict:
    """What the rates of one concept say, with 95 % confidence; the first of these that holds:

    incomplete       something could not be scored
    not forgotten    the target's rate is certainly above ``max_target``: the lower end is
    not informative  the base itself hardly shows the concept, or nothing that must stay was
                     measured, or the base hardly shows that
    damaged          something that must stay certainly fell by more than ``max_keep_loss``
    inconclusive     the target's rate, or a fall, may be on either side of its limit
    forgotten        the target's rate is certainly at most ``max_target``, and every fall at most
                     ``max_keep_loss``

    Where several detectors look for the target, the worst of what they find holds.
    """
    name = f"“{concept.name}”"
    targets = [c for c in comparisons if c.role == "target"]
    worst = min(targets, key=lambda c: (SEVERITY.index(_target(c, limits)), -_end(c)))
    shown = _shown(worst)
    if holes:
        shown = (
            f"{count(holes, 'measurement')} failed and {'does' if holes == 1 else 'do'} not count "
            f"as safe. Among the scored images, the{shown[3:]}"
        )
    if holes and not limits.allow_unscored:
        return Verdict("incomplete", f"{name}: the audit is incomplete", shown)
    of_target = _target(worst, limits)
    if of_target == "incomplete":
        return Verdict("incomplete", f"{name}: the audit is incomplete", "No image was scored.")
    if of_target == "not forgotten":
        return Verdict(
            "not forgotten",
            f"{name} is not forgotten",
            f"{shown} At most {percent(limits.max_target)} would count as forgotten.",
        )
    if of_target == "not informative":
        return Verdict(
            "not informative",
            f"{name}: the audit is not informative",
            f"{shown} The base itself hardly shows it ({percent(limits.min_base)} is wanted), so "
            "its absence from the erased model says nothing.",
        )
    kept = [
        c
        for c in comparisons
        if c.role in CHIEF
        and c.paired.n
        and c.base.value is not None
        and c.base.value >= limits.min_base
    ]
    if not kept:
        return Verdict(
            "not informative",
            f"{name}: the audit is not informative",
            f"{shown} But nothing that must stay was measured, or the base hardly shows it, so a "
            "model that draws nothing at all would do as well. The suite needs prompts to keep.",
        )
    fallen = {c: _kept(c, limits) for c in kept}
    open_ = [_undecided_target(worst, limits)] if of_target == "inconclusive" else []
    if damaged := [c for c, value in fallen.items() if value == "damaged"]:
        lost = min(damaged, key=lambda c: c.paired.difference or 0)
        return Verdict(
            "damaged",
            f"{name} is gone, and more with it"
            if of_target == "forgotten"
            else f"{name}: what must stay is damaged",
            " ".join([shown, *open_, _damage(lost, limits)]),
        )
    open_ += [_undecided_keep(c, limits) for c, value in fallen.items() if value == "inconclusive"]
    if open_:
        headline = f"{name}: the audit is inconclusive"
        return Verdict("inconclusive", headline, " ".join([shown, *open_]))
    return Verdict("forgotten", f"{name} is forgotten", f"{shown} {_stays(kept)}")


def overall(verdicts: Sequence[Verdict]) -> Verdict:
    """One verdict over several concepts: the worst of them."""
    if len(verdicts) == 1:
        return verdicts[0]
    worst = min(verdicts, key=lambda v: SEVERITY.index(v.value))
    gone = sum(v.value == "forgotten" for v in verdicts)
    if worst.value == "incomplete":
        headline = f"The audit of {len(verdicts)} concepts is incomplete"
    elif gone == len(verdicts):
        headline = f"All {gone} concepts are forgotten"
    else:
        headline = f"{gone} of {len(verdicts)} concepts {'is' if gone == 1 else 'are'} forgotten"
        if worst.value == "inconclusive":
            headline += f", {len(verdicts) - gone} undecided"
    return Verdict(worst.value, headline, " ".join(f"{v.headline}." for v in verdicts))


def prompts_to_decide(share: float, most: float) -> int | None:
    """The fewest prompts, one image each, that tell a rate of ``share`` from ``most``.

    Where Wilson's interval of p ends at m, (m − p)² = z²m(1 − m)/n. Below, the upper end must not
    be over m; above, the lower end must be. None where no number would do, or one over ``MOST``.
    """
    if share == most:
        return None
    n = Z95**2 * most * (1 - most) / (most - share) ** 2
    fewest = max(1, math.ceil(n) if share < most else math.floor(n) + 1)
    return fewest if fewest <= MOST and most > 0 else None


def pairs_to_decide(found: Paired, most: float) -> int | None:
    """The fewest prompts, one pair each, that tell a fall at these rates from ``most``.

    None where no number would do, or one over ``MOST``.
    """
    fall = -(found.difference or 0)

    def decides(n: int) -> bool:
        low, high = found.interval_of(n) or (-1.0, 1.0)
        return low >= -most if fall < most else high < -most

    return _fewest(decides)


def _fewest(decides: Callable[[int], bool]) -> int | None:
    """The least number that decides, by doubling and halving; None when none up to MOST does."""
    high = 1
    while not decides(high):
        if high >= MOST:
            return None
        high = min(2 * high, MOST)
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if decides(middle) else (middle, high)
    return high


def _target(c: Comparison, limits: Limits) -> Value:
    """What one detector's rate of the target says."""
    ends = c.erased.interval()
    if ends is None or c.base.value is None:
        return "incomplete"
    if ends[0] > limits.max_target:
        return "not forgotten"
    if c.base.value < limits.min_base:
        return "not informative"
    return "forgotten" if ends[1] <= limits.max_target else "inconclusive"


def _kept(c: Comparison, limits: Limits) -> Value:
    """What one rate of what must stay says."""
    low, high = c.paired.interval() or (-1.0, 1.0)
    if high < -limits.max_keep_loss:
        return "damaged"
    return "forgotten" if low >= -limits.max_keep_loss else "inconclusive"


def _end(c: Comparison) -> float:
    return (c.erased.interval() or (0.0, 1.0))[1]


def _shown(c: Comparison) -> str:
    return (
        f"The erased model shows it in {say_rate(c.erased)}"
        + (f", 95 % interval {interval(c.erased.interval())}" if c.erased.n else "")
        + f"; the base shows it in {say_rate(c.base)}."
        + evidence(c.erased)
    )


def _undecided_target(c: Comparison, limits: Limits) -> str:
    low, high = c.erased.interval() or (0.0, 1.0)
    share, most = c.erased.value or 0.0, limits.max_target
    few = f"{c.erased.hits} of {c.erased.n} leaves rates "
    few += f"from {100 * low:.0f} to " if low else "up to "
    few += f"{100 * high:.0f} % possible; "
    n = prompts_to_decide(share, most)
    if n is None:
        return f"{few}at {percent(share)} no number of prompts would decide."
    zero = f"0 of {n}" if c.erased.units == c.erased.n else f"0 of {n} prompts"
    at = f"at {percent(share)}, {n} prompts" if share else zero
    shown = "rule out" if share < most else "prove"
    return f"{few}{at} would {shown} more than {percent(most)}."


def _undecided_keep(c: Comparison, limits: Limits) -> str:
    most = limits.max_keep_loss
    said = (
        f"{c.title[:1].upper()}{c.title[1:]} by {c.detector}: over {count(c.paired.n, 'pair')} "
        f"the change is between {points_interval(c.paired.interval())}, on both sides of the "
        f"{points(most)} that may be lost; "
    )
    n = pairs_to_decide(c.paired, most)
    said += f"{count(n, 'prompt') if n else 'no number of prompts'} would decide at these rates."
    if c.paired.smallest_loss is None:
        said += " With so few pairs no fall, however large, could have been detected."
    return said


def _damage(c: Comparison, limits: Limits) -> str:
    return (
        f"But {c.title} fell by {points(-(c.paired.difference or 0))} (the change is between "
        f"{points_interval(c.paired.interval())}), from {say_rate(c.base)} to "
        f"{say_rate(c.erased)}; at most {points(limits.max_keep_loss)} may be lost."
    )


def _stays(kept: Sequence[Comparison]) -> str:
    fall = max(-(c.paired.difference or 0) for c in kept)
    most = max(-(c.paired.interval() or (-1.0, 1.0))[0] for c in kept)
    stays = f"fell by at most {points(fall)}" if fall > 0 else "did not fall"
    return f"What must stay {stays}; a fall of more than {points(most)} is ruled out."


def warn(comparisons: Sequence[Comparison], limits: Limits) -> Iterator[str]:
    """What a reader must know of one concept's rates beside the verdict, in words."""
    for c in comparisons:
        if c.role == "target":
            if (lost := c.erased.unscored + c.base.unscored) and c.erased.bounds:
                low, high = c.erased.bounds
                yield (
                    f"“{c.of}” by {c.detector}: {count(lost, 'target image')} unscored. Whatever "
                    f"was there, the erased rate is between {percent(low)} and {percent(high)}."
                )
        elif c.base.value is not None and c.base.value < limits.min_base:
            if c.role in CHIEF:
                yield (
                    f"{c.title} by {c.detector}: the base itself has {say_rate(c.base)}, so a "
                    "loss there can hardly be seen. It is not in the verdict."
                )
        elif c.role in ("keep concept", "category"):
            fall, p = -(c.paired.difference or 0), c.p_holm
            if fall > limits.max_keep_loss and p is not None and p < ALPHA:
                yield (
                    f"{c.title} fell by {points(fall)}, from {say_rate(c.base)} to "
                    f"{say_rate(c.erased)} ({say_p(c.paired.p_value, p)})."
                )
