"""The whole way, from a concept to a report: what the command line does, as functions."""

import dataclasses
import hashlib
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._errors import InputError
from ._registry import unknown
from .erasers import ERASERS, Eraser
from .gallery import Gallery
from .prompts import Concept, Suite, find_concept, find_suite
from .prompts.emoji import world

if TYPE_CHECKING:
    from .eval.report import Report
    from .pipelines.erasure import Erasure

Progress = Callable[[str, int, int], None]

EMOJI_METRICS = ("emoji/clip", "frechet/emoji-judge")

# Stable Diffusion's own, in diffusers.
STABLE_DIFFUSION = {"guidance": 7.5, "steps": 50}


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
    known = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for name in settings:
        if name not in known:
            raise unknown(f"setting of {method}", name, known)
    if preset is not None and preset not in cls.presets:
        raise unknown(f"preset of {method}", preset, cls.presets)
    return cls(**((cls.presets[preset] if preset else {}) | settings))


def erase(
    model: Any,
    concepts: str | Concept | Sequence[str | Concept],
    *,
    method: str = "uce",
    preset: str | None = None,
    keep: Sequence[str] = (),
    anchor: str | None = None,
    kind: str | None = None,
    seed: int = 0,
    check: bool = True,
    progress: Callable[[float], None] = lambda done: None,
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
        check: Whether to look at the effect afterwards; it goes into the record as ``effect``.
        progress: Called with the share that is done, in [0, 1].
        settings: The method's settings by name.

    Warns:
        UserWarning: The denoiser's prediction on a concept hardly moved.

    Raises:
        InputError: Something in the arguments cannot be; before any work is done.
    """
    from .erasers.effect import HARDLY, effect
    from .pipelines import load_pipeline, parts_of

    eraser = make_eraser(method, preset, **settings)
    name = str(model) if isinstance(model, (str, Path)) else str(model.name_or_path)
    wanted = _concepts(concepts, name, keep, anchor, kind)
    pipe = load_pipeline(model, **_unchecked(name)) if isinstance(model, (str, Path)) else model
    parts = parts_of(pipe)
    start = time.perf_counter()
    erasure = eraser.fit(parts, wanted, seed=seed, progress=progress)
    record = dict(erasure.record) | {"seconds": round(time.perf_counter() - start, 3)}
    if check and record["kind"] != "guidance":  # which leaves the denoiser as it is
        record["effect"] = effect(parts, erasure, wanted, seed=seed)
        for concept, seen in record["effect"].items():
            if seen["moved"] < HARDLY:
                warnings.warn(
                    f"{concept!r} is hardly erased: the prediction moved {seen['moved']:.0%} of "
                    "the way to its anchor's. Try another preset, or name more phrases.",
                    stacklevel=2,
                )
    return dataclasses.replace(erasure, record=record)


def audit(
    base: str | Path,
    erasures: "str | Path | Erasure | Sequence[str | Path | Erasure]",
    *,
    out: str | Path,
    suite: str | Suite | None = None,
    size: int = 192,
    detectors: Sequence[str] | None = None,
    metrics: Sequence[str] | None = None,
    batch_size: int = 8,
    guidance: float | None = None,
    steps: int | None = None,
    allow_unscored: bool = False,
    command: str = "",
    progress: Progress = lambda what, made, total: None,
) -> "Report":
    """Measures what is left of the erased concepts, against the base model on the same seeds.

    Writes ``base/`` and ``erased/`` (galleries), ``report.json`` and ``report.html`` into ``out``;
    what is there already of the same galleries is not made again.

    Args:
        base: The model that the erasures were made for.
        erasures: Erasures or their files; they are measured together.
        out: The folder for it all.
        suite: A suite, a name in ``SUITES`` or a YAML file; the built-in model has its own.
        size: How many prompts of a suite that is made to measure.
        detectors: Names in ``DETECTORS``; the built-in model has its own.
        metrics: Names in ``METRICS``; the built-in model has its own.
        batch_size: Images at a time.
        guidance: Where a prompt names none; None is the model's default.
        steps: Where a prompt names none; None is the model's default.
        allow_unscored: Whether the verdict may stand although some images could not be scored.
        command: What the report says it was made by.
        progress: Called with what is going on, how much of it is done, and of how much.

    Raises:
        InputError: Something in the arguments cannot be; before any image is made.
    """
    from .eval import DETECTORS, METRICS
    from .eval.audit import compare, target_rows
    from .eval.report import Limits, write
    from .pipelines import Erasure, load_pipeline

    given = [erasures] if isinstance(erasures, (str, Path, Erasure)) else list(erasures)
    loaded = [e if isinstance(e, Erasure) else Erasure.load(e) for e in given]
    if not loaded:
        raise InputError("There is no erasure to audit: name at least one file.")
    name, out = str(base), Path(out)
    if name != "emoji" and (suite is None or not detectors):
        raise InputError(
            f"Say on which suite and with which detectors {name!r} is to be measured."
        )
    concepts = [Concept(**concept) for e in loaded for concept in e.record["concepts"]]
    if not isinstance(suite, Suite):
        suite = find_suite(suite or "emoji", concepts, size)
    eyes = [DETECTORS[d]() for d in detectors or ("emoji/object", "emoji/style")]
    rulers = [METRICS[m]() for m in metrics or (EMOJI_METRICS if name == "emoji" else ())]

    target_rows(concepts, suite.prompts, eyes)
    pipe = load_pipeline(base, **_unchecked(name))
    for erasure in loaded:
        erasure.check_base(pipe)
    settings = {"batch_size": batch_size, **_generation(name, guidance, steps)}
    seconds = {}

    def made(what: str, stacked: "Sequence[Erasure]") -> Gallery:
        start = time.perf_counter()
        gallery = _gallery(
            pipe, name, stacked, suite, out / what, settings, f"{what} model", progress
        )
        seconds[f"{what} images"] = round(time.perf_counter() - start, 1)
        return gallery

    base_gallery, erased_gallery = made("base", ()), made("erased", loaded)
    report = compare(
        base_gallery,
        erased_gallery,
        concepts,
        detectors=eyes,
        metrics=rulers,
        suite_name=suite.name,
        limits=Limits(allow_unscored=allow_unscored),
        command=command,
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        seconds=seconds,
        progress=progress,
    )
    write(report, out, base_gallery, erased_gallery)
    return report


def generate_gallery(
    model: str | Path,
    erasures: "Sequence[str | Path | Erasure]",
    suite: Suite,
    out: str | Path,
    *,
    batch_size: int = 8,
    guidance: float | None = None,
    steps: int | None = None,
    progress: Progress = lambda what, made, total: None,
) -> Gallery:
    """Makes a suite's images with a model and its erasures, or those that are still missing.

    Args:
        model: What ``load_pipeline`` loads.
        erasures: Erasures or their files.
        suite: The prompts.
        out: The gallery's folder.
        batch_size: Images at a time.
        guidance: Where a prompt names none; None is the model's default.
        steps: Where a prompt names none; None is the model's default.
        progress: Called with what is going on, how much of it is done, and of how much.

    Raises:
        InputError: As ``load_pipeline`` and ``Gallery.start``.
    """
    from .pipelines import Erasure, load_pipeline

    loaded = [e if isinstance(e, Erasure) else Erasure.load(e) for e in erasures]
    name = str(model)
    settings = {"batch_size": batch_size, **_generation(name, guidance, steps)}
    pipe = load_pipeline(model, **_unchecked(name))
    return _gallery(pipe, name, loaded, suite, Path(out), settings, "model", progress)


def _gallery(
    pipe: Any,
    model: str,
    erasures: "Sequence[Erasure]",
    suite: Suite,
    out: Path,
    settings: Mapping[str, Any],
    what: str,
    progress: Progress,
) -> Gallery:
    from .pipelines import generate

    made_by = {
        "model": model,
        "erasures": [_described(e) for e in erasures],
        **settings,
        "scheduler": type(pipe.scheduler).__name__,
        "dtype": str(pipe.dtype),
        "versions": {package: version(package) for package in ("unsee", "torch", "diffusers")},
    }
    gallery = Gallery.start(out, made_by, suite.prompts)
    with ExitStack() as stack:
        for erasure in erasures:
            stack.enter_context(erasure.applied(pipe))
        made = 0
        for batch in generate(pipe, gallery, **settings):
            made += batch
            progress(f"images of the {what}", made, len(gallery))
    return gallery


def _concepts(
    given: str | Concept | Sequence[str | Concept],
    model: str,
    keep: Sequence[str],
    anchor: str | None,
    kind: str | None,
) -> list[Concept]:
    found = [
        one if isinstance(one, Concept) else find_concept(one, model=model, kind=kind)
        for one in ([given] if isinstance(given, (str, Concept)) else given)
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


def _generation(
    model: str, guidance: float | None, steps: int | None
) -> Mapping[str, float | int]:
    """The settings for generating: what is asked for, or else the model's defaults."""
    default: Mapping[str, Any] = STABLE_DIFFUSION
    if model == "emoji":
        own = world().generation
        default = {"guidance": own["guidance_scale"], "steps": own["num_inference_steps"]}
    return {
        "guidance": default["guidance"] if guidance is None else guidance,
        "steps": default["steps"] if steps is None else steps,
    }


def _unchecked(model: str) -> dict[str, Any]:
    # A safety checker would paint images black, and black images show no concept.
    return {} if model == "emoji" else {"safety_checker": None, "requires_safety_checker": False}


def _described(erasure: "Erasure") -> dict[str, Any]:
    data = erasure.bytes
    return {
        "name": erasure.name,
        "method": erasure.record["method"],
        "settings": erasure.record["settings"],
        "sha256": hashlib.sha256(data).hexdigest(),
        "bytes": len(data),
        "seconds": erasure.record.get("seconds"),
    }
