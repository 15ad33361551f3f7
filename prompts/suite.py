"""A suite: the prompts of a measurement, each with its seed and with what it should show.

In YAML a suite is a list of prompts, each a text or a mapping of ``Prompt``'s attributes:

    name: mine                 # the file's name where it is left out
    prompts:
      - a cat                  # id: the row's number, seed: 0
      - {prompt: a wheat field by Van Gogh, seed: 7, labels: {style: Van Gogh}, tests: accuracy}

What all prompts have alike may stand once, under ``common``: ``common: {tests: locality}``.

Or it is a grid of templates and entries (``unsee.prompts.grid``), or a table
(``unsee.prompts.table``).
"""

import dataclasses
import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .._errors import InputError
from .._files import is_file_name
from .._registry import unknown
from .._settings import is_text, shown
from .concept import Concept, read_mapping
from .where import Where

TESTS = ("accuracy", "locality", "generalizability")
"""What a prompt tests: the target in plain words; what must stay; the target in other words."""


@dataclass(frozen=True)
class Prompt:
    """One image to be made.

    Attributes:
        id: Unique in its suite, and a file name's stem.
        prompt: The text.
        seed: Of the initial noise.
        labels: What the image should show, by kind: ``{"object": "bomb", "style": "noto"}``.
            A row is a target's row when the label of the target's kind is the target's name.
        category: A group over which rates can be taken.
        guidance: Scale of classifier-free guidance; None is the model's default.
        steps: Denoising steps; None is the model's default.
        width, height: In pixels, both or neither; None is the model's default.
        tests: One of ``TESTS``; None where nothing is said.
        unit: The unit of independent evidence: images of one unit show much the same picture, so
            together they say little more than one of them. Empty means the prompt's own text.
    """

    id: str
    prompt: str
    seed: int
    labels: Mapping[str, str] = field(default_factory=dict)
    category: str = ""
    guidance: float | None = None
    steps: int | None = None
    width: int | None = None
    height: int | None = None
    tests: str | None = None
    unit: str = ""

    def to_json(self) -> dict[str, Any]:
        """Its attributes, without those that are unset."""
        values = {name: getattr(self, name) for name in FIELDS} | {"labels": dict(self.labels)}
        unset = {"labels": {}, "category": "", "unit": ""} | dict.fromkeys(
            ("guidance", "steps", "width", "height", "tests")
        )
        return {k: v for k, v in values.items() if k not in unset or v != unset[k]}

    @classmethod
    def from_json(cls, values: Any) -> "Prompt":
        """The prompt that ``to_json`` gave the values of.

        Raises:
            InputError: They are no prompt's; the message has the first thing that is wrong.
        """
        if not isinstance(values, dict):
            raise InputError(f"A prompt must be a mapping of its fields, and is {shown(values)}.")
        wrong = _faults(values)
        if wrong:
            raise InputError(f"A prompt cannot be read ({str(values)[:80]} …): {wrong[0]}")
        return cls(**values)


KEYS = ("name", "common", "prompts")
"""What a YAML file of a list has."""

FIELDS = tuple(f.name for f in dataclasses.fields(Prompt))
OPTIONAL = tuple(f.name for f in dataclasses.fields(Prompt) if f.default is None)
NEEDED = tuple(f.name for f in dataclasses.fields(Prompt) if f.default is f.default_factory)


@dataclass(frozen=True)
class Suite:
    """Prompts to measure a model on.

    Attributes:
        name: As in the report.
        prompts: At least one, and no two of one id.
        source: Where they came from, as the report says it: ``file`` (its name) or ``dataset``,
            ``sha256`` of its bytes, ``shape`` of a table, ``where``. Empty if from no file.
        notes: What a reader of its figures must know; the report has them as warnings.

    Raises:
        InputError: It has no prompt, or two with one id.
    """

    name: str
    prompts: tuple[Prompt, ...]
    source: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        who = f"Suite {shown(self.name)}"
        if not is_text(self.name):
            raise InputError(f"{who}: its name must be a text.")
        if not isinstance(self.prompts, (list, tuple)) or not all(
            isinstance(prompt, Prompt) for prompt in self.prompts
        ):
            raise InputError(f"{who}: prompts must be a list of Prompt, no {shown(self.prompts)}.")
        object.__setattr__(self, "prompts", tuple(self.prompts))
        if not self.prompts:
            raise InputError(f"{who} has no prompts: nothing would be measured.")
        for prompt in self.prompts:
            values = {f.name: getattr(prompt, f.name) for f in dataclasses.fields(prompt)}
            unset = {k for k in OPTIONAL if values[k] is None}
            if wrong := _faults({k: v for k, v in values.items() if k not in unset}):
                raise InputError(f"{who}, prompt {shown(prompt.id)}: {wrong[0]}")
        # Some systems take A.png and a.png for one file
        folded = Counter(p.id.casefold() for p in self.prompts)
        if (most := folded.most_common(1)[0])[1] > 1:
            same = [p.id for p in self.prompts if p.id.casefold() == most[0]]
            raise InputError(
                f"{who} has the id {shown(same[0])} {len(same)} times"
                + (f", once as {shown(same[-1])}." if same[-1] != same[0] else ".")
            )

    @property
    def sha256(self) -> str:
        """Hash of every prompt with all its settings."""
        rows = "\n".join(json.dumps(p.to_json(), sort_keys=True) for p in self.prompts)
        return hashlib.sha256(rows.encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "source": dict(self.source),
            "notes": list(self.notes),
            "prompts": [p.to_json() for p in self.prompts],
        }

    @classmethod
    def from_json(cls, values: Any) -> "Suite":
        """The suite that ``to_json`` gave the values of.

        Raises:
            InputError: They are no suite's; the message has the first thing that is wrong.
        """
        known = [f.name for f in dataclasses.fields(cls)]
        if not isinstance(values, dict) or {*values} != {*known}:
            raise InputError(
                f"A suite must be a mapping of {', '.join(known)}, and is {str(values):.80}."
            )
        name, prompts, source, notes = (values[key] for key in known)
        if not isinstance(name, str):
            raise InputError(f"A suite's name must be a text, and is {str(name):.80}.")
        if not isinstance(source, dict) or not all(
            isinstance(text, str) for item in source.items() for text in item
        ):
            raise InputError(
                f"A suite's source must map texts to texts, and is {str(source):.80}."
            )
        if not isinstance(notes, list) or not all(isinstance(note, str) for note in notes):
            raise InputError(f"A suite's notes must be a list of texts, and are {str(notes):.80}.")
        if not isinstance(prompts, list):
            raise InputError(f"A suite's prompts must be a list, and are {str(prompts):.80}.")
        return cls(name, tuple(map(Prompt.from_json, prompts)), source, tuple(notes))

    def where(self, text: str) -> "Suite":
        """The prompts that a filter fits: its columns are their attributes and kinds of label.

        Raises:
            InputError: The filter cannot be read, or fits no prompt.
        """
        kinds = dict.fromkeys(kind for p in self.prompts for kind in p.labels)
        columns = [*(name for name in FIELDS if name != "labels"), *kinds]
        fits = Where(text, columns)
        found = tuple(
            p
            for p in self.prompts
            if fits(dict.fromkeys(columns) | dict(p.labels) | dataclasses.asdict(p), p.id)
        )
        if not found:
            raise InputError(
                f"--where {shown(text)} fits none of the {len(self.prompts)} prompts."
            )
        return dataclasses.replace(self, prompts=found, source={**self.source, "where": text})

    @classmethod
    def load(cls, path: Path) -> "Suite":
        """Reads a suite from YAML: ``prompts``, a list of ``Prompt``'s attributes, and more.

        Raises:
            InputError: Something in the file is not a suite's; the message names the row.
        """
        values = read_mapping(path, {*KEYS})
        prompts, problems = read_list(values)
        refuse(str(path), problems)
        return cls(str(values.get("name", path.stem)), tuple(prompts), file_source(path))


def neutral(concepts: Sequence[Concept] = (), size: int | None = None) -> Suite:
    """Dressed people in everyday scenes: what must stay when something unsafe goes."""
    suite = Suite.load(Path(__file__).parent / "suites" / "neutral.yaml")
    rows = (dataclasses.replace(prompt, seed=i) for i, prompt in enumerate(suite.prompts[:size]))
    return dataclasses.replace(suite, prompts=tuple(rows))


def join(suites: Sequence[Suite]) -> Suite:
    """Several suites as one; a single one is left as it is.

    Of several, each prompt's id begins with its suite's name, and so do the keys of the source,
    which has each suite's own hash as well. What is an attack stays one beside prompts that only
    test what must stay.

    Raises:
        InputError: There is none, or two have one name.
    """
    if len(suites) == 1:
        return suites[0]
    if not suites:
        raise InputError("There is no suite: name at least one.")
    named = {slug(suite.name): suite for suite in suites}
    if len(named) < len(suites):
        names = ", ".join(suite.name for suite in suites)
        raise InputError(f"Two suites have one name ({names}): rename a file.")
    source = {
        f"{name} {key}": value
        for name, suite in named.items()
        for key, value in {"prompts sha256": suite.sha256, **suite.source}.items()
    }
    asking = [s for s in suites if any(p.tests != "locality" for p in s.prompts)]
    if len(attacks := {s.source.get("attack") for s in asking}) == 1 and (attack := attacks.pop()):
        source["attack"] = attack
    return Suite(
        " + ".join(suite.name for suite in suites),
        tuple(
            dataclasses.replace(prompt, id=f"{name}-{prompt.id}")
            for name, suite in named.items()
            for prompt in suite.prompts
        ),
        source,
        tuple(note for suite in suites for note in suite.notes),
    )


def slug(text: str) -> str:
    """A name as a part of ids."""
    return re.sub(r"[^\w]+", "-", text.lower()).strip("-")


def file_source(path: Path) -> dict[str, str]:
    """A suite's ``source`` for a file."""
    return {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def refuse(name: str, problems: Sequence[str]) -> None:
    """Raises an InputError of the first problem, if any, that says how to see the others."""
    if problems:
        more = f" {len(problems) - 1} more: unsee suites check {name}" if problems[1:] else ""
        raise InputError(f"{name}: {problems[0]}{more}")


def read_list(values: Mapping[str, Any]) -> tuple[list[Prompt], list[str]]:
    """The prompts of a YAML file's list that are right, and what is wrong with the others."""
    rows, common = values.get("prompts"), values.get("common", {})
    if not isinstance(rows, list) or not rows:
        return [], [f"wanted a list of prompts under 'prompts', found {shown(rows)}."]
    if not isinstance(common, dict):
        return [], [
            f"wanted a mapping of a prompt's fields under 'common', found {shown(common)}."
        ]
    named = []
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            row = {"prompt": row}
        # None is what YAML reads where a key has no value
        row = {str(key): value for key, value in (common | row).items() if value is not None}
        named.append((f"prompt {number}", {"id": f"{number:05d}", "seed": 0} | row))
    return read_rows(named)


def read_rows(
    rows: Sequence[tuple[str, Mapping[str, Any]]],
) -> tuple[list[Prompt], list[str]]:
    """The prompts that are right, and a line for everything that is wrong with the others.

    Args:
        rows: What a row is called in the line, and its values by the names of the attributes.
    """
    prompts: list[Prompt] = []
    problems: list[str] = []
    first: dict[str, str] = {}
    for at, row in rows:
        values = dict(row)
        if isinstance(values["id"], int):
            values["id"] = str(values["id"])
        wrong = []
        # A gallery may hold the empty prompt's image; in a suite's file it is a slip
        if isinstance(text := values.get("prompt"), str) and not text.strip():
            wrong.append(f"prompt must be a text that is not blank, and is {shown(text)}.")
        wrong += _faults(values)
        if isinstance(id_ := values["id"], str) and (there := first.setdefault(id_, at)) != at:
            wrong.append(f"its id {shown(id_)} is that of {there} already.")
        problems += [f"{at}: {line}" for line in wrong]
        if not wrong:
            prompts.append(Prompt(**values))
    return prompts, problems


def _faults(values: Mapping[str, Any]) -> list[str]:
    """A line for everything that is wrong with a prompt's fields."""
    wrong = [
        *(str(unknown("field of a prompt", str(k), FIELDS)) for k in values if k not in FIELDS),
        *(f"it has no {key}." for key in NEEDED if key not in values),
        *(
            f"{key} must be {wanted}, and is {shown(values[key])}."
            for key, (fits, wanted) in _FITS.items()
            if key in values and not fits(values[key])
        ),
    ]
    # diffusers would take the model's own size for both
    alone = [
        f"it has a {one} and no {other}: give both, or neither."
        for one, other in (("width", "height"), ("height", "width"))
        if one in values and other not in values
    ]
    return wrong or alone


def _whole(low: int, high: float = math.inf, of: int = 1) -> Callable[[Any], bool]:
    def fits(value: Any) -> bool:
        return type(value) is int and low <= value <= high and value % of == 0

    return fits


def _text(value: Any) -> bool:
    return is_text(value) and bool(value.strip())


def _labels(value: Any) -> bool:
    return isinstance(value, Mapping) and all(_text(k) and _text(v) for k, v in value.items())


def _guidance(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1000


_FITS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "id": (is_file_name, "a text that can be a file's name on every system"),
    "prompt": (is_text, "a text"),
    "seed": (_whole(0, 2**64 - 1), "a whole number from 0 to 2**64 - 1"),
    "labels": (_labels, "a mapping from a kind, such as object, to a text"),
    "category": (is_text, "a text"),
    "guidance": (_guidance, "a number from 0 to 1000"),
    "steps": (_whole(1, 1000), "a whole number from 1 to 1000"),
    # A latent pixel is 8 pixels wide; diffusers refuses other sizes
    "width": (_whole(8, 8192, of=8), "a multiple of 8 up to 8192"),
    "height": (_whole(8, 8192, of=8), "a multiple of 8 up to 8192"),
    "tests": (lambda value: value in TESTS, f"one of {', '.join(TESTS)}"),
    "unit": (is_text, "a text"),
}
