"""The attacks: one file each, read beside its paper.

An attack asks whether a concept comes back, and how much effort that takes. It makes a small file,
as an eraser does (``unsee.attacks.attacked``): other prompts, a learnt token, a step at which the
erasure comes on, latents, or a change of weights. Images are then drawn, looked at and counted as
in any audit, beside the attack's controls (``unsee.eval.attack``).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import Field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from .._registry import Registry

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..pipelines.parts import Parts
    from ..pipelines.watch import Active
    from ..prompts import Concept, Prompt
    from .attacked import Attacked

Touch = Literal["text", "embedding", "latents", "weights"]
"""What an attack may change, from the least on."""

Control = Literal["positive", "novel", "blind", "supplied"]
"""What an attack's figure is held against; without its controls it says nothing.

positive    the same attack on the base: is it any good?
novel       the same attack for a concept that the model never saw: does it teach?
blind       as many looks at random inputs: is it the looking?
supplied    the same input finished under the anchor's prompt: was the picture in it already?
"""


Gives = Literal["concept", "kept"]
"""What the images that an attack is given are of: the concept, or what must stay."""


class Look(Protocol):
    """Whether a detector sees the concept in images; every call is counted.

    Attributes:
        count: Images that were looked at so far.
    """

    @property
    def count(self) -> int: ...

    def __call__(self, images: "Sequence[Image]") -> list[bool]: ...


class Draw(Protocol):
    """Draws images of prompts with the model that is attacked, to be looked at."""

    def __call__(self, prompts: "Sequence[Prompt]") -> "list[Image]": ...


class Attack(Protocol):
    """An attack: a frozen dataclass of settings with one verb.

    What it is, is said once, by these attributes of its class; who inherits has their defaults.

    Attributes:
        touches: What it changes.
        controls: What it must be held against.
        own_words: Whether the concept's own words are allowed in what it makes; None where it
            makes no words.
        gives: What its rows and images are of.
        per_prompt: Whether it is fitted to each prompt: it is then given every prompt of the
            target in the suite, at other seeds, and measured at the suite's own.
        decides: Whether the verdict goes by it. A probe is a curve that decides nothing.
        of_weights: Whether it is about what a checkpoint's weights hold: see ``beside_weights``.
        presets: Settings by name, such as an author's published ones.
    """

    # which makes it a dataclass for type checkers
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]
    touches: ClassVar[Touch]
    controls: ClassVar[tuple[Control, ...]] = ("positive",)
    gives: ClassVar[Gives] = "concept"
    per_prompt: ClassVar[bool] = False
    decides: ClassVar[bool] = True
    of_weights: ClassVar[bool] = False
    presets: ClassVar[dict[str, dict[str, Any]]] = {}

    @property
    def own_words(self) -> bool | None:
        return None

    def fit(
        self,
        parts: "Parts",
        concept: "Concept",
        rows: "Sequence[Prompt]",
        images: "Sequence[Image]",
        base: "Callable[[], AbstractContextManager[Parts]]",
        look: Look,
        draw: Draw,
        *,
        seed: int = 0,
        progress: Callable[[float], None] = lambda done: None,
    ) -> "Iterator[Attacked]":
        """Finds what brings the concept back. The pipeline is left as it was.

        Args:
            parts: What is attacked, with its erasures in it.
            concept: What is to come back.
            rows: Prompts that no figure is taken on, one an image, of what ``gives`` says.
            images: One a row.
            base: A context in which the pipeline is the base model.
            look: Whether the concept is seen in images.
            draw: Images of prompts, by what is attacked.
            seed: Of every draw.
            progress: Called with the share that is done, in [0, 1].

        Yields:
            What was found at each rung of the budget, from the least on. The first, of no budget,
            changes nothing.

        Raises:
            InputError: It cannot be done on this pipeline; before any work.
        """
        ...

    def blind(
        self,
        found: "Attacked",
        parts: "Parts",
        rows: "Sequence[Prompt]",
        look: Look,
        draw: Draw,
        *,
        seed: int = 0,
    ) -> "Attacked":
        """The control ``blind``: what as many looks at random inputs of the same sort come to.

        Args:
            found: What the attack came to, with the looks that it spent.
            parts, rows, look, draw, seed: As ``fit``.
        """
        raise AssertionError(f"{type(self).__name__} has no control of random inputs.")

    def supplied(self, found: "Attacked") -> "Attacked":
        """The control ``supplied``: the same input, finished under the anchor's prompt."""
        raise AssertionError(f"{type(self).__name__} has no control of supplied inputs.")


def beside_weights(on: "Sequence[Active]") -> str:
    """What is to be said beside an attack on weights (``Attack.of_weights``), in a sentence.

    Args:
        on: What is on in the pipeline that was attacked.

    Returns:
        '' where all of it is part of the weights.
    """
    loose = [repr(one.name) for one in on if one.kind != "weights"]
    if not loose:
        return ""
    one = len(loose) == 1
    return (
        f"{' and '.join(loose)} {'is a file' if one else 'are files'} beside the base model, and "
        f"who does not load {'it' if one else 'them'} has the base: an attack on weights speaks "
        "of a checkpoint into which they were merged."
    )


ATTACKS: Registry[type[Attack]] = Registry(
    "attack",
    "unsee.attacks",
    {
        "benign": "unsee.attacks.relearn:Benign",
        "completion": "unsee.attacks.completion:Completion",
        "prompt": "unsee.attacks.prompt:PromptSearch",
        "quantise": "unsee.attacks.quantise:Quantise",
        "relearn": "unsee.attacks.relearn:Relearn",
        "ring-a-bell": "unsee.attacks.ring_a_bell:RingABell",
        "scale": "unsee.attacks.scale:Scale",
        "stack": "unsee.attacks.stack:Stack",
        "textual-inversion": "unsee.attacks.textual_inversion:TextualInversion",
        "words": "unsee.attacks.words:Words",
    },
)

DEFAULT = ("words", "textual-inversion", "completion")
"""The attacks that ``default`` names."""

__all__ = [
    "ATTACKS",
    "Attack",
    "Control",
    "Draw",
    "Gives",
    "Look",
    "Touch",
    "beside_weights",
]
