"""The world of the built-in model, where every concept, its neighbours and its style are known."""

import functools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .._errors import InputError
from .concept import Concept, read_yaml
from .grid import compose, in_turn, latin
from .suite import Prompt, Suite


@dataclass(frozen=True)
class World:
    """What the built-in model knows.

    Attributes:
        groups: Objects by group.
        styles: The artists' styles.
        templates: The captions' wordings, with ``{object}`` or ``{style}`` or both; the first is
            the prompt of the suites.
        paraphrases: Wordings that were in no caption. The model learnt its words from its captions
            alone, so a synonym is nothing to it: what is new is a few small words and the order.
        generation: The settings with which the model's quality was measured.
        held_out: (object, style) pairs that were not in the training.
    """

    groups: Mapping[str, tuple[str, ...]]
    styles: tuple[str, ...]
    templates: tuple[str, ...]
    paraphrases: tuple[str, ...]
    generation: Mapping[str, Any]
    held_out: frozenset[tuple[str, str]]

    @property
    def objects(self) -> tuple[str, ...]:
        return tuple(name for names in self.groups.values() for name in names)

    def group_of(self, name: str) -> str:
        """The group of an object."""
        return next(group for group, names in self.groups.items() if name in names)


@functools.cache
def world() -> World:
    """The world as ``emoji.yaml`` beside this file describes it."""
    values = read_yaml(Path(__file__).parent / "emoji.yaml")
    return World(
        groups={group: tuple(names) for group, names in values["objects"].items()},
        styles=tuple(values["styles"]),
        templates=tuple(values["templates"]),
        paraphrases=tuple(values["paraphrases"]),
        generation=values["generation"],
        held_out=frozenset((name, style) for name, style in values["held_out"]),
    )


def concept(name: str) -> Concept | None:
    """An object, a style or a group (all its objects) of the world; None if it has no such thing.

    It keeps all others of its kind, and its templates are the wordings of the captions, with every
    style (for an object) or every object (for a style) in one of them.
    """
    here = world()
    if name in here.styles:
        return Concept(
            name=name,
            kind="style",
            anchor="",
            keep=tuple(style for style in here.styles if style != name),
            templates=_templates("{style}", "{object}", here.objects),
        )
    phrases = here.groups.get(name, (name,) if name in here.objects else ())
    if not phrases:
        return None
    return Concept(
        name=name,
        kind="object",
        phrases=phrases,
        anchor="",
        keep=tuple(other for other in here.objects if other not in phrases),
        templates=_templates("{object}", "{style}", here.styles),
    )


def _templates(slot: str, filler: str, fillers: Sequence[str]) -> tuple[str, ...]:
    """The wordings with the slot open, those that name both with every filler once."""
    wordings = [t.replace(slot, "{}") for t in world().templates if slot in t]
    alone = [t for t in wordings if filler not in t]
    both = [t for t in wordings if filler in t]
    return tuple(
        both[i % len(both)].replace(filler, fillers[i % len(fillers)])
        for i in range(max(len(both), len(fillers)))
    ) + tuple(alone)


def suite(concepts: Sequence[Concept], size: int | None = None) -> Suite:
    """Every object in every style: the target's rows, its neighbours' in the group, and others'.

    A target's rows go through the wordings that name both, each with everything of the other kind:
    an object's prompts are the styles times the wordings, a style's the objects (another in each
    row, while there are any) in one wording or another. All eight styles are asked equally often.
    The rows to keep are drawn from the grid of all that mentions no target, in one wording.

    Args:
        concepts: What was erased.
        size: The number of rows; None is what so many concepts need.

    Raises:
        InputError: There is no concept, one is not of this world, or the size has no place for
            them all.
    """
    if not concepts:
        raise InputError("The emoji suite is made for what was erased: name a concept.")
    here = world()
    targets: dict[str, list[str]] = {"object": [], "style": []}
    asked = {}
    for erased in concepts:
        known = here.objects if erased.kind == "object" else here.styles
        if erased.kind not in targets or any(phrase not in known for phrase in erased.phrases):
            raise InputError(
                f"{erased.name!r} is no {erased.kind} of the built-in model, so its suite has no "
                "prompts for it: give a suite of your own."
            )
        targets[erased.kind] += erased.phrases
        asked[erased.name] = _asked(erased)
    rest = [
        (name, style)
        for name in here.objects
        if name not in targets["object"]
        for style in here.styles
        if style not in targets["style"]
    ]
    # Its own seed, the same for every concept: audits of two concepts share most of what is kept.
    random.Random(0).shuffle(rest)
    groups = {here.group_of(name) for name in targets["object"]}
    cells = [_cell(*pair, "locality", here.templates[0]) for pair in rest]
    return compose(
        "emoji",
        size,
        targets=asked,
        near=[cell for cell in cells if cell.category in groups],
        far=[cell for cell in cells if cell.category not in groups],
    )


def _asked(erased: Concept) -> tuple[list[Prompt], list[Prompt]]:
    """All the prompts that ask for a concept, in the captions' wordings and in others."""
    here = world()
    of_object = erased.kind == "object"
    names = erased.phrases if of_object else here.objects
    styles = here.styles if of_object else erased.phrases
    # The styles in turn, and in each the objects by chance
    draw = random.Random(0)
    pairs = in_turn([(n, style) for n in draw.sample(names, len(names))] for style in styles)
    captions = [text for text in here.templates if "{object}" in text and "{style}" in text]
    # What is told goes through the pairs backwards, so that both together ask them equally often
    return (
        [_cell(*pair, "accuracy", captions[i]) for pair, i in latin(pairs, len(captions))],
        [
            _cell(*pair, "generalizability", here.paraphrases[i])
            for pair, i in latin(pairs[::-1], len(here.paraphrases))
        ],
    )


def _cell(name: str, style: str, tests: str, wording: str) -> Prompt:
    """An object in a style, in one of the wordings."""
    here = world()
    number = [*here.templates, *here.paraphrases].index(wording)
    return Prompt(
        id=f"{name}-{style}-{number}".replace(" ", "-"),
        prompt=wording.format(object=name, style=style),
        seed=0,
        labels={"object": name, "style": style},
        category=here.group_of(name),
        tests=tests,
    )
