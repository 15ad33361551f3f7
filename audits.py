"""Audits: a base model beside what anybody made of it, several of these, or finished images."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._errors import InputError
from ._files import check_folder, check_ours, file_stem
from ._settings import Count, Guidance, Share, Size, Steps, checked
from .drawing import Progress, Source, cut_ends, loaded_erasures, name_of, open_store, peak_bytes
from .flow import find_concepts
from .gallery import Gallery
from .pipelines.loading import Loading, split_weight
from .processes import Processes, appears, processes
from .prompts import Concept, Suite, find_suites, join

if TYPE_CHECKING:
    from .eval.detectors import Detector
    from .eval.metrics import Metric
    from .eval.report import Report
    from .pipelines.erasure import Erasure

EMOJI_METRICS = ("emoji/clip", "frechet/emoji-judge", "pixels/ssim")


@checked
def audit(
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
    max_target: Share = 0.10,
    max_keep_loss: Share = 0.10,
    allow_unscored: bool = False,
    loading: Loading | None = None,
    command: str = "",
    progress: Progress = lambda what, made, total: None,
) -> "Report":
    """Measures what is left of the erased concepts, against the base model on the same seeds.

    Writes ``base/`` and ``erased/`` (galleries, with every detector's answers in their
    ``answers.jsonl``), ``report.json`` and ``report.html`` into ``out``; what is there already of
    the same galleries is not made again, nor is an image that another run has made of the same
    model (``store``), nor is an image asked about twice.

    Args:
        base: The model that the concepts were erased from: what ``load_pipeline`` loads, or the
            pipeline itself, which is left as it was.
        erasures: Erasures, their files or their ids, as ``load_pipeline`` takes them, with
            weights or without; they are measured together.
        out: The folder for it all.
        against: In place of erasures what anybody made of the model: see ``pipelines.foreign``.
        concepts: What was erased, as ``erase`` takes it; an erasure's record says it itself.
        kind: What the concepts are, where they are phrases of your own.
        suite: A suite, or what ``find_suite`` knows it by; or several, measured as one. The
            built-in model has its own.
        size: How many prompts of a suite that is made to measure; None is what it needs.
        where: A filter of the rows of every suite that has its columns and is no ``Suite`` yet.
        detectors: Detectors, or what ``find_detector`` knows them by; the built-in model has its
            own.
        metrics: As ``find_metric`` reads them; the built-in model has its own.
        batch_size: Images at a time.
        guidance: Where a prompt names none; None is the pipeline's own.
        steps: Where a prompt names none; None is the pipeline's own.
        max_target: The target counts as forgotten where its rate is at most this share, with 95 %
            confidence.
        max_keep_loss: What must stay may fall by at most this share, with 95 % confidence.
        allow_unscored: Whether the verdict may stand although some images could not be scored.
        loading: How the model is loaded, where it is none yet.
        command: What the report says it was made by.
        progress: Called with what is going on, how much of it is done, and of how much.

    Raises:
        InputError: Something in the arguments cannot be; before any image is made.
    """
    from .eval.answers import Answers
    from .eval.audit import compare
    from .eval.page import write
    from .eval.verdict import Limits

    phases, several = _Phases(), processes()
    limits = Limits(max_target, max_keep_loss, allow_unscored=allow_unscored)
    out = Path(out)
    check_folder(out)
    check_ours(out, REPORT, "report")
    loaded = loaded_erasures(erasures)
    name = base.name if isinstance(base, Source) else name_of(base)
    asked = _Asked.of(
        name,
        _targets(name, loaded, against, concepts, kind),
        suite,
        size,
        where,
        detectors,
        metrics,
    )
    kept = {side: Answers(out / side / "answers.jsonl") for side in ("base", "erased")}
    source = Source.of(base, loading)
    other = source if against is None else _against(source, against)
    settings = {"batch_size": batch_size, **source.generation(guidance, steps)}
    doubted = source.interfering(loaded)
    store = open_store(out)
    phases.done("loading")

    def made(what: str, by: Source, stacked: "Sequence[tuple[Erasure, float]]") -> Gallery:
        gallery = by.draw(
            stacked, asked.suite, out / what, settings, f"{what} model", store, progress
        )
        phases.done(f"{what} images")
        return gallery

    # The erased first: an erasure for another base is refused before any image is made.
    erased_gallery, base_gallery = made("erased", other, loaded), made("base", source, ())
    report = several.by_first(compare)(
        base_gallery,
        erased_gallery,
        asked.concepts,
        detectors=asked.detectors,
        metrics=asked.metrics,
        suite_name=asked.suite.name,
        suite_source=asked.suite.source,
        notes=(
            *asked.suite.notes,
            *source.pictured(),
            *cut_ends(base_gallery),
            *_remade(base_gallery, "base"),
            *_remade(erased_gallery, "erased"),
            *doubted,
        ),
        base_answers=kept["base"],
        erased_answers=kept["erased"],
        limits=limits,
        command=command,
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        peak_bytes=peak_bytes(),
        progress=progress,
    )
    if report is None:
        return _of_first(out, several)
    phases.done("detectors and metrics")
    report = dataclasses.replace(report, seconds=phases.seconds)
    write(report, out, base_gallery, erased_gallery)
    several.share(None)
    return report


@checked
def audit_each(
    base: Any,
    each: Mapping[str, Any] | Sequence[str | Path],
    *,
    out: str | Path,
    concepts: str | Concept | Sequence[str | Concept] = (),
    loading: Loading | None = None,
    **options: Any,
) -> "dict[str, Report]":
    """Audits several erasures, or what anybody made of a model, each alone.

    The base is loaded once, and its images are made once where the audits ask for the same: they
    are shared through the store.

    Args:
        base: As ``audit``.
        each: What is audited, by the name of its folder in ``out``: erasures, their files or ids,
            and whatever ``audit`` takes for ``against``. Without names, files and folders, whose
            own names these are.
        out: The folder for all of them.
        concepts: What was erased, for those that do not say it themselves.
        loading: How the base is loaded, where it is no pipeline yet.
        options: As ``audit``.

    Returns:
        By name, in their order.

    Raises:
        InputError: As ``audit``; two have one name, or there are none.
    """
    subjects = named_subjects(each)
    source = Source.of(base, loading)
    reports = {}
    for name, subject in subjects.items():
        ours = _ours(subject)
        reports[name] = audit(
            source,
            [subject] if ours else (),
            out=Path(out) / name,
            against=None if ours else subject,
            concepts=() if ours else concepts,
            **options,
        )
    return reports


@checked
def audit_images(
    base: str | Path,
    erased: str | Path,
    concepts: str | Concept | Sequence[str | Concept],
    *,
    out: str | Path,
    detectors: "Sequence[str | Detector]",
    metrics: Sequence[str] = (),
    kind: str | None = None,
    table: str | Path | None = None,
    max_target: Share = 0.10,
    max_keep_loss: Share = 0.10,
    allow_unscored: bool = False,
    command: str = "",
    progress: Progress = lambda what, made, total: None,
) -> "Report":
    """Audits images that are finished: no model is loaded, and nothing is known of what made them.

    Args:
        base, erased: Two galleries, or folders with images of the same names, made from the same
            prompts and seeds.
        concepts: What was erased.
        out: The folder for answers and report.
        detectors, metrics: As ``audit``.
        kind: What the concepts are, where they are phrases of your own.
        table: Of folders that are no galleries: the prompts and labels, as ``open_folder`` reads
            them; None is each folder's own samples.jsonl.
        max_target, max_keep_loss, allow_unscored, command, progress: As ``audit``.

    Raises:
        InputError: The folders' prompts are not the same, or something else cannot be; before
            anything is measured.
    """
    from .eval import find_detector, find_metric
    from .eval.answers import Answers, each_once
    from .eval.audit import compare
    from .eval.folder import open_folder
    from .eval.page import write
    from .eval.verdict import Limits

    phases, several = _Phases(), processes()
    limits = Limits(max_target, max_keep_loss, allow_unscored=allow_unscored)
    out = Path(out)
    check_folder(out)
    check_ours(out, REPORT, "report")
    sides = {
        side: open_folder(Path(folder), None if table is None else Path(table))
        for side, folder in (("base", base), ("erased", erased))
    }
    eyes = [find_detector(d, sides["base"].prompts) for d in detectors]
    rulers = [find_metric(m) for m in metrics]
    each_once(eyes, rulers)
    report = several.by_first(compare)(
        sides["base"],
        sides["erased"],
        find_concepts(concepts, "", kind=kind),
        detectors=eyes,
        metrics=rulers,
        suite_name=str(base),
        notes=["The images were finished: how they were made is as their folders say."],
        base_answers=Answers(out / "base" / "answers.jsonl"),
        erased_answers=Answers(out / "erased" / "answers.jsonl"),
        limits=limits,
        command=command,
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        peak_bytes=peak_bytes(),
        progress=progress,
    )
    if report is None:
        return _of_first(out, several)
    phases.done("detectors and metrics")
    report = dataclasses.replace(report, seconds=phases.seconds)
    write(report, out, sides["base"], sides["erased"])
    several.share(None)
    return report


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


REPORT = {"report.json": '"verdict"', "report.html": "unsee"}
"""The files of a report, and what is in each of ours."""


@dataclass(frozen=True)
class _Asked:
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
    ) -> "_Asked":
        from .eval import find_detector, find_metric
        from .eval.answers import each_once
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
        rulers = [find_metric(m) for m in metrics or usual]
        each_once(eyes, rulers)
        divide(concepts, found.prompts, eyes)
        return cls(concepts, found, eyes, rulers)


def _of_first(out: Path, several: Processes) -> "Report":
    """The report that the first of several processes writes."""
    from .eval.report import Report

    several.share(None)  # until it has
    appears(out / "report.json")
    return Report.load(out / "report.json")


class _Phases:
    """What took how long."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._begun = time.perf_counter()

    def done(self, phase: str) -> None:
        now = time.perf_counter()
        self.seconds[phase], self._begun = round(now - self._begun, 1), now


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


def _against(base: Source, other: Any) -> Source:
    """What somebody made of the base, to be drawn with."""
    from .pipelines.foreign import against

    how = base.loading.drawing
    pipe = against(base.pipe, other, **{name: how[name] for name in ("dtype", "device", "config")})
    named = isinstance(other, (str, Path))
    # What a pipeline that was given shares with it is the giver's
    ours = base.ours and named
    return Source(pipe, str(other) if named else name_of(other), base.loading, ours, base.moved)


def _ours(subject: Any) -> bool:
    """Whether it is an erasure of ours."""
    from .pipelines.erasure import Erasure, holds_erasure

    if isinstance(subject, (str, Path)):
        path = Path(split_weight(str(subject))[0])
        return holds_erasure(path) if path.exists() else path.suffix == ".safetensors"
    return isinstance(subject, (Erasure, tuple))


def _remade(gallery: Gallery, side: str) -> list[str]:
    """What the report says of images that were not as they were made."""
    if not (remade := gallery.remade):
        return []
    named = ", ".join(remade[:8]) + " …" * (len(remade) > 8)
    return [
        f"{len(remade)} of {len(gallery)} {side} images were changed or removed after they had "
        f"been made, and were made again: {named}."
    ]
