"""Attacks on what is audited: fitted, drawn, looked at, and held against their controls.

What an attack is fitted on is never measured: its images are the base's of the target's prompts at
other seeds, and every figure is of the suite's own rows. What was found is kept by content, in the
store or in the run's folder, so that it is not searched for twice: under the base's key it serves
every erasure of that base.
"""

import dataclasses
import hashlib
import io
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._errors import InputError
from ._files import append, file_stem, read_text, sha256_of, write_atomically
from ._reading import plain
from ._reading import read as read_value
from ._registry import configured, unknown
from ._settings import hints_of, read
from .attacks import ATTACKS, DEFAULT, Attack, beside_weights
from .drawing import Progress, Source
from .gallery import Gallery
from .processes import processes
from .prompts import Concept, Prompt, Suite
from .prompts.control import CONTROLS, Control, find_control
from .store import FITTED, Store, content_key
from .tasks import Task

if TYPE_CHECKING:
    from PIL.Image import Image

    from .attacks.attacked import Attacked
    from .eval.attack import Answers as Seen
    from .eval.attack import AttackOutcome
    from .eval.attack import Control as Held
    from .eval.detectors import Detector
    from .eval.report import Report
    from .eval.verdict import Limits
    from .pipelines.erasure import Erasure
    from .pipelines.parts import Parts

GIVEN = 24
"""Images of the concept that an attack is given."""

FURTHER = 1_000_003
"""How far apart the seeds of these images and the suite's own are."""

WHOLE = "whole"
"""The file that says how many rungs of an attack are in their folder, once all are."""


def make_attack(name: str, preset: str | None = None, **settings: Any) -> Attack:
    """An attack with its settings.

    Args:
        name: A name in ``ATTACKS``.
        preset: One of the attack's named settings.
        settings: What goes before the preset's.

    Raises:
        InputError: There is no such attack, preset or setting, or a value that cannot be.
    """
    return configured(ATTACKS, name, preset, settings)


def find_attacks(named: "str | Attack | Path | Sequence[str | Attack | Path]") -> "list[Tried]":
    """The attacks that a user means.

        textual-inversion               a name in ``ATTACKS``
        textual-inversion:cce           with one of its presets
        textual-inversion?steps=40      with settings; a & between several
        default                         those of ``attacks.DEFAULT``
        knife.safetensors               what an attack came to before, which is tried here

    Raises:
        InputError: There is no such attack, preset or setting; or one is there twice.
    """
    from .attacks.attacked import Attacked

    found: list[Tried] = []
    some = named if isinstance(named, Sequence) and not isinstance(named, str) else [named]
    for one in some:
        if one == "default":
            found += [Tried(name, make_attack(name)) for name in DEFAULT]
        elif isinstance(one, Path) or (isinstance(one, str) and one.endswith(".safetensors")):
            there = Attacked.load(one)
            record = there.record
            attack = read_value(ATTACKS[record.attack], dict(record.settings), str(one))
            name = f"{record.attack} ({Path(one).stem}, {there.sha256[:8]})"
            found.append(Tried(name, attack, there))
        elif isinstance(one, str):
            head, _, query = one.partition("?")
            name, _, preset = head.partition(":")
            hints = hints_of(ATTACKS[name])
            settings = {}
            for pair in filter(None, query.split("&")):
                key, _, value = pair.partition("=")
                if key not in hints:
                    raise unknown(f"setting of {name}", key, hints)
                settings[key] = read(f"{name}'s {key}", value, hints[key])
            found.append(Tried(one, make_attack(name, preset or None, **settings)))
        else:
            named_as = [n for n in ATTACKS if ATTACKS[n] is type(one)]
            found.append(Tried(named_as[0] if named_as else type(one).__name__, one))
    names = [one.name for one in found]
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"The attack {twice[0]!r} is there twice: name each once.")
    return found


@dataclass(frozen=True)
class Tried:
    """An attack that is tried.

    Attributes:
        name: As it was asked for.
        attack: It.
        found: What it came to before, on something else; None fits it here.
    """

    name: str
    attack: Attack
    found: "Attacked | None" = None


@dataclass(frozen=True)
class Novel:
    """The control ``novel``: what the model never saw, and who knows it."""

    control: Control
    detector: "Detector"

    @property
    def name(self) -> str:
        return self.control.name


def find_novel(
    control: str | Control | None,
    model: str,
    concepts: Sequence[Concept],
    detectors: "Sequence[Detector]",
) -> Novel | None:
    """The control of something that the model never saw; None where there is none.

    Args:
        control: As ``find_control`` reads it; None is the built-in model's own.

    Raises:
        InputError: It cannot be read, or none of the detectors can see it.
    """
    from .eval.detectors import find_detector, says

    if control is None:
        if model != "emoji":
            return None
        control = CONTROLS[0]
    found = find_control(control, model=model, kind=concepts[0].kind)
    if found.ours:
        return Novel(found, find_detector("emoji/nearest"))
    for detector in detectors:
        if detector.kind == found.kind and says(detector, {found.name}):
            return Novel(found, detector)
    raise InputError(
        f"No detector can see the control {found.name!r}: add one of the kind {found.kind!r} that "
        "knows it, such as clip:MODEL with its labels."
    )


@dataclass(frozen=True)
class Target:
    """What is attacked, and how it is measured.

    Attributes:
        base: The base.
        other: What is attacked, where it is no erasure; else the base.
        erasures: What is attacked, with weights.
        concept: What is to come back.
        rows: The target's of the suite.
        kept: Its rows of what must stay.
        detectors: That see it.
        before, after: By detector, and by a row's id, whether the base and the erased model show
            it.
        settings: Of generation.
        folder: Where galleries go, in the run's.
        store: What is shared, if there is one.
        novel: For the control of that name.
        limits: Of the verdict.
        seed: Of every draw.
        progress: As ``audit``.
    """

    base: Source
    other: Source
    erasures: "Sequence[tuple[Erasure, float]]"
    concept: Concept
    rows: Sequence[Prompt]
    kept: Sequence[Prompt]
    detectors: "Sequence[Detector]"
    before: "Mapping[str, Seen]"
    after: "Mapping[str, Seen]"
    settings: Mapping[str, Any]
    folder: Path
    store: Store | None
    novel: Novel | None
    limits: "Limits"
    seed: int
    progress: Progress

    @cached_property
    def given(self) -> "Given":
        """What attacks are fitted on: the base's images at other seeds, of all prompts in turn."""
        return self._given(self.rows, GIVEN)

    @cached_property
    def given_each(self) -> "Given":
        """The same, with every prompt of the target at least once."""
        texts = {p.prompt for p in self.rows}
        return self._given(self.rows, max(GIVEN, len(texts)), "each-")

    @cached_property
    def given_kept(self) -> "Given":
        """The same of what must stay, whatever is seen in its images.

        Raises:
            InputError: The suite has no prompt of such.
        """
        if not self.kept:
            raise InputError(
                "The suite has no prompt of what must stay, and an attack is to be given images "
                "of such: take a suite that has some, or leave that attack out."
            )
        return self._given(self.kept, GIVEN, "kept-")

    def _given(self, of: Sequence[Prompt], count: int, name: str = "") -> "Given":
        every = list({p.prompt: p for p in of}.values())
        # Of more prompts than images those at even distances
        few = min(count, len(every))
        texts = [every[i * len(every) // few] for i in range(few)]
        rows = [
            dataclasses.replace(
                (row := texts[i % len(texts)]),
                id=f"{row.id}-{i // len(texts)}",
                seed=(row.seed + FURTHER * (1 + i // len(texts))) % 2**63,
                # What comes on at a step has to know of how many
                steps=row.steps or self.settings["steps"],
            )
            for i in range(count)
        ]
        gallery = self.base.draw(
            (), Suite("given", tuple(rows)), self.folder / f"given-{name}{count}", self.settings,
            "base model, to attack with", self.store, self.progress,
        )  # fmt: skip
        images = [_opened(gallery.image_path(row)) for row in gallery.prompts]
        seen = [] if name else self.look(images)
        there = [i for i, hit in enumerate(seen) if hit] or list(range(count))
        return Given([gallery.prompts[i] for i in there], [images[i] for i in there])

    def look(self, images: "Sequence[Image]") -> list[bool]:
        """Whether one of the detectors sees the concept."""
        return _looked(self.detectors, self.concept, images)


def _looked(
    detectors: "Sequence[Detector]", concept: Concept, images: "Sequence[Image]"
) -> list[bool]:
    """Whether one of the detectors sees a concept, in each image."""
    from .eval.rows import names, seen

    wanted = names(concept)
    asked = [detector(list(images)) for detector in detectors]
    return [any(seen(one, wanted) for one in said) for said in zip(*asked, strict=True)]


@dataclass(frozen=True)
class Given:
    """Rows that no figure is taken on, and an image of each."""

    rows: Sequence[Prompt]
    images: "Sequence[Image]"

    def of(self, concept: Concept, novel: Novel) -> "Given":
        """The same rows of something that the model never saw, with its images in turn.

        Where these say their style, each row has one of its own style.
        """
        images, examples = [], novel.control.examples
        for i, row in enumerate(self.rows):
            alike = [e for e in examples if e.style and e.style == row.labels.get("style")]
            some = alike or examples
            images.append(some[i % len(some)].image)
        return Given([_renamed(row, concept, novel) for row in self.rows], images)


class Looking:
    """A ``Look`` that counts the images it was asked about."""

    def __init__(self, look: "Callable[[Sequence[Image]], list[bool]]") -> None:
        self.count = 0
        self._look = look

    def __call__(self, images: "Sequence[Image]") -> list[bool]:
        self.count += len(images)
        return self._look(images)


def attack_all(
    report: "Report",
    tried: Sequence[Tried],
    task: Task,
    novel: Novel | None,
    limits: "Limits",
    store: Store | None,
    *,
    seed: int,
    progress: Progress,
) -> "Report":
    """Attacks every concept of an audit, and gives its report with what that came to."""
    from .eval.attack import of_target
    from .eval.detectors import says
    from .eval.rows import names

    outcomes: list[AttackOutcome] = []
    for concept in task.asked.concepts:
        eyes = [
            d for d in task.asked.detectors if d.kind == concept.kind and says(d, names(concept))
        ]
        rows, before, after = of_target(report.samples, concept.name)
        target = Target(
            base=task.source,
            other=task.other,
            erasures=task.erasures,
            concept=concept,
            rows=rows,
            kept=[s.prompt for s in report.samples if s.rows == "keep"],
            detectors=eyes,
            before={d.name: before.get(d.name, {}) for d in eyes},
            after={d.name: after.get(d.name, {}) for d in eyes},
            settings=task.settings,
            folder=task.out / "attacks" / file_stem([concept.name]),
            store=store,
            novel=novel if novel is not None and novel.control.kind == concept.kind else None,
            limits=limits,
            seed=seed,
            progress=progress,
        )
        outcomes += [_attacked(one, target) for one in tried]
    return report.with_attacks(outcomes)


def _attacked(tried: Tried, target: Target) -> "AttackOutcome":
    """What an attack comes to; where it cannot be tried here, that is said, and others go on."""
    try:
        return _tried(tried, target)
    except InputError as error:
        return _refused(tried, target, str(error))


def _tried(tried: Tried, target: Target) -> "AttackOutcome":
    from .attacks.attacked import Attacked, Spent
    from .eval.attack import AttackOutcome, Rung, control, judged, positive, rates, told, worst

    attack, concept = tried.attack, target.concept
    folder = target.folder / file_stem([tried.name])
    erased = _Subject(target.other, target.erasures)
    if tried.found is None:
        found = _fitted(tried, target, erased, _images_for(attack, target), concept)
        if processes().is_first:
            for i, one in enumerate(found[1:], 1):
                one.save(folder / f"{i}.safetensors")
    else:
        record = tried.found.record
        none = Attacked(
            dataclasses.replace(record, kind="text", text=None, prompts={}, spent=Spent())
        )
        found = [none, tried.found]
    answers = [dict(target.after)]
    galleries = [""]
    for i, one in enumerate(found[1:], 1):
        drawn = _drawn(erased, one, target, folder / f"{i}", target.rows, tried.name)
        answers.append(_seen(drawn, target))
        galleries.append(_place(drawn, target))
    controls: dict[int, list[Callable[[str], Held]]] = {}
    rows, last = target.rows, len(found) - 1

    def add(i: int, make: "Callable[[str], Held]") -> None:
        controls.setdefault(i, []).append(make)

    if "positive" in attack.controls and last:
        base, on_base = _Subject(target.base, ()), tried.found
        if on_base is None:
            on_base = _fitted(tried, target, base, _images_for(attack, target), concept)[-1]
        drawn = _drawn(base, on_base, target, folder / "positive", rows, f"{tried.name} on base")
        shown = _seen(drawn, target)
        place = _place(drawn, target)
        add(last, lambda d: positive(place, rows, target.before[d], shown[d], concept.name, d))
    novel = target.novel
    if "novel" in attack.controls and novel and last and not tried.found:
        add(last, _novel(tried, target, erased, folder, answers[last]))
    if "blind" in attack.controls and last and not tried.found:
        add(last, _blind(tried, target, erased, folder, found[last], answers[last]))
    if "supplied" in attack.controls:
        for i, one in enumerate(found[1:], 1):
            ended = attack.supplied(one)
            drawn = _drawn(
                erased, ended, target, folder / f"supplied-{i}", rows, f"{tried.name}, control"
            )
            theirs, mine, where = _seen(drawn, target), answers[i], _place(drawn, target)
            add(
                i,
                lambda d, theirs=theirs, mine=mine, where=where: control(  # type: ignore[misc]
                    "supplied", "the same input under the anchor’s prompt", where, rows,
                    target.before[d], target.after[d], mine[d], theirs[d], concept.name, d,
                ),
            )  # fmt: skip

    def outcome(detector: str) -> AttackOutcome:
        rungs = []
        for i, one in enumerate(found):
            spent, record = one.record.spent, one.record
            rungs.append(
                Rung(
                    spent.rows, spent.steps, spent.looks, spent.images, one.seconds,
                    one.sha256 if i else "",
                    record.text if attack.touches == "text" else None, galleries[i],
                    *rates(rows, target.before[detector], target.after[detector],
                           answers[i][detector]),
                    tuple(make(detector) for make in controls.get(i, ())),
                    *told(rows, answers[i][detector]),
                    setting=_setting(one) if i else "",
                )
            )  # fmt: skip
        value, detail, effort = judged(rungs, attack.controls, attack.decides, target.limits)
        return AttackOutcome(
            attack=tried.name,
            touches=attack.touches,
            settings=plain(attack),
            concept=concept.name,
            detector=detector,
            own_words=attack.own_words,
            fitted_on=_fitted_on(tried, erased),
            value=value,
            detail=detail,
            effort=effort,
            rungs=tuple(rungs),
            note=_note(attack, target, found[-1]),
            needs=attack.controls,
        )

    return worst(outcome(d.name) for d in target.detectors)


def _refused(tried: Tried, target: Target, why: str) -> "AttackOutcome":
    """Of an attack that cannot be tried here, why not; nothing was measured."""
    from .eval.attack import AttackOutcome, Rung, rates

    detector = target.detectors[0].name
    before, after = target.before[detector], target.after[detector]
    none = Rung(0, 0, 0, 0, 0.0, "", None, "", *rates(target.rows, before, after, after))
    return AttackOutcome(
        tried.name, tried.attack.touches, plain(tried.attack), target.concept.name, detector,
        tried.attack.own_words, "this model",
        "not informative" if tried.attack.decides else "probe", f"It was not tried: {why}", None,
        (none,), needs=tried.attack.controls, untried=why,
    )  # fmt: skip


@dataclass(frozen=True)
class _Subject:
    """What an attack is fitted on and drawn with."""

    source: Source
    erasures: "Sequence[tuple[Erasure, float]]"

    @property
    def key(self) -> dict[str, Any]:
        """By what it is known."""
        model = self.source.known
        return {
            "model": {"dtype": model.dtype, "scheduler": model.scheduler, **model.components},
            "erasures": [[e.sha256, weight] for e, weight in self.erasures],
        }

    @contextmanager
    def parts(self) -> "Iterator[tuple[Parts, Callable[[], Any]]]":
        """The pipeline with its erasures in it, and a context that lifts them for a while."""
        from .pipelines.parts import described

        pipe, removes = self.source.pipe, list[Callable[[], None]]()

        def off() -> None:
            while removes:
                removes.pop()()

        def on() -> None:
            for erasure, weight in self.erasures:
                removes.append(erasure.add_to(pipe, weight))

        @contextmanager
        def lifted() -> "Iterator[Parts]":
            off()
            try:
                yield described(pipe)
            finally:
                on()

        try:
            on()
            yield described(pipe), lifted
        finally:
            off()


@contextmanager
def _alone(source: Source) -> "Iterator[Parts]":
    """A model that is loaded beside the one that is attacked."""
    from .pipelines.parts import described

    yield described(source.pipe)


def _images_for(attack: Attack, target: Target) -> Given:
    if attack.gives == "kept":
        return target.given_kept
    return target.given_each if attack.per_prompt else target.given


def _fitted(
    tried: Tried, target: Target, subject: _Subject, given: Given, concept: Concept,
    look: "Callable[[Sequence[Image]], list[bool]] | None" = None,
    also: "Sequence[Detector]" = (),
) -> "list[Attacked]":  # fmt: skip
    """An attack's rungs, found earlier or now; by the first of several processes.

    Args:
        look: In the place of the target's own, by the detectors of ``also``.
    """
    from .eval.detectors import fingerprint
    from .training.record import versions

    attack = tried.attack
    hashes = [hashlib.sha256(_bytes(image)).hexdigest() for image in given.images]
    page = {
        "attack": f"{type(attack).__module__}:{type(attack).__name__}",
        "settings": plain(attack),
        "files": _files_in(attack),
        "versions": versions(),
        "concept": concept.to_json(),
        "rows": [[row.prompt, row.seed, row.steps] for row in given.rows],
        "images": hashes,
        "seed": target.seed,
        "detectors": [[d.name, fingerprint(d.protocol)] for d in (*target.detectors, *also)],
        **subject.key,
    }
    key = content_key(page)
    # Of a pipeline that was given nobody can tell what its code does beside its weights
    shared = target.store if subject.source.ours else None
    kept = target.folder / "fits" / key if shared is None else shared.attack(key)
    several = processes()
    found = several.first(
        lambda: _found(tried, target, subject, given, concept, look, kept, hashes)
    )
    whole = several.share(found)[0]
    assert whole is not None  # the first has it
    return whole


def _files_in(attack: Attack) -> dict[str, str]:
    """SHA-256 of the files that settings name."""
    named = {name: value for name, value in plain(attack).items() if isinstance(value, str)}
    return {
        name: sha256_of(value) for name, value in named.items() if value and Path(value).is_file()
    }


def _loaded(kept: Path) -> "list[Attacked] | None":
    """The rungs that lie in a folder; None where not all of them do."""
    from .attacks.attacked import Attacked

    if not (kept / WHOLE).is_file():
        return None
    files = sorted(kept.glob("*.safetensors"), key=lambda path: int(path.stem))
    if read_text(kept / WHOLE).strip() != str(len(files)):
        return None
    try:
        return [Attacked.load(path) for path in files]
    except InputError:  # it was changed since: it is found again
        return None


def _found(
    tried: Tried, target: Target, subject: _Subject, given: Given, concept: Concept,
    look: "Callable[[Sequence[Image]], list[bool]] | None", kept: Path, hashes: Sequence[str],
) -> "list[Attacked]":  # fmt: skip
    from .pipelines.generation import pictures

    noted = target.folder / FITTED
    if not noted.exists() or kept.name not in read_text(noted).split():
        append(noted, f"{kept.name}\n")
    if there := _loaded(kept):
        return there
    looking = Looking(look or target.look)
    draw = partial(pictures, subject.source.pipe, **target.settings)
    found: list[Attacked] = []
    seconds, begun = 0.0, time.perf_counter()
    with subject.parts() as (parts, lifted):
        if subject.source is not target.base:
            lifted = partial(_alone, target.base)
        fit = tried.attack.fit(
            parts, concept, given.rows, given.images, lifted, looking, draw,
            seed=target.seed,
            progress=lambda done: target.progress(f"{tried.name}", round(100 * done), 100),
        )  # fmt: skip
        for one in fit:
            seconds += time.perf_counter() - begun
            record = dataclasses.replace(
                one.record, images=tuple(hashes), fitted_on=_labels(subject)
            )
            found.append(dataclasses.replace(one, record=record, seconds=round(seconds, 3)))
            begun = time.perf_counter()
    kept.mkdir(parents=True, exist_ok=True)
    for i, one in enumerate(found):
        one.save(kept / f"{i}.safetensors")
    write_atomically(kept / WHOLE, f"{len(found)}\n")
    return found


def _labels(subject: _Subject) -> dict[str, str]:
    """What an attack was fitted on, by hashes."""
    model = content_key(subject.key["model"])
    return {"model": model} | {e.name: e.sha256 for e, _ in subject.erasures}


def _fitted_on(tried: Tried, subject: _Subject) -> str:
    if tried.found is None or tried.found.record.fitted_on == _labels(subject):
        return "this model"
    others = [name for name in tried.found.record.fitted_on if name != "model"]
    return f"another model ({', '.join(others) or 'without an erasure'})"


def _drawn(
    subject: _Subject, attacked: "Attacked", target: Target, folder: Path,
    rows: Sequence[Prompt], what: str,
) -> Gallery:  # fmt: skip
    suite = attacked.suite(Suite("attacked", tuple(rows)))
    # By what it is: another attack of the same name goes beside it
    folder = folder.with_name(f"{folder.name}-{attacked.sha256[:8]}")
    return subject.source.draw(
        subject.erasures, suite, folder, target.settings, f"attack {what}", target.store,
        target.progress, attacked=attacked,
    )  # fmt: skip


def _seen(
    gallery: Gallery, target: Target, detectors: "Sequence[Detector] | None" = None,
    wanted: "set[str] | None" = None,
) -> "dict[str, Seen]":  # fmt: skip
    """By detector, and by a row's id, whether the concept is seen in a gallery's images."""
    from .eval.answers import Answers, Side, look
    from .eval.rows import names, seen

    eyes = target.detectors if detectors is None else detectors
    labels = names(target.concept) if wanted is None else wanted

    def asked() -> "dict[str, Seen]":
        shared = None if target.store is None else target.store.answers
        kept = Answers(gallery.path / "answers.jsonl", shared)
        looked, _ = look(Side(gallery, eyes, (), kept), None)
        return {
            d.name: {id: seen(row.found[d.name], labels) for id, row in looked.rows.items()}
            for d in eyes
        }

    several = processes()
    found = several.share(several.first(asked))[0]
    assert found is not None  # the first has it
    return found


def _novel(
    tried: Tried, target: Target, subject: _Subject, folder: Path, mine: "Mapping[str, Seen]"
) -> "Callable[[str], Held]":
    """The same attack for something that the model never saw."""
    from .eval.attack import control, either
    from .eval.rows import names

    novel = target.novel
    assert novel is not None
    other = Concept(novel.name, kind=target.concept.kind)
    given = _images_for(tried.attack, target).of(target.concept, novel)
    look = partial(_looked, [novel.detector], other)
    found = _fitted(tried, target, subject, given, other, look, [novel.detector])[-1]
    rows = [_renamed(row, target.concept, novel) for row in target.rows]
    drawn = _drawn(subject, found, target, folder / "novel", rows, f"{tried.name}, control")
    known = _seen(drawn, target, [novel.detector], names(other))[novel.detector.name]
    # What the attack's own detector takes for the concept is a false alarm, and counts as well
    alarms = _seen(drawn, target)
    where = _place(drawn, target)
    return lambda d: control(
        "novel", f"a {novel.name}, which the model never saw", where, target.rows,
        target.before[d], target.after[d], mine[d], either(known, alarms[d]), novel.name,
        novel.detector.name,
    )  # fmt: skip


def _blind(
    tried: Tried, target: Target, subject: _Subject, folder: Path, found: "Attacked",
    mine: "Mapping[str, Seen]",
) -> "Callable[[str], Held]":  # fmt: skip
    """As many looks at random."""
    from .eval.attack import control
    from .pipelines.generation import pictures

    draw = partial(pictures, subject.source.pipe, **target.settings)
    given = _images_for(tried.attack, target)
    with subject.parts() as (parts, _):
        blind = tried.attack.blind(
            found, parts, given.rows, Looking(target.look), draw, seed=target.seed
        )
    drawn = _drawn(subject, blind, target, folder / "blind", target.rows, f"{tried.name}, control")
    theirs, where = _seen(drawn, target), _place(drawn, target)
    return lambda d: control(
        "blind", "as many looks at random", where, target.rows,
        target.before[d], target.after[d], mine[d], theirs[d], target.concept.name, d,
    )  # fmt: skip


def _renamed(row: Prompt, concept: Concept, novel: Novel) -> Prompt:
    from .attacks.kinds.text import put_in, unit

    return dataclasses.replace(row, prompt=put_in(row.prompt, concept, novel.name), unit=unit(row))


def _setting(found: "Attacked") -> str:
    """What of the erasure is left at a probe's rung, in words."""
    if (bits := found.record.bits) is not None:
        return f"weights of {bits} bits"
    share = found.record.strength
    return "" if share is None else f"{share:.0%} of the strength"


def _note(attack: Attack, target: Target, found: "Attacked") -> str:
    """What is to be said beside its figures: prompts that were drawn as they are, and of an attack
    on weights where the erasure is none of the weights' own."""
    from .pipelines.watch import Active

    said = []
    if attack.per_prompt:
        prompts = {row.prompt for row in target.rows}
        plain_ones = prompts - found.record.prompts.keys()
        full = len(plain_ones & set(found.record.left))
        if full:
            said.append(
                f"It could put nothing into {full} of {len(prompts)} prompts, which have no room "
                "for its tokens: these were drawn as they are."
            )
        if others := len(plain_ones) - full:
            said.append(
                f"It was not fitted to {others} of {len(prompts)} prompts, as it was given no "
                "image of them that shows the concept: these were drawn as they are."
            )
    if attack.touches == "weights" or attack.of_weights:
        loose = [Active(e.name, e.record.kind, e.record.method) for e, _ in target.erasures]
        said.append(beside_weights(loose))
    return " ".join(filter(None, said))


def _place(gallery: Gallery, target: Target) -> str:
    """A gallery's folder, in the run's."""
    return gallery.path.relative_to(target.folder.parent.parent).as_posix()


def _opened(path: Path) -> "Image":
    from PIL import Image

    with Image.open(path) as image:
        return image.convert("RGB")


def _bytes(image: "Image") -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG", compress_level=1)
    return stream.getvalue()
