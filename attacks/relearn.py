"""Relearning: how little training brings the concept back, and whether any training at all does.

The erased model is fine-tuned on a few images, by a LoRA on top of whatever is on. With x_t an
image under the noise n at a time t, c its prompt, and ΔW = B A of each layer that is trained,

    min over A, B of ‖n − ε_{θ + BA}(x_t, t, τ(c))‖²

Where the model predicts v or x₀, or is a flow model, its own target stands for n. ``Relearn`` is
given images of the concept: a few shots, as in "Erased or Dormant? Rethinking Concept Erasure
Through Reversibility" (https://arxiv.org/abs/2505.16174). ``Benign`` is given images of other
concepts, so that it asks whether forgetting wears off by itself, as Suriyakumar et al., "Unstable
Unlearning" (https://arxiv.org/abs/2410.08074), found that it can.

A model can be taught what it never knew. So what relearning shows is how much sooner a concept
comes back than one that was never there (the control ``novel``).

The layers, the rank, the steps and the rate are ours: they were tried on the built-in model alone.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar, Literal

from torch import Tensor, nn

from .._settings import Count, NotNegative, Positive, check
from ..pipelines.parts import Parts
from ..prompts import Concept, Prompt
from ..training.denoising import check_unguided, loss, noised
from ..training.loop import halves, training
from ..training.student import autocast, frozen, lora, precision, select
from . import Attack, Control, Draw, Gives, Look
from .attacked import Attacked, Spent, record_of
from .kinds.text import put_in

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Finetuning(Attack):
    """A LoRA of the denoiser, trained on images and their prompts.

    Attributes:
        variant: What is trained: ``x``, the attention in which image and text meet; ``x-strict``,
            of it what reads the text; ``u``, everything else; ``blocks``, the transformer blocks;
            ``all``.
        layers: Of these, the layers whose names match, as file names do: ``mid_block.*``.
        rank: The LoRA's.
        steps: Of Adam; the rungs are at the whole, a half, a quarter … of them.
        rungs: How many of these there are, beside that of no budget.
        lr: Adam's learning rate.
        weight_decay: AdamW's; 0 is Adam.
        batch_size: Samples a step.
    """

    variant: Literal["x", "x-strict", "u", "blocks", "all"] = "blocks"
    layers: str = "*"
    rank: Count = 8
    steps: Count = 40
    rungs: Count = 4
    lr: Positive = 1e-3
    weight_decay: NotNegative = 0.0
    batch_size: Count = 8

    name: ClassVar[str]
    touches = "weights"

    def __post_init__(self) -> None:
        check(self)

    def spoken(self, row: Prompt, concept: Concept) -> str:
        """The prompt of an image."""
        return row.prompt

    @property
    def text(self) -> str | None:
        """What then stands in the place of the concept's phrases; None leaves them."""
        return None

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
            InputError: A guide is on, which steers no single prediction; no layer is selected; the
                pipeline's LoRAs are switched off; or the loss is not finite.
        """
        check_unguided(parts, "fine-tuning")
        denoiser = parts.denoiser
        layers = select(parts, self.variant, self.layers)
        compute = precision("auto", parts.pipe.dtype)
        prompts = [self.spoken(row, concept) for row in rows]
        # As it is drawn: B is 0
        with frozen(denoiser), lora(denoiser, layers, self.rank, seed) as learnt:
            pass
        samples = noised(parts, images, self.steps, self.batch_size, seed)

        def step(_: int) -> Tensor:
            now = next(samples)
            # Encoded at once before they are read: an erasure that acts by the prompt has heard it
            said = list(dict.fromkeys(prompts[i] for i in now.which.tolist()))
            text = parts.encode(said)[[said.index(prompts[i]) for i in now.which.tolist()]]
            with autocast(text.first.device, compute):
                return loss(parts, now, text)

        losses = training(
            learnt,
            step,
            steps=self.steps,
            lr=self.lr,
            weight_decay=self.weight_decay,
            run={},
            progress=progress,
        )
        yield self._found(parts, concept, {}, Spent(), seed)
        next(losses)
        for before, mark in pairwise([0, *halves(self.steps, self.rungs)]):
            with frozen(denoiser), lora(denoiser, layers, self.rank, seed, learnt=learnt):
                for _ in range(before, mark):
                    next(losses)
            # A row forward and back is three rows forward
            spent = Spent(rows=3 * mark * self.batch_size, steps=mark, images=len(images))
            yield self._found(parts, concept, learnt, spent, seed)

    def _found(
        self,
        parts: Parts,
        concept: Concept,
        learnt: dict[str, nn.Parameter],
        spent: Spent,
        seed: int,
    ) -> Attacked:
        record = record_of(
            self,
            self.name,
            "lowrank",
            concept,
            seed,
            spent=spent,
            text=self.text if learnt else None,
        )
        tensors = {f"{parts.prefix}.{n}": p.detach().cpu().clone() for n, p in learnt.items()}
        return Attacked(record, tensors)


@dataclass(frozen=True)
class Relearn(Finetuning):
    """Fine-tuning on images of the concept.

    Attributes:
        word: What stands for the concept, in training and in the prompts that are measured: a word
            that means nothing to the model puts it on a par with a concept that is not known
            either. None is its own words.
    """

    word: str | None = None

    name = "relearn"
    controls: ClassVar[tuple[Control, ...]] = ("positive", "novel")

    @property
    def text(self) -> str | None:
        return self.word

    def spoken(self, row: Prompt, concept: Concept) -> str:
        return row.prompt if self.word is None else put_in(row.prompt, concept, self.word)


@dataclass(frozen=True)
class Benign(Finetuning):
    """Fine-tuning on images of other concepts, which have nothing to do with what was erased."""

    name = "benign"
    gives: ClassVar[Gives] = "kept"
