"""The store: images that were made once, for every run of this user on this machine.

    images/KE/KEY.png      an image, by the content key of what it was made from
    images/KE/KEY.json     its SHA-256, and how many images were made at a time, and where
    answers/SH/SHA256.jsonl  what detectors said of an image, by its file's SHA-256
    attacks/KEY/           what an attack came to, by the content key of what it was fitted to
    features/KEY-DIM.rows  what a network made of images, by their files' SHA-256
    runs/SHA256.json       a folder that was made, by its path

An image's key is of all that it depends on (``MadeBy.image_key``), and a path or a name is no part
of it: so several erasures are judged beside one set of the base's images, and a run that is made
again in another folder makes none. What is in the store is a hard link to a run's own file where
the file system has such links, and costs no room while the run is there.

An image of which one byte was changed, here or in the run that it is linked to, is as if it were
not there. The store is a cache: whatever is removed from it is made again, and a store that
cannot be written to is done without.

``UNSEE_STORE`` names its folder; without it, it is ``unsee`` in the user's cache; ``off`` is none.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ._errors import InputError
from ._files import being_written, clear, write_atomically
from ._reading import loads, plain, read

FITTED = "fitted.txt"
"""In a run's ``attacks/CONCEPT``: the keys of what its attacks were fitted to, a line each."""

OFF = "off"
"""What ``UNSEE_STORE`` is where nothing is to be shared."""


@dataclass(frozen=True)
class Made:
    """How an image was made, as far as its content key does not say it.

    Attributes:
        sha256: Of its file.
        batch_size: How many images were made at a time.
        device: Where.
    """

    sha256: str
    batch_size: int | None = None
    device: str | None = None


@dataclass(frozen=True)
class Run:
    """A folder that was made: an audit's, or a gallery.

    Attributes:
        folder: Its absolute path.
        date: When a run in it was begun last, UTC.
    """

    folder: str
    date: str

    @property
    def path(self) -> Path:
        return Path(self.folder)


@dataclass(frozen=True)
class Store:
    """The folder of what runs share.

    Attributes:
        path: The folder, which need not be there yet.
    """

    path: Path

    @classmethod
    def of_user(cls) -> "Store | None":
        """The user's; None where ``UNSEE_STORE`` says that there is none.

        Raises:
            InputError: ``UNSEE_STORE`` names something that is no folder.
        """
        named = os.environ.get("UNSEE_STORE", "")
        if named == OFF:
            return None
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        path = Path(named or Path(home, "unsee")).absolute()
        if path.exists() and not path.is_dir():
            raise InputError(
                f"UNSEE_STORE names {path}, which is no folder: name a folder, or {OFF}."
            )
        return cls(path)

    def has(self, key: str) -> bool:
        """Whether there is an image of a key, as far as can be told without reading it."""
        return all(place.is_file() for place in self._places(key))

    def give(self, key: str, to: Path) -> Made | None:
        """Puts the image of a key to a place, if the store has it; else gives None."""
        image, page = self._places(key)
        try:
            made = read(Made, loads(page.read_bytes(), str(page)), str(page))
            data = image.read_bytes()
        except (OSError, InputError):
            return None
        if hashlib.sha256(data).hexdigest() != made.sha256:
            return None
        if not _linked(image, to):
            write_atomically(to, data)
        return made

    def keep(self, key: str, image: Path, made: Made) -> None:
        """Keeps an image of a run; where it cannot, another run makes the image again."""
        ours, page = self._places(key)
        with suppress(OSError):
            # The page last: without it there is no image
            if not _linked(image, ours):
                write_atomically(ours, image.read_bytes())
            write_atomically(page, json.dumps(plain(made)) + "\n")

    def note(self, folder: Path, date: str) -> bool:
        """Remembers that a folder was made; whether the store can be written to."""
        path = folder.absolute()
        name = hashlib.sha256(os.fsencode(path)).hexdigest()
        text = json.dumps({"folder": str(path), "date": date}) + "\n"
        try:
            (self.path / "images").mkdir(parents=True, exist_ok=True)
            write_atomically(self.path / "runs" / f"{name}.json", text)
        except OSError:
            return False
        return True

    def runs(self) -> list[Run]:
        """The folders that were made, the oldest first; those that are gone too."""
        found = []
        for file in sorted((self.path / "runs").glob("*.json")):
            try:
                found.append(read(Run, loads(file.read_bytes(), str(file)), str(file)))
            except (OSError, InputError):  # somebody else's, or removed meanwhile
                continue
        return sorted(found, key=lambda run: (run.date, run.folder))

    def images(self) -> Iterator[tuple[str, Made, int]]:
        """The key of each image, how it was made, and its file's bytes."""
        for page in sorted((self.path / "images").glob("*/*.json")):
            try:
                made = read(Made, loads(page.read_bytes(), str(page)), str(page))
                size = page.with_suffix(".png").stat().st_size
            except (OSError, InputError):
                continue
            yield page.stem, made, size

    def answers(self, sha256: str) -> Path:
        """The file of what detectors said of an image, which need not be there."""
        return self.path / "answers" / sha256[:2] / f"{sha256}.jsonl"

    def answered(self) -> Iterator[str]:
        """The SHA-256 of each image of which there are answers."""
        return (file.stem for file in sorted((self.path / "answers").glob("*/*.jsonl")))

    def attack(self, key: str) -> Path:
        """The folder of what an attack came to, which need not be there."""
        return self.path / "attacks" / key

    def attacks(self) -> Iterator[str]:
        """The key of each attack that there is."""
        return (folder.name for folder in sorted((self.path / "attacks").glob("*")))

    def features(self, network: str) -> Path:
        """The file of what a network made of images, which need not be there.

        Args:
            network: Its key, a dash, and how many features an image has.
        """
        return self.path / "features" / f"{network}.rows"

    def networks(self) -> list[Path]:
        """The files of what networks made of images."""
        return sorted((self.path / "features").glob("*-*.rows"))

    def forget(self, key: str) -> None:
        """Removes an image."""
        image, page = self._places(key)
        page.unlink(missing_ok=True)
        image.unlink(missing_ok=True)

    def forget_run(self, folder: Path) -> None:
        """Removes what is remembered of a folder, and nothing of the folder itself."""
        name = hashlib.sha256(os.fsencode(folder)).hexdigest()
        (self.path / "runs" / f"{name}.json").unlink(missing_ok=True)

    def tidy(self) -> None:
        """Removes what a run that was killed left half-written."""
        for folder in (
            self.path / "runs",
            self.path / "features",
            *(self.path / "images").glob("*"),
        ):
            clear(folder)

    def _places(self, key: str) -> tuple[Path, Path]:
        folder = self.path / "images" / key[:2]
        return folder / f"{key}.png", folder / f"{key}.json"


def content_key(page: Mapping[str, Any]) -> str:
    """The SHA-256 of values of JSON, whatever the order of their names."""
    text = json.dumps(plain(page), sort_keys=True, ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _linked(there: Path, to: Path) -> bool:
    """Whether a file could get a second name, in the place of what has that name."""
    to.parent.mkdir(parents=True, exist_ok=True)
    second = being_written(to)
    try:
        os.link(there, second)
    except (OSError, NotImplementedError):
        return False
    try:
        os.replace(second, to)
    except FileNotFoundError:
        # A run that starts in the same folder took it for half-written, and cleared it
        return False
    finally:
        # It is still there where both were names of one file
        second.unlink(missing_ok=True)
    return True
