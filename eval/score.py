"""Numbers that carry their doubt: rates, paired rates and scores. Nothing measured is not zero."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Z95 = 1.96


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

    def to_json(self) -> dict[str, Any]:
        return {
            "hits": self.hits,
            "n": self.n,
            "unscored": self.unscored,
            "value": self.value,
            "interval": _list(self.interval()),
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

    def to_json(self) -> dict[str, Any]:
        return {
            "both": self.both,
            "only_base": self.only_base,
            "only_erased": self.only_erased,
            "neither": self.neither,
            "difference": self.difference,
            "interval": _list(self.interval()),
            "p_value": self.p_value,
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


def _wilson(hits: int, n: int, z: float) -> tuple[float, float]:
    interval = Rate(hits, n).interval(z)
    assert interval is not None
    return interval


def _list(interval: tuple[float, float] | None) -> list[float] | None:
    return None if interval is None else list(interval)
