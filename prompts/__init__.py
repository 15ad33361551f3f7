"""What to forget and what to measure it on."""

from collections.abc import Callable, Sequence
from pathlib import Path

from .._errors import InputError
from .._registry import Registry, unknown
from . import grid, suite, table
from .concept import KINDS, Concept, read_mapping
from .control import CONTROLS, Control, find_control
from .suite import TESTS, Prompt, Suite, join, read_list
from .where import NoColumn

# A suite's maker takes the concepts that were erased and the number of prompts wanted; None is as
# many as the concepts need.
SUITES: Registry[Callable[[Sequence[Concept], int | None], Suite]] = Registry(
    "suite",
    "unsee.suites",
    {"emoji": "unsee.prompts.emoji:suite", "neutral": "unsee.prompts.suite:neutral"}
    | {
        name: f"unsee.prompts.grid:{name}"
        for name in ("artists", "objects", "figures", "brands", "unsafe")
    },
)

YAML = (".yaml", ".yml")
CONCEPTS = Path(__file__).parent / "concepts"


def find_concept(name: str, *, model: str = "", kind: str | None = None) -> Concept:
    """The concept that a user means by a name.

    Args:
        name: A YAML file's path; a thing of the built-in model's world, if ``model`` is that; the
            name of one of the concepts that ship (``CONCEPTS``); or else the phrase itself.
        model: Where it is to be erased from.
        kind: What it is, where it is a phrase of the user's own.

    Raises:
        InputError: The file is no concept's, or the built-in model knows nothing of that name.
    """
    from . import emoji

    path = Path(name)
    if path.suffix in YAML:
        return Concept.load(path)
    if model == "emoji":
        if (found := emoji.concept(name)) is None:
            here = emoji.world()
            raise unknown(
                "concept of the emoji model", name, [*here.styles, *here.groups, *here.objects]
            )
        return found
    for path in CONCEPTS.glob("*.yaml"):  # never a path made of what a user wrote
        if path.stem == name:
            return Concept.load(path)
    return Concept(name=name, kind=kind or "object")


def find_suite(
    name: str, concepts: Sequence[Concept] = (), size: int | None = None, *, where: str = ""
) -> Suite:
    """The suite that a user means by a name.

    Args:
        name: A name in ``SUITES``; a file: YAML (a list or a grid), CSV, TSV, Parquet, JSON lines
            or text; or ``hf:`` and the id of a dataset.
        concepts: What was erased.
        size: How many prompts of a suite that is made to measure; None is what it needs.
        where: A filter of its rows, over a table's own columns or else over the prompts'
            attributes and kinds of label.

    Raises:
        InputError: There is no such suite, something in it is not right, it has nothing for one of
            the concepts, or the filter fits nothing.
    """
    path = Path(name)
    if name.startswith(table.HUB) or path.suffix.lower() in table.READERS:
        return table.load(name, concepts, where)
    if path.suffix in YAML:
        values = read_mapping(path, {*grid.KEYS, *suite.KEYS})
        found = (
            grid.Grid.load(path).suite(concepts, size) if "entries" in values else Suite.load(path)
        )
    elif path.is_file():
        raise InputError(
            f"{path} is no suite: wanted {', '.join([*YAML, *table.READERS])} at its end."
        )
    else:
        found = SUITES[name](concepts, size)
    return found.where(where) if where else found


def find_suites(
    names: Sequence[str | Suite],
    concepts: Sequence[Concept] = (),
    size: int | None = None,
    *,
    where: str = "",
) -> list[Suite]:
    """As ``find_suite``, for several; the filter is for all those that have its columns.

    Args:
        names: Those that are suites already stay as they are.

    Raises:
        InputError: As ``find_suite``, or no suite has a column of the filter.
    """
    found, strange = [], []
    for name in names:
        if isinstance(name, Suite):
            found.append(name)
            continue
        try:
            found.append(find_suite(name, concepts, size, where=where))
        except NoColumn as error:
            found.append(find_suite(name, concepts, size))
            strange.append(error)
    if strange and len(strange) == len(names):
        raise strange[0]
    return found


def check_suite(name: str, *, where: str = "") -> tuple[tuple[Prompt, ...], list[str]]:
    """What is right in a suite's file, and a line for each thing that is wrong, row by row.

    Args:
        name: As for ``find_suite``, but no name in ``SUITES``.
        where: A filter of a table's rows.

    Raises:
        InputError: Nothing in the file can be read.
    """
    path = Path(name)
    if path.suffix not in YAML:
        if not name.startswith(table.HUB) and path.suffix.lower() not in table.READERS:
            ends = ", ".join([*YAML, *table.READERS])
            raise InputError(f"{name} is no suite's file: wanted {ends} at its end.")
        prompts, problems, _ = table.read(name, where=where)
        return tuple(prompts), problems
    values = read_mapping(path)
    if "entries" in values:
        problems = grid.problems(values)
        return (() if problems else grid.Grid.load(path).suite().prompts), problems
    extra = [
        str(unknown("field of a suite", str(key), suite.KEYS))
        for key in values
        if key not in suite.KEYS
    ]
    prompts, problems = read_list(values)
    return tuple(prompts), extra + problems


__all__ = [
    "CONCEPTS",
    "CONTROLS",
    "KINDS",
    "SUITES",
    "TESTS",
    "Concept",
    "Control",
    "Prompt",
    "Suite",
    "check_suite",
    "find_concept",
    "find_control",
    "find_suite",
    "find_suites",
    "join",
]
