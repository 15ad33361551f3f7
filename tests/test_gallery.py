"""Galleries: the same images however they are made, and nothing half-written."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unsee._errors import InputError
from unsee._files import write_atomically
from unsee.gallery import Gallery, MadeBy, Used
from unsee.pipelines import generate
from unsee.prompts import Prompt
from unsee.records import Model

PROMPTS = tuple(
    Prompt(id=f"p{i}", prompt=text, seed=i, guidance=2.0 if i == 4 else None)
    for i, text in enumerate(["a bomb", "a dog", "a cat by monet", "van gogh", "a knife", "", "a"])
)


MADE_BY = MadeBy(
    model=Model("tiny", "Pipeline", "float32", {"unet": "0" * 64}, {"class": "DDIMScheduler"}),
    guidance=7.5,
    steps=3,
    batch_size=3,
)


def make(pipe: Any, path: Path, batch_size: int) -> Gallery:
    gallery = Gallery.start(path, replace(MADE_BY, batch_size=batch_size), PROMPTS)
    assert sum(generate(pipe, gallery, batch_size=batch_size, steps=3)) == len(PROMPTS)
    return gallery


def files(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def pixels(gallery: Gallery) -> np.ndarray:
    images = []
    for prompt in gallery:
        with Image.open(gallery.image_path(prompt)) as image:
            images.append(np.asarray(image, float))
    return np.stack(images)


def test_killed_and_resumed_it_ends_with_the_same_bytes(pipe: Any, tmp_path: Path) -> None:
    make(pipe, tmp_path / "whole", 3)
    for stop in (1, 2):
        gallery = Gallery.start(tmp_path / f"cut{stop}", MADE_BY, PROMPTS)
        run: Iterator[int] = generate(pipe, gallery, batch_size=3, steps=3)
        for _ in range(stop):
            next(run)
        # As if killed in the middle of a batch: with half a line, and an image without its line
        lines = (gallery.path / "images.jsonl").read_bytes()
        (gallery.path / "images.jsonl").write_bytes(lines[:-20])
        make(pipe, tmp_path / f"cut{stop}", 3)
        assert files(tmp_path / f"cut{stop}") == files(tmp_path / "whole")
        assert not gallery.remade


# Every operation on a file in turn is the one before which a run is killed.
KILLS = """
import itertools, json, os, pathlib, shutil, sys
from PIL import Image
from unsee.gallery import Gallery
from unsee.prompts import Prompt
from unsee.records import Model
from unsee.store import Store

root = pathlib.Path(sys.argv[1])
prompts = [Prompt(f"p{i}", f"a {i}", i) for i in range(3)]

def make(path):
    store = Store(path / "store")
    for name in ("it", "again"):  # whose images come from the store, but for one at most
        gallery = Gallery.start(path / name, None, prompts)
        for prompt in gallery.unmade():
            if not gallery.take(prompt, store):
                gallery.put(prompt, Image.new("RGB", (4, 4), (prompt.seed, 0, 0)), store=store)
    store.tidy()

def files(path):
    found = {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}
    assert len(found.pop("again/images.jsonl").splitlines()) == 3
    return found

def kill_before(number, path):
    seen = itertools.count()
    def hook(event, arguments):
        about = [os.fsdecode(a) for a in arguments if isinstance(a, (str, bytes, os.PathLike))]
        if any(text.startswith(str(path)) for text in about) and next(seen) == number:
            os._exit(9)
    sys.addaudithook(hook)

make(root / "whole")
for number in itertools.count():
    path = root / f"killed-{number}"
    if (child := os.fork()) == 0:
        kill_before(number, path)
        make(path)
        os._exit(0)
    ended = os.waitpid(child, 0)[1] == 0
    make(path)
    assert files(path) == files(root / "whole"), (number, sorted(files(path)))
    if ended:
        break
print(number)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_killed_before_any_operation_on_a_file_it_goes_on_to_the_same_bytes(
    tmp_path: Path,
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLS, str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 20


def test_an_image_that_was_changed_cut_or_removed_is_named_and_made_again(
    pipe: Any, tmp_path: Path
) -> None:
    whole = make(pipe, tmp_path / "whole", 3)
    gallery = make(pipe, tmp_path / "it", 3)
    swapped, cut, removed = (gallery.image_path(p) for p in PROMPTS[:3])
    swapped.write_bytes(gallery.image_path(PROMPTS[5]).read_bytes())
    cut.write_bytes(cut.read_bytes()[:-10])
    removed.unlink()
    assert gallery.altered() == list(PROMPTS[:3])
    with pytest.warns(UserWarning, match=r"3 images in .* made again: p0, p1, p2\."):
        make(pipe, tmp_path / "it", 3)
    assert gallery.remade == ("p0", "p1", "p2") and not gallery.altered()
    assert all(
        gallery.image_path(p).read_bytes() == whole.image_path(p).read_bytes() for p in PROMPTS
    )
    assert make(pipe, tmp_path / "it", 3).remade == ("p0", "p1", "p2")


def test_the_last_image_that_was_made_is_the_one_that_counts(tmp_path: Path) -> None:
    gallery = Gallery.start(tmp_path, None, PROMPTS[:1])
    first, second = (Image.new("RGB", (4, 4), (red, 0, 0)) for red in (1, 2))
    gallery.put(PROMPTS[0], first)
    old = gallery.image_path(PROMPTS[0]).read_bytes()
    gallery.put(PROMPTS[0], second)
    assert not gallery.unmade() and gallery.remade == ("p0",)
    gallery.image_path(PROMPTS[0]).write_bytes(old)
    assert gallery.unmade() == gallery.altered() == [PROMPTS[0]]


def test_what_was_half_written_is_cleared_and_what_is_not_ours_stays(tmp_path: Path) -> None:
    path = tmp_path / "it"
    (path / "images").mkdir(parents=True)
    for name in (".samples.jsonl.abcd1234", "images/.p0.png.abcd_234"):
        (path / name).write_bytes(b"half")
    Gallery.start(path, None, PROMPTS)
    (path / "images" / ".p0.png.abcd_234").write_bytes(b"half")
    (path / ".hidden").write_text("mine")
    Gallery.start(path, None, PROMPTS)
    assert sorted(files(path)) == [".hidden", "gallery.json", "images.jsonl", "samples.jsonl"]


def test_a_file_that_is_cleared_away_while_it_is_written_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chmod = os.chmod

    def cleared(name: str, mode: int) -> None:
        monkeypatch.setattr(os, "chmod", chmod)
        os.unlink(name)
        chmod(name, mode)

    monkeypatch.setattr(os, "chmod", cleared)
    write_atomically(tmp_path / "it", "whole")
    assert files(tmp_path) == {"it": b"whole"}


def test_what_is_there_is_not_made_again(pipe: Any, tmp_path: Path) -> None:
    gallery = make(pipe, tmp_path, 3)
    times = {p.id: gallery.image_path(p).stat().st_mtime_ns for p in gallery}
    make(pipe, tmp_path, 3)
    assert times == {p.id: gallery.image_path(p).stat().st_mtime_ns for p in gallery}


def test_batches_of_1_and_8_make_the_same_images(pipe: Any, tmp_path: Path) -> None:
    one, eight = (pixels(make(pipe, tmp_path / str(size), size)) for size in (1, 8))
    # One level of 255: matrix products of another shape are summed in another order.
    assert np.abs(one - eight).max() <= 1
    assert (one == eight).mean() > 0.99
    assert np.abs(one[0] - one[1]).max() > 10


def test_a_prompts_own_settings_are_honoured(pipe: Any, tmp_path: Path) -> None:
    own = Prompt(id="own", prompt="a dog", seed=1, guidance=1.5, steps=2, width=24, height=16)
    gallery = Gallery.start(tmp_path, None, [own])
    list(generate(pipe, gallery))
    with Image.open(gallery.image_path(own)) as image:
        assert image.size == (24, 16)


def test_a_gallery_of_something_else_is_refused_by_name(tmp_path: Path) -> None:
    Gallery.start(tmp_path / "it", MADE_BY, PROMPTS)
    model = MADE_BY.model
    assert model is not None
    used = Used("bomb", "uce", {}, "1" * 64, 9)
    weights, scheduler = {"unet": "2" * 64}, {"class": "Other"}
    for other, match in (
        (replace(MADE_BY, steps=4), r"another steps \(wanted 4, found 3\)"),
        (replace(MADE_BY, guidance=None), r"another guidance \(wanted none, found 7.5\)"),
        (replace(MADE_BY, erasures=(used,)), r"erasures \(wanted uce of bomb \(111.*found none"),
        (replace(MADE_BY, versions={"torch": "9"}), r"version of torch \(wanted 9, found none"),
        (
            replace(MADE_BY, model=replace(model, components=weights)),
            "another unet .wanted 2222.*…, found 0000",
        ),
        (
            replace(MADE_BY, model=replace(model, scheduler=scheduler)),
            "scheduler's class .wanted Other, found DDIMScheduler",
        ),
        (replace(MADE_BY, model=replace(model, dtype="float16")), "dtype .wanted float16"),
        (None, "class of the pipeline .wanted none, found Pipeline"),
    ):
        with pytest.raises(InputError, match=match) as error:
            Gallery.start(tmp_path / "it", other, PROMPTS)
        assert "\n" not in str(error.value) and "name another folder" in str(error.value)
    with pytest.raises(InputError, match=r"number of prompts \(wanted 6, found 7\)"):
        Gallery.start(tmp_path / "it", MADE_BY, PROMPTS[1:])
    with pytest.raises(InputError, match=r"seed of prompt p0 \(wanted 9, found 0\)"):
        Gallery.start(tmp_path / "it", MADE_BY, [replace(PROMPTS[0], seed=9), *PROMPTS[1:]])
    with pytest.raises(InputError, match="exists and is no gallery"):
        Gallery.start(tmp_path, None, PROMPTS)
    with pytest.raises(InputError, match="is no gallery: it has no gallery.json"):
        Gallery.open(tmp_path)


def test_labels_are_no_part_of_the_key(tmp_path: Path) -> None:
    first = Gallery.start(tmp_path, MADE_BY, PROMPTS)
    model = MADE_BY.model
    assert model is not None
    other = replace(
        MADE_BY,
        model=replace(model, name="elsewhere/tiny"),
        batch_size=8,
        device="cuda:0",
        suite={"name": "other"},
    )
    assert Gallery.start(tmp_path, other, PROMPTS) == first


def test_a_gallery_of_format_1_is_read_and_not_gone_on_with() -> None:
    path = Path(__file__).parent / "golden" / "base"
    gallery = Gallery.open(path)
    assert gallery.made_by is not None and gallery.made_by.model is not None
    assert gallery.made_by.model.name == "golden" and gallery.made_by.steps == 4
    assert not gallery.missing() and not gallery.remade
    with pytest.raises(InputError, match="another model .an older version made them"):
        Gallery.start(path, MADE_BY, gallery.prompts)


def test_changed_samples_are_refused(tmp_path: Path) -> None:
    Gallery.start(tmp_path, MADE_BY, PROMPTS)
    samples = tmp_path / "samples.jsonl"
    samples.write_text(samples.read_text().replace("a dog", "a cat"))
    with pytest.raises(InputError, match="samples.jsonl has been changed"):
        Gallery.open(tmp_path)


def test_a_prompt_may_hold_any_line_separator(tmp_path: Path) -> None:
    odd = [Prompt("a", "one\u2028two\x85three\n\x0cfour", 0)]
    Gallery.start(tmp_path, None, odd)
    assert list(Gallery.open(tmp_path)) == odd


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")
    with pytest.raises(TypeError):
        write_atomically(path, 3)  # type: ignore[arg-type]
    assert [p.name for p in tmp_path.iterdir()] == ["file"] and path.read_bytes() == b"old"
