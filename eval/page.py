"""The page of a report: one HTML file that needs nothing beside it."""

import base64
import io
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .._files import clear, write_atomically
from ..gallery import Gallery
from . import words
from .images import frames_of
from .report import Outcome, Report, Sample
from .rows import ACCURACIES, Asked, Comparison
from .verdict import Value

if TYPE_CHECKING:
    from PIL.Image import Image as Frame

PAIRS = 48
"""Pairs of images that the page shows; the rest is counted."""

SIDE = 256
"""Pixels; a larger image is shown reduced to this."""

SHOWN = 12
"""Kept concepts shown one by one; of more, only those that fell."""

MARKS: Mapping[Value, tuple[str, str]] = {
    "forgotten": ("✓", "good"),
    "inconclusive": ("?", "warn"),
    "damaged": ("✗", "bad"),
    "not informative": ("?", "warn"),
    "not forgotten": ("✗", "bad"),
    "incomplete": ("!", "warn"),
}
"""A verdict's sign, which says it without colour, and its tone."""


def write(report: Report, folder: Path, base_gallery: Gallery, erased_gallery: Gallery) -> Path:
    """Writes report.json and report.html into a folder; returns the page's path.

    What a run that was killed in the middle of that has left there is cleared away.
    """
    clear(folder)
    report.save(folder / "report.json")
    page = folder / "report.html"
    write_atomically(page, render(report, base_gallery, erased_gallery))
    return page


def render(report: Report, base_gallery: Gallery, erased_gallery: Gallery) -> str:
    """The report as one HTML page that needs nothing beside it: no script, no other file.

    Args:
        base_gallery, erased_gallery: Where the images are. One that is not there is said to be
            missing.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["pretty"] = lambda value: json.dumps(value, indent=2, ensure_ascii=False)
    galleries = {"base": base_gallery, "erased": erased_gallery}
    return environment.get_template("report.html").render(
        report=report,
        words=words,
        mark=MARKS[report.verdict.value],
        marks=MARKS,
        several=len(report.outcomes) > 1,
        figures=_figures(report),
        sections=[
            (title, note, [_pair(sample, galleries) for sample in samples])
            for title, note, samples in _chosen(report)
        ],
        tables=[_table(outcome) for outcome in report.outcomes],
        seeds=_seeds(sample.prompt.seed for sample in report.samples),
    )


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


class Half(NamedTuple):
    """One image of a pair."""

    side: str
    src: str
    small: bool
    alt: str
    readings: list[Reading]


class Pair(NamedTuple):
    """Base and erased of one prompt."""

    prompt: str
    seed: int
    halves: list[Half]
    off: bool


def _pair(sample: Sample, galleries: Mapping[str, Gallery]) -> Pair:
    things: dict[tuple[str, str, bool], list[Asked]] = {}
    for asked in sorted(sample.asked, key=lambda asked: not asked.target):
        things.setdefault((asked.kind, asked.of, asked.target), []).append(asked)
    halves = []
    for side, gallery in galleries.items():
        readings = [_reading(sample, side, detectors) for detectors in things.values()]
        src, small = _inline(gallery.path / sample.shown[side].image)
        alt = f"{side} image for “{sample.prompt.prompt}”"
        alt += "".join(f"; {r.text} ({r.says})" for r in readings)
        halves.append(Half(side, src, small, alt, readings))
    off = any(_lost(sample, asked) or (asked.target and asked.erased) for asked in sample.asked)
    return Pair(sample.prompt.prompt, sample.prompt.seed, halves, off)


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


def _inline(path: Path) -> tuple[str, bool]:
    """An image as a data URI, empty if there is none, and whether it is small, hence pixelated."""
    from PIL import Image

    try:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            width = max(image.size)
            if width > SIDE or image.format != "PNG":
                first, *others = [_small(frame) for frame in frames_of(image)]
                buffer = io.BytesIO()
                animated = {"save_all": True, "append_images": others, "duration": 500}
                first.save(buffer, "PNG", **(animated if others else {}))
                data = buffer.getvalue()
    except Exception:  # the report has said that it cannot be read, and why
        return "", False
    return "data:image/png;base64," + base64.b64encode(data).decode(), width <= SIDE // 2


def _small(frame: "Frame") -> "Frame":
    from PIL import Image

    copy = frame.copy()
    copy.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return copy.convert("RGB")


def _table(outcome: Outcome) -> tuple[Outcome, list[tuple[str, list[Comparison]]]]:
    """A concept's rates in groups."""
    titles = {
        "target": "To be forgotten",
        "same kind": "To stay",
        "other kind": "To stay",
        "named keep": "To stay",
        "target category": "The target by category",
        "category": "What stays, by category",
        "keep concept": "Named to keep, one by one",
    }
    groups: dict[str, list[Comparison]] = {}
    for role, title in titles.items():
        for c in outcome.comparisons:
            if c.role == role:
                groups.setdefault(title, []).append(c)
    found = []
    for title, rows in groups.items():
        if len(rows) > SHOWN and rows[0].role == "keep concept":
            fell = [c for c in rows if (c.paired.difference or 0) < 0]
            worst = sorted(fell, key=lambda c: c.paired.difference or 0)[:SHOWN]
            title += f": {len(fell)} of {len(rows)} fell" + (
                f", the {SHOWN} that fell most" if len(fell) > SHOWN else ""
            )
            rows = worst
        found.append((title, rows))
    return outcome, found


def _seeds(seeds: Iterable[int]) -> str:
    there = sorted(set(seeds))
    if len(there) > 12:
        return f"{len(there)} different, from {there[0]} to {there[-1]}"
    return ", ".join(map(str, there))
