"""Textual inversion: one learnt word that draws the concept, whatever its own words now do.

Pham et al., "Circumventing Concept Erasure Methods For Text-to-Image Generative Models", ICLR 2024
(https://arxiv.org/abs/2308.01508), after Gal et al., "An Image is Worth One Word", ICLR 2023
(https://arxiv.org/abs/2208.01618). With x_t an image of the concept under the noise n at a time t,
τ the text encoder, and v the embedding of a token S* that stands where the concept's phrase stood,

    min over v of ‖n − ε_θ(x_t, t, τ("… S* …"; v))‖²

with the erasure in θ, which stays as it is. Where the model predicts v or x₀, or is a flow model,
its own target stands for n.

The latents, noises and times are drawn once, before the first step, and the text encoder runs once
a step, on the prompts that the step reads.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from .._errors import InputError
from .._settings import Count, NotNegative, Positive, check
from ..pipelines.parts import Parts
from ..prompts import Concept, Prompt
from ..training import search
from ..training.denoising import check_unguided, loss, noised
from ..training.loop import halves
from ..training.student import frozen
from . import Attack, Control, Draw, Look
from .attacked import Attacked, Spent, record_of
from .kinds.text import put_in
from .kinds.token import file_names

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class TextualInversion(Attack):
    """Textual inversion of what was erased.

    The defaults are ours: they did well on the built-in model. ``presets``: "cce" is the authors'
    code for Stable Diffusion 1.4: the rate is its 5e-3 times batch and accumulation, 16, as its
    ``--scale_lr`` has it, and a step here is one of its optimiser's, of 16 samples. That code
    draws 25 images of the concept, flips them, and puts the token into 27 templates of its own;
    here it stands in the prompts of the images.

    Attributes:
        vectors: Tokens that are learnt together.
        start: The word whose embedding the search begins at.
        steps: Of Adam; the rungs are at the whole, a half, a quarter … of them.
        rungs: How many of these there are, beside that of no budget.
        lr: Adam's learning rate.
        weight_decay: AdamW's; 0 is Adam.
        batch_size: Samples a step.
    """

    vectors: Count = 1
    start: str = "object"
    steps: Count = 160
    rungs: Count = 4
    lr: Positive = 5e-2
    weight_decay: NotNegative = 0.0
    batch_size: Count = 8

    touches = "embedding"
    controls: ClassVar[tuple[Control, ...]] = ("positive", "novel")
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "cce": {
            "start": "art",
            "steps": 5000,
            "rungs": 6,
            "lr": 0.08,
            "weight_decay": 0.01,
            "batch_size": 16,
        },
    }

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
        """As ``Attack.fit``.

        Raises:
            InputError: A guide is on, which steers no single prediction; or no gradient goes back
                through the text encoders.
        """
        check_unguided(parts, "textual inversion")
        vectors = {
            name: nn.Parameter(rows)
            for name, rows in search.like(parts.pipe, self.start, self.vectors).items()
        }
        if not vectors:
            raise InputError(
                f"A {type(parts.pipe).__name__} has no text encoder whose tokens a tokenizer "
                "knows: textual inversion cannot learn one."
            )
        names = {own: known for known, own in file_names(parts.pipe).items()}
        words = search.words(parts.pipe, self.vectors)

        def found(spent: Spent) -> Attacked:
            record = record_of(
                self,
                "textual-inversion",
                "token",
                concept,
                seed,
                spent=spent,
                text=words if spent.steps else None,
            )
            if not spent.steps:
                return Attacked(record)
            tensors = {names[name]: rows.detach().clone() for name, rows in vectors.items()}
            return Attacked(record, tensors)

        yield found(Spent())
        given = len(images)
        for steps in self._learn(parts, concept, rows, images, vectors, words, seed, progress):
            # A row forward and back is three rows forward
            spent = 3 * steps * self.batch_size
            yield found(Spent(rows=spent, steps=steps, images=given))

    def _learn(
        self,
        parts: Parts,
        concept: Concept,
        rows: Sequence[Prompt],
        images: "Sequence[Image]",
        vectors: dict[str, nn.Parameter],
        words: str,
        seed: int,
        progress: Callable[[float], None],
    ) -> Iterator[int]:
        """The steps at whose ends the vectors are to be looked at."""
        prompts = [put_in(row.prompt, concept, words) for row in rows]
        optimizer = torch.optim.AdamW(vectors.values(), lr=self.lr, weight_decay=self.weight_decay)
        samples = noised(parts, images, self.steps, self.batch_size, seed)

        def learn() -> None:
            now = next(samples)
            which = now.which.tolist()
            # Each prompt once, however many samples read it
            said = list(dict.fromkeys(prompts[i] for i in which))
            text = parts.encode_with_gradient(said)
            search.check_learns(text, parts, "textual inversion")
            value = loss(parts, now, text[[said.index(prompts[i]) for i in which]])
            if not torch.isfinite(value):
                raise InputError(
                    f"The loss is not finite (textual inversion): lower lr, which is {self.lr}."
                )
            value.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        for before, mark in pairwise([0, *halves(self.steps, self.rungs)]):
            with ExitStack() as stack:
                for module in (parts.denoiser, *search.encoders(parts.pipe).values()):
                    stack.enter_context(frozen(module))
                stack.enter_context(search.learnt(parts.pipe, vectors))
                for step in range(before, mark):
                    learn()
                    progress((step + 1) / self.steps)
            yield mark
