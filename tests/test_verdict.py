"""The verdict: what the intervals allow, and no more."""

import math
from pathlib import Path
from typing import Any

import pytest

from unsee import audits, erase
from unsee._errors import InputError
from unsee.eval.rows import Comparison
from unsee.eval.statistics import Paired, Rate
from unsee.eval.verdict import (
    SEVERITY,
    Limits,
    Verdict,
    judge,
    overall,
    pairs_to_decide,
    prompts_to_decide,
    warn,
)
from unsee.prompts import Concept, Prompt, Suite

RED = Concept("red", "object")
KEPT = Paired(100, 0, 0, 0)


def target(base: Rate, erased: Rate, detector: str = "a") -> Comparison:
    # The pairs of a target are in no verdict
    return Comparison("target", "red", "object", detector, base, erased, Paired(0, 0, 0, 0))


def kept(paired: Paired, role: Any = "same kind", detector: str = "a") -> Comparison:
    return Comparison(role, "others", "object", detector, paired.base, paired.erased, paired)


def verdict(
    erased: Rate,
    *stays: Paired,
    base: Rate | None = None,
    holes: int = 0,
    **limits: Any,
) -> Verdict:
    shown = base or Rate(erased.n, erased.n)
    comparisons = [target(shown, erased), *map(kept, stays or (KEPT,))]
    return judge(RED, comparisons, holes, Limits(**limits))


def ends(found: Rate | Paired) -> tuple[float, float]:
    interval = found.interval()
    assert interval is not None
    return interval


@pytest.mark.parametrize("hits", [0, 1, 3])
def test_forgotten_is_a_rate_whose_upper_end_is_at_most_the_limit(hits: int) -> None:
    found = Rate(hits, 60)
    edge = ends(found)[1]
    assert verdict(found, max_target=edge).value == "forgotten"
    assert verdict(found, max_target=math.nextafter(edge, 0)).value == "inconclusive"


@pytest.mark.parametrize("hits", [6, 40, 60])
def test_not_forgotten_is_a_rate_whose_lower_end_is_above_the_limit(hits: int) -> None:
    found = Rate(hits, 60)
    edge = ends(found)[0]
    assert verdict(found, max_target=math.nextafter(edge, 0)).value == "not forgotten"
    assert verdict(found, max_target=edge).value == "inconclusive"


def test_what_stays_stays_where_the_whole_interval_is_within_the_limit() -> None:
    gone = Rate(0, 60)
    for found in (Paired(95, 2, 1, 2), Paired(80, 12, 0, 8)):
        low, high = ends(found)
        assert high < 0 or low < 0
        assert verdict(gone, found, max_keep_loss=-low).value == "forgotten"
        less = math.nextafter(-low, 0)
        assert verdict(gone, found, max_keep_loss=less).value == "inconclusive"
    # Wholly beyond is damage, at the edge it is not
    lost = Paired(60, 36, 0, 4)
    edge = -ends(lost)[1]
    assert 0.1 < edge < 0.36
    assert verdict(gone, lost).value == "damaged"
    assert verdict(gone, lost, max_keep_loss=edge).value == "inconclusive"
    assert verdict(gone, lost, max_keep_loss=math.nextafter(edge, 0)).value == "damaged"


def test_one_rate_that_fell_is_enough() -> None:
    gone, lost = Rate(0, 60), Paired(60, 36, 0, 4)
    assert verdict(gone, KEPT, lost).value == verdict(gone, lost, KEPT).value == "damaged"
    assert verdict(gone, KEPT, Paired(20, 0, 0, 0)).value == "inconclusive"
    # And one that is not the chief rate's is told, and not judged
    comparisons = [target(Rate(60, 60), gone), kept(KEPT), kept(lost, "category")]
    assert judge(RED, comparisons, 0, Limits()).value == "forgotten"


@pytest.mark.parametrize(("share", "value"), [(30, "forgotten"), (29, "not informative")])
def test_the_base_must_show_the_concept_in_so_many(share: int, value: str) -> None:
    assert verdict(Rate(0, 60), base=Rate(share, 60)).value == value


@pytest.mark.parametrize(
    ("shown", "value"), [(50, "damaged"), (49, "not informative"), (0, "not informative")]
)
def test_a_keep_rate_that_the_base_hardly_shows_is_in_no_verdict(shown: int, value: str) -> None:
    fell = Paired(0, shown, 0, 100 - shown)
    assert verdict(Rate(0, 60), fell).value == value
    # Beside another it neither damages nor excuses, and the report says so
    with_another = verdict(Rate(0, 60), fell, KEPT)
    assert with_another.value == ("damaged" if value == "damaged" else "forgotten")
    said = list(warn([kept(fell)], Limits()))
    assert bool(said) == (value != "damaged")
    assert all("the base itself has" in line and "not in the verdict" in line for line in said)


def test_what_certainly_is_there_is_not_forgotten_though_the_base_shows_it_seldom() -> None:
    assert verdict(Rate(24, 60), base=Rate(24, 60)).value == "not forgotten"


def test_the_worst_of_several_detectors_decides_whichever_comes_first() -> None:
    rates = {
        "forgotten": (Rate(60, 60), Rate(0, 60)),
        "inconclusive": (Rate(60, 60), Rate(5, 60)),
        "not informative": (Rate(20, 60), Rate(0, 60)),
        "not forgotten": (Rate(60, 60), Rate(30, 60)),
    }
    for one, first in rates.items():
        for other, second in rates.items():
            found = [target(*first, "a"), target(*second, "b"), kept(KEPT)]
            worst = min(one, other, key=[str(v) for v in SEVERITY].index)
            assert judge(RED, found, 0, Limits()).value == worst


def test_holes_make_an_audit_incomplete_unless_they_are_allowed() -> None:
    assert verdict(Rate(30, 60), holes=1).value == "incomplete"
    allowed = verdict(Rate(0, 60), holes=1, allow_unscored=True)
    assert allowed.value == "forgotten"
    assert allowed.detail.startswith(
        "1 measurement failed and does not count as safe. Among the scored images, the erased"
    )
    assert verdict(Rate(0, 0, 60), allow_unscored=True).value == "incomplete"
    assert verdict(Rate(0, 60), Paired(0, 0, 0, 0)).value == "not informative"


def test_damage_beside_a_target_that_is_open_is_not_said_to_be_gone() -> None:
    found = verdict(Rate(3, 40), Paired(10, 80, 0, 10))
    assert found.value == "damaged" and "gone" not in found.headline
    assert "3 of 40 leaves rates" in found.detail and "fell by 80 points" in found.detail


def test_several_concepts_are_as_bad_as_the_worst() -> None:
    for i, worst in enumerate(SEVERITY):
        others = [Verdict(value, value, "") for value in SEVERITY[i:]]
        assert overall([*others[::-1], others[-1]]).value == worst
    assert overall([Verdict("forgotten", "a", "")] * 2).headline == "All 2 concepts are forgotten"


@pytest.mark.parametrize("most", [0.01, 0.1, 0.5])
@pytest.mark.parametrize("share", [0.0, 0.004, 0.09, 0.1, 0.4, 1.0])
def test_so_many_prompts_are_the_fewest_that_decide(most: float, share: float) -> None:
    n = prompts_to_decide(share, most)
    if share == most:
        assert n is None
        return
    assert n is not None

    def decided(n: int) -> bool:
        # Wilson's test: is the limit out of what the rate allows?
        return n > 0 and abs(share - most) >= 1.96 * math.sqrt(most * (1 - most) / n) - 1e-12

    assert decided(n) and not decided(n - 2)


def test_no_number_of_prompts_shows_that_nothing_is_there() -> None:
    assert prompts_to_decide(0, 0) is prompts_to_decide(0.5, 0.5) is None
    assert prompts_to_decide(0.1 - 1e-9, 0.1) is None
    assert "no number of prompts would decide" in verdict(Rate(0, 60), max_target=0).detail


@pytest.mark.parametrize("found", [Paired(20, 0, 0, 0), Paired(18, 1, 0, 1), Paired(14, 4, 0, 2)])
def test_so_many_pairs_are_the_fewest_that_decide(found: Paired) -> None:
    n = pairs_to_decide(found, 0.1)
    assert n is not None and verdict(Rate(0, 60), found).value == "inconclusive"
    fell = -(found.difference or 0)

    def decided(n: int) -> bool:
        low, high = found.interval_of(n) or (-1, 1)
        return low >= -0.1 if fell < 0.1 else high < -0.1

    assert decided(n) and not decided(n - 1)
    # Where the shares come out whole, it is what so many pairs would have had
    assert found.interval_of(found.n) == pytest.approx(found.interval())
    assert found.interval_of(3 * found.n) == pytest.approx(
        Paired(3 * found.both, 3 * found.only_base, 0, 3 * found.neither).interval()
    )


def test_a_fall_at_the_limit_is_decided_by_no_number() -> None:
    found = Paired(18, 2, 0, 0)
    assert pairs_to_decide(found, 0.1) is None
    assert "no number of prompts would decide" in verdict(Rate(0, 60), found).detail


@pytest.mark.parametrize("name", ["max_target", "max_keep_loss", "min_base"])
@pytest.mark.parametrize("value", [-0.1, 1.1, 10, math.nan, math.inf, "0.1", None])
def test_a_limit_is_a_share(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"{name} is a share from 0 to 1"):
        Limits(**{name: value})


def test_limits_are_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    wrongs: list[dict[str, Any]] = [{"max_target": 10}, {"max_keep_loss": math.nan}]
    for wrong in wrongs:
        with pytest.raises(InputError, match="it must be a number from 0 to 1"):
            audits.audit("no model", "no file", out=tmp_path, **wrong)


def test_the_limits_are_those_of_the_command_line(run: Any, tmp_path: Path) -> None:
    code, _, said = run("audit", "emoji", "-e", "none", "--max-target", "1.5")
    assert code == 2 and "max_target is 1.5; it must be a number from 0 to 1" in said
    code, _, said = run("audit", "emoji", "-e", "none", "--max-keep-loss", "nan")
    assert code == 2 and "max_keep_loss is nan; it must be a number from 0 to 1" in said


def test_a_suite_that_never_asks_after_the_concept_is_refused_before_the_model_is_there(
    pipe: Any, tmp_path: Path
) -> None:
    erasure = erase(pipe, "bomb", check=False)
    suite = Suite("s", (Prompt("a", "a cat", 0, {"object": "cat"}),))
    with pytest.raises(InputError, match="no prompt of the object 'bomb': its object labels are"):
        audits.audit(
            "no such model", erasure, suite=suite, detectors=["emoji/object"], out=tmp_path / "a"
        )
    assert not (tmp_path / "a").exists()


def test_a_glance_at_four_pictures_decides_nothing(tmp_path: Path) -> None:
    erasure = erase("emoji", "bomb", check=False)
    report = audits.audit("emoji", erasure, out=tmp_path, size=4, metrics=[], max_keep_loss=0.9)
    assert report.suite.target < 5 and report.exit_code == 1
    assert report.verdict.value == "inconclusive"
    assert "possible; 0 of 35 would rule out more than 10 %" in report.verdict.detail
    assert report.limits == Limits(max_keep_loss=0.9)
    hasty = audits.audit("emoji", erasure, out=tmp_path / "hasty", size=4, steps=2, metrics=[])
    assert hasty.verdict.value not in ("forgotten", "damaged") and hasty.exit_code == 1
