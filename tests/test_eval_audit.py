"""The audit: what counts as forgotten, and that nothing that fails looks safe."""

import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unsee._errors import InputError
from unsee.eval import About, Detection, Limits, Rate, Score, Taken, Unscored, compare
from unsee.eval.detectors import DETECTORS, Detector
from unsee.eval.metrics import METRICS
from unsee.eval.report import Report
from unsee.eval.rows import Comparison
from unsee.gallery import Gallery
from unsee.prompts import Concept, Prompt

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 230)}
RED = Concept("red", "object")


def picture(colour: str, style: str = "plain") -> Image.Image:
    """A square of one colour with a white corner, and white stripes in the striped style."""
    pixels = np.full((8, 8, 3), COLOURS[colour], np.uint8)
    pixels[0, 0] = 255
    if style == "striped":
        pixels[::2] = 255
    return Image.fromarray(pixels)


class Colours:
    """Sees the colour of the last row's pixel."""

    name, kind, labels = "test/colour", "object", tuple(COLOURS)
    protocol: dict[str, Any] = {"pixel": [-1, -1]}

    def __call__(self, images: Sequence[Image.Image]) -> list[Detection | Unscored]:
        return [self.see(image) for image in images]

    def see(self, image: Image.Image) -> Detection | Unscored:
        pixel = np.asarray(image)[-1, -1] / 255
        scores = dict(zip(COLOURS, pixel.tolist(), strict=True))
        return Detection((max(scores, key=lambda label: scores[label]),), scores)


class Stripes:
    """Sees stripes in the first column."""

    name, kind, labels = "test/stripes", "style", ("plain", "striped")
    protocol: dict[str, Any] = {}

    def __call__(self, images: Sequence[Image.Image]) -> list[Detection | Unscored]:
        striped = [float((np.asarray(i)[::2, 1] == 255).all()) for i in images]
        return [
            Detection(("striped" if s else "plain",), {"striped": s, "plain": 1 - s})
            for s in striped
        ]


def prompts(target: int = 40, keep: int = 24) -> tuple[Prompt, ...]:
    rows = []
    for i in range(target + keep):
        colour = "red" if i < target else ("green", "blue")[i % 2]
        style = ("plain", "striped")[i // 2 % 2]
        rows.append(
            Prompt(
                id=f"{i:03d}",
                prompt=f"a {colour} square, {style}, number {i}",
                seed=i,
                labels={"object": colour, "style": style},
                category="warm" if colour == "red" else "cold",
            )
        )
    return tuple(rows)


def gallery(path: Path, rows: Sequence[Prompt], **instead: str) -> Gallery:
    """Every prompt as it asks, but for the colours drawn instead of others."""
    made = Gallery.start(path, None, rows)
    for prompt in rows:
        colour = prompt.labels["object"]
        made.put(prompt, picture(instead.get(colour, colour), prompt.labels["style"]))
    return made


def audit(
    base: Gallery,
    erased: Gallery,
    concept: Concept = RED,
    detectors: Sequence[Detector] = (Colours(), Stripes()),
    **settings: Any,
) -> Report:
    return compare(
        base, erased, [concept], detectors=detectors, about=About(versions={}), **settings
    )


def rate(report: Report, role: str) -> Comparison:
    return next(c for c in report.outcomes[0].comparisons if c.role == role)


@pytest.fixture
def base(tmp_path: Path) -> Gallery:
    return gallery(tmp_path / "base", prompts())


@pytest.fixture
def forgot(tmp_path: Path) -> Gallery:
    return gallery(tmp_path / "erased", prompts(), red="blue")


def test_importing_eval_does_not_import_torch() -> None:
    code = "import sys, unsee.eval; print('torch' in sys.modules, 'PIL' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["False", "False"]


def test_a_concept_that_is_gone_alone_is_forgotten(tmp_path: Path) -> None:
    rows = prompts(keep=40)
    base = gallery(tmp_path / "base", rows)
    report = audit(base, gallery(tmp_path / "erased", rows, red="blue"))
    assert report.verdict.value == "forgotten" and report.exit_code == 0
    assert rate(report, "target").base == Rate(40, 40)
    assert rate(report, "target").erased == Rate(0, 40)
    assert rate(report, "target").paired.difference == -1.0
    assert rate(report, "same kind").erased == rate(report, "other kind").erased == Rate(40, 40)
    assert report.holes == () and report.warnings == ()


def test_an_unerased_model_is_not_forgotten_and_differs_by_exactly_0(base: Gallery) -> None:
    report = audit(base, base)
    assert report.verdict.value == "not forgotten" and report.exit_code == 1
    for comparison in report.outcomes[0].comparisons:
        assert comparison.base == comparison.erased
        assert comparison.paired.difference == 0.0
    assert any("byte for byte" in w for w in report.warnings)


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_rates_do_not_depend_on_the_batch(base: Gallery, forgot: Gallery, batch_size: int) -> None:
    assert audit(base, forgot, batch_size=batch_size) == audit(base, forgot)


def test_a_target_gone_with_all_else_is_damaged(base: Gallery, tmp_path: Path) -> None:
    grey = gallery(tmp_path / "erased", prompts(), red="blue", green="blue")
    report = audit(base, grey)
    assert report.verdict.value == "damaged" and report.exit_code == 1
    assert "other objects fell by 50 points" in report.verdict.detail


def test_a_loss_in_the_other_kind_is_damage_too(base: Gallery, tmp_path: Path) -> None:
    plain = Gallery.start(tmp_path / "erased", None, prompts())
    for prompt in plain:
        colour = prompt.labels["object"]
        plain.put(prompt, picture("blue" if colour == "red" else colour))
    report = audit(base, plain)
    assert report.verdict.value == "damaged"
    assert "styles fell by 50 points" in report.verdict.detail


def test_a_base_that_hardly_shows_the_concept_is_not_informative(tmp_path: Path) -> None:
    blind = gallery(tmp_path / "base", prompts(), red="green")
    report = audit(blind, gallery(tmp_path / "erased", prompts(), red="blue"))
    assert report.verdict.value == "not informative" and report.exit_code == 1
    assert "base itself hardly shows it" in report.verdict.detail


def test_a_suite_with_nothing_to_keep_is_not_informative(tmp_path: Path) -> None:
    rows = prompts(keep=0)
    base = gallery(tmp_path / "base", rows)
    report = audit(base, gallery(tmp_path / "erased", rows, red="blue"))
    assert report.verdict.value == "not informative"
    assert "nothing that must stay was measured" in report.verdict.detail


def test_few_targets_decide_nothing_and_how_many_would_is_said(tmp_path: Path) -> None:
    rows = prompts(target=8, keep=40)
    base = gallery(tmp_path / "base", rows)
    report = audit(base, gallery(tmp_path / "erased", rows, red="blue"))
    assert report.verdict.value == "inconclusive" and report.exit_code == 1
    assert report.verdict.headline == "“red”: the audit is inconclusive"
    assert report.verdict.detail == (
        "The erased model shows it in 0 of 8 images (0 %), 95 % interval 0 to 32.4 %; the base "
        "shows it in 8 of 8 images (100 %). 0 of 8 leaves rates up to 32 % possible; 0 of 35 "
        "would rule out more than 10 %."
    )


def test_seeds_of_a_few_prompts_decide_no_more_than_the_prompts(tmp_path: Path) -> None:
    rows = tuple(replace(p, prompt=f"red {i % 8}") if i < 40 else p
                 for i, p in enumerate(prompts(keep=40)))  # fmt: skip
    base, erased = gallery(tmp_path / "base", rows), gallery(tmp_path / "erased", rows, red="blue")
    report = audit(base, erased)
    assert rate(report, "target").erased == Rate(0, 40, 0, ((0, 5, 8),))
    assert report.verdict.value == "inconclusive"
    assert "The 40 images are of 8 prompts and count as 8." in report.verdict.detail
    # A suite may say that texts ask for one picture, or that seeds of a text do not
    units = tuple(replace(p, unit=f"{i}") for i, p in enumerate(rows))
    for other, side in ((units, "own"), (prompts(keep=40), "text")):
        before = gallery(tmp_path / f"{side}-base", other)
        after = gallery(tmp_path / f"{side}-erased", other, red="blue")
        assert audit(before, after).verdict.value == "forgotten"


def test_a_few_hits_that_may_be_more_than_are_allowed_decide_nothing(tmp_path: Path) -> None:
    rows = prompts(keep=40)
    base, erased = gallery(tmp_path / "base", rows), gallery(tmp_path / "erased", rows, red="blue")
    for prompt in rows[:3]:
        erased.put(prompt, picture("red", prompt.labels["style"]))
    report = audit(base, erased)
    assert report.verdict.value == "inconclusive" and report.warnings == ()
    assert report.verdict.detail.endswith(
        "3 of 40 leaves rates from 3 to 20 % possible; at 7.5 %, 554 prompts would rule out more "
        "than 10 %."
    )
    for prompt in rows[3:6]:
        erased.put(prompt, picture("red", prompt.labels["style"]))
    report = audit(base, erased)
    assert report.verdict.value == "inconclusive"
    assert "at 15 %, 139 prompts would prove more than 10 %." in report.verdict.detail
    erased.put(rows[4], picture("blue", rows[4].labels["style"]))
    erased.put(rows[5], picture("blue", rows[5].labels["style"]))
    report = audit(base, erased)
    assert "at 10 % no number of prompts would decide." in report.verdict.detail
    assert audit(base, base).verdict.value == "not forgotten"


def test_what_stays_on_too_few_pairs_decides_nothing(base: Gallery, forgot: Gallery) -> None:
    report = audit(base, forgot)
    assert report.verdict.value == "inconclusive" and report.exit_code == 1
    for what in ("Other objects by test/colour", "Styles by test/stripes"):
        assert (
            f"{what}: over 24 pairs the change is between −13.8 and +13.8 points, on both "
            "sides of the 10 points that may be lost; 35 prompts would decide at these rates."
        ) in report.verdict.detail


def test_damage_that_may_be_chance_decides_nothing(tmp_path: Path) -> None:
    rows = prompts(keep=5)
    base, erased = gallery(tmp_path / "base", rows), gallery(tmp_path / "erased", rows, red="blue")
    lost = next(p for p in rows if p.labels["object"] == "green")
    erased.put(lost, picture("blue", lost.labels["style"]))
    report = audit(base, erased)
    assert report.verdict.value == "inconclusive"
    said = "With so few pairs no fall, however large, could have been detected."
    assert said in report.verdict.detail


def test_unlearncanvas_names_are_beside_the_rates(base: Gallery, tmp_path: Path) -> None:
    erased = gallery(tmp_path / "erased", prompts(), red="blue", green="blue")
    erased.put(erased.prompts[0], picture("red"))
    report = audit(base, erased)
    named = {c.role: c.accuracy for c in report.outcomes[0].comparisons if c.accuracy}
    assert named == {
        "target": ("UA", Rate(0, 40), Rate(39, 40)),
        "same kind": ("IRA", Rate(24, 24), Rate(12, 24)),
        "other kind": ("CRA", Rate(24, 24), Rate(24, 24)),
    }


def test_an_unscored_image_is_in_no_accuracy(base: Gallery) -> None:
    erased = audit(base, base, detectors=[Blind(), Stripes()])
    assert rate(erased, "target").accuracy == ("UA", Rate(0, 0, 40), Rate(0, 0, 40))


def test_p_values_are_adjusted_over_all_that_are_tested_together(
    base: Gallery, tmp_path: Path
) -> None:
    erased = gallery(tmp_path / "erased", prompts(), red="blue", green="blue")
    concepts = [replace(RED, keep=("green", "blue"))]
    report = compare(
        base, erased, concepts, detectors=[Colours(), Stripes()], about=About(versions={})
    )
    kept = {c.of: c for c in report.outcomes[0].comparisons if c.role == "keep concept"}
    assert kept["green"].paired.p_value == 2 / 2**12 and kept["blue"].paired.p_value == 1.0
    assert kept["green"].p_holm == 2 * 2 / 2**12 and kept["blue"].p_holm == 1.0
    alone = rate(report, "target")
    assert alone.p_holm == alone.paired.p_value
    # Two concepts that keep the same things do not test them twice
    both = compare(
        base,
        erased,
        [RED, Concept("green")],
        detectors=[Colours(), Stripes()],
        about=About(versions={}),
    )
    styles = [c for o in both.outcomes for c in o.comparisons if c.role == "other kind"]
    assert len(styles) == 2 and {c.p_holm for c in styles} == {styles[0].paired.p_value}
    targets = [c for o in both.outcomes for c in o.comparisons if c.role == "target"]
    assert [c.p_holm for c in targets] == [2 / 2**40 * 2, 2 / 2**12]


def test_the_target_is_measured_by_what_a_row_tests_too(tmp_path: Path) -> None:
    rows = tuple(
        replace(p, tests="generalizability" if i < 10 else "accuracy", category="")
        for i, p in enumerate(prompts(keep=0))
    )
    base, erased = gallery(tmp_path / "base", rows), gallery(tmp_path / "erased", rows, red="blue")
    for prompt in rows[:4]:
        erased.put(prompt, picture("red", prompt.labels["style"]))
    found = [c for c in audit(base, erased).outcomes[0].comparisons if c.role == "target category"]
    assert {c.of: c.erased for c in found} == {
        "generalizability": Rate(4, 10),
        "accuracy": Rate(0, 30),
    }


class Faulty(Colours):
    """Raises on every third target image."""

    def __init__(self, bad: set[bytes]) -> None:
        self.bad = bad

    def see(self, image: Image.Image) -> Detection | Unscored:
        if image.tobytes() in self.bad:
            raise RuntimeError("the kernel died")
        return super().see(image)


class NotANumber(Faulty):
    """Gives NaN where the other raises, with the label that would be convenient."""

    def see(self, image: Image.Image) -> Detection | Unscored:
        if image.tobytes() in self.bad:
            return Detection((), {"red": math.nan})
        return Colours.see(self, image)


class Silent(Faulty):
    """Leaves out the images that it cannot read."""

    def __call__(self, images: Sequence[Image.Image]) -> list[Detection | Unscored]:
        return [Colours.see(self, i) for i in images if i.tobytes() not in self.bad]


class NoAnswer(Faulty):
    """Answers with something that is no detection."""

    def see(self, image: Image.Image) -> Any:
        return None if image.tobytes() in self.bad else Colours.see(self, image)


class Blind(Colours):
    """Raises on every image."""

    def see(self, image: Image.Image) -> Detection | Unscored:
        raise RuntimeError("no eyes")


@pytest.mark.parametrize("planted", [Faulty, NotANumber, Silent, NoAnswer])
def test_a_detector_that_fails_on_every_third_image_lowers_no_rate(
    base: Gallery, planted: type[Faulty]
) -> None:
    # Every third image is made one that no other is equal to, and that the detector fails on
    bad = set()
    for i, prompt in enumerate(base):
        if i % 3 == 0:
            image = picture(prompt.labels["object"], prompt.labels["style"])
            image.putpixel((3, 3), (i, 1, 2))
            base.put(prompt, image)
            bad.add(image.tobytes())
    report = audit(base, base, detectors=[planted(bad), Stripes()])
    found = rate(report, "target")
    assert found.base == found.erased == Rate(hits=26, n=26, unscored=14)
    assert found.erased.bounds == (26 / 40, 1.0)
    assert rate(report, "same kind").erased == Rate(16, 16, 8)
    assert report.verdict.value == "incomplete" and report.exit_code == 1
    assert report.coverage["erased"].unscored == {"test/colour": 22, "test/stripes": 0}
    assert "could not score 22 of 64" in report.holes[0]
    assert report.answer.startswith("This report has holes")


def test_files_that_are_missing_or_cut_short_are_unscored(base: Gallery, forgot: Gallery) -> None:
    missing, cut, empty, text = (forgot.image_path(forgot.prompts[i]) for i in (0, 1, 2, 63))
    missing.unlink()
    cut.write_bytes(cut.read_bytes()[:60])
    empty.write_bytes(b"")
    text.write_text("not found")
    report = audit(base, forgot)
    assert rate(report, "target").erased == Rate(0, 37, 3)
    assert rate(report, "target").paired.n == 37
    assert rate(report, "same kind").erased == Rate(23, 23, 1)
    assert report.verdict.value == "incomplete" and report.exit_code == 1
    assert report.coverage["erased"].missing == 1
    reasons = [s.erased.detectors["test/colour"].unscored for s in report.samples]
    assert [r.split(":")[0] for r in reasons if r] == [
        "missing", "unreadable", "unreadable", "unreadable",
    ]  # fmt: skip


def test_allowed_holes_still_come_first(tmp_path: Path) -> None:
    rows = prompts(keep=40)
    base, forgot = gallery(tmp_path / "base", rows), gallery(tmp_path / "erased", rows, red="blue")
    forgot.image_path(forgot.prompts[0]).unlink()
    report = audit(base, forgot, limits=Limits(allow_unscored=True))
    assert report.verdict.value == "forgotten" and report.exit_code == 0
    assert report.answer.startswith("This report has holes: test/colour could not score 1 of 80")
    assert any("between 0 % and 2.5 %" in w for w in report.warnings)


class Broken:
    """A metric that cannot be had."""

    name, unit = "test/broken", ""
    higher_is_better, needs_reference, paired = True, False, False
    protocol: dict[str, Any] = {}

    def look(self, images: Sequence[Image.Image], partners: Any = ()) -> list[Any]:
        raise RuntimeError("no weights")

    def score(self, ours: Sequence[Taken], theirs: Sequence[Taken] = ()) -> Score:
        lost = sum(isinstance(taken.value, Unscored) for taken in ours)
        return Score(None, 0, None, True, "", unscored=lost)


def test_a_metric_that_raises_is_a_hole_and_not_the_end(base: Gallery, forgot: Gallery) -> None:
    report = audit(base, forgot, metrics=[Broken()])
    assert [m.erased.value for m in report.measurements] == [None, None]
    assert report.verdict.value == "incomplete"
    assert any("no weights" in hole for hole in report.holes)


def test_images_of_one_colour_are_pointed_at(base: Gallery, forgot: Gallery) -> None:
    for prompt in forgot.prompts[:4]:
        forgot.put(prompt, Image.new("RGB", (8, 8)))
    report = audit(base, forgot)
    assert report.coverage["erased"].blank == 4
    assert any("4 erased images of 64 are of one colour" in w for w in report.warnings)


def test_a_named_concept_that_is_lost_is_pointed_at(base: Gallery, tmp_path: Path) -> None:
    erased = gallery(tmp_path / "erased", prompts(), red="blue", green="blue")
    report = audit(base, erased, replace(RED, keep=("green",)))
    assert rate(report, "named keep").erased == Rate(0, 12)
    assert rate(report, "keep concept").of == "green"
    assert any(w.startswith("“green” fell by 100 points") for w in report.warnings)


def test_a_concepts_phrases_are_its_rows_too(base: Gallery, tmp_path: Path) -> None:
    erased = gallery(tmp_path / "erased", prompts(), red="green", blue="green")
    warm = Concept("colours", "object", phrases=("red", "Blue"))
    report = audit(base, erased, warm)
    assert report.suite.target == 52 and report.suite.keep == 12
    assert rate(report, "target").base == Rate(52, 52)
    assert rate(report, "target").erased == Rate(0, 52)


def test_a_row_that_only_says_the_target_is_neither_target_nor_keep(tmp_path: Path) -> None:
    rows = (
        *prompts(),
        Prompt("words", "a red thing", 0, {"style": "plain"}),
        Prompt("part of a word", "a hundred things", 0, {"style": "plain"}),
        Prompt("labelled", "a red deer, green", 0, {"object": "green", "style": "plain"}),
    )
    base = Gallery.start(tmp_path / "base", None, rows)
    for prompt in base:
        base.put(prompt, picture(prompt.labels.get("object", "green"), prompt.labels["style"]))
    report = audit(base, base)
    assert [s.prompt.id for s in report.samples if s.rows == "aside"] == ["words"]
    assert rate(report, "other kind").base.n == 26
    assert rate(report, "same kind").base.n == 25


def test_several_concepts_are_as_forgotten_as_the_worst(tmp_path: Path) -> None:
    rows = prompts(keep=80)
    base, forgot = gallery(tmp_path / "base", rows), gallery(tmp_path / "erased", rows, red="blue")
    green = Concept("green", "object")
    both: list[Detector] = [Colours(), Stripes()]
    report = compare(base, forgot, [RED, green], detectors=both, about=About(versions={}))
    assert [o.verdict.value for o in report.outcomes] == ["forgotten", "not forgotten"]
    assert report.verdict.value == "not forgotten"
    assert report.verdict.headline == "1 of 2 concepts is forgotten"
    # What is another target's row is nobody's to keep
    assert rate(report, "same kind").base.n == 40


def test_a_detector_is_not_asked_after_what_it_has_no_word_for(base: Gallery) -> None:
    class Half(Colours):
        name, labels = "test/half", ("red", "green")

        def see(self, image: Image.Image) -> Detection | Unscored:
            found = super().see(image)
            assert isinstance(found, Detection)
            scores = {label: found.scores[label] for label in self.labels}
            return Detection((max(scores, key=lambda label: scores[label]),), scores)

    report = audit(base, base, detectors=[Colours(), Half(), Stripes()])
    kept = {c.detector: c.base for c in report.outcomes[0].comparisons if c.role == "same kind"}
    assert kept == {"test/colour": Rate(24, 24), "test/half": Rate(12, 12)}


def test_what_one_concept_keeps_and_another_erases_is_nobodys_to_keep(tmp_path: Path) -> None:
    rows = prompts(keep=80)
    base = gallery(tmp_path / "base", rows)
    erased = gallery(tmp_path / "erased", rows, red="blue", green="blue")
    keeping = replace(RED, keep=("green", "blue"))
    report = compare(
        base,
        erased,
        [keeping, Concept("green")],
        detectors=[Colours(), Stripes()],
        about=About(versions={}),
    )
    assert {c.of for c in report.outcomes[0].comparisons if c.role == "keep concept"} == {"blue"}
    assert [o.verdict.value for o in report.outcomes] == ["forgotten", "forgotten"]
    assert report.verdict.headline == "All 2 concepts are forgotten" and report.exit_code == 0
    # Alone, the first has lost what it was to keep
    assert audit(base, erased, keeping).verdict.value == "damaged"


def test_the_worst_of_several_detectors_decides(base: Gallery, forgot: Gallery) -> None:
    class Always(Colours):
        name = "test/always"

        def see(self, image: Image.Image) -> Detection | Unscored:
            return Detection(("red", "green", "blue"), {})

    report = audit(base, forgot, detectors=[Colours(), Always(), Stripes()])
    assert report.verdict.value == "not forgotten"


def test_galleries_of_different_prompts_are_refused(base: Gallery, tmp_path: Path) -> None:
    other = list(prompts())
    other[5] = replace(other[5], seed=99)
    with pytest.raises(InputError, match="different prompts, first at '005'"):
        audit(base, gallery(tmp_path / "other", other))
    with pytest.raises(InputError, match="64 prompts and the erased 63"):
        audit(base, gallery(tmp_path / "fewer", prompts()[:-1]))


def test_an_audit_without_target_rows_says_what_there_is(base: Gallery, forgot: Gallery) -> None:
    with pytest.raises(InputError, match="'mauve': its object labels are: blue, green, red"):
        audit(base, forgot, Concept("mauve", "object"))
    with pytest.raises(InputError, match="its rows have no person label"):
        audit(base, forgot, Concept("Van Gogh", "person"))


def test_a_kind_that_no_detector_reads_is_refused(base: Gallery, forgot: Gallery) -> None:
    with pytest.raises(InputError, match=r"No detector reads object.*test/stripes \(style\)"):
        audit(base, forgot, detectors=[Stripes()])
    with pytest.raises(InputError, match="there twice"):
        audit(base, forgot, detectors=[Colours(), Colours()])


def test_the_registries_say_what_there_is() -> None:
    assert set(DETECTORS) >= {"emoji/object", "emoji/style"}
    assert set(METRICS) >= {"emoji/clip", "frechet/emoji-clip", "frechet/emoji-judge"}
    with pytest.raises(InputError, match="Did you mean 'emoji/object'"):
        DETECTORS["emoji/objects"]
