"""Galleries: the same images however they are made, and nothing half-written."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unsee._errors import InputError
from unsee.gallery import Gallery, write_atomically
from unsee.pipelines import generate
from unsee.prompts import Prompt

PROMPTS = tuple(
    Prompt(id=f"p{i}", prompt=text, seed=i, guidance=2.0 if i == 4 else None)
    for i, text in enumerate(["a bomb", "a dog", "a cat by monet", "van gogh", "a knife", "", "a"])
)


def make(pipe: Any, path: Path, batch_size: int) -> Gallery:
    gallery = Gallery.start(path, {"batch_size": batch_size}, PROMPTS)
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
        gallery = Gallery.start(tmp_path / f"cut{stop}", {"batch_size": 3}, PROMPTS)
        run: Iterator[int] = generate(pipe, gallery, batch_size=3, steps=3)
        for _ in range(stop):
            next(run)
        gallery.image_path(PROMPTS[0]).unlink()  # as if killed in the middle of a batch
        assert gallery.missing()
        make(pipe, tmp_path / f"cut{stop}", 3)
        assert files(tmp_path / f"cut{stop}") == files(tmp_path / "whole")


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
    gallery = Gallery.start(tmp_path, {}, [own])
    list(generate(pipe, gallery))
    with Image.open(gallery.image_path(own)) as image:
        assert image.size == (24, 16)


def test_a_gallery_of_something_else_is_refused(pipe: Any, tmp_path: Path) -> None:
    make(pipe, tmp_path / "it", 3)
    with pytest.raises(InputError, match="gallery of other model or settings"):
        Gallery.start(tmp_path / "it", {"batch_size": 4}, PROMPTS)
    with pytest.raises(InputError, match="gallery of other prompts"):
        Gallery.start(tmp_path / "it", {"batch_size": 3}, PROMPTS[1:])
    with pytest.raises(InputError, match="exists and is no gallery"):
        Gallery.start(tmp_path, {}, PROMPTS)
    with pytest.raises(InputError, match="is no gallery: it has no gallery.json"):
        Gallery.open(tmp_path)


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")
    with pytest.raises(TypeError):
        write_atomically(path, 3)  # type: ignore[arg-type]
    assert [p.name for p in tmp_path.iterdir()] == ["file"] and path.read_bytes() == b"old"
