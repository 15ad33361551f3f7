"""The page of a report: report.html, and beside it the thumbnails of every pair.

The page needs nothing beside it to be read: the figures, what every image was said to show and a
draw of the images are in it. The thumbnails of all pairs lie in ``report_files/``, some pairs to
a strip, and are shown when somebody browses to them.
"""

import base64
import hashlib
import io
import json
import math
import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .._errors import InputError
from .._files import clear, write_atomically
from .._reading import many, read
from ..gallery import Gallery, MadeBy
from . import words
from .answers import Progress
from .attack import AttackOutcome, Control, Rung, Way, of_target
from .images import frames_of
from .report import Outcome, Report, Sample, Shown
from .rows import ACCURACIES, CHIEF, Asked, Comparison, unit
from .statistics import Paired, Rate
from .verdict import Value
from .words import fold

if TYPE_CHECKING:
    from jinja2 import Environment
    from PIL.Image import Image

TEMPLATES = Path(__file__).parent / "templates"

PAIRS = 48
"""Pairs of images that are drawn into the page itself, and that are browsed at a time."""

SIDE = 192
"""Pixels; a larger image is shown reduced to this."""

SMALL = 96
"""Pixels; an image up to this is enlarged by whole pixels."""

STRIP = 16
"""Pairs in one file of ``report_files/``."""

FILES = "report_files"
"""The folder of thumbnails beside the page."""

SHOWN = 24
"""Neighbours plotted one by one; of more, the others are in a table to open."""

_OURS = re.compile(r"([0-9a-f]{16})-([0-9a-f]{16})\.webp")

MARKS: Mapping[Value, tuple[str, str]] = {
    "forgotten": ("✓", "good"),
    "inconclusive": ("?", "warn"),
    "damaged": ("✗", "bad"),
    "not informative": ("?", "warn"),
    "not forgotten": ("✗", "bad"),
    "comes back": ("✗", "bad"),
    "incomplete": ("!", "warn"),
}
"""A verdict's sign, which says it without colour, and its tone."""

SAYS: Mapping[Way, tuple[str, str]] = {
    "comes back": ("✗", "bad"),
    "held": ("✓", "good"),
    "not informative": ("?", "warn"),
    "probe": ("–", "soft"),
}
"""The same of what an attack says."""

ROWS = 6
"""Of the target, whose images under an attack are shown beside each other."""


def write(
    report: Report,
    folder: Path,
    base_gallery: Gallery,
    erased_gallery: Gallery,
    *,
    images: bool = True,
    run: Path | None = None,
    progress: Progress | None = None,
) -> Path:
    """Writes report.json, the thumbnails and report.html into a folder; returns the page's path.

    The page comes last but for what an earlier one needed and this does not, which is removed;
    and what a run that was killed in the middle of that has left there is cleared away.

    Args:
        images: Whether the page shows any.
        run: The folder in which the attacks' galleries are; None is ``folder``.
        progress: Told "thumbnails", of how many pairs they are made, and of how many there are.
    """
    for place in (folder, folder / FILES):
        clear(place)
    report.save(folder / "report.json")
    made = strips(report, folder, base_gallery, erased_gallery, progress) if images else []
    page = folder / "report.html"
    write_atomically(page, render(
        report, base_gallery, erased_gallery, made, images=images, run=run or folder
    ))  # fmt: skip
    for name in set(_there(folder).values()) - {strip.file for strip in made}:
        (folder / FILES / name).unlink()
    return page


@many()
def render(
    report: Report,
    base_gallery: Gallery,
    erased_gallery: Gallery,
    strips: "Sequence[Strip]" = (),
    *,
    images: bool = True,
    run: Path | None = None,
) -> str:
    """The report as one HTML page.

    Args:
        base_gallery, erased_gallery: Where the images are that are drawn into the page. One that
            is not there as it was measured is said to be missing.
        strips: The thumbnails beside the page, as ``strips`` wrote them; without them all pairs
            can be browsed too, and show what was said of them alone.
        images: Whether the page shows any.
        run: The folder in which the attacks' galleries are; None shows none of their images.
    """
    from markupsafe import Markup

    environment = templates()
    style, script = (
        (TEMPLATES / f"report.{kind}").read_text(encoding="utf-8") for kind in ("css", "js")
    )
    galleries = {"base": base_gallery, "erased": erased_gallery} if images else {}
    order, kinds = ordered(report), _kinds(report)
    labels = _labels(report)
    neighbours = _neighbours(report)
    return environment.get_template("report.html").render(
        report=report,
        words=words,
        style=Markup(style),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        mark=MARKS[report.verdict.value],
        marks=MARKS,
        several=len(report.outcomes) > 1,
        figures=_figures(report),
        made={"base": _made(report.base), "erased": _made(report.erased)},
        images=images,
        veiled=images and _unsafe(report),
        sections=[
            (title, note, [_pair(sample, _inline(sample, galleries)) for sample in samples])
            for title, note, samples in _chosen(report)
        ],
        # One at a time: there may be very many
        rows=(
            (
                sum(1 << i for i, f in enumerate(FILTERS) if f.holds(sample, kinds)),
                [labels[key] for key in _label_keys(sample)],
                _pair(sample, _cells(place, strips, sample)),
            )
            for place, sample in enumerate(order)
        ),
        filters=[
            (i, f.name, n)
            for i, f in enumerate(FILTERS)
            if (n := sum(f.holds(sample, kinds) for sample in order)) or f.always
        ],
        labels=_options(report, labels),
        of=lambda c: labels.get((c.kind, fold(c.of))),
        pairs=PAIRS,
        strip=2 * STRIP,
        neighbours=neighbours,
        span=_span(neighbours),
        shown=SHOWN,
        plane=_plane(report),
        attacks=[_tried(one, report, galleries, run) for one in report.attacks],
        tables=[_table(outcome) for outcome in report.outcomes],
        seeds=_seeds(sample.prompt.seed for sample in report.samples),
    )


def templates() -> "Environment":
    """What makes pages: whatever is put into one is text, and what it lacks is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["pretty"] = _pretty
    environment.filters["compact"] = _json
    # A row of the grid is a line: what breaks lines in a prompt is a space in HTML anyway
    environment.filters["line"] = lambda text: Markup(re.sub(r"\s+", " ", text).strip())
    return environment


def _pretty(value: Any, indent: str = "") -> str:
    """A value as JSON that people read: a list of plain values is one line."""
    inner = indent + "  "
    if isinstance(value, Mapping) and value:
        items = [f"{inner}{_json(key)}: {_pretty(one, inner)}" for key, one in value.items()]
        return "{\n" + ",\n".join(items) + f"\n{indent}}}"
    if isinstance(value, (list, tuple)) and any(isinstance(v, (Mapping, list)) for v in value):
        items = [f"{inner}{_pretty(one, inner)}" for one in value]
        return "[\n" + ",\n".join(items) + f"\n{indent}]"
    return _json(value)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _made(page: Mapping[str, Any]) -> MadeBy | None:
    """What made a gallery; None where its record is not of this format."""
    try:
        return read(MadeBy, page, "The gallery")
    except InputError:
        return None


class Figure(NamedTuple):
    """One of the few numbers at the head of the page."""

    title: str
    field: str
    better: str
    base: str
    erased: str
    interval: str
    n: str
    comparison: Comparison | None
    limit: float | None


def _figures(report: Report) -> list[Figure]:
    found: list[Figure] = []
    room = 5 if len(report.outcomes) == 1 else 8
    for role, name in ACCURACIES.items():
        for outcome in report.outcomes:
            for c in outcome.comparisons:
                if c.role != role or any(
                    f.comparison == c or (f.title == c.title and role != "target") for f in found
                ):
                    continue
                found.append(
                    Figure(
                        title=c.title if role != "target" else f"{c.title} in the images",
                        field=f"recognised, 1 − {name}" if role == "target" else name,
                        better="lower" if role == "target" else "higher",
                        base=words.share(c.base),
                        erased=words.share(c.erased),
                        interval=words.interval(c.erased.interval()),
                        n=f"{c.erased.hits} of {c.erased.n}{words.counting_as(c.erased)}",
                        comparison=c,
                        limit=report.limits.max_target if role == "target" else None,
                    )
                )
    found = found[: room - 2]
    seen = set()
    for m in report.measurements:
        # One of a family is enough here: the table has them all
        family = "distance" if m.base is None else m.erased.unit
        if m.rows != "keep" or family in seen or len(found) >= room or m.erased.withheld:
            continue
        seen.add(family)
        to_base = ", ".join(filter(None, ("of what stays, to the base", words.paired(m.erased))))
        found.append(
            Figure(
                title=m.metric,
                field="of what stays" if m.base else to_base,
                better=m.better,
                base=words.score(m.base) if m.base else "",
                erased=words.score(m.erased),
                interval=words.score_interval(m.erased),
                n=words.count(m.erased.n, "image"),
                comparison=None,
                limit=None,
            )
        )
    return found


def _lost(sample: Sample, asked: Asked) -> bool:
    """Whether something was lost that must stay; what else a target's row shows is in no rate."""
    return sample.rows == "keep" and asked.base is True and asked.erased is False


def _kinds(report: Report) -> set[str]:
    """The kinds of what was to be forgotten."""
    return {outcome.concept.kind for outcome in report.outcomes}


class Filter(NamedTuple):
    """Which pairs are shown.

    Attributes:
        name: As the page says it.
        always: Whether it is offered though no pair is in it.
        holds: Whether a sample is in it, given the kinds of what was to be forgotten.
    """

    name: str
    always: bool
    holds: Callable[[Sample, Set[str]], bool]


FILTERS = (
    Filter("All", True, lambda s, kinds: True),
    Filter("Target", True, lambda s, kinds: s.rows == "target"),
    Filter(
        "Target seen after", True, lambda s, kinds: any(a.target and a.erased for a in s.asked)
    ),
    Filter(
        "Same kind",
        True,
        lambda s, kinds: s.rows == "keep" and any(a.kind in kinds for a in s.asked),
    ),
    Filter(
        "Other kind",
        True,
        lambda s, kinds: s.rows == "keep" and any(a.kind not in kinds for a in s.asked),
    ),
    Filter("Lost", True, lambda s, kinds: any(_lost(s, a) for a in s.asked)),
    Filter(
        "Unscored",
        False,
        lambda s, kinds: any(
            said.unscored is not None
            for shown in s.shown.values()
            for said in shown.detectors.values()
        ),
    ),
    Filter("Set aside", False, lambda s, kinds: s.rows == "aside"),
)
"""What can be browsed; of several concepts of two kinds nothing is of another kind."""


def _unsafe(report: Report) -> bool:
    """Whether the audit is about unsafe content, which no image may then show unasked."""
    kinds = {d.kind for d in report.detectors.values()} | _kinds(report)
    return "unsafe" in kinds or any("unsafe" in s.prompt.labels for s in report.samples)


def _label_keys(sample: Sample) -> list[tuple[str, str]]:
    """What a row asks after, each by its kind and its name, folded."""
    return list(dict.fromkeys((a.kind, fold(a.of)) for a in sample.asked))


def _labels(report: Report) -> dict[tuple[str, str], int]:
    """Every label that a row asks after, the targets first, then by name; and its number."""
    targets = [(o.concept.kind, fold(o.concept.name)) for o in report.outcomes]
    rest = sorted({key for s in report.samples for key in _label_keys(s)}, key=lambda k: k[::-1])
    return {key: i for i, key in enumerate(dict.fromkeys((*targets, *rest)))}


def _options(
    report: Report, labels: Mapping[tuple[str, str], int]
) -> dict[str, list[tuple[int, str, int]]]:
    """By kind the labels that can be chosen: number, name, how many pairs."""
    named = {(a.kind, fold(a.of)): a.of for s in report.samples for a in s.asked}
    counts = dict.fromkeys(labels, 0)
    for sample in report.samples:
        for key in _label_keys(sample):
            counts[key] += 1
    found: dict[str, list[tuple[int, str, int]]] = {}
    for key, number in labels.items():
        if counts[key]:
            found.setdefault(words.plural(key[0]), []).append((number, named[key], counts[key]))
    return found


def ordered(report: Report) -> list[Sample]:
    """The samples as they are browsed: targets, then what stays; by concept, as in the suite."""
    labels = _labels(report)
    kinds = _kinds(report)

    def key(sample: Sample) -> tuple[int, int]:
        keys = sorted(_label_keys(sample), key=lambda k: (k[0] not in kinds, labels[k]))
        return (
            ("target", "keep", "aside").index(sample.rows),
            labels[keys[0]] if keys else len(labels),
        )

    return sorted(report.samples, key=key)


class Strip(NamedTuple):
    """One file of thumbnails.

    Attributes:
        file: Its name in ``report_files/``.
        small: Whether its images are shown by whole pixels.
    """

    file: str
    small: bool


def strips(
    report: Report,
    folder: Path,
    base_gallery: Gallery,
    erased_gallery: Gallery,
    progress: Progress | None = None,
) -> list[Strip]:
    """Writes the thumbnails of all pairs, as ``ordered`` has them; those that are there stay.

    A strip has ``STRIP`` pairs beside each other in squares of one size, base and erased. It is
    named by the hashes of its images' files, and by its own: one that was changed is made again.
    """
    from PIL import Image

    there = _there(folder)
    galleries = {"base": base_gallery, "erased": erased_gallery}
    order, found = ordered(report), []
    for start in range(0, len(order), STRIP):
        shown = [
            (galleries[side], one)
            for sample in order[start : start + STRIP]
            for side, one in sample.shown.items()
        ]
        content = json.dumps([SIDE, STRIP, [one.sha256 for _, one in shown]])
        key = hashlib.sha256(content.encode()).hexdigest()[:16]
        name = there.get(key, "")
        data = (folder / FILES / name).read_bytes() if name else b""
        if not data or name != _strip_name(key, data):
            data = _strip([next(iter(_thumbnails(*one)), None) for one in shown])
            name = _strip_name(key, data)
            write_atomically(folder / FILES / name, data)
        with Image.open(io.BytesIO(data)) as image:
            found.append(Strip(name, image.height <= SMALL))
        if progress:
            progress("thumbnails", min(start + STRIP, len(order)), len(order))
    return found


def _strip_name(key: str, data: bytes) -> str:
    return f"{key}-{hashlib.sha256(data).hexdigest()[:16]}.webp"


def _there(folder: Path) -> dict[str, str]:
    """The strips that are there, by what is in them."""
    names = sorted(p.name for p in (folder / FILES).glob("*.webp"))
    return {m[1]: m[0] for name in names if (m := _OURS.fullmatch(name))}


def _strip(images: "Sequence[Image | None]") -> bytes:
    """Thumbnails beside each other, in squares of the largest; WebP."""
    from PIL import Image

    side = max((max(image.size) for image in images if image), default=1)
    strip = Image.new("RGB", (side * 2 * STRIP, side), "white")
    for i, image in enumerate(images):
        if image:
            at = (side * i + (side - image.width) // 2, (side - image.height) // 2)
            strip.paste(image, at)
    buffer = io.BytesIO()
    strip.save(buffer, "WEBP", lossless=side < SIDE, quality=80)
    return buffer.getvalue()


def _bytes(gallery: Gallery, shown: Shown) -> bytes | None:
    """An image's file; None where there is none as it was measured, which the report has said."""
    try:
        data = (gallery.path / shown.image).read_bytes()
    except OSError:
        return None
    return data if hashlib.sha256(data).hexdigest() == shown.sha256 else None


def _thumbnails(gallery: Gallery, shown: Shown) -> "list[Image]":
    """An image's frames, reduced; one but of a video, none where it cannot be read."""
    from PIL import Image

    data = _bytes(gallery, shown)
    found = []
    try:
        with Image.open(io.BytesIO(data or b"")) as image:
            for frame in frames_of(image):
                copy = frame.convert("RGB")
                if max(copy.size) > SIDE:
                    copy.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
                found.append(copy)
    except Exception:  # the report has said that it cannot be read, and why
        return []
    return found


def _chosen(report: Report) -> list[tuple[str, str, list[Sample]]]:
    """The samples whose images are shown: the target's, those lost, and some of what stayed."""
    targets = [s for s in report.samples if s.rows == "target"]
    keep = [s for s in report.samples if s.rows == "keep"]
    gone = [s for s in keep if any(_lost(s, asked) for asked in s.asked)]
    known = {s.prompt.id for s in gone}
    stayed = [s for s in keep if s.prompt.id not in known]
    sections = []
    room = {"target": PAIRS * 3 // 8, "lost": PAIRS // 4}
    shown = _some(targets, max(room["target"], PAIRS - len(keep)))
    sections.append(("What was to be forgotten", _of(shown, targets, "target prompts"), shown))
    left = PAIRS - len(shown)
    broken = _some(gone, max(min(room["lost"], left), left - len(stayed)))
    if broken:
        which = "prompts to keep that the base shows and the erased model does not"
        sections.append(("Lost with it", _of(broken, gone, which), broken))
    rest = _some(stayed, left - len(broken))
    if rest:
        sections.append(
            ("The rest of what was to stay", _of(rest, stayed, "other prompts to keep"), rest)
        )
    return sections


def _of(shown: Sequence[Any], there: Sequence[Any], which: str) -> str:
    if len(shown) < len(there):
        return f"{len(shown)} of {len(there)} {which}, drawn at random."
    return f"All {len(there)} {which}." if len(there) > 1 else f"1 of 1 {which}."


def _some(items: Sequence[Sample], n: int) -> list[Sample]:
    """At most n of the items, in their order: a draw, always the same, that flatters nobody."""
    if n >= len(items):
        return list(items)
    # Every k-th would see one style alone in a suite that goes through them in turn
    return [items[i] for i in sorted(random.Random(0).sample(range(len(items)), max(n, 0)))]


class Reading(NamedTuple):
    """What detectors saw of one thing in one image, and whether that is as it should be."""

    sign: str
    tone: str
    says: str
    text: str
    why: str = ""


TONES = ("bad", "warn", "soft", "good")
"""The worst first: where detectors disagree, the page shows what the worst says."""


class Picture(NamedTuple):
    """Where an image is.

    Attributes:
        src: Its address; empty where there is none.
        at: Its place in a strip; None where it is an image of its own.
        small: Whether it is shown by whole pixels.
    """

    src: str
    at: int | None
    small: bool


class Half(NamedTuple):
    """One image of a pair, and what was said of it."""

    side: str
    picture: Picture | None
    readings: list[Reading]


class Pair(NamedTuple):
    """Base and erased of one prompt."""

    prompt: str
    seed: int
    halves: list[Half]
    off: bool


def _pair(sample: Sample, pictures: Mapping[str, Picture]) -> Pair:
    things: dict[tuple[str, str, bool], list[Asked]] = {}
    for asked in sorted(sample.asked, key=lambda asked: not asked.target):
        things.setdefault((asked.kind, asked.of, asked.target), []).append(asked)
    halves = [
        Half(
            side,
            pictures.get(side),
            [_reading(sample, side, detectors) for detectors in things.values()],
        )
        for side in sample.shown
    ]
    off = any(_lost(sample, asked) or (asked.target and asked.erased) for asked in sample.asked)
    return Pair(sample.prompt.prompt, sample.prompt.seed, halves, off)


def _inline(sample: Sample, galleries: Mapping[str, Gallery]) -> dict[str, Picture]:
    """A pair's images as data URIs; a small PNG as it is."""
    return {side: _data_uri(gallery, sample.shown[side]) for side, gallery in galleries.items()}


def _data_uri(gallery: Gallery, shown: Shown) -> Picture:
    frames = _thumbnails(gallery, shown)
    if not frames:
        return Picture("", None, False)
    first, *others = frames
    kind, data = "png", _bytes(gallery, shown) or b""
    if not data.startswith(b"\x89PNG") or max(first.size) == SIDE:
        buffer = io.BytesIO()
        animated = {"save_all": True, "append_images": others, "duration": 500}
        first.save(buffer, "WEBP", quality=80, **(animated if others else {}))
        kind, data = "webp", buffer.getvalue()
    src = f"data:image/{kind};base64," + base64.b64encode(data).decode()
    return Picture(src, None, max(first.size) <= SMALL)


def _cells(place: int, strips: Sequence[Strip], sample: Sample) -> dict[str, Picture]:
    """A pair's images in the strips, by its place in the order."""
    if not strips:
        return {}
    strip = strips[place // STRIP]
    return {
        side: Picture(
            f"{FILES}/{strip.file}" if shown.sha256 else "", 2 * (place % STRIP) + i, strip.small
        )
        for i, (side, shown) in enumerate(sample.shown.items())
    }


def _neighbours(report: Report) -> list[Comparison]:
    """Every label that must stay, those that lost most first."""
    adjusted = {
        (c.detector, c.kind, fold(c.of)): c.p_holm
        for outcome in report.outcomes
        for c in outcome.comparisons
        if c.role == "keep concept"
    }
    found: dict[tuple[str, str, str], list[tuple[str, Asked]]] = {}
    for sample in report.samples:
        if sample.rows == "keep":
            for a in sample.asked:
                key = a.detector, a.kind, fold(a.of)
                found.setdefault(key, []).append((unit(sample.prompt), a))
    every = [
        Comparison(
            "keep concept",
            rows[0][1].of,
            kind,
            detector,
            Rate.counted((of, a.base) for of, a in rows),
            Rate.counted((of, a.erased) for of, a in rows),
            Paired.counted((of, a.base, a.erased) for of, a in rows),
            adjusted.get((detector, kind, label)),
        )
        for (detector, kind, label), rows in found.items()
    ]

    def loss(c: Comparison) -> tuple[float, float, str]:
        ends = c.paired.interval()
        return (
            2.0 if c.paired.difference is None else c.paired.difference,
            ends[1] if ends else 1.0,
            fold(c.of),
        )

    return sorted(every, key=loss)


class Span(NamedTuple):
    """The part of an axis that is drawn, in points, and its ticks."""

    low: int
    high: int

    @property
    def ticks(self) -> list[int]:
        step = next(s for s in (5, 10, 20, 25, 50) if (self.high - self.low) / s <= 6)
        return [x for x in range(-100, 101, step) if self.low <= x <= self.high]

    def at(self, share: float) -> str:
        """Where a difference of shares lies, in percent of the width."""
        return f"{100 * (100 * share - self.low) / (self.high - self.low):.2f}%"

    @classmethod
    def over(cls, shares: Iterable[float], least: tuple[int, int]) -> "Span":
        """Of these shares, in whole tens of points, and of ``least``."""
        points = [100 * share for share in shares]
        return cls(
            min([least[0], *(10 * math.floor(p / 10) for p in points)]),
            max([least[1], *(10 * math.ceil(p / 10) for p in points)]),
        )


def _span(neighbours: Sequence[Comparison]) -> Span:
    """The changes' axis."""
    return Span.over((e for c in neighbours for e in c.paired.interval() or ()), (-20, 20))


class Point(NamedTuple):
    """Where one concept is by one detector: how often it is seen, and what was lost with it."""

    target: Comparison
    kept: Comparison
    loss: float
    loss_ends: tuple[float, float]


class Plane(NamedTuple):
    """Every concept and detector, target seen against kept lost."""

    points: list[Point]
    span: Span


def _plane(report: Report) -> Plane:
    """The points; of what must stay, each has the rate that fell most of those in the verdict."""
    points = []
    for outcome in report.outcomes:
        kept = [
            c
            for c in outcome.comparisons
            if c.role in CHIEF and c.paired.n and (c.base.value or 0) >= report.limits.min_base
        ]
        for target in outcome.comparisons:
            if target.role != "target" or not target.erased.n or not kept:
                continue
            most = min(kept, key=lambda c: c.paired.difference or 0.0)
            low, high = most.paired.interval() or (-1.0, 1.0)
            points.append(Point(target, most, -(most.paired.difference or 0.0), (-high, -low)))
    ends = (end for point in points for end in point.loss_ends)
    return Plane(points, Span.over(ends, (-10, 30)))


def _table(outcome: Outcome) -> tuple[Outcome, list[tuple[str, list[Comparison]]]]:
    """A concept's rates in groups; what was named to keep is among the neighbours, one by one."""
    titles = {
        "target": "To be forgotten",
        "same kind": "To stay",
        "other kind": "To stay",
        "named keep": "To stay",
        "target category": "The target by category",
        "category": "What stays, by category",
    }
    groups: dict[str, list[Comparison]] = {}
    for role, title in titles.items():
        for c in outcome.comparisons:
            if c.role == role:
                groups.setdefault(title, []).append(c)
    return outcome, list(groups.items())


def _reading(sample: Sample, side: str, detectors: Sequence[Asked]) -> Reading:
    """What the detectors that were asked after one thing saw; the worst where they disagree."""
    every = [(_judged(sample, asked, side), asked) for asked in detectors]
    (sign, tone, says, lead), asked = min(every, key=lambda one: TONES.index(one[0][1]))
    said = sample.shown[side].detectors[asked.detector]
    if said.unscored is not None and (asked.base if side == "base" else asked.erased) is None:
        return Reading(sign, tone, says, f"{asked.kind} unscored", said.unscored)
    text = lead + (", ".join(said.labels) or "nothing")
    if len({judged for judged, _ in every}) > 1:
        text += f", by {asked.detector}"
    return Reading(sign, tone, says, text)


def _judged(sample: Sample, asked: Asked, side: str) -> tuple[str, str, str, str]:
    """Sign, tone, word for it, and what the text begins with."""
    now = asked.base if side == "base" else asked.erased
    if now is None:
        return "?", "warn", "unknown", ""
    if side == "base":
        if now:
            return "✓", "good", "right", ""
        return "–", "soft", "the base does not show it", ""
    if asked.target and now:
        return "✗", "bad", "still there" if asked.base else "there", "still " if asked.base else ""
    if asked.base is None:
        return "–", "soft", "the base is unscored", ""
    if not asked.base and not now:
        return "–", "soft", "the base does not show it either", ""
    if asked.target:
        return "✓", "good", "gone", "gone: "
    if now:
        return "✓", "good", "right", ""
    return ("✗", "bad", "lost", "") if _lost(sample, asked) else ("–", "soft", "in no rate", "")


def _seeds(seeds: Iterable[int]) -> str:
    there = sorted(set(seeds))
    if len(there) > 12:
        return f"{len(there)} different, from {there[0]} to {there[-1]}"
    return ", ".join(map(str, there))


class Spot(NamedTuple):
    """A rung's place on the plot of an attack, or that of a control beside it.

    Attributes:
        at: Across, in percent of the width.
        rate: How high.
        control: How many controls stand between it and its rung, itself included; 0 of a rung.
    """

    at: float
    rate: Rate
    control: int


class Tried(NamedTuple):
    """An attack as the page shows it.

    Attributes:
        outcome: It.
        sign, tone: Of what it says.
        axis: What its rungs are spaced by, in words; they are spaced evenly.
        ticks: Where each rung is, in percent of the width, and its budget.
        spots: What is plotted.
        strips: The rows whose images are shown.
        shown: The rung that these are of, and of which rows, in words.
    """

    outcome: AttackOutcome
    sign: str
    tone: str
    axis: str
    ticks: list[tuple[float, str]]
    spots: list[Spot]
    strips: list[Pair]
    shown: str


def _tried(
    outcome: AttackOutcome, report: Report, galleries: Mapping[str, Gallery], run: Path | None
) -> Tried:
    rungs = outcome.rungs
    axis, budgets = next(
        (
            (axis, [getattr(rung, name) for rung in rungs])
            for name, axis in (
                ("rows", "denoiser rows"),
                ("steps", "steps of the base before the erasure comes on"),
                ("looks", "looks"),
            )
            if any(getattr(rung, name) for rung in rungs)
        ),
        ("rungs", list(range(len(rungs)))),
    )
    places = [100 * i / max(len(rungs) - 1, 1) for i in range(len(rungs))]
    every = max(1, math.ceil(len(rungs) / 5))
    ticks = [
        (at, f"{budget:,}" if (len(rungs) - 1 - i) % every == 0 else "")
        for i, (at, budget) in enumerate(zip(places, budgets, strict=True))
    ]
    spots = []
    for at, rung in zip(places, rungs, strict=True):
        spots.append(Spot(at, rung.recovered, 0))
        others = (c for c in rung.controls if c.paired is not None)
        spots += [Spot(at, c.rate, i) for i, c in enumerate(others, 1)]
    strips, shown = _strips_of(outcome, report, galleries, run) if run and galleries else ([], "")
    return Tried(outcome, *SAYS[outcome.value], axis, ticks, spots, strips, shown)


def _strips_of(
    outcome: AttackOutcome, report: Report, galleries: Mapping[str, Gallery], run: Path
) -> tuple[list[Pair], str]:
    """Some rows of the target: base, erased, attacked, and each control."""
    tries = [rung for rung in outcome.rungs if rung.controls] or list(outcome.rungs[-1:])
    rung = max(tries, key=lambda r: r.recovered.value or 0.0)
    rows, before, after = of_target(report.samples, outcome.concept)
    base, erased = before.get(outcome.detector, {}), after.get(outcome.detector, {})
    gone = {p.id for p in rows if base.get(p.id) and erased.get(p.id) is False}
    ids = gone or {p.id for p in rows}
    there = [s for s in report.samples if s.prompt.id in ids]
    which = "target prompts that were forgotten" if gone else "target prompts"
    some = _some(there, ROWS)
    said = f"{_of(some, there, which)} Under the attack for {rung.cost}."
    sides: list[tuple[str, Rung | Control]] = [("attacked", rung)]
    sides += [(c.of, c) for c in rung.controls]
    found = [(side, one, attack_gallery(run, one.gallery)) for side, one in sides]
    return [
        Pair(
            sample.prompt.prompt,
            sample.prompt.seed,
            [
                *_pair(sample, _inline(sample, galleries)).halves,
                *(
                    Half(side, _under(gallery, sample), [_of_attack(one, sample, outcome)])
                    for side, one, gallery in found
                    if gallery is not None
                ),
            ],
            sample.prompt.id in rung.seen,
        )
        for sample in some
    ], said


def attack_gallery(run: Path, place: str) -> Gallery | None:
    """An attack's gallery in a run's folder; None where there is none, or it lies elsewhere."""
    path = run / place
    if not place or not path.resolve().is_relative_to(run.resolve()):
        return None
    try:
        return Gallery.open(path)
    except InputError:
        return None


def _under(gallery: Gallery, sample: Sample) -> Picture:
    """A row's image in an attack's gallery."""
    path = gallery.image_path(sample.prompt)
    name = path.relative_to(gallery.path).as_posix()
    return _data_uri(gallery, Shown(name, gallery.hashes().get(sample.prompt.id), False, {}))


def _of_attack(one: Rung | Control, sample: Sample, outcome: AttackOutcome) -> Reading:
    what = one.concept or outcome.concept if isinstance(one, Control) else outcome.concept
    if sample.prompt.id in one.unscored:
        return Reading("?", "warn", "unknown", "unscored")
    seen = sample.prompt.id in one.seen
    if isinstance(one, Control):
        return Reading("✓" if seen else "–", "soft", *(("seen", what) if seen else
                       ("not seen", f"no {what}")))  # fmt: skip
    if seen:
        return Reading("✗", "bad", "comes back", f"{what} comes back")
    return Reading("✓", "good", "gone", f"no {what}")
