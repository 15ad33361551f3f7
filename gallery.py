"""A gallery: a folder of images, and how each was made.

    gallery.json     what made the images: model, erasures, settings, versions
    samples.jsonl    one line an image: its prompt, seed, settings and labels
    images/ID.png

The two text files are written before the first image. An image that is not there has not been
made: nothing else records progress, so an interrupted gallery goes on by making what is missing.
"""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._errors import InputError
from .prompts import Prompt

if TYPE_CHECKING:
    from PIL.Image import Image


def write_atomically(path: Path, data: bytes | str) -> None:
    """Writes a whole file or nothing: beside it first, then renamed over it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@dataclass(frozen=True)
class Gallery:
    """Images on disk with the prompts that they were made from."""

    path: Path
    made_by: Mapping[str, Any]
    prompts: tuple[Prompt, ...]

    @classmethod
    def start(cls, path: Path, made_by: Mapping[str, Any], prompts: Sequence[Prompt]) -> "Gallery":
        """Opens the gallery at ``path``, making it if there is none.

        Raises:
            InputError: There is one, of other prompts or made by something else.
        """
        gallery = cls(path, json.loads(json.dumps(made_by)), tuple(prompts))
        if (path / "gallery.json").exists():
            found = cls.open(path)
            if found != gallery:
                what = "prompts" if found.made_by == gallery.made_by else "model or settings"
                raise InputError(
                    f"{path} holds a gallery of other {what}: name another folder, or remove it."
                )
            return found
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise InputError(f"{path} exists and is no gallery: name a new folder.")
        (path / "images").mkdir(parents=True, exist_ok=True)
        lines = (json.dumps(p.to_json(), ensure_ascii=False) + "\n" for p in prompts)
        write_atomically(path / "samples.jsonl", "".join(lines))
        write_atomically(path / "gallery.json", json.dumps(made_by, indent=2) + "\n")
        return gallery

    @classmethod
    def open(cls, path: Path) -> "Gallery":
        """Opens a gallery that is there.

        Raises:
            InputError: There is none, or its text files cannot be read.
        """
        try:
            made_by = json.loads((path / "gallery.json").read_text(encoding="utf-8"))
            lines = (path / "samples.jsonl").read_text(encoding="utf-8").splitlines()
            return cls(path, made_by, tuple(Prompt.from_json(json.loads(line)) for line in lines))
        except FileNotFoundError as error:
            raise InputError(
                f"{path} is no gallery: it has no {Path(error.filename).name}."
            ) from error
        except (ValueError, TypeError) as error:
            raise InputError(f"The gallery {path} cannot be read: {error}") from error

    def image_path(self, prompt: Prompt) -> Path:
        return self.path / "images" / f"{prompt.id}.png"

    def missing(self) -> list[Prompt]:
        """The prompts whose images have not been made."""
        return [p for p in self.prompts if not self.image_path(p).exists()]

    def put(self, prompt: Prompt, image: "Image") -> None:
        """Writes one image, as PNG."""
        from io import BytesIO

        buffer = BytesIO()
        image.save(buffer, "PNG")
        write_atomically(self.image_path(prompt), buffer.getvalue())

    def __iter__(self) -> Iterator[Prompt]:
        return iter(self.prompts)

    def __len__(self) -> int:
        return len(self.prompts)
