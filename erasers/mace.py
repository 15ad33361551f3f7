"""MACE's closed form: the refinement of cross attention, and the fusion of many concepts.

Lu et al., "MACE: Mass Concept Erasure in Diffusion Models", CVPR 2024
(https://arxiv.org/abs/2403.06135). A concept leaves traces in the words that stand beside it, and
in the padding. So it is put into some thirty prompts, with embeddings f of their words, and its
anchor into the same prompts, g. Each concept i has weights Wᵢ of its own, which have the least

    Σⱼ ‖Wᵢfᵢⱼ − W gᵢⱼ‖² + tr (Wᵢ − W) P (Wᵢ − W)ᵀ + λ‖Wᵢ − W‖²

where P, the prior, is the weighted second moment of what is kept: captions of everyday things, and
what the concepts themselves keep. The fusion's W′ does to each concept's words what its Wᵢ does:

    Σᵢⱼ ‖W′fᵢⱼ − Wᵢfᵢⱼ‖² + tr (W′ − W) P (W′ − W)ᵀ + λ‖W′ − W‖²

Both have UCE's form with P for what it keeps, so Wᵢ = W Mᵢ and W′ = W M with matrices that all
layers share, and one d × d matrix P serves them all.

Between the two the paper trains a LoRA of rank 1 a concept, which suppresses the attention that
the phrase's own tokens draw inside a mask of the concept. That is not here: no image is made, and
nothing is trained. So the phrase's own tokens are mapped as well, which the paper leaves to the
LoRA (``tokens``), and the results are not those of the whole method.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, cast

import torch
import yaml
from torch import Tensor

from .._registry import unknown
from .._settings import NotNegative, Positive, Range, Rest, check
from ..pipelines.erasure import Erasure
from ..pipelines.parts import Parts
from ..prompts import CONCEPTS, Concept
from .record import lowrank
from .uce import Place, Rows, embeddings, fits, fitting, gather, place, thin, times

# What a kind becomes where its concept names no anchor; others become nothing.
ANCHORS = {"style": "art", "person": "a person"}

_STYLES = (
    "a painting by {}",
    "art by {}",
    "a picture in the style of {}",
    "a landscape by {}",
    "a portrait by {}",
)
_THINGS = (
    "a photo of {}",
    "an image of {}",
    "a picture of {}",
    "a painting of {}",
    "a drawing of {}",
)
_ENDINGS = (
    "",
    " at night",
    " in bright colours",
    " in black and white",
    " with a plain background",
    " hanging on the wall of a room",
)


@dataclass(frozen=True)
class MACE:
    """The closed form of mass concept erasure.

    Attributes:
        ridge: λ, how strongly the weights stay where they are. The authors take 10 to 1000 for
            objects; for people, styles and nudity 0, with the prior alone to hold the weights.
        keep_scale: The weight in P of each token of what concepts keep, and of the empty prompt.
        prior_scale: The weight in P of each token of the captions. The authors' prior is of
            MS-COCO's captions, so their weights for it (1e-4 for people and styles, 7e-7 for
            nudity, none for objects) mean nothing here.
        captions: The name of a set in ``prompts/captions.yaml``, of which those that the tokenizer
            would cut are left out.
        prompts: How many prompts a phrase is put into: its concept's templates, and ours for its
            kind as far as they are needed and have room. The authors take 30.
        tokens: Which tokens of a prompt are mapped: ``all``, or those ``around`` the phrase, as in
            the paper.
        residual: How much of the edit, relative in Frobenius' norm, the stored rank may leave out.
    """

    ridge: Positive = 10.0
    keep_scale: NotNegative = 0.05
    prior_scale: NotNegative = 0.01
    captions: str = "general"
    prompts: Annotated[int, Range(least=0, most=10_000)] = 30
    tokens: Literal["all", "around"] = "all"
    residual: Rest = 0.02

    text_only: ClassVar[bool] = True
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "object": {"ridge": 1000.0, "keep_scale": 0.0, "prior_scale": 0.0, "residual": 1e-6},
    }

    def __post_init__(self) -> None:
        check(self)
        if self.captions not in captions():
            raise unknown("set of captions", self.captions, captions())

    def fit(
        self,
        parts: Parts,
        concepts: Sequence[Concept],
        *,
        seed: int = 0,
        progress: Callable[[float], None] = lambda done: None,
    ) -> Erasure:
        left, right = self.solve(parts, concepts, progress)
        updates = times(parts, *thin(left, right, self.residual))
        progress(1.0)
        return lowrank(parts, "mace", self, concepts, seed, updates)

    def solve(
        self,
        parts: Parts,
        concepts: Sequence[Concept],
        progress: Callable[[float], None] = lambda done: None,
    ) -> tuple[Tensor, Tensor]:
        """The factors of M − I, shapes (d, rows) and (rows, d), float64."""
        concepts = [_anchored(concept) for concept in concepts]
        pairs = [self._pairs(parts, concept) for concept in concepts]
        kept = self.prior(parts, concepts)

        def fused() -> Iterator[Tensor]:
            for done, prompts in enumerate(pairs, 1):
                rows = gather(embeddings(parts, prompts))
                if len(pairs) > 1:
                    sources, targets = rows.chunk(2, dim=1)
                    left, right = Rows(sources, targets, kept).solve(1.0, 1.0, self.ridge)
                    rows = torch.cat([sources, sources + (sources @ right.T) @ left.T], dim=1)
                yield rows
                progress(done / (len(pairs) + 1))

        sources, targets = gather(fused()).chunk(2, dim=1)
        return Rows(sources, targets, kept).solve(1.0, 1.0, self.ridge)

    def prior(self, parts: Parts, concepts: Sequence[Concept]) -> Tensor:
        """Rows, each (d,), float64, whose second moment is P."""
        texts = {""}
        for concept in concepts:
            texts |= {t.replace("{}", words) for t in concept.templates for words in concept.keep}
        general = [text for text in captions()[self.captions] if fits(parts, text)]

        def weighted(texts: Sequence[str], scale: float) -> Iterator[Tensor]:
            for rows in embeddings(parts, [((text, slice(None)),) for text in texts]):
                yield scale**0.5 * rows

        return gather(
            rows
            for some, scale in ((sorted(texts), self.keep_scale), (general, self.prior_scale))
            for rows in weighted(some, scale)
        )

    def _pairs(self, parts: Parts, concept: Concept) -> list[tuple[Place, Place]]:
        """A concept's prompts, and the same with its anchor, token by token."""
        starts = _STYLES if concept.kind == "style" else _THINGS
        ours = fitting(parts, [start + end for end in _ENDINGS for start in starts], concept)
        wanted = max(self.prompts, len(concept.templates))
        templates = tuple(dict.fromkeys((*concept.templates, *ours)))[:wanted]
        found: list[tuple[Place, Place]] = []
        for template in templates:
            before = parts.count_tokens(template.split("{}")[0].rstrip())
            becomes, its_last = place(parts, template, concept.anchor or "")
            for phrase in concept.phrases:
                goes, last = place(parts, template, phrase)
                # Before the phrase the two prompts are the same.
                found.append(((goes, slice(before + 1)), (becomes, slice(before + 1))))
                if self.tokens == "all":
                    # Aligned at their ends; what the phrase has more goes to the anchor's first.
                    first = min(before + 1, its_last)
                    own = list(range(before + 1, last + 1))
                    its = [max(i - last + its_last, first) for i in own]
                    found.append(((goes, own), (becomes, its)))
                after, its_after = slice(last + 1, None), slice(its_last + 1, None)
                found.append(((goes, after), (becomes, its_after)))
        return found


@functools.cache
def captions() -> Mapping[str, Sequence[str]]:
    """The sets of captions of everyday things, by name: ``captions.yaml`` of the prompts."""
    path = CONCEPTS.parent / "captions.yaml"
    return cast(Mapping[str, Sequence[str]], yaml.safe_load(path.read_text(encoding="utf-8")))


def _anchored(concept: Concept) -> Concept:
    """The concept with its anchor; it is refused if it is its own."""
    if concept.anchor is not None:
        return concept
    return replace(concept, anchor=ANCHORS.get(concept.kind, ""))
