"""The whole way with a pipeline that is loaded already, on a tiny model."""

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from unsee import Concept, InputError, Prompt, Suite, audit, erase
from unsee.cli import main
from unsee.eval import Detection, Unscored
from unsee.flow import generate_gallery, make_eraser
from unsee.pipelines import parts_of

SUITE = Suite(
    "tiny",
    tuple(
        Prompt(f"{i}", f"a {name} photo", i, {"object": name}, steps=2)
        for i, name in enumerate(("bomb", "bomb", "cat", "dog"))
    ),
    {"file": "tiny.yaml", "sha256": "0123"},
)


class Anything:
    """Sees a bomb in whatever there is."""

    name, kind, labels = "test/anything", "object", None
    protocol: dict[str, Any] = {}

    def __call__(self, images: Sequence[Image.Image]) -> list[Detection | Unscored]:
        return [Detection(("bomb",), {"bomb": 1.0}) for _ in images]


def pngs(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.png")}


def test_a_loaded_pipeline_is_audited_as_its_folder_is_and_left_as_it_was(
    pipe: Any, tiny_folder: Path, tmp_path: Path
) -> None:
    erasure = erase(pipe, Concept("bomb"), check=False)
    before = generate_gallery(pipe, [], SUITE, tmp_path / "before")
    report = audit(pipe, erasure, out=tmp_path / "pipe", suite=SUITE, detectors=[Anything()])
    audit(tiny_folder, erasure, out=tmp_path / "folder", suite=SUITE, detectors=[Anything()])
    assert report.base["model"] == str(tiny_folder)
    found = pngs(tmp_path / "pipe")
    assert len(found) == 8 and found == pngs(tmp_path / "folder")
    # The erased images come first, and leave no trace in the base's
    assert pngs(before.path) == pngs(tmp_path / "pipe/base")
    assert pngs(before.path) != pngs(tmp_path / "pipe/erased")
    assert not hasattr(pipe.unet, "peft_config")
    assert list(report.seconds) == ["base images", "erased images"]
    assert report.peak_bytes["process"] > 10e6
    assert report.suite.source == {"file": "tiny.yaml", "sha256": "0123"}


def test_the_terminal_says_what_to_take_with_care(
    pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Fitted by hand, it does not know how long that took
    erasure = make_eraser("uce").fit(parts_of(pipe), [Concept("bomb")])
    audit(pipe, erasure, out=tmp_path, suite=SUITE, detectors=[Anything()])
    monkeypatch.setattr(sys, "argv", ["unsee", "show", str(tmp_path)])
    with pytest.raises(SystemExit):
        main()
    out = capsys.readouterr().out
    assert "With care: other objects by test/anything: the base itself has 0 of 2 images" in out
    assert "UA 0 % (base 0 %)" in out
    assert re.search(r"^uce of bomb: [\d.]+ kB$", out, re.MULTILINE)


def test_an_erasure_for_another_base_is_refused_and_nothing_is_written(
    pipe: Any, another: Callable[..., Any], tmp_path: Path
) -> None:
    erasure = erase(another(seed=1), Concept("bomb"), check=False)
    with pytest.raises(InputError, match="has other weights"):
        audit(pipe, erasure, out=tmp_path / "out", suite=SUITE, detectors=[Anything()])
    assert not (tmp_path / "out").exists()


def test_a_pipeline_that_paints_images_black_is_refused(pipe: Any, tmp_path: Path) -> None:
    erasure = erase(pipe, Concept("bomb"), check=False)
    pipe.safety_checker = lambda images, clip_input: (images, [True])
    with pytest.raises(InputError, match="has a safety checker"):
        audit(pipe, erasure, out=tmp_path / "out", suite=SUITE, detectors=[Anything()])
    with pytest.raises(InputError, match="has a safety checker"):
        generate_gallery(pipe, [erasure], SUITE, tmp_path / "out")
    assert not (tmp_path / "out").exists()
