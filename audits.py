"""Audits: a base model beside what anybody made of it, several of these, or finished images."""

import dataclasses
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._errors import InputError
from ._files import check_folder, check_ours, file_stem, is_file_name
from ._reading import read
from ._settings import Count, Guidance, Seed, Share, Size, Steps, Whole, checked, shown
from .drawing import (
    Progress,
    Source,
    cut_ends,
    how_to_load,
    loaded_erasures,
    name_of,
    open_store,
    peak_bytes,
)
from .flow import find_concepts
from .gallery import Gallery, MadeBy, Used
from .pipelines.loading import Loading, split_weight
from .processes import Processes, appears, processes
from .prompts import Concept, Suite, find_suites, join
from .prompts.concept import read_mapping
from .store import Store

if TYPE_CHECKING:
    from .eval.answers import Answers
    from .eval.audit import About
    from .eval.detectors import Detector
    from .eval.leaderboard import Leaderboard
    from .eval.metrics import Metric
    from .eval.report import Report
    from .eval.verify import Instruments, Run, Verified
    from .pipelines.erasure import Erasure

EMOJI_METRICS = ("emoji/clip", "kid:emoji-judge", "pixels/ssim")


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
    from .eval.audit import About
    from .eval.verdict import Limits

    phases, several = _Phases(), processes()
    limits = Limits(max_target, max_keep_loss, allow_unscored=allow_unscored)
    out = Path(out)
    task = _Task.of(
        base, erasures, out, against, concepts, kind, suite, size, where, detectors, metrics,
        batch_size, guidance, steps, loading,
    )  # fmt: skip
    source, asked, loaded = task.source, task.asked, task.erasures
    doubted = source.interfering(loaded)
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
    notes = (
        *asked.suite.notes,
        *source.pictured(),
        *_noted(base_gallery, erased_gallery),
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
        detectors=asked.detectors,
        metrics=asked.metrics,
        limits=limits,
        about=About(asked.suite.name, asked.suite.source, notes, command),
        progress=progress,
    )


@dataclass(frozen=True)
class Plan:
    """What an audit would take.

    Attributes:
        images: That it needs, of both sides.
        there: That are made already, in its folder or in the store.
        seconds: To make the others, at the rate that was measured; None where none is to be made.
        bytes: Of disk that they take, likewise.
        measured: Images that were made to measure the rate, in a folder that does not stay.
    """

    images: int
    there: int
    seconds: float | None
    bytes: int | None
    measured: int

    def __add__(self, other: "Plan") -> "Plan":
        def both(a: Any, b: Any) -> Any:
            return (a or 0) + (b or 0) if (a, b) != (None, None) else None

        return Plan(
            self.images + other.images,
            self.there + other.there,
            both(self.seconds, other.seconds),
            both(self.bytes, other.bytes),
            self.measured + other.measured,
        )


@checked
def plan_audit(
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
) -> Plan:
    """What ``audit`` of the same arguments would take: images, time, disk; nothing is kept.

    One batch of what is judged is made, to measure how fast it goes.

    Args:
        base, erasures, out, against, concepts, kind, suite, size, where, detectors, metrics,
            batch_size, guidance, steps, loading: As ``audit``.
        rest: What else ``audit`` takes, which changes nothing here.

    Raises:
        InputError: As ``audit``.
    """
    out = Path(out)
    task = _Task.of(
        base, erasures, out, against, concepts, kind, suite, size, where, detectors, metrics,
        batch_size, guidance, steps, loading,
    )  # fmt: skip
    return _planned(task, out, set())


@checked
def plan_each(
    base: Any,
    each: Mapping[str, Any] | Sequence[str | Path],
    *,
    out: str | Path,
    concepts: str | Concept | Sequence[str | Concept] = (),
    loading: Loading | None = None,
    **options: Any,
) -> Plan:
    """What ``audit_each`` of the same arguments would take.

    Raises:
        InputError: As ``audit_each``.
    """
    source = Source.of(base, loading)
    total, known = Plan(0, 0, None, None, 0), set[str]()
    for name, given in _each(each, out, concepts):
        task = _Task.of(source, **given, **options)
        total += _planned(task, Path(out) / name, known)
    return total


def _planned(task: "_Task", out: Path, known: set[str]) -> Plan:
    """What one audit would take.

    Args:
        known: The keys of the images that are there, or will be by then; this one's are added.
    """
    store, prompts = Store.of_user(), task.asked.suite.prompts
    there = 0
    for side, (source, stacked) in task.sides.items():
        made_by = source.made_by(stacked, task.asked.suite, task.settings)
        made: set[str] = set()
        if (out / side / "gallery.json").is_file():
            made = set(Gallery.start(out / side, made_by, prompts).hashes())
        shared = store if source.ours else None
        for prompt in prompts:
            key = made_by.image_key(prompt)
            there += prompt.id in made or key in known or (shared is not None and shared.has(key))
            if shared is not None:
                known.add(key)
    images = len(task.sides) * len(prompts)
    if there == images:
        return Plan(images, there, None, None, 0)
    few = Suite("few", prompts[: task.settings["batch_size"]])
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        drawn = task.other.draw(
            task.erasures, few, Path(folder) / "few", task.settings, "model, to measure", None,
            lambda what, made, total: None,
        )  # fmt: skip
        seconds = (time.perf_counter() - begun) / len(few.prompts)
        size_of = sum(drawn.image_path(p).stat().st_size for p in few.prompts) / len(few.prompts)
    left = images - there
    return Plan(images, there, left * seconds, round(left * size_of), len(few.prompts))


def _each(
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
    pairs = list(_each(each, out, concepts))
    source = Source.of(base, loading)

    def shown(name: str) -> Progress:
        return lambda what, made, total: progress(f"{name}: {what}", made, total)

    return {name: audit(source, progress=shown(name), **given, **options) for name, given in pairs}


@dataclass(frozen=True)
class Comparison:
    """A whole comparison, as a YAML file says it.

    Attributes:
        bases: What is erased from: names to models.
        each: What is judged, each alone: names to erasures (``FILE:0.8`` with a weight) and to
            what anybody made of a base.
        concepts: What was erased, for those that do not say it themselves.
        suites, detectors, metrics, kind, size, where, batch_size, guidance, steps, max_target,
            max_keep_loss: As ``audit``'s.
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
            "concepts", "kind", "size", "where", "batch_size", "guidance", "steps", "max_target",
            "max_keep_loss",
        )  # fmt: skip
        return {name: getattr(self, name) for name in same} | {
            "suite": list(self.suites) or None,
            "detectors": list(self.detectors) or None,
            "metrics": list(self.metrics) or None,
        }


def _beside(file: Path, named: str) -> str:
    """What a file names, beside it if it is there."""
    there = file.parent / split_weight(named)[0]
    return str(file.parent / named) if there.exists() else named


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
    _check_out(out)
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
def verify(
    run: str | Path,
    *,
    model: Any = None,
    against: Any = None,
    erasures: "str | Path | Erasure | Sequence[str | Path | Erasure]" = (),
    rerun: Whole = 0,
    seed: Seed = 0,
    ask: bool = False,
    detectors: "Sequence[str | Detector]" = (),
    metrics: "Sequence[str | Metric]" = (),
    as_recorded: Sequence[str] = (),
    look_at_model: bool = True,
    loading: Loading | None = None,
    progress: Progress = lambda what, made, total: None,
) -> "Verified":
    """Makes an audit's report out again from its images and answers, and says what differs.

    Figures, verdict, warnings and page are made again, metrics are computed again from the
    images, and answers are held against the detectors' rules. Nothing is written.

    Args:
        run: The folder of an audit.
        model: The base model, as ``audit`` takes it; None is the one that the run names, which
            is looked at where it is built in or lies on this machine.
        against: What somebody made of it, where that was audited, as ``audit`` takes it.
        erasures: The erasures that were measured, or their files, in their order.
        rerun: How many images are made again, half of them of the base; this needs the erasures.
        seed: Of the choice of these images.
        ask: Whether detectors are asked again about every image.
        detectors, metrics: Those of the run that are not found by their names in the report
            alone, such as one with an argument.
        as_recorded: Names of detectors whose labels, and of metrics whose figures, are taken as
            they are recorded.
        look_at_model: Whether the model's weights are read, to be compared with the recorded
            ones; ``rerun`` always does.
        loading: How the model is loaded; its type is the recorded one, and its LoRAs are where
            none are named.
        progress: Called with what is going on, how much of it is done, and of how much.

    Raises:
        InputError: The folder is no run, or something that is needed is not to be had.
    """
    from .eval.verify import Instruments, Run, Verified
    from .eval.verify import verify as made_out

    there = Run.load(Path(run))
    if not there.galleries and there.given and FINISHED in there.given.warnings:
        raise InputError(
            f"{run} is of images that were finished and lie elsewhere, and a run is verified from "
            "its own: make the report again with 'unsee audit --images', and compare."
        )
    erasures, against = _sides(erasures, against)
    stacked = [erasure for erasure, _ in loaded_erasures(erasures)]
    made = {side: gallery.made_by or MadeBy() for side, gallery in there.galleries.items()}
    used = made["erased"].erasures if "erased" in made else ()
    foreign = "erased" in made and not used
    if rerun and foreign and against is None:
        raise InputError(
            "Making images again needs what was audited, which was no erasure: name it with "
            "--against."
        )
    if rerun and not foreign and not stacked:
        files = "; ".join(one.key for one in used)
        raise InputError(f"Making images again needs the erasures' files (-e), in order: {files}.")
    instruments = Instruments.of(there, detectors, metrics, as_recorded)
    found = made_out(there, instruments, ask=ask, notes=_noted, progress=progress)
    wrong, recorded, checked = [], [], []
    concepts = [concept for erasure in stacked for concept in erasure.record.concepts]
    if foreign:
        if against is None:
            recorded.append("The weights of what was audited: it was not named (--against).")
        if stacked:
            wrong.append(f"The run is of no erasure, and named were {_known_by(stacked)}.")
    elif not stacked:
        recorded.append("The erasures' files, and the concepts in them: none was named (-e).")
    elif [e.sha256 for e in stacked] != [one.sha256 for one in used]:
        wrong.append(
            f"The erasures are not those of the run: it has {_known_by(used)}, and named were "
            f"{_known_by(stacked)}."
        )
    elif there.concepts not in (None, concepts):
        wrong.append("report.json is not of the concepts that the erasures' files name.")
    else:
        checked.append("the erasures' files")
    source: Source | None = None
    other: Source | None = None
    known = made["base"].model if "base" in made else None
    name, *loras = known.name.split(" + ") if known else [""]
    here = model is not None or _is_here(name)
    if known is None or not (rerun or (look_at_model and here)):
        why = "--no-model" if here and known else "it is not here" if known else "not recorded"
        recorded.append(f"The model's weights ({why}).")
    else:
        from .pipelines.identity import model_of

        how = how_to_load(name if model is None else model, loading)
        if model is None or isinstance(model, (str, Path)):
            dtype: Any = known.dtype  # which Loading checks
            how = dataclasses.replace(how, dtype=dtype, lora=how.lora or tuple(loras))
        if not rerun:
            how = dataclasses.replace(how, device="cpu", offload=None)
        # Without its name, by which alone it is called what the run calls it
        source = Source.of(name if model is None else model, how)
        ours = model_of(source.pipe, known.name)
        other = source
        if difference := MadeBy(model=known).difference(MadeBy(model=ours)):
            wrong.append(
                f"The model {name_of(model or name)} is not the one that made the images: another "
                f"{difference}."
            )
        else:
            checked.append("the model's weights")
        if against is not None and "erased" in made:
            other = source.of_another(against)
            theirs = made["erased"].model
            if difference := MadeBy(model=theirs).difference(MadeBy(model=other.known)):
                wrong.append(f"{against} is not what was audited: another {difference}.")
            else:
                checked.append("the weights of what was audited")
    if not rerun:
        recorded.append("How the images were made: none was made again (--rerun).")
    elif wrong or source is None or other is None or len(made) < 2:
        recorded.append("How the images were made: none was made again, as the above differs.")
    else:
        weighted = [(e, one.weight) for e, one in zip(stacked, used, strict=True)]
        sides = {"erased": (other, weighted), "base": (source, [])}
        found += _rerun(there, sides, rerun, seed, instruments, progress)
    return found + Verified(str(run), tuple(wrong), tuple(checked), tuple(recorded))


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

COMPARISON = {"compare.json": '"columns"'}
"""The same of a comparison."""


FINISHED = "The images were finished: how they were made is as their folders say."
"""What the report of images says that were there already."""


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
        rulers = [find_metric(m) for m in metrics or usual]
        each_once(eyes, rulers)
        check_published(rulers, len(divide(concepts, found.prompts, eyes).keep), KEPT)
        return cls(concepts, found, eyes, rulers)


@dataclass(frozen=True)
class _Task:
    """An audit before any image is made.

    Attributes:
        source: The base.
        other: What is judged, where it is no erasure; else the base.
        erasures: What is judged, with weights.
        asked: What, and whom.
        settings: Of generation.
    """

    source: Source
    other: Source
    erasures: "Sequence[tuple[Erasure, float]]"
    asked: _Asked
    settings: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        base: Any,
        erasures: Any,
        out: Path,
        against: Any,
        concepts: str | Concept | Sequence[str | Concept],
        kind: str | None = None,
        suite: str | Suite | Sequence[str | Suite] | None = None,
        size: int | None = None,
        where: str = "",
        detectors: "Sequence[str | Detector] | None" = None,
        metrics: Sequence[str] | None = None,
        batch_size: int = 8,
        guidance: float | None = None,
        steps: int | None = None,
        loading: Loading | None = None,
        **rest: Any,
    ) -> "_Task":
        """Its arguments, as ``audit`` has them, read and checked, and the model loaded.

        Args:
            rest: What else ``audit`` takes, which changes no image.
        """
        _check_out(out)
        erasures, against = _sides(erasures, against)
        loaded = loaded_erasures(erasures)
        name = base.name if isinstance(base, Source) else name_of(base)
        targets = _targets(name, loaded, against, concepts, kind)
        asked = _Asked.of(name, targets, suite, size, where, detectors, metrics)
        source = Source.of(base, loading)
        other = source if against is None else source.of_another(against)
        settings = {"batch_size": batch_size, **source.generation(guidance, steps)}
        return cls(source, other, loaded, asked, settings)

    @property
    def sides(self) -> "dict[str, tuple[Source, Sequence[tuple[Erasure, float]]]]":
        """What draws each side. The erased first: an erasure for another base is refused before
        any image is made."""
        return {"erased": (self.other, self.erasures), "base": (self.source, ())}


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
    **measured: Any,
) -> "Report":
    """The report of two galleries, made and written by the first of several processes.

    Args:
        answers: Earlier ones, of "base" and of "erased".
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
    if report is None:
        several.share(None)  # until the first has written it
        appears(out / "report.json")
        return Report.load(out / "report.json")
    phases.done("detectors and metrics")
    report = dataclasses.replace(report, seconds=phases.seconds)
    write(report, out, base, erased, images=images, progress=progress)
    several.share(None)
    return report


def _check_out(out: Path) -> None:
    """Makes sure that a report can be written into a folder, and over nothing of anybody else's.

    Raises:
        InputError: It cannot.
    """
    check_folder(out)
    check_folder(out / "report_files")
    check_ours(out, REPORT, "report")


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


def _sides(erasures: Any, against: Any) -> tuple[Any, Any]:
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


def _noted(base: Gallery, erased: Gallery) -> list[str]:
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


def _rerun(
    run: "Run",
    sides: "Mapping[str, tuple[Source, Sequence[tuple[Erasure, float]]]]",
    count: int,
    seed: int,
    instruments: "Instruments",
    progress: Progress,
) -> "Verified":
    """Makes some of a run's images again, in a folder that does not stay, and compares them."""
    from .eval.verify import Verified, drawn, made_again

    found = Verified(str(run.path), ())
    counts = {"erased": count - count // 2, "base": count // 2}
    with tempfile.TemporaryDirectory() as folder:
        for side, (source, stacked) in sides.items():
            made_by = run.galleries[side].made_by or MadeBy()
            suite = Suite("rerun", drawn(run.galleries[side].prompts, counts[side], seed))
            if not suite.prompts:
                continue
            settings = {
                "batch_size": made_by.batch_size or 1,
                "guidance": made_by.guidance,
                "steps": made_by.steps,
            }
            # Not from the store: these are to be made
            again = source.draw(
                stacked,
                suite,
                Path(folder) / side,
                settings,
                f"{side} model, again",
                None,
                progress,
            )
            found += made_again(run, side, again, instruments)
    return found


def _is_here(model: str) -> bool:
    """Whether a model is built in, or lies on this machine."""
    from .pipelines import MODELS

    return model in MODELS or Path(model).exists()


def _known_by(erasures: "Sequence[Used | Erasure]") -> str:
    return ", ".join(f"{one.name} ({one.sha256[:12]}…)" for one in erasures) or "none"
