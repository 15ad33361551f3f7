"""A concept: what goes, what it becomes, and what must stay."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from .._errors import InputError
from .._files import read_text
from .._settings import is_text, shown

DEEPEST = 32
"""How deep a YAML file may be nested; a suite is five deep."""

KINDS = ("object", "style", "person", "unsafe")


@dataclass(frozen=True)
class Concept:
    """Something that a model is to forget.

    Attributes:
        name: The name by which suites, detectors and reports know it.
        kind: One of ``KINDS``: which rates are "same kind", and what a method's anchor is.
        phrases: The words that call it up; the name alone when empty.
        anchor: The words that it becomes; None leaves the choice to the method.
        keep: Phrases that must go on working.
        templates: Prompts with one ``{}`` in which phrases stand when a method expands them.
    """

    name: str
    kind: str = "object"
    phrases: tuple[str, ...] = ()
    anchor: str | None = None
    keep: tuple[str, ...] = ()
    templates: tuple[str, ...] = ("{}",)

    def __post_init__(self) -> None:
        if not is_text(self.name):
            raise InputError(f"A concept's name must be a text, and is {shown(self.name)}.")
        if not self.name.strip():
            raise InputError("A concept needs a name, and this one is empty.")
        who = f"Concept {shown(self.name)}"
        if self.kind not in KINDS:
            raise InputError(
                f"{who} has kind {shown(self.kind)}; wanted one of {', '.join(KINDS)}."
            )
        if not self.phrases:
            object.__setattr__(self, "phrases", (self.name,))
        for field in ("phrases", "keep", "templates"):
            values = getattr(self, field)
            if not isinstance(values, (list, tuple)) or not all(map(is_text, values)):
                raise InputError(f"{who}: {field} must be a list of phrases.")
            object.__setattr__(self, field, tuple(values))
        if self.anchor is not None and not is_text(self.anchor):
            raise InputError(f"{who}: the anchor must be a text.")
        if any(not phrase.strip() for phrase in self.phrases):
            raise InputError(f"{who} has an empty phrase: name what is to go.")
        if any(template.count("{}") != 1 for template in self.templates):
            raise InputError(f"{who}: each template must have one '{{}}'.")
        for phrase in self.phrases:
            if self.anchor is not None and fold(phrase) == fold(self.anchor):
                raise InputError(
                    f"{who} is its own anchor: {shown(self.anchor)} is what is to go."
                )
            if any(fold(phrase) == fold(kept) for kept in self.keep):
                raise InputError(
                    f"{who} is in its own keep list: {shown(phrase)} cannot both go and stay."
                )

    @classmethod
    def load(cls, path: Path) -> "Concept":
        """Reads a concept from YAML: its attributes, ``name`` taken from the file's if absent.

        Raises:
            InputError: The file is not a mapping of a concept's attributes.
        """
        values = read_mapping(path, {f.name for f in dataclasses.fields(cls)})
        return cls(**({"name": path.stem} | dict(values)))

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def read_mapping(path: Path, known: set[str] | None = None) -> Mapping[str, Any]:
    """A YAML file's mapping, all of whose keys are known (any, if that is not given).

    Raises:
        InputError: The file is missing, is not YAML, is not a mapping, or has an unknown key.
    """
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise InputError(f"{path} must hold a mapping, and holds {type(values).__name__}.")
    extra = sorted(str(key) for key in values if known is not None and key not in known)
    if known is not None and extra:
        raise InputError(
            f"{path} has {', '.join(extra)}, which is not known here. "
            f"Known: {', '.join(sorted(known))}."
        )
    return values


class _Loader(yaml.SafeLoader):
    """YAML without what makes a small file large: aliases, and nesting without an end.

    Nor with a key that is there twice, of which PyYAML would drop the first in silence.
    """

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(
                problem="an alias (*) is not read here, write out what it stands for",
                problem_mark=mark,
            )
        if self.depth == DEEPEST:
            raise yaml.MarkedYAMLError(
                problem=f"nested more than {DEEPEST} deep", problem_mark=mark
            )
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> Any:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and (key.tag, key.value) in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"{shown(key.value)} is there twice", problem_mark=key.start_mark
                )
            seen.add((key.tag, str(key.value)))
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> Any:
    """What a YAML file says, in time and memory of the order of its size.

    Raises:
        InputError: The file is missing, too large, not in UTF-8, or is not YAML; or it has aliases
            or is nested deeply.
    """
    text = read_text(path)
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    # PyYAML's own, of a day that is none, a number of thousands of digits, "!!bool x" and so on
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} has a value that cannot be: {reason}.") from error


def fold(text: str) -> str:
    """A phrase as phrases are compared: case and spacing do not count."""
    return " ".join(text.lower().split())
