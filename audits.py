"""Audits: a base model beside what anybody made of it, several of these, or finished images."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._errors import InputError
from ._files import check_folder, check_ours
from ._settings import Count, Guidance, Seed, Share, Size, Steps, checked
from .attacking import GIVEN, attack_all, find_attacks, find_novel
from .drawing import Progress, Source, cut_ends, open_store, peak_bytes
from .flow import find_concepts
from .gallery import Gallery
from .pipelines.loading import Loading
from .processes import Processes, appears, processes
from .prompts import Concept, Suite
from .prompts.control import Control
from .tasks import Comparison, Task, check_out, each_alone

if TYPE_CHECKING:
    from .attacks import Attack
    from .eval.answers import Answers
    from .eval.audit import About
    from .eval.detectors import Detector
    from .eval.leaderboard import Leaderboard
    from .eval.report import Report
    from .pipelines.erasure import Erasure


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
    attacks: "str | Path | Attack | Sequence[str | Path | Attack]" = (),
    control: str | Control | None = None,
    seed: Seed = 0,
    batch_size: Count = 8,
    guidance: Guidance | None = None,
    steps: Steps | None = None,
    max_target: Share = 0.10,
    max_keep_loss: Share = 0.10,
    allow_unscored: bool = False,
    images: bool = True,
    loading: Loading | None = None,
    command: str = "",
    progress: Progress = lambda what, made, total: None,
) -> "Report":
    """Measures what is left of the erased concepts, against the base model on the same seeds.

    Writes ``base/`` and ``erased/`` (galleries, with every detector's answers in their
    ``answers.jsonl``), ``report.json``, ``report.html`` and its thumbnails (``report_files/``)
    into ``out``; what is there already of the same galleries is not made again, nor is an image
    that another run has made of the same model (``store``), nor is an image asked about twice.

    Args:
        base: The model that the concepts were erased from: what ``load_pipeline`` loads, or the
            pipeline itself, which is left as it was.
        erasures: Erasures, their files or their ids, as ``load_pipeline`` takes them, with
            weights or without; they are measured together.
        out: The folder for it all.
        against: In place of erasures what anybody made of the model: see ``pipelines.foreign``.
            An erasure of unsee's is measured as one.
        concepts: What was erased, as ``erase`` takes it; an erasure's record says it itself.
        kind: What the concepts are, where they are phrases of your own.
        suite: A suite, or what ``find_suite`` knows it by; or several, measured as one. The
            built-in model has its own.
        size: How many prompts of a suite that is made to measure; None is what it needs.
        where: A filter of the rows of every suite that has its columns and is no ``Suite`` yet.
        detectors: Detectors, or what ``find_detector`` knows them by; the built-in model has its
            own.
        metrics: As ``find_metric`` reads them; the built-in model has its own.
        attacks: What is tried to bring the concepts back, as ``find_attacks`` reads it; it is
            fitted on images of the base at other seeds, and measured on the suite's own rows.
        control: What the model never saw, as ``find_control`` reads it, for the attacks that must
            be held against it; the built-in model has its own.
        seed: Of every draw of the attacks.
        batch_size: Images at a time.
        guidance: Where a prompt names none; None is the pipeline's own.
        steps: Where a prompt names none; None is the pipeline's own.
        max_target: The target counts as forgotten where its rate is at most this share, with 95 %
            confidence.
        max_keep_loss: What must stay may fall by at most this share, with 95 % confidence.
        allow_unscored: Whether the verdict may stand although some images could not be scored.
        images: Whether the page shows images; where not, none is in it or beside it.
        loading: How the model is loaded, where it is none yet.
        command: What the report says it was made by.
        progress: Called with what is going on, how much of it is done, and of how much.

    Raises:
        InputError: Something in the arguments cannot be; before any image is made.
    """
    from .eval.answers import Answers
    from .eval.audit import About, installed
    from .eval.metrics.shared import SharedFeatures
    from .eval.verdict import Limits

    phases, several = _Phases(), processes()
    limits = Limits(max_target, max_keep_loss, allow_unscored=allow_unscored)
    tried = find_attacks(attacks)
    task = Task.of(
        base, erasures, out=out, against=against, concepts=concepts, kind=kind, suite=suite,
        size=size, where=where, detectors=detectors, metrics=metrics, batch_size=batch_size,
        guidance=guidance, steps=steps, loading=loading,
    )  # fmt: skip
    source, asked, out = task.source, task.asked, task.out
    novel = None
    if tried and source.loading.offload is not None:
        raise InputError(
            "An attack searches with the model where it lies, and offloading moves it about: "
            "leave out how it is offloaded."
        )
    if tried:
        novel = find_novel(control, source.name, asked.concepts, asked.detectors)
    doubted = source.interfering(task.erasures)
    store = open_store(out)
    kept = {
        side: Answers(out / side / "answers.jsonl", None if store is None else store.answers)
        for side in ("base", "erased")
    }
    phases.done("loading")

    def made(what: str, by: Source, stacked: "Sequence[tuple[Erasure, float]]") -> Gallery:
        gallery = by.draw(
            stacked, asked.suite, out / what, task.settings, f"{what} model", store, progress
        )
        phases.done(f"{what} images")
        return gallery

    erased_gallery, base_gallery = (made(what, *drawn) for what, drawn in task.sides.items())

    def attacked(report: "Report") -> "Report":
        return attack_all(report, tried, task, novel, limits, store, seed=seed, progress=progress)

    notes = (
        *asked.suite.notes,
        *source.pictured(),
        *noted(base_gallery, erased_gallery),
        *doubted,
    )
    return _reported(
        base_gallery,
        erased_gallery,
        asked.concepts,
        out,
        kept,
        phases,
        several,
        images,
        attacked=attacked if tried else None,
        detectors=asked.detectors,
        metrics=asked.metrics,
        limits=limits,
        features=None if store is None else SharedFeatures(store.features, installed()),
        about=About(asked.suite.name, asked.suite.source, notes, command),
        progress=progress,
    )


@checked
def attack(
    base: Any,
    erasures: "str | Path | Erasure | Sequence[str | Path | Erasure | tuple[Any, Any]]" = (),
    *,
    out: str | Path,
    attacks: "str | Path | Attack | Sequence[str | Path | Attack]" = "default",
    against: Any = None,
    loading: Loading | None = None,
    **options: Any,
) -> "Report":
    """Tries to bring erased concepts back: an audit of their rows alone, with attacks.

    Where an attack is to be given images of what must stay, some of those rows are there too.

    Args:
        base, erasures, out, against, loading: As ``audit``.
        attacks: As ``audit``; "default" is those of ``unsee.attacks.DEFAULT``.
        options: What else ``audit`` takes.

    Returns:
        A report whose ``attacks`` say what came back. What must stay is not measured, so that its
        verdict is no audit's.

    Raises:
        InputError: As ``audit``.
    """
    from .eval.rows import divide

    task = Task.of(
        base, erasures, out=out, against=against, loading=loading, **{"metrics": (), **options}
    )
    asked = task.asked
    divided = divide(asked.concepts, asked.suite.prompts, asked.detectors)
    ours = {prompt.id for rows in divided.targets.values() for prompt in rows}
    if any(one.attack.gives == "kept" for one in find_attacks(attacks)):
        ours |= {prompt.id for prompt in divided.keep[:GIVEN]}
    rows = tuple(prompt for prompt in asked.suite.prompts if prompt.id in ours)
    given = {"metrics": (), **options, "suite": dataclasses.replace(asked.suite, prompts=rows)}
    for name in ("size", "where"):  # by which the suite was made already
        given.pop(name, None)
    return audit(task.source, erasures, out=out, against=against, attacks=attacks, **given)


@checked
def audit_each(
    base: Any,
    each: Mapping[str, Any] | Sequence[str | Path],
    *,
    out: str | Path,
    concepts: str | Concept | Sequence[str | Concept] = (),
    loading: Loading | None = None,
    progress: Progress = lambda what, made, total: None,
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
        progress: As ``audit``, what is going on with the name of what is audited before it.
        options: As ``audit``.

    Returns:
        By name, in their order.

    Raises:
        InputError: As ``audit``; two have one name, or there are none.
    """
    # All before the first audit: a wrong file is refused before any image is made
    pairs = list(each_alone(each, out, concepts))
    source = Source.of(base, loading)

    def shown(name: str) -> Progress:
        return lambda what, made, total: progress(f"{name}: {what}", made, total)

    return {name: audit(source, progress=shown(name), **given, **options) for name, given in pairs}


@checked
def audit_all(
    comparison: str | Path | Comparison,
    *,
    out: str | Path,
    loading: Loading | None = None,
    command: str = "",
    progress: Progress = lambda what, made, total: None,
) -> "dict[str, dict[str, Report]]":
    """Makes a whole comparison: every base with each of what is judged, in ``out/BASE/NAME``.

    Where a base has several, compare.json, .csv, .md and .html lie beside them.

    Args:
        comparison: What to compare, or the YAML file that says it.
        out: The folder for all of it.
        loading: How bases are loaded.
        command, progress: As ``audit``.

    Returns:
        By base, and then by name.

    Raises:
        InputError: As ``audit_each``.
    """
    if not isinstance(comparison, Comparison):
        comparison = Comparison.load(Path(comparison))
    found = {}
    for name, base in comparison.bases.items():
        found[name] = audit_each(
            base, comparison.each, out=Path(out) / name, loading=loading, command=command,
            progress=progress, **comparison.options,
        )  # fmt: skip
        if len(found[name]) > 1:
            compare(found[name], out=Path(out) / name)
    return found


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
    images: bool = True,
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
        max_target, max_keep_loss, allow_unscored, images, command, progress: As
            ``audit``.

    Raises:
        InputError: The folders' prompts are not the same, or something else cannot be; before
            anything is measured.
    """
    from .eval import find_detector, find_metric
    from .eval.answers import Answers, each_once
    from .eval.audit import About
    from .eval.folder import open_folder
    from .eval.verdict import Limits

    phases, several = _Phases(), processes()
    limits = Limits(max_target, max_keep_loss, allow_unscored=allow_unscored)
    out = Path(out)
    check_out(out)
    sides = {
        side: open_folder(Path(folder), None if table is None else Path(table))
        for side, folder in (("base", base), ("erased", erased))
    }
    eyes = [find_detector(d, sides["base"].prompts) for d in detectors]
    rulers = [find_metric(m) for m in metrics]
    each_once(eyes, rulers)
    return _reported(
        sides["base"],
        sides["erased"],
        find_concepts(concepts, "", kind=kind),
        out,
        {side: Answers(out / side / "answers.jsonl") for side in sides},
        phases,
        several,
        images,
        detectors=eyes,
        metrics=rulers,
        limits=limits,
        about=About(
            str(base),
            notes=(FINISHED, *_otherwise(sides["base"], sides["erased"])),
            command=command,
        ),
        progress=progress,
    )


@checked
def compare(
    runs: "Sequence[str | Path] | Mapping[str, Report | Sequence[Report]]",
    *,
    out: str | Path | None = None,
) -> "Leaderboard":
    """Several audits beside each other: who forgets best, at what cost, and what is certain of it.

    Args:
        runs: Folders that ``audit`` wrote, or with several of them, which are pooled into one
            line; or reports by name.
        out: The folder for compare.json, .csv, .md and .html.

    Raises:
        InputError: There are fewer than two, one has no report, or they were not measured alike:
            on other suites, bases, settings, detectors or metrics; the line says by what.
    """
    from .eval.leaderboard import leaderboard, load_runs
    from .eval.report import Report

    if isinstance(runs, Mapping):
        given = {n: [r] if isinstance(r, Report) else list(r) for n, r in runs.items()}
    else:
        given = load_runs(runs)
    if out is not None:
        check_folder(Path(out))
        check_ours(Path(out), COMPARISON, "comparison")
    found = leaderboard(given)
    if out is not None:
        found.save(Path(out))
    return found


COMPARISON = {"compare.json": '"columns"'}
"""The same of a comparison."""


FINISHED = "The images were finished: how they were made is as their folders say."
"""What the report of images says that were there already."""


def _reported(
    base: Gallery,
    erased: Gallery,
    concepts: Sequence[Concept],
    out: Path,
    answers: "Mapping[str, Answers]",
    phases: "_Phases",
    several: Processes,
    images: bool,
    progress: Progress,
    about: "About",
    attacked: "Callable[[Report], Report] | None" = None,
    **measured: Any,
) -> "Report":
    """The report of two galleries, made and written by the first of several processes.

    Args:
        answers: Earlier ones, of "base" and of "erased".
        attacked: Gives it with what attacks came to, which all processes work at.
        about, measured: As ``eval.audit.compare``.
    """
    from .eval.audit import compare
    from .eval.page import write
    from .eval.report import Report

    report = several.by_first(compare)(
        base,
        erased,
        concepts,
        base_answers=answers["base"],
        erased_answers=answers["erased"],
        about=dataclasses.replace(
            about,
            date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            peak_bytes=peak_bytes(),
        ),
        progress=progress,
        **measured,
    )
    phases.done("detectors and metrics")
    if attacked is not None:
        # All of them, in which the one that the first has made
        report = attacked(next(one for one in several.share(report) if one is not None))
        phases.done("attacks")
    if not several.is_first or report is None:
        several.share(None)  # until the first has written it
        appears(out / "report.json")
        return Report.load(out / "report.json")
    report = dataclasses.replace(report, seconds=phases.seconds)
    write(report, out, base, erased, images=images, progress=progress)
    several.share(None)
    return report


class _Phases:
    """What took how long."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._begun = time.perf_counter()

    def done(self, phase: str) -> None:
        now = time.perf_counter()
        self.seconds[phase], self._begun = round(now - self._begun, 1), now


def noted(base: Gallery, erased: Gallery) -> list[str]:
    """What the report says of two galleries, in words."""
    return [
        *cut_ends(base),
        *_remade(base, "base"),
        *_remade(erased, "erased"),
        *_otherwise(base, erased),
    ]


def _otherwise(base: Gallery, erased: Gallery) -> list[str]:
    """What the report says where the erased images differ by more than the model's weights.

    So it may be with what somebody else made: a folder has a scheduler of its own.
    """
    ways = []
    for gallery in (base, erased):
        by = gallery.made_by
        if by is None or by.model is None:
            return []
        model = dataclasses.replace(by.model, components={})
        ways.append(dataclasses.replace(by, model=model, erasures=()).key())
    ours, theirs = ways
    if not (others := [n for n in {**ours, **theirs} if ours.get(n) != theirs.get(n)]):
        return []
    named = ", ".join(f"{n} ({ours.get(n)} and {theirs.get(n)})" for n in others[:3])
    more = f" and {len(others) - 3} more" if len(others) > 3 else ""
    return [
        f"The base's images and the erased were not made alike: they differ in the {named}{more}. "
        "Part of what changed may come from that."
    ]


def _remade(gallery: Gallery, side: str) -> list[str]:
    """What the report says of images that were not as they were made."""
    if not (remade := gallery.remade):
        return []
    named = ", ".join(remade[:8]) + " …" * (len(remade) > 8)
    return [
        f"{len(remade)} of {len(gallery)} {side} images were changed or removed after they had "
        f"been made, and were made again: {named}."
    ]
