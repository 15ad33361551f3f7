"""Concept ablation: under the concept's prompts the model learns what it does under the anchor's.

Kumari et al., "Ablating Concepts in Text-to-Image Diffusion Models", ICCV 2023
(https://arxiv.org/abs/2303.13516). The frozen model ε* draws images x under prompts c of the
anchor. With x_t such an image under the noise ε at a timestep t, and c* its prompt with the
concept in the anchor's place, the student ε_θ learns

    ‖ε_θ(x_t, c*) − ε*(x_t, c)‖²       model-based
    ‖ε_θ(x_t, c*) − ε‖²                noise-based: the anchor's image is the concept's from now on

and as the paper's regulariser the anchor's own diffusion loss, ‖ε_θ(x_t, c) − ε‖². In the authors'
code the first has ε_θ(x_t, c), through which no gradient goes, in the place of ε*(x_t, c).

A term of our own does for prompts k that are kept what the first does for the concept: on images
drawn under k it holds the student to the teacher, ‖ε_θ(x_t, k) − ε*(x_t, k)‖².

What comes from the frozen model, images and targets, is made first, in batches.

What is known to undo it: in UnlearnDiffAtk's benchmark (https://arxiv.org/abs/2310.11868) its
attack brings Van Gogh's style back by 77 % of the prompts, 12 % without it.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from .._settings import Count, Guidance, NotNegative, Positive, Rest, Steps, check
from ..pipelines.erasure import Erasure
from ..pipelines.parts import Parts
from ..pipelines.schedule import SPAN
from ..pipelines.text import Text
from ..prompts import Concept
from ..training.loop import check_run, every_phrase_fits, train
from ..training.record import run, trained
from ..training.student import autocast, check_store, encoded, frozen, precision, select, student
from . import Eraser


@dataclass(frozen=True)
class Term:
    """One term of the loss: what the student is to predict for each sample, on the CPU.

    Attributes:
        weight: Of the mean square.
        texts: Which of the prompts' embeddings, shape (samples,).
        latents: x_t, shape (samples, *latent_shape).
        timesteps: t, shape (samples,).
        targets: Shape (samples, *latent_shape); not read where there is ``own``.
        own: Where the target is the student's own prediction under another prompt, that prompt's
            embedding, shape (samples,).
    """

    weight: float
    texts: Tensor
    latents: Tensor
    timesteps: Tensor
    targets: Tensor
    own: Tensor | None = None


@dataclass(frozen=True)
class _Plan:
    """All that is drawn.

    Attributes:
        prompts: The texts, the empty one ∅ first.
        drawn: Under which of them each image is drawn, the anchors' before what is kept.
        images, kept: The image of each sample, of an anchor and of what is kept.
        concepts: The text c* of each sample, shape (samples,).
        timesteps: Shape (samples,).
        start: Noise from which the images are drawn, shape (images, *latent_shape).
        noise: ε, shape (samples, *latent_shape).
    """

    prompts: list[str | None]
    drawn: Tensor
    images: Tensor
    kept: Tensor
    concepts: Tensor
    timesteps: Tensor
    start: Tensor
    noise: Tensor


@dataclass(frozen=True)
class Ablation(Eraser):
    """Concept ablation.

    A concept that names no anchor becomes what is left of its templates without it. The paper's
    anchors are what the concept is one of: "painting" for an artist, "robot" for R2D2.

    The defaults are ours: they did well on the built-in model. ``presets``: "2023" is the authors'
    code for styles and objects on Stable Diffusion, on two devices: 100 steps of 8 images, and a
    rate of 2e-6 for each of these, and its optimiser. That code draws its images by a stochastic
    sampler under prompts of a language model (1000 of 200 prompts in the paper, 200 by its first
    code's instructions), and of objects also scales, crops and flips them.

    Attributes:
        loss: ``model-based`` or ``noise-based``, as the authors call them.
        target: Whose prediction under the anchor the model-based loss is with: the frozen
            ``teacher``'s, as in the paper, which stays where it is and costs no row of a step; or
            that of the ``student`` as it is at that step, as in the authors' code.
        variant: What is trained, as ESD names it: ``x-strict``, the keys and values of cross
            attention, is the paper's choice; ``all`` is its full weights.
        layers: Of these, the layers whose names match, as file names do: ``mid_block.*``.
        iterations: Steps of Adam.
        lr: Adam's learning rate.
        weight_decay: AdamW's; 0 is Adam.
        clip: The norm that the gradient of all weights together is brought down to; None is no
            limit.
        batch_size: Samples a step.
        anchor_weight: Of the regulariser. Where the authors use it, it is 0.2 in the code of the
            paper's results and 1 in that for diffusers; for styles and objects they do not.
        keep_weight: Of the term that holds what is kept; 0 is the paper's loss.
        images: How many the frozen model draws of the anchors, and as many of what is kept.
        sampling_steps: Steps for an image.
        guidance: Scale of classifier-free guidance of the images.
        sampling_batch: Images at a time.
        expand: Whether phrases, anchors and what is kept stand in their concept's templates, or
            by themselves.
        rank: None trains the weights themselves; a number, a LoRA of that rank.
        store: ``lora``, or ``dense`` for the weights' whole change, which only unsee reads.
        residual: As ESD's.
        precision: As ESD's.
        gradient_checkpointing: Less memory, and about a third more time a step.
    """

    loss: Literal["model-based", "noise-based"] = "model-based"
    target: Literal["teacher", "student"] = "teacher"
    variant: Literal["x", "x-strict", "u", "blocks", "all"] = "x-strict"
    layers: str = "*"
    iterations: Count = 200
    lr: Positive = 1e-3
    weight_decay: NotNegative = 0.0
    clip: Positive | None = None
    batch_size: Count = 8
    anchor_weight: NotNegative = 1.0
    keep_weight: NotNegative = 1.0
    images: Count = 64
    sampling_steps: Steps = 20
    guidance: Guidance = 6.0
    sampling_batch: Count = 16
    expand: bool = True
    rank: Count | None = None
    store: Literal["lora", "dense"] = "lora"
    residual: Rest = 0.1
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    gradient_checkpointing: bool = False

    trains = True
    keep_setting = "keep_weight"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "2023": {
            "target": "student",
            "iterations": 100,
            "lr": 1.6e-5,
            "weight_decay": 0.01,
            "clip": 1.0,
            "anchor_weight": 0.0,
            "keep_weight": 0.0,
            "images": 200,
            "sampling_steps": 50,
        },
    }

    def __post_init__(self) -> None:
        check(self)
        check_store(self.rank, self.store)

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
        """As ``Eraser.fit``.

        Args:
            checkpoint: A file by which a run that was interrupted goes on, to the same weights;
                see ``train``. The images are made again. Remove it once the erasure is saved.
            watch: Called with the loss of each step.

        Raises:
            InputError: No layer is selected, there are more phrases than samples, the loss is not
                finite, or the checkpoint is of another run.
        """
        every_phrase_fits(concepts, self.iterations, self.batch_size)
        everything = self.store == "dense"
        layers = select(parts, self.variant, self.layers, everything=everything)
        denoiser: Any = parts.denoiser
        compute = precision(self.precision, denoiser.dtype)
        this = run(parts, "ablation", self, concepts, seed, layers) if checkpoint else {}
        if checkpoint:
            check_run(checkpoint, this)
        plan = self._plan(parts, concepts, seed)
        rows = 2 * self.sampling_steps * len(plan.drawn)
        rows += (1 + bool(len(plan.kept))) * len(plan.images)
        # A step goes forward and back: three times a prediction's arithmetic.
        steps = 3 * len(plan.images) * (1 + (self.anchor_weight > 0) + bool(len(plan.kept)))
        share = rows / (rows + steps)
        with frozen(denoiser, self.gradient_checkpointing):
            texts, terms = self._terms(parts, plan, compute, lambda done: progress(share * done))
            learns = student(denoiser, layers, self.rank, everything, seed)
            with learns as parameters:
                losses = train(
                    parameters,
                    lambda step: self._loss(parts, texts, terms, step, compute),
                    steps=self.iterations,
                    lr=self.lr,
                    weight_decay=self.weight_decay,
                    clip=self.clip,
                    run=this,
                    checkpoint=checkpoint,
                    progress=lambda done: progress(share + (1 - share) * done),
                    watch=watch,
                )
        return trained(parts, "ablation", self, concepts, seed, layers, parameters, losses)

    def _loss(
        self,
        parts: Parts,
        texts: Text,
        terms: Sequence[Term],
        step: int,
        compute: torch.dtype | None,
    ) -> Tensor:
        at = slice(step * self.batch_size, (step + 1) * self.batch_size)
        device = texts.first.device
        x = torch.cat([term.latents[at] for term in terms]).to(device)
        t = torch.cat([term.timesteps[at] for term in terms]).to(device)
        text = texts[torch.cat([term.texts[at] for term in terms])]
        with autocast(device, compute):
            eps = parts.predict(x, t, text).float()
        losses = []
        for term, made in zip(terms, eps.chunk(len(terms)), strict=True):
            goal = term.targets[at].to(device)
            if term.own is not None:
                x, t = term.latents[at].to(device), term.timesteps[at].to(device)
                with torch.no_grad(), autocast(device, compute):
                    goal = parts.predict(x, t, texts[term.own[at]]).float()
            losses.append(term.weight * functional.mse_loss(made, goal))
        return torch.stack(losses).sum()

    # What the student is shown

    @torch.no_grad()
    def _terms(
        self,
        parts: Parts,
        plan: _Plan,
        compute: torch.dtype | None,
        progress: Callable[[float], None],
    ) -> tuple[Text, list[Term]]:
        """The prompts, and the terms of the loss."""
        texts = encoded(parts, plan.prompts)
        device = texts.first.device
        schedule, t = parts.schedule(self.sampling_steps), plan.timesteps
        with autocast(device, compute):
            images = self._images(parts, plan, texts, progress)

            def noised(of: Tensor) -> Tensor:
                return schedule.noised(images[of], plan.noise, t)

            def teacher(latents: Tensor, prompts: Tensor) -> Tensor:
                """ε* for each sample, on the CPU."""
                found = []
                for start in range(0, len(latents), self.sampling_batch):
                    at = slice(start, start + self.sampling_batch)
                    x, times = latents[at].to(device), t[at].to(device)
                    found.append(parts.predict(x, times, texts[prompts[at]]))
                return torch.cat(found).float().cpu()

            x, anchors = noised(plan.images), plan.drawn[plan.images]
            truth = schedule.truth(images[plan.images], plan.noise, t)
            if self.loss == "noise-based":
                terms = [Term(1.0, plan.concepts, x, t, truth)]
            elif self.target == "teacher":
                terms = [Term(1.0, plan.concepts, x, t, teacher(x, anchors))]
            else:
                terms = [Term(1.0, plan.concepts, x, t, truth, own=anchors)]
            if self.anchor_weight > 0:
                terms.append(Term(self.anchor_weight, anchors, x, t, truth))
            if len(plan.kept):
                x, kept = noised(plan.kept), plan.drawn[plan.kept]
                terms.append(Term(self.keep_weight, kept, x, t, teacher(x, kept)))
        progress(1.0)
        return texts, terms

    def _images(
        self, parts: Parts, plan: _Plan, texts: Text, progress: Callable[[float], None]
    ) -> Tensor:
        """The frozen model's latents, shape (images, *latent_shape), on the CPU."""
        images = []
        schedule = parts.schedule(self.sampling_steps)
        for start in range(0, len(plan.drawn), self.sampling_batch):
            batch = slice(start, start + self.sampling_batch)
            drawn = plan.drawn[batch]
            text = texts[torch.cat([torch.zeros_like(drawn), drawn])]
            x = plan.start[batch].to(texts.first.device) * schedule.start
            for i, t in enumerate(schedule.times):
                empty, prompt = parts.predict(torch.cat([x, x]), t, text).float().chunk(2)
                x = schedule.step(i, parts.combine(empty, prompt, self.guidance), x)
            images.append(x.cpu())
            progress(0.9 * min(1.0, batch.stop / len(plan.drawn)))
        return torch.cat(images)

    def _plan(self, parts: Parts, concepts: Sequence[Concept], seed: int) -> _Plan:
        samples = self.iterations * self.batch_size
        # Noise first: it does not change with what is erased.
        draw = torch.Generator().manual_seed(seed)
        noise = torch.randn((samples, *parts.latent_shape()), generator=draw)
        timesteps = torch.randint(SPAN, (samples,), generator=draw)

        prompts: dict[str | None, int] = {None: 0}

        def index(template: str, phrase: str) -> int:
            # No words at all are ∅.
            return prompts.setdefault(template.replace("{}", phrase) or None, len(prompts))

        # A concept without an image would not be erased.
        count = max(min(self.images, samples), len(concepts))
        templates = [self._templates(concept, draw) for concept in concepts]
        images = []
        for i in range(count):
            place, own = i // len(concepts), templates[i % len(concepts)]
            images.append((concepts[i % len(concepts)], own[place % len(own)]))
        drawn = [index(template, concept.anchor or "") for concept, template in images]
        order = self._turns(count, samples, draw)
        shown: Counter[tuple[str, ...]] = Counter()

        def rarest(concept: Concept, template: str) -> str:
            """The phrase that came least often, and of these least often in this template."""
            name = concept.name
            phrase = min(concept.phrases, key=lambda p: (shown[name, p], shown[name, p, template]))
            shown.update([(name, phrase), (name, phrase, template)])
            return phrase

        goes = []
        for i in order.tolist():
            concept, template = images[i]
            goes.append(index(template, rarest(concept, template)))

        keeps = [
            (template, phrase)
            for concept, own in zip(concepts, templates, strict=True)
            for template in own
            for phrase in concept.keep
        ]
        kept = torch.empty(0, dtype=torch.long)
        if keeps and self.keep_weight > 0:
            more = min(self.images, samples)
            which = torch.randint(len(keeps), (more,), generator=draw).tolist()
            drawn += [index(*keeps[i]) for i in which]
            kept = count + self._turns(more, samples, draw)
        start = torch.randn((len(drawn), *parts.latent_shape()), generator=draw)
        return _Plan(
            prompts=list(prompts),
            drawn=torch.tensor(drawn),
            images=order,
            kept=kept,
            concepts=torch.tensor(goes),
            timesteps=timesteps,
            start=start,
            noise=noise,
        )

    def _templates(self, concept: Concept, draw: torch.Generator) -> list[str]:
        if not self.expand:
            return ["{}"]
        order = torch.randperm(len(concept.templates), generator=draw).tolist()
        return [concept.templates[i] for i in order]

    @staticmethod
    def _turns(count: int, samples: int, draw: torch.Generator) -> Tensor:
        """Each of so many in turn, in an order drawn anew each time round, shape (samples,)."""
        rounds = -(-samples // count)
        return torch.cat([torch.randperm(count, generator=draw) for _ in range(rounds)])[:samples]
