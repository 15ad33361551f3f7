"""What an image that is read from a file must be before anything is made of it."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

LEVELS, LOSSY_LEVELS = 2, 12
"""An image is blank if none of its channels ranges over more levels, of 0 to 255, than this.

The second is for JPEG and WebP. JPEG at qualities from 30 to 95 keeps one colour one colour, and
spreads an image within two levels over at most 11 (WebP, from 75 on, over at most 12). A line 15
levels off its paper and a photograph at a twentieth of its light range over 16 or more in JPEG,
and over 12 or more in PNG.
"""


class Blank(ValueError):
    """The image is of one colour (``LEVELS``) or wholly transparent."""


def rgb(file: "Image") -> "Image":
    """An open file's image, RGB; what is partly transparent is laid on white, as a page shows it.

    Raises:
        Blank: It shows nothing.
    """
    from PIL import Image

    levels = LOSSY_LEVELS if file.format in ("JPEG", "MPO", "WEBP") else LEVELS
    if not file.has_transparency_data:
        image = file.convert("RGB")
    else:
        clear = file.convert("RGBA")
        if clear.getchannel("A").getextrema() == (0, 0):
            raise Blank("wholly transparent")
        image = Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear)
        image = image.convert("RGB")
    extrema = [(int(low), int(high)) for low, high in image.getextrema()]  # type: ignore[misc]
    if max(high - low for low, high in extrema) <= levels:
        raise Blank("of one colour")
    return image
