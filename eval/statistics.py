"""Numbers that carry their doubt: rates, paired rates and scores. Nothing measured is not zero."""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Z95 = 1.96

ALPHA, POWER = 0.05, 0.80
"""What a loss must reach to be seen: McNemar's p under the first, as often as the second says."""


@dataclass(frozen=True)
class Rate:
    """How often something was seen.

    Attributes:
        hits: Images on which it was seen.
        n: Images that were scored.
        unscored: Images that should have been scored and could not be. They are in neither count.
    """

    hits: int
    n: int
    unscored: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.hits <= self.n or self.unscored < 0:
            raise ValueError(f"{self.hits} of {self.n}, {self.unscored} unscored, is no rate.")

    @property
    def value(self) -> float | None:
        """hits / n, in [0, 1]; None when nothing was scored."""
        return self.hits / self.n if self.n else None

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The rate if every unscored image were a miss, and if every one were a hit."""
        total = self.n + self.unscored
        return (self.hits / total, (self.hits + self.unscored) / total) if total else None

    def interval(self, z: float = Z95) -> tuple[float, float] | None:
        """Wilson's interval, which stays inside [0, 1] and is not empty at 0 hits.

        With p = hits / n: (p + z²/2n ± z √(p(1 − p)/n + z²/4n²)) / (1 + z²/n). None when n is 0.

        Source: E. B. Wilson, Probable inference, the law of succession, and statistical inference,
        JASA 22 (1927).
        """
        if not self.n:
            return None
        p, n = self.hits / self.n, self.n
        middle = p + z * z / (2 * n)
        half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        scale = 1 + z * z / n
        # At 0 and n hits an end is exact, and rounding would leave 1e-17
        low = 0.0 if self.hits == 0 else (middle - half) / scale
        high = 1.0 if self.hits == n else (middle + half) / scale
        return low, high

    @property
    def could_miss(self) -> float | None:
        """The highest rate that n images could have missed altogether; None when n is 0.

        The upper end of Wilson's interval at 0 hits, z²/(n + z²).
        """
        return Z95**2 / (self.n + Z95**2) if self.n else None

    def to_json(self) -> dict[str, Any]:
        return {
            "hits": self.hits,
            "n": self.n,
            "unscored": self.unscored,
            "value": self.value,
            "interval": _list(self.interval()),
            "could_miss": self.could_miss,
        }

    @classmethod
    def from_json(cls, page: Mapping[str, Any]) -> "Rate":
        return cls(page["hits"], page["n"], page["unscored"])


@dataclass(frozen=True)
class Paired:
    """Base against erased on the same prompts and seeds: on how many images each saw it.

    Only images that were scored on both sides are here.
    """

    both: int
    only_base: int
    only_erased: int
    neither: int

    @property
    def n(self) -> int:
        return self.both + self.only_base + self.only_erased + self.neither

    @property
    def base(self) -> Rate:
        return Rate(self.both + self.only_base, self.n)

    @property
    def erased(self) -> Rate:
        return Rate(self.both + self.only_erased, self.n)

    @property
    def difference(self) -> float | None:
        """The erased rate less the base's, in [-1, 1]; None when there is no pair."""
        return (self.only_erased - self.only_base) / self.n if self.n else None

    def interval(self, z: float = Z95) -> tuple[float, float] | None:
        """Newcombe's interval of the difference (his method 10), in [-1, 1]; None without a pair.

        With Wilson's [l, u] of each rate, and φ the correlation of the pairs (continuity
        corrected when positive), the lower end lies below the difference p − q by
        √((p − l)² − 2φ(p − l)(u′ − q) + (u′ − q)²), and the upper end likewise above it.

        Source: R. G. Newcombe, Improved confidence intervals for the difference between binomial
        proportions based on paired data, Statistics in Medicine 17 (1998), 2635-2650.
        """
        if not self.n:
            return None
        n, a, b, c, d = self.n, self.both, self.only_erased, self.only_base, self.neither
        p, q = (a + b) / n, (a + c) / n
        (l1, u1), (l2, u2) = _wilson(a + b, n, z), _wilson(a + c, n, z)
        spread = (a + b) * (c + d) * (a + c) * (b + d)
        excess = float(a * d - b * c)
        if excess > 0:
            excess = max(excess - n / 2, 0.0)
        phi = excess / math.sqrt(spread) if spread else 0.0

        def distance(x: float, y: float) -> float:
            return math.sqrt(max(x * x - 2 * phi * x * y + y * y, 0.0))

        low = p - q - distance(p - l1, u2 - q)
        high = p - q + distance(u1 - p, q - l2)
        return max(low, -1.0), min(high, 1.0)

    @property
    def p_value(self) -> float | None:
        """Exact two-sided McNemar: were the changed pairs as likely to change either way?

        min(1, 2 P(X ≤ min(b, c))), X binomial with b + c trials at ½. None without a pair.
        """
        if not self.n:
            return None
        changed = self.only_base + self.only_erased
        fewer = min(self.only_base, self.only_erased)
        tail = sum(math.comb(changed, i) for i in range(fewer + 1))
        # Integers until the last step: exact, however many pairs
        return min(1.0, 2 * tail / (1 << changed))

    @property
    def smallest_loss(self) -> float | None:
        """The smallest fall that n pairs would have shown, in (0, 1].

        Shown is: with McNemar's exact p at most 0.05, in 8 of 10 such audits. Images are gained,
        against the fall, at the rate at which they were here. None where no fall would show: of
        fewer than 6 changed pairs, McNemar's test says nothing.
        """
        return _smallest_loss(self.n, self.only_erased)

    def to_json(self) -> dict[str, Any]:
        return {
            "both": self.both,
            "only_base": self.only_base,
            "only_erased": self.only_erased,
            "neither": self.neither,
            "difference": self.difference,
            "interval": _list(self.interval()),
            "p_value": self.p_value,
            "smallest_loss": self.smallest_loss,
        }

    @classmethod
    def from_json(cls, page: Mapping[str, Any]) -> "Paired":
        return cls(page["both"], page["only_base"], page["only_erased"], page["neither"])


@dataclass(frozen=True)
class Score:
    """What a metric found.

    Attributes:
        value: None when it could not be measured; ``note`` then says why.
        n: Images that it stands on.
        interval: 95 %, where the metric has one.
        higher_is_better: The metric's direction.
        unit: Of value and interval.
        n_reference: Images on the reference's side, for a distance.
        unscored: Images, on either side, that should have counted and could not be measured.
        note: What a reader must know beside the number.
    """

    value: float | None
    n: int
    interval: tuple[float, float] | None
    higher_is_better: bool
    unit: str
    n_reference: int | None = None
    unscored: int = 0
    note: str = ""

    def __post_init__(self) -> None:
        if self.value is not None and not math.isfinite(self.value):
            raise ValueError(f"A score cannot be {self.value}: say None, and why in the note.")
        if self.value is not None and not self.n:
            raise ValueError("A score of no images has no value.")

    def to_json(self) -> dict[str, Any]:
        return {
            "value": self.value,
            "n": self.n,
            "interval": _list(self.interval),
            "higher_is_better": self.higher_is_better,
            "unit": self.unit,
            "n_reference": self.n_reference,
            "unscored": self.unscored,
            "note": self.note,
        }

    @classmethod
    def from_json(cls, page: Mapping[str, Any]) -> "Score":
        low_high = page["interval"]
        interval = None if low_high is None else (float(low_high[0]), float(low_high[1]))
        return cls(**{**page, "interval": interval})


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given.

    The i-th smallest of m, counted from 0, is multiplied by m − i; none is less than the one
    before it, or more than 1. If all that are under α are believed, the chance of one mistake
    among them is at most α, however they depend on each other.

    Source: S. Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal
    of Statistics 6 (1979), 65-70.
    """
    adjusted, least = [0.0] * len(p_values), 0.0
    for i, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        least = max(least, min(1.0, (len(p_values) - i) * p_values[place]))
        adjusted[place] = least
    return adjusted


def mean_interval(
    groups: Sequence[Sequence[float]], *, resamples: int = 9999, seed: int = 0
) -> tuple[float, float] | None:
    """The 95 % interval of the mean of all values, by a bootstrap over groups.

    A group is what was drawn as one: all images of one prompt. Groups are drawn again with their
    values, and the interval lies between percentiles of the means. These are a little further out
    than 2.5 % and 97.5 %, at Φ(∓√(G/(G − 1)) t) with t Student's 97.5 % point at G − 1 degrees:
    the percentiles of G groups are otherwise too narrow when G is small.

    Source: T. C. Hesterberg, What teachers should know about the bootstrap, The American
    Statistician 69 (2015), 371-386, the expanded percentile interval.

    Args:
        groups: The values of each group, any number of each.
        resamples: How often they are drawn.
        seed: Of the draws.

    Returns:
        The ends; None under two groups.
    """
    import numpy as np
    from scipy import stats

    groups = [group for group in groups if len(group)]
    if (count := len(groups)) < 2:
        return None
    out = math.sqrt(count / (count - 1)) * stats.t.ppf(1 - ALPHA / 2, count - 1)
    found = stats.bootstrap(
        ([math.fsum(group) for group in groups], [len(group) for group in groups]),
        lambda sums, sizes, axis: sums.sum(axis) / sizes.sum(axis),
        paired=True,
        vectorized=True,
        n_resamples=resamples,
        # Some 16 MB of draws at a time, however many groups
        batch=max(1, 2_000_000 // count),
        confidence_level=1 - 2 * stats.norm.cdf(-out),
        method="percentile",
        random_state=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)


@functools.cache
def _smallest_loss(n: int, gained: int) -> float | None:
    """By halving: the fall d at which McNemar's exact test on n pairs has the power wanted.

    With g = gained / n, an image is lost with probability d + g and gained with g. Of D changed
    pairs, binomial with n trials at d + 2g, those gained are binomial with D trials at
    g / (d + 2g); the test rejects when they are so few that 2 P(X ≤ them) ≤ 0.05 at ½.
    """
    if not n:
        return None
    import numpy as np
    from scipy.stats import binom

    changed, g = np.arange(n + 1), gained / n
    few = binom.ppf(ALPHA / 2, changed, 0.5)
    few -= 2 * binom.cdf(few, changed, 0.5) > ALPHA

    def power(fall: float) -> float:
        move = min(fall + 2 * g, 1.0)
        seen = np.where(few < 0, 0.0, binom.cdf(few, changed, g / move))
        return float(binom.pmf(changed, n, move) @ seen)

    low, high = 0.0, 1 - 2 * g
    if high <= 0 or power(high) < POWER:
        return None
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (low, middle) if power(middle) >= POWER else (middle, high)
    return high


def _wilson(hits: int, n: int, z: float) -> tuple[float, float]:
    interval = Rate(hits, n).interval(z)
    assert interval is not None
    return interval


def _list(interval: tuple[float, float] | None) -> list[float] | None:
    return None if interval is None else list(interval)
