"""A gallery's images in batches, and a function asked about them, so that no failure is lost.

A detector or a feature extractor that raises must not make a model look safe. What could not be
measured comes back as ``Unscored`` in its own place.
"""

import hashlib
import io
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from ..gallery import Gallery
from ..prompts import Prompt

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")


@dataclass(frozen=True)
class Unscored:
    """No measurement, and why: never the same as "not seen"."""

    reason: str


@dataclass(frozen=True)
class Picture:
    """One image as it was found on disk.

    Attributes:
        prompt: What it was made from.
        image: RGB, or why there is none.
        sha256: Of the file's bytes; None when there is no file.
        blank: Whether all its pixels are the same: a decoder that failed or a safety checker's
            black square shows no concept either.
    """

    prompt: Prompt
    image: "Image | Unscored"
    sha256: str | None
    blank: bool = False


def read(gallery: Gallery, prompt: Prompt) -> Picture:
    """Reads and decodes one image of a gallery; never raises for what is in the file."""
    from PIL import Image, UnidentifiedImageError

    path = gallery.image_path(prompt)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return Picture(prompt, Unscored("missing: the gallery has no such image"), None)
    except OSError as error:
        return Picture(prompt, Unscored(f"unreadable: {describe(error)}"), None)
    digest = hashlib.sha256(data).hexdigest()
    try:
        with Image.open(io.BytesIO(data)) as file:
            image = file.convert("RGB")
    except UnidentifiedImageError:  # whose text has an address of memory in it
        return Picture(prompt, Unscored("unreadable: no image of a kind that is known"), digest)
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError and others
        return Picture(prompt, Unscored(f"unreadable: {describe(error)}"), digest)
    flat = all(low == high for low, high in _extrema(image))
    return Picture(prompt, image, digest, flat)


def batches(gallery: Gallery, size: int) -> Iterator[list[Picture]]:
    """The gallery's images, decoded, ``size`` at a time."""
    if size < 1:
        raise ValueError(f"A batch of {size} holds nothing.")
    for start in range(0, len(gallery), size):
        yield [read(gallery, prompt) for prompt in gallery.prompts[start : start + size]]


def ask(
    function: Callable[[Sequence["Image"]], Sequence[T]], pictures: Sequence[Picture]
) -> list[T | Unscored]:
    """``function`` of all the pictures that can be read, one answer a picture.

    When it raises, or answers for another number of images than it was given, it is asked again
    about one image at a time, so that only what fails by itself is lost.
    """
    images = [p.image for p in pictures if not isinstance(p.image, Unscored)]
    answers = iter(_ask(function, images))
    return [p.image if isinstance(p.image, Unscored) else next(answers) for p in pictures]


class Last(Generic[T]):
    """A function of images that remembers its last answer.

    Detectors that share a network are asked about the same images in turn: it then runs once.
    """

    def __init__(self, function: Callable[[Sequence["Image"]], T]) -> None:
        self._function = function
        self._last: tuple[list[Image], T] | None = None

    def __call__(self, images: Sequence["Image"]) -> T:
        if self._last is not None:
            known, answer = self._last
            if len(known) == len(images) and all(map(operator.is_, known, images)):
                return answer
        answer = self._function(images)
        self._last = list(images), answer
        return answer


def describe(error: Exception) -> str:
    """An exception in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _ask(
    function: Callable[[Sequence["Image"]], Sequence[T]], images: Sequence["Image"]
) -> list[T | Unscored]:
    if not images:
        return []
    try:
        answers: list[T | Unscored] = list(function(images))
    except Exception as error:
        why = describe(error)
    else:
        if len(answers) == len(images):
            return answers
        why = f"gave {len(answers)} answers for {len(images)} images"
    if len(images) == 1:
        return [Unscored(why)]
    return [answer for image in images for answer in _ask(function, [image])]


def _extrema(image: "Image") -> list[tuple[int, int]]:
    return [(int(low), int(high)) for low, high in image.getextrema()]  # type: ignore[misc]
