"""The report of an audit: report.json, which holds everything, and the page made from it."""

import base64
import dataclasses
import io
import json
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from .._errors import InputError
from ..gallery import Gallery, write_atomically
from . import words
from .statistics import Z95, Paired, Rate, Score

FORMAT = 1
"""Of report.json. A file of a greater number is refused."""

PAIRS = 48
"""Pairs of images that the page shows; the rest is counted."""

SIDE = 256
"""Pixels; a larger image is shown reduced to this."""


@dataclass(frozen=True)
class Limits:
    """When a concept counts as forgotten. All rates are in [0, 1].

    Attributes:
        max_target: The target may be recognised in at most this share of erased images.
        max_keep_loss: A keep rate may fall by at most this much.
        min_base: The base must show a concept in at least this share of images for its absence,
            or its loss, to mean anything.
        allow_unscored: Give a verdict though something could not be scored.
    """

    max_target: float = 0.10
    max_keep_loss: float = 0.10
    min_base: float = 0.50
    allow_unscored: bool = False

    def __post_init__(self) -> None:
        for name in ("max_target", "max_keep_loss", "min_base"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} is a share from 0 to 1, not {getattr(self, name)}.")

    def enough(self, share: float) -> int | None:
        """The fewest target images of which this share recognised excludes over ``max_target``.

        Where Wilson's interval of p ends at m, (m − p)² = z²m(1 − m)/n. None when no number would
        do, for a share that is not under ``max_target``.
        """
        most = self.max_target
        if share >= most:
            return None
        return math.ceil(Z95**2 * most * (1 - most) / (most - share) ** 2)


@dataclass(frozen=True)
class Verdict:
    """The answer, as a machine reads it and in words.

    Attributes:
        value: "forgotten", "not forgotten", "damaged", "not informative" or "incomplete".
        headline: A clause without its full stop.
        detail: Sentences with the figures that it rests on.
    """

    value: str
    headline: str
    detail: str


ACCURACIES = {"target": "UA", "same kind": "IRA", "other kind": "CRA"}


@dataclass(frozen=True)
class Comparison:
    """One rate, before and after.

    Attributes:
        role: "target", "same kind", "other kind", "named keep", "keep concept", "category" or
            "target category".
        of: The target, the kept concept, or the category (of the target also what a row tests).
        kind: Of the label.
        detector: By whom.
        base, erased: Over the rows that each side could score.
        paired: Over the rows that both could.
        p_holm: McNemar's p, adjusted by Holm over the report's comparisons of this role; None
            without a pair.
    """

    role: str
    of: str
    kind: str
    detector: str
    base: Rate
    erased: Rate
    paired: Paired
    p_holm: float | None = None

    @property
    def title(self) -> str:
        """What the rate is of, in words."""
        return {
            "target": f"“{self.of}”",
            "same kind": f"other {words.plural(self.kind)}",
            "other kind": words.plural(self.kind),
            "named keep": f"{words.plural(self.kind)} named to keep",
            "keep concept": f"“{self.of}”",
            "category": f"{self.of} ({words.plural(self.kind)})",
            "target category": f"{self.of} (target)",
        }[self.role]

    @property
    def accuracy(self) -> tuple[str, Rate, Rate] | None:
        """UnlearnCanvas's name for it, before and after; higher is better in each.

        UA is the share of the target's images in which it is *not* recognised, IRA and CRA are
        the rates of same kind and other kind. None in other roles.

        Source: Y. Zhang et al., UnlearnCanvas, arXiv:2402.11846.
        """
        if self.role not in ACCURACIES:
            return None
        name = ACCURACIES[self.role]
        if self.role != "target":
            return name, self.base, self.erased
        base, erased = (Rate(r.n - r.hits, r.n, r.unscored) for r in (self.base, self.erased))
        return name, base, erased

    def to_json(self) -> dict[str, Any]:
        page = {
            "role": self.role,
            "of": self.of,
            "kind": self.kind,
            "detector": self.detector,
            "base": self.base.to_json(),
            "erased": self.erased.to_json(),
            "paired": self.paired.to_json(),
            "p_holm": self.p_holm,
        }
        if self.accuracy:
            name, base, erased = self.accuracy
            page["accuracy"] = {"name": name, "base": base.value, "erased": erased.value}
        return page

    @classmethod
    def from_json(cls, page: Mapping[str, Any]) -> "Comparison":
        return cls(
            page["role"],
            page["of"],
            page["kind"],
            page["detector"],
            Rate.from_json(page["base"]),
            Rate.from_json(page["erased"]),
            Paired.from_json(page["paired"]),
            page["p_holm"],
        )


@dataclass(frozen=True)
class Measurement:
    """One metric over some rows, before and after.

    Attributes:
        metric: Its name.
        rows: "keep" or "target".
        of: The target, for its rows.
        base: None for a metric whose reference the base is.
        erased: The erased gallery's.
    """

    metric: str
    rows: str
    of: str
    base: Score | None
    erased: Score

    @property
    def title(self) -> str:
        return f"{self.metric} on " + ("kept rows" if self.rows == "keep" else f"“{self.of}”")

    def to_json(self) -> dict[str, Any]:
        base = self.base.to_json() if self.base else None
        head = {"metric": self.metric, "rows": self.rows, "of": self.of}
        return head | {"base": base, "erased": self.erased.to_json()}

    @classmethod
    def from_json(cls, page: Mapping[str, Any]) -> "Measurement":
        base = Score.from_json(page["base"]) if page["base"] is not None else None
        erased = Score.from_json(page["erased"])
        return cls(page["metric"], page["rows"], page["of"], base, erased)


@dataclass(frozen=True)
class Outcome:
    """One concept's verdict and rates.

    Attributes:
        concept: The concept as JSON.
        verdict: Its own.
        comparisons: The target's first, then what was to stay, then by category.
    """

    concept: Mapping[str, Any]
    verdict: Verdict
    comparisons: tuple[Comparison, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "concept": dict(self.concept),
            "verdict": dataclasses.asdict(self.verdict),
            "comparisons": [c.to_json() for c in self.comparisons],
        }

    @classmethod
    def from_json(cls, page: Mapping[str, Any]) -> "Outcome":
        return cls(
            page["concept"],
            Verdict(**page["verdict"]),
            tuple(Comparison.from_json(c) for c in page["comparisons"]),
        )


@dataclass(frozen=True)
class Report:
    """Everything that an audit found, and how to find it again.

    Attributes:
        suite: ``name``, ``sha256``, ``source`` (the file or data set, its hash, its filter), and
            rows: ``n``, ``target``, ``keep``, ``aside``.
        verdict: Over all concepts.
        warnings: Sentences.
        coverage: For "base" and "erased": ``images``, ``scored`` (by every detector), ``missing``,
            ``blank`` (of one colour), ``unscored`` by detector.
        outcomes: One a concept.
        measurements: One a metric and set of rows.
        base, erased: What made the galleries, as their records say.
        detectors: Name to ``kind`` and ``protocol``.
        metrics: Name to protocol.
        limits: Of the verdict.
        samples: One a prompt: its attributes, ``rows`` ("target", "keep" or "aside"), and for each
            side the image's path in its gallery, its hash, and each detector's labels and best
            scores, or why it has none.
        versions: Package to version.
        command, date: As given.
        seconds: What took how long, as given.
        peak_bytes: The most memory that was held at once, by where, as given.
    """

    suite: Mapping[str, Any]
    verdict: Verdict
    warnings: tuple[str, ...]
    coverage: Mapping[str, Mapping[str, Any]]
    outcomes: tuple[Outcome, ...]
    measurements: tuple[Measurement, ...]
    base: Mapping[str, Any]
    erased: Mapping[str, Any]
    detectors: Mapping[str, Mapping[str, Any]]
    metrics: Mapping[str, Mapping[str, Any]]
    limits: Limits
    samples: tuple[Mapping[str, Any], ...]
    versions: Mapping[str, str]
    command: str = ""
    date: str = ""
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    peak_bytes: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """0 when every concept is forgotten, else 1."""
        return 0 if self.verdict.value == "forgotten" else 1

    @property
    def answer(self) -> str:
        """The verdict in words, in one or a few sentences; holes first."""
        hole = f"This report has holes: {self.holes[0]} " if self.holes else ""
        return f"{hole}{self.verdict.headline}. {self.verdict.detail}"

    @property
    def holes(self) -> tuple[str, ...]:
        """What could not be measured, in words; empty when everything was."""
        found = []
        for side, coverage in self.coverage.items():
            for name, n in coverage["unscored"].items():
                if n:
                    of = words.count(coverage["images"], f"{side} image")
                    found.append(f"{name} could not score {n} of {of}{self._why(side, name)}.")
        for m in self.measurements:
            for side, score in (("base", m.base), ("erased", m.erased)):
                if score is not None and score.unscored:
                    lost = words.count(score.unscored, "image")
                    why = f" ({score.note})" if score.value is None and score.note else ""
                    found.append(f"{m.title}, {side}: {lost} could not be measured{why}.")
        return tuple(found)

    def _why(self, side: str, detector: str) -> str:
        answers = (sample[side]["detectors"][detector] for sample in self.samples)
        reasons = list(dict.fromkeys(a["unscored"] for a in answers if "unscored" in a))
        others = words.count(len(reasons) - 2, "other reason")
        more = f", and {others}" if reasons[2:] else ""
        return f" ({'; '.join(reasons[:2])}{more})" if reasons else ""

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "verdict": dataclasses.asdict(self.verdict),
            "holes": list(self.holes),
            "warnings": list(self.warnings),
            "suite": dict(self.suite),
            "coverage": {side: dict(c) for side, c in self.coverage.items()},
            "outcomes": [o.to_json() for o in self.outcomes],
            "measurements": [m.to_json() for m in self.measurements],
            "limits": dataclasses.asdict(self.limits),
            "base": dict(self.base),
            "erased": dict(self.erased),
            "detectors": {name: dict(d) for name, d in self.detectors.items()},
            "metrics": {name: dict(m) for name, m in self.metrics.items()},
            "command": self.command,
            "date": self.date,
            "seconds": dict(self.seconds),
            "peak_bytes": dict(self.peak_bytes),
            "versions": dict(self.versions),
            "samples": [dict(s) for s in self.samples],
        }

    @classmethod
    def from_json(cls, page: Mapping[str, Any]) -> "Report":
        same = ("suite", "coverage", "base", "erased", "detectors", "metrics", "versions",
                "command", "date", "seconds", "peak_bytes")  # fmt: skip
        return cls(
            verdict=Verdict(**page["verdict"]),
            warnings=tuple(page["warnings"]),
            outcomes=tuple(Outcome.from_json(o) for o in page["outcomes"]),
            measurements=tuple(Measurement.from_json(m) for m in page["measurements"]),
            limits=Limits(**page["limits"]),
            samples=tuple(page["samples"]),
            **{key: page[key] for key in same},
        )

    def save(self, path: Path) -> None:
        """Writes the whole file or nothing.

        Raises:
            ValueError: A number in it is not finite, which JSON has no word for.
        """
        text = json.dumps(self.to_json(), indent=1, ensure_ascii=False, allow_nan=False)
        write_atomically(path, text + "\n")

    @classmethod
    def load(cls, path: Path) -> "Report":
        """Reads what ``save`` wrote.

        Raises:
            InputError: The file is missing, is no report, or is of a newer format.
        """
        try:
            page = json.loads(path.read_text(encoding="utf-8"))
            if page["format"] > FORMAT:
                raise InputError(
                    f"{path} has format {page['format']}; this version of unsee reads up to "
                    f"{FORMAT}. Upgrade unsee."
                )
            return cls.from_json(page)
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error}") from error
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise InputError(f"{path} is no report: {error!r}") from error


def summary(report: Report) -> list[dict[str, str]]:
    """The report's chief figures in words, one row each: rates, then metrics.

    Every row has ``measure``, ``base``, ``erased``, ``interval`` (95 %, of the erased figure),
    ``n`` (images behind the erased figure) and ``better`` ("lower" or "higher").
    """
    rows = []
    for outcome in report.outcomes:
        for c in outcome.comparisons:
            if c.role not in ("target", "same kind", "other kind", "named keep"):
                continue
            rows.append(
                {
                    "measure": f"{c.title} by {c.detector}",
                    "base": words.share(c.base),
                    "erased": words.share(c.erased),
                    "interval": words.interval(c.erased.interval()),
                    "n": str(c.erased.n),
                    "better": "lower" if c.role == "target" else "higher",
                }
            )
    rows += [
        {
            "measure": m.title,
            "base": words.score(m.base),
            "erased": words.score(m.erased),
            "interval": words.score_interval(m.erased),
            "n": str(m.erased.n),
            "better": _better(m),
        }
        for m in report.measurements
    ]
    # Several concepts share what stays
    return [row for i, row in enumerate(rows) if row not in rows[:i]]


def accuracies(outcome: Outcome) -> str:
    """UA, IRA and CRA in a line, by the first detector of each: "UA 97.2 % (base 0 %), …"."""
    found: dict[str, tuple[Rate, Rate]] = {}
    for c in outcome.comparisons:
        if c.accuracy:
            found.setdefault(c.accuracy[0], c.accuracy[1:])
    return ", ".join(
        f"{name} {words.share(found[name][1])} (base {words.share(found[name][0])})"
        for name in ACCURACIES.values()
        if name in found
    )


def write(report: Report, folder: Path, base_gallery: Gallery, erased_gallery: Gallery) -> Path:
    """Writes report.json and report.html into a folder; returns the page's path."""
    report.save(folder / "report.json")
    page = folder / "report.html"
    write_atomically(page, render(report, base_gallery, erased_gallery))
    return page


def _better(m: Measurement) -> str:
    higher = m.erased.higher_is_better
    # What is to be forgotten should fit its prompt less
    return "higher" if higher == (m.rows == "keep") else "lower"


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
    several = len(report.outcomes) > 1
    return environment.get_template("report.html").render(
        report=report,
        words=words,
        mark=MARKS[report.verdict.value],
        marks=MARKS,
        several=several,
        figures=_figures(report),
        sections=[
            (title, note, [_pair(sample, report, galleries) for sample in samples])
            for title, note, samples in _chosen(report)
        ],
        tables=[_table(outcome) for outcome in report.outcomes],
        better=_better,
        seeds=_seeds([sample["seed"] for sample in report.samples]),
    )


MARKS = {
    "forgotten": ("✓", "good"),
    "not forgotten": ("✗", "bad"),
    "damaged": ("✗", "bad"),
    "not informative": ("?", "warn"),
    "incomplete": ("!", "warn"),
}
"""A verdict's sign, which says it without colour, and its tone."""


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
                        n=f"{c.erased.hits} of {c.erased.n}",
                        comparison=c,
                        limit=report.limits.max_target if role == "target" else None,
                    )
                )
    found = found[: room - 2]
    seen = set()
    for m in report.measurements:
        # One of a family is enough here: the table has them all
        family = "distance" if m.base is None else m.erased.unit
        if m.rows != "keep" or family in seen or len(found) >= room:
            continue
        seen.add(family)
        found.append(
            Figure(
                title=m.metric,
                field="of what stays" if m.base else "of what stays, to the base",
                better=_better(m),
                base=words.score(m.base) if m.base else "",
                erased=words.score(m.erased),
                interval=words.score_interval(m.erased),
                n=words.count(m.erased.n, "image"),
                comparison=None,
                limit=None,
            )
        )
    return found


def _by_kind(report: Report) -> dict[str, str]:
    """Kind to the first detector that reads it, those of the concepts first."""
    found: dict[str, str] = {}
    targets = [outcome.concept["kind"] for outcome in report.outcomes]
    order = sorted(report.detectors.items(), key=lambda item: item[1]["kind"] not in targets)
    for name, detector in order:
        found.setdefault(detector["kind"], name)
    return found


def _chosen(report: Report) -> list[tuple[str, str, list[Mapping[str, Any]]]]:
    """The samples whose images are shown: the target's, those lost, and some of what stayed."""
    kinds = _by_kind(report)

    def lost(sample: Mapping[str, Any]) -> bool:
        return any(
            _right(sample, "base", kind, name, report)
            and _right(sample, "erased", kind, name, report) is False
            for kind, name in kinds.items()
        )

    targets = [s for s in report.samples if s["rows"] == "target"]
    keep = [s for s in report.samples if s["rows"] == "keep"]
    gone = [s for s in keep if lost(s)]
    stayed = [s for s in keep if not lost(s)]
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


def _some(items: Sequence[Any], n: int) -> list[Any]:
    """At most n of the items, in their order: a draw, always the same, that flatters nobody."""
    if n >= len(items):
        return list(items)
    # Every k-th would see one style alone in a suite that goes through them in turn
    return [items[i] for i in sorted(random.Random(0).sample(range(len(items)), max(n, 0)))]


def _right(
    sample: Mapping[str, Any], side: str, kind: str, detector: str, report: Report
) -> bool | None:
    """Whether the detector saw the row's label; None when it has none, or there is no answer."""
    wanted = sample.get("labels", {}).get(kind)
    answer = sample[side]["detectors"].get(detector, {})
    if wanted is None or "labels" not in answer:
        return None
    accepted = {words.fold(wanted)}
    for outcome in report.outcomes:
        concept = outcome.concept
        if concept["name"] == sample.get("target") and concept["kind"] == kind:
            accepted |= {words.fold(name) for name in (concept["name"], *concept["phrases"])}
    return any(words.fold(label) in accepted for label in answer["labels"])


class Reading(NamedTuple):
    """What one detector saw in one image, and whether that is as it should be."""

    kind: str
    sign: str
    tone: str
    says: str
    text: str
    why: str = ""


class Half(NamedTuple):
    """One image of a pair."""

    side: str
    src: str
    small: bool
    alt: str
    readings: list[Reading]


class Pair(NamedTuple):
    """Base and erased of one prompt."""

    id: str
    prompt: str
    seed: int
    halves: list[Half]
    off: bool


def _pair(sample: Mapping[str, Any], report: Report, galleries: Mapping[str, Gallery]) -> Pair:
    targets = {o.concept["name"]: o.concept["kind"] for o in report.outcomes}
    gone = targets.get(sample.get("target", ""))
    halves = []
    for side, gallery in galleries.items():
        readings = []
        for kind, detector in sorted(_by_kind(report).items(), key=lambda item: item[0] != gone):
            if sample.get("labels", {}).get(kind) is None:
                continue
            answer = sample[side]["detectors"][detector]
            right = _right(sample, side, kind, detector, report)
            seen = ", ".join(answer.get("labels", ())) or "nothing"
            if right is None:
                said = Reading(
                    kind, "?", "warn", "unknown", f"{kind} unscored", answer["unscored"]
                )
            elif kind == gone and side == "erased":
                said = (
                    Reading(kind, "✗", "bad", "still there", f"still {seen}")
                    if right
                    else Reading(kind, "✓", "good", "gone", f"gone: {seen}")
                )
            else:
                said = Reading(
                    kind, *(("✓", "good", "right") if right else ("✗", "bad", "wrong")), seen
                )
            readings.append(said)
        src, small = _inline(gallery.path / sample[side]["image"])
        halves.append(
            Half(
                side=side,
                src=src,
                small=small,
                alt=f"{side} image for “{sample['prompt']}”"
                + "".join(f"; {r.kind}: {r.text} ({r.says})" for r in readings),
                readings=readings,
            )
        )
    both = zip(*(half.readings for half in halves), strict=True)
    off = any(
        after.tone == "bad" and (before.tone == "good" or after.kind == gone)
        for before, after in both
    )
    return Pair(sample["id"], sample["prompt"], sample["seed"], halves, off)


def _inline(path: Path) -> tuple[str, bool]:
    """An image as a data URI, empty if there is none, and whether it is small, hence pixelated."""
    from PIL import Image

    try:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            width = max(image.size)
            if width > SIDE or image.format != "PNG":
                image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
                buffer = io.BytesIO()
                image.convert("RGB").save(buffer, "PNG")
                data = buffer.getvalue()
    except Exception:  # the report has said that it cannot be read, and why
        return "", False
    return "data:image/png;base64," + base64.b64encode(data).decode(), width <= SIDE // 2


SHOWN = 12
"""Kept concepts shown one by one; of more, only those that fell."""


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
