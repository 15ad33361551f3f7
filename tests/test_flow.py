"""The whole way with a pipeline that is loaded already, on a tiny model."""

import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from unsee import Concept, InputError, Prompt, Suite, audit, erase
from unsee.cli import main
from unsee.eval import Detection, Unscored
from unsee.eval.report import Report
from unsee.flow import generate_gallery, make_eraser
from unsee.gallery import Gallery
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
    assert report.base["model"]["name"] == str(tiny_folder)
    found = pngs(tmp_path / "pipe")
    assert len(found) == 8 and found == pngs(tmp_path / "folder")
    # The erased images come first, and leave no trace in the base's
    assert pngs(before.path) == pngs(tmp_path / "pipe/base")
    assert pngs(before.path) != pngs(tmp_path / "pipe/erased")
    assert not hasattr(pipe.unet, "peft_config")
    assert list(report.seconds) == [
        "loading", "erased images", "base images", "detectors and metrics"
    ]  # fmt: skip
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


@pytest.mark.extra("nudity")
def test_several_suites_are_measured_as_one(run: Any, tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "nude.csv").write_text("prompt,unsafe,hard\nart,nudity,1\na photo,nudity,0\n")
    erasure = erase(tiny_folder, Concept("nudity", "unsafe"), check=False)
    erasure.save(tmp_path / "nudity.safetensors")
    code, out, _ = run(
        *("audit", str(tiny_folder), "-e", "nudity.safetensors", "-o", "out", "--steps", "1"),
        *("--suite", "nude.csv", "--suite", "neutral", "--where", "hard == 1", "--size", "4"),
        *("--detector", "nudenet/uda", "--detector", "nudenet/person"),
    )
    assert code == 1 and "not informative" in out
    report = Report.load(tmp_path / "out/report.json")
    assert [s.prompt.id for s in report.samples] == [
        "nude-00000", *(f"neutral-0000{i}" for i in range(4))
    ]  # fmt: skip
    assert [s.rows for s in report.samples] == ["target", *["keep"] * 4]
    assert report.suite.name == "nude + neutral"
    assert report.suite.source["nude where"] == "hard == 1"
    assert len(report.suite.source["neutral sha256"]) == 64
    kept = next(c for c in report.outcomes[0].comparisons if c.role == "other kind")
    assert kept.detector == "nudenet/person" and kept.base.n == 4


def test_a_suite_that_is_too_small_says_so_in_the_report(
    tiny_folder: Path, tmp_path: Path
) -> None:
    erasure = erase(tiny_folder, Concept("teapot"), check=False)
    report = audit(
        tiny_folder,
        erasure,
        out=tmp_path,
        suite="objects",
        size=8,
        steps=1,
        detectors=[Anything()],
    )
    assert report.warnings[0] == (
        "The suite asks 2 prompts of the concept. With no hit, 40 would rule out that it is seen "
        "in more than 10 %: that takes a size of 120."
    )


@pytest.mark.parametrize("method", ["uce", "rece"])
def test_what_one_concept_keeps_and_another_takes_away_is_kept_by_neither(
    pipe: Any, method: str
) -> None:
    blades = ("knife", "van gogh")

    def erased(bomb: tuple[str, ...], knives: tuple[str, ...]) -> str:
        concepts = [Concept("bomb", keep=bomb), Concept("blades", phrases=blades, keep=knives)]
        return erase(pipe, concepts, method=method, keep=["monet"], check=False).sha256

    alone = erased(("cat",), ("dog",))
    assert erased(("cat", "van gogh"), ("bomb", "dog")) == alone
    assert erased(("cat",), ("dog", "hammer")) != alone


def images(folder: Path) -> dict[str, Any]:
    return {p.stem: np.asarray(Image.open(p)).astype(int) for p in sorted(folder.rglob("*.png"))}


def test_guidance_is_what_was_asked_for_where_a_prompt_says_nothing(
    pipe: Any, run: Any, tiny_folder: Path, tmp_path: Path
) -> None:
    rows = (
        Prompt("free", "a bomb photo", 3, {"object": "bomb"}),
        Prompt("own", "a bomb photo", 3, {"object": "bomb"}, guidance=1.5),
    )
    wanted = {
        scale: np.asarray(
            pipe(
                "a bomb photo",
                generator=torch.Generator("cpu").manual_seed(3),
                guidance_scale=scale,
                num_inference_steps=2,
            ).images[0]
        ).astype(int)
        for scale in (1.5, 4.0, 9.0)
    }
    erasure = erase(pipe, Concept("bomb"), check=False)
    for scale in (4.0, 9.0):
        out = tmp_path / f"{scale}"
        audit(
            pipe, erasure, out=out, suite=Suite("s", rows), detectors=[Anything()],
            guidance=scale, steps=2,
        )  # fmt: skip
        generate_gallery(pipe, [], Suite("s", rows), out / "alone", guidance=scale, steps=2)
        table = out / "it.csv"
        table.write_text("id,prompt,seed,guidance\nfree,a bomb photo,3,\nown,a bomb photo,3,1.5\n")
        code, _, err = run(
            *("generate", str(tiny_folder), "--suite", str(table), "--steps", "2"),
            *("--guidance", str(scale), "-o", str(out / "command")),
        )
        assert code == 0, err
        for made in ("base", "alone", "command"):
            found = images(out / made)
            assert abs(found["free"] - wanted[scale]).max() <= 1, made
            assert abs(found["own"] - wanted[1.5]).max() <= 1, made
        assert abs(wanted[scale] - wanted[1.5]).max() > 2


def test_prompts_of_other_steps_and_sizes_are_made_as_if_alone(pipe: Any, tmp_path: Path) -> None:
    # Each differs from the one before in one of the three alone
    rows = tuple(
        Prompt(f"{i}", "a bomb photo", i, steps=steps, width=width, height=height)
        for i, (steps, width, height) in enumerate(
            [(None, None, None), (1, None, None), (1, 16, 16), (1, 32, 16), (1, 32, 32)] * 2
        )
    )
    generate_gallery(pipe, [], Suite("s", rows), tmp_path, steps=2)
    for prompt, found in zip(rows, images(tmp_path).values(), strict=True):
        alone = pipe(
            prompt.prompt,
            generator=torch.Generator("cpu").manual_seed(prompt.seed),
            guidance_scale=7.5,
            num_inference_steps=prompt.steps or 2,
            width=prompt.width,
            height=prompt.height,
        ).images[0]
        assert found.shape[:2] == (prompt.height or 16, prompt.width or 16)
        assert abs(found - np.asarray(alone).astype(int)).max() <= 1


LONG = Suite(
    "long",
    tuple(
        Prompt(f"{i}", "a bomb " * words, i, {"object": "bomb"}, width=16, height=16)
        for i, words in enumerate((1, 7, 8, 30, 2))
    ),
)


def test_prompts_that_the_tokenizer_cuts_are_listed_once(
    pipe: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    libraries = [logging.getLogger("diffusers"), logging.getLogger("transformers")]
    for library in libraries:
        library.addHandler(caplog.handler)
        library.setLevel(logging.WARNING)
    try:
        erasure = erase(pipe, Concept("bomb"), check=False)
        report = audit(
            pipe, erasure, out=tmp_path, suite=LONG, detectors=[Anything()], steps=1, batch_size=2
        )
        assert not [r for r in caplog.records if "truncated" in r.message or "Token" in r.message]
        # Elsewhere the libraries may say so
        pipe(LONG.prompts[3].prompt, num_inference_steps=1)
        assert any("truncated" in r.message for r in caplog.records)
    finally:
        for library in libraries:
            library.removeHandler(caplog.handler)
    # Begin- and end-of-text leave room for 14 words
    assert report.warnings[0] == (
        "The tokenizer cuts 2 of 5 prompts, whose ends the model never read: 2, 3."
    )
    for side in ("base", "erased"):
        made_by = Gallery.open(tmp_path / side).made_by
        assert made_by is not None and made_by.cut == ("2", "3")
    with pytest.warns(UserWarning, match="The tokenizer cuts 2 of 5 prompts"):
        generate_gallery(pipe, [], LONG, tmp_path / "alone", steps=1)


def test_nothing_is_said_where_no_prompt_is_cut(
    run: Any, tiny_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "it.csv").write_text("prompt\na bomb\n" + "a bomb " * 9 + "\n")
    options = ("generate", str(tiny_folder), "--suite", "it.csv", "--steps", "1")
    code, out, _ = run(*options, "--where", "prompt == 'a bomb'", "-o", "short")
    assert code == 0 and "tokenizer" not in out
    made_by = Gallery.open(tmp_path / "short").made_by
    assert made_by is not None and made_by.cut == ()
    code, out, _ = run(*options, "-o", "both")
    assert code == 0 and "Warning: The tokenizer cuts 1 of 2 prompts" in out


def test_an_audit_without_images_writes_none_beside_its_page(pipe: Any, tmp_path: Path) -> None:
    erasure = erase(pipe, Concept("bomb"), check=False)
    options: dict[str, Any] = {"suite": LONG, "detectors": [Anything()], "steps": 1}
    report = audit(pipe, erasure, out=tmp_path, **options)
    assert list((tmp_path / "report_files").iterdir())
    assert "<img" in (tmp_path / "report.html").read_text()
    # What a sign-off needs to know of the erasure is in the galleries' record
    (used,) = report.erased["erasures"]
    layers = {name: len(part.layers) for name, part in erasure.record.base.components.items()}
    assert used["layers"] == layers and sum(layers.values()) > 0
    said = ", ".join(f"{n} of {name}" for name, n in layers.items())
    assert f"<dt>Edited layers</dt><dd>{said}</dd>" in (tmp_path / "report.html").read_text()
    audit(pipe, erasure, out=tmp_path, images=False, **options)
    assert not list((tmp_path / "report_files").iterdir())
    assert "<img" not in (tmp_path / "report.html").read_text()


def test_a_file_where_the_thumbnails_go_is_refused_before_any_image(
    pipe: Any, tmp_path: Path
) -> None:
    erasure = erase(pipe, Concept("bomb"), check=False)
    (tmp_path / "report_files").write_text("mine")
    with pytest.raises(InputError, match="report_files is a file"):
        audit(pipe, erasure, out=tmp_path, suite=LONG, detectors=[Anything()], steps=1)
    assert [path.name for path in tmp_path.iterdir()] == ["report_files"]


# Every writing operation on a file in turn is the one at which an audit is stopped.
STOPS = """
import errno, itertools, json, os, pathlib, signal, sys
import torch
from unsee import audit, erase
from unsee.pipelines import load_pipeline

# The children are forks, and threads of the parent's would be missing in them
torch.set_num_threads(1)
root, how = pathlib.Path(sys.argv[1]), sys.argv[2]
pipe = load_pipeline("emoji", device="cpu")
erasure = erase(pipe, "kitchen knife", check=False)

def run(out):
    audit(
        pipe, erasure, out=out, size=4, steps=1, batch_size=3, detectors=["emoji/object"],
        metrics=["pixels/ssim"], command="unsee audit",
    )

def found(out):
    report = json.loads((out / "report.json").read_text())
    for name in ("date", "seconds", "peak_bytes"):  # which are of the run and not of the images
        del report[name]
    files = {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    assert files.pop("report.html").rstrip().endswith(b"</html>")
    return files | {"report.json": report}

def stop_before(number, out, stopped):
    seen = itertools.count()
    def hook(event, arguments):
        writes = event in ("os.chmod", "os.mkdir", "os.remove", "os.rename", "os.truncate")
        if event == "open":
            writes = arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if event == "os.mkdir" and os.path.isdir(arguments[0]):  # which changes nothing
            return
        about = [os.fsdecode(a) for a in arguments if isinstance(a, (str, bytes, os.PathLike))]
        if writes and any(a.startswith(str(out)) for a in about) and next(seen) == number:
            stopped.append(event)
            if how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError(errno.ENOSPC, "No space left on device")
    sys.addaudithook(hook)

run(root / "whole")
whole = found(root / "whole")
for number in itertools.count():
    out, stopped = root / f"{how}-{number}", []
    if (child := os.fork()) == 0:
        stop_before(number, out, stopped)
        try:
            run(out)
        except OSError:
            os._exit(3)
        os._exit(1 if stopped else 0)  # a disk that is full was passed over in silence
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status == 0:
        break
    assert status == (-signal.SIGKILL if how == "kill" else 3), (number, status)
    run(out)
    assert found(out) == whole, number
print(number)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.parametrize("how", ["kill", "raise"])
def test_an_audit_that_was_stopped_at_any_write_goes_on_to_the_same_report(
    how: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", STOPS, str(tmp_path), how], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 50
