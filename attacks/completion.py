"""Completion: the base makes the first steps, and the erased model the rest, of one image.

Lu et al., "When Are Concepts Erased From Diffusion Models?", NeurIPS 2025
(https://arxiv.org/abs/2505.17013), there from a half-made latent that is handed over. With ε* the
base, ε_θ the erased model, and N steps from t_0 (noise) to t_N (image),

    x_{i+1} = step(x_i, ε*(x_i, t_i, p))      i < k
    x_{i+1} = step(x_i, ε_θ(x_i, t_i, p))     i ≥ k

under one prompt p of the concept. What the erased model goes on to draw, it can still draw. But
after some steps the picture is in x_k, and any model ends it: so the same x_k is ended under the
anchor's prompt too, by the erased model (``supplied``), and what is seen there was in the input.

Nothing is handed over: it is one call of the pipeline, whose erasures come on at step k, so that
the scheduler's state is whole.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from .._errors import InputError
from .._settings import Share, check
from ..pipelines.generation import own
from ..pipelines.parts import Parts
from ..prompts import Concept, Prompt
from . import Attack, Control, Draw, Look
from .attacked import Attacked, Spent, record_of

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Completion(Attack):
    """Completion of what the base began.

    How much of a picture is there after k steps goes by the noise that is left, and a sampler
    goes through the same noise in however many steps. So rungs are shares of the steps, by default
    2, 3 and 4 of 20: a kitchen knife that UCE erased from the built-in model was seen in 5, 12 and
    27 of 32, under the anchor's prompt in 0, 5 and 21; and after one step in none. What the base
    makes in more is ended as the concept under any prompt. ``presets``: "wace" has the
    paper's 5 and 10 of 50.

    Attributes:
        shares: Of the sampler's steps, those that the base makes; each is rounded to whole steps,
            and is one at least.
    """

    shares: tuple[Share, ...] = (0.1, 0.15, 0.2)

    touches = "latents"
    controls: ClassVar[tuple[Control, ...]] = ("supplied",)
    presets: ClassVar[dict[str, dict[str, Any]]] = {"wace": {"shares": (0.1, 0.2)}}

    def __post_init__(self) -> None:
        check(self)
        if not any(self.shares):
            raise InputError("completion needs a share of the steps above 0: say shares.")

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

        Args:
            rows: Their number of steps is that of the sampler; None is the pipeline's own.

        Raises:
            InputError: They are drawn in different numbers of steps.
        """
        usual = own(parts.pipe).steps
        counts = {row.steps or usual for row in rows} or {usual}
        if len(counts) > 1:
            raise InputError(
                f"The prompts are drawn in {' and '.join(map(str, sorted(counts)))} steps, and "
                "completion comes on at one step of all: give them one number of steps."
            )
        (steps,) = counts
        for step in (0, *self.steps(steps)):
            record = record_of(
                self,
                "completion",
                "switch",
                concept,
                seed,
                spent=Spent(steps=step),
                step=step or None,
            )
            yield Attacked(record)
        progress(1.0)

    def steps(self, of: int) -> list[int]:
        """The steps at which the erasure comes on, of so many, from the least on.

        >>> Completion().steps(20), Completion().steps(50), Completion().steps(4)
        ([2, 3, 4], [5, 8, 10], [1])
        """
        return sorted({max(1, round(share * of)) for share in self.shares if share})

    def supplied(self, found: Attacked) -> Attacked:
        """As ``Attack.supplied``: from the step on, the anchor stands where the concept stood.

        Of a concept that names no anchor nothing stands there, as in methods' templates; and a
        prompt that has none of the concept's phrases becomes the anchor alone.
        """
        then = found.record.concept.anchor or ""
        return replace(found, record=replace(found.record, then=then))
