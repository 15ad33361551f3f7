"""Scale: the erasure at a share of its weight, from all of it down to nothing.

    W(s) = W + s ΔW,   s from 1 to 0

No way to bring a concept back, but a curve: how much of the change is needed, and whether the
concept comes back all at once or bit by bit.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from .._errors import InputError
from .._settings import Share, check
from ..pipelines.parts import Parts
from ..pipelines.watch import active
from ..prompts import Concept, Prompt
from . import Attack, Control, Draw, Look
from .attacked import Attacked, record_of

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Scale(Attack):
    """A weaker erasure, a probe.

    Attributes:
        strengths: What the weights of all erasures are multiplied by.
    """

    strengths: tuple[Share, ...] = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0)

    touches = "weights"
    controls: ClassVar[tuple[Control, ...]] = ()
    decides: ClassVar[bool] = False
    of_weights: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check(self)

    def fit(
        self,
        parts: Parts,
        concept: Concept,
        rows: Sequence[Prompt],
        images: "Sequence[Image]",
        base: Callable[[], AbstractContextManager[Parts]],
        look: Look,
        draw: Draw,
        *,
        seed: int = 0,
        progress: Callable[[float], None] = lambda done: None,
    ) -> Iterator[Attacked]:
        """As ``Attack.fit``; nothing is searched for.

        Raises:
            InputError: A guide is on, which has no weights.
        """
        if guides := [one.name for one in active(parts.pipe) if one.kind == "guidance"]:
            raise InputError(
                f"The erasure {guides[0]!r} is a guide, which has no weights that could be "
                "multiplied: leave scale out, and attack it by words or completion."
            )
        for strength in (None, *sorted({s for s in self.strengths if s != 1}, reverse=True)):
            record = record_of(self, "scale", "strength", concept, seed, strength=strength)
            yield Attacked(record)
        progress(1.0)
