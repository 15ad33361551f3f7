"""ESD: erased stable diffusion, trained against the model's own guidance.

Gandikota et al., "Erasing Concepts from Diffusion Models", ICCV 2023
(https://arxiv.org/abs/2303.07345). With ε* the frozen model, c the concept, ∅ the empty prompt
and a the anchor (∅ where a concept names none), the student ε_θ learns

    ‖ε_θ(x_t, c) − [ε*(x_t, a) − η(ε*(x_t, c) − ε*(x_t, ∅))]‖²

at points x_t of trajectories that the frozen model itself takes under the concept, with
classifier-free guidance, from noise to a step drawn uniformly. At η = 0 the concept becomes its
anchor; above, it is pushed beyond.

Everything but ε_θ comes from the frozen model, so it is made first, many trajectories at a time,
and of each all points are used: its own two halves of guidance are ε*(x_t, c) and ε*(x_t, ∅), and
a third row is needed only where the anchor is another prompt than ∅. That is 2 or 3 rows of the
denoiser a sample and one for the student, where a trajectory for each sample takes about 50. (With
``erase_from``, c is what the concept is taken from, and the concept itself is one row more.)

A term of our own holds the student at the same points to the teacher on prompts k that are kept,
‖ε_θ(x_t, k) − ε*(x_t, k)‖², for one row more on either side.

What is known to undo it: in UnlearnDiffAtk's benchmark (https://arxiv.org/abs/2310.11868) its
attack brings nudity back by 76.1 % of the prompts, 20.4 % without it, and a parachute by 54 %, 4 %
without it.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from .._errors import InputError
from .._settings import Count, Guidance, NotNegative, Positive, Rest, Steps, Whole, check
from ..pipelines.erasure import Erasure
from ..pipelines.parts import Parts
from ..pipelines.text import Text
from ..prompts import Concept
from ..training.loop import check_run, check_schedule, every_phrase_fits, train
from ..training.record import run, trained
from ..training.student import autocast, check_store, encoded, frozen, precision, select, student
from . import Eraser


def target(concept: Tensor, empty: Tensor, anchor: Tensor, eta: float) -> Tensor:
    """ε*(x_t, a) − η(ε*(x_t, c) − ε*(x_t, ∅)), which the student is to predict under c."""
    return anchor - eta * (concept - empty)


@dataclass(frozen=True)
class Samples:
    """What the student is shown, one a row, on the CPU.

    Attributes:
        texts: Every prompt's, on the model's device.
        latents: x_t, shape (n, *latent_shape).
        timesteps: t, shape (n,).
        reads: Which of the texts the student reads, shape (n,).
        targets: Shape (n, *latent_shape).
        keeps: Which of the texts k is, shape (n,); empty where nothing is kept.
        keep_targets: ε*(x_t, k), shape (n, *latent_shape); empty where nothing is kept.
    """

    texts: Text
    latents: Tensor
    timesteps: Tensor
    reads: Tensor
    targets: Tensor
    keeps: Tensor
    keep_targets: Tensor


@dataclass(frozen=True)
class _Plan:
    """All that is drawn: of each trajectory its prompts and noise, and which points are used.

    Attributes:
        prompts: The texts, the empty one ∅ first.
        reads, concepts, anchors: Which of them, shape (trajectories,). The trajectory is made
            under what the student reads, which is the concept where ``erase_from`` is None.
        noise: Shape (trajectories, *latent_shape).
        points: Trajectory and step of each sample, shape (samples, 2).
        keeps: Which of the prompts is held at each sample, shape (samples,); or empty.
    """

    prompts: list[str | None]
    reads: Tensor
    concepts: Tensor
    anchors: Tensor
    noise: Tensor
    points: Tensor
    keeps: Tensor


@dataclass(frozen=True)
class ESD(Eraser):
    """Erased stable diffusion.

    What is trained are the weights of the selected linear layers and convolutions. Norms and
    biases, which a LoRA cannot hold, are trained too if ``store`` is "dense", and else are not.

    ``presets``: "2025" is the authors' code of that year for Stable Diffusion. Its target is
    ε*(a) − 2(ε*(c) − ε*(∅)), where a is ``erase_from`` or else the concept itself; so its own η of
    2 is the paper's η + 1, but with ``erase_from`` the paper's. That code samples with the
    pipeline's own scheduler (PNDM, whose timesteps are from the third on those of one step
    before) where DDIM does here, and trains biases, which here ``store`` "dense" alone does, and
    never norms. "2023" is the first code's rate and length; that code drew x_t from the model
    being edited and t from around the step. "leco" is LECO's configuration and optimiser; that
    code draws x_t from the model with the LoRA, takes at least one step to it, and predicts at a
    timestep of a grid of 1000, up to a step's width above x_t's own.

    Of a model that predicts v, the loss is in v, as the authors' and LECO's is.

    Attributes:
        variant: What is trained: ``x``, the attention in which image and text meet;
            ``x-strict``, of it what reads the text, the keys and values; ``u``, everything
            else; ``blocks``, the transformer blocks; ``all``.
        layers: Of these, the layers whose names match, as file names do: ``mid_block.*``.
        eta: The paper's η. None is what the authors' code of 2025 comes to: 1, and 2 with
            ``erase_from``.
        against: What the concept's prediction is compared with in the target: the ``empty``
            prompt's, as in the paper; or the ``anchor``'s, ε*(a) − η(ε*(c) − ε*(a)), as in SPM's.
        erase_from: Another prompt that the concepts are taken from, in the authors' words: it is
            what the student reads and what the trajectories are made under, and the anchor of a
            concept that names none. The concept by itself is then hardly touched. None is the
            concept.
        iterations: Steps of Adam.
        lr: Adam's learning rate.
        weight_decay: AdamW's; 0 is Adam.
        warmup: Steps in which the rate rises from 0 to ``lr``.
        cycles: How many times the rate then falls to 0 by a cosine; 0 is never.
        batch_size: Samples a step.
        sampling: ``batched``, all points of whole trajectories, shuffled; or ``reference``, the
            authors' way: for each sample a trajectory of its own as far as a step drawn, and the
            targets by three more predictions there.
        sampling_steps: Steps of a whole trajectory.
        guidance: Scale of classifier-free guidance of the trajectories.
        sampling_batch: Trajectories at a time.
        keep_weight: Of the term that holds what is kept; 0 is the paper's loss.
        expand: Whether phrases, anchors and what is kept stand in their concept's templates, or
            by themselves; so does ``erase_from``. A concept that names no anchor becomes ∅
            either way.
        rank: None trains the weights themselves; a number, a LoRA of that rank.
        alpha: A LoRA learns at the scale alpha / rank, which is multiplied into the file. None is
            the rank, for a scale of 1.
        store: ``lora``, or ``dense`` for the weights' whole change, which only unsee reads.
        residual: How much of the change, relative in Frobenius' norm, the stored rank may leave
            out where the weights themselves were trained. What it left out is in the record.
        precision: ``float32`` or ``bfloat16`` by autocast; ``auto`` is the model's, bfloat16 for
            any half. What learns is float32 in any case.
        gradient_checkpointing: Less memory, and about a third more time a step.
    """

    variant: Literal["x", "x-strict", "u", "blocks", "all"] = "x"
    layers: str = "*"
    eta: float | None = 1.0
    against: Literal["empty", "anchor"] = "empty"
    erase_from: str | None = None
    iterations: Count = 200
    lr: Positive = 5e-5
    weight_decay: NotNegative = 0.0
    warmup: Whole = 0
    cycles: Whole = 0
    batch_size: Count = 1
    sampling: Literal["batched", "reference"] = "batched"
    sampling_steps: Steps = 20
    guidance: Guidance = 3.0
    sampling_batch: Count = 4
    keep_weight: NotNegative = 1.0
    expand: bool = True
    rank: Count | None = None
    alpha: Positive | None = None
    store: Literal["lora", "dense"] = "lora"
    residual: Rest = 0.1
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    gradient_checkpointing: bool = False

    trains = True
    keep_setting = "keep_weight"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "2025": {
            "eta": None,
            "sampling": "reference",
            "sampling_steps": 50,
            "keep_weight": 0.0,
            "expand": False,
        },
        "2023": {
            "iterations": 1000,
            "lr": 1e-5,
            "sampling": "reference",
            "sampling_steps": 50,
            "keep_weight": 0.0,
            "expand": False,
        },
        "leco": {
            "variant": "blocks",
            "iterations": 500,
            "lr": 1e-4,
            "weight_decay": 0.01,
            "sampling": "reference",
            "sampling_steps": 50,
            "keep_weight": 0.0,
            "expand": False,
            "rank": 4,
            "alpha": 1.0,
        },
    }

    def __post_init__(self) -> None:
        check(self)
        check_store(self.rank, self.store)
        if self.alpha is not None and self.rank is None:
            raise InputError(f"alpha is {self.alpha} and rank is none: alpha is a LoRA's.")
        check_schedule(self.iterations, self.warmup)
        if self.eta is None:
            object.__setattr__(self, "eta", 1.0 if self.erase_from is None else 2.0)

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
                see ``train``. The trajectories are made again. Remove it once the erasure is
                saved.
            watch: Called with the loss of each step.

        Raises:
            InputError: No layer is selected, there are more phrases than samples, ``erase_from``
                is to be kept, the loss is not finite, or the checkpoint is of another run.
        """
        every_phrase_fits(concepts, self.iterations, self.batch_size)
        if any(self.erase_from in concept.keep for concept in concepts):
            raise InputError(
                f"erase_from is {self.erase_from!r}, which is to be kept: take it from the one or "
                "the other."
            )
        everything = self.store == "dense"
        layers = select(parts, self.variant, self.layers, everything=everything)
        denoiser: Any = parts.denoiser
        compute = precision(self.precision, denoiser.dtype)
        this = run(parts, "esd", self, concepts, seed, layers) if checkpoint else {}
        if checkpoint:
            check_run(checkpoint, this)
        # A step goes forward and back: three times a prediction's arithmetic.
        share = self._teacher_rows(concepts)
        share /= share + 3 * (1 + self._keeps(concepts))
        with frozen(denoiser, self.gradient_checkpointing):
            samples = self._samples(
                parts, concepts, seed, compute, lambda done: progress(share * done)
            )
            learns = student(denoiser, layers, self.rank, everything, seed, self.alpha)
            with learns as parameters:
                losses = train(
                    parameters,
                    lambda step: self._loss(parts, samples, step, compute),
                    steps=self.iterations,
                    lr=self.lr,
                    weight_decay=self.weight_decay,
                    warmup=self.warmup,
                    cycles=self.cycles,
                    run=this,
                    checkpoint=checkpoint,
                    progress=lambda done: progress(share + (1 - share) * done),
                    watch=watch,
                )
        scale = 1.0 if self.rank is None or self.alpha is None else self.alpha / self.rank
        return trained(parts, "esd", self, concepts, seed, layers, parameters, losses, scale)

    def _loss(
        self,
        parts: Parts,
        samples: Samples,
        step: int,
        compute: torch.dtype | None,
    ) -> Tensor:
        at = slice(step * self.batch_size, (step + 1) * self.batch_size)
        device = samples.texts.first.device
        x, t = samples.latents[at].to(device), samples.timesteps[at].to(device)
        texts = samples.texts[samples.reads[at]]
        keeps = samples.texts[samples.keeps[at]]
        if len(keeps):
            x, t, texts = torch.cat([x, x]), torch.cat([t, t]), Text.cat([texts, keeps])
        with autocast(device, compute):
            eps = parts.predict(x, t, texts).float()
        goal = samples.targets[at].to(device)
        loss = functional.mse_loss(eps[: len(goal)], goal)
        if len(keeps):
            held = samples.keep_targets[at].to(device)
            loss = loss + self.keep_weight * functional.mse_loss(eps[len(goal) :], held)
        return loss

    # What the student is shown

    def _samples(
        self,
        parts: Parts,
        concepts: Sequence[Concept],
        seed: int,
        compute: torch.dtype | None,
        progress: Callable[[float], None],
    ) -> Samples:
        plan = self._plan(parts, concepts, seed)
        texts = encoded(parts, plan.prompts)
        make = self._batched if self.sampling == "batched" else self._reference
        count = len(plan.points)
        shape = plan.noise.shape[1:]
        times = torch.empty(count, dtype=parts.schedule(self.sampling_steps).times.dtype)
        latents, targets, held = (torch.empty(count, *shape) for _ in range(3))
        with torch.no_grad(), autocast(texts.first.device, compute):
            for done, (sample, t, x, goal, keep) in enumerate(make(parts, plan, texts)):
                times[sample], latents[sample], targets[sample] = t, x, goal
                if keep is not None:
                    held[sample] = keep
                progress((done + 1) / count)
        return Samples(
            texts=texts,
            latents=latents,
            timesteps=times,
            reads=plan.reads[plan.points[:, 0]],
            targets=targets,
            keeps=plan.keeps,
            keep_targets=held[: len(plan.keeps)],
        )

    def _plan(self, parts: Parts, concepts: Sequence[Concept], seed: int) -> _Plan:
        samples, steps = self.iterations * self.batch_size, self.sampling_steps
        # Noise and points first: they do not change with what is erased.
        draw = torch.Generator().manual_seed(seed)
        trajectories = samples
        if self.sampling == "batched":
            # A phrase without a trajectory would not be erased.
            phrases = sum(len(concept.phrases) for concept in concepts)
            trajectories = max(math.ceil(samples / steps), phrases)
        noise = torch.randn((trajectories, *parts.latent_shape()), generator=draw)
        if self.sampling == "batched":
            # Trajectories take turns, each with another of its points; so every one is used.
            rounds = math.ceil(samples / trajectories)
            order = [torch.randperm(trajectories, generator=draw) for _ in range(rounds)]
            own = torch.rand(trajectories, steps, generator=draw).argsort(1)
            points = torch.cat([torch.stack([i, own[i, k]], 1) for k, i in enumerate(order)])
            points = points[:samples]
        else:
            drawn = torch.randint(steps, (samples,), generator=draw)
            points = torch.stack([torch.arange(samples), drawn], 1)

        prompts: dict[str | None, int] = {None: 0}

        def index(text: str) -> int:
            # No words at all are ∅.
            return prompts.setdefault(text or None, len(prompts))

        turns = [
            (phrase, concept.anchor, self._templates(concept, draw))
            for concept in concepts
            for phrase in concept.phrases
        ]
        rows = []
        for i in range(trajectories):
            phrase, anchor, templates = turns[i % len(turns)]
            template = templates[i // len(turns) % len(templates)]
            reads = phrase if self.erase_from is None else self.erase_from
            comes = self.erase_from if anchor is None else anchor
            becomes = "" if comes is None else template.replace("{}", comes)
            both = (template.replace("{}", text) for text in (reads, phrase))
            rows.append([index(text) for text in (*both, becomes)])
        kept = [
            template.replace("{}", phrase)
            for concept in concepts
            for template in (concept.templates if self.expand else ("{}",))
            for phrase in concept.keep
        ]
        keeps = []
        if self._keeps(concepts):
            for i in torch.randint(len(kept), (samples,), generator=draw).tolist():
                keeps.append(index(kept[i]))
        read, goes, comes = torch.tensor(rows).T
        held = torch.tensor(keeps).long()
        return _Plan(list(prompts), read, goes, comes, noise, points, held)

    def _templates(self, concept: Concept, draw: torch.Generator) -> list[str]:
        if not self.expand:
            return ["{}"]
        order = torch.randperm(len(concept.templates), generator=draw).tolist()
        return [concept.templates[i] for i in order]

    def _batched(self, parts: Parts, plan: _Plan, texts: Text) -> "Iterator[_Sample]":
        """The samples, trajectory by trajectory, several at a time."""
        schedule = parts.schedule(self.sampling_steps)
        used = {(i, k): n for n, (i, k) in enumerate(plan.points.tolist())}
        for start in range(0, len(plan.noise), self.sampling_batch):
            batch = torch.arange(start, min(start + self.sampling_batch, len(plan.noise)))
            x = plan.noise[batch].to(texts.first.device) * schedule.start
            reads = plan.reads[batch]
            teacher = [torch.zeros_like(reads), reads]
            # What is the same text in the whole batch is predicted once.
            concept_row = _row(teacher, plan.concepts[batch])
            anchor_row = _row(teacher, plan.anchors[batch])
            for k, t in enumerate(schedule.times):
                rows = list(teacher)
                samples = [used.get((i, k)) for i in batch.tolist()]
                if len(plan.keeps):
                    rows.append(torch.tensor([0 if n is None else plan.keeps[n] for n in samples]))
                repeated = x.repeat(len(rows), *(1 for _ in x.shape[1:]))
                predicted = parts.predict(repeated, t, texts[torch.cat(rows)]).float()
                eps = predicted.chunk(len(rows))
                empty, read, *_ = eps
                goal = self._target(eps[concept_row], empty, eps[anchor_row])
                for row, n in enumerate(samples):
                    if n is not None:
                        keep = eps[-1][row] if len(plan.keeps) else None
                        yield n, t, x[row], goal[row], keep
                x = schedule.step(k, parts.combine(empty, read, self.guidance), x)

    def _reference(self, parts: Parts, plan: _Plan, texts: Text) -> "Iterator[_Sample]":
        """The samples one by one, each at the end of a trajectory of its own."""
        schedule = parts.schedule(self.sampling_steps)
        for n, (i, k) in enumerate(plan.points.tolist()):
            reads, goes, comes = (
                texts[which[i, None]] for which in (plan.reads, plan.concepts, plan.anchors)
            )
            nothing = texts[:1]
            x = plan.noise[i : i + 1].to(texts.first.device) * schedule.start
            for before, t in enumerate(schedule.times[:k]):
                both = Text.cat([nothing, reads])
                empty, read = parts.predict(torch.cat([x, x]), t, both).float().chunk(2)
                x = schedule.step(before, parts.combine(empty, read, self.guidance), x)
            t = schedule.times[k]
            concept, empty, anchor = (
                parts.predict(x, t, text).float() for text in (goes, nothing, comes)
            )
            keep = None
            if len(plan.keeps):
                keep = parts.predict(x, t, texts[plan.keeps[n, None]]).float()[0]
            yield n, t, x[0], self._target(concept, empty, anchor)[0], keep

    def _target(self, concept: Tensor, empty: Tensor, anchor: Tensor) -> Tensor:
        assert self.eta is not None  # which __post_init__ leaves to none
        against = empty if self.against == "empty" else anchor
        return target(concept, against, anchor, self.eta)

    def _keeps(self, concepts: Sequence[Concept]) -> bool:
        return self.keep_weight > 0 and any(concept.keep for concept in concepts)

    def _teacher_rows(self, concepts: Sequence[Concept]) -> float:
        """Rows of the frozen denoiser a sample, about."""
        if self.sampling == "reference":
            return 2 * (self.sampling_steps - 1) / 2 + 3 + self._keeps(concepts)
        anchored = any(concept.anchor is not None for concept in concepts)
        return 2 + anchored + (self.erase_from is not None) + self._keeps(concepts)


# A sample's place, its t, x_t, target, and ε*(x_t, k) where something is kept.
_Sample = tuple[int, Tensor, Tensor, Tensor, Tensor | None]


def _row(rows: list[Tensor], texts: Tensor) -> int:
    """Where these texts are among the rows; put there if they were not."""
    for place, row in enumerate(rows):
        if torch.equal(row, texts):
            return place
    rows.append(texts)
    return len(rows) - 1
