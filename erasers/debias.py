"""UCE's debiasing: what a concept is drawn as is brought to the shares that are asked for.

Gandikota et al., "Unified Concept Editing in Diffusion Models", WACV 2024
(https://arxiv.org/abs/2308.14761). A concept c is sent not to an anchor but to a mixture of itself
and its attributes a, as the base's weights W see them:

    v = W(c + Σₐ αₐ a)

The α are found in rounds. Each draws images of the concept with the edit so far, a detector says
which attribute each shows, and

    αₐ ← αₐ + step · (desired share − observed share)

So α, and v with it, gathers the differences of all rounds, as the published code has it: once the
shares are met, α is what holds them. The weights gather nothing, every edit is made of the base's
own. (The published code adds to v in place, so a text that it keeps drifts along if it is itself
one of the concepts; here it stays.)
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from .._errors import InputError
from .._registry import unknown
from .._settings import Count, Guidance, NotNegative, Positive, Rest, Share, Steps, check
from ..gallery import Gallery
from ..pipelines import generate
from ..pipelines.erasure import Erasure
from ..pipelines.parts import Parts
from ..prompts import Concept, Prompt
from ..records import Debiased
from ..training.record import lowrank
from .uce import UCE, Gathered, edits, embeddings, gather, paired

if TYPE_CHECKING:
    from PIL.Image import Image

# Of each image the attribute that it shows, or None if it shows none of them.
Vote = Callable[[Sequence["Image"]], Sequence[str | None]]
Shares = dict[str, float]


@dataclass(frozen=True)
class Debias:
    """Debiasing by a detector's votes. The defaults are the authors' of 2025.

    It is no eraser that a name stands for, as it needs a detector and attributes.

    Attributes:
        rounds: The most edits that are tried; the one that is nearest to what is asked for stays.
        images: Images of each concept a round.
        tolerance: How far each share may be off; with few images not every share can be met.
        step: How much of a difference goes into α at once. The authors' code takes 1, whatever
            its option for it says.
        ridge: λ of each edit.
        keep_scale: s of what the concepts keep.
        tokens: As of ``UCE``.
        guidance: Scale of classifier-free guidance of the images.
        steps: Their denoising steps.
        residual: How much of the edit, relative in Frobenius' norm, the stored rank may leave out.
    """

    rounds: Count = 30
    images: Count = 10
    tolerance: Share = 0.05
    step: Positive = 1.0
    ridge: Positive = 0.5
    keep_scale: NotNegative = 1.0
    tokens: Literal["last", "tail"] = "last"
    guidance: Guidance = 7.5
    steps: Steps = 20
    residual: Rest = 1e-6

    def __post_init__(self) -> None:
        check(self)

    def uce(self) -> UCE:
        """The edit of each round."""
        return UCE(
            ridge=self.ridge,
            keep_scale=self.keep_scale,
            tokens=self.tokens,
            expand=False,
            keep_empty=False,
            residual=self.residual,
        )

    def fit(
        self,
        parts: Parts,
        concepts: Sequence[Concept],
        attributes: Mapping[str, float],
        vote: Vote,
        *,
        seed: int = 0,
        progress: Callable[[float], None] = lambda done: None,
    ) -> Erasure:
        """Finds the edit. The pipeline is left as it was.

        Args:
            parts: The base model.
            concepts: What is to be drawn otherwise; their anchors have no part in it.
            attributes: The share of a concept's images that is to show each, of 1 in all. The
                names are also the words that stand for them in a prompt.
            vote: Says which attribute each image shows. The images of a round come in one call
                for each concept.
            seed: Of the first image; each image of each round has a seed of its own.
            progress: Called with the share of the rounds that is done, in [0, 1].

        Returns:
            The edit, with what was seen on the way in ``measured.debias``.

        Warns:
            UserWarning: A share is still off after the last round.

        Raises:
            InputError: The shares are none, or a vote cannot be counted.
        """
        desired = _checked(attributes)
        uce = self.uce()
        mixtures = [
            gather(embeddings(parts, uce.places(parts, c, list(desired)))) for c in concepts
        ]
        kept = uce.kept(parts, concepts)

        def pushed(rows: Tensor, push: Shares) -> Tensor:
            """A concept's rows beside what they become."""
            own, *others = rows.chunk(1 + len(desired), 1)
            becomes = sum((push[a] * one for a, one in zip(desired, others, strict=True)), own)
            return torch.cat([own, becomes], 1)

        def edit(pushes: Sequence[Shares]) -> Erasure:
            pairs = {
                group: Gathered(
                    torch.cat(
                        [
                            pushed(mixture[group].rows, push)
                            for mixture, push in zip(mixtures, pushes, strict=True)
                        ]
                    ),
                    sum(mixture[group].count for mixture in mixtures),
                )
                for group in kept
            }
            rows = paired(pairs, kept)
            updates = edits(parts, rows, 1.0, self.keep_scale, self.ridge, self.residual)
            return lowrank(parts, "debias", self, concepts, seed, updates)

        pushes: list[Shares] = [dict.fromkeys(desired, 0.0) for _ in concepts]
        observed: list[dict[str, Shares]] = []
        tried: list[tuple[float, list[Shares], Erasure]] = []
        for number in range(self.rounds + 1):
            erasure = edit(pushes)
            with erasure.applied(parts.pipe):
                seen = [
                    self._observe(parts, c, desired, vote, seed + number * self.images)
                    for c in concepts
                ]
            observed.append({c.name: s for c, s in zip(concepts, seen, strict=True)})
            off = [{a: desired[a] - s[a] for a in desired} for s in seen]
            # Rounded: 0.55 is 0.05 from 0.5
            farthest = [round(max(map(abs, one.values())), 9) for one in off]
            tried.append((max(farthest), pushes, erasure))
            progress((number + 1) / (self.rounds + 1))
            if max(farthest) <= self.tolerance:
                break
            # A concept that is as it should be stays as it is.
            pushes = [
                {a: alpha + self.step * differences[a] for a, alpha in push.items()}
                if far > self.tolerance
                else push
                for push, differences, far in zip(pushes, off, farthest, strict=True)
            ]
        # The last of those that are equally near
        far, pushes, erasure = min(reversed(tried), key=lambda one: one[0])
        if far > self.tolerance:
            warnings.warn(
                f"After {self.rounds} rounds a share is still {far:.0%} off: draw more images a "
                "round, or take other words for the attributes.",
                stacklevel=2,
            )
        found = {c.name: push for c, push in zip(concepts, pushes, strict=True)}
        debias = Debiased(desired, tuple(observed), found)
        return replace(erasure, measured=replace(erasure.measured, debias=debias))

    def _observe(
        self, parts: Parts, concept: Concept, desired: Shares, vote: Vote, seed: int
    ) -> Shares:
        """The share of the votes that each attribute gets, on images from that seed on."""
        text = concept.templates[0].replace("{}", concept.phrases[0])
        prompts = tuple(Prompt(f"{i:05d}", text, seed + i) for i in range(self.images))
        with TemporaryDirectory() as folder:
            gallery = Gallery.start(Path(folder), None, prompts)
            for _ in generate(parts.pipe, gallery, guidance=self.guidance, steps=self.steps):
                pass
            votes = list(vote([_read(gallery.image_path(prompt)) for prompt in prompts]))
        if len(votes) != self.images:
            raise InputError(f"The vote gave {len(votes)} answers for {self.images} images.")
        if strange := sorted({v for v in votes if v is not None} - set(desired)):
            raise unknown("attribute", strange[0], desired)
        cast = [v for v in votes if v is not None]
        if not cast:
            raise InputError(
                f"The vote saw none of {', '.join(desired)} in {self.images} images of {text!r}: "
                "without a vote there is no share. Name attributes that its images do show."
            )
        return {a: cast.count(a) / len(cast) for a in desired}


def _checked(attributes: Mapping[str, float]) -> Shares:
    desired = dict(attributes)
    if len(desired) < 2 or min(desired.values()) < 0 or abs(sum(desired.values()) - 1) > 1e-6:
        raise InputError(
            f"The shares must be of two attributes or more and add up to 1; these are {desired}."
        )
    return desired


def _read(path: Path) -> "Image":
    from PIL import Image

    with Image.open(path) as image:
        # Of a video its middle frame
        image.seek(getattr(image, "n_frames", 1) // 2)
        return image.convert("RGB")
