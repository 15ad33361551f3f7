"""Rates, pairs and scores: what the statistics promise."""

import itertools
import json
import math

import pytest
from scipy.stats import binomtest

from unsee.eval.score import Paired, Rate, Score


@pytest.mark.parametrize("n", [1, 2, 8, 35, 1000])
def test_the_interval_of_a_rate_is_scipys_wilson(n: int) -> None:
    for hits in {0, 1, n // 3, n - 1, n}:
        low, high = Rate(hits, n).interval(z=1.959963984540054) or (math.nan, math.nan)
        wanted = binomtest(hits, n).proportion_ci(0.95, method="wilson")
        assert (low, high) == pytest.approx((wanted.low, wanted.high), abs=1e-12)
        assert 0 <= low <= hits / n <= high <= 1


def test_nothing_measured_is_not_zero() -> None:
    nothing = Rate(0, 0, unscored=7)
    assert nothing.value is None
    assert nothing.interval() is None
    assert nothing.bounds == (0.0, 1.0)
    empty = Paired(0, 0, 0, 0)
    assert (empty.difference, empty.interval(), empty.p_value) == (None, None, None)
    assert json.loads(json.dumps(nothing.to_json()))["value"] is None


def test_an_unscored_image_is_in_no_rate_and_in_its_bounds() -> None:
    rate = Rate(2, 4, unscored=6)
    assert rate.value == 0.5
    assert rate.bounds == (0.2, 0.8)


def test_a_rate_of_more_than_all_is_refused() -> None:
    with pytest.raises(ValueError, match="5 of 4"):
        Rate(5, 4)


@pytest.mark.parametrize("seen", [0, 3, 8])
def test_a_gallery_does_not_differ_from_itself(seen: int) -> None:
    same = Paired(both=seen, only_base=0, only_erased=0, neither=8 - seen)
    assert same.difference == 0.0
    assert same.p_value == 1.0
    low, high = same.interval() or (1, 1)
    assert low <= 0 <= high


def test_mcnemar_is_scipys_exact_binomial() -> None:
    for b, c in itertools.product([0, 1, 5, 12, 40], repeat=2):
        wanted = binomtest(min(b, c), b + c).pvalue if b + c else 1.0
        assert Paired(3, b, c, 4).p_value == pytest.approx(wanted, rel=1e-9)
    many = Paired(0, 4000, 4200, 0).p_value
    assert many == pytest.approx(binomtest(4000, 8200).pvalue, rel=1e-6)


def test_the_interval_of_a_difference_is_newcombes_published_one() -> None:
    # Method 10 on (36, 12, 2, 0), as Newcombe's paper of 1998 gives it
    low, high = Paired(both=36, only_base=2, only_erased=12, neither=0).interval() or (0, 0)
    assert (low, high) == pytest.approx((0.0569, 0.3404), abs=5e-5)


@pytest.mark.parametrize("table", [(14, 5, 0, 22), (30, 1, 9, 20), (2, 3, 4, 1), (0, 0, 7, 5)])
def test_the_interval_of_a_difference_is_r_biostatuzhs(table: tuple[int, int, int, int]) -> None:
    # confIntPairedProportion written out plainly, its correction for continuity included
    r, s, t, u = table
    n = r + s + t + u
    p1, p2 = (r + s) / n, (r + t) / n
    one, two = (binomtest(k, n).proportion_ci(0.95, method="wilson") for k in (r + s, r + t))
    product, cross = (r + s) * (t + u) * (r + t) * (s + u), r * u - s * t
    corrected = cross - n / 2 if cross > n / 2 else min(cross, 0)
    phi = corrected / math.sqrt(product) if product else 0
    a, b, c, d = p1 - one.low, two.high - p2, p2 - two.low, one.high - p1
    wanted = (
        p1 - p2 - math.sqrt(a * a - 2 * phi * a * b + b * b),
        p1 - p2 + math.sqrt(c * c - 2 * phi * c * d + d * d),
    )
    found = Paired(both=r, only_erased=s, only_base=t, neither=u).interval(z=1.959963984540054)
    assert found == pytest.approx(wanted, abs=1e-9)


def test_the_interval_of_a_difference_holds_it_and_turns_with_the_sides() -> None:
    for a, b, c, d in itertools.product([0, 1, 4, 9], repeat=4):
        if a + b + c + d == 0:
            continue
        pair, turned = Paired(a, b, c, d), Paired(a, c, b, d)
        low, high = pair.interval() or (2, -2)
        assert -1 <= low <= (pair.difference or 0) + 1e-12 and (pair.difference or 0) <= high <= 1
        assert turned.interval() == pytest.approx((-high, -low))
        assert pair.difference == pytest.approx((pair.erased.value or 0) - (pair.base.value or 0))


def test_everything_comes_back_from_json() -> None:
    for value in (
        Rate(1, 3, 2),
        Paired(1, 2, 3, 4),
        Score(1.5, 3, (1.0, 2.0), True, "u", 4, 5, "why"),
        Score(None, 0, None, False, "", note="too few"),
    ):
        assert type(value).from_json(json.loads(json.dumps(value.to_json()))) == value


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_score_is_finite_or_none(value: float) -> None:
    with pytest.raises(ValueError, match="say None"):
        Score(value, 3, None, True, "")


def test_a_score_of_no_images_has_no_value() -> None:
    with pytest.raises(ValueError, match="no images"):
        Score(0.0, 0, None, True, "")
