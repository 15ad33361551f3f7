"""The audit: a base model and an erased one on the same prompts and seeds, and what follows."""

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from platform import python_version
from typing import Any, Literal

from .._errors import InputError
from .._reading import many
from .._reading import plain as as_json
from ..gallery import Gallery
from ..prompts import Concept, Prompt, Suite
from .answers import Answers, ImageAnswers, Progress, Seen, Side, look
from .detectors import Detector, says
from .images import Unscored
from .metrics import Metric, Published, biased_last, check_published
from .metrics.shared import SharedFeatures
from .report import (
    Cost,
    Coverage,
    Measurement,
    Outcome,
    Protocol,
    Report,
    Said,
    Sample,
    Shown,
    SuiteRecord,
)
from .rows import Asked, Comparison, Role, Rows, asked, compared, divide, names
from .statistics import holm
from .verdict import Limits, judge, overall, warn
from .words import count, fold

KEPT = "the prompts that must stay are"
"""What ``check_published`` counts in an audit."""

TOP = 5
"""How many of a detector's scores a report's row holds; all of them are in answers.jsonl."""

PACKAGES = (
    "unsee torch torchvision timm open_clip_torch torchmetrics diffusers transformers pillow "
    "numpy onnxruntime opencv-python-headless"
).split()


@dataclass(frozen=True)
class About:
    """What a report says of its making, which no image says.

    Attributes:
        suite_name, suite_source: What the suite is called, and where it is from.
        notes: Warnings beside the report's own.
        command, date: As the report has them.
        seconds: What took how long.
        peak_bytes: The most memory that was held at once, by where.
        versions: Package to version; None is what is installed.
    """

    suite_name: str = ""
    suite_source: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    command: str = ""
    date: str = ""
    seconds: Mapping[str, float] = field(default_factory=dict)
    peak_bytes: Mapping[str, int] = field(default_factory=dict)
    versions: Mapping[str, str] | None = None


NOTHING = About()


def compare(
    base: Gallery,
    erased: Gallery,
    concepts: Sequence[Concept],
    *,
    detectors: Sequence[Detector],
    metrics: Sequence[Metric] = (),
    limits: Limits | None = None,
    about: About = NOTHING,
    base_answers: Answers | None = None,
    erased_answers: Answers | None = None,
    features: SharedFeatures | None = None,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> Report:
    """Measures both galleries and says of each concept whether it is forgotten.

    A row is a target's when its label of the target's kind is the target's name or one of its
    phrases. A row without a label of that kind, whose prompt has one of the phrases in it, is set
    aside. All other rows, if they are no other target's, are kept: on them are measured

        same kind    is the label of the target's kind recognised? (UnlearnCanvas's IRA)
        other kind   is the label of another kind recognised? (CRA)
        named keep   is a label named in the concept's ``keep`` recognised?

    and on the target's rows how often the target is recognised (1 − UA). Every rate is measured on
    both galleries, and compared over the pairs that were scored on both sides.

    Args:
        base, erased: Of the same prompts, in the same order.
        detectors: At least one of each target's kind; several of a kind are each reported, and
            the verdict goes by the worst.
        metrics: Those that need no reference are taken over the kept rows and over each target's;
            those that do, over the kept rows, the base's being the reference.
        limits: Of the verdict.
        about: What the report says that no image does.
        base_answers, erased_answers: Earlier answers, used where the image and the protocol are
            the same; the new ones are added to them.
        features: What networks made of images in earlier runs, likewise.
        progress: Told "images measured", how many are done, and of how many.

    Raises:
        InputError: The galleries are of different prompts, a target has no rows or no detector, or
            two detectors or metrics have one name.
    """
    metrics = biased_last(metrics)
    _same_prompts(base, erased)
    rows = divide(concepts, base.prompts, detectors)
    check_published(metrics, len(rows.keep), KEPT)
    alone = [m for m in metrics if not m.paired]
    after, before = look(
        Side(erased, detectors, metrics, erased_answers or Answers(), features),
        Side(base, detectors, alone, base_answers or Answers(), features),
        batch_size=batch_size,
        progress=progress,
    )
    return conclude(
        base,
        erased,
        before,
        after,
        rows,
        detectors=detectors,
        metrics=metrics,
        limits=limits,
        about=about,
    )


@many()
def conclude(
    base: Gallery,
    erased: Gallery,
    before: Seen,
    after: Seen,
    rows: Rows,
    *,
    detectors: Sequence[Detector],
    metrics: Sequence[Metric] = (),
    limits: Limits | None = None,
    about: About = NOTHING,
) -> Report:
    """What follows from what was seen in both galleries: all of ``compare`` but the looking.

    Args:
        before, after: What was found in the base's images and in the erased model's.
        rows: The galleries' prompts, as ``divide`` has them.
        detectors, metrics, limits, about: As ``compare``.

    Raises:
        InputError: The galleries are of different prompts.
    """
    limits = limits or Limits()
    _same_prompts(base, erased)
    sides = {"base": before.rows, "erased": after.rows}
    measured = _measure(before, after, rows, metrics)
    holes = _holes(sides, measured)
    looked = {
        p.id: asked(rows, p, detectors, sides["base"][p.id].found, sides["erased"][p.id].found)
        for p in base
    }
    found_of = _adjusted({c: _comparisons(c, rows, detectors, looked) for c in rows.targets})
    outcomes = [
        Outcome(concept, judge(concept, comparisons, holes, limits), tuple(comparisons))
        for concept, comparisons in found_of.items()
    ]
    report = Report(
        verdict=overall([o.verdict for o in outcomes]),
        warnings=(),
        suite=SuiteRecord(
            name=about.suite_name,
            sha256=Suite(about.suite_name or "suite", base.prompts).sha256,
            n=len(base),
            target=len(base) - len(rows.keep) - len(rows.aside),
            keep=len(rows.keep),
            aside=len(rows.aside),
            source=dict(about.suite_source),
        ),
        coverage={
            side: _coverage(found, [d.name for d in detectors]) for side, found in sides.items()
        },
        outcomes=tuple(outcomes),
        measurements=tuple(measured),
        limits=limits,
        base=as_json(base.made_by) or {},
        erased=as_json(erased.made_by) or {},
        costs=tuple(_costs(erased)),
        detectors={d.name: Protocol(d.kind, plain(d.protocol)) for d in detectors},
        metrics={m.name: plain(m.protocol) for m in metrics},
        command=about.command,
        date=about.date,
        seconds=dict(about.seconds),
        peak_bytes=dict(about.peak_bytes),
        versions=dict(installed() if about.versions is None else about.versions),
        samples=tuple(
            Sample(
                p,
                rows.role(p),
                looked[p.id],
                _shown(p, sides["base"][p.id], detectors, base),
                _shown(p, sides["erased"][p.id], detectors, erased),
            )
            for p in base
        ),
    )
    return replace(report, warnings=(*about.notes, *_warnings(report)))


def installed() -> dict[str, str]:
    """The versions of Python and of the packages that figures depend on, those that are here."""
    found = {"python": python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def plain(value: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON would give it back, so that a report is equal to what is loaded from its file."""
    found: dict[str, Any] = json.loads(json.dumps(dict(value)))
    return found


def _same_prompts(base: Gallery, erased: Gallery) -> None:
    if len(base) != len(erased):
        raise InputError(
            f"The base gallery has {len(base)} prompts and the erased {len(erased)}: "
            "make both from one suite."
        )
    for ours, theirs in zip(base, erased, strict=True):
        if ours != theirs:
            raise InputError(
                f"The galleries are of different prompts, first at {ours.id!r} (base) and "
                f"{theirs.id!r} (erased): make both from one suite."
            )
    if not len(base):
        raise InputError("The galleries are empty: an audit of nothing says nothing.")


def _comparisons(
    concept: Concept,
    rows: Rows,
    detectors: Sequence[Detector],
    looked: Mapping[str, Sequence[Asked]],
) -> list[Comparison]:
    """Every rate of one concept, before and after; those without a row are left out."""
    found: list[Comparison] = []
    Pairs = Sequence[tuple[Prompt, Asked]]

    def add(role: Role, of: str, detector: Detector, pairs: Pairs) -> None:
        if pairs:
            found.append(compared(role, of, detector, pairs))

    def of_target(detector: Detector) -> Pairs:
        return [
            (p, a)
            for p in rows.targets[concept]
            for a in looked[p.id]
            if a.detector == detector.name and a.target and a.of == concept.name
        ]

    def kept(detector: Detector) -> Pairs:
        return [(p, a) for p in rows.keep for a in looked[p.id] if a.detector == detector.name]

    # One that has no word for it would see it nowhere
    same = [d for d in detectors if d.kind == concept.kind and says(d, names(concept))]
    for d in same:
        add("target", concept.name, d, of_target(d))
    for d in same:
        add("same kind", "others", d, kept(d))
    for d in detectors:
        if d.kind != concept.kind:
            add("other kind", "all", d, kept(d))
    named = dict.fromkeys(fold(phrase) for phrase in concept.keep)
    for d in detectors:
        every = kept(d)
        by_label: dict[str, list[tuple[Prompt, Asked]]] = {label: [] for label in named}
        for prompt, what in every:
            by_label.get(fold(what.of), []).append((prompt, what))
        of_named = [(p, a) for p, a in every if fold(a.of) in by_label]
        # A concept that names all others to keep has this rate already
        if len(of_named) < len(every):
            add("named keep", "named to keep", d, of_named)
        for label, pairs in by_label.items():
            add("keep concept", label, d, pairs)
    for d in same:
        for attribute in ("tests", "category"):
            for group, pairs in _groups(of_target(d), attribute).items():
                add("target category", group, d, pairs)
        for group, pairs in _groups(kept(d), "category").items():
            add("category", group, d, pairs)
    return found


def _adjusted(of: Mapping[Concept, Sequence[Comparison]]) -> dict[Concept, list[Comparison]]:
    """The same with Holm's p-values, over all concepts' comparisons of one role."""
    families: dict[str, dict[Comparison, float]] = {}
    for c in (c for comparisons in of.values() for c in comparisons):
        if c.paired.p_value is not None:
            # Concepts of one kind share what stays, which is then one test
            families.setdefault(c.role, {})[c] = c.paired.p_value
    adjusted: dict[Comparison, float] = {}
    for family in families.values():
        adjusted |= dict(zip(family, holm(list(family.values())), strict=True))
    return {
        concept: [replace(c, p_holm=adjusted.get(c)) for c in comparisons]
        for concept, comparisons in of.items()
    }


def _groups(
    pairs: Sequence[tuple[Prompt, Asked]], attribute: str
) -> dict[str, list[tuple[Prompt, Asked]]]:
    """The rows by category, or by what they test, in order; none when there is but one group."""
    found: dict[str, list[tuple[Prompt, Asked]]] = {}
    for prompt, what in pairs:
        if name := getattr(prompt, attribute):
            found.setdefault(name, []).append((prompt, what))
    return found if len(found) > 1 else {}


def _measure(base: Seen, erased: Seen, rows: Rows, metrics: Sequence[Metric]) -> list[Measurement]:
    over: list[tuple[Literal["keep", "target"], str, Sequence[Prompt]]] = [("keep", "", rows.keep)]
    over += [("target", concept.name, of_target) for concept, of_target in rows.targets.items()]
    return [
        Measurement(
            metric.name,
            which,
            of,
            None if metric.needs_reference else base.score(metric, prompts),
            erased.score(metric, prompts, base, prompts),
        )
        for metric in metrics
        for which, of, prompts in over
        if prompts
        and (which == "keep" or not (metric.needs_reference or isinstance(metric, Published)))
    ]


def _holes(
    sides: Mapping[str, Mapping[str, ImageAnswers]], measured: Sequence[Measurement]
) -> int:
    """How many measurements failed, detectors' and metrics'."""
    answers = (a for found in sides.values() for row in found.values() for a in row.found.values())
    scores = (s for m in measured for s in (m.base, m.erased) if s is not None)
    return sum(isinstance(a, Unscored) for a in answers) + sum(s.unscored for s in scores)


def _coverage(found: Mapping[str, ImageAnswers], detectors: Sequence[str]) -> Coverage:
    return Coverage(
        images=len(found),
        scored=sum(
            not any(isinstance(a, Unscored) for a in row.found.values()) for row in found.values()
        ),
        missing=sum(row.sha256 is None for row in found.values()),
        blank=sum(row.blank for row in found.values()),
        unscored={
            name: sum(isinstance(row.found[name], Unscored) for row in found.values())
            for name in detectors
        },
    )


def _costs(gallery: Gallery) -> list[Cost]:
    """What the erasures cost, as far as a gallery's record says."""
    used = gallery.made_by.erasures if gallery.made_by else ()
    return [Cost(e.name, e.method, e.seconds, e.peak_memory, e.bytes, e.weight) for e in used]


def _shown(
    prompt: Prompt, answers: ImageAnswers, detectors: Sequence[Detector], gallery: Gallery
) -> Shown:
    """One image of a row, and the best scores that each detector gave it."""
    said = {}
    for d in detectors:
        answer = answers.found[d.name]
        if isinstance(answer, Unscored):
            said[d.name] = Said(answer.seen, {}, answer.reason)
            continue
        wanted = fold(prompt.labels.get(d.kind, ""))
        said[d.name] = Said(tuple(answer.labels), _best(answer.scores, wanted))
    image = gallery.image_path(prompt).relative_to(gallery.path).as_posix()
    return Shown(image, answers.sha256, answers.blank, said)


def _best(scores: Mapping[str, float], wanted: str) -> dict[str, float]:
    """The ``TOP`` highest scores, the highest first, and that of the label that is wanted."""
    every = scores.items()
    # All need not be put in order by name to find the few
    least = min(sorted([v for _, v in every])[-TOP:], default=0.0)
    high = [item for item in every if item[1] >= least]
    best = dict(sorted(high, key=lambda item: (-item[1], item[0]))[:TOP])
    if wanted:
        best |= {label: scores[label] for label in _folded(tuple(scores)).get(wanted, ())}
    # Below 10, what is rounded to five digits after the point has six at most
    return {k: v if -10 < v < 10 else float(f"{v:.6g}") for k, v in best.items()}


@functools.lru_cache(256)
def _folded(labels: tuple[str, ...]) -> Mapping[str, list[str]]:
    """Labels by how they are compared."""
    found: dict[str, list[str]] = {}
    for label in labels:
        found.setdefault(fold(label), []).append(label)
    return found


def _warnings(report: Report) -> list[str]:
    """What a reader must know beside the verdict, in words."""
    found = []
    pairs = [(s.base.sha256, s.erased.sha256) for s in report.samples]
    if all(b is not None and b == e for b, e in pairs):
        found.append("Every erased image is the base's, byte for byte: nothing was erased.")
    for side, coverage in report.coverage.items():
        if n := coverage.blank:
            found.append(
                f"{count(n, side + ' image')} of {coverage.images} {'is' if n == 1 else 'are'} of "
                "one colour and so unscored: a decoder that fails, or a safety checker's black "
                "square, would look forgotten."
            )
    for outcome in report.outcomes:
        found += warn(outcome.comparisons, report.limits)
    for m in report.measurements:
        for score in (m.base, m.erased):
            if score is not None and score.value is None:
                found.append(f"{m.title}: no value. {score.note[:1].upper()}{score.note[1:]}.")
            elif score is not None and score.withheld:
                found.append(f"{m.title}: {score.withheld}. The value is in report.json alone.")
    return list(dict.fromkeys(found))
