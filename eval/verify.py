"""A run made out again from its images and answers, and what in it does not follow from them.

A run is the folder of an audit: two galleries, each with its detectors' answers, a report and its
page. Of these the images and the answers are measured, and all the rest follows:

    images.jsonl, report.json    each image's SHA-256
    gallery.json                 the hash of samples.jsonl, and one model on both sides
    answers.jsonl                an answer for every image, by the detector of the report, whose
                                 labels follow from its scores
    report.json                  every value but what nothing else in the run says
    report.html                  all of it, by report.json and the images
    attacks/                     the same of every attack's galleries and its controls': what comes
                                 back, and what the attack says

A cause is named in its own place, and what follows from it is not named once more where that can
be helped: of an image that was exchanged, or an answer that is gone, the report's own word is
taken for the rest.

What this cannot find: a run of which every part was changed to fit the others. For that, images
are made again with the recorded model (``unsee.verify(..., rerun=)``) and detectors asked again.
"""

import base64
import difflib
import hashlib
import io
import json
import math
import os
import random
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from .._errors import InputError
from .._reading import loads, plain, read
from .._settings import shown
from ..gallery import Gallery, MadeBy
from ..prompts import Concept, Prompt
from . import words
from .answers import Answers, ImageAnswers, Progress, Seen, Side, detect, look
from .attack import Answers as Told
from .attack import (
    AttackOutcome,
    Control,
    Rung,
    control,
    either,
    judged,
    of_target,
    positive,
    rates,
    told,
    worst,
)
from .audit import About, conclude
from .detectors import (
    DETECTORS,
    Detection,
    Detector,
    Ruled,
    find_detector,
    fingerprint,
    highest,
)
from .images import Taken, Unscored
from .metrics import METRICS, Metric, find_metric
from .page import FILES, attack_gallery, write
from .report import FORMAT, Measurement, Protocol, Report, Said, Sample, SuiteRecord
from .rows import divide
from .rows import names as labels_of
from .rows import seen as sees
from .statistics import Score
from .verdict import Limits

if TYPE_CHECKING:
    from PIL.Image import Image

SIDES = ("base", "erased")

COUNTED, MEASURED = 1e-9, 1e-4
"""How far a figure may be off, relative: one that follows from counts, and a metric's value, in
which another machine's arithmetic shows."""

SCORED = 1e-3
"""How far a detector's score in [0, 1] may be off when it is asked again on another machine."""

LEVELS = 4
"""Of 255: by how much an image that is made again may differ and be the same but for rounding."""

TEXTS = 5
"""How many texts of the page are named that differ."""


@dataclass(frozen=True)
class Verified:
    """What was found in a run.

    Attributes:
        run: The folder.
        differences: What does not follow from the rest, a line each; empty where all holds.
        checked: What was looked at, in words.
        recorded: What nothing in the run says twice, or nobody looked at, and is taken as it is
            recorded; a line each.
    """

    run: str
    differences: tuple[str, ...]
    checked: tuple[str, ...] = ()
    recorded: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """0 where all holds, else 1."""
        return 1 if self.differences else 0

    def __add__(self, other: "Verified") -> "Verified":
        return Verified(
            self.run,
            self.differences + other.differences,
            self.checked + other.checked,
            self.recorded + other.recorded,
        )


@dataclass(frozen=True)
class _Given:
    """What of a report other figures are made from, and what nothing else in the run says."""

    suite: SuiteRecord
    limits: Limits
    detectors: Mapping[str, Protocol]
    metrics: Mapping[str, Mapping[str, Any]]
    measurements: tuple[Measurement, ...]
    warnings: tuple[str, ...]
    command: str
    date: str
    seconds: Mapping[str, float]
    peak_bytes: Mapping[str, int]
    versions: Mapping[str, str]
    samples: tuple[Sample, ...]
    outcomes: tuple["_Named", ...]
    attacks: tuple[AttackOutcome, ...] = ()

    later: ClassVar[tuple[str, ...]] = ("attacks",)


@dataclass(frozen=True)
class _Named:
    concept: Concept
    derived: ClassVar[tuple[str, ...]] = ("verdict", "comparisons")


@dataclass(frozen=True)
class Run:
    """A run as it lies there.

    Attributes:
        path: The folder.
        page: report.json's values.
        given: What is made from, of them; None where they cannot be read.
        galleries: "base" and "erased"; those that cannot be opened are left out.
        faults: What kept them from that, a line each.
    """

    path: Path
    page: Mapping[str, Any]
    given: _Given | None
    galleries: Mapping[str, Gallery]
    faults: tuple[str, ...]

    @classmethod
    def load(cls, path: Path) -> "Run":
        """Reads what there is.

        Raises:
            InputError: The folder is no run, or one whose report is of another format.
        """
        file = path / "report.json"
        if not file.is_file() or not any((path / side).is_dir() for side in SIDES):
            lacks = file.name if not file.is_file() else "base/ and no erased/"
            raise InputError(
                f"{path} is no run: it has no {lacks}. Wanted is the folder that 'unsee audit -o' "
                "writes."
            )
        page = loads(_bytes(file), str(file))
        if not isinstance(page, Mapping) or page.get("format") != FORMAT:
            Report.from_json(page, str(file))  # which says why it is none
        faults, given = [], None
        try:
            names = _Given.__dataclass_fields__
            given = read(_Given, {n: page[n] for n in names if n in page}, "report.json")
            Report.from_json(page, "report.json")
        except ValueError as error:
            faults.append(str(error))
        galleries = {}
        for side in SIDES:
            try:
                galleries[side] = Gallery.open(path / side)
            except InputError as error:
                faults.append(str(error))
        return cls(path, page, given, galleries, tuple(faults))

    @property
    def concepts(self) -> list[Concept] | None:
        """What was to be forgotten; None where the report cannot be read."""
        return None if self.given is None else [one.concept for one in self.given.outcomes]


@dataclass(frozen=True)
class Instruments:
    """What a run was measured with, as far as it can be had here.

    Attributes:
        detectors: By the report's names; stand-ins for those that are not here.
        metrics: In the report's order.
        loaded: The names of the detectors that are here, and by the report's protocol.
        absent: The names of those that are not here and of which a stand-in has the rule.
        faults: What is here and measures by another protocol, a line each.
        recorded: What is taken as it is recorded, a line each.
    """

    detectors: Sequence[Detector]
    metrics: Sequence[Metric]
    loaded: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()
    recorded: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        run: Run,
        detectors: Sequence[str | Detector] = (),
        metrics: Sequence[str | Metric] = (),
        as_recorded: Sequence[str] = (),
    ) -> "Instruments":
        """Finds what a run was measured with.

        Args:
            run: The run.
            detectors, metrics: Those that are not known by their names in the report.
            as_recorded: Names of detectors and metrics that are not looked for.

        Raises:
            InputError: A metric, or a detector without a rule in its protocol, is not to be had,
                or one is named that the run has not.
        """
        if run.given is None:
            return cls((), ())
        prompts = [sample.prompt for sample in run.given.samples]
        eyes = {d.name: d for d in (find_detector(d, prompts) for d in detectors)}
        rulers = {
            m.name: m for m in (find_metric(m) if isinstance(m, str) else m for m in metrics)
        }
        known = (*run.given.detectors, *run.given.metrics)
        if others := [n for n in (*eyes, *rulers, *as_recorded) if n not in known]:
            raise InputError(
                f"{run.path} was not measured with {others[0]!r}, but with: {', '.join(known)}."
            )
        found: list[Detector] = []
        loaded: list[str] = []
        absent: list[str] = []
        faults: list[str] = []
        recorded: list[str] = []
        for name, record in run.given.detectors.items():
            stand_in = _stand_in(name, record)
            if name in as_recorded:
                found.append(_Recorded(name, record.kind, stand_in.labels, record.protocol))
                recorded.append(f"The labels of {name}, whatever its scores are.")
                continue
            detector = eyes.get(name) or _known(DETECTORS, find_detector, name)
            if detector is None and not isinstance(stand_in, Ruled):
                raise InputError(_how_to("detector", name))
            if detector is not None and _same(detector.protocol, record.protocol):
                loaded.append(name)
                if not isinstance(detector, Ruled):
                    recorded.append(
                        f"The labels of {name}: no rule of its own makes them of its scores."
                    )
                found.append(detector)
                continue
            if detector is None:
                absent.append(name)
            else:
                faults.append(_other_protocol(name, record.protocol, detector.protocol))
            found.append(stand_in)
        measured: list[Metric] = []
        for name, protocol in run.given.metrics.items():
            if name in as_recorded:
                measured.append(_Replayed.of(name, protocol, run.given.measurements))
                recorded.append(f"The figures of {name}.")
                continue
            metric = rulers.get(name) or _known(METRICS, find_metric, name)
            if metric is None:
                raise InputError(_how_to("metric", name))
            if not _same(metric.protocol, protocol):
                faults.append(_other_protocol(name, protocol, metric.protocol))
                metric = _Replayed.of(name, protocol, run.given.measurements)
            measured.append(metric)
        return cls(found, measured, *map(tuple, (loaded, absent, faults, recorded)))


def verify(
    run: Run,
    instruments: Instruments,
    *,
    ask: bool = False,
    notes: Callable[[Gallery, Gallery], Sequence[str]] = lambda base, erased: (),
    batch_size: int = 64,
    progress: Progress | None = None,
) -> Verified:
    """Makes a run out again, and says what does not follow.

    Args:
        run: The run.
        instruments: What it was measured with.
        ask: Whether detectors are asked again about every image.
        notes: What a report of two galleries must say of them beside its own warnings.
        batch_size: Images on each side at a time.
        progress: Told "images measured", how many are done, and of how many.

    Raises:
        InputError: Detectors are to be asked, and one is not here.
    """
    if ask and instruments.absent:
        raise InputError(_how_to("detector", instruments.absent[0]))
    given = run.given
    found = [*run.faults, *instruments.faults, *_heads(run.galleries)]
    recorded = [*instruments.recorded]
    unmade = {side: _unmade(side, gallery, found) for side, gallery in run.galleries.items()}
    if given is None or len(run.galleries) < len(SIDES):
        for side, ids in unmade.items():
            found += [f"{side}/images/{id}.png {why}." for id, why in ids.items()]
        return Verified(str(run.path), tuple(found), (), tuple(recorded))
    base, erased = (run.galleries[side] for side in SIDES)
    asked = [d for d in instruments.detectors if d.name in instruments.loaded] if ask else []
    readers = [_Reader(), *asked]
    rulers = [m for m in instruments.metrics if not isinstance(m, _Replayed)]
    after, before = look(
        Side(erased, readers, rulers),
        Side(base, readers, [m for m in rulers if not m.paired]),
        batch_size=batch_size,
        progress=progress,
    )
    sides = [
        _Side(side, run.galleries[side], looked, given, instruments.detectors)
        for side, looked in zip(SIDES, (before, after), strict=True)
    ]
    for of in sides:
        found += [*of.faults(unmade[of.name]), *of.changed(asked)]
    metrics = instruments.metrics
    if any(of.swapped(prompt) for of in sides for prompt in of.gallery):
        # They are named, and what follows from them need not be
        metrics = [_Replayed.of(m.name, m.protocol, given.measurements) for m in metrics]
        recorded.append("The figures of metrics: images differ that they were taken from.")
    stand_ins = [m.name for m in metrics if isinstance(m, _Replayed)]
    seen = {}
    for of in sides:
        nothing = {prompt.id: Taken(prompt, None) for prompt in of.gallery}
        seen[of.name] = Seen(of.rows, {**of.looked.taken, **dict.fromkeys(stand_ins, nothing)})
    report, values = None, 0
    try:
        report = conclude(
            base,
            erased,
            seen["base"],
            seen["erased"],
            divide(run.concepts or (), base.prompts, instruments.detectors),
            detectors=instruments.detectors,
            metrics=metrics,
            limits=given.limits,
            about=About(
                suite_name=given.suite.name,
                suite_source=given.suite.source,
                command=given.command,
                date=given.date,
                seconds=given.seconds,
                peak_bytes=given.peak_bytes,
                versions=given.versions,
            ),
        )
    except InputError as error:
        found.append(str(error))
    looked_at = _Attacks(run, given, instruments, asked, found, recorded)
    if report is not None:
        report = report.with_attacks([looked_at.again(one, report) for one in given.attacks])
        try:
            said = notes(base, erased)
        except InputError as error:
            said = ()
            found.append(str(error))
        report, lines, own = _warned(report, given.warnings, said)
        found += lines
        if own:
            recorded.append(f"{words.count(own, 'warning')} of the suite or the model.")
        # From the rows, which are causes, up to the verdict, which follows from them
        wanted = dict(reversed(json.loads(json.dumps(report.to_json())).items()))
        places = list(_apart(run.page, wanted, ()))
        values = _leaves(wanted)
        found += [f"report.json: {line}" for line in places]
        found += _pages(run, report, base, erased)
    looked_at.unnamed()
    recorded.append("When, by which command and versions the run was made, and how long it took.")
    if not ask:
        recorded.append("What the detectors said: they were not asked again (--ask).")
    checked = [
        words.count(len(base) + len(erased) + looked_at.images, "image"),
        words.count(
            len(given.detectors) * (len(base) + len(erased)) + looked_at.answers, "answer"
        ),
        f"{words.count(values, 'value')} of report.json",
        "report.html",
    ]
    return Verified(str(run.path), tuple(dict.fromkeys(found)), tuple(checked), tuple(recorded))


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}.") from error


# Detectors and metrics


@dataclass(frozen=True)
class _Recorded:
    """Stands for a detector that is not here: what the report says of it, and no eye."""

    name: str
    kind: str
    labels: tuple[str, ...] | None
    protocol: Mapping[str, Any]

    def __call__(self, images: Sequence["Image"]) -> list[Detection | Unscored]:
        raise AssertionError("a stand-in sees nothing")


@dataclass(frozen=True)
class _Highest(_Recorded):
    """The same of a detector that sees the labels of the highest scores."""

    top: int = 1

    def follows(self, answer: Detection) -> bool:
        return highest(answer, self.labels or (), self.top)


def _stand_in(name: str, record: Protocol) -> _Recorded:
    """What stands for a detector, with the rule that its protocol names, if it does."""
    classes, rule = record.protocol.get("classes"), record.protocol.get("threshold")
    if not isinstance(classes, list) or not all(isinstance(c, str) for c in classes):
        return _Recorded(name, record.kind, None, record.protocol)
    top = 1 if rule == "argmax" else _top(rule)
    if top:
        return _Highest(name, record.kind, tuple(classes), record.protocol, top)
    return _Recorded(name, record.kind, None, record.protocol)


def _top(rule: Any) -> int:
    found = re.fullmatch(r"top-(\d{1,6})", rule) if isinstance(rule, str) else None
    return int(found[1]) if found else 0


class _Reader:
    """A detector that sees whether an image can be read, so that ``look`` says why it cannot."""

    name, kind, labels = "verify/readable", "object", ()
    protocol: Mapping[str, Any] = {}

    def __call__(self, images: Sequence["Image"]) -> list[Detection | Unscored]:
        return [Detection((), {}) for _ in images]


@dataclass(frozen=True)
class _Replayed:
    """Stands for a metric that is not here: says the report's scores, in the report's order."""

    name: str
    protocol: Mapping[str, Any]
    higher_is_better: bool
    unit: str
    needs_reference: bool
    scores: Iterator[Score] = field(compare=False)
    paired: bool = False

    @classmethod
    def of(
        cls, name: str, protocol: Mapping[str, Any], measured: Sequence[Measurement]
    ) -> "_Replayed":
        ours = [m for m in measured if m.metric == name]
        scores = [s for m in ours for s in (m.base, m.erased) if s is not None]
        first = ours[0].erased if ours else Score(None, 0, None, True, "")
        alone = all(m.base is None for m in ours)
        return cls(name, protocol, first.higher_is_better, first.unit, alone, iter(scores))

    def look(self, images: Sequence["Image"], partners: Sequence["Image"] = ()) -> Sequence[Any]:
        raise AssertionError("a stand-in takes nothing")

    def score(self, ours: Sequence[Taken], theirs: Sequence[Taken] = ()) -> Score:
        return next(self.scores)


def _known(registry: Mapping[str, Any], find: Callable[[str], Any], name: str) -> Any:
    """What the report's name alone is enough to find; None where it is not, or not to be had."""
    if name not in registry:
        return None
    try:
        return find(name)
    except InputError:
        return None


def _how_to(what: str, name: str) -> str:
    return (
        f"The {what} {name} cannot be had by its name alone: name it as the audit did (--{what}), "
        f"or take its word as recorded (--as-recorded {name})."
    )


def _same(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    return fingerprint(plain(ours)) == fingerprint(plain(theirs))


def _other_protocol(name: str, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    here = json.loads(json.dumps(dict(ours)))
    key = next(k for k in (*theirs, *here) if theirs.get(k) != here.get(k))
    return (
        f"{name} measures here by another protocol than report.json names: its {key} is "
        f"{shown(here.get(key))}, and was {shown(theirs.get(key))}."
    )


# Galleries and answers


def _heads(galleries: Mapping[str, Gallery]) -> Iterator[str]:
    """What the galleries' heads say that cannot be of one audit."""
    made = {side: gallery.made_by or MadeBy() for side, gallery in galleries.items()}
    if "base" in made and made["base"].erasures:
        yield "base/gallery.json: the base model has an erasure in it."
    if len(made) == len(SIDES):
        base, erased = (replace(made[side], erasures=()) for side in SIDES)
        if not made["erased"].erasures:  # what somebody else made, which is another model
            base, erased = (replace(by, model=None) for by in (base, erased))
        if difference := base.difference(erased):
            yield f"erased/ was made with another {difference} than base/."


def _unmade(side: str, gallery: Gallery, found: list[str]) -> dict[str, str]:
    """The ids of images that are not as images.jsonl has them, and how they are."""
    try:
        unmade = gallery.unmade()
    except InputError as error:
        found.append(str(error))
        return {}
    return {
        p.id: "is not the file whose SHA-256 images.jsonl has"
        if gallery.image_path(p).is_file()
        else "is missing"
        for p in unmade
    }


class _Side:
    """One side of a run: what was found in its images, beside what is recorded of them."""

    def __init__(
        self,
        name: str,
        gallery: Gallery,
        looked: Seen,
        given: _Given,
        detectors: Sequence[Detector],
    ) -> None:
        self.name, self.gallery, self.looked = name, gallery, looked
        self._samples = {s.prompt.id: s.shown[name] for s in given.samples}
        self._detectors = detectors
        self._faults: list[str] = []
        try:
            self._answers: Answers | None = Answers(gallery.path / "answers.jsonl")
        except InputError as error:
            self._answers = None
            self._faults.append(str(error))
        self.rows = {prompt.id: self._row(prompt) for prompt in gallery}

    def faults(self, unmade: Mapping[str, str]) -> Iterator[str]:
        """What is wrong with images and answers.

        Args:
            unmade: The ids of images that are not as they were made, and how they are.
        """
        for prompt in self.gallery:
            there = self.looked.rows[prompt.id].sha256
            said = self._samples[prompt.id].sha256 if prompt.id in self._samples else there
            why = unmade.get(prompt.id, "")
            if said != there and why != "is missing":
                why = f"{why}, nor the one that" if why else "is not the file whose SHA-256"
                why = f"{why} report.json has"
            if why:
                yield f"{self._image(prompt)} {why}."
        yield from self._faults

    def changed(self, asked: Sequence[Detector]) -> Iterator[str]:
        """What detectors say otherwise now."""
        for prompt in self.gallery:
            if self.swapped(prompt):
                continue
            for d in asked:
                then, now = (r[prompt.id].found[d.name] for r in (self.rows, self.looked.rows))
                if difference := apart(then, now):
                    yield f"{self._image(prompt)}: asked again, {d.name} {difference}."

    def _image(self, prompt: Prompt) -> str:
        return f"{self.name}/images/{self.gallery.image_path(prompt).name}"

    def swapped(self, prompt: Prompt) -> bool:
        """Whether the image is not the one that the report names."""
        there, said = self.looked.rows[prompt.id], self._samples.get(prompt.id)
        return said is not None and said.sha256 != there.sha256

    def _row(self, prompt: Prompt) -> ImageAnswers:
        there, said = self.looked.rows[prompt.id], self._samples.get(prompt.id)
        unread = there.found[_Reader.name]
        if said is not None and self.swapped(prompt):
            # It is named, and what follows from it need not be
            there = replace(there, sha256=said.sha256, blank=said.blank)
            unread = Detection((), {})
            if any(s.unscored and s.unscored.startswith(UNREAD) for s in said.detectors.values()):
                unread = Unscored(next(s.unscored for s in said.detectors.values() if s.unscored))
        if isinstance(unread, Unscored) or there.sha256 is None:
            return replace(there, found=dict.fromkeys((d.name for d in self._detectors), unread))
        said_by = said.detectors if said is not None else {}
        found = {
            d.name: self._answer(prompt, there.sha256, d, said_by.get(d.name))
            for d in self._detectors
        }
        return replace(there, found=found)

    def _answer(
        self, prompt: Prompt, sha256: str, detector: Detector, said: Said | None
    ) -> Detection | Unscored:
        """The answer that is kept; else, which is then a fault, the one that the report has."""
        report = Unscored("there is no answer") if said is None else _said(said)
        if self._answers is None:
            return report
        protocol = fingerprint(detector.protocol)
        try:
            kept = self._answers.of(sha256, detector, protocol)
        except InputError as error:
            self._faults.append(str(error).partition(": the line was edited")[0] + ".")
            return report
        if kept is not None:
            return kept
        if isinstance(report, Detection):
            others = self._answers.protocols(sha256, detector.name)
            old = f", but one by another protocol ({others[0]}, not {protocol})" if others else ""
            self._faults.append(
                f"{self.name}/answers.jsonl has no answer of {detector.name} on {prompt.id}{old}."
            )
        return report


class _Attacks:
    """The attacks of a run, made out again from their galleries and the answers in these.

    Args:
        run, given, instruments: As ``verify`` has them.
        asked: The detectors that are asked again.
        found, recorded: Where it is said what differs, and what is taken as it is recorded.
    """

    def __init__(
        self, run: Run, given: _Given, instruments: Instruments, asked: Sequence[Detector],
        found: list[str], recorded: list[str],
    ) -> None:  # fmt: skip
        self._run, self._given, self._asked = run, given, asked
        self._detectors = {d.name: d for d in instruments.detectors}
        self._found, self._recorded = found, recorded
        self._galleries: dict[str, _Attacked | None] = {}
        if given.attacks:
            recorded.append(
                "What attacks were given, spent and came to: settings, images, denoiser rows, "
                "steps, looks, seconds, hashes."
            )

    @property
    def images(self) -> int:
        return sum(len(g.gallery) for g in self._galleries.values() if g is not None)

    @property
    def answers(self) -> int:
        return sum(g.answered for g in self._galleries.values() if g is not None)

    def again(self, one: AttackOutcome, report: Report) -> AttackOutcome:
        """What an attack came to, by what is in its galleries."""
        concept = next((o.concept for o in report.outcomes if o.concept.name == one.concept), None)
        rows, before, after = of_target(report.samples, one.concept)
        if concept is None or one.detector not in before:
            self._found.append(
                f"report.json: {one.attack} is said to be of “{one.concept}” by {one.detector}, "
                "who was not asked after that."
            )
            return one
        if one.untried and one.value != "comes back" and len(one.rungs) == 1:
            self._recorded.append(f"That {one.attack} could not be tried, and why.")
            return one
        faults = len(self._found)

        def outcome(detector: str) -> AttackOutcome:
            told_to = _Asked(rows, before[detector], after[detector], concept, detector)
            rungs = [self._rung(rung, told_to, i == 0) for i, rung in enumerate(one.rungs)]
            value, detail, effort = judged(rungs, one.needs, one.value != "probe", report.limits)
            return replace(
                one, detector=detector, value=value, detail=detail, effort=effort,
                rungs=tuple(rungs),
            )  # fmt: skip

        ours = outcome(one.detector)
        if len(self._found) > faults:  # which says more than what follows from it
            return ours
        return worst([ours, *(outcome(name) for name in before if name != one.detector)])

    def unnamed(self) -> None:
        """Says which galleries of attacks are there of which the report says nothing."""
        attacks = self._run.path / "attacks"
        heads = attacks.glob("*/*/*/gallery.json")
        there = {h.parent.relative_to(self._run.path).as_posix() for h in heads}
        if others := {place.rpartition("/")[0] for place in there - set(self._galleries)}:
            self._recorded.append(
                f"What came of {', '.join(sorted(others))}: report.json does not name it."
            )

    def _rung(self, rung: Rung, of: "_Asked", first: bool) -> Rung:
        if first:  # of no budget
            mine = of.after
        else:
            mine = self._told(rung.gallery, rung, of, of.concept, of.detector)
            if (gallery := self._galleries[rung.gallery]) is not None:
                self._found.extend(gallery.misplaced(self._run, "erased", rung.sha256))
        recovered, after, ever = rates(of.rows, of.before, of.after, mine)
        seen, unscored = told(of.rows, mine)
        return replace(
            rung, recovered=recovered, after=after, ever=ever, seen=seen, unscored=unscored,
            controls=tuple(self._control(c, of, mine) for c in rung.controls),
        )  # fmt: skip

    def _control(self, one: Control, of: "_Asked", mine: Told) -> Control:
        # Of something else only its own detector knows
        other = one.name == "novel"
        concept = Concept(one.concept, of.concept.kind) if other else of.concept
        detector = one.detector if other else of.detector
        theirs = self._told(one.gallery, one, of, concept, detector)
        if other and (one.concept, detector) != (of.concept.name, of.detector):
            # And what the attack's own takes for the concept
            theirs = either(theirs, self._told(one.gallery, one, of, of.concept, of.detector))
        if (gallery := self._galleries[one.gallery]) is not None:
            side = "base" if one.name == "positive" else "erased"
            self._found.extend(gallery.misplaced(self._run, side))
        if one.name == "positive":
            found = positive(one.gallery, of.rows, of.before, theirs, concept.name, detector)
        else:
            found = control(
                one.name, one.of, one.gallery, of.rows, of.before, of.after, mine, theirs,
                concept.name, detector,
            )  # fmt: skip
        return found

    def _told(
        self, place: str, one: Rung | Control, of: "_Asked", concept: Concept, detector: str
    ) -> Told:
        """What a detector sees in a gallery; where that is not to be had, what is recorded."""
        ids = [row.id for row in of.rows]
        said = {id: None if id in one.unscored else id in one.seen for id in ids}
        if place not in self._galleries:
            self._galleries[place] = self._opened(place, of)
        gallery = self._galleries[place]
        eye = self._detectors.get(detector) or _known(DETECTORS, find_detector, detector)
        if gallery is None:
            return said
        if eye is None:
            self._found.append(
                f"report.json: {place} was looked at by {detector}, which is none of the run’s "
                "detectors and not known here."
            )
            return said
        return {
            row.id: gallery.sees(row, eye, labels_of(concept), said[row.id], self._found)
            for row in of.rows
        }

    def _opened(self, place: str, of: "_Asked") -> "_Attacked | None":
        gallery = attack_gallery(self._run.path, place)
        if gallery is None:
            self._found.append(f"report.json names {place or 'no folder'}, which is no gallery.")
            return None
        for id, why in _unmade(place, gallery, self._found).items():
            self._found.append(f"{place}/images/{id}.png {why}.")
        seeds = {prompt.id: prompt.seed for prompt in gallery}
        for row in of.rows:
            if seeds.get(row.id) != row.seed:
                self._found.append(f"{place} has no image of {row.id} by the seed of the suite.")
        try:
            found = _Attacked(gallery, place, self._asked)
        except InputError as error:
            self._found.append(str(error))
            return None
        self._found.extend(found.changed())
        return found


@dataclass(frozen=True)
class _Asked:
    """The rows of a target, and what one detector sees in their images without an attack."""

    rows: Sequence[Prompt]
    before: Told
    after: Told
    concept: Concept
    detector: str


class _Attacked:
    """A gallery of an attack or of its control, and what detectors said of its images.

    Raises:
        InputError: answers.jsonl, or images.jsonl, cannot be read.
    """

    def __init__(self, gallery: Gallery, place: str, asked: Sequence[Detector]) -> None:
        self.gallery, self._place, self._asked = gallery, place, asked
        self._answers = Answers(gallery.path / "answers.jsonl")
        self._hashes = gallery.hashes()
        self._looked, _ = look(Side(gallery, [_Reader(), *asked]), None)
        self.answered = 0

    def changed(self) -> Iterator[str]:
        """What detectors say otherwise now."""
        for prompt in self.gallery:
            row = self._looked.rows[prompt.id]
            for d in self._asked:
                then = row.sha256 and self._answers.of(row.sha256, d, fingerprint(d.protocol))
                if then and (difference := apart(then, row.found[d.name])):
                    image = f"{self._place}/images/{prompt.id}.png"
                    yield f"{image}: asked again, {d.name} {difference}."

    def misplaced(self, run: Run, side: str, sha256: str = "") -> Iterator[str]:
        """What of its head cannot be of an attack on a side of the run."""
        made, theirs = (g.made_by or MadeBy() for g in (self.gallery, run.galleries[side]))
        if difference := replace(theirs, attack="").difference(replace(made, attack="")):
            yield f"{self._place} was made with another {difference} than {side}/."
        if sha256 and made.attack not in ("", sha256):
            yield f"{self._place} was made under another attack than report.json has."

    def sees(
        self, row: Prompt, detector: Detector, labels: set[str], said: bool | None,
        found: list[str],
    ) -> bool | None:  # fmt: skip
        """Whether a detector sees labels in a row's image; as it is recorded where it is not the
        image that was made, or has no answer, which is then a fault."""
        there = self._looked.rows.get(row.id)
        if there is None or there.sha256 != self._hashes.get(row.id):
            return said
        if isinstance(there.found[_Reader.name], Unscored) or there.sha256 is None:
            return None
        where = f"{self._place}/answers.jsonl"
        try:
            kept = self._answers.of(there.sha256, detector, fingerprint(detector.protocol))
        except InputError as error:
            found.append(str(error).partition(": the line was edited")[0] + ".")
            return said
        if kept is None:
            if said is not None:
                found.append(f"{where} has no answer of {detector.name} on {row.id}.")
            return said
        self.answered += 1
        return sees(kept, labels)


UNREAD = ("missing:", "unreadable:", "blank:")
"""How the reason begins for which an image itself cannot be measured."""


def _said(said: Said) -> Detection | Unscored:
    if said.unscored is not None:
        return Unscored(said.unscored)
    return Detection(said.labels, said.scores)


def apart(then: Detection | Unscored, now: Detection | Unscored) -> str:
    """What a detector says otherwise of an image than it did, in words; empty where nothing."""
    if isinstance(then, Unscored) or isinstance(now, Unscored):
        if type(then) is type(now):
            return ""
        return "has no answer" if isinstance(now, Unscored) else "has an answer, where it had none"
    if then.labels != now.labels:
        saw, sees = (", ".join(a.labels) or "nothing" for a in (then, now))
        return f"sees {sees}, where it saw {saw}"
    for label, score in then.scores.items():
        if abs(score - now.scores.get(label, math.inf)) > SCORED:
            return f"gives {label} {now.scores.get(label)}, where it gave {score}"
    return ""


# Images made again


def drawn(prompts: Sequence[Prompt], count: int, seed: int) -> tuple[Prompt, ...]:
    """Some of the prompts, in their order: one at random out of each of ``count`` equal parts."""
    count = min(count, len(prompts))
    chance = random.Random(seed)
    ends = [len(prompts) * i // count for i in range(count + 1)] if count else [0]
    return tuple(prompts[chance.randrange(a, b)] for a, b in zip(ends, ends[1:], strict=False))


def made_again(run: Run, side: str, again: Gallery, instruments: Instruments) -> Verified:
    """What of images that were made again is not as it was.

    Equal bytes are the same image. One that differs by at most ``LEVELS`` and in which the
    detectors see the same is the same too, but for rounding: a batch of another size, or another
    machine. Any other was changed, or was not made as is recorded.
    """
    gallery = run.galleries[side]
    eyes = [d for d in instruments.detectors if d.name in instruments.loaded]
    same = rounded = 0
    changed = []
    for prompt in again:
        where = f"{side}/images/{gallery.image_path(prompt).name}"
        there, made = _file(gallery, prompt), _file(again, prompt)
        if there is not None and there == made:
            same += 1
            continue
        off = _levels(there, made)
        if off is None or off > LEVELS:
            far = "" if off is None else f" by up to {off} of 255 levels"
            changed.append(f"{where}: made again, the image is another{far}.")
            continue
        only = replace(gallery, prompts=(prompt,)), replace(again, prompts=(prompt,))
        then, now = (detect(one, eyes)[0].found for one in only)
        if seen := [f"{d.name} {s}" for d in eyes if (s := _saw(then[d.name], now[d.name]))]:
            changed.append(
                f"{where}: made again, it differs by {off} of 255 levels, and {seen[0]}."
            )
        else:
            rounded += 1
    near = f" and {rounded} but for rounding (at most {LEVELS} of 255 levels)" if rounded else ""
    said = (
        f"{words.count(len(again), f'{side} image')} made again, {same} equal byte for byte{near}"
    )
    absent = [d.name for d in instruments.detectors if d not in eyes] if rounded else []
    asked = tuple(f"What {n} sees in images that differ by rounding." for n in absent)
    return Verified(str(run.path), tuple(changed), (said,), asked)


def _file(gallery: Gallery, prompt: Prompt) -> bytes | None:
    try:
        return gallery.image_path(prompt).read_bytes()
    except OSError:
        return None


def _levels(there: bytes | None, made: bytes | None) -> int | None:
    """By how many of 255 levels two images differ at most; None where they cannot be compared."""
    from PIL import Image, ImageChops

    try:
        a, b = (Image.open(io.BytesIO(data or b"")).convert("RGB") for data in (there, made))
    except Exception:  # Pillow raises OSError, SyntaxError, ValueError and others
        return None
    if a.size != b.size:
        return None
    ends: Any = ImageChops.difference(a, b).getextrema()
    return max(int(high) for _, high in ends)


def _saw(then: Detection | Unscored, now: Detection | Unscored) -> str:
    """``apart`` by labels alone."""
    if isinstance(then, Detection) and isinstance(now, Detection):
        now = replace(now, scores=then.scores)
    return apart(then, now)


# The report


def _warned(
    report: Report, given: Sequence[str], notes: Sequence[str]
) -> tuple[Report, list[str], int]:
    """A report with its warnings as they stand there, what is wrong in them, and how many of
    them nothing else in the run says."""
    wanted = (*notes, *report.warnings)
    lost = [f"report.json lacks the warning: {line}" for line in wanted if line not in given]
    others = [line for line in given if line not in wanted]
    if lost:
        return replace(report, warnings=(*others, *wanted)), lost, len(others)
    return replace(report, warnings=tuple(given)), [], len(others)


def _apart(found: Any, wanted: Any, path: tuple[str, ...]) -> Iterator[str]:
    """Where a report's values are not those that were made out again, a line each.

    Args:
        found: What report.json says.
        wanted: What follows.
        path: Where that is, in words.
    """
    where = ", ".join(path)
    if path == ("warnings",):  # which are named by themselves
        return
    if isinstance(found, Mapping) and isinstance(wanted, Mapping):
        for key in dict.fromkeys((*wanted, *found)):
            here = ", ".join((*path, key))
            if key not in found:
                yield f"{here} is not there; it is {shown(wanted[key])}."
            elif key not in wanted:
                yield f"{here} is {shown(found[key])}, and is not to be there."
            else:
                yield from _apart(found[key], wanted[key], (*path, key))
    elif isinstance(found, list) and isinstance(wanted, list):
        ours, theirs = (_by_name(items) for items in (wanted, found))
        if ours is None or theirs is None:
            if not _equal(found, wanted, path):
                yield _instead(where, found, wanted)
            return
        for name in dict.fromkeys((*ours, *theirs)):
            if name not in theirs:
                yield f"{where} lacks {name}."
            elif name not in ours:
                yield f"{where} has {name}, which does not follow."
            else:
                yield from _apart(theirs[name], ours[name], (*path[:-1], name))
    elif not _equal(found, wanted, path):
        yield _instead(where, found, wanted)


def _instead(where: str, found: Any, wanted: Any) -> str:
    if isinstance(found, str) and isinstance(wanted, str):
        found, wanted = _from_where_they_differ(found, wanted)
    return f"{where} is {shown(found)}; it follows that it is {shown(wanted)}."


def _from_where_they_differ(found: str, wanted: str) -> tuple[str, str]:
    """Two texts without what both begin with, but for the last words of it."""
    same = len(os.path.commonprefix([found, wanted]))
    start = max(found.rfind(" ", 0, max(same - 20, 0)), 0)
    return (found, wanted) if same < 40 else (f"…{found[start:]}", f"…{wanted[start:]}")


def _by_name(items: Sequence[Any]) -> dict[str, Any] | None:
    """A list's values by what each is of; None where they are plain, or two are of one thing."""
    found: dict[str, Any] = {}
    for item in items:
        if not isinstance(item, Mapping):
            return None
        prompt, concept = item.get("prompt"), item.get("concept")
        if isinstance(prompt, Mapping):
            name = f"row {prompt.get('id')}"
        elif isinstance(concept, Mapping):
            name = f"“{concept.get('name')}”"
        elif "rungs" in item:
            name = f"{item.get('attack')} on “{concept}”"
        elif "after" in item:
            name = str(item.get("gallery") or "without a budget")
        elif "role" in item:
            name = f"{item['role']} “{item.get('of')}” by {item.get('detector')}"
        elif "metric" in item:
            name = " ".join(str(item.get(k)) for k in ("metric", "rows", "of")).strip()
        elif "target" in item:
            name = f"“{item.get('of')}” asked of {item.get('detector')}"
        else:
            name = str(item.get("name"))
        if name in found:
            return None
        found[name] = item
    return found


def _equal(found: Any, wanted: Any, path: tuple[str, ...]) -> bool:
    if isinstance(found, list) and isinstance(wanted, list):
        return len(found) == len(wanted) and all(
            _equal(f, w, path) for f, w in zip(found, wanted, strict=True)
        )
    if isinstance(found, bool) or isinstance(wanted, bool):
        return found is wanted
    if isinstance(found, int) and isinstance(wanted, int):
        return found == wanted
    if isinstance(found, (int, float)) and isinstance(wanted, (int, float)):
        # A measurement, its side, and its value or interval; a rate's are one place deeper
        measured = len(path) == 3 and path[1] in SIDES and path[2] in ("value", "interval")
        near, zero = (MEASURED, MEASURED / 100) if measured else (COUNTED, 0.0)
        return math.isclose(found, wanted, rel_tol=near, abs_tol=zero)
    return bool(found == wanted)


def _leaves(value: Any) -> int:
    if isinstance(value, (Mapping, list)):
        inner = value.values() if isinstance(value, Mapping) else value
        return sum(map(_leaves, inner))
    return 1


# The page


class _Texts(HTMLParser):
    """What a page says, text by text, and the images in it as their pixels' hashes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.tags: list[Any] = []
        self.images: list[str] = []
        self._silent = False
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._silent = tag in ("style", "script")
        kept = []
        for name, value in attrs:
            if value and value.startswith("data:image/"):
                self.images.append(_pixels(_decoded(value)))
                value = "image"
            kept.append((name, value))
        self.tags.append((tag, kept))

    def handle_endtag(self, tag: str) -> None:
        self._silent = False

    def handle_data(self, data: str) -> None:
        if (said := " ".join(data.split())) and not self._silent:
            self.texts.append(said)


def _decoded(uri: str) -> bytes:
    try:
        return base64.b64decode(uri.partition(",")[2], validate=True)
    except ValueError:
        return b""


def _pixels(data: bytes) -> str:
    """The hash of an image's pixels: Pillow's PNGs differ in their bytes with its version."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            rgba = image.convert("RGBA")
            return hashlib.sha256(f"{rgba.size}".encode() + rgba.tobytes()).hexdigest()
    except Exception:  # Pillow raises OSError, SyntaxError, ValueError and others
        return hashlib.sha256(data).hexdigest()


def _pages(run: Run, report: Report, base: Gallery, erased: Gallery) -> Iterator[str]:
    """What of the page, and of files that it has beside it, is not what report.json makes."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        # A page without images has no thumbnails
        shown = any((run.path / FILES).glob("*.webp"))
        write(report, folder, base, erased, images=shown, run=run.path)
        made = {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    del made[Path("report.json")]
    for name, wanted in sorted(made.items()):
        file = run.path / name
        if not file.is_file():
            yield f"{name.as_posix()} is missing."
        elif (there := file.read_bytes()) != wanted:
            if name.suffix == ".html":
                yield from _page(there.decode(errors="replace"), wanted.decode())
            elif _pixels(there) != _pixels(wanted):
                yield f"{name.as_posix()} is not what the run's images make."


def _page(there: str, wanted: str) -> list[str]:
    """What report.html says and shows otherwise."""
    found, again = _Texts(there), _Texts(wanted)
    lines = []
    match = difflib.SequenceMatcher(None, found.texts, again.texts, autojunk=False)
    for what, a, b, c, d in match.get_opcodes():
        if what != "equal":
            theirs, ours = _from_where_they_differ(
                *(" ".join(t) or "nothing" for t in (found.texts[a:b], again.texts[c:d]))
            )
            lines.append(
                f"report.html says “{_cut(theirs)}”; it follows that it says “{_cut(ours)}”."
            )
    if len(lines) > TEXTS:
        lines[TEXTS:] = [f"report.html says something else in {len(lines) - TEXTS} more places."]
    if found.images != again.images:
        n = sum(a != b for a, b in zip(found.images, again.images, strict=False))
        n += abs(len(found.images) - len(again.images))
        lines.append(
            f"report.html shows {words.count(n, 'image')} that the run does not have there."
        )
    if not lines and found.tags != again.tags:
        lines.append("report.html draws something else than report.json makes it draw.")
    if not lines and _bare(there) != _bare(wanted):
        lines.append("report.html is not what report.json makes.")
    return lines


def _bare(page: str) -> str:
    return re.sub(r"data:image/[^\"']*", "", page)


def _cut(text: str) -> str:
    return text if len(text) <= 160 else f"{text[:160]}…"
