"""The whole way, from a concept to a report: what the command line does, as functions."""

import dataclasses
import hashlib
import re
import shlex
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ._errors import InputError
from ._files import check_folder, file_stem
from ._registry import unknown
from ._settings import (
    Count,
    Guidance,
    Rest,
    Seed,
    Share,
    Size,
    Steps,
    check,
    checked,
    hints_of,
    shown,
)
from .erasers import ERASERS, Eraser
from .gallery import Gallery, MadeBy, Used
from .pipelines.loading import Loading
from .prompts import YAML, Concept, Suite, find_concept, find_suites, join
from .prompts.emoji import world
from .records import Model

if TYPE_CHECKING:
    import torch

    from .eval.detectors import Detector
    from .eval.folder import FolderScore
    from .eval.report import Report
    from .pipelines.erasure import Erasure
    from .pipelines.hub import Audited
    from .pipelines.parts import Parts
    from .records import Interference

Progress = Callable[[str, int, int], None]

EMOJI_METRICS = ("emoji/clip", "frechet/emoji-judge", "pixels/ssim")

PLAIN = Loading()
"""A model as it is loaded where nobody says how."""


def make_eraser(method: str, preset: str | None = None, **settings: Any) -> Eraser:
    """A method with its settings.

    Args:
        method: A name in ``ERASERS``.
        preset: One of the method's named settings.
        settings: What goes before the preset's.

    Raises:
        InputError: There is no such method, preset or setting, or a value that cannot be.
    """
    cls = ERASERS[method]
    known = hints_of(cls)
    for name in settings:
        if name not in known:
            raise unknown(f"setting of {method}", name, known)
    if preset is not None and preset not in cls.presets:
        raise unknown(f"preset of {method}", preset, cls.presets)
    eraser = cls(**((cls.presets[preset] if preset else {}) | settings))
    check(eraser)  # as another package's may not do
    return eraser


@checked
def erase(
    model: Any,
    concepts: str | Concept | Sequence[str | Concept],
    *,
    method: str = "uce",
    preset: str | None = None,
    keep: Sequence[str] = (),
    anchor: str | None = None,
    kind: str | None = None,
    seed: Seed = 0,
    check: bool = True,
    checkpoint: str | Path | None = None,
    loading: Loading | None = None,
    progress: Callable[[float], None] = lambda done: None,
    watch: Callable[[float], None] = lambda loss: None,
    **settings: Any,
) -> "Erasure":
    """Makes a model forget.

    Args:
        model: A diffusers pipeline, which is left as it was, or what ``load_pipeline`` loads.
        concepts: What goes: names (``find_concept``) or concepts.
        method: A name in ``ERASERS``.
        preset: One of the method's named settings.
        keep: Phrases that must stay, besides what the concepts keep themselves.
        anchor: What the concepts become, in place of what they say themselves.
        kind: What the concepts are, where they are phrases of your own.
        seed: Of every draw.
        check: Whether to look at the effect afterwards, for ``measured.effect``. A closed form
            needs the whole model for this alone.
        checkpoint: A file by which a method that trains goes on after an interrupt, to the same
            weights; remove it once the erasure is saved.
        loading: How the model is loaded, where it is none yet.
        progress: Called with the share that is done, in [0, 1].
        watch: Called with the loss of each step of a method that trains.
        settings: The method's settings by name.

    Warns:
        UserWarning: The denoiser's prediction on a concept hardly moved, on what must stay it
            moved much, or an anchor is so near that it may draw the concept.

    Raises:
        InputError: Something in the arguments cannot be; before any work is done.
    """
    from .erasers.effect import doubts, effect
    from .pipelines import load_text_side, parts_of

    eraser = make_eraser(method, preset, **settings)
    _check_honoured(method, eraser, keep, anchor)
    training: dict[str, Any] = {}
    if eraser.trains:
        path = None if checkpoint is None else Path(checkpoint)
        training = {"checkpoint": path, "watch": watch}
    elif checkpoint is not None:
        raise InputError(
            f"{method} does not train and has nothing to go on from: leave checkpoint out."
        )
    name = _name(model)
    how = _how(model, loading)
    how.check_erasing()
    wanted = find_concepts(concepts, name, keep=keep, anchor=anchor, kind=kind)

    def whole() -> "Parts":
        return parts_of(_pipeline(model, how))

    def text_side() -> "Parts":
        if not isinstance(model, (str, Path)):
            return parts_of(model)
        return parts_of(load_text_side(model, **how.reading, **_unchecked(name)))

    parts = text_side() if eraser.needs == "text" else whole()
    start = time.perf_counter()
    erasure = eraser.fit(parts, wanted, seed=seed, progress=progress, **training)
    seconds, peak = round(time.perf_counter() - start, 3), _peak_bytes()
    measured = dataclasses.replace(
        erasure.measured, seconds=seconds, peak_memory=peak.get("cuda", peak.get("process"))
    )
    if check and erasure.record.kind != "guidance":  # which leaves the denoiser as it is
        if eraser.needs == "text":
            parts = whole()
        seen = effect(parts, erasure, wanted, seed=seed)
        measured = dataclasses.replace(measured, effect=seen)
        for line in doubts(seen, wanted):
            warnings.warn(line, stacklevel=3)  # past ``checked``
    return dataclasses.replace(erasure, measured=measured)


@checked
def merge(
    erasures: "Sequence[str | Path | Erasure]",
    *,
    how: Literal["joint", "sum"] = "sum",
    model: Any = None,
    residual: Rest = 1e-3,
    check: bool = True,
    loading: Loading | None = None,
    progress: Callable[[float], None] = lambda done: None,
) -> "Erasure":
    """Makes one erasure of several of one base.

    Args:
        erasures: Erasures or their files, at least two.
        how: "sum" adds them up, whatever methods made their weights, and needs no model. "joint"
            solves a closed form for all concepts together, with the settings that all files name:
            it gives the erasure that ``erase`` makes of all concepts at once.
        model: For "joint", the base model, as ``erase`` takes it; None is the one that the files
            name.
        residual: For "sum", how much of a low-rank sum may be left out, relative in Frobenius'
            norm.
        check: For "joint", whether to look at the effect, as ``erase`` does.
        loading: For "joint", how the model is loaded.
        progress: Called with the share that is done, in [0, 1].

    Raises:
        InputError: They cannot be merged in this way; the message says which, and what to do.
    """
    from .erasers.merge import Sum, check_alike, concepts_of, joint
    from .pipelines import Erasure

    if how == "sum" and loading not in (None, PLAIN):
        raise InputError("A sum loads no model: leave out how it is loaded.")
    loaded = [e if isinstance(e, Erasure) else Erasure.load(e) for e in erasures]
    if how == "sum":
        return Sum(residual).of(loaded)
    method, settings, seed = joint(loaded)
    eraser = ERASERS[method]
    if eraser.trains or loaded[0].record.kind == "guidance":
        what = "trains" if eraser.trains else "is a guide"
        raise InputError(
            f"A joint merge solves closed forms, and {method} {what}: "
            + ("add them up (sum)." if eraser.trains else "load them beside each other.")
        )
    concepts = concepts_of(loaded)
    if model is None:
        model = loaded[0].record.base.name
    elif not isinstance(model, (str, Path)):
        loaded[0].check_base(model)
    made = erase(
        model,
        concepts,
        method=method,
        seed=seed,
        check=check,
        loading=loading,
        progress=progress,
        **settings,
    )
    check_alike([*loaded, made])
    return made


@checked
def audit(
    base: Any,
    erasures: "str | Path | Erasure | Sequence[str | Path | Erasure | tuple[Any, Any]]",
    *,
    out: str | Path,
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
    asked about twice.

    Args:
        base: The model that the erasures were made for: what ``load_pipeline`` loads, or the
            pipeline itself, which is left as it was.
        erasures: Erasures, their files or their ids, as ``load_pipeline`` takes them, with
            weights or without; they are measured together.
        out: The folder for it all.
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
    from .eval import find_detector, find_metric
    from .eval.answers import Answers, each_once
    from .eval.audit import compare
    from .eval.page import write
    from .eval.rows import divide
    from .eval.verdict import Limits
    from .pipelines.identity import model_of

    limits = Limits(max_target, max_keep_loss, allow_unscored=allow_unscored)
    loaded = _loaded(erasures)
    if not loaded:
        raise InputError("There is no erasure to audit: name at least one file.")
    name, out = _name(base), Path(out)
    check_folder(out)
    check_folder(out / "report_files")
    _check_ours(out, {"report.json": '"verdict"', "report.html": "unsee"}, "report")
    if name != "emoji" and (suite is None or not detectors):
        raise InputError(
            f"Say on which suite and with which detectors {name!r} is to be measured."
        )
    how = _how(base, loading)
    concepts = [concept for e, _ in loaded for concept in e.record.concepts]
    named = [suite or "emoji"] if suite is None or isinstance(suite, (str, Suite)) else suite
    suite = join(find_suites(named, concepts, size, where=where))
    eyes = [find_detector(d, suite.prompts) for d in detectors or ("emoji/object", "emoji/style")]
    rulers = [find_metric(m) for m in metrics or (EMOJI_METRICS if name == "emoji" else ())]

    each_once(eyes, rulers)
    divide(concepts, suite.prompts, eyes)
    kept = {side: Answers(out / side / "answers.jsonl") for side in ("base", "erased")}
    moved = _accelerator(how)
    pipe = _pipeline(base, how)
    model = model_of(pipe, " + ".join((name, *how.lora)))
    settings = {"batch_size": batch_size, **_generation(pipe, name, guidance, steps)}
    seconds = {}

    def made(what: str, stacked: "Sequence[tuple[Erasure, float]]") -> Gallery:
        start = time.perf_counter()
        with _stacked(pipe, stacked, how, moved):
            gallery = _gallery(
                pipe, model, stacked, suite, out / what, settings, f"{what} model", progress
            )
        seconds[f"{what} images"] = round(time.perf_counter() - start, 1)
        return gallery

    doubted = _interfering(pipe, loaded)
    # The erased first: an erasure for another base is refused before any image is made.
    erased_gallery, base_gallery = made("erased", loaded), made("base", ())
    report = compare(
        base_gallery,
        erased_gallery,
        concepts,
        detectors=eyes,
        metrics=rulers,
        suite_name=suite.name,
        suite_source=suite.source,
        notes=(
            *suite.notes,
            *_pictured(pipe),
            *_cut(base_gallery),
            *_remade(base_gallery, "base"),
            *_remade(erased_gallery, "erased"),
            *doubted,
        ),
        base_answers=kept["base"],
        erased_answers=kept["erased"],
        limits=limits,
        command=command,
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        seconds=dict(sorted(seconds.items())),
        peak_bytes=_peak_bytes(),
        progress=progress,
    )
    write(report, out, base_gallery, erased_gallery, images=images, progress=progress)
    return report


@checked
def push(
    erasure: "str | Path | Erasure",
    repo: str | None = None,
    *,
    folder: str | Path | None = None,
    name: str | None = None,
    report: str | Path | None = None,
    license: str | None = None,
    private: bool = False,
) -> str:
    """Puts an erasure's file and a card of it on the Hugging Face hub, or into a folder.

    Args:
        erasure: The erasure or its file.
        repo: ``owner/name`` on the hub.
        folder: In place of ``repo``: where to write what would be put there.
        name: The file's name there; None is its own, or the concepts'.
        report: The report.json of an audit of this erasure, whose figures go into the card.
        license: For the card, by its name on the hub; None leaves it out.
        private: Whether a new repository is to be seen by its owner alone.

    Returns:
        Where it is: an address, or the folder.

    Raises:
        InputError: The report is of another erasure, the hub cannot be reached or refuses, or
            HF_HUB_OFFLINE is set.
    """
    from .gallery import write_atomically
    from .pipelines import Erasure, hub

    if (repo is None) == (folder is None):
        raise InputError("Say where to: either a repository, OWNER/NAME, or a folder.")
    if repo is not None:
        hub.check_repo(repo)
    loaded = erasure if isinstance(erasure, Erasure) else Erasure.load(erasure)
    own = f"{file_stem([loaded.name])}.safetensors"
    if not isinstance(erasure, Erasure):
        own = Path(erasure).name if str(erasure).endswith(".safetensors") else own
    file = name or own
    if not re.fullmatch(r"[\w.+-]+\.safetensors", file):
        raise InputError(f"The file's name is {shown(file)}; it must be one of .safetensors.")
    audited = None if report is None else _audited(loaded, Path(report))
    card = hub.file_card(loaded, file, license=license, audited=audited)
    if folder is not None:
        check_folder(Path(folder))
        _check_ours(Path(folder), {"README.md": "unsee"}, "card")
        write_atomically(Path(folder) / file, loaded.bytes)
        write_atomically(Path(folder) / "README.md", card)
        return str(folder)
    assert repo is not None
    return hub.push(repo, file, loaded.bytes, card, private=private)


def _audited(erasure: "Erasure", path: Path) -> "Audited":
    """What a report says of an erasure.

    Raises:
        InputError: It is no report, or of another erasure, or of several.
    """
    from .eval.report import Report, summary
    from .pipelines.hub import Audited

    report = Report.load(path)
    used = report.erased.get("erasures") or ()
    of = [one.get("sha256") for one in used if isinstance(one, Mapping)]
    if of != [erasure.sha256]:
        raise InputError(
            f"{path} is a report of {'another erasure' if len(of) == 1 else f'{len(of)} erasures'}"
            f": audit {erasure.name!r} alone, and give that report."
        )
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    suite = report.suite
    return Audited(report.answer, summary(report), digest, f"{suite.name}, {suite.n} prompts")


@checked
def score(
    folder: str | Path,
    *,
    out: str | Path | None = None,
    table: str | Path | None = None,
    detectors: "Sequence[str | Detector]" = (),
    metrics: Sequence[str] = (),
    reference: str | Path | None = None,
    concept: str = "",
    kind: str = "object",
    batch_size: Count = 64,
    command: str = "",
    progress: Progress = lambda what, done, total: None,
) -> "FolderScore":
    """Measures images that came from anywhere; no pipeline is loaded.

    Writes ``answers.jsonl``, every answer of every detector, and ``score.json``, what follows. A
    detector is not asked again about an image of which it has an answer in ``answers.jsonl``.

    Args:
        folder: Images, or a gallery.
        out: The folder for the two files; the images' own if None.
        table: CSV or JSONL with the images' prompts and labels, as ``open_folder`` reads it.
        detectors: As ``find_detector`` reads them.
        metrics: As ``find_metric`` reads them.
        reference: The images, or the gallery, that distances are taken to.
        concept: A label whose rate is wanted.
        kind: The concept's.
        batch_size: Images at a time.
        command: What score.json says it was made by.
        progress: Called with what is going on, how much of it is done, and of how much.

    Raises:
        InputError: There is no image, or something in the arguments cannot be; before any work.
    """
    from .eval import find_detector, find_metric
    from .eval.answers import Answers
    from .eval.folder import measure, open_folder

    gallery = open_folder(Path(folder), None if table is None else Path(table))
    there = Path(folder if out is None else out)
    check_folder(there)
    _check_ours(there, {"score.json": '"rates"'}, "score")
    found = measure(
        gallery,
        [find_detector(d, gallery.prompts) for d in detectors],
        [find_metric(m) for m in metrics],
        reference=None if reference is None else open_folder(Path(reference)),
        concept=concept,
        kind=kind,
        answers=Answers(there / "answers.jsonl"),
        batch_size=batch_size,
        command=command,
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        progress=progress,
    )
    found.save(there / "score.json")
    return found


@checked
def generate_gallery(
    model: Any,
    erasures: "str | Path | Erasure | Sequence[str | Path | Erasure | tuple[Any, Any]]",
    suite: Suite,
    out: str | Path,
    *,
    batch_size: Count = 8,
    guidance: Guidance | None = None,
    steps: Steps | None = None,
    loading: Loading | None = None,
    progress: Progress = lambda what, made, total: None,
) -> Gallery:
    """Makes a suite's images with a model and its erasures, or those that are still missing.

    Args:
        model: What ``load_pipeline`` loads, or the pipeline itself, which is left as it was.
        erasures: Erasures, their files or their ids, as ``load_pipeline`` takes them.
        suite: The prompts.
        out: The gallery's folder.
        batch_size: Images at a time.
        guidance: Where a prompt names none; None is the pipeline's own.
        steps: Where a prompt names none; None is the pipeline's own.
        loading: How the model is loaded, where it is none yet.
        progress: Called with what is going on, how much of it is done, and of how much.

    Warns:
        UserWarning: The tokenizer cuts some of the prompts, which gallery.json lists; the model
            draws videos, of which an image is one frame; or several erasures weaken one another:
            see ``interference``.

    Raises:
        InputError: As ``load_pipeline`` and ``Gallery.start``.
    """
    from .pipelines.identity import model_of

    check_folder(Path(out))
    loaded = _loaded(erasures)
    name = _name(model)
    how = _how(model, loading)
    moved = _accelerator(how)
    pipe = _pipeline(model, how)
    settings = {"batch_size": batch_size, **_generation(pipe, name, guidance, steps)}
    known = model_of(pipe, " + ".join((name, *how.lora)))
    doubted = _interfering(pipe, loaded)
    with _stacked(pipe, loaded, how, moved):
        gallery = _gallery(pipe, known, loaded, suite, Path(out), settings, "model", progress)
    for note in (*_pictured(pipe), *_cut(gallery), *doubted):
        warnings.warn(note, stacklevel=3)  # past ``checked``
    return gallery


def _cut(gallery: Gallery) -> list[str]:
    """A line on the prompts that the tokenizer cuts, if there are any."""
    ids = gallery.made_by.cut if gallery.made_by else ()
    if not ids:
        return []
    more = f" and {len(ids) - 10} more, all of them in gallery.json" if len(ids) > 10 else ""
    return [
        f"The tokenizer cuts {len(ids)} of {len(gallery)} prompts, whose ends the model "
        f"never read: {', '.join(ids[:10])}{more}."
    ]


def _gallery(
    pipe: Any,
    model: Model,
    erasures: "Sequence[tuple[Erasure, float]]",
    suite: Suite,
    out: Path,
    settings: Mapping[str, Any],
    what: str,
    progress: Progress,
) -> Gallery:
    from .pipelines import cut, generate

    _check_steps(pipe, suite, settings["steps"])
    made_by = MadeBy(
        model=model,
        erasures=tuple(_used(e, weight) for e, weight in erasures),
        versions={package: version(package) for package in ("unsee", "torch", "diffusers")},
        suite={"name": suite.name, **suite.source} if suite.source else {},
        cut=tuple(cut(pipe, suite.prompts)),
        device=str(pipe._execution_device),
        **settings,
    )
    gallery = Gallery.start(out, made_by, suite.prompts)
    made = 0
    for batch in generate(pipe, gallery, **settings):
        made += batch
        progress(f"images of the {what}", made, len(gallery))
    return gallery


@contextmanager
def _stacked(
    pipe: Any,
    erasures: "Sequence[tuple[Erasure, float]]",
    loading: Loading,
    moved: "torch.device | None",
) -> Iterator[None]:
    """A pipeline with erasures in it, and its weights offloaded behind them if that is wanted."""
    from .pipelines.load import offloaded

    with ExitStack() as stack:
        for erasure, weight in erasures:
            stack.enter_context(erasure.applied(pipe, weight))
        stack.enter_context(offloaded(pipe, loading.offload, moved))
        yield


def _interfering(pipe: Any, erasures: "Sequence[tuple[Erasure, float]]") -> list[str]:
    """What several erasures of weights give reason to doubt together, a line each."""
    from .erasers.effect import together, weakened
    from .pipelines.parts import described

    edits = [(erasure, weight) for erasure, weight in erasures if erasure.tensors]
    return weakened(together(described(pipe), edits)) if edits[1:] else []


@checked
def interference(
    model: Any,
    erasures: "Sequence[str | Path | Erasure | tuple[Any, Any]]",
    *,
    seed: Seed = 0,
    loading: Loading | None = None,
) -> "Interference":
    """How far several erasures move each concept and each kept phrase, together and alone.

    Args:
        model: What ``load_pipeline`` loads, or the pipeline itself, which is left as it was.
        erasures: Erasures, their files or their ids, with weights or without; at least two.
        seed: Of every draw.
        loading: How the model is loaded, where it is none yet.

    Warns:
        UserWarning: One is weaker beside the others, or what must stay moves more; by name.

    Raises:
        InputError: There are fewer than two, one is a guide, or was made for another model.
    """
    from .erasers.effect import together, weakened
    from .pipelines.parts import described

    loaded = _loaded(erasures)
    if len(loaded) < 2:
        raise InputError("Interference is between erasures: name at least two.")
    if guides := [erasure.name for erasure, _ in loaded if not erasure.tensors]:
        raise InputError(
            f"The erasure {guides[0]!r} is a guide, which leaves the denoiser's predictions as "
            "they are: interference is between erasures of weights."
        )
    how = _how(model, loading)
    how.check_erasing()
    found = together(described(_pipeline(model, how)), loaded, seed=seed)
    for line in weakened(found):
        warnings.warn(line, stacklevel=3)  # past ``checked``
    return found


@checked
def find_concepts(
    given: str | Concept | Sequence[str | Concept],
    model: str,
    *,
    keep: Sequence[str] = (),
    anchor: str | None = None,
    kind: str | None = None,
) -> list[Concept]:
    """The concepts that are to go, each with what must stay.

    Args:
        given: Names (``find_concept``) or concepts.
        model: Where they are to be erased from.
        keep: Phrases that must stay, besides what the concepts keep themselves.
        anchor: What the concepts become, in place of what they say themselves.
        kind: What the concepts are, where they are phrases of your own.

    Raises:
        InputError: There is none, one is not known, or one is both to go and to stay.
    """
    names = [given] if isinstance(given, (str, Concept)) else list(given)
    for name in names:
        if isinstance(name, str) and Path(name).suffix not in YAML:
            _check_phrase(name, lambda parts: ["unsee", "erase", model, *parts])
    for phrase in keep:
        _check_phrase(phrase, lambda parts: [w for part in parts for w in ("--keep", part)])
    found = [
        one if isinstance(one, Concept) else find_concept(one, model=model, kind=kind)
        for one in names
    ]
    if not found:
        raise InputError("There is no concept to erase: name at least one.")
    if model == "emoji":
        known = {*world().objects, *world().styles}
        for phrase in keep:
            if phrase not in known:
                raise unknown("object or style of the emoji model", phrase, known)
    going = {phrase for concept in found for phrase in concept.phrases}
    if both := going & set(keep):
        raise InputError(f"{min(both)!r} cannot both go and stay: take it from what is kept.")
    # What one concept keeps by itself, another may be taking away.
    return [
        dataclasses.replace(
            concept,
            keep=tuple(k for k in dict.fromkeys((*concept.keep, *keep)) if k not in going),
            anchor=concept.anchor if anchor is None else anchor,
        )
        for concept in found
    ]


def _check_phrase(phrase: str, meant: Callable[[list[str]], list[str]]) -> None:
    """Refuses no words at all, and a list in one text: the concept would be the whole list.

    Args:
        meant: The words of the command that was meant, from the list's parts.

    Raises:
        InputError: The phrase is one of these.
    """
    parts = [part.strip() for part in phrase.split(",") if part.strip()]
    if not parts:
        raise InputError(f"The phrase {phrase!r} is empty: name what is to go, and what to stay.")
    if parts[1:]:
        raise InputError(
            f"{shown(phrase)} is a list in one text: name each by itself, as in "
            f"{shlex.join(meant(parts))}. A phrase that has a comma goes into a concept's YAML "
            "file."
        )


def _check_ours(out: Path, marks: Mapping[str, str], what: str) -> None:
    """Refuses to write over a file of somebody else's that has the name of one of ours.

    Args:
        marks: A file's name to what is in each of ours.
        what: What ours is.

    Raises:
        InputError: There is one.
    """
    for name, mark in marks.items():
        file = out / name
        try:
            ours = not file.exists() or mark in file.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise InputError(f"{file} cannot be written over: {error.strerror}.") from error
        if not ours:
            raise InputError(
                f"{file} is there already and is no {what} of unsee: name another folder."
            )


def _check_steps(pipe: Any, suite: Suite, steps: int) -> None:
    """Refuses more denoising steps than the model's scheduler has times to choose from.

    Raises:
        InputError: A prompt, or the whole gallery, asks for more.
    """
    most = pipe.scheduler.config.get("num_train_timesteps")
    wanted = max(steps if p.steps is None else p.steps for p in suite.prompts)
    if most is not None and wanted > most:
        raise InputError(
            f"steps is {wanted}; it must be at most {most}, the times that the model's "
            f"{type(pipe.scheduler).__name__} knows."
        )


def _check_honoured(method: str, eraser: Eraser, keep: Sequence[str], anchor: str | None) -> None:
    """Refuses what a method would drop in silence.

    Raises:
        InputError: There is something to keep, or an anchor, and the method honours none.
    """
    if keep and not eraser.honours_keep:
        able = ", ".join(name for name, cls in ERASERS.items() if cls.honours_keep)
        raise InputError(
            f"{method} cannot keep anything on purpose: leave keep out, or take one of {able}."
        )
    if keep and eraser.keep_setting and getattr(eraser, eraser.keep_setting) == 0:
        raise InputError(
            f"{method} has {eraser.keep_setting} 0, at which nothing is kept: leave keep out, or "
            f"set {eraser.keep_setting} above 0."
        )
    if anchor is not None and not eraser.honours_anchor:
        able = ", ".join(name for name, cls in ERASERS.items() if cls.honours_anchor)
        raise InputError(
            f"{method} leads concepts to no anchor: leave anchor out, or take one of {able}."
        )


def _generation(
    pipe: Any, model: str, guidance: float | None, steps: int | None
) -> Mapping[str, float | int | None]:
    """The settings for generating: what is asked for, or else the pipeline's own.

    Raises:
        InputError: The pipeline has no number of steps of its own, and none is asked for.
    """
    from .pipelines.generation import own

    if model == "emoji":
        known = world().generation
        guidance = known["guidance_scale"] if guidance is None else guidance
        steps = known["num_inference_steps"] if steps is None else steps
    if guidance is None or steps is None:
        mine = own(pipe)
        guidance = mine.guidance if guidance is None else guidance
        steps = mine.steps if steps is None else steps
    return {"guidance": guidance, "steps": steps}


def _pictured(pipe: Any) -> list[str]:
    """What an image is, where the pipeline draws something else."""
    from .pipelines.generation import pictured

    return [line] if (line := pictured(pipe)) else []


def _name(model: Any) -> str:
    if not isinstance(model, (str, Path)) and not hasattr(model, "name_or_path"):
        raise InputError(
            f"The model is {shown(model)}; it must be a name, a folder or a diffusers pipeline."
        )
    return str(model if isinstance(model, (str, Path)) else model.name_or_path)


def _how(model: Any, loading: Loading | None) -> Loading:
    """How a model is loaded.

    Raises:
        InputError: Something is said, and it is loaded already.
    """
    if loading not in (None, PLAIN) and not isinstance(model, (str, Path)):
        raise InputError(
            "loading says how a model is loaded, and a pipeline was given: leave it out."
        )
    return loading or PLAIN


def _accelerator(loading: Loading) -> "torch.device | None":
    """Where offloading moves weights to; None where nobody wants it."""
    from .pipelines.load import accelerator

    return accelerator(loading.device) if loading.offload else None


def _pipeline(model: Any, loading: Loading) -> Any:
    """A model, loaded where it is not one already; not offloaded yet."""
    from .pipelines import load_pipeline

    if isinstance(model, (str, Path)):
        return load_pipeline(model, **loading.drawing, **_unchecked(str(model)))
    if getattr(model, "safety_checker", None) is not None:
        raise InputError(
            "This pipeline has a safety checker, which paints images black, and black images show "
            "no concept: set its safety_checker to None."
        )
    return model


def _peak_bytes() -> dict[str, int]:
    """The most memory that this process has held so far, and of the GPU, if it has one."""
    import sys

    import torch

    found = {}
    try:
        import resource
    except ImportError:  # Windows
        pass
    else:
        unit = 1 if sys.platform == "darwin" else 1024
        found["process"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    if torch.cuda.is_available():
        found["cuda"] = torch.cuda.max_memory_allocated()
    return found


def _unchecked(model: str) -> dict[str, Any]:
    # A safety checker would paint images black, and black images show no concept.
    return {} if model == "emoji" else {"safety_checker": None, "requires_safety_checker": False}


def _loaded(
    erasures: "str | Path | Erasure | Sequence[str | Path | Erasure | tuple[Any, Any]]",
) -> "list[tuple[Erasure, float]]":
    """Erasures with their weights, read where they are files."""
    from .pipelines.erasure import Erasure, weighted

    some = [erasures] if isinstance(erasures, (str, Path, Erasure)) else erasures
    return [weighted(one) for one in some]


def _remade(gallery: Gallery, side: str) -> list[str]:
    """What the report says of images that were not as they were made."""
    if not (remade := gallery.remade):
        return []
    named = ", ".join(remade[:8]) + " …" * (len(remade) > 8)
    return [
        f"{len(remade)} of {len(gallery)} {side} images were changed or removed after they had "
        f"been made, and were made again: {named}."
    ]


def _used(erasure: "Erasure", weight: float) -> Used:
    return Used(
        name=erasure.name,
        method=erasure.record.method,
        settings=erasure.record.settings,
        sha256=erasure.sha256,
        bytes=len(erasure.bytes),
        seconds=erasure.measured.seconds,
        peak_memory=erasure.measured.peak_memory,
        weight=weight,
        layers={part: len(one.layers) for part, one in erasure.record.base.components.items()},
    )
