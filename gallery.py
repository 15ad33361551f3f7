"""A gallery: a folder of images, and how each was made.

    gallery.json     what made the images: model, erasures, settings, versions
    samples.jsonl    one line an image: its prompt, seed, settings and labels
    images.jsonl     one line an image that was made: its id and its file's SHA-256; batch size and
                     device where they are not those of gallery.json; and whether it is from the
                     store
    images/ID.png    of a video an animated PNG, of the frames that stand for it

The first two are written before the first image, gallery.json last of them: a folder without it is
none yet. An image is there when its file is the one that the last line about it names. So a
gallery that was interrupted goes on by making what is missing, and an image that was changed, cut
or removed since is made again, and has a second line in images.jsonl.
"""

import dataclasses
import hashlib
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from ._errors import InputError
from ._files import append, clear, is_half_written, write_atomically, write_new
from ._reading import loads, plain, read
from ._settings import NotNegative, Range, Weight, checked, shown
from .prompts import Prompt
from .records import Model
from .store import Made, Store, content_key

if TYPE_CHECKING:
    from PIL.Image import Image

FORMAT = 2
"""Of gallery.json. A greater one is refused; what format 1 wrote is read and not gone on with."""

QUICK = 1
"""How hard a PNG is compressed, of 9. The usual 6 takes four times as long for a file a sixth
smaller, and at 1024 × 1024 longer than a GPU draws the image."""


@dataclass(frozen=True)
class Used:
    """An erasure that was in the model.

    Attributes:
        name: Its concepts'.
        method: Its method.
        settings: The method's.
        sha256: ``Erasure.sha256``, by which it is known.
        bytes: The file's size.
        seconds: That it took to make, if that is known.
        peak_memory: Bytes that making it took, if that is known.
        weight: What it was multiplied by.
        layers: How many layers it edits, by component; empty where it edits no weight, None where
            an older version made the gallery, which did not say.
    """

    name: str
    method: str
    settings: Mapping[str, Any]
    sha256: str
    bytes: Annotated[int, Range(least=0)]
    seconds: NotNegative | None = None
    peak_memory: Annotated[int, Range(least=0)] | None = None
    weight: Weight = 1.0
    layers: Mapping[str, int] | None = None

    later: ClassVar[tuple[str, ...]] = ("weight", "layers")

    @property
    def key(self) -> str:
        """All of it that images depend on."""
        times = "" if self.weight == 1 else f" times {self.weight}"
        return f"{self.method} of {self.name} ({self.sha256[:12]}){times}"


@dataclass(frozen=True)
class MadeBy:
    """What made a gallery's images.

    Attributes:
        model: The model, without the erasures.
        erasures: What was in it.
        guidance: Scale of classifier-free guidance where a prompt names none.
        steps: Denoising steps where a prompt names none.
        versions: Of the packages that draw.
        suite: Where the prompts come from. Like what follows and the model's name, it is a label:
            a run that differs in these alone goes on with the gallery.
        cut: Ids of the prompts whose ends the tokenizer cuts.
        batch_size: Images at a time. Images are the same byte for byte where it is the same, and
            the device; a few differ by a level of 255 where not.
        device: Where it ran.
        attack: SHA-256 of an attack that changed more than the prompts; empty without one.
    """

    model: Model | None = None
    erasures: tuple[Used, ...] = ()
    guidance: NotNegative | None = None
    steps: Annotated[int, Range(least=1)] | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    suite: Mapping[str, str] = field(default_factory=dict)
    cut: tuple[str, ...] = ()
    batch_size: Annotated[int, Range(least=1)] | None = None
    device: str | None = None
    attack: str = ""

    later: ClassVar[tuple[str, ...]] = ("attack",)

    def key(self) -> dict[str, Any]:
        """All that the images depend on, by its name in words."""
        found: dict[str, Any] = {}
        if self.model is not None:
            found["class of the pipeline"] = self.model.pipeline
            found["dtype"] = self.model.dtype
            found |= {part: digest for part, digest in self.model.components.items()}
            found |= {f"scheduler's {name}": v for name, v in self.model.scheduler.items()}
        found["erasures"] = [erasure.key for erasure in self.erasures]
        found |= {"guidance": self.guidance, "steps": self.steps}
        found |= {"attack": self.attack} if self.attack else {}
        return found | {f"version of {name}": v for name, v in self.versions.items()}

    def image_key(self, prompt: Prompt) -> str:
        """The content key of one image: of all that it depends on, and of nothing else."""
        every = self.key()
        drawn = {
            "prompt": prompt.prompt,
            "seed": prompt.seed,
            "guidance": self.guidance if prompt.guidance is None else prompt.guidance,
            "steps": self.steps if prompt.steps is None else prompt.steps,
            "width": prompt.width,
            "height": prompt.height,
        }
        return content_key({**every, **drawn})

    def difference(self, found: "MadeBy") -> str:
        """The first thing by which a gallery was made otherwise, in words; empty if there is none.

        Args:
            found: What made the gallery.
        """
        if self.model and found.model and not found.model.components:
            return "model (an older version made them, and recorded no more than its name)"
        ours, theirs = self.key(), found.key()
        for name in dict.fromkeys((*theirs, *ours)):
            if ours.get(name) != theirs.get(name):
                wanted, there = (_named(values.get(name)) for values in (ours, theirs))
                return f"{name} (wanted {wanted}, found {there})"
        return ""


def _named(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value):
        return f"{value[:12]}…"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return str(value)


@dataclass(frozen=True)
class _Line:
    """A line of images.jsonl: what is None there is as gallery.json has it."""

    id: str
    sha256: str
    batch_size: int | None = None
    device: str | None = None
    stored: bool = False

    later: ClassVar[tuple[str, ...]] = ("batch_size", "device", "stored")


@dataclass(frozen=True)
class Gallery:
    """Images on disk with the prompts that they were made from.

    Attributes:
        path: The folder.
        made_by: What made them; None where that is not known.
        prompts: What each was made from.
    """

    path: Path
    made_by: MadeBy | None
    prompts: tuple[Prompt, ...]

    @classmethod
    def start(cls, path: Path, made_by: MadeBy | None, prompts: Sequence[Prompt]) -> "Gallery":
        """Opens the gallery at ``path``, making it if there is none.

        What a run that was killed left half-written is cleared away.

        Raises:
            InputError: There is one, of other prompts or made by something else, or the folder
                holds something else.
        """
        gallery = cls(path, made_by or MadeBy(), tuple(prompts))
        if (path / "gallery.json").exists():
            found = cls.join(path, made_by, prompts)
            _clear(path)
            return found
        if path.exists() and not _is_unborn(path):
            raise InputError(f"{path} exists and is no gallery: name a new folder.")
        (path / "images").mkdir(parents=True, exist_ok=True)
        _clear(path)
        samples = "".join(
            json.dumps(p.to_json(), ensure_ascii=False) + "\n" for p in gallery.prompts
        )
        write_atomically(path / "samples.jsonl", samples)
        # Not over what another process has written meanwhile
        append(path / "images.jsonl", "")
        head = _Head(FORMAT, gallery.made_by or MadeBy(), _sha256(samples.encode()))
        if not write_new(path / "gallery.json", json.dumps(plain(head), indent=2) + "\n"):
            # Another process has begun it meanwhile
            return cls.join(path, made_by, prompts)
        return gallery

    @classmethod
    def join(cls, path: Path, made_by: MadeBy | None, prompts: Sequence[Prompt]) -> "Gallery":
        """Opens the gallery that is there, which others may be filling.

        Raises:
            InputError: There is none, or it is of other prompts or made by something else.
        """
        found = cls.open(path)
        if difference := cls(path, made_by or MadeBy(), tuple(prompts))._difference(found):
            raise InputError(
                f"{path} holds images made with another {difference}: name another folder, "
                "or remove it."
            )
        for name, kind in (("images", Path.is_dir), ("images.jsonl", Path.is_file)):
            if (there := path / name).exists() and not kind(there):
                raise InputError(
                    f"{there} is no {'folder' if name == 'images' else 'file'}, as it is in a "
                    "gallery: remove it, and its images are made again."
                )
        return found

    @classmethod
    @checked
    def open(cls, path: str | Path) -> "Gallery":
        """Opens a gallery that is there.

        Raises:
            InputError: There is none, or its text files cannot be read.
        """
        path = Path(path)
        where = str(path / "gallery.json")
        page = loads(_text(path, "gallery.json"), where)
        samples = _text(path, "samples.jsonl")
        made_by, sha256 = _head(page, where)
        if sha256 is not None and _sha256(samples) != sha256:
            raise InputError(
                f"{path / 'samples.jsonl'} has been changed since it was written: make the "
                "gallery again in a new folder."
            )
        prompts = []
        for number, line in enumerate(samples.splitlines(), 1):
            row = f"{path / 'samples.jsonl'}, line {number}"
            try:
                prompts.append(Prompt.from_json(loads(line, row)))
            except InputError as error:
                raise InputError(f"{row}: {error}") from error
        return cls(path, made_by, tuple(prompts))

    def _difference(self, found: "Gallery") -> str:
        assert self.made_by is not None
        if difference := self.made_by.difference(found.made_by or MadeBy()):
            return difference
        if len(self.prompts) != len(found.prompts):
            return f"number of prompts (wanted {len(self.prompts)}, found {len(found.prompts)})"
        for ours, theirs in zip(self.prompts, found.prompts, strict=True):
            if ours != theirs:
                wanted, there = ours.to_json(), theirs.to_json()
                name = next(k for k in (*wanted, *there) if wanted.get(k) != there.get(k))
                return (
                    f"{name} of prompt {theirs.id} (wanted {shown(wanted.get(name))}, found "
                    f"{shown(there.get(name))})"
                )
        return ""

    def image_path(self, prompt: Prompt) -> Path:
        return self.path / "images" / f"{prompt.id}.png"

    def missing(self) -> list[Prompt]:
        """The prompts that have no image."""
        return [p for p in self.prompts if not self.image_path(p).exists()]

    def altered(self, unmade: Sequence[Prompt] | None = None) -> list[Prompt]:
        """The prompts whose images were made and are no more as they were: changed or removed.

        Args:
            unmade: Those of ``unmade``, where somebody has looked already: it reads every image.

        Raises:
            InputError: As ``remade``.
        """
        made = self._made()
        return [p for p in (self.unmade() if unmade is None else unmade) if p.id in made]

    def unmade(self) -> list[Prompt]:
        """The prompts whose images are not there as they were made.

        Raises:
            InputError: As ``remade``.
        """
        made = self.made(self.prompts)
        return [p for p in self.prompts if p.id not in made]

    def hashes(self) -> dict[str, str]:
        """By the id of an image that was made the SHA-256 of its file.

        Raises:
            InputError: As ``remade``.
        """
        return {id: made[-1].sha256 for id, made in self._made().items()}

    @property
    def stored(self) -> set[str]:
        """The ids of images that were taken from the store.

        Raises:
            InputError: As ``remade``.
        """
        return {id for id, made in self._made().items() if made[-1].stored}

    @property
    def remade(self) -> tuple[str, ...]:
        """The ids of images that were changed or removed after they had been made, and made again.

        Raises:
            InputError: images.jsonl cannot be read.
        """
        return tuple(id for id, made in self._made().items() if len(made) > 1)

    def put(
        self,
        prompt: Prompt,
        image: "Image",
        *further: "Image",
        batch_size: int | None = None,
        store: Store | None = None,
    ) -> None:
        """Writes one image, and then its hash: ``write`` and ``note``."""
        self.note(prompt, self.write(prompt, image, *further, batch_size=batch_size), store)

    def write(
        self, prompt: Prompt, image: "Image", *further: "Image", batch_size: int | None = None
    ) -> Made:
        """Writes one image, as PNG, which is not there for anybody before it is noted.

        Args:
            image: The image, or a video's first frame.
            further: The video's other frames, each of which is there to be seen half a second.
            batch_size: How many were made at a time; None is as ``made_by`` has it.
        """
        buffer = io.BytesIO()
        animated = {"save_all": True, "append_images": further, "duration": 500}
        image.save(buffer, "PNG", compress_level=QUICK, **(animated if further else {}))
        write_atomically(self.image_path(prompt), buffer.getvalue())
        by = self.made_by or MadeBy()
        return Made(_sha256(buffer.getvalue()), batch_size or by.batch_size, by.device)

    def note(self, prompt: Prompt, made: Made, store: Store | None = None) -> None:
        """Notes that an image was written.

        Args:
            store: Where it is kept for other runs.
        """
        self._note(prompt, made)
        if store is not None:
            key = (self.made_by or MadeBy()).image_key(prompt)
            store.keep(key, self.image_path(prompt), made)

    def take(self, prompt: Prompt, store: Store) -> bool:
        """Takes one image from the store, if it has it."""
        by = self.made_by or MadeBy()
        made = store.give(by.image_key(prompt), self.image_path(prompt))
        if made is not None:
            self._note(prompt, made, stored=True)
        return made is not None

    def made(self, prompts: Sequence[Prompt]) -> set[str]:
        """The ids of those prompts whose images are there as they were made."""
        made = self._made()
        return {p.id for p in prompts if p.id in made and made[p.id][-1].sha256 == self._found(p)}

    def _note(self, prompt: Prompt, made: Made, *, stored: bool = False) -> None:
        by = self.made_by or MadeBy()
        usual = {"batch_size": by.batch_size, "device": by.device, "stored": False}
        line = {"id": prompt.id, **plain(made), "stored": stored}
        append(
            self.path / "images.jsonl",
            json.dumps({k: v for k, v in line.items() if k not in usual or v != usual[k]}) + "\n",
        )

    def _found(self, prompt: Prompt) -> str | None:
        try:
            return _sha256(self.image_path(prompt).read_bytes())
        except FileNotFoundError:
            return None

    def _made(self) -> dict[str, list[_Line]]:
        """By an image's id the lines about it, the last one the one that counts."""
        file = self.path / "images.jsonl"
        if not file.is_file():  # as format 1 has none
            return {}
        # What comes after the last newline is the half of a line.
        whole, _, _ = file.read_bytes().rpartition(b"\n")
        made: dict[str, list[_Line]] = {}
        for number, line in enumerate(whole.splitlines(), 1):
            row = f"{file}, line {number}"
            one = read(_Line, loads(line, row), row)
            made.setdefault(one.id, []).append(one)
        return made

    def __iter__(self) -> Iterator[Prompt]:
        return iter(self.prompts)

    def __len__(self) -> int:
        return len(self.prompts)


@dataclass(frozen=True)
class _Head:
    """gallery.json; ``samples`` is the SHA-256 of samples.jsonl."""

    format: int
    made_by: MadeBy
    samples: str


@dataclass(frozen=True)
class _Used1:
    name: str
    method: str
    settings: Mapping[str, Any]
    sha256: str
    bytes: int
    seconds: float | None = None
    peak_memory: int | None = None


@dataclass(frozen=True)
class _MadeBy1:
    """What format 1 wrote: a model's name, and nothing by which it could be known."""

    model: str
    suite: Mapping[str, str] = field(default_factory=dict)
    erasures: tuple[_Used1, ...] = ()
    batch_size: int | None = None
    guidance: float | None = None
    steps: int | None = None
    scheduler: str = ""
    dtype: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)


def _head(page: Any, where: str) -> tuple[MadeBy, str | None]:
    """What made a gallery, and the hash of its samples since there is one."""
    version = page.get("format", 1) if isinstance(page, Mapping) else 1
    if isinstance(version, int) and version > FORMAT:
        raise InputError(
            f"{where} has format {shown(version)}; this version reads up to {FORMAT}: upgrade "
            "unsee, or make the gallery again."
        )
    if not isinstance(page, Mapping) or "format" in page:
        head = read(_Head, page, where)
        if head.format != FORMAT:
            raise InputError(f"{where}: format is {head.format}; it must be {FORMAT}.")
        return head.made_by, head.samples
    old = read(_MadeBy1, page, where, defaults=True)
    model = Model(old.model, "", old.dtype.removeprefix("torch."), {}, {"class": old.scheduler})
    return (
        MadeBy(
            model=model,
            erasures=tuple(Used(**dataclasses.asdict(used)) for used in old.erasures),
            guidance=old.guidance,
            steps=old.steps,
            versions=old.versions,
            suite=old.suite,
            batch_size=old.batch_size,
        ),
        None,
    )


def _text(path: Path, name: str) -> bytes:
    try:
        return (path / name).read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path} is no gallery: it has no {name}.") from None
    except OSError as error:
        raise InputError(f"The gallery {path} cannot be read: {error}") from error


def _is_unborn(path: Path) -> bool:
    """Whether a folder holds no more than what a run leaves that is killed before gallery.json."""
    if not path.is_dir():
        return False
    images, early = path / "images", ("samples.jsonl", "images.jsonl")
    others = [
        entry
        for folder in (path, images)
        for entry in (folder.iterdir() if folder.is_dir() else ())
        if entry != images and not is_half_written(entry)
    ]
    # images/ comes first.
    return not others or (
        images.is_dir() and all(e.parent == path and e.name in early for e in others)
    )


def _clear(path: Path) -> None:
    """Removes what a run that was killed left half-written in a gallery."""
    for folder in (path, path / "images"):
        clear(folder)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
