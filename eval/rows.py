"""Which rows of a suite are whose, and what was seen in an image: decided here once, for all.

The audit counts by it, the report keeps it, the page shows it, and a folder's scores use the same
words: so that none of them can say of an image what another denies.
"""

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypedDict

from .._errors import InputError
from ..prompts import Concept, Prompt
from . import words
from .detectors import Detection, Detector, check_labels, says
from .images import Unscored
from .statistics import Paired, Rate
from .words import fold

RowRole = Literal["target", "keep", "aside"]

Role = Literal[
    "target",
    "same kind",
    "other kind",
    "named keep",
    "keep concept",
    "category",
    "target category",
]
"""What a rate is of: see ``Comparison``."""


def unit(prompt: Prompt) -> str:
    """The unit of evidence that an image belongs to: as the prompt says, or its text.

    Images of one prompt at other seeds are one unit. An image without a prompt is its own.
    """
    return fold(prompt.unit or prompt.prompt) or prompt.id


def seen(answer: Detection | Unscored, labels: set[str]) -> bool | None:
    """Whether one of the labels, given folded, is in the image; None when nobody knows."""
    if isinstance(answer, Unscored):
        return True if any(fold(label) in labels for label in answer.seen) else None
    return any(fold(label) in labels for label in answer.labels)


def names(concept: Concept) -> set[str]:
    """The words of a concept, folded: its name and its phrases."""
    return {fold(name) for name in (concept.name, *concept.phrases)}


@dataclass(frozen=True)
class Rows:
    """A suite's rows, divided by what is asked of them.

    Attributes:
        targets: The rows of each concept: those whose label of its kind is its name or one of its
            phrases. A row may be the target of several concepts.
        keep: Rows of no target.
        aside: Rows of no target that say a target's words and have no label of its kind to tell
            what they show. They are in no rate.
    """

    targets: Mapping[Concept, tuple[Prompt, ...]]
    keep: tuple[Prompt, ...]
    aside: tuple[Prompt, ...]

    @functools.cached_property
    def _by_id(self) -> Mapping[str, tuple[Concept, ...]]:
        found: dict[str, tuple[Concept, ...]] = {}
        for concept, rows in self.targets.items():
            for prompt in rows:
                found[prompt.id] = (*found.get(prompt.id, ()), concept)
        return found

    @functools.cached_property
    def _aside(self) -> frozenset[str]:
        return frozenset(prompt.id for prompt in self.aside)

    def of(self, prompt: Prompt) -> tuple[Concept, ...]:
        """The concepts that the row is a target of."""
        return self._by_id.get(prompt.id, ())

    def role(self, prompt: Prompt) -> RowRole:
        if self.of(prompt):
            return "target"
        return "aside" if prompt.id in self._aside else "keep"


def divide(
    concepts: Sequence[Concept], prompts: Sequence[Prompt], detectors: Sequence[Detector]
) -> Rows:
    """Divides the rows of an audit.

    Raises:
        InputError: There is no concept, or one has no row, or no detector that can see it, or a
            row has a label that no detector of its kind can see.
    """
    if not concepts:
        raise InputError("An audit needs a concept: name what was to go.")
    targets: dict[Concept, tuple[Prompt, ...]] = {}
    for concept in concepts:
        wanted = names(concept)
        rows = tuple(p for p in prompts if fold(p.labels.get(concept.kind, "")) in wanted)
        _auditable(concept, rows, prompts, detectors)
        targets[concept] = rows
    theirs = {(c.kind, name) for c in concepts for name in names(c)}
    for kind in dict.fromkeys(d.kind for d in detectors):
        for label in dict.fromkeys(p.labels[kind] for p in prompts if p.labels.get(kind)):
            # A kind that nobody reads is only not measured; a label that nobody can see looks lost
            if (kind, fold(label)) not in theirs:
                check_labels(
                    kind,
                    [label],
                    detectors,
                    " The suite asks for it, as what must stay: add a detector that can see it, "
                    "or leave those prompts out (--where).",
                )
    going = {p.id for rows in targets.values() for p in rows}
    said = _mentions(concepts, prompts)
    rest = [p for p in prompts if p.id not in going]
    return Rows(
        targets,
        tuple(p for p in rest if p.id not in said),
        tuple(p for p in rest if p.id in said),
    )


def _mentions(concepts: Sequence[Concept], prompts: Sequence[Prompt]) -> set[str]:
    """Ids of the rows that say a target's words and have no label to tell what they show."""
    found = set()
    for concept in concepts:
        said = re.compile("|".join(rf"\b{re.escape(name)}\b" for name in sorted(names(concept))))
        # A label decides: "a fire engine" is no "fire" when its row says so
        unlabelled = (p for p in prompts if not p.labels.get(concept.kind))
        found |= {p.id for p in unlabelled if said.search(fold(p.prompt))}
    return found


def _auditable(
    concept: Concept,
    rows: Sequence[Prompt],
    prompts: Sequence[Prompt],
    detectors: Sequence[Detector],
) -> None:
    if not rows:
        there = sorted({p.labels[concept.kind] for p in prompts if p.labels.get(concept.kind)})
        labels = ", ".join(there[:20]) + (f" and {len(there) - 20} more" if there[20:] else "")
        has = f"its {concept.kind} labels are: {labels}" if there else (
            f"its rows have no {concept.kind} label"
        )  # fmt: skip
        raise InputError(f"The suite has no prompt of the {concept.kind} {concept.name!r}: {has}.")
    check_labels(concept.kind, [concept.name, *concept.phrases], detectors)


@dataclass(frozen=True, slots=True)
class Asked:
    """What one row asks one detector after, and whether it was seen on either side.

    Attributes:
        detector: Its name.
        kind: Of the label.
        of: The concept, where the row is its target; else the row's label.
        target: Whether it should be gone. Else it should be there.
        base, erased: Whether it was seen; None when the image could not be scored.
    """

    detector: str
    kind: str
    of: str
    target: bool
    base: bool | None
    erased: bool | None


def asked(
    rows: Rows,
    prompt: Prompt,
    detectors: Sequence[Detector],
    base: Mapping[str, Detection | Unscored],
    erased: Mapping[str, Detection | Unscored],
) -> tuple[Asked, ...]:
    """All that a row asks its detectors after: each concept that it is a target of, or its label.

    Args:
        base, erased: Each detector's answer on the row's image.
    """
    found = []
    for d in detectors:
        wanted: dict[str, set[str]] = {}
        for concept in rows.of(prompt):
            if concept.kind == d.kind:
                # Two erasures may have taken away one concept, in words of their own
                wanted.setdefault(concept.name, set()).update(names(concept))
        target = bool(wanted)
        if not wanted and (label := prompt.labels.get(d.kind)):
            wanted = {label: {fold(label)}}
        for of, labels in wanted.items():
            if not says(d, labels):  # it would see it nowhere
                continue
            before, after = seen(base[d.name], labels), seen(erased[d.name], labels)
            found.append(Asked(d.name, d.kind, of, target, before, after))
    return tuple(found)


CHIEF = ("same kind", "other kind", "named keep")
"""The roles of what must stay that the verdict goes by."""

ACCURACIES: Mapping[Role, str] = {"target": "UA", "same kind": "IRA", "other kind": "CRA"}


class Accuracy(TypedDict):
    """What a report has of ``Comparison.accuracy``: the rates' values."""

    name: str
    base: float | None
    erased: float | None


@dataclass(frozen=True)
class Comparison:
    """One rate, before and after.

    Attributes:
        role: "target", "same kind", "other kind", "named keep", "keep concept", "category" or
            "target category".
        of: The target, the kept concept, or the category (of the target also what a row tests).
        kind: Of the label.
        detector: By whom.
        base, erased: Over the rows that each side could score.
        paired: Over the rows that both could.
        p_holm: The paired test's p, adjusted by Holm over the report's comparisons of this role;
            None without a pair.
    """

    role: Role
    of: str
    kind: str
    detector: str
    base: Rate
    erased: Rate
    paired: Paired
    p_holm: float | None = None

    derived: ClassVar[Mapping[str, Any]] = {"accuracy": Accuracy}

    @property
    def title(self) -> str:
        """What the rate is of, in words."""
        return {
            "target": f"“{self.of}”",
            "same kind": f"other {words.plural(self.kind)}",
            "other kind": words.plural(self.kind),
            "named keep": f"{words.plural(self.kind)} named to keep",
            "keep concept": f"“{self.of}”",
            "category": f"{self.of} ({words.plural(self.kind)})",
            "target category": f"{self.of} (target)",
        }[self.role]

    @property
    def accuracy(self) -> tuple[str, Rate, Rate] | None:
        """UnlearnCanvas's name for it, before and after; higher is better in each.

        UA is the share of the target's images in which it is *not* recognised, IRA and CRA are
        the rates of same kind and other kind. None in other roles.

        Source: Y. Zhang et al., UnlearnCanvas, arXiv:2402.11846.
        """
        if self.role not in ACCURACIES:
            return None
        name = ACCURACIES[self.role]
        if self.role != "target":
            return name, self.base, self.erased
        return name, self.base.missed, self.erased.missed

    def to_json(self) -> dict[str, Any]:
        page: dict[str, Any] = {
            "role": self.role,
            "of": self.of,
            "kind": self.kind,
            "detector": self.detector,
            "base": self.base.to_json(),
            "erased": self.erased.to_json(),
            "paired": self.paired.to_json(),
            "p_holm": self.p_holm,
        }
        if self.accuracy:
            name, base, erased = self.accuracy
            page["accuracy"] = Accuracy(name=name, base=base.value, erased=erased.value)
        return page


def compared(
    role: Role, of: str, detector: Detector, rows: Sequence[tuple[Prompt, Asked]]
) -> Comparison:
    """The rate over rows, each with what was seen in its images, before and after."""
    return Comparison(
        role,
        of,
        detector.kind,
        detector.name,
        Rate.counted((unit(p), found.base) for p, found in rows),
        Rate.counted((unit(p), found.erased) for p, found in rows),
        Paired.counted((unit(p), found.base, found.erased) for p, found in rows),
    )
