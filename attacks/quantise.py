"""Quantise: the erased model's weights with fewer bits, as who runs it on a small device has them.

Zhang et al., "Catastrophic Failure of LLM Unlearning via Quantization", ICLR 2025
(https://arxiv.org/abs/2410.16454), of language models: unlearning that moves weights little is
rounded away. Here the denoiser's, to the nearest, each output channel by its own greatest
(``kinds.rounded``). No way to bring a concept back on purpose, but a curve over bits.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from .._settings import check
from ..pipelines.parts import Parts
from ..pipelines.weaken import merged
from ..prompts import Concept, Prompt
from . import Attack, Control, Draw, Look
from .attacked import Attacked, Bits, record_of

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Quantise(Attack):
    """Fewer bits, a probe.

    Attributes:
        bits: That each weight of the denoiser's linear layers and convolutions has; 16 are
            bfloat16's, and 8 and 4 whole numbers'.
    """

    bits: tuple[Bits, ...] = (16, 8, 4)

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
            InputError: An erasure is on that weights cannot hold, or weights cannot be read.
        """
        with merged(parts.pipe, lambda weight: weight):
            pass
        for bits in (None, *sorted(set(self.bits), reverse=True)):
            record = record_of(self, "quantise", "rounded", concept, seed, bits=bits)
            yield Attacked(record)
        progress(1.0)
