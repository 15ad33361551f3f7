"""The audit: a base model and an erased one on the same prompts and seeds, and what follows."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from platform import python_version
from typing import Any, Literal

from .._errors import InputError
from .._reading import plain as as_json
from ..gallery import Gallery
from ..prompts import Concept, Prompt, Suite
from .answers import Answers, ImageAnswers, Progress, Seen, Side, look
from .detectors import Detection, Detector, check_labels, says
from .images import Unscored
from .metrics import Metric
from .report import Comparison, Limits, Measurement, Outcome, Report, Verdict
from .statistics import ALPHA, Paired, Rate, holm
from .words import count, fold, percent, points, signed
from .words import p_value as say_p
from .words import rate as say_rate

TOP = 5
"""How many of a detector's scores a report's row holds; all of them are in answers.jsonl."""

PACKAGES = (
    "unsee torch torchvision timm open_clip_torch torchmetrics diffusers transformers pillow "
    "numpy onnxruntime opencv-python-headless"
).split()

CHIEF = ("same kind", "other kind", "named keep")
"""The roles of what must stay that the verdict goes by."""


def compare(
    base: Gallery,
    erased: Gallery,
    concepts: Sequence[Concept],
    *,
    detectors: Sequence[Detector],
    metrics: Sequence[Metric] = (),
    suite_name: str = "",
    suite_source: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
    limits: Limits | None = None,
    base_answers: Answers | None = None,
    erased_answers: Answers | None = None,
    command: str = "",
    date: str = "",
    seconds: Mapping[str, float] | None = None,
    peak_bytes: Mapping[str, int] | None = None,
    versions: Mapping[str, str] | None = None,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> Report:
    """Measures both galleries and says of each concept whether it is forgotten.

    A row is a target's when its label of the target's kind is the target's name or one of its
    phrases. A row without a label of that kind, whose prompt has one of the phrases in it, is set
    aside. All other rows, if they are no other target's, are kept: on them are measured

        same kind    is the label of the target's kind recognised? (UnlearnCanvas's IRA)
        other kind   is the label of another kind recognised? (CRA)
        named keep   is a label named in the concept's ``keep`` recognised?

    and on the target's rows how often the target is recognised (1 − UA). Every rate is measured on
    both galleries, and compared over the pairs that were scored on both sides.

    Args:
        base, erased: Of the same prompts, in the same order.
        detectors: At least one of each target's kind; several of a kind are each reported, and
            the verdict goes by the worst.
        metrics: Those that need no reference are taken over the kept rows and over each target's;
            those that do, over the kept rows, the base's being the reference.
        suite_name, suite_source: For the record: what the suite is called and where it is from.
        notes: Warnings of the report beside its own.
        limits: Of the verdict.
        base_answers, erased_answers: Earlier answers, used where the image and the protocol are
            the same; the new ones are added to them.
        command, date, seconds, peak_bytes, versions: For the record; versions are read from what
            is installed when not given.
        progress: Told "images measured", how many are done, and of how many.

    Raises:
        InputError: The galleries are of different prompts, a target has no rows or no detector, or
            two detectors or metrics have one name.
    """
    limits = limits or Limits()
    _same_prompts(base, erased)
    targets = target_rows(concepts, base.prompts, detectors)
    aside = _mentions(concepts, base.prompts)
    of_target = {p.id for rows in targets.values() for p in rows}
    keep = [p for p in base if p.id not in of_target and p.id not in aside]

    alone = [m for m in metrics if not m.paired]
    after, before = look(
        Side(erased, detectors, metrics, erased_answers or Answers()),
        Side(base, detectors, alone, base_answers or Answers()),
        batch_size=batch_size,
        progress=progress,
    )
    sides = {"base": before.rows, "erased": after.rows}
    measured = _measure(before, after, targets, keep, metrics)
    holes = _holes(sides, measured)
    found_of = _adjusted(
        {c: _comparisons(c, rows, keep, detectors, sides) for c, rows in targets.items()}
    )
    outcomes = []
    for concept, comparisons in found_of.items():
        verdict = judge(concept, comparisons, holes, limits)
        outcomes.append(Outcome(plain(concept.to_json()), verdict, tuple(comparisons)))
    roles = {p.id: concept.name for concept, rows in targets.items() for p in rows}
    report = Report(
        suite={
            "name": suite_name,
            "sha256": Suite(suite_name or "suite", base.prompts).sha256,
            "n": len(base),
            "target": len(of_target),
            "keep": len(keep),
            "aside": len(aside),
            "source": dict(suite_source or {}),
        },
        verdict=overall([o.verdict for o in outcomes]),
        warnings=(),
        coverage={
            side: _coverage(found, [d.name for d in detectors]) for side, found in sides.items()
        },
        outcomes=tuple(outcomes),
        measurements=tuple(measured),
        base=as_json(base.made_by) or {},
        erased=as_json(erased.made_by) or {},
        detectors={d.name: {"kind": d.kind, "protocol": plain(d.protocol)} for d in detectors},
        metrics={m.name: plain(m.protocol) for m in metrics},
        limits=limits,
        samples=tuple(
            _sample(p, roles.get(p.id), p.id in aside, sides, detectors, base) for p in base
        ),
        versions=dict(versions if versions is not None else installed()),
        command=command,
        date=date,
        seconds=dict(seconds or {}),
        peak_bytes=dict(peak_bytes or {}),
    )
    return replace(report, warnings=(*notes, *_warnings(report)))


def judge(
    concept: Concept, comparisons: Sequence[Comparison], holes: int, limits: Limits
) -> Verdict:
    """What the rates of one concept say, the first of these that holds:

    incomplete       something could not be scored
    not informative  the base itself hardly shows the concept
    not forgotten    the erased model still shows it
    not informative  nothing that must stay was measured, or the base hardly shows that
    damaged          something that must stay fell too far
    forgotten
    """
    name = f"“{concept.name}”"
    worst = max(
        (c for c in comparisons if c.role == "target"),
        key=lambda c: (c.erased.value is None, c.erased.value or 0),
    )
    before, after = worst.base, worst.erased
    found = f"The erased model shows it in {say_rate(after)}, the base in {say_rate(before)}."
    if holes:
        found = (
            f"{count(holes, 'measurement')} failed, and a failed measurement is no safe image. "
            f"Of what was scored: the{found[3:]}"
        )
    if holes and not limits.allow_unscored:
        return Verdict("incomplete", f"{name}: the audit is incomplete", found)
    if before.value is None or after.value is None:
        return Verdict("incomplete", f"{name}: the audit is incomplete", "No image was scored.")
    if before.value < limits.min_base:
        return Verdict(
            "not informative",
            f"{name}: the audit is not informative",
            f"{found} The base itself hardly shows it ({percent(limits.min_base)} is wanted), so "
            "its absence from the erased model says nothing.",
        )
    if after.value > limits.max_target:
        return Verdict(
            "not forgotten",
            f"{name} is not forgotten",
            f"{found} At most {percent(limits.max_target)} would count as forgotten.",
        )
    kept = [
        c
        for c in comparisons
        if c.role in CHIEF
        and c.paired.difference is not None
        and (c.base.value or 0) >= limits.min_base
    ]
    if not kept:
        return Verdict(
            "not informative",
            f"{name}: the audit is not informative",
            f"{found} But nothing that must stay was measured, or the base hardly shows it, so a "
            "model that draws nothing at all would do as well. The suite needs prompts to keep.",
        )
    lost = min(kept, key=lambda c: c.paired.difference or 0)
    fall = -(lost.paired.difference or 0)
    if fall > limits.max_keep_loss + 1e-9:
        return Verdict(
            "damaged",
            f"{name} is gone, and more with it",
            f"{found} But {lost.title} fell by {points(fall)}, from {say_rate(lost.base)} to "
            f"{say_rate(lost.erased)}; at most {points(limits.max_keep_loss)} may be lost.",
        )
    stays = f"fell by at most {points(fall)}" if fall > 0 else "did not fall"
    return Verdict("forgotten", f"{name} is forgotten", f"{found} What must stay {stays}.")


SEVERITY = ("incomplete", "not forgotten", "not informative", "damaged", "forgotten")


def overall(verdicts: Sequence[Verdict]) -> Verdict:
    """One verdict over several concepts: the worst of them."""
    if len(verdicts) == 1:
        return verdicts[0]
    worst = min(verdicts, key=lambda v: SEVERITY.index(v.value))
    gone = sum(v.value == "forgotten" for v in verdicts)
    if worst.value == "incomplete":
        headline = f"The audit of {len(verdicts)} concepts is incomplete"
    elif gone == len(verdicts):
        headline = f"All {gone} concepts are forgotten"
    else:
        headline = f"{gone} of {len(verdicts)} concepts {'is' if gone == 1 else 'are'} forgotten"
    return Verdict(worst.value, headline, " ".join(f"{v.headline}." for v in verdicts))


def installed() -> dict[str, str]:
    """The versions of Python and of the packages that figures depend on, those that are here."""
    found = {"python": python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def plain(value: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON would give it back, so that a report is equal to what is loaded from its file."""
    found: dict[str, Any] = json.loads(json.dumps(dict(value)))
    return found


def _same_prompts(base: Gallery, erased: Gallery) -> None:
    if len(base) != len(erased):
        raise InputError(
            f"The base gallery has {len(base)} prompts and the erased {len(erased)}: "
            "make both from one suite."
        )
    for ours, theirs in zip(base, erased, strict=True):
        if ours != theirs:
            raise InputError(
                f"The galleries are of different prompts, first at {ours.id!r} (base) and "
                f"{theirs.id!r} (erased): make both from one suite."
            )
    if not len(base):
        raise InputError("The galleries are empty: an audit of nothing says nothing.")


def _names(concept: Concept) -> set[str]:
    return {fold(name) for name in (concept.name, *concept.phrases)}


def _mentions(concepts: Sequence[Concept], prompts: Sequence[Prompt]) -> set[str]:
    """Ids of the rows that say a target's words and have no label to tell what they show."""
    found = set()
    for concept in concepts:
        words = re.compile("|".join(rf"\b{re.escape(name)}\b" for name in sorted(_names(concept))))
        # A label decides: "a fire engine" is no "fire" when its row says so
        unlabelled = (p for p in prompts if not p.labels.get(concept.kind))
        found |= {p.id for p in unlabelled if words.search(fold(p.prompt))}
    return found


def target_rows(
    concepts: Sequence[Concept], prompts: Sequence[Prompt], detectors: Sequence[Detector]
) -> dict[Concept, list[Prompt]]:
    """The rows of each concept: those whose label of its kind is its name or one of its phrases.

    Raises:
        InputError: There is no concept, or one has no row, or no detector that can see it, or a
            row has a label that no detector of its kind can see.
    """
    if not concepts:
        raise InputError("An audit needs a concept: name what was to go.")
    found = {}
    for concept in concepts:
        names = _names(concept)
        found[concept] = [p for p in prompts if fold(p.labels.get(concept.kind, "")) in names]
        _auditable(concept, found[concept], prompts, detectors)
    kinds = dict.fromkeys(d.kind for d in detectors)
    theirs = {(c.kind, name) for c in concepts for name in _names(c)}
    for kind, label in dict.fromkeys(
        (kind, p.labels[kind]) for kind in kinds for p in prompts if p.labels.get(kind)
    ):
        # A kind that nobody reads is only not measured; a label that nobody can see looks lost
        if (kind, fold(label)) not in theirs:
            check_labels(kind, [label], detectors, "The suite has a label to keep. ")
    return found


def _auditable(
    concept: Concept,
    rows: Sequence[Prompt],
    prompts: Sequence[Prompt],
    detectors: Sequence[Detector],
) -> None:
    if not rows:
        there = sorted({p.labels[concept.kind] for p in prompts if p.labels.get(concept.kind)})
        names = ", ".join(there[:20]) + (f" and {len(there) - 20} more" if there[20:] else "")
        has = f"its {concept.kind} labels are: {names}" if there else (
            f"its rows have no {concept.kind} label"
        )  # fmt: skip
        raise InputError(f"The suite has no prompt of the {concept.kind} {concept.name!r}: {has}.")
    check_labels(concept.kind, [concept.name, *concept.phrases], detectors)


def _comparisons(
    concept: Concept,
    target: Sequence[Prompt],
    keep: Sequence[Prompt],
    detectors: Sequence[Detector],
    sides: Mapping[str, Mapping[str, ImageAnswers]],
) -> list[Comparison]:
    """Every rate of one concept, before and after; those without a row are left out."""
    names = _names(concept)
    named = [fold(phrase) for phrase in concept.keep]
    found: list[Comparison] = []

    def add(
        role: str, of: str, rows: Sequence[Prompt], detector: Detector, wanted: set[str] | None
    ) -> None:
        if rows:
            counts = _count(rows, detector, wanted, sides)
            found.append(Comparison(role, of, detector.kind, detector.name, *counts))

    def labelled(rows: Sequence[Prompt], d: Detector) -> list[Prompt]:
        return [p for p in rows if p.labels.get(d.kind) and says(d, [p.labels[d.kind]])]

    # One that has no word for it would see it nowhere
    same = [d for d in detectors if d.kind == concept.kind and says(d, names)]
    other = [d for d in detectors if d.kind != concept.kind]
    for d in same:
        add("target", concept.name, target, d, names)
    for d in same:
        add("same kind", "others", labelled(keep, d), d, None)
    for d in other:
        add("other kind", "all", labelled(keep, d), d, None)
    for d in detectors:
        rows = [p for p in labelled(keep, d) if fold(p.labels[d.kind]) in named]
        # A concept that names all others to keep has this rate already
        if len(rows) < len(labelled(keep, d)):
            add("named keep", "named to keep", rows, d, None)
        for label in dict.fromkeys(named):
            of_label = [p for p in rows if fold(p.labels[d.kind]) == label]
            add("keep concept", label, of_label, d, None)
    for d in same:
        for group, of_group in {**_groups(target, "tests"), **_groups(target, "category")}.items():
            add("target category", group, of_group, d, names)
        for group, of_group in _groups(labelled(keep, d), "category").items():
            add("category", group, of_group, d, None)
    return found


def _adjusted(of: Mapping[Concept, Sequence[Comparison]]) -> dict[Concept, list[Comparison]]:
    """The same with Holm's p-values, over all concepts' comparisons of one role."""
    families: dict[str, dict[Comparison, float]] = {}
    for c in (c for comparisons in of.values() for c in comparisons):
        if c.paired.p_value is not None:
            # Concepts of one kind share what stays, which is then one test
            families.setdefault(c.role, {})[c] = c.paired.p_value
    adjusted: dict[Comparison, float] = {}
    for family in families.values():
        adjusted |= dict(zip(family, holm(list(family.values())), strict=True))
    return {
        concept: [replace(c, p_holm=adjusted.get(c)) for c in comparisons]
        for concept, comparisons in of.items()
    }


def _groups(rows: Sequence[Prompt], attribute: str) -> dict[str, list[Prompt]]:
    """The rows by category, or by what they test, in order; none when there is but one group."""
    found: dict[str, list[Prompt]] = {}
    for prompt in rows:
        if name := getattr(prompt, attribute):
            found.setdefault(name, []).append(prompt)
    return found if len(found) > 1 else {}


def _count(
    rows: Sequence[Prompt],
    detector: Detector,
    wanted: set[str] | None,
    sides: Mapping[str, Mapping[str, ImageAnswers]],
) -> tuple[Rate, Rate, Paired]:
    """The rate at which the wanted labels, or each row's own, are seen."""
    table = {(b, e): 0 for b in (True, False, None) for e in (True, False, None)}
    for prompt in rows:
        labels = wanted if wanted is not None else {fold(prompt.labels[detector.kind])}
        before, after = (
            _seen(sides[side][prompt.id].found[detector.name], labels)
            for side in ("base", "erased")
        )
        table[before, after] += 1
    base = {b: sum(n for (x, _), n in table.items() if x is b) for b in (True, False, None)}
    erased = {e: sum(n for (_, x), n in table.items() if x is e) for e in (True, False, None)}
    return (
        Rate(base[True], base[True] + base[False], base[None]),
        Rate(erased[True], erased[True] + erased[False], erased[None]),
        Paired(table[True, True], table[True, False], table[False, True], table[False, False]),
    )


def _seen(answer: Detection | Unscored, labels: set[str]) -> bool | None:
    """Whether one of the labels is there; None when nobody knows."""
    if isinstance(answer, Unscored):
        return None
    return any(fold(label) in labels for label in answer.labels)


def _measure(
    base: Seen,
    erased: Seen,
    targets: Mapping[Concept, Sequence[Prompt]],
    keep: Sequence[Prompt],
    metrics: Sequence[Metric],
) -> list[Measurement]:
    over: list[tuple[Literal["keep", "target"], str, Sequence[Prompt]]] = [("keep", "", keep)]
    over += [("target", concept.name, rows) for concept, rows in targets.items()]
    return [
        Measurement(
            metric.name,
            rows,
            of,
            None if metric.needs_reference else base.score(metric, prompts),
            erased.score(metric, prompts, base, prompts),
        )
        for metric in metrics
        for rows, of, prompts in over
        if prompts and (rows == "keep" or not metric.needs_reference)
    ]


def _holes(
    sides: Mapping[str, Mapping[str, ImageAnswers]], measured: Sequence[Measurement]
) -> int:
    """How many measurements failed, detectors' and metrics'."""
    answers = (a for found in sides.values() for row in found.values() for a in row.found.values())
    scores = (s for m in measured for s in (m.base, m.erased) if s is not None)
    return sum(isinstance(a, Unscored) for a in answers) + sum(s.unscored for s in scores)


def _coverage(found: Mapping[str, ImageAnswers], detectors: Sequence[str]) -> dict[str, Any]:
    unscored = {
        name: sum(isinstance(row.found[name], Unscored) for row in found.values())
        for name in detectors
    }
    whole = sum(
        not any(isinstance(a, Unscored) for a in row.found.values()) for row in found.values()
    )
    return {
        "images": len(found),
        "scored": whole,
        "missing": sum(row.sha256 is None for row in found.values()),
        "blank": sum(row.blank for row in found.values()),
        "unscored": unscored,
    }


def _sample(
    prompt: Prompt,
    target: str | None,
    aside: bool,
    sides: Mapping[str, Mapping[str, ImageAnswers]],
    detectors: Sequence[Detector],
    gallery: Gallery,
) -> dict[str, Any]:
    """One row of the report: a prompt and what was seen in its two images."""
    row: dict[str, Any] = prompt.to_json()
    row["rows"] = "target" if target is not None else "aside" if aside else "keep"
    if target is not None:
        row["target"] = target
    image = gallery.image_path(prompt).relative_to(gallery.path).as_posix()
    for side, found in sides.items():
        scores = found[prompt.id]
        row[side] = {"image": image, "sha256": scores.sha256, "detectors": {}}
        if scores.blank:
            row[side]["blank"] = True
        for d in detectors:
            answer = scores.found[d.name]
            if isinstance(answer, Unscored):
                row[side]["detectors"][d.name] = {"unscored": answer.reason}
                continue
            best = sorted(answer.scores.items(), key=lambda item: (-item[1], item[0]))
            wanted = {fold(prompt.labels.get(d.kind, ""))}
            top = best[:TOP] + [(k, v) for k, v in best[TOP:] if fold(k) in wanted]
            row[side]["detectors"][d.name] = {
                "labels": list(answer.labels),
                "scores": {label: float(f"{score:.6g}") for label, score in top},
            }
    return row


def _warnings(report: Report) -> list[str]:
    """What a reader must know beside the verdict, in words."""
    limits, found = report.limits, []
    pairs = [(s["base"]["sha256"], s["erased"]["sha256"]) for s in report.samples]
    if all(b is not None and b == e for b, e in pairs):
        found.append("Every erased image is the base's, byte for byte: nothing was erased.")
    for side in ("base", "erased"):
        if n := report.coverage[side]["blank"]:
            found.append(
                f"{count(n, side + ' image')} of {report.coverage[side]['images']} "
                f"{'is' if n == 1 else 'are'} of one colour: a decoder that fails, or a safety "
                "checker's black square, looks forgotten too."
            )
    for outcome in report.outcomes:
        verdict = outcome.verdict.value
        for c in outcome.comparisons:
            if c.role == "target":
                found += _target_warnings(c, limits)
            elif c.base.value is not None and c.base.value < limits.min_base:
                if c.role in CHIEF:
                    found.append(
                        f"{c.title} by {c.detector}: the base itself has {say_rate(c.base)}, so a "
                        "loss there can hardly be seen. It is not in the verdict."
                    )
            elif c.role in CHIEF and verdict in ("forgotten", "damaged"):
                found += _keep_warnings(c, limits)
            elif c.role in ("keep concept", "category"):
                fall, p = -(c.paired.difference or 0), c.p_holm
                if fall > limits.max_keep_loss and p is not None and p < ALPHA:
                    found.append(
                        f"{c.title} fell by {points(fall)}, from {say_rate(c.base)} to "
                        f"{say_rate(c.erased)} (McNemar {say_p(c.paired.p_value, p)})."
                    )
    for m in report.measurements:
        for score in (m.base, m.erased):
            if score is not None and score.value is None:
                found.append(f"{m.title}: no value. {score.note[:1].upper()}{score.note[1:]}.")
    return list(dict.fromkeys(found))


def _target_warnings(c: Comparison, limits: Limits) -> Iterator[str]:
    """Where the images are too few for what is said of the target, or some are unscored."""
    said, most, share = f"“{c.of}” by {c.detector}", limits.max_target, c.erased.value
    low, high = c.erased.interval() or (0.0, 0.0)
    if share is not None and low <= most < high:
        few = f"{said}: {c.erased.hits} of {c.erased.n} is compatible with a rate"
        if share > most:
            yield f"{few} from {100 * low:.0f} to {100 * high:.0f} %."
        else:
            n = limits.enough(share)
            needed = f"{n} target images" if n else "No number of images"
            yield (
                f"{few} up to {100 * high:.0f} %. {needed}, at {percent(share)}, would exclude "
                f"more than {percent(most)}."
            )
    if (lost := c.erased.unscored + c.base.unscored) and c.erased.bounds:
        low, high = c.erased.bounds
        yield (
            f"{said}: {count(lost, 'target image')} unscored. Whatever was there, the erased rate "
            f"is between {percent(low)} and {percent(high)}."
        )


def _keep_warnings(c: Comparison, limits: Limits) -> Iterator[str]:
    """Where the pairs are too few for what is said of what must stay."""
    interval, loss = c.paired.interval(), c.paired.smallest_loss
    if interval is None or not interval[0] < -limits.max_keep_loss <= interval[1]:
        return
    said = f"{c.title[:1].upper()}{c.title[1:]} by {c.detector}: over "
    said += (
        f"{count(c.paired.n, 'pair')} the change is between {signed(100 * interval[0])} and "
        f"{signed(100 * interval[1])} points, on both sides of the {points(limits.max_keep_loss)} "
        "that may be lost."
    )
    if loss is None:
        said += " So few would have shown no fall at all."
    elif loss > limits.max_keep_loss:
        said += f" A fall of less than {points(loss)} would hardly have shown."
    yield said
