"""SPM: concept semi-permeable membranes, which let everything through but the concept.

Lyu et al., "One-Dimensional Adapter to Rule Them All: Concepts, Diffusion Models and Erasing
Applications", CVPR 2024 (https://arxiv.org/abs/2312.16145). A membrane is a LoRA of rank 1 around
a layer, y = Wx + γ b aᵀx. It learns a target like ESD's, but with the anchor a (∅ where a concept
names none) in the bracket too, and by latent anchoring to leave alone surrogate prompts k that are
drawn the more often the less they are like the concept c:

    ‖ε_θ(x_t, c) − [ε*(x_t, a) − η(ε*(x_t, c) − ε*(x_t, a))]‖² + λ‖ε_θ(x_t, k) − ε*(x_t, k)‖²
    D(k) ∝ (1 − |cos(E(k), E(c))|)^α

So it is trained as ESD is. The surrogates are what the concept keeps; without that, words of the
tokenizer's vocabulary. In the published code they are Gaussian noise of the concept's norm.

Facilitated transport is for use: γ is each prompt's own likeness to the concept
(``unsee.pipelines.transport``). The file is an ordinary LoRA, which other tools apply with γ = 1.

What is known to undo it: in UnlearnDiffAtk's benchmark (https://arxiv.org/abs/2310.11868) its
attack brings nudity back by 91.6 % of the prompts, 54.9 % without it; on the built-in model, tried
once, the word “kitchen” alone, at which γ is a half, drew the kitchen knife in 5 of 8 images.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from .._errors import InputError
from .._reading import plain
from .._settings import Count, Guidance, NotNegative, Positive, Steps, Whole, check
from ..pipelines.erasure import Erasure
from ..pipelines.parts import Parts
from ..pipelines.transport import overlap, similarity
from ..prompts import Concept
from ..records import Transport
from ..training.loop import check_schedule, every_phrase_fits
from ..training.student import encoded
from . import Eraser
from .esd import ESD

# Words of the vocabulary that are looked at where nothing is kept.
WORDS = 512


def surrogates(sources: Sequence[Tensor], candidates: Sequence[Tensor], alpha: float) -> Tensor:
    """D over the candidates, which sums to 1.

    Args:
        sources: E of the phrases that go, each (tokens, dim); the nearest counts.
        candidates: E(k), each (tokens, dim), n of them.
        alpha: α; at 0 all are as likely.

    Returns:
        Shape (n,), float64.
    """
    likeness = similarity(candidates, sources).double().abs().amax(1)
    weights = (1 - likeness).clamp(min=torch.finfo(torch.float32).tiny) ** alpha
    return weights / weights.sum()


@dataclass(frozen=True)
class SPM(Eraser):
    """Concept semi-permeable membranes.

    The defaults are ours: they did well on the built-in model. ``presets``: "2024" is the authors'
    configuration for Stable Diffusion and their optimiser, whose state is in 8 bits there. That
    code has four surrogates a step, which are noise, where one word a sample is here;
    trajectories of the model being edited, at sizes around 512; and γ² for γ.

    Where every prompt is padded to one length, the padding makes all sentences alike: on the
    built-in model an object's prompt has a cosine of 0.5 to 0.7 with another object, and the empty
    prompt of 0.9. ``token`` tells them apart, and lets through what says it in other words.

    Attributes:
        transport: What γ is taken from: ``sentence``, ``token``, the larger of ``both``, as the
            authors' code has it; or ``none``, and γ is 1.
        layers: Of the transformer blocks, with what leads in and out, the layers whose names
            match, as file names do. The authors' are all of them.
        eta: η, how far beyond its anchor the concept is pushed.
        iterations: Steps of Adam.
        lr: Adam's learning rate.
        weight_decay, warmup, cycles: As ESD's.
        batch_size: Samples a step.
        anchoring: λ. In the authors' code 1000, where noise is anchored, which hardly moves.
        alpha: α. In the authors' code 1.
        sampling_steps: Steps of a trajectory, all of whose points are used.
        guidance: Scale of classifier-free guidance of the trajectories.
        sampling_batch: Trajectories at a time.
        expand: Whether phrases, anchors and surrogates stand in their concept's templates.
        precision: As ESD's.
        gradient_checkpointing: Less memory, and about a third more time a step.
    """

    transport: Literal["both", "sentence", "token", "none"] = "both"
    layers: str = "*"
    eta: float = 1.0
    iterations: Count = 200
    lr: Positive = 3e-3
    weight_decay: NotNegative = 0.0
    warmup: Whole = 0
    cycles: Whole = 0
    batch_size: Count = 8
    anchoring: NotNegative = 1.0
    alpha: NotNegative = 1.0
    sampling_steps: Steps = 20
    guidance: Guidance = 3.0
    sampling_batch: Count = 4
    expand: bool = True
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    gradient_checkpointing: bool = False

    trains = True
    keep_setting = "anchoring"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "2024": {
            "iterations": 3000,
            "lr": 1e-4,
            "weight_decay": 0.01,
            "warmup": 500,
            "cycles": 3,
            "batch_size": 1,
            "anchoring": 1000.0,
            "sampling_steps": 30,
            "expand": False,
        },
    }

    def __post_init__(self) -> None:
        check(self)
        check_schedule(self.iterations, self.warmup)

    def fit(
        self,
        parts: Parts,
        concepts: Sequence[Concept],
        *,
        seed: int = 0,
        progress: Callable[[float], None] = lambda done: None,
        checkpoint: Path | None = None,
        watch: Callable[[float], None] = lambda loss: None,
    ) -> Erasure:
        """As ``ESD.fit``."""
        every_phrase_fits(concepts, self.iterations, self.batch_size)
        draw = torch.Generator().manual_seed(seed)
        phrases = [phrase for concept in concepts for phrase in concept.phrases]
        anchored = [self._anchored(parts, concept, phrases, draw) for concept in concepts]
        erasure = self._esd().fit(
            parts, anchored, seed=seed, progress=progress, checkpoint=checkpoint, watch=watch
        )
        record = dataclasses.replace(
            erasure.record,
            method="spm",
            settings=plain(self),
            concepts=tuple(concepts),
            transport=None
            if self.transport == "none"
            else Transport(self.transport, tuple(phrases)),
        )
        return dataclasses.replace(erasure, record=record)

    def _esd(self) -> ESD:
        return ESD(
            variant="blocks",
            layers=self.layers,
            eta=self.eta,
            against="anchor",
            iterations=self.iterations,
            lr=self.lr,
            weight_decay=self.weight_decay,
            warmup=self.warmup,
            cycles=self.cycles,
            batch_size=self.batch_size,
            sampling_steps=self.sampling_steps,
            guidance=self.guidance,
            sampling_batch=self.sampling_batch,
            keep_weight=self.anchoring,
            expand=self.expand,
            rank=1,
            precision=self.precision,
            gradient_checkpointing=self.gradient_checkpointing,
        )

    def _anchored(
        self, parts: Parts, concept: Concept, going: Sequence[str], draw: torch.Generator
    ) -> Concept:
        """The concept, keeping surrogates drawn from D, one a sample."""
        candidates = concept.keep or _words(parts, going, draw)
        if not candidates:
            raise InputError(
                f"Concept {concept.name!r} keeps nothing and the vocabulary has no other words: "
                "name what to keep."
            )
        texts = parts.sequence(encoded(parts, candidates))
        chance = surrogates(parts.sequence(parts.encode(going)), texts, self.alpha).cpu()
        drawn = torch.multinomial(
            chance, self.iterations * self.batch_size, replacement=True, generator=draw
        )
        return dataclasses.replace(concept, keep=tuple(candidates[i] for i in drawn.tolist()))


def _words(parts: Parts, going: Sequence[str], draw: torch.Generator) -> tuple[str, ...]:
    """Words of the vocabulary, none of which has a token in common with what goes."""
    tokenizer = parts.streams()[0].tokenizer
    special = set(tokenizer.all_special_ids)
    own = [set(ids) - special for ids in tokenizer(list(going)).input_ids]
    words = sorted(
        word
        for word in {tokenizer.decode(i).strip() for i in set(tokenizer.get_vocab().values())}
        if len(word) > 2 and word.isalpha()
    )
    order = torch.randperm(len(words), generator=draw)[:WORDS].tolist()
    drawn = [words[i] for i in order]
    return tuple(
        word
        for word, ids in zip(drawn, tokenizer(drawn).input_ids, strict=True)
        if not overlap(set(ids) - special, own)
    )
