"""The whole way, from a concept to a report: what the command line does, as functions."""

import dataclasses
import hashlib
import re
import shlex
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ._errors import InputError
from ._files import check_folder, check_ours, file_stem
from ._registry import configured, unknown
from ._settings import (
    Count,
    Guidance,
    Rest,
    Seed,
    Steps,
    checked,
    shown,
)
from .drawing import (
    PLAIN,
    Progress,
    Source,
    cut_ends,
    how_to_load,
    loaded_erasures,
    name_of,
    open_store,
    peak_bytes,
    unchecked,
)
from .erasers import ERASERS, Eraser
from .gallery import Gallery
from .pipelines.loading import Loading
from .processes import processes
from .prompts import YAML, Concept, Suite, find_concept
from .prompts.emoji import world

if TYPE_CHECKING:
    from .eval.detectors import Detector
    from .eval.folder import FolderScore
    from .pipelines.card import Audited
    from .pipelines.erasure import Erasure
    from .pipelines.parts import Parts
    from .records import Interference


def make_eraser(method: str, preset: str | None = None, **settings: Any) -> Eraser:
    """A method with its settings.

    Args:
        method: A name in ``ERASERS``.
        preset: One of the method's named settings.
        settings: What goes before the preset's.

    Raises:
        InputError: There is no such method, preset or setting, or a value that cannot be.
    """
    return configured(ERASERS, method, preset, settings)


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
    name, how = name_of(model), how_to_load(model, loading)
    how.check_erasing()
    wanted = find_concepts(concepts, name, keep=keep, anchor=anchor, kind=kind)

    def whole() -> "Parts":
        return parts_of(Source.of(model, how).pipe)

    def text_side() -> "Parts":
        if not isinstance(model, (str, Path)):
            return parts_of(model)
        return parts_of(load_text_side(model, **how.reading, **unchecked(name)))

    parts = text_side() if eraser.needs == "text" else whole()
    start = time.perf_counter()
    erasure = eraser.fit(parts, wanted, seed=seed, progress=progress, **training)
    seconds, peak = round(time.perf_counter() - start, 3), peak_bytes()
    measured = dataclasses.replace(
        erasure.measured, seconds=seconds, peak_memory=peak.get("cuda", peak.get("process"))
    )
    if erasure.record.kind == "guidance":
        # Refused here, and not when it is used, is a guide that this pipeline cannot have
        with erasure.applied(parts.pipe):
            pass
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
    from ._files import write_atomically
    from .pipelines import Erasure, hub
    from .pipelines.card import card

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
    readme = card(loaded, file, license=license, audited=audited)
    if folder is not None:
        check_folder(Path(folder))
        check_ours(Path(folder), {"README.md": "unsee"}, "card")
        write_atomically(Path(folder) / file, loaded.bytes)
        write_atomically(Path(folder) / "README.md", readme)
        return str(folder)
    assert repo is not None
    return hub.push(repo, file, loaded.bytes, readme, private=private)


def _audited(erasure: "Erasure", path: Path) -> "Audited":
    """What a report says of an erasure.

    Raises:
        InputError: It is no report, or of another erasure, or of several.
    """
    from .eval.report import Report, summary
    from .pipelines.card import Audited

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
    check_ours(there, {"score.json": '"rates"'}, "score")
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
    processes()  # each has its device from then on
    check_folder(Path(out))
    loaded = loaded_erasures(erasures)
    source = Source.of(model, loading)
    settings = {"batch_size": batch_size, **source.generation(guidance, steps)}
    doubted = source.interfering(loaded)
    gallery = source.draw(
        loaded, suite, Path(out), settings, "model", open_store(Path(out)), progress
    )
    for note in (*source.pictured(), *cut_ends(gallery), *doubted):
        warnings.warn(note, stacklevel=3)  # past ``checked``
    return gallery


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

    loaded = loaded_erasures(erasures)
    if len(loaded) < 2:
        raise InputError("Interference is between erasures: name at least two.")
    if guides := [erasure.name for erasure, _ in loaded if not erasure.tensors]:
        raise InputError(
            f"The erasure {guides[0]!r} is a guide, which leaves the denoiser's predictions as "
            "they are: interference is between erasures of weights."
        )
    how = how_to_load(model, loading)
    how.check_erasing()
    found = together(described(Source.of(model, how).pipe), loaded, seed=seed)
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
