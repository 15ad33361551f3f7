"""Stack: the erased model with a LoRA of the user's own on top, as people mix them.

    W + ΔW + s B A,   s the LoRA's weight

No way to bring a concept back on purpose, but a curve: whether what is put on top, of a style or
a subject that may have nothing to do with the concept, undoes the erasure.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from .._errors import InputError
from .._files import sha256_of
from .._settings import Weight, check
from ..pipelines.load import lora_on
from ..pipelines.parts import Parts
from ..prompts import Concept, Prompt
from . import Attack, Control, Draw, Look
from .attacked import Attacked, record_of

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Stack(Attack):
    """A LoRA on top of the erasures, a probe.

    Attributes:
        lora: The LoRA's file, in safetensors; it must be given.
        strengths: What it is multiplied by.
    """

    lora: str | None = None
    strengths: tuple[Weight, ...] = (0.5, 1.0)

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
            InputError: No LoRA was given, or it cannot be put on this pipeline.
        """
        if self.lora is None:
            raise InputError("stack puts a LoRA of yours on the erased model: say lora=FILE.")
        with lora_on(parts.pipe, self.lora, 1.0):
            sha256 = sha256_of(self.lora)
        for strength in (None, *sorted(set(self.strengths))):
            record = record_of(
                self,
                "stack",
                "lora",
                concept,
                seed,
                strength=strength,
                lora=sha256 if strength else None,
                lora_file=self.lora if strength else None,
            )
            yield Attacked(record)
        progress(1.0)
