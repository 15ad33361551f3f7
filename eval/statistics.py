"""Numbers that carry their doubt: rates, paired rates and scores. Nothing measured is not zero.

Images of one unit (a prompt at several seeds, mostly) are alike, and count for less than as many
images of different units. Rates and pairs therefore know their units, and where every image is
its own unit they are what the textbooks have: Wilson's, Newcombe's and McNemar's.
"""

import functools
import itertools
import math
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from .._errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Z95 = 1.96

ALPHA, POWER = 0.05, 0.80
"""What a loss must reach to be seen: the test's p under the first, as often as the second says."""

EXACT = 20_000
"""The greatest sum of changes whose sign flips are all counted; above, the normal law does."""

MANY = 2_000
"""The most groups of which a mean's interval is drawn; above, the law of the draws is known."""


@dataclass(frozen=True)
class Rate:
    """How often something was seen.

    Attributes:
        hits: Images on which it was seen.
        n: Images that were scored.
        unscored: Images that should have been scored and could not be. They are in neither count.
        by_unit: The units' (hits, images, how many such units), sorted; empty where every image
            is its own unit.
    """

    hits: int
    n: int
    unscored: int = 0
    by_unit: tuple[tuple[int, int, int], ...] = ()

    derived: ClassVar[tuple[str, ...]] = ("units", "effective", "value", "interval", "could_miss")

    def __post_init__(self) -> None:
        if not 0 <= self.hits <= self.n or self.unscored < 0:
            raise ValueError(f"{self.hits} of {self.n}, {self.unscored} unscored, is no rate.")
        if self.by_unit and (
            any(not 0 <= hits <= images or images < 1 or k < 1 for hits, images, k in self.by_unit)
            or sum(hits * k for hits, _, k in self.by_unit) != self.hits
            or sum(images * k for _, images, k in self.by_unit) != self.n
        ):
            raise ValueError(f"The units do not add up to {self.hits} of {self.n}.")

    @classmethod
    def counted(cls, seen: Iterable[tuple[Hashable, bool | None]]) -> "Rate":
        """The rate over images: of each its unit, and whether it was seen (None if unknown)."""
        found: dict[Hashable, list[int]] = {}
        unscored = 0
        for unit, hit in seen:
            if hit is None:
                unscored += 1
                continue
            cell = found.setdefault(unit, [0, 0])
            cell[0] += hit
            cell[1] += 1
        units = Counter((hits, images) for hits, images in found.values())
        hits, n = (sum(unit[i] * k for unit, k in units.items()) for i in (0, 1))
        by_unit = () if n == len(found) else tuple(sorted((*u, k) for u, k in units.items()))
        return cls(hits, n, unscored, by_unit)

    @classmethod
    def pooled(cls, rates: Iterable["Rate"]) -> "Rate":
        """One rate over the images of several, no unit of one being a unit of another."""
        rates = list(rates)
        hits, n, unscored = (sum(getattr(r, f) for r in rates) for f in ("hits", "n", "unscored"))
        if not any(r.by_unit for r in rates):
            return cls(hits, n, unscored)
        single = [((1, 1, r.hits), (0, 1, r.n - r.hits)) for r in rates if not r.by_unit]
        units = [unit for found in (*single, *(r.by_unit for r in rates)) for unit in found]
        return cls(hits, n, unscored, _merged(unit for unit in units if unit[2]))

    @property
    def value(self) -> float | None:
        """hits / n, in [0, 1]; None when nothing was scored."""
        return self.hits / self.n if self.n else None

    @property
    def missed(self) -> "Rate":
        """The rate of the images on which it was not seen."""
        by_unit = tuple(sorted((images - hits, images, k) for hits, images, k in self.by_unit))
        return Rate(self.n - self.hits, self.n, self.unscored, by_unit)

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The rate if every unscored image were a miss, and if every one were a hit."""
        total = self.n + self.unscored
        return (self.hits / total, (self.hits + self.unscored) / total) if total else None

    @property
    def units(self) -> int:
        """Units of which an image was scored."""
        return sum(k for *_, k in self.by_unit) if self.by_unit else self.n

    @property
    def effective(self) -> float:
        """As how many images of different units these count: n / (1 + (w − 1)ρ), at most n.

        w = Σm² / n is the mean size of an image's unit, with m the images of a unit, and ρ how
        much more alike two images of one unit are than two of different ones
        (``_correlation``). It follows from Var(p) = p(1 − p)/n² · Σ m(1 + (m − 1)ρ).

        Source: L. Kish, Survey Sampling (1965), for the design effect; S. M. Eldridge, D. Ashby
        and S. Kerry, International Journal of Epidemiology 35 (2006), for unequal sizes.
        """
        if not self.by_unit:
            return float(self.n)
        size = self._size
        return self.n / (1 + (size - 1) * _correlation(self.by_unit, self.n, size))

    @property
    def _size(self) -> float:
        """The size of a unit, in the mean over images."""
        return sum(k * images**2 for _, images, k in self.by_unit) / self.n if self.by_unit else 1

    def interval(self, z: float = Z95) -> tuple[float, float] | None:
        """Wilson's interval, inside [0, 1] and not empty at 0 hits; None when n is 0.

        With p = hits / n: (p + z²/2n ± z √(p(1 − p)/n + z²/4n²)) / (1 + z²/n). Where units have
        several images, n is the effective number and z Student's t of as many degrees as there
        are units less one, at z's confidence; of one such unit nothing follows, [0, 1]. And one
        image that shows it rules out no more than none does: no upper end is below that of 0
        hits, and no lower end above that of n.

        Sources: E. B. Wilson, Probable inference, the law of succession, and statistical
        inference, JASA 22 (1927); for units K. K. Saha, D. Miller and S. Wang, A comparison of
        some approximate confidence intervals for a single proportion for clustered binary
        outcome data, International Journal of Biostatistics 12 (2015).
        """
        if not self.n:
            return None
        if not self.by_unit:
            return wilson(self.hits / self.n, self.n, z)
        if self.units == 1:
            return 0.0, 1.0
        far = _student(z, self.units - 1)
        low, high = wilson(self.hits / self.n, self.effective, far)
        most = wilson(0, self.n / self._size, far)[1]
        return min(low, 1 - most), max(high, most)

    @property
    def could_miss(self) -> float | None:
        """The highest rate that so many images could have missed altogether; None when n is 0.

        The upper end of the interval at 0 hits.
        """
        none = tuple((0, images, k) for _, images, k in self.by_unit)
        ends = Rate(0, self.n, 0, _merged(none)).interval()
        return ends[1] if ends else None

    def to_json(self) -> dict[str, Any]:
        return {
            "hits": self.hits,
            "n": self.n,
            "units": self.units,
            "effective": round(self.effective, 6),
            "unscored": self.unscored,
            "value": self.value,
            "interval": _list(self.interval()),
            "could_miss": self.could_miss,
            "by_unit": [list(unit) for unit in self.by_unit],
        }

    @classmethod
    def from_json(cls, page: Mapping[str, Any]) -> "Rate":
        return cls(page["hits"], page["n"], page["unscored"], _units(page, 3))


@dataclass(frozen=True)
class Paired:
    """Base against erased on the same prompts and seeds: on how many images each saw it.

    Only images that were scored on both sides are here.

    Attributes:
        both, only_base, only_erased, neither: Pairs.
        by_unit: The units' four counts in this order, and how many such units, sorted; empty
            where every pair is its own unit.
    """

    both: int
    only_base: int
    only_erased: int
    neither: int
    by_unit: tuple[tuple[int, int, int, int, int], ...] = ()

    derived: ClassVar[tuple[str, ...]] = (
        "units",
        "effective",
        "difference",
        "interval",
        "p_value",
        "smallest_loss",
    )

    def __post_init__(self) -> None:
        cells = (self.both, self.only_base, self.only_erased, self.neither)
        if min(cells) < 0:
            raise ValueError(f"{cells} are no counts of pairs.")
        sums = tuple(sum(unit[i] * unit[4] for unit in self.by_unit) for i in range(4))
        if self.by_unit and (
            sums != cells or any(min(u) < 0 or not sum(u[:4]) or u[4] < 1 for u in self.by_unit)
        ):
            raise ValueError(f"The units do not add up to {cells}.")

    @classmethod
    def counted(cls, seen: Iterable[tuple[Hashable, bool | None, bool | None]]) -> "Paired":
        """The table of pairs, each given by its unit and whether base and erased saw it.

        A pair of which a side is None (unscored) is left out.
        """
        found: dict[Hashable, list[int]] = {}
        for unit, before, after in seen:
            if before is not None and after is not None:
                cell = (0 if after else 1) if before else (2 if after else 3)
                found.setdefault(unit, [0, 0, 0, 0])[cell] += 1
        units = Counter((a, b, c, d) for a, b, c, d in found.values())
        a, b, c, d = (sum(unit[i] * k for unit, k in units.items()) for i in range(4))
        single = a + b + c + d == len(found)
        return cls(a, b, c, d, () if single else tuple(sorted((*u, k) for u, k in units.items())))

    @property
    def n(self) -> int:
        return self.both + self.only_base + self.only_erased + self.neither

    @property
    def units(self) -> int:
        """Units of which a pair was scored."""
        return sum(unit[4] for unit in self.by_unit) if self.by_unit else self.n

    @property
    def base(self) -> Rate:
        units = ((a + b, a + b + c + d, k) for a, b, c, d, k in self.by_unit)
        return Rate(self.both + self.only_base, self.n, 0, _merged(units))

    @property
    def erased(self) -> Rate:
        units = ((a + c, a + b + c + d, k) for a, b, c, d, k in self.by_unit)
        return Rate(self.both + self.only_erased, self.n, 0, _merged(units))

    @property
    def effective(self) -> float:
        """As how many pairs of different units these count: the lesser of the two sides'."""
        return min(self.base.effective, self.erased.effective)

    @property
    def difference(self) -> float | None:
        """The erased rate less the base's, in [-1, 1]; None when there is no pair."""
        return (self.only_erased - self.only_base) / self.n if self.n else None

    def interval(self, z: float = Z95) -> tuple[float, float] | None:
        """Newcombe's interval of the difference (his method 10), in [-1, 1]; None without a pair.

        With Wilson's [l, u] of each rate, and φ the correlation of the pairs, the lower end lies
        below the difference p − q by √((p − l)² − 2φ(p − l)(u′ − q) + (u′ − q)²), and the upper
        end likewise above it. Where units have several pairs, [l, u] are the intervals of
        clustered rates, and φ is the correlation of the units' own residuals: with x and y a
        unit's hits on the two sides and m its pairs, Σ(x − mp)(y − mq) over the root of
        Σ(x − mp)² Σ(y − mq)². That is φ itself where every pair is its own unit. The correction
        for continuity takes 1 / (2n √(p(1 − p)q(1 − q))) from a positive φ, n being the
        effective number. lab/coverage.py has how often this holds the truth, and what others do.

        Source: R. G. Newcombe, Improved confidence intervals for the difference between binomial
        proportions based on paired data, Statistics in Medicine 17 (1998), 2635-2650.
        """
        if not self.n:
            return None
        base, erased = self.base, self.erased
        p, q = erased.hits / self.n, base.hits / self.n
        (l1, u1), (l2, u2) = erased.interval(z) or (0, 1), base.interval(z) or (0, 1)
        return newcombe(p, q, self._phi(p, q), self.effective, (l1, u1), (l2, u2))

    def interval_of(self, n: int) -> tuple[float, float] | None:
        """What the interval would be of n pairs, each its own unit, at the rates found here."""
        if not self.n:
            return None
        p, q = ((self.both + x) / self.n for x in (self.only_erased, self.only_base))
        return newcombe(p, q, self._phi(p, q), n, wilson(p, n, Z95), wilson(q, n, Z95))

    def _phi(self, p: float, q: float) -> float:
        """The correlation of the units' residuals, of the erased rate p and the base's q."""
        units = self.by_unit or (
            (1, 0, 0, 0, self.both),
            (0, 1, 0, 0, self.only_base),
            (0, 0, 1, 0, self.only_erased),
            (0, 0, 0, 1, self.neither),
        )
        rest = [
            (a + c - (a + b + c + d) * p, a + b - (a + b + c + d) * q, k)
            for a, b, c, d, k in units
        ]
        spread = sum(k * x * x for x, _, k in rest) * sum(k * y * y for _, y, k in rest)
        # A side that is the same everywhere leaves rounding alone
        if not spread or p in (0, 1) or q in (0, 1):
            return 0.0
        return sum(k * x * y for x, y, k in rest) / math.sqrt(spread)

    @property
    def p_value(self) -> float | None:
        """Two-sided: were the units that changed as likely to change either way?

        Had the erasure done nothing, a unit's images gained less those lost, g, would have been
        as likely −g. The p-value is the share of all flips of the units' signs of which the sum
        is at least as far from 0, counted exactly; where the sum of all |g| is over ``EXACT``
        and they differ, by the normal law of variance Σg², corrected for continuity. Where
        every pair is its own unit that is McNemar's exact test, min(1, 2 P(X ≤ min(b, c))), X
        binomial with b + c trials at ½, for any number of pairs. None without a pair.

        Source: of the variance, N. A. Obuchowski, On the comparison of correlated proportions
        for clustered data, Statistics in Medicine 17 (1998), 1495-1507.
        """
        if not self.n:
            return None
        return sign_flips(self._changes())

    def _changes(self) -> Counter[int]:
        """Images gained less those lost, by unit, and how many such units; none that is 0."""
        changes: Counter[int] = Counter()
        for _, lost, gained, _, k in self.by_unit or (
            (0, 1, 0, 0, self.only_base),
            (0, 0, 1, 0, self.only_erased),
        ):
            if k and lost != gained:
                changes[gained - lost] += k
        return changes

    @property
    def smallest_loss(self) -> float | None:
        """The smallest fall that so many pairs would have shown, in (0, 1].

        Shown is: with McNemar's exact p at most 0.05 on as many pairs as is their effective
        number, in 8 of 10 such audits. Images are gained, against the fall, at the rate at which
        they were here. None where no fall would show: of fewer than 6 changed pairs, McNemar's
        test says nothing.
        """
        return _smallest_loss(int(self.effective), self.only_erased / self.n) if self.n else None

    def to_json(self) -> dict[str, Any]:
        return {
            "both": self.both,
            "only_base": self.only_base,
            "only_erased": self.only_erased,
            "neither": self.neither,
            "units": self.units,
            "effective": round(self.effective, 6),
            "difference": self.difference,
            "interval": _list(self.interval()),
            "p_value": self.p_value,
            "smallest_loss": self.smallest_loss,
            "by_unit": [list(unit) for unit in self.by_unit],
        }

    @classmethod
    def from_json(cls, page: Mapping[str, Any]) -> "Paired":
        return cls(
            page["both"],
            page["only_base"],
            page["only_erased"],
            page["neither"],
            _units(page, 5),
        )


@dataclass(frozen=True)
class Floor:
    """A distance between images of other seeds, beside which the distance itself is read.

    The base's images of each prompt are halved by their seeds. To one half are measured the
    base's own other half, which no erasure has touched, and the erased model's images of those
    same prompts and seeds. How many images there are weighs on both alike.

    Attributes:
        base: From the base's other half: what is found where nothing differs but the seeds.
        erased: From the erased model's.
        n: Images on each side.
    """

    base: float
    erased: float
    n: int

    def __post_init__(self) -> None:
        if not (math.isfinite(self.base) and math.isfinite(self.erased)) or self.n < 1:
            raise ValueError(f"{self.base} and {self.erased} of {self.n} images are no distances.")


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
        withheld: Why the value is in the file alone, and in no table or page; else empty.
        pairs: Of a distance, images with a partner of their prompt and seed on the other side.
            Where all have one it is no distance of two samples: what did not change counts as 0.
        floor: Of a distance that needs one, where prompts have several seeds.
    """

    value: float | None
    n: int
    interval: tuple[float, float] | None
    higher_is_better: bool
    unit: str
    n_reference: int | None = None
    unscored: int = 0
    note: str = ""
    withheld: str = ""
    pairs: int = 0
    floor: Floor | None = None

    later: ClassVar[tuple[str, ...]] = ("withheld", "pairs", "floor")

    def __post_init__(self) -> None:
        if self.value is not None and not math.isfinite(self.value):
            raise ValueError(f"A score cannot be {self.value}: say None, and why in the note.")
        if self.value is not None and not self.n:
            raise ValueError("A score of no images has no value.")

    def to_json(self) -> dict[str, Any]:
        floor = self.floor and {
            "base": self.floor.base,
            "erased": self.floor.erased,
            "n": self.floor.n,
        }
        since = {"withheld": self.withheld, "pairs": self.pairs, "floor": floor}
        return {
            "value": self.value,
            "n": self.n,
            "interval": _list(self.interval),
            "higher_is_better": self.higher_is_better,
            "unit": self.unit,
            "n_reference": self.n_reference,
            "unscored": self.unscored,
            "note": self.note,
            **{key: value for key, value in since.items() if value},
        }

    @classmethod
    def from_json(cls, page: Mapping[str, Any]) -> "Score":
        low_high, floor = page["interval"], page.get("floor")
        interval = None if low_high is None else (float(low_high[0]), float(low_high[1]))
        return cls(**{**page, "interval": interval, "floor": Floor(**floor) if floor else None})


def wilson(p: float, n: float, z: float) -> tuple[float, float]:
    """Wilson's interval of the rate p seen in n images, of which any number above 0 will do."""
    middle = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # At 0 and n hits an end is exact, and rounding would leave 1e-17
    return 0.0 if p == 0 else (middle - half) / scale, 1.0 if p == 1 else (middle + half) / scale


def newcombe(
    p: float,
    q: float,
    phi: float,
    n: float,
    of_p: tuple[float, float],
    of_q: tuple[float, float],
) -> tuple[float, float]:
    """Newcombe's interval of p − q, from each rate's own and the correlation φ of n pairs."""
    (l1, u1), (l2, u2) = of_p, of_q
    if phi > 0:
        phi = max(phi - 1 / (2 * n * math.sqrt(p * (1 - p) * q * (1 - q))), 0.0)

    def distance(x: float, y: float) -> float:
        return math.sqrt(max(x * x - 2 * phi * x * y + y * y, 0.0))

    low, high = p - q - distance(p - l1, u2 - q), p - q + distance(u1 - p, q - l2)
    return max(low, -1.0), min(high, 1.0)


def sign_flips(changes: Mapping[int, int]) -> float:
    """The share of all flips of the signs whose sum is at least as far from 0.

    Args:
        changes: A change, not 0, to how often it is there. Of none, the share is 1.
    """
    sizes: Counter[int] = Counter()
    for change, k in changes.items():
        sizes[abs(change)] += k
    far = abs(sum(change * k for change, k in changes.items()))
    if not far:
        return 1.0
    import numpy as np
    from scipy.stats import binom, norm

    if len(sizes) == 1:
        ((size, k),) = sizes.items()
        return min(1.0, 2 * float(binom.cdf((k - far // size) // 2, k, 0.5)))
    total = sum(size * k for size, k in sizes.items())
    if total > EXACT:
        spread = math.sqrt(sum(size * size * k for size, k in sizes.items()))
        return min(1.0, 2 * float(norm.sf((far - 1) / spread)))
    # law[i]: the chance that the changes flipped to minus have sizes that sum to i
    law = np.ones(1)
    for size, k in sizes.items():
        step = np.zeros(size * k + 1)
        step[::size] = binom.pmf(np.arange(k + 1), k, 0.5)
        law = np.convolve(law, step)
    return min(1.0, 2 * float(law[: (total - far) // 2 + 1].sum()))


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


@dataclass(frozen=True)
class Between:
    """Two of several erasures, judged on the same rows.

    Attributes:
        first, second: Their names.
        paired: Over the rows that both could score, the first in the base's place and the second
            in the erased one's: ``paired.difference`` is the second's rate less the first's.
        p_holm: The paired test's p, adjusted by Holm over all pairs of the erasures; None where
            there is no row that both could score.
    """

    first: str
    second: str
    paired: Paired
    p_holm: float | None


def between(
    judged: Mapping[str, Mapping[str, tuple[Hashable, bool | None]]],
) -> tuple[Between, ...]:
    """Each erasure beside each other one, on the same rows.

    Every pair has the test that base and erased have: sign flips by unit, and McNemar's exact
    test where every row is its own unit. Of k erasures all k(k − 1)/2 pairs are one family: where
    all that are under α after Holm are believed, one of them is wrong with a chance of at most α.

    Args:
        judged: An erasure's name to its rows: a row's id to the unit that it belongs to, and to
            whether the detector saw what the rows ask after (None if unknown).

    Returns:
        The pairs, each erasure beside those that come after it.

    Raises:
        InputError: There are fewer than two, or a row is not every erasure's, or of another unit.
    """
    names = list(judged)
    if len(names) < 2:
        raise InputError("Erasures are compared with each other: name at least two.")
    rows = {id_: unit for id_, (unit, _) in judged[names[0]].items()}
    for name in names[1:]:
        theirs = {id_: unit for id_, (unit, _) in judged[name].items()}
        if theirs != rows:
            differ = {id_ for id_, _ in theirs.items() ^ rows.items()}
            raise InputError(
                f"{names[0]} and {name} were not judged on the same rows, first at "
                f"{min(differ)!r}: audit both on one suite."
            )
    found = [
        Between(
            first,
            second,
            Paired.counted(
                (unit, judged[first][id_][1], judged[second][id_][1]) for id_, unit in rows.items()
            ),
            None,
        )
        for first, second in itertools.combinations(names, 2)
    ]
    p_values = [p for b in found if (p := b.paired.p_value) is not None]
    adjusted = iter(holm(p_values))
    return tuple(
        b if b.paired.p_value is None else replace(b, p_holm=next(adjusted)) for b in found
    )


def mean_interval(
    groups: Sequence[Sequence[float]], *, resamples: int = 9999, seed: int = 0
) -> tuple[float, float] | None:
    """The 95 % interval of the mean of all values, by a bootstrap over groups.

    A group is what was drawn as one: all images of one prompt. Groups are drawn again with their
    values, and the interval lies between percentiles of the means. These are a little further out
    than 2.5 % and 97.5 %, at Φ(∓√(G/(G − 1)) t) with t Student's 97.5 % point at G − 1 degrees:
    the percentiles of G groups are otherwise too narrow when G is small.

    Of more than ``MANY`` groups nothing is drawn: the draws' percentiles are then computed from
    their first three cumulants (``_expanded``), nearer than so many draws would find them.

    Source: T. C. Hesterberg, What teachers should know about the bootstrap, The American
    Statistician 69 (2015), 371-386, the expanded percentile interval.

    Args:
        groups: The values of each group, any number of each.
        resamples: How often they are drawn, where they are.
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
    sums, sizes = [math.fsum(group) for group in groups], [len(group) for group in groups]
    if count > MANY:
        return _expanded(np.array(sums), np.array(sizes, float), out)
    found = stats.bootstrap(
        (sums, sizes),
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


def _expanded(
    sums: "NDArray[np.float64]", sizes: "NDArray[np.float64]", out: float
) -> tuple[float, float]:
    """Where the bootstrap's means of many groups have their Φ(∓out) points.

    With u = (sum − mean · size) / m and v = size / m − 1 of a group, m being the mean size, a
    draw's mean is off by ū / (1 + v̄), about ū − ūv̄. Over G groups that has the mean −c/G, the
    variance σ²/G and the third cumulant (E u³ − 6σ²c)/G², where σ² = E u² and c = E uv. With the
    skewness γ that follows, the point of the normal's z is z + γ(z² − 1)/6 standard deviations
    from the mean.

    Source: E. A. Cornish and R. A. Fisher, Moments and cumulants in the specification of
    distributions, Revue de l'Institut International de Statistique 5 (1938); for the bootstrap
    P. Hall, The Bootstrap and Edgeworth Expansion (1992).

    Args:
        sums, sizes: Of the groups' values, shape (G,).
        out: How far out, in the normal's standard deviations.
    """
    count, size = len(sums), sizes.mean()
    mean = math.fsum(sums) / float(sizes.sum())
    u, v = (sums - mean * sizes) / size, sizes / size - 1
    variance, shared = float((u * u).mean()), float((u * v).mean())
    spread = math.sqrt(variance / count)
    skew = float((u**3).mean()) - 6 * variance * shared
    skew = skew / (variance**1.5 * math.sqrt(count)) if variance else 0.0
    low, high = (z + skew * (z * z - 1) / 6 for z in (-out, out))
    middle = mean - shared / count
    return float(middle + low * spread), float(middle + high * spread)


@functools.cache
def _smallest_loss(n: int, g: float) -> float | None:
    """By halving: the fall d at which McNemar's exact test on n pairs has the power wanted.

    An image is lost with probability d + g and gained with g. Of D changed
    pairs, binomial with n trials at d + 2g, those gained are binomial with D trials at
    g / (d + 2g); the test rejects when they are so few that 2 P(X ≤ them) ≤ 0.05 at ½. Of D only
    what lies within 10 standard deviations, and 100, of its mean is summed: all but 10⁻²⁰, and
    some √n numbers in place of n.
    """
    if not n:
        return None
    import numpy as np
    from scipy.stats import binom

    def power(fall: float) -> float:
        move = min(fall + 2 * g, 1.0)
        near = 100 + 10 * math.sqrt(n * move * (1 - move))
        changed = np.arange(max(0, int(n * move - near)), min(n, int(n * move + near)) + 1)
        few = binom.ppf(ALPHA / 2, changed, 0.5)
        few -= 2 * binom.cdf(few, changed, 0.5) > ALPHA
        seen = np.where(few < 0, 0.0, binom.cdf(few, changed, g / move))
        return float(binom.pmf(changed, n, move) @ seen)

    low, high = 0.0, 1 - 2 * g
    if high <= 0 or power(high) < POWER:
        return None
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (low, middle) if power(middle) >= POWER else (middle, high)
    return high


def _correlation(by_unit: Sequence[tuple[int, int, int]], n: int, size: float) -> float:
    """ρ of the images of a unit, by one-way analysis of variance, in [0, 1].

    (B − W) / (B + (m₀ − 1)W), with B and W the mean squares between and within the units, and
    m₀ = (n − Σm²/n) / (units − 1). Two imagined units of mean size are taken in, one of hits
    alone and one of misses. Where something was seen in a few images of one unit, the units
    themselves say next to nothing of ρ, and the intervals miss up to one time in eleven (or in
    one image of many, are shorter than for none at all); with the two they do not, and the more
    units show it, the less the two weigh. At 0 or all hits they leave ρ = 1.

    Source: of the analysis, A. Donner, A review of inference procedures for the intraclass
    correlation coefficient in the one-way random effects model, International Statistical
    Review 54 (1986); the imagined units are ours, chosen by lab/coverage.py.
    """
    units: list[tuple[float, float, int]] = [*by_unit, (0.0, size, 1), (size, size, 1)]
    count = sum(k for *_, k in units)
    total = n + 2 * size
    mean = sum(k * hits for hits, _, k in units) / total
    between = sum(k * m * (hits / m - mean) ** 2 for hits, m, k in units) / (count - 1)
    within = sum(k * hits * (1 - hits / m) for hits, m, k in units) / (total - count)
    m0 = (total - sum(k * m * m for _, m, k in units) / total) / (count - 1)
    return min(max((between - within) / (between + (m0 - 1) * within), 0.0), 1.0)


@functools.cache
def _student(z: float, degrees: int) -> float:
    """Student's t at the normal's z: as far out in the tails."""
    from scipy.stats import norm, t

    return float(t.isf(norm.sf(z), degrees))


def _merged(units: Iterable[tuple[int, int, int]]) -> tuple[tuple[int, int, int], ...]:
    found: Counter[tuple[int, int]] = Counter()
    for hits, images, k in units:
        found[hits, images] += k
    return tuple(sorted((*unit, k) for unit, k in found.items()))


def _units(page: Mapping[str, Any], width: int) -> tuple[Any, ...]:
    # What was written before units were counted has none
    found = tuple(tuple(unit) for unit in page.get("by_unit", ()))
    if any(len(unit) != width or any(type(x) is not int for x in unit) for unit in found):
        raise ValueError(f"by_unit must hold rows of {width} whole numbers.")
    return found


def _list(interval: tuple[float, float] | None) -> list[float] | None:
    return None if interval is None else list(interval)
