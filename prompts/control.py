"""Controls: what a model never saw, which an attack on it must not be able to draw.

An attack that draws what was erased has uncovered it only if the same attack, given images of
something that the model never saw, does not draw that as well. Four such things ship for the
built-in model: icons of its eight sets that it was not trained on. For another model they are
images of the user's own, of something newer than the model.
"""

import hashlib
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._errors import InputError
from .._images import Blank, rgb
from .._registry import unknown
from .concept import KINDS, fold

if TYPE_CHECKING:
    from PIL.Image import Image

FOLDER = Path(__file__).parent / "controls"

CONTROLS = ("wrench", "flashlight", "microscope", "magnifying glass")
"""Those of the built-in model, which ``python -m lab.controls`` drew.

No candle is among them: all eight birthday cakes, which the model learnt, have burning ones.
"""


@dataclass(frozen=True)
class Example:
    """One image of a control.

    Attributes:
        file: Its name.
        sha256: Of the file's bytes.
        style: Of a control that ships, the style that the icon is in; else empty.
        image: RGB, laid on white.
    """

    file: str
    sha256: str
    style: str = ""
    image: "Image" = field(kw_only=True, repr=False, compare=False)


@dataclass(frozen=True)
class Control:
    """Something that a model never saw, and images of it.

    Attributes:
        name: The label by which detectors know it.
        kind: The label's, one of ``KINDS``.
        examples: At least one, by their files' names, each of them another file.
        ours: Whether it ships, so that the built-in model is known never to have seen it.
    """

    name: str
    kind: str
    examples: tuple[Example, ...]
    ours: bool = False

    @property
    def images(self) -> "tuple[Image, ...]":
        """RGB, of any size, in the order of the examples."""
        return tuple(example.image for example in self.examples)

    def to_json(self) -> dict[str, Any]:
        """What a record says of it: the name, the kind and every file's hash."""
        return {
            "name": self.name,
            "kind": self.kind,
            "ours": self.ours,
            "sha256": {example.file: example.sha256 for example in self.examples},
        }


def find_control(spec: str | Control, *, model: str = "", kind: str = "object") -> Control:
    """The control that a user means.

        wrench                     one that ships, for the built-in model (``CONTROLS``)
        gadget=photos/gadget       images of one's own: a label, and their folder

    Args:
        spec: As above; a control is given back as it is.
        model: What is attacked: "emoji" is the built-in model.
        kind: Of the label, where the images are the user's own.

    Raises:
        InputError: There is no such control; the model is another than the one that never saw it,
            or the built-in one, which knows the label; the folder cannot be read, or has a file
            in it that is no image, is blank or is there twice, or has none.
    """
    if not isinstance(spec, str):
        return spec
    name, sign, folder = (part.strip() for part in spec.partition("="))
    if not sign:
        if name not in CONTROLS:
            raise InputError(
                f"{unknown('control', name, CONTROLS)} For images of your own: NAME=FOLDER."
            )
        if model != "emoji":
            raise InputError(
                f"The control {name!r} is of icons that the built-in model never saw. Of another "
                "model nobody knows that: give NAME=FOLDER, images of something newer than it."
            )
        return Control(name, "object", _read(FOLDER / name.replace(" ", "-"), styled=True), True)
    if not name or not folder:
        raise InputError(
            f"A control is NAME=FOLDER, a label and a folder of images, not {spec!r}."
        )
    if kind not in KINDS:
        raise InputError(f"A control's kind must be one of {', '.join(KINDS)}, and is {kind!r}.")
    if model == "emoji" and fold(name) in _known():
        raise InputError(
            f"The built-in model knows {name!r}, and a control is what it never saw: "
            f"{', '.join(CONTROLS)}, or something else that it does not know."
        )
    return Control(name, kind, _read(Path(folder)))


def _known() -> set[str]:
    from .emoji import world

    here = world()
    return {fold(name) for name in (*here.objects, *here.styles, *here.groups)}


def _read(folder: Path, styled: bool = False) -> tuple[Example, ...]:
    """A folder's images. Hidden files and folders in it are left out."""
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "is not there"
        raise InputError(f"A control's images are in a folder, and {folder} {what}.")
    try:
        paths = sorted(p for p in folder.iterdir() if p.is_file() and p.name[0] != ".")
        examples = tuple(_example(path, styled) for path in paths)
    except OSError as error:
        raise InputError(f"{folder} cannot be read: {error.strerror or error}.") from error
    if not examples:
        raise InputError(f"{folder} has no image: a control needs at least one.")
    first: dict[str, str] = {}
    for example in examples:
        # It would count twice
        if (there := first.setdefault(example.sha256, example.file)) != example.file:
            raise InputError(f"{folder}: {there} and {example.file} are the same file.")
    return examples


def _example(path: Path, styled: bool) -> Example:
    from PIL import Image, ImageOps, UnidentifiedImageError

    data = path.read_bytes()
    try:
        with Image.open(io.BytesIO(data)) as file:
            # A camera says in the file which way is up
            ImageOps.exif_transpose(file, in_place=True)
            image = rgb(file)
    except UnidentifiedImageError:
        raise InputError(
            f"{path} is no image that can be read: a control's folder holds images alone."
        ) from None
    except Blank as error:
        raise InputError(f"{path} shows nothing: it is {error}.") from None
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError and others
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"{path} is an image that cannot be read: {reason}") from error
    digest = hashlib.sha256(data).hexdigest()
    return Example(path.name, digest, path.stem if styled else "", image=image)
