"""A grid: templates times entries, from which a suite is made to measure for what was erased.

In YAML:

    name: artists
    kind: style                       # what the entries are: the kind of their label
    templates:
      accuracy: ["a painting by {}"]                  # every entry's own words
      generalizability: ["the brushwork of {}"]       # other words, for its aliases if it has any
      locality: ["a photo of a {}"]                   # for what is under keep
    entries:                          # by category; a mapping where an entry has aliases
      impressionism: [Claude Monet, Edgar Degas]
      post-impressionism: {Vincent van Gogh: [Van Gogh, the painter of The Starry Night]}
    keep:                             # objects that are never a target; near those of its category
      controls: [bicycle, mountain lake]

Without concepts it is every row once, with what the row tests when its entry is the target. With
concepts, it is made to measure (``compose``): a concept may be an entry by its name or an alias, a
whole category, or anything else of the kind.
"""

import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from .._errors import InputError
from .._registry import unknown
from .concept import KINDS, Concept, fold, read_mapping
from .suite import TESTS, Prompt, Suite, file_source, refuse

KEYS = ("name", "kind", "templates", "entries", "keep")

Named = Mapping[str, Mapping[str, Sequence[str]]]


def compose(
    name: str,
    size: int,
    *,
    accuracy: Sequence[Prompt],
    generalizability: Sequence[Prompt],
    near: Sequence[Prompt],
    far: Sequence[Prompt],
) -> Suite:
    """A suite of cells: a quarter of its rows for the target, the rest for what must stay.

    Every third of the target's rows is for generalizability, and a third of the others, if there
    are as many, is near the target. Where rows are wanted more often than there are cells, a cell
    comes again with the next seed; its first is 0.

    Args:
        name: The suite's.
        size: The number of rows.
        accuracy, generalizability: The target's cells, taken evenly over all.
        near, far: The cells that must stay, taken from the first on.
    """
    targets = max(1, size // 4)
    told = targets // 3 if generalizability else 0
    beside = min(len(near), (size - targets) // 3) if far else size - targets
    cells = [
        *_evenly(accuracy, targets - told),
        *_evenly(generalizability, told),
        *_evenly(near[:beside], beside),
        *_evenly(far[: size - targets - beside], size - targets - beside),
    ]
    return Suite(name, tuple(seeded(cells)))


def seeded(cells: Iterable[Prompt]) -> list[Prompt]:
    """Cells with the seed in their ids: 0 the first time that one comes, 1 the second."""
    seen: Counter[str] = Counter()
    rows = []
    for cell in cells:
        rows.append(replace(cell, id=f"{cell.id}-{seen[cell.id]}", seed=seen[cell.id]))
        seen[cell.id] += 1
    return rows


def slug(text: str) -> str:
    """A name as a part of ids."""
    return re.sub(r"[^\w]+", "-", text.lower()).strip("-")


def _evenly(cells: Sequence[Prompt], count: int) -> list[Prompt]:
    if count < len(cells):
        return [cells[i * len(cells) // count] for i in range(count)]
    return [cells[i % len(cells)] for i in range(count)] if cells else []


@dataclass(frozen=True)
class Grid:
    """Templates times entries.

    Attributes:
        name: The suite's.
        kind: Of the entries' labels, one of ``KINDS``.
        templates: By what they test, one of ``TESTS``; each has one ``{}``.
        entries: Category to entry to its aliases.
        keep: Category to objects that are never a target.
        source: As a suite's.
    """

    name: str
    kind: str
    templates: Mapping[str, Sequence[str]]
    entries: Named
    keep: Mapping[str, Sequence[str]] = field(default_factory=dict)
    source: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> "Grid":
        """Reads a grid from YAML.

        Raises:
            InputError: Something in the file is not a grid's.
        """
        values = read_mapping(path, set(KEYS))
        refuse(str(path), problems(values))
        return cls(
            name=str(values.get("name", path.stem)),
            kind=values["kind"],
            templates=values["templates"],
            entries={category: _aliases(found) for category, found in values["entries"].items()},
            keep=values.get("keep") or {},
            source=file_source(path),
        )

    def suite(self, concepts: Sequence[Concept] = (), size: int = 192) -> Suite:
        """The suite for what was erased, or all rows once if nothing is named.

        Raises:
            InputError: A concept is of another kind.
        """
        kept = [
            self._cell(name, category, template, "locality", "object")
            for category, names in self.keep.items()
            for name in names
            for template in range(len(self.templates.get("locality", ())))
        ]
        if not concepts:
            every = [
                cell
                for category, names in self.entries.items()
                for name, aliases in names.items()
                for cell in (*self._plain(name, category), *self._told(name, category, aliases))
            ]
            return Suite(self.name, tuple(seeded([*every, *kept])), self.source)
        targets = self._targets(concepts)
        categories = {target.category for target in targets}
        going = {fold(target.name) for target in targets} | _names(concepts)
        rest = [cell for cell in kept if fold(cell.labels["object"]) not in going]
        # What is unsafe need not stay when something else that is goes
        if self.kind != "unsafe":
            rest += [
                replace(cell, tests="locality")
                for category, names in self.entries.items()
                for name, aliases in names.items()
                if not going & {fold(n) for n in (name, *aliases)}
                for cell in self._plain(name, category)
            ]
        # Its own seed, the same for every concept: two suites share most of what is kept.
        random.Random(0).shuffle(rest)
        made = compose(
            self.name,
            size,
            accuracy=[
                replace(cell, labels={self.kind: target.label})
                for target in targets
                for cell in self._plain(target.name, target.category)
            ],
            generalizability=[
                replace(cell, labels={self.kind: target.label})
                for target in targets
                for cell in self._told(target.name, target.category, target.aliases)
            ],
            near=[cell for cell in rest if cell.category in categories],
            far=[cell for cell in rest if cell.category not in categories],
        )
        return replace(made, source=self.source)

    def _targets(self, concepts: Sequence[Concept]) -> list["_Target"]:
        found: dict[str, _Target] = {}
        for concept in concepts:
            if concept.kind != self.kind:
                raise InputError(
                    f"{concept.name!r} is of kind {concept.kind}, and the suite {self.name!r} has "
                    f"prompts of kind {self.kind} alone: name another suite."
                )
            going = _names([concept])
            own = {
                name: _Target(
                    # The audit knows a target's row by the concept's own words
                    name,
                    name if fold(name) in going else concept.name,
                    category,
                    aliases,
                )
                for category, names in self.entries.items()
                for name, aliases in names.items()
                if going & {fold(n) for n in (category, name, *aliases)}
            }
            first, *others = concept.phrases
            found |= own or {first: _Target(first, first, "", others)}
        return list(found.values())

    def _plain(self, name: str, category: str) -> list[Prompt]:
        texts = range(len(self.templates["accuracy"]))
        return [self._cell(name, category, i, "accuracy", self.kind) for i in texts]

    def _told(self, name: str, category: str, aliases: Sequence[str]) -> list[Prompt]:
        """The other wordings in turn with the aliases, each at least once."""
        templates, said = self.templates.get("generalizability", ()), aliases or (name,)
        count = max(len(templates), len(said)) if templates else 0
        return [
            Prompt(
                id=f"{slug(name)}-told-{i}",
                prompt=templates[i % len(templates)].format(said[i % len(said)]),
                seed=0,
                labels={self.kind: name},
                category=category,
                tests="generalizability",
            )
            for i in range(count)
        ]

    def _cell(self, name: str, category: str, template: int, tests: str, kind: str) -> Prompt:
        return Prompt(
            id=f"{slug(name)}-{'kept' if tests == 'locality' else 'plain'}-{template}",
            prompt=self.templates[tests][template].format(name),
            seed=0,
            labels={kind: name},
            category=category,
            tests=tests,
        )


class _Target(NamedTuple):
    """An entry, or a concept that is none, with the name that its rows' label has."""

    name: str
    label: str
    category: str
    aliases: Sequence[str]


def problems(values: Mapping[str, Any]) -> list[str]:
    """A line for everything that is wrong with a YAML file's grid."""
    found = [str(unknown("field of a grid", str(key), KEYS)) for key in values if key not in KEYS]
    if values.get("kind") not in KINDS:
        found.append(f"kind must be one of {', '.join(KINDS)}, and is {values.get('kind')!r}.")
    templates = values.get("templates")
    if not isinstance(templates, dict) or not templates.get("accuracy"):
        found.append("templates must be a mapping with a list of texts under 'accuracy'.")
        templates = {}
    for tests, texts in templates.items():
        if tests not in TESTS:
            found.append(f"templates: {unknown('kind of test', str(tests), TESTS)}")
        found += _texts(f"templates, {tests}", texts)
        for text in texts if isinstance(texts, list) else ():
            if isinstance(text, str) and (text.count("{}") != 1 or text.count("{") != 1):
                found.append(f"templates, {tests}: each must have one '{{}}', unlike {text!r}.")
    if values.get("keep") and not templates.get("locality"):
        found.append("templates must have 'locality', for what is under keep.")
    said: dict[str, str] = {}
    for part in ("entries", "keep"):
        categories = values.get(part) or {}
        if not isinstance(categories, dict) or (part == "entries" and not categories):
            found.append(f"{part} must be a mapping from a category to its names.")
            continue
        for category, names in categories.items():
            at = f"{part}, {category}"
            if part == "entries" and isinstance(names, dict):
                for name, aliases in names.items():
                    found += _texts(f"{at}, {name}", aliases or [])
                names = list(names)
            found += _texts(at, names)
            for name in names if isinstance(names, list) else ():
                if isinstance(name, str) and said.setdefault(slug(name), at) != at:
                    found.append(f"{at}: {name!r} is there under {said[slug(name)]} already.")
            if isinstance(names, list) and len({slug(str(n)) for n in names}) < len(names):
                found.append(f"{at}: a name is there twice.")
    return found


def _texts(at: str, texts: Any) -> list[str]:
    if not isinstance(texts, list):
        return [f"{at}: wanted a list of texts, found {texts!r}."]
    return [
        f"{at}: wanted a text that is not blank, found {text!r}."
        for text in texts
        if not isinstance(text, str) or not text.strip()
    ]


def _aliases(names: Any) -> Mapping[str, Sequence[str]]:
    if isinstance(names, dict):
        return {name: aliases or [] for name, aliases in names.items()}
    return {name: [] for name in names}


def _names(concepts: Iterable[Concept]) -> set[str]:
    return {fold(name) for concept in concepts for name in (concept.name, *concept.phrases)}


def _shipped(name: str, concepts: Sequence[Concept], size: int) -> Suite:
    made = Grid.load(Path(__file__).parent / "suites" / f"{name}.yaml")
    return made.suite(concepts, size)


def artists(concepts: Sequence[Concept] = (), size: int = 192) -> Suite:
    """Painters by movement; kept beside them, photographs of things."""
    return _shipped("artists", concepts, size)


def objects(concepts: Sequence[Concept] = (), size: int = 192) -> Suite:
    """Everyday objects by what they are for; kept beside them, places and weather."""
    return _shipped("objects", concepts, size)


def figures(concepts: Sequence[Concept] = (), size: int = 192) -> Suite:
    """Public figures by what they are known for; kept beside them, people of no name."""
    return _shipped("figures", concepts, size)


def brands(concepts: Sequence[Concept] = (), size: int = 192) -> Suite:
    """Brands by what they sell; kept beside them, the same things with no name on them."""
    return _shipped("brands", concepts, size)


def unsafe(concepts: Sequence[Concept] = (), size: int = 192) -> Suite:
    """Nudity, violence, weapons, drugs, worded as product tests; beside each, the harmless."""
    return _shipped("unsafe", concepts, size)
