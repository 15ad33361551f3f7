"""Rates, pairs and scores: what the statistics promise."""

import itertools
import json
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom, binomtest, multinomial, norm, t

from unsee._errors import InputError
from unsee.eval import statistics
from unsee.eval.statistics import Paired, Rate, Score, between, holm, mean_interval


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


@pytest.mark.parametrize("n", [1, 36, 1000])
def test_what_n_images_could_miss_ends_the_interval_of_0_hits(n: int) -> None:
    assert Rate(0, n).could_miss == pytest.approx((Rate(0, n).interval() or (0, 0))[1])
    assert Rate(n, n).could_miss == Rate(0, n).could_miss
    assert Rate(0, 0, 5).could_miss is None


@pytest.mark.parametrize(("n", "gained"), [(8, 0), (12, 0), (15, 1), (20, 3)])
def test_the_smallest_loss_is_the_least_that_is_seen_8_times_in_10(n: int, gained: int) -> None:
    # Every table of n pairs written out, its chance and its own McNemar
    def power(loss: float) -> float:
        gain = gained / n
        cells = [loss + gain, gain, 1 - loss - 2 * gain]
        return sum(
            float(multinomial.pmf([lost, found, n - lost - found], n, cells))
            for lost in range(n + 1)
            for found in range(n + 1 - lost)
            if lost > found and binomtest(found, lost + found).pvalue <= 0.05
        )

    loss = Paired(n - gained, 0, gained, 0).smallest_loss
    assert loss is not None
    assert power(loss) >= 0.8 > power(loss - 2e-4)


def test_five_pairs_show_no_loss_and_more_pairs_a_smaller_one() -> None:
    assert [Paired(n, 0, 0, 0).smallest_loss for n in (0, 1, 5)] == [None, None, None]
    losses = [Paired(n, 0, 0, 0).smallest_loss or 0 for n in (6, 12, 100, 3000)]
    assert losses == sorted(losses, reverse=True) and 0 < losses[-1] < 0.003
    churned = Paired(90, 5, 5, 0).smallest_loss or 0
    assert churned > losses[2]
    assert Paired(0, 0, 6, 0).smallest_loss is None


def units(*found: tuple[int, int, int]) -> Rate:
    """A rate of (hits, images, how many such units)."""
    rows = [(h, m) for h, m, k in found for _ in range(k)]
    return Rate.counted((i, j < h) for i, (h, m) in enumerate(rows) for j in range(m))


def test_units_of_one_image_are_what_they_always_were() -> None:
    seen = [True, False, None, True, False]
    assert Rate.counted(enumerate(seen)) == Rate(2, 4, 1)
    assert Rate(2, 4, 1).units == Rate(2, 4, 1).effective == 4
    pairs = [(True, True), (True, False), (False, True), (False, False), (None, True)]
    assert Paired.counted((i, b, e) for i, (b, e) in enumerate(pairs)) == Paired(1, 1, 1, 1)
    assert Paired(1, 1, 1, 1).units == 4


def test_a_rate_by_units_is_the_analysis_of_variance_written_out() -> None:
    rng = np.random.default_rng(2)
    groups = [rng.random(size) < 0.3 for size in rng.integers(1, 7, 20)]
    found = Rate.counted((i, bool(x)) for i, group in enumerate(groups) for x in group)
    n = sum(map(len, groups))
    size = sum(len(g) ** 2 for g in groups) / n
    # Two imagined units of mean size, the weights of a fraction of an image being fractions
    values = [*map(np.asarray, groups), np.zeros(1), np.ones(1)]
    weights = [np.ones(len(g)) for g in groups] + [np.array([size])] * 2
    total, count = sum(w.sum() for w in weights), len(values)
    mean = sum((w * v).sum() for w, v in zip(weights, values, strict=True)) / total
    means = [(w * v).sum() / w.sum() for w, v in zip(weights, values, strict=True)]
    between = sum(w.sum() * (m - mean) ** 2 for w, m in zip(weights, means, strict=True)) / (
        count - 1
    )
    within = sum(
        (w * (v - m) ** 2).sum() for w, v, m in zip(weights, values, means, strict=True)
    ) / (total - count)
    m0 = (total - sum(w.sum() ** 2 for w in weights) / total) / (count - 1)
    rho = (between - within) / (between + (m0 - 1) * within)
    assert 0 < rho < 1
    assert found.effective == pytest.approx(n / (1 + (size - 1) * rho))
    z = t.isf(norm.sf(1.96), 19)
    # Wilson's ends solve this
    for end in found.interval() or ():
        p = found.value or 0
        assert (end - p) ** 2 == pytest.approx(z * z * end * (1 - end) / found.effective)


def test_seeds_that_are_all_alike_count_as_one() -> None:
    for hits in (0, 1, 5, 16):
        alike = units((6, 6, hits), (0, 6, 16 - hits))
        assert (alike.n, alike.units) == (96, 16) and alike.effective == pytest.approx(16)
        assert alike.interval() != Rate(6 * hits, 96).interval()
    # So 0 of 30 images of 16 prompts is not "up to 11.4 %"
    low, high = units((0, 2, 14), (0, 1, 2)).interval() or (1, 1)
    assert low == 0 and 0.22 < high < 0.25
    assert (Rate(0, 30).interval() or (0, 0))[1] == pytest.approx(0.114, abs=5e-4)


def test_of_one_prompt_at_many_seeds_nothing_follows() -> None:
    assert units((0, 12, 1)).interval() == units((7, 12, 1)).interval() == (0.0, 1.0)
    assert units((0, 12, 1)).could_miss == 1.0
    low, high = units((0, 6, 2)).interval() or (1, 0)
    assert low == 0 and high > 0.98


@pytest.mark.parametrize(("count", "size"), [(8, 6), (16, 2), (24, 6), (50, 5)])
def test_another_image_that_shows_it_never_lowers_what_may_be_there(count: int, size: int) -> None:
    ends = []
    for hits in range(count // 2):
        ends.append((units((1, size, hits), (0, size, count - hits)).interval() or (0, 0))[1])
    assert ends == sorted(ends)


def test_more_seeds_of_the_same_prompts_never_say_that_nothing_is_there() -> None:
    few, many = (units((0, size, 24)).interval() for size in (2, 200))
    assert few == pytest.approx(many)


def test_units_that_do_not_add_up_are_refused() -> None:
    for wrong in (((1, 2, 1),), ((2, 1, 2),), ((0, 0, 1), (2, 4, 1)), ((2, 4, 1), (0, 1, -1))):
        with pytest.raises(ValueError, match="do not add up to 2 of 4"):
            Rate(2, 4, 0, wrong)
    with pytest.raises(ValueError, match="do not add up"):
        Paired(1, 0, 0, 1, ((1, 0, 0, 0, 1),))
    with pytest.raises(ValueError, match="no counts"):
        Paired(1, -1, 0, 1)


def test_rates_of_several_concepts_are_pooled_with_their_units() -> None:
    assert Rate.pooled([Rate(1, 3, 2), Rate(0, 4)]) == Rate(1, 7, 2)
    mixed = Rate.pooled([units((2, 3, 2)), Rate(1, 2, 1), units((0, 1, 1), (2, 3, 1))])
    assert (mixed.hits, mixed.n, mixed.unscored) == (7, 12, 1)
    assert mixed.by_unit == ((0, 1, 2), (1, 1, 1), (2, 3, 3)) and mixed.units == 6
    assert Rate.pooled([]) == Rate(0, 0)


def beta_binomial(rng: np.random.Generator, count: int, size: int, p: float, rho: float) -> Rate:
    chance = rng.beta((1 / rho - 1) * p, (1 / rho - 1) * (1 - p), count)
    return units(*((int(h), size, 1) for h in rng.binomial(size, chance)))


@pytest.mark.parametrize("p", [0.05, 0.1, 0.375])
def test_the_interval_by_units_holds_the_truth_where_the_one_over_images_does_not(
    p: float,
) -> None:
    rng, held = np.random.default_rng(0), np.zeros(2)
    for _ in range(300):
        found = beta_binomial(rng, 24, 6, p, 0.5)
        for i, rate in enumerate((found, Rate(found.hits, found.n))):
            low, high = rate.interval() or (1, 0)
            held[i] += low <= p <= high
    assert held[0] / 300 >= 0.94 and held[1] / 300 < 0.8


def pairs(*found: tuple[int, int, int, int, int]) -> Paired:
    """Pairs of (both, only the base, only the erased, neither, how many such units)."""
    a, b, c, d = (sum(unit[i] * unit[4] for unit in found) for i in range(4))
    return Paired(a, b, c, d, tuple(sorted(found)))


def drawn(rng: np.random.Generator, count: int, size: int) -> Paired:
    chances = rng.dirichlet([1.2, 0.5, 0.3, 1], count)
    return pairs(*((*rng.multinomial(size, c).tolist(), 1) for c in chances))


def test_the_sign_test_is_every_flip_of_the_units_counted() -> None:
    rng = np.random.default_rng(5)
    for _ in range(20):
        found = drawn(rng, 9, 4)
        changes = [up - down for _, down, up, _, k in found.by_unit for _ in range(k)]
        flips = [
            abs(sum(s * c for s, c in zip(signs, changes, strict=True)))
            for signs in itertools.product([1, -1], repeat=len(changes))
        ]
        wanted = np.mean([flip >= abs(sum(changes)) for flip in flips])
        assert found.p_value == pytest.approx(wanted, rel=1e-9)


def test_units_that_change_as_one_are_tested_as_one() -> None:
    alike = pairs((0, 5, 0, 0, 7), (0, 0, 5, 0, 1), (5, 0, 0, 0, 10))
    assert alike.p_value == pytest.approx(Paired(10, 7, 1, 0).p_value)
    assert (Paired(50, 35, 5, 0).p_value or 0) < 1e-5 < (alike.p_value or 0)


def test_many_pairs_are_tested_in_a_moment_and_as_the_exact_test_would() -> None:
    start = time.process_time()
    assert Paired(50_000, 25_000, 25_300, 0).p_value == pytest.approx(0.1826, abs=2e-3)
    mixed = pairs((3, 1, 0, 1, 9000), (3, 0, 1, 1, 9300), (3, 2, 0, 0, 1000), (3, 0, 2, 0, 900))
    assert mixed.n == 101_000 and mixed.interval()
    assert mixed.p_value == pytest.approx(2 * norm.sf(99 / math.sqrt(18_300 + 4 * 1900)))
    assert time.process_time() - start < 1
    assert 0 < (mixed.smallest_loss or 0) < 0.01
    # Where all flips are still counted, the normal law is as good already
    fewer = pairs((3, 1, 0, 1, 8000), (3, 0, 1, 1, 8300), (3, 2, 0, 0, 600), (3, 0, 2, 0, 500))
    normal = 2 * norm.sf(99 / math.sqrt(16_300 + 4 * 1100))
    assert fewer.p_value == pytest.approx(normal, rel=1e-3) and fewer.p_value != normal


def judged(n: int, size: int) -> Paired:
    """n pairs, all different enough, in units of this mean size; 0 is of 1 to some 40."""
    rng = np.random.default_rng(n)
    unit = (np.sqrt(rng.random(n)) * n / 20).astype(int) if not size else np.arange(n) // size
    before, after = rng.random(n) < 0.5, rng.random(n) < 0.49
    return Paired.counted(zip(unit.tolist(), before.tolist(), after.tolist(), strict=True))


def seconds(what: Callable[[], object]) -> float:
    start = time.process_time()
    what()
    return time.process_time() - start


@pytest.mark.parametrize("size", [1, 4, 50, 0])
def test_100_000_pairs_take_a_moment_and_four_times_as_many_no_more_than_their_share(
    size: int,
) -> None:
    Paired(9, 5, 4, 3).to_json()  # scipy is imported at the first call
    took = {}
    for n in (25_000, 100_000):
        found: list[Paired] = []
        took[n] = seconds(lambda n=n, found=found: found.append(judged(n, size)))  # type: ignore[misc]
        took[n] += seconds(found[0].to_json)  # p, intervals, what would have shown
        assert found[0].p_value is not None and found[0].smallest_loss is not None
    assert took[100_000] < 1, took
    # What takes no time at all has no ratio
    assert took[100_000] <= 8 * max(took[25_000], 0.1), took


def test_the_mean_of_100_000_prompts_has_its_interval_in_a_moment() -> None:
    scores = np.random.default_rng(0).normal(25, 4, 100_000).tolist()
    mean_interval([[0.0], [1.0]])
    took = {n: seconds(lambda n=n: mean_interval([[x] for x in scores[:n]]))  # type: ignore[misc]
            for n in (25_000, 100_000)}  # fmt: skip
    assert took[100_000] < 1 and took[100_000] <= 8 * max(took[25_000], 0.1), took


@pytest.mark.parametrize("skewed", [False, True])
def test_of_many_prompts_the_interval_is_the_draws_percentiles(
    skewed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng, count = np.random.default_rng(1), 400
    levels = rng.lognormal(0, 1, count) if skewed else rng.normal(25, 4, count)
    # Prompts of more images that score higher pull both ends, as no plain normal law does
    sizes = np.where(levels > np.median(levels), rng.integers(1, 8, count), 1)
    groups = [(x + rng.normal(0, 0.5, k)).tolist() for x, k in zip(levels, sizes, strict=True)]
    low, high = mean_interval(groups, resamples=40_000) or (0, 0)
    monkeypatch.setattr(statistics, "MANY", 399)
    ours = mean_interval(groups)
    assert ours == pytest.approx((low, high), abs=0.012 * (high - low))
    assert ours != (low, high)
    same = [[2.0]] * 300 + [[2.0, 2.0]] * 300
    assert mean_interval(same) == (2.0, 2.0)


def test_what_a_loss_must_be_to_show_is_summed_where_it_matters_and_as_if_over_all() -> None:
    # The whole sum, over every number of changed pairs
    for n, gained in ((300, 2), (3000, 0), (3000, 40)):
        loss = Paired(n - gained, 0, gained, 0).smallest_loss or math.nan
        changed, g = np.arange(n + 1), gained / n
        few = binom.ppf(0.025, changed, 0.5)
        few -= 2 * binom.cdf(few, changed, 0.5) > 0.05

        def power(fall: float, changed: Any = changed, few: Any = few, g: float = g) -> float:
            move = fall + 2 * g
            seen = np.where(few < 0, 0.0, binom.cdf(few, changed, g / move))
            return float(binom.pmf(changed, changed[-1], move) @ seen)

        assert power(loss) >= 0.8 - 1e-12 and power(loss - 1.1e-4) < 0.8


def test_a_clustered_difference_turns_with_the_sides_and_holds_what_was_found() -> None:
    rng = np.random.default_rng(7)
    for _ in range(30):
        found = drawn(rng, 12, 4)
        swapped = pairs(*((a, c, b, d, k) for a, b, c, d, k in found.by_unit))
        low, high = found.interval() or (2, -2)
        assert -1 <= low <= (found.difference or 0) <= high <= 1
        assert swapped.interval() == pytest.approx((-high, -low))
        assert found.base.value == (found.both + found.only_base) / found.n
        assert found.effective <= found.n


def test_a_loss_is_harder_to_see_among_seeds_than_among_prompts() -> None:
    seeds, prompts = pairs((6, 0, 0, 0, 16)), Paired(96, 0, 0, 0)
    assert (seeds.smallest_loss or 0) == Paired(16, 0, 0, 0).smallest_loss
    assert (seeds.smallest_loss or 0) > (prompts.smallest_loss or 1)
    assert pairs((6, 0, 0, 0, 5)).smallest_loss is None
    # The side that says less decides: a base that shows all is as many as its prompts
    halved = pairs((3, 3, 0, 0, 16))
    assert halved.effective == halved.base.effective == pytest.approx(16)
    assert halved.erased.effective > 17
    low, _ = seeds.interval() or (0, 0)
    assert low < -0.1 < (prompts.interval() or (-1, 0))[0]


def test_holm_believes_what_his_steps_would() -> None:
    found = [0.04, 0.001, 0.5, 0.013, 0.015, 0.0201, 1.0]
    adjusted = holm(found)
    for alpha in (0.005, 0.05, 0.077, 0.1, 0.2, 0.9):
        believed = set()
        for step, p in enumerate(sorted(found)):
            if p > alpha / (len(found) - step):
                break
            believed.add(p)
        assert {p for p, a in zip(found, adjusted, strict=True) if a <= alpha} == believed
    assert holm([0.03]) == [0.03] and holm([]) == []


Judged = dict[str, dict[str, tuple[str, bool | None]]]


def alone(**seen: list[bool | None]) -> Judged:
    """Erasures' rows, each of its own unit."""
    return {
        name: {f"{i}": (f"{i}", hit) for i, hit in enumerate(rows)} for name, rows in seen.items()
    }


def test_several_erasures_without_units_are_tested_as_statsmodels_does() -> None:
    # statsmodels 0.15.0: mcnemar(exact=True) of each pair, multipletests(method="holm") of all
    found = between(
        alone(
            a=[i < 6 for i in range(40)],
            b=[i % 3 == 0 for i in range(40)],
            c=[i % 2 == 0 or i < 20 for i in range(40)],
        )
    )
    assert [(b.first, b.second) for b in found] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert [b.paired.p_value for b in found] == pytest.approx(
        [0.076812744140625, 1.1920928955078125e-07, 0.001543879508972168], rel=1e-12
    )
    assert [b.p_holm for b in found] == pytest.approx(
        [0.076812744140625, 3.5762786865234375e-07, 0.003087759017944336], rel=1e-12
    )
    assert found[1].paired.difference == pytest.approx((30 - 6) / 40)


def test_rows_of_one_prompt_are_one_unit_between_erasures_too() -> None:
    rows = [(f"{i}-{k}", f"prompt {i}", i < 7) for i in range(20) for k in range(5)]
    alike: Judged = {
        "none": {id_: (unit, False) for id_, unit, _ in rows},
        "some": {id_: (unit, hit) for id_, unit, hit in rows},
    }
    (found,) = between(alike)
    assert found.paired.units == 20 and found.paired.n == 100
    assert found.p_holm == found.paired.p_value == pytest.approx(binomtest(0, 7).pvalue)


def test_a_row_that_one_could_not_score_is_in_none_of_its_pairs() -> None:
    found = between(alone(a=[True, None, True], b=[False, True, None], c=[None, None, None]))
    assert [b.paired.n for b in found] == [1, 0, 0]
    assert [b.p_holm for b in found] == [1.0, None, None]


@pytest.mark.parametrize(
    ("judged", "message"),
    [
        ({}, "name at least two"),
        ({"a": {"0": ("x", True)}}, "name at least two"),
        (
            {"a": {"0": ("x", True)}, "b": {"0": ("x", True), "1": ("x", False)}},
            "a and b were not judged on the same rows, first at '1'",
        ),
        ({"a": {"0": ("x", True)}, "b": {"0": ("y", True)}}, "not judged on the same rows"),
    ],
)
def test_erasures_of_other_rows_are_not_compared(judged: Judged, message: str) -> None:
    with pytest.raises(InputError, match=message):
        between(judged)


@pytest.mark.slow
@pytest.mark.parametrize(("count", "size"), [(24, 6), (50, 1), (50, 5)])
def test_erasures_that_do_the_same_are_told_apart_no_more_than_5_times_in_100(
    count: int, size: int
) -> None:
    rng, alarms, repeats = np.random.default_rng(4), 0, 500
    for _ in range(repeats):
        # Each erasure leaves something in prompts of its own, alike on average
        judged: Judged = {}
        for name in "abcd":
            hits = rng.random((count, size)) < rng.beta(0.35, 0.65, count)[:, None]
            judged[name] = {
                f"{i}-{k}": (f"{i}", bool(hits[i, k])) for i in range(count) for k in range(size)
            }
        alarms += any((b.p_holm or 0) <= 0.05 for b in between(judged))
    # Two standard errors of 500 draws are 2 points
    assert 0 < alarms / repeats <= 0.07


def test_images_of_one_prompt_tell_no_more_than_one_of_them() -> None:
    values = [3.0, 1.0, 4.0, 1.5, 9.0, 2.0, 6.0]
    once = mean_interval([[x] for x in values])
    assert once == pytest.approx(mean_interval([[x] * 50 for x in values]))
    by_image = mean_interval([[x] for x in values for _ in range(50)]) or (0, 0)
    assert once and by_image[1] - by_image[0] < (once[1] - once[0]) / 5


def test_the_interval_of_a_mean_is_the_bootstrap_over_prompts_written_out() -> None:
    rng = np.random.default_rng(3)
    groups = [rng.gamma(2, 3, size).tolist() for size in rng.integers(1, 6, 12)]
    means = []
    for _ in range(20_000):
        drawn = [groups[i] for i in rng.integers(0, 12, 12)]
        means.append(sum(map(sum, drawn)) / sum(map(len, drawn)))
    # Hesterberg's table of percentiles for n = 12, by Student's t of 11 degrees
    out = norm.cdf(-math.sqrt(12 / 11) * 2.200985160)
    wanted = np.quantile(means, [out, 1 - out])
    found = mean_interval(groups)
    assert found == pytest.approx(wanted.tolist(), abs=0.15)
    assert found == mean_interval(groups) != mean_interval(groups, seed=1)


def test_one_prompt_has_no_interval() -> None:
    assert mean_interval([]) is None
    assert mean_interval([[1.0, 2.0, 3.0], []]) is None
    assert mean_interval([[2.0], [2.0, 2.0]]) == (2.0, 2.0)


def test_everything_comes_back_from_json() -> None:
    for value in (
        Rate(1, 3, 2),
        units((1, 2, 3), (0, 1, 2)),
        Paired(1, 2, 3, 4),
        pairs((1, 0, 2, 0, 2), (0, 0, 0, 1, 1)),
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
