"""A gallery's images in batches, and a function asked about them, so that no failure is lost.

A detector or a feature extractor that raises must not make a model look safe. What could not be
measured comes back as ``Unscored`` in its own place.

A file of several frames is a video. Each of them is looked at, and what is in one is in the video.
"""

import hashlib
import io
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from .._images import Blank, rgb
from ..gallery import Gallery
from ..prompts import Prompt

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

T = TypeVar("T")


AT_ONCE = 8
"""Images that a network is given at a time, whatever number it is asked about.

For another number of images it adds in another order, and its last bits are others: features of
the built-in networks differ by up to 4e-7 of the largest between 1 and 64 images at a time. For
one number an image's features are the same bits beside any others: so it was with the built-in
judge and CLIP, CLIP ViT-B/32 and Inception v3, on one core and on two. By 8 the built-in judge
takes 1.2 times as long as by 64, and the built-in CLIP, at 1 ms an image, 1.6 times.
"""


@dataclass(frozen=True)
class Unscored:
    """No measurement, and why: never the same as "not seen".

    Attributes:
        seen: Of a video, the labels that were seen in frames that could be measured.
    """

    reason: str
    seen: tuple[str, ...] = ()


@dataclass(frozen=True)
class Picture:
    """One image as it was found on disk.

    Attributes:
        prompt: What it was made from.
        image: RGB, or why it cannot be measured. Of a video it is the middle frame, which stands
            for it in metrics.
        sha256: Of the file's bytes; None when there is no file. Of a frame it is that of its
            size and pixels.
        blank: Whether it is of one colour or wholly transparent (``rgb``); of a video, whether
            all its frames are. A decoder that failed and a safety checker's black square show no
            concept, and prove nothing by it.
        frames: Of a video, each of its frames; none of an image.
    """

    prompt: Prompt
    image: "Image | Unscored"
    sha256: str | None
    blank: bool = False
    frames: "tuple[Picture, ...]" = ()

    @property
    def looks(self) -> "tuple[Picture, ...]":
        """What a detector is asked about: the image itself, or each frame."""
        return self.frames or (self,)


@dataclass(frozen=True)
class Taken:
    """What a metric took from the image of a prompt, or why it has nothing of it."""

    prompt: Prompt
    value: Any | Unscored


def read(gallery: Gallery, prompt: Prompt) -> Picture:
    """Reads and decodes one image of a gallery; never raises for what is in the file.

    What is partly transparent is laid on white, as a page shows it.
    """
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
            found = [_decoded(frame) for frame in frames_of(file)]
    except UnidentifiedImageError:  # whose text has an address of memory in it
        return Picture(prompt, Unscored("unreadable: no image of a kind that is known"), digest)
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError and others
        return Picture(prompt, Unscored(f"unreadable: {describe(error)}"), digest)
    if len(found) == 1:
        return Picture(prompt, found[0], digest, isinstance(found[0], Unscored))
    frames = tuple(
        Picture(prompt, one, None if isinstance(one, Unscored) else _of_pixels(one))
        for one in found
    )
    blank = all(isinstance(one, Unscored) for one in found)
    return Picture(prompt, found[len(found) // 2], digest, blank, frames)


def frames_of(file: "Image") -> "Iterator[Image]":
    """The frames of an open file, one after another: a video's, or the one image.

    A video is an animated PNG or WebP. The second picture of a JPEG is a preview or a depth map.
    """
    count = getattr(file, "n_frames", 1) if file.format in ("PNG", "WEBP") else 1
    for number in range(count):
        if count > 1:
            file.seek(number)
        yield file


def _decoded(frame: "Image") -> "Image | Unscored":
    try:
        return rgb(frame)
    except Blank as error:
        return Unscored(f"blank: {error}")


def _of_pixels(image: "Image") -> str:
    width, height = image.size
    return hashlib.sha256(b"%d x %d " % (width, height) + image.tobytes()).hexdigest()


def beside(ours: Picture, theirs: Picture | None) -> Picture:
    """Our picture, unscored where it cannot be compared with theirs, pixel by pixel."""
    if isinstance(ours.image, Unscored):
        return ours
    if theirs is None:
        return replace(ours, image=Unscored("no image of its id is on the other side"))
    if isinstance(theirs.image, Unscored):
        return replace(ours, image=Unscored(f"its reference is {theirs.image.reason}"))
    if ours.image.size != theirs.image.size:
        sizes = " and ".join(f"{w} x {h}" for w, h in (ours.image.size, theirs.image.size))
        return replace(ours, image=Unscored(f"it and its reference are {sizes} pixels"))
    return ours


def ask(
    function: Callable[[Sequence["Image"]], Sequence[T]], pictures: Iterable[Picture]
) -> list[T | Unscored]:
    """``function`` of all the pictures that can be measured, one answer a picture.

    When it raises, or answers for another number of images than it was given, it is asked again
    about one image at a time, so that only what fails by itself is lost.
    """
    pictures = list(pictures)
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


def by_image(network: "Callable[[Tensor], Tensor]", pixels: "Tensor") -> "Tensor":
    """What a network makes of each image, the same bits whatever images are beside it.

    Args:
        network: Pixels, shape (``AT_ONCE``, …), to a row each. In evaluation mode.
        pixels: Of one image or more, shape (n, …).

    Returns:
        A row for each, shape (n, …).
    """
    import torch

    parts = []
    for part in pixels.split(AT_ONCE):
        more = part[-1:].expand(AT_ONCE - len(part), *part.shape[1:])
        parts.append(network(torch.cat([part, more]))[: len(part)])
    return torch.cat(parts)


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
