"""What is asked of an audit, read and checked before any image is made.

An audit (``audits``) and its plan (``plans``) begin with the same ``Task``, so that a plan refuses
what the audit would refuse.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._errors import InputError
from ._files import check_folder, check_ours, file_stem, is_file_name
from ._reading import read
from ._settings import Count, Guidance, Seed, Share, Size, Steps, checked, shown
from .drawing import Source, loaded_erasures, name_of
from .flow import find_concepts
from .pipelines.loading import Loading, split_weight
from .prompts import Concept, Suite, find_suites, join
from .prompts.concept import read_mapping

if TYPE_CHECKING:
    from .eval.detectors import Detector
    from .eval.metrics import Metric
    from .pipelines.erasure import Erasure

EMOJI_METRICS = ("emoji/clip", "kid:emoji-judge", "pixels/ssim")
"""What the built-in model is measured by, where nobody says it."""

REPORT = {"report.json": '"verdict"', "report.html": "unsee"}
"""The files of a report, and what is in each of ours."""


@dataclass(frozen=True)
class Asked:
    """What an audit asks, and whom."""

    concepts: Sequence[Concept]
    suite: Suite
    detectors: "Sequence[Detector]"
    metrics: "Sequence[Metric]"

    @classmethod
    def of(
        cls,
        model: str,
        concepts: Sequence[Concept],
        suite: str | Suite | Sequence[str | Suite] | None,
        size: int | None,
        where: str,
        detectors: "Sequence[str | Detector] | None",
        metrics: Sequence[str] | None,
    ) -> "Asked":
        from .eval import find_detector, find_metric
        from .eval.answers import each_once
        from .eval.audit import KEPT
        from .eval.metrics import check_published
        from .eval.rows import divide

        if model != "emoji" and (suite is None or not detectors):
            raise InputError(
                f"Say on which suite and with which detectors {model!r} is to be measured."
            )
        named = [suite or "emoji"] if suite is None or isinstance(suite, (str, Suite)) else suite
        found = join(find_suites(named, concepts, size, where=where))
        eyes = [
            find_detector(d, found.prompts) for d in detectors or ("emoji/object", "emoji/style")
        ]
        usual = EMOJI_METRICS if model == "emoji" else ()
        rulers = [find_metric(m) for m in (usual if metrics is None else metrics)]
        each_once(eyes, rulers)
        check_published(rulers, len(divide(concepts, found.prompts, eyes).keep), KEPT)
        return cls(concepts, found, eyes, rulers)


@dataclass(frozen=True)
class Task:
    """An audit before any image is made.

    Attributes:
        source: The base.
        other: What is judged, where it is no erasure; else the base.
        erasures: What is judged, with weights.
        asked: What, and whom.
        settings: Of generation.
        out: The folder for it all.
    """

    source: Source
    other: Source
    erasures: "Sequence[tuple[Erasure, float]]"
    asked: Asked
    settings: Mapping[str, Any]
    out: Path

    @classmethod
    @checked
    def of(
        cls,
        base: Any,
        erasures: "str | Path | Erasure | Sequence[str | Path | Erasure | tuple[Any, Any]]" = (),
        *,
        out: str | Path,
        against: Any = None,
        concepts: str | Concept | Sequence[str | Concept] = (),
        kind: str | None = None,
        suite: str | Suite | Sequence[str | Suite] | None = None,
        size: Size | None = None,
        where: str = "",
        detectors: "Sequence[str | Detector] | None" = None,
        metrics: Sequence[str] | None = None,
        batch_size: Count = 8,
        guidance: Guidance | None = None,
        steps: Steps | None = None,
        loading: Loading | None = None,
        **rest: Any,
    ) -> "Task":
        """Its arguments, as ``audit`` has them, read and checked, and the model loaded.

        Args:
            rest: What else ``audit`` takes, which changes no image.

        Raises:
            InputError: Something in the arguments cannot be.
        """
        out = Path(out)
        check_out(out)
        given, against = told_apart(erasures, against)
        loaded = loaded_erasures(given)
        name = base.name if isinstance(base, Source) else name_of(base)
        targets = _targets(name, loaded, against, concepts, kind)
        asked = Asked.of(name, targets, suite, size, where, detectors, metrics)
        source = Source.of(base, loading)
        other = source if against is None else source.of_another(against)
        settings = {"batch_size": batch_size, **source.generation(guidance, steps)}
        return cls(source, other, loaded, asked, settings, out)

    @property
    def sides(self) -> "dict[str, tuple[Source, Sequence[tuple[Erasure, float]]]]":
        """What draws each side. The erased first: an erasure for another base is refused before
        any image is made."""
        return {"erased": (self.other, self.erasures), "base": (self.source, ())}


@dataclass(frozen=True)
class Comparison:
    """A whole comparison, as a YAML file says it.

    Attributes:
        bases: What is erased from: names to models.
        each: What is judged, each alone: names to erasures (``FILE:0.8`` with a weight) and to
            what anybody made of a base.
        concepts: What was erased, for those that do not say it themselves.
        suites, detectors, metrics, attacks, control, seed, kind, size, where, batch_size,
            guidance, steps, max_target, max_keep_loss: As ``audit``'s.
    """

    bases: Mapping[str, str]
    each: Mapping[str, str]
    concepts: tuple[str, ...] = ()
    kind: str | None = None
    suites: tuple[str, ...] = ()
    size: Size | None = None
    where: str = ""
    detectors: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    attacks: tuple[str, ...] = ()
    control: str | None = None
    seed: Seed = 0
    batch_size: Count = 8
    guidance: Guidance | None = None
    steps: Steps | None = None
    max_target: Share = 0.10
    max_keep_loss: Share = 0.10

    @classmethod
    def load(cls, path: Path) -> "Comparison":
        """Reads a file; what it names is looked for beside it first.

        Raises:
            InputError: It is missing, or something in it cannot be.
        """
        found = read(cls, dict(read_mapping(path)), str(path), defaults=True)
        for what, named in (("base", found.bases), ("each", found.each)):
            if not named:
                raise InputError(f"{path} names nothing under {what}: wanted a name and a file.")
            if odd := [name for name in named if not is_file_name(name)]:
                raise InputError(f"{path}: {shown(odd[0])} is the name of no folder.")
        return dataclasses.replace(
            found,
            bases={name: _beside(path, model) for name, model in found.bases.items()},
            each={name: _beside(path, file) for name, file in found.each.items()},
            suites=tuple(_beside(path, suite) for suite in found.suites),
        )

    @property
    def options(self) -> dict[str, Any]:
        """As ``audit_each`` takes them."""
        same = (
            "concepts", "kind", "size", "where", "attacks", "control", "seed", "batch_size",
            "guidance", "steps", "max_target", "max_keep_loss",
        )  # fmt: skip
        return {name: getattr(self, name) for name in same} | {
            "suite": list(self.suites) or None,
            "detectors": list(self.detectors) or None,
            "metrics": list(self.metrics) or None,
        }


def each_alone(
    each: Mapping[str, Any] | Sequence[str | Path],
    out: str | Path,
    concepts: str | Concept | Sequence[str | Concept],
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Of each of several audits the name, and what it has for itself; an erasure is read here."""
    from .pipelines.erasure import weighted

    for name, subject in named_subjects(each).items():
        ours = _ours(subject)
        yield (
            name,
            {
                "erasures": [weighted(subject)] if ours else (),
                "against": None if ours else subject,
                "concepts": () if ours else concepts,
                "out": Path(out) / name,
            },
        )


def named_subjects(each: Mapping[str, Any] | Sequence[str | Path]) -> dict[str, Any]:
    """What is audited, by the name of its folder.

    Raises:
        InputError: Two have one name, or there are none.
    """
    if isinstance(each, Mapping):
        named = dict(each)
    else:
        named = {}
        for subject in each:
            file = Path(split_weight(str(subject))[0])
            # An erasure's suffix says nothing; a folder's name may have a dot in it
            name = file_stem([file.stem if file.is_file() else file.name])
            if name in named:
                raise InputError(
                    f"{named[name]} and {subject} would both be audited in {name}: rename one, or "
                    "audit it by itself."
                )
            named[name] = subject
    if not named:
        raise InputError("There is nothing to audit: name at least one file or folder.")
    return named


def check_out(out: Path) -> None:
    """Makes sure that a report can be written into a folder, and over nothing of anybody else's.

    Raises:
        InputError: It cannot.
    """
    check_folder(out)
    check_folder(out / "report_files")
    check_ours(out, REPORT, "report")


def _targets(
    model: str,
    erasures: "Sequence[tuple[Erasure, float]]",
    against: Any,
    concepts: str | Concept | Sequence[str | Concept],
    kind: str | None,
) -> list[Concept]:
    """The concepts that were erased.

    Raises:
        InputError: Nothing is to be audited, or two things; or nobody says what was erased.
    """
    if bool(erasures) == (against is not None):
        raise InputError(
            "An audit is of erasures or of what somebody else made: name one of the two."
            if erasures
            else "There is no erasure to audit: name at least one file, or with --against "
            "(against=… in Python) what somebody else made of the model."
        )
    recorded = [concept for erasure, _ in erasures for concept in erasure.record.concepts]
    if erasures and not concepts:
        return recorded
    if not concepts:
        raise InputError(
            f"{_named(against)} does not say what was erased: name it with --concept "
            "(concepts=… in Python)."
        )
    return find_concepts(concepts, model, kind=kind)


def _named(model: Any) -> str:
    """What is audited, by its name."""
    return str(model) if isinstance(model, (str, Path)) else type(model).__name__


def told_apart(erasures: Any, against: Any) -> tuple[Any, Any]:
    """Erasures, and what somebody else made: an erasure that is named as that is still one.

    As a LoRA it would be put on without what its tensors do not hold, and on any base.
    """
    if against is not None and not erasures and _ours(against):
        return [against], None
    return erasures, against


def _ours(subject: Any) -> bool:
    """Whether it is an erasure of ours."""
    from .pipelines.erasure import Erasure, holds_erasure

    if isinstance(subject, (str, Path)):
        path = Path(split_weight(str(subject))[0])
        return holds_erasure(path) if path.exists() else path.suffix == ".safetensors"
    return isinstance(subject, (Erasure, tuple))


def _beside(file: Path, named: str) -> str:
    """What a file names, beside it if it is there."""
    there = file.parent / split_weight(named)[0]
    return str(file.parent / named) if there.exists() else named
