"""Images that came from anywhere: a folder, measured without a pipeline."""

import functools
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from .._errors import InputError
from .._files import write_atomically
from .._reading import loads
from .._reading import read as read_value
from ..gallery import Gallery
from ..prompts import Prompt
from ..prompts.concept import KINDS
from ..prompts.table import read_table
from .answers import Answers, Progress, Side, look
from .audit import installed, plain
from .detectors import Detection, Detector, check_labels, says
from .images import Unscored
from .metrics import Metric, Published, biased_last, check_published
from .rows import unit
from .statistics import Rate, Score
from .words import count, fold, interval
from .words import rate as say_rate

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")

FORMAT = 2
"""Of score.json."""

FILE = ("file", "file_name", "image", "path", "id", "case_number")
"""The columns in which a table may name an image, the first that is there being it."""


@dataclass(frozen=True)
class Folder(Gallery):
    """Images wherever they lie, as a gallery.

    Attributes:
        files: A prompt's id to its image's file.
    """

    files: Mapping[str, Path]

    def image_path(self, prompt: Prompt) -> Path:
        return self.files[prompt.id]


def open_folder(path: Path, table: Path | None = None) -> Gallery:
    """A folder's images with what is known of them.

    A gallery that unsee made is opened as it is. Of another folder all PNG, JPEG and WebP images
    are taken, those in its folders too, sorted by their paths; or, where there is a table, those
    that it names.

    Args:
        path: The folder.
        table: A CSV, TSV, Parquet or JSONL with a row for each image: ``file`` (or
            ``file_name``, ``image``, ``path`` or ``id``), its path in the folder, its suffix left
            out or not; where they are known ``prompt``, ``category`` and one column a kind of
            label ("object", "style", "person", "unsafe"), or in JSONL ``labels``. The folder's own
            samples.jsonl is read where none is named.

    Raises:
        InputError: There is no such folder, it has no image, or the table is none.
    """
    if not path.is_dir():
        raise InputError(f"{path} is no folder: wanted one with images in it.")
    if table is None and (path / "gallery.json").is_file():
        gallery = Gallery.open(path)
        if not len(gallery):
            raise InputError(f"The gallery {path} is empty: nothing would be measured.")
        return gallery
    there = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not there:
        raise InputError(
            f"{path} has no image, so nothing would be measured: wanted {', '.join(SUFFIXES)}."
        )
    if table is None and (path / "samples.jsonl").is_file():
        table = path / "samples.jsonl"
    if table is not None:
        return _tabled(path, table, there)
    names = {p.relative_to(path).as_posix(): p for p in there}
    return Folder(path, None, tuple(Prompt(name, "", 0) for name in names), names)


@dataclass(frozen=True)
class FolderScore:
    """What was found in a folder's images.

    Attributes:
        folder: Its path.
        images: How many were to be measured.
        missing: How many of them are not there.
        blank: How many are of one colour or wholly transparent, and so unscored.
        concept: What was asked after; empty where nothing was.
        seen: Detector to how often it sees the concept; those that have no word for it are left
            out.
        rates: Detector to the rate of each label seen, over the images that it could score, the
            most seen first.
        right: Detector to how often it sees what the table says is there, over the images whose
            label it can see; detectors without such an image are left out.
        scores: Metric to its score.
        reasons: Why images are unscored, each once, with how often.
        protocols: Of the detectors and metrics, by name.
        command, date: As given.
        versions: Of the packages that it was measured with.
    """

    folder: str
    images: int
    missing: int
    blank: int
    concept: str
    seen: Mapping[str, Rate]
    rates: Mapping[str, Mapping[str, Rate]]
    right: Mapping[str, Rate]
    scores: Mapping[str, Score]
    reasons: Mapping[str, int]
    protocols: Mapping[str, Mapping[str, Any]]
    command: str = ""
    date: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)

    derived: ClassVar[tuple[str, ...]] = ("format", "holes")

    def __post_init__(self) -> None:
        for lost in (self.missing, self.blank):
            if not 0 <= lost <= self.images:
                raise InputError(f"{lost} of {self.images} images cannot be missing or blank.")
        if empty := [name for name, rates in self.rates.items() if not rates]:
            raise InputError(f"{empty[0]!r:.60} has no rate, not even of nothing.")

    @property
    def answer(self) -> str:
        """How often the concept was seen, in words; empty where none was asked after."""
        return " ".join(
            f"“{self.concept}” is seen in {say_rate(rate)} by {name}, 95 % interval "
            f"{interval(rate.interval())}."
            for name, rate in self.seen.items()
        )

    @property
    def holes(self) -> tuple[str, ...]:
        """What could not be measured, in words; empty when everything was."""
        why = list(self.reasons)
        more = f", and {count(len(why) - 2, 'other reason')}" if why[2:] else ""
        said = f" ({'; '.join(why[:2])}{more})" if why else ""
        found = [
            f"{name} could not score {lost} of {count(self.images, 'image')}{said}."
            for name, rates in self.rates.items()
            if (lost := next(iter(rates.values())).unscored)
        ]
        return (
            *found,
            *(
                f"{name}: {count(score.unscored, 'image')} could not be measured"
                + (f" ({score.note})." if score.note else ".")
                for name, score in self.scores.items()
                if score.unscored or score.value is None
            ),
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "folder": self.folder,
            "images": self.images,
            "missing": self.missing,
            "blank": self.blank,
            "holes": list(self.holes),
            "concept": self.concept,
            "seen": {name: rate.to_json() for name, rate in self.seen.items()},
            "rates": {
                name: {label: rate.to_json() for label, rate in rates.items()}
                for name, rates in self.rates.items()
            },
            "right": {name: rate.to_json() for name, rate in self.right.items()},
            "scores": {name: score.to_json() for name, score in self.scores.items()},
            "reasons": dict(self.reasons),
            "protocols": {name: dict(p) for name, p in self.protocols.items()},
            "command": self.command,
            "date": self.date,
            "versions": dict(self.versions),
        }

    @classmethod
    def from_json(cls, page: Any, where: str) -> "FolderScore":
        """The scores that ``to_json`` gave the values of.

        Raises:
            InputError: They are not a folder's scores, or what follows from them, such as an
                interval, is not what stands there; ``where`` says whose.
        """
        if isinstance(page, dict) and (form := page.get("format")) != FORMAT:
            raise InputError(f"{where} has format {form!r:.60}; {FORMAT} is read here.")
        try:
            found = read_value(cls, page, where)
        except ValueError as error:  # a rate that is none
            raise InputError(f"{where}: {error}") from error
        follows = plain(found.to_json())
        if wrong := [key for key in follows if follows[key] != page.get(key)]:
            raise InputError(f"{where}: {wrong[0]} does not follow from the rest; it was edited.")
        return found

    @classmethod
    def load(cls, path: Path) -> "FolderScore":
        """Reads what ``save`` wrote.

        Raises:
            InputError: The file cannot be read, or holds something else.
        """
        try:
            data = path.read_bytes()
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error}") from error
        return cls.from_json(loads(data, str(path)), str(path))

    def save(self, path: Path) -> None:
        """Writes the whole file or nothing."""
        text = json.dumps(self.to_json(), indent=1, ensure_ascii=False, allow_nan=False)
        write_atomically(path, text + "\n")


def measure(
    gallery: Gallery,
    detectors: Sequence[Detector],
    metrics: Sequence[Metric] = (),
    *,
    reference: Gallery | None = None,
    concept: str = "",
    kind: str = "object",
    answers: Answers | None = None,
    batch_size: int = 64,
    command: str = "",
    date: str = "",
    progress: Progress | None = None,
) -> FolderScore:
    """Asks detectors and metrics about a gallery.

    Args:
        reference: What distances are taken to.
        concept: A label whose rate is wanted, of detectors of its kind, though it be 0.
        kind: The concept's.
        answers: Earlier answers, used where the image and the protocol are the same; the new ones
            are added to them.

    Raises:
        InputError: There is nothing to measure with; a distance has no reference; a metric that
            needs none has no prompts to compare the images with; no detector can see the concept,
            or a label of the images that is of its kind; or two have one name.
    """
    if not detectors and not metrics:
        raise InputError("There is nothing to measure with: name a detector or a metric.")
    for metric in metrics:
        if metric.needs_reference and reference is None:
            raise InputError(f"{metric.name} is a distance: name a folder of images as reference.")
        by_images = metric.needs_reference or isinstance(metric, Published)
        if not by_images and not any(p.prompt for p in gallery):
            raise InputError(
                f"{metric.name} compares images with their prompts, and {gallery.path} has none: "
                "name a table that has."
            )
    check_published(metrics, len(gallery), "the folder's are")
    if concept:
        check_labels(kind, [concept], detectors)
    for of in dict.fromkeys(d.kind for d in detectors):
        for label in dict.fromkeys(p.labels[of] for p in gallery if p.labels.get(of)):
            check_labels(of, [label], detectors, " It is the label of an image.")
    compared = [m for m in metrics if m.needs_reference and not m.paired]
    # Without a distance to take, nobody looks at the reference
    other = reference if any(m.needs_reference for m in metrics) else None
    seen, of_reference = look(
        Side(gallery, detectors, metrics, answers or Answers()),
        None if other is None else Side(other, (), compared),
        batch_size=batch_size,
        progress=progress,
    )
    theirs = other.prompts if other else ()
    rows = [seen.rows[prompt.id] for prompt in gallery]
    found = {d.name: [(p, seen.rows[p.id].found[d.name]) for p in gallery] for d in detectors}
    unscored = Counter(a.reason for of in found.values() for _, a in of if isinstance(a, Unscored))
    return FolderScore(
        folder=str(gallery.path),
        images=len(gallery),
        missing=sum(row.sha256 is None for row in rows),
        blank=sum(row.blank for row in rows),
        concept=concept,
        seen={
            d.name: _seen(found[d.name], lambda prompt: concept)
            for d in detectors
            if concept and d.kind == kind and says(d, [concept])
        },
        rates={name: _rates(of) for name, of in found.items()},
        right={
            d.name: _seen(found[d.name], visible)
            for d in detectors
            if any(map(visible := functools.partial(_visible, d), gallery))
        },
        scores={
            m.name: seen.score(m, gallery.prompts, of_reference, theirs)
            for m in biased_last(metrics)
        },
        reasons=dict(unscored.most_common()),
        protocols={d.name: plain(d.protocol) for d in detectors}
        | {m.name: plain(m.protocol) for m in metrics},
        command=command,
        date=date,
        versions=installed(),
    )


def _visible(detector: Detector, prompt: Prompt) -> str:
    """A prompt's label of the detector's kind, if the detector can see it; else nothing."""
    label = prompt.labels.get(detector.kind, "")
    return label if label and says(detector, [label]) else ""


Found = Sequence[tuple[Prompt, Detection | Unscored]]
"""Every image's prompt, and what one detector says of it."""


def _rates(found: Found) -> dict[str, Rate]:
    """How often each label is seen; "nothing" where an image has none."""
    often = Counter(label for _, a in found for label in dict.fromkeys(_labels(a)))
    order = sorted(often, key=lambda label: (-often[label], label))
    # Where nothing could be scored there is one row all the same, so that it is said
    return {
        label: Rate.counted((unit(prompt), _shows(answer, label)) for prompt, answer in found)
        for label in order or ["nothing"]
    }


def _seen(found: Found, wanted: Callable[[Prompt], str]) -> Rate:
    """How often the label wanted of each image is seen; an image of which none is, is left out."""
    return Rate.counted((unit(p), _shows(a, label)) for p, a in found if (label := wanted(p)))


def _labels(answer: Detection | Unscored) -> tuple[str, ...]:
    if isinstance(answer, Unscored):
        return answer.seen
    return answer.labels or ("nothing",)


def _shows(answer: Detection | Unscored, label: str) -> bool | None:
    """Whether a label is seen in an image; None when nobody knows."""
    found = fold(label) in map(fold, _labels(answer))
    return None if isinstance(answer, Unscored) and not found else found


def _tabled(folder: Path, table: Path, there: Sequence[Path]) -> Folder:
    """The images that a table names, those that are not there too."""
    # An image may be named with its suffix or without, and by its place below images/
    by_name: dict[str, Path] = {}
    for path in reversed(there):
        short = path.relative_to(folder)
        for known in (short, short.with_suffix("")):
            by_name[known.as_posix()] = path
            by_name.setdefault(known.as_posix().removeprefix("images/"), path)
    prompts: list[Prompt] = []
    files: dict[str, Path] = {}
    for at, row in read_table(table):
        column = next((c for c in FILE if row.get(c) not in (None, "")), None)
        if column is None:
            raise InputError(
                f"{table}, {at}: wanted an image's file under one of {', '.join(FILE)}; "
                f"found {', '.join(map(str, row)) or 'nothing'}."
            )
        name = str(row[column])
        if name in files:
            raise InputError(f"{table}, {at}: {name!r} is there twice.")
        labels = row.get("labels") or {}
        if not isinstance(labels, dict):
            raise InputError(f"{table}, {at}: labels cannot be {labels!r}.")
        labels = {**labels, **{kind: str(row[kind]) for kind in KINDS if row.get(kind)}}
        files[name] = by_name.get(name, folder / name)
        prompts.append(
            Prompt(name, str(row.get("prompt") or ""), 0, labels, str(row.get("category") or ""))
        )
    if not prompts:
        raise InputError(f"{table} has no row: nothing would be measured.")
    if not any(path.is_file() for path in files.values()):
        raise InputError(f"{table} names no image that is in {folder}: {prompts[0].id!r} is not.")
    return Folder(folder, None, tuple(prompts), files)
