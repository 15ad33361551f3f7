"""The store: what one run has made, no other makes again; what is not as it was, is no hit."""

import functools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from unsee import audit, erase, generate_gallery
from unsee.gallery import Gallery
from unsee.pipelines import load_pipeline
from unsee.prompts import Prompt, Suite

SUITE = Suite(
    "six", tuple(Prompt(f"p{i}", "a cat by monet", i, {"object": "cat"}) for i in range(6))
)
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each call of a pipeline draws."""
    from diffusers import StableDiffusionPipeline

    calls: list[int] = []
    call = StableDiffusionPipeline.__call__

    @functools.wraps(call)
    def counted(pipe: Any, prompt: list[str], **more: Any) -> Any:
        calls.append(len(prompt))
        return call(pipe, prompt=prompt, **more)

    monkeypatch.setattr(StableDiffusionPipeline, "__call__", counted)
    return calls


def make(model: Any, out: Path, erasures: Any = (), **settings: Any) -> Gallery:
    return generate_gallery(model, erasures, SUITE, out, steps=2, batch_size=4, **settings)


def data(gallery: Gallery) -> list[bytes]:
    return [gallery.image_path(p).read_bytes() for p in gallery]


def test_what_was_made_in_one_folder_is_not_made_in_another(
    tiny_folder: Path, tmp_path: Path, drawn: list[int]
) -> None:
    first = make(tiny_folder, tmp_path / "a")
    assert drawn == [4, 2]
    second = make(tiny_folder, tmp_path / "b")
    assert drawn == [4, 2]
    assert data(first) == data(second) and not second.unmade()
    # and takes no room
    assert os.path.samefile(
        first.image_path(SUITE.prompts[0]), second.image_path(SUITE.prompts[0])
    )


@pytest.mark.parametrize("other", ["steps", "guidance", "erasure", "weight", "dtype", "model"])
def test_all_that_an_image_depends_on_is_in_its_key(
    other: str, tiny_folder: Path, another: Any, tmp_path: Path, drawn: list[int]
) -> None:
    erasure = erase(tiny_folder, "cat", method="uce", anchor="dog", kind="object", check=False)
    make(tiny_folder, tmp_path / "a", erasure if other == "weight" else ())
    drawn.clear()
    if other == "steps":
        generate_gallery(tiny_folder, (), SUITE, tmp_path / "b", steps=3)
    elif other == "guidance":
        make(tiny_folder, tmp_path / "b", guidance=2)
    elif other == "erasure":
        make(tiny_folder, tmp_path / "b", erasure)
    elif other == "weight":
        make(tiny_folder, tmp_path / "b", [(erasure, 0.5)])
    elif other == "dtype":
        from unsee.pipelines.loading import Loading

        make(tiny_folder, tmp_path / "b", loading=Loading(dtype="bfloat16"))
    else:
        another(1).save_pretrained(tmp_path / "other")
        make(tmp_path / "other", tmp_path / "b")
    assert sum(drawn) == 6


def test_a_name_a_label_and_a_place_are_no_part_of_the_key(
    tiny_folder: Path, tmp_path: Path, drawn: list[int]
) -> None:
    make(tiny_folder, tmp_path / "a")
    drawn.clear()
    os.symlink(tiny_folder, tmp_path / "elsewhere")
    suite = Suite("named", tuple(Prompt(f"q{i}", "a cat by monet", i) for i in range(6)))
    generate_gallery(tmp_path / "elsewhere", (), suite, tmp_path / "b", steps=2, batch_size=4)
    assert drawn == []


def test_the_base_is_made_once_for_several_erasures(
    tiny_folder: Path, tmp_path: Path, drawn: list[int]
) -> None:
    for name in ("cat", "dog"):
        erasure = erase(tiny_folder, name, anchor="knife", kind="object", check=False)
        labels = {"object": name}
        suite = Suite("it", tuple(Prompt(f"p{i}", f"a {name}", i, labels) for i in range(4)))
        other = Suite("keep", tuple(Prompt(f"k{i}", "a bomb", i) for i in range(4)))
        audit(
            tiny_folder, erasure, out=tmp_path / name, suite=[suite, other], steps=1,
            detectors=["emoji/object"], metrics=["pixels/ssim"],
        )  # fmt: skip
        assert sum(drawn) == (16 if name == "cat" else 12)
        drawn.clear()


@pytest.mark.parametrize("fault", ["changed", "cut", "removed", "page", "no page"])
def test_what_is_not_as_it_was_in_the_store_is_made_again(
    fault: str, tiny_folder: Path, tmp_path: Path, store: Path, drawn: list[int]
) -> None:
    first = data(make(tiny_folder, tmp_path / "a"))
    drawn.clear()
    page = sorted((store / "images").glob("*/*.json"))[0]
    image = page.with_suffix(".png")
    whole = image.read_bytes()
    image.unlink()
    if fault == "changed":
        image.write_bytes(whole[:-1] + b"!")
    elif fault == "cut":
        image.write_bytes(whole[:50])
    elif fault != "removed":
        image.write_bytes(whole)
        page.write_text("{}") if fault == "page" else page.unlink()
    assert data(make(tiny_folder, tmp_path / "b")) == first
    assert len(drawn) == 1  # its batch, and no other
    drawn.clear()
    make(tiny_folder, tmp_path / "c")
    assert drawn == []


def test_a_changed_image_of_a_run_is_no_other_runs(
    tiny_folder: Path, tmp_path: Path, drawn: list[int]
) -> None:
    first = make(tiny_folder, tmp_path / "a")
    whole = data(first)
    first.image_path(SUITE.prompts[0]).write_bytes(whole[1])
    drawn.clear()
    assert data(make(tiny_folder, tmp_path / "b")) == whole
    assert drawn == [1]


def test_a_pipeline_that_was_given_shares_nothing(
    tiny_folder: Path, tmp_path: Path, drawn: list[int], store: Path
) -> None:
    make(load_pipeline(tiny_folder, device="cpu"), tmp_path / "a")
    make(tiny_folder, tmp_path / "b")
    assert sum(drawn) == 12
    make(load_pipeline(tiny_folder, device="cpu"), tmp_path / "c")
    assert sum(drawn) == 18


def test_the_store_can_be_off_and_is_done_without_where_it_cannot_be_written(
    run: Run, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drawn: list[int]
) -> None:
    words = ("generate", str(tiny_folder), "-p", "a cat", "--images", "2", "--steps", "1")
    monkeypatch.setenv("UNSEE_STORE", "off")
    assert run(*words, "-o", "a")[0] == 0 and run(*words, "-o", "b")[0] == 0
    assert sum(drawn) == 4
    code, _, err = run("runs")
    assert code == 2 and "UNSEE_STORE is off" in err

    monkeypatch.setenv("UNSEE_STORE", str(tmp_path / "file"))
    (tmp_path / "file").write_text("")
    code, _, err = run(*words, "-o", "c")
    assert code == 2 and "no folder" in err and not (tmp_path / "c").exists()

    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "images").write_text("in the way")
    monkeypatch.setenv("UNSEE_STORE", str(tmp_path / "half"))
    code, out, err = run(*words, "-o", "d")
    assert code == 0 and (out + err).count("cannot be written to") == 1
    assert len(list((tmp_path / "d" / "images").iterdir())) == 2


def test_runs_are_listed_and_what_nobody_has_can_go(
    run: Run, tiny_folder: Path, tmp_path: Path, store: Path
) -> None:
    words = ("generate", str(tiny_folder), "--steps", "1")
    run(*words, "-p", "a cat", "--images", "2", "-o", "a")
    run(*words, "-p", "a cat", "--images", "3", "-o", "b")
    code, out, _ = run("runs")
    assert code == 0 and "holds 3 images" in out and "no run has 0" in out
    assert len(re.findall("images +[23] ", out)) == 2
    shutil.rmtree(tmp_path / "b")
    code, out, _ = run("runs")
    assert "gone" in out and "no run has 1" in out and "unsee runs --prune" in out
    code, out, _ = run("runs", "--prune")
    assert code == 0 and "Removed 1 image from it, and 1 from the list." in out
    assert len(list(store.glob("images/*/*.png"))) == 2
    code, out, _ = run("runs")
    assert "gone" not in out and "holds 2 images" in out
    # What a run has still is there still
    run(*words, "-p", "a cat", "--images", "2", "-o", "c")
    assert len(list(store.glob("images/*/*.png"))) == 2


TWO = """
import functools, sys
from pathlib import Path
from diffusers import StableDiffusionPipeline
from unsee import generate_gallery
from unsee.prompts import Prompt, Suite

call, drawn = StableDiffusionPipeline.__call__, []
@functools.wraps(call)
def counted(pipe, prompt, **more):
    drawn.append(len(prompt))
    return call(pipe, prompt=prompt, **more)
StableDiffusionPipeline.__call__ = counted
suite = Suite("many", tuple(Prompt(f"p{i:02}", "a cat by monet", i) for i in range(36)))
print("ready", flush=True)
sys.stdin.readline()
gallery = generate_gallery(sys.argv[1], (), suite, sys.argv[2], steps=25, batch_size=3)
assert not gallery.unmade() and not gallery.remade
print(sum(drawn))
"""


def test_two_processes_on_one_folder_share_the_work(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNSEE_STORE", "off")

    def both(out: Path, count: int) -> list[int]:
        some = [
            subprocess.Popen(
                [sys.executable, "-c", TWO, str(tiny_folder), str(out)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )
            for _ in range(count)
        ]  # fmt: skip
        for one in some:
            assert one.stdout is not None and one.stdout.readline() == "ready\n"
        return [int(one.communicate("go\n")[0]) for one in _begun(some)]

    (alone,) = both(tmp_path / "one", 1)
    shared = both(tmp_path / "two", 2)
    assert alone == sum(shared) == 36 and min(shared) > 0
    for image in (tmp_path / "one" / "images").iterdir():
        assert image.read_bytes() == (tmp_path / "two" / "images" / image.name).read_bytes()


def _begun(some: list[Any]) -> list[Any]:
    for one in some:
        one.stdin.write("go\n")
        one.stdin.flush()
    return some


def test_a_batch_that_memory_has_no_room_for_is_made_in_halves(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers import UNet2DConditionModel

    forward, most = UNet2DConditionModel.forward, 4

    def small(unet: Any, sample: Any, *more: Any, **named: Any) -> Any:
        if len(sample) > most:  # two rows an image
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(unet, sample, *more, **named)

    monkeypatch.setattr(UNet2DConditionModel, "forward", small)
    with pytest.warns(UserWarning, match="too small for 4 images at a time: they are made 2"):
        gallery = make(tiny_folder, tmp_path / "a")
    lines = [json.loads(line) for line in (gallery.path / "images.jsonl").read_text().splitlines()]
    assert len(lines) == 6 and {line["batch_size"] for line in lines} == {2}
    most = 1
    with pytest.warns(UserWarning, match="too small"), pytest.raises(torch.OutOfMemoryError):
        make(tiny_folder, tmp_path / "b", guidance=3)


def test_a_detector_of_ours_is_asked_once_about_an_image_in_all_runs(
    tiny_folder: Path, tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    from unsee.eval.detectors import find_detector

    judge = type(find_detector("emoji/object"))
    asked: list[int] = []
    call = judge.__call__

    def counted(detector: Any, images: Any) -> Any:
        asked.append(len(images))
        return call(detector, images)

    monkeypatch.setattr(judge, "__call__", counted)
    erasure = erase(tiny_folder, "cat", anchor="knife", kind="object", check=False)
    settings: dict[str, Any] = {
        "suite": Suite(
            "it", tuple(Prompt(f"p{i}", "a cat", i, {"object": "cat"}) for i in range(3))
        ),
        "steps": 1,
        "detectors": ["emoji/object"],
        "metrics": ["pixels/ssim"],
    }
    first = audit(tiny_folder, erasure, out=tmp_path / "a", **settings)
    assert sum(asked) == 6
    second = audit(tiny_folder, erasure, out=tmp_path / "b", **settings)
    assert sum(asked) == 6 and second.samples == first.samples
    # Each run holds all of its own answers
    for side in ("base", "erased"):
        one, other = (tmp_path / f"{run}/{side}/answers.jsonl" for run in "ab")
        assert one.read_bytes() == other.read_bytes()
    # What does not follow, or is no answer, is as if it were not there
    for place in store.glob("answers/*/*.jsonl"):
        place.write_text(place.read_text().replace('"labels": [', '"labels": ["no such", ') + "?")
    third = audit(tiny_folder, erasure, out=tmp_path / "c", **settings)
    assert sum(asked) == 12 and third.samples == first.samples
    shutil.rmtree(tmp_path / "b")
    for name in ("a", "c"):
        shutil.rmtree(tmp_path / name)
    assert run("runs", "--prune")[0] == 0
    assert not list(store.glob("answers/*/*.jsonl"))


def test_a_detector_of_somebody_elses_is_asked_in_every_run(
    tiny_folder: Path, tmp_path: Path
) -> None:
    from unsee.eval.detectors import Detection, Unscored

    class Mine:
        """Of which a new version says no more than the old one."""

        name, kind, labels = "mine", "object", None
        protocol: dict[str, Any] = {}

        def __init__(self, label: str) -> None:
            self.label = label

        def __call__(self, images: Any) -> list[Detection | Unscored]:
            return [Detection((self.label,), {self.label: 1.0}) for _ in images]

    erasure = erase(tiny_folder, "cat", anchor="knife", kind="object", check=False)
    rows = tuple(Prompt(f"p{i}", "a cat", i, {"object": "cat"}) for i in range(2))
    for label, rate in (("cat", 1.0), ("dog", 0.0)):
        report = audit(
            tiny_folder, erasure, out=tmp_path / label, suite=Suite("it", rows), steps=1,
            detectors=[Mine(label)],
        )  # fmt: skip
        (target,) = (c for c in report.outcomes[0].comparisons if c.role == "target")
        assert target.base.value == rate
