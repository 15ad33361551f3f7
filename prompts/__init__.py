"""What to forget and what to measure it on."""

from collections.abc import Callable, Sequence
from pathlib import Path

from .._registry import Registry, unknown
from .concept import KINDS, Concept
from .suite import Prompt, Suite

# A suite's maker takes the concepts that were erased and the number of prompts wanted.
SUITES: Registry[Callable[[Sequence[Concept], int], Suite]] = Registry(
    "suite", "unsee.suites", {"emoji": "unsee.prompts.emoji:suite"}
)

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
    if path.suffix in (".yaml", ".yml"):
        return Concept.load(path)
    if model == "emoji":
        if (found := emoji.concept(name)) is None:
            here = emoji.world()
            raise unknown(
                "concept of the emoji model", name, [*here.styles, *here.groups, *here.objects]
            )
        return found
    if (path := CONCEPTS / f"{name}.yaml").is_file():
        return Concept.load(path)
    return Concept(name=name, kind=kind or "object")


def find_suite(name: str, concepts: Sequence[Concept], size: int) -> Suite:
    """The suite of a name, or the one in a YAML file.

    Raises:
        InputError: There is no such suite, or it has nothing for one of the concepts.
    """
    if Path(name).suffix in (".yaml", ".yml"):
        return Suite.load(Path(name))
    return SUITES[name](concepts, size)


__all__ = [
    "CONCEPTS",
    "KINDS",
    "SUITES",
    "Concept",
    "Prompt",
    "Suite",
    "find_concept",
    "find_suite",
]
