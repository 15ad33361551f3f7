"""Planted faults: whatever fails, no rate falls, and the report says so first."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from unsee import audit, erase
from unsee.eval import (
    About,
    Answers,
    Detection,
    Detector,
    Rate,
    Report,
    Unscored,
    compare,
    detect,
    find_detector,
    take,
)
from unsee.eval.detectors import likeliest
from unsee.eval.metrics import FrechetDistance
from unsee.eval.rows import Comparison
from unsee.gallery import Gallery
from unsee.prompts import Concept, Prompt, Suite

BOMB = Concept("bomb", "object")


class Eye:
    """Sees in every image a bomb and a cat, so that every rate should be 1."""

    name, kind, labels = "test/eye", "object", None
    protocol: dict[str, Any] = {}

    def __call__(self, images: Sequence[Image.Image]) -> list[Detection | Unscored]:
        return [self.see(image) for image in images]

    def see(self, image: Image.Image) -> Detection | Unscored:
        return Detection(("bomb", "cat"), {"bomb": 1.0, "cat": 1.0})


class Third(Eye):
    """Raises on every third image, by the sum of its pixels."""

    def see(self, image: Image.Image) -> Detection | Unscored:
        if self.fails(image):
            raise RuntimeError("the kernel died")
        return super().see(image)

    @staticmethod
    def fails(image: Image.Image) -> bool:
        return int(np.asarray(image, np.int64).sum()) % 3 == 0


class Never(Eye):
    """Says no to everything."""

    def see(self, image: Image.Image) -> Detection | Unscored:
        return Detection((), {"bomb": 0.0, "cat": 0.0})


class Linear(Eye):
    """One layer of random weights over all pixels at once, in float32."""

    name = "test/linear"
    weights = torch.randn(16 * 16 * 3, 5, generator=torch.Generator().manual_seed(0))

    def __call__(self, images: Sequence[Image.Image]) -> list[Detection | Unscored]:
        pixels = torch.from_numpy(np.stack([np.asarray(i, np.float32).ravel() for i in images]))
        logits = (pixels - 128) @ self.weights
        return likeliest(["a", "b", "c", "d", "e"], logits.tolist(), 1)


class NotANumber:
    """Features of which none is a number."""

    name, dim = "nan", 2
    protocol: dict[str, Any] = {}

    def __call__(self, images: Sequence[Image.Image]) -> torch.Tensor:
        return torch.full((len(images), self.dim), torch.nan)


def prompts(labels: Sequence[str]) -> tuple[Prompt, ...]:
    return tuple(
        Prompt(f"{i:02d}", f"a {label}, {i}", i, {"object": label})
        for i, label in enumerate(labels)
    )


def gallery(path: Path, rows: Sequence[Prompt], size: int = 16) -> Gallery:
    """Coloured blots, each image its own."""
    made = Gallery.start(path, None, rows)
    for prompt in made:
        rng = np.random.default_rng(prompt.seed)
        small = Image.fromarray(rng.integers(0, 256, (3, 3, 3), np.uint8))
        made.put(prompt, small.resize((size, size)))
    return made


def rate(report: Report, role: str) -> Comparison:
    return next(c for c in report.outcomes[0].comparisons if c.role == role)


def test_a_judge_that_always_says_no_proves_nothing(tmp_path: Path) -> None:
    made = gallery(tmp_path / "g", prompts(["bomb"] * 40 + ["cat"] * 20))
    report = compare(made, made, [BOMB], detectors=[Never()])
    assert rate(report, "target").erased == Rate(0, 40)
    assert report.verdict.value == "not informative" and report.exit_code == 1
    assert "base itself hardly shows it" in report.verdict.detail


def test_features_that_are_no_numbers_are_no_distance(tmp_path: Path) -> None:
    made = gallery(tmp_path / "g", prompts(["bomb"] * 40 + ["cat"] * 20))
    metric = FrechetDistance(NotANumber())
    score = take(metric, made, made)
    assert score.value is None and score.unscored == 120
    assert score.note.startswith("too few images: 0")
    report = compare(made, made, [BOMB], detectors=[Eye()], metrics=[metric])
    assert report.verdict.value == "incomplete" and report.exit_code == 1
    assert any("frechet/nan" in hole for hole in report.holes)


def test_faults_on_the_way_from_a_model_to_its_report_are_said_first(
    tiny_folder: Path, tmp_path: Path
) -> None:
    suite = Suite("planted", prompts(["bomb"] * 12 + ["cat"] * 6))
    erasure = erase(tiny_folder, "bomb", check=False)
    settings: dict[str, Any] = {"suite": suite, "metrics": [], "steps": 1, "out": tmp_path}
    report = audit(tiny_folder, erasure, detectors=[Third()], **settings)
    made = Gallery.open(tmp_path / "erased")
    lost = [Third.fails(Image.open(made.image_path(p))) for p in made]
    bombs = sum(lost[:12])
    assert 0 < bombs < 12
    assert rate(report, "target").erased == Rate(12 - bombs, 12 - bombs, bombs)
    assert report.coverage["erased"].unscored == {"test/eye": sum(lost)}
    assert report.verdict.value == "incomplete" and report.exit_code == 1
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.index("This report has holes") < page.index("<table")

    cut = made.image_path(made.prompts[0])
    cut.write_bytes(cut.read_bytes()[:-30])
    made.image_path(made.prompts[12]).write_bytes(b"")
    with pytest.warns(UserWarning, match="2 images in .* made again: 00, 12"):
        report = audit(tiny_folder, erasure, detectors=[Eye()], **settings)
    assert rate(report, "target").erased == Rate(12, 12, 0)
    assert rate(report, "same kind").erased == Rate(6, 6, 0)
    assert any("2 of 18 erased images were changed" in warning for warning in report.warnings)


def against_itself(
    path: Path, detector: Detector, sizes: Sequence[int], count: int, side: int
) -> None:
    """Every fourth row asks for what the detector does not see in it: a miss of the base's."""
    unlabelled = gallery(path / "unlabelled", prompts([""] * count), side)
    said = []
    for row in detect(unlabelled, [detector], batch_size=count):
        answer = row.found[detector.name]
        assert isinstance(answer, Detection)
        said.append(answer.labels[0])
    target = max(set(said), key=said.count)
    other = next(label for label in sorted(set(said)) if label != target)
    missed = [i % 4 == 0 for i in range(count)]
    wanted = [
        (other if s == target else target) if miss else s
        for s, miss in zip(said, missed, strict=True)
    ]
    base, erased = (gallery(path / name, prompts(wanted), side) for name in ("base", "erased"))
    misses = sum(miss for w, miss in zip(wanted, missed, strict=True) if w == target)
    n = wanted.count(target)
    assert 0 < misses < n
    for size in sizes:
        report = compare(base, erased, [Concept(target, detector.kind)], detectors=[detector],
                         about=About(versions={}), batch_size=size)  # fmt: skip
        found = rate(report, "target")
        unlearned = 1 - (found.erased.value or 0)
        assert unlearned == 1 - (found.base.value or 0) == pytest.approx(misses / n), size
        assert found.erased == Rate(n - misses, n) and found.paired.p_value == 1
        for comparison in report.outcomes[0].comparisons:
            assert comparison.base == comparison.erased, size
            assert comparison.paired.difference == 0, size
        assert report.verdict.value != "forgotten" and report.exit_code == 1


def test_an_unerased_model_forgot_what_it_never_showed_at_every_batch_size(
    tmp_path: Path,
) -> None:
    against_itself(tmp_path, Linear(), range(1, 65), 65, 16)


def test_an_unerased_model_forgot_what_it_never_showed_by_the_judge(tmp_path: Path) -> None:
    against_itself(tmp_path, find_detector("emoji/object"), (1, 7, 64), 24, 64)


def test_what_failed_can_be_measured_later(tmp_path: Path) -> None:
    made = gallery(tmp_path / "g", prompts(["bomb"] * 12))
    kept = Answers(tmp_path / "answers.jsonl")
    first = detect(made, [Third()], answers=kept)
    failed = [isinstance(row.found["test/eye"], Unscored) for row in first]
    assert any(failed) and not all(failed)
    assert Unscored("RuntimeError: the kernel died") in [row.found["test/eye"] for row in first]

    asked: list[int] = []

    class Mended(Eye):
        def __call__(self, images: Sequence[Image.Image]) -> list[Detection | Unscored]:
            asked.append(len(images))
            return super().__call__(images)

    whole = detect(made, [Mended()], answers=Answers(tmp_path / "answers.jsonl"))
    assert sum(asked) == sum(failed)
    assert not any(isinstance(row.found["test/eye"], Unscored) for row in whole)
