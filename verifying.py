"""A finished audit is verified: from its files, and with its model and erasures at hand.

``eval.verify`` makes a run out again from its images and answers. Here the model and the erasures
are read and compared with the recorded ones, and some images are made again.
"""

import dataclasses
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._errors import InputError
from ._reading import read
from ._settings import Seed, Whole, checked, shown
from .attacks import ATTACKS
from .audits import FINISHED, noted
from .drawing import Progress, Source, how_to_load, loaded_erasures, name_of
from .gallery import MadeBy, Used
from .pipelines.loading import Loading
from .prompts import Suite
from .tasks import told_apart

if TYPE_CHECKING:
    from .eval.detectors import Detector
    from .eval.metrics import Metric
    from .eval.verify import Instruments, Run, Verified
    from .pipelines.erasure import Erasure


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
    erasures, against = told_apart(erasures, against)
    stacked = [erasure for erasure, _ in loaded_erasures(erasures)]
    made = _made(there)
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
    found = made_out(there, instruments, ask=ask, notes=noted, progress=progress)
    named = _of_erasures(there, stacked, against)
    weights, sources = _of_models(there, model, against, loading, look_at_model, bool(rerun))
    held = named + weights + _of_attacks(there)
    if not rerun:
        why = "none was made again (--rerun)"
    elif held.differences or len(sources) < 2 or len(made) < 2:
        why = "none was made again, as the above differs"
    else:
        weighted = [(e, one.weight) for e, one in zip(stacked, used, strict=True)]
        sides = {"erased": (sources["erased"], weighted), "base": (sources["base"], [])}
        return found + _rerun(there, sides, rerun, seed, instruments, progress) + held
    return found + held + Verified(str(run), (), recorded=(f"How the images were made: {why}.",))


def _made(run: "Run") -> dict[str, MadeBy]:
    """What made each side's images, as the run says."""
    return {side: gallery.made_by or MadeBy() for side, gallery in run.galleries.items()}


def _of_erasures(run: "Run", erasures: "Sequence[Erasure]", against: Any) -> "Verified":
    """Whether what was named, erasures or something else, is what the run is of."""
    from .eval.verify import Verified

    made = _made(run)
    used = made["erased"].erasures if "erased" in made else ()
    wrong, recorded, checked = [], [], []
    concepts = [concept for erasure in erasures for concept in erasure.record.concepts]
    if "erased" in made and not used:
        if against is None:
            recorded.append("The weights of what was audited: it was not named (--against).")
        if erasures:
            wrong.append(f"The run is of no erasure, and named were {_known_by(erasures)}.")
    elif not erasures:
        recorded.append("The erasures' files, and the concepts in them: none was named (-e).")
    elif [e.sha256 for e in erasures] != [one.sha256 for one in used]:
        wrong.append(
            f"The erasures are not those of the run: it has {_known_by(used)}, and named were "
            f"{_known_by(erasures)}."
        )
    elif run.concepts not in (None, concepts):
        wrong.append("report.json is not of the concepts that the erasures' files name.")
    else:
        checked.append("the erasures' files")
    return Verified(str(run.path), tuple(wrong), tuple(checked), tuple(recorded))


def _of_attacks(run: "Run") -> "Verified":
    """Whether attacks are what the report says that they are, as far as they are known here."""
    from .eval.verify import Verified

    wrong, recorded = [], []
    for one in run.given.attacks if run.given is not None else ():
        name = re.split(r"[:? ]", one.attack)[0]
        if name not in ATTACKS:
            recorded.append(f"What {one.attack} touches and needs: it is not known here.")
            continue
        try:
            attack = read(ATTACKS[name], one.settings, f"report.json: {one.attack}’s settings")
        except InputError as error:
            wrong.append(str(error))
            continue
        ours = {
            "reach": attack.touches,
            "controls that it needs": list(attack.controls),
            "own words": attack.own_words,
            "part in the verdict": attack.decides,
        }
        theirs = (one.touches, list(one.needs), one.own_words, one.value != "probe")
        wrong += [
            f"report.json: the {what} of {one.attack} is {shown(said)}; it is {shown(mine)}."
            for (what, mine), said in zip(ours.items(), theirs, strict=True)
            if mine != said
        ]
    return Verified(str(run.path), tuple(wrong), (), tuple(recorded))


def _of_models(
    run: "Run", model: Any, against: Any, loading: Loading | None, look: bool, rerun: bool
) -> "tuple[Verified, dict[str, Source]]":
    """Whether the models are those that made the images, and the sources to make some again.

    Args:
        model, against, loading: As ``verify``.
        look: Whether the base's weights are read, if it is here.
        rerun: Whether images are to be made again, which needs them, and on the device asked for.

    Returns:
        What was found, and "base" and "erased"; none where nothing was loaded.
    """
    from .eval.verify import Verified
    from .pipelines.identity import model_of

    made = _made(run)
    known = made["base"].model if "base" in made else None
    name, *loras = known.name.split(" + ") if known else [""]
    here = model is not None or _is_here(name)
    if known is None or not (rerun or (look and here)):
        why = "--no-model" if here and known else "it is not here" if known else "not recorded"
        recorded = (f"The model's weights ({why}).",)
        return Verified(str(run.path), (), recorded=recorded), {}
    how = how_to_load(name if model is None else model, loading)
    if model is None or isinstance(model, (str, Path)):
        dtype: Any = known.dtype  # which Loading checks
        how = dataclasses.replace(how, dtype=dtype, lora=how.lora or tuple(loras))
    if not rerun:
        how = dataclasses.replace(how, device="cpu", offload=None)
    # Without its name, by which alone it is called what the run calls it
    source = Source.of(name if model is None else model, how)
    sources, wrong, checked = {"base": source, "erased": source}, [], []
    if difference := MadeBy(model=known).difference(
        MadeBy(model=model_of(source.pipe, known.name))
    ):
        wrong.append(
            f"The model {name_of(model or name)} is not the one that made the images: another "
            f"{difference}."
        )
    else:
        checked.append("the model's weights")
    if against is not None and "erased" in made:
        sources["erased"] = other = source.of_another(against)
        theirs = made["erased"].model
        if difference := MadeBy(model=theirs).difference(MadeBy(model=other.known)):
            wrong.append(f"{against} is not what was audited: another {difference}.")
        else:
            checked.append("the weights of what was audited")
    return Verified(str(run.path), tuple(wrong), tuple(checked)), sources


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
