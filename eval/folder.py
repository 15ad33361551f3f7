"""Images that came from anywhere: a folder, measured without a pipeline."""

import csv
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .._errors import InputError
from ..gallery import Gallery, write_atomically
from ..prompts import Prompt
from ..prompts.concept import KINDS
from .answers import Answers, Progress, detect
from .audit import installed, plain, take
from .detectors import Detection, Detector
from .images import Unscored
from .metrics import Metric
from .statistics import Rate, Score
from .words import count, fold, interval
from .words import rate as say_rate

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")

FORMAT = 1
"""Of score.json."""

FILE = ("file", "file_name", "image", "path", "id")
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
        table: A CSV, or JSONL, with a row for each image: ``file`` (or ``file_name``, ``image``,
            ``path`` or ``id``), its path in the folder, its suffix left out or not; where they
            are known ``prompt``, ``category`` and one column a kind of label ("object", "style",
            "person", "unsafe"), or in JSONL ``labels``. The folder's own samples.jsonl is read
            where none is named.

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
        concept: What was asked after; empty where nothing was.
        seen: Detector of the concept's kind to how often it sees the concept.
        rates: Detector to the rate of each label seen, over the images that it could score, the
            most seen first.
        right: Detector to how often it sees what the table says is there; detectors of a kind
            that has no labels are left out.
        scores: Metric to its score.
        reasons: Why images are unscored, each once, with how often.
        protocols: Of the detectors and metrics, by name.
        command, date: As given.
    """

    folder: str
    images: int
    missing: int
    concept: str
    seen: Mapping[str, Rate]
    rates: Mapping[str, Mapping[str, Rate]]
    right: Mapping[str, Rate]
    scores: Mapping[str, Score]
    reasons: Mapping[str, int]
    protocols: Mapping[str, Mapping[str, Any]]
    command: str = ""
    date: str = ""

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
            "versions": installed(),
        }

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
    known: Answers | None = None,
    batch_size: int = 64,
    command: str = "",
    date: str = "",
    progress: Progress | None = None,
) -> tuple[FolderScore, Answers]:
    """Asks detectors and metrics about a gallery.

    Args:
        reference: What distances are taken to.
        concept: A label whose rate is wanted, of detectors of its kind, though it be 0.
        kind: The concept's.
        known: Earlier answers, used where the image and the protocol are the same.

    Raises:
        InputError: There is nothing to measure with; a distance has no reference; a metric that
            needs none has no prompts to compare the images with; no detector reads the concept's
            kind; or two have one name.
    """
    if not detectors and not metrics:
        raise InputError("There is nothing to measure with: name a detector or a metric.")
    names = [m.name for m in metrics]
    if len(set(names)) < len(names):
        raise InputError(f"A metric is there twice: {', '.join(names)}. Name each once.")
    for metric in metrics:
        if metric.needs_reference and reference is None:
            raise InputError(f"{metric.name} is a distance: name a folder of images as reference.")
        if not metric.needs_reference and not any(p.prompt for p in gallery):
            raise InputError(
                f"{metric.name} compares images with their prompts, and {gallery.path} has none: "
                "name a table that has."
            )
    if concept and not any(d.kind == kind for d in detectors):
        there = ", ".join(f"{d.name} ({d.kind})" for d in detectors) or "none"
        raise InputError(
            f"No detector reads {kind} labels, so {concept!r} cannot be seen: {there}."
        )
    found = detect(gallery, detectors, known=known, batch_size=batch_size, progress=progress)
    scores = {}
    for done, metric in enumerate(metrics, 1):
        scores[metric.name] = take(metric, gallery, reference if metric.needs_reference else None)
        if progress:
            progress("measure", done, len(metrics))
    answers = {d.name: [row.found[d.name] for row in found.rows] for d in detectors}
    unscored = Counter(a.reason for of in answers.values() for a in of if isinstance(a, Unscored))
    result = FolderScore(
        folder=str(gallery.path),
        images=len(gallery),
        missing=sum(row.sha256 is None for row in found.rows),
        concept=concept,
        seen={
            d.name: _seen(answers[d.name], [concept] * len(gallery))
            for d in detectors
            if concept and d.kind == kind
        },
        rates={name: _rates(of) for name, of in answers.items()},
        right={
            d.name: _seen(answers[d.name], [p.labels.get(d.kind, "") for p in gallery])
            for d in detectors
            if any(p.labels.get(d.kind) for p in gallery)
        },
        scores=scores,
        reasons=dict(unscored.most_common()),
        protocols={d.name: plain(d.protocol) for d in detectors}
        | {m.name: plain(m.protocol) for m in metrics},
        command=command,
        date=date,
    )
    return result, found


def _rates(answers: Sequence[Detection | Unscored]) -> dict[str, Rate]:
    """How often each label is seen; "nothing" where an image has none."""
    there = [a for a in answers if isinstance(a, Detection)]
    seen = Counter(label for a in there for label in dict.fromkeys(a.labels or ("nothing",)))
    order = sorted(seen, key=lambda label: (-seen[label], label))
    lost = len(answers) - len(there)
    # Where nothing could be scored there is one row all the same, so that it is said
    return {label: Rate(seen[label], len(there), lost) for label in order or ["nothing"]}


def _seen(answers: Sequence[Detection | Unscored], wanted: Sequence[str]) -> Rate:
    """How often the label wanted of each image is seen; an image of which none is, is left out."""
    asked = [(fold(label), a) for label, a in zip(wanted, answers, strict=True) if label]
    there = [(label, a) for label, a in asked if isinstance(a, Detection)]
    hits = sum(label in map(fold, a.labels) for label, a in there)
    return Rate(hits, len(there), len(asked) - len(there))


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
    for number, row in enumerate(_rows(table), 1):
        column = next((c for c in FILE if row.get(c)), None)
        if column is None:
            raise InputError(
                f"{table}, row {number}: wanted an image's file under one of {', '.join(FILE)}; "
                f"found {', '.join(map(str, row)) or 'nothing'}."
            )
        name = str(row[column])
        if name in files:
            raise InputError(f"{table}, row {number}: {name!r} is there twice.")
        labels = row.get("labels") or {}
        if not isinstance(labels, dict):
            raise InputError(f"{table}, row {number}: labels cannot be {labels!r}.")
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


def _rows(table: Path) -> list[dict[str, Any]]:
    if (suffix := table.suffix.lower()) not in (".csv", ".jsonl"):
        raise InputError(f"{table} must be a CSV (.csv) or JSON lines (.jsonl).")
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file)) if suffix == ".csv" else [
                json.loads(line) for line in file if line.strip()
            ]  # fmt: skip
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{table} cannot be read: {' '.join(str(error).split())}") from error
    if not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{table} must hold an object a line.")
    return rows
