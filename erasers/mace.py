"""MACE's closed form: the joint refinement of cross attention for all concepts.

Lu et al., "MACE: Mass Concept Erasure in Diffusion Models", CVPR 2024
(https://arxiv.org/abs/2403.06135). A concept leaves traces in the words that stand beside it, and
in the padding. So it is put into some thirty prompts, with embeddings f of their words, and its
anchor into the same prompts, g. All concepts together have the weights W′ with the least

    Σⱼ ‖W′fⱼ − W gⱼ‖² + tr (W′ − W) P (W′ − W)ᵀ + λ‖W′ − W‖²

where P, the prior, is the weighted second moment of what is kept: captions of everyday things, and
what the concepts themselves keep. This has UCE's form with P for what it keeps, so W′ = W M with
one M for all layers, and one d × d matrix P serves them all.

After this the paper trains a LoRA of rank 1 a concept, which suppresses the attention that the
phrase's own tokens draw inside a mask of the concept, and fuses the LoRAs; without them the fusion
leaves W′ as it is. That is not here: no image is made, and nothing is trained. So by default the
phrase's own tokens are mapped as well, which the paper leaves to the LoRA (``tokens``), and the
results are not those of the whole method.

What is known to undo it: training on images of something else brings concepts back
(https://arxiv.org/abs/2410.08074); prompts that were written against other models hardly do (at
most 2.7 %, table 1 of https://arxiv.org/abs/2501.19066).
"""

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, cast

from torch import Tensor

from .._registry import unknown
from .._settings import NotNegative, Range, Rest, check
from ..pipelines.erasure import Erasure
from ..pipelines.parts import Parts, Stream
from ..prompts import CONCEPTS, Concept
from ..prompts.concept import read_yaml
from ..training.record import lowrank
from . import Eraser
from .uce import (
    Place,
    Rows,
    Tokens,
    all_rows,
    edits,
    embeddings,
    fits,
    fitting,
    gather,
    paired,
)

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


_OBJECT: dict[str, Any] = {
    "keep_scale": 0.0,
    "prior_scale": 0.0,
    "tokens": "around",
    "residual": 1e-6,
}
# 0.6 million captions at 1e-4 weigh 60, as our 96 do at 0.625; at 7e-7, 0.42, as ours at 0.0044.
# What one person keeps weighs 8000 · 1e-4.
_PRIOR: dict[str, Any] = {
    "ridge": 0.0,
    "keep_scale": 0.8,
    "prior_scale": 0.625,
    "tokens": "around",
    "residual": 1e-6,
}


@dataclass(frozen=True)
class MACE(Eraser):
    """The closed form of mass concept erasure.

    ``presets`` have the authors' λ (https://github.com/Shilin-LU/MACE) and map the tokens that
    they map: "object" is theirs for a ship, "object-100" for an automobile and "object-10" for a
    bird, all without a prior; "person", "style" and "nudity" have λ 0, so that captions and what
    is kept alone hold the weights. The authors' prior is the sum over MS-COCO's 0.6 million
    captions, times 1e-4 or, for nudity, 7e-7. Ours is of fewer captions, which weigh as much in
    all; the phrases that a person or a style keeps weigh as theirs do for one person.

    Attributes:
        ridge: λ, how strongly the weights stay where they are. At 0 the prior alone holds them.
        keep_scale: The weight in P of each token of what concepts keep, and of the empty prompt.
        prior_scale: The weight in P of each token of the captions.
        captions: The name of a set in ``prompts/captions.yaml``, of which those that the tokenizer
            would cut are left out.
        prompts: How many prompts a phrase is put into: its concept's templates, and ours for its
            kind as far as they are needed and have room. The authors take 30.
        tokens: Which tokens of a prompt are mapped: ``all``, or those ``around`` the phrase, as in
            the paper: those with which the prompt of the phrase and the prompt of the anchor begin
            and end alike.
        residual: How much of the edit, relative in Frobenius' norm, the stored rank may leave out.
    """

    ridge: NotNegative = 10.0
    keep_scale: NotNegative = 0.05
    prior_scale: NotNegative = 0.01
    captions: str = "general"
    prompts: Annotated[int, Range(least=0, most=10_000)] = 30
    tokens: Literal["all", "around"] = "all"
    residual: Rest = 0.02

    needs = "text"
    keep_setting = "keep_scale"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "object": _OBJECT | {"ridge": 1000.0},
        "object-100": _OBJECT | {"ridge": 100.0},
        "object-10": _OBJECT | {"ridge": 10.0},
        "person": _PRIOR,
        "style": _PRIOR,
        "nudity": _PRIOR | {"keep_scale": 0.0, "prior_scale": 0.0044},
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
        rows = self.rows(parts, concepts, progress)
        updates = edits(parts, rows, 1.0, 1.0, self.ridge, self.residual)
        progress(1.0)
        return lowrank(parts, "mace", self, concepts, seed, updates)

    def rows(
        self,
        parts: Parts,
        concepts: Sequence[Concept],
        progress: Callable[[float], None] = lambda done: None,
    ) -> dict[str, Rows]:
        """What goes, what it becomes and what holds the weights, by group of layers."""
        concepts = [_anchored(concept) for concept in concepts]

        counts: Counter[str] = Counter()

        def goes() -> Iterator[dict[str, Tensor]]:
            for done, concept in enumerate(concepts, 1):
                found = gather(embeddings(parts, self._pairs(parts, concept)))
                counts.update({group: one.count for group, one in found.items()})
                yield {group: one.rows for group, one in found.items()}
                progress(done / (len(concepts) + 1))

        pairs = {g: replace(one, count=counts[g]) for g, one in gather(goes()).items()}
        return paired(pairs, self.prior(parts, concepts))

    def prior(self, parts: Parts, concepts: Sequence[Concept]) -> dict[str, Tensor]:
        """Rows by group of layers, each (columns,), float64, whose second moment is P."""
        texts = {""}
        for concept in concepts:
            texts |= {t.replace("{}", words) for t in concept.templates for words in concept.keep}
        general = [text for text in captions()[self.captions] if fits(parts, text)]

        every = all_rows(parts)
        stays: list[str | None] = [*sorted(texts), *((None,) if not parts.empty_is_text else ())]

        def weighted(texts: Sequence[str | None], scale: float) -> Iterator[dict[str, Tensor]]:
            for rows in embeddings(parts, [((text, every),) for text in texts]):
                yield {group: scale**0.5 * one for group, one in rows.items()}

        found = gather(
            rows
            for some, scale in ((stays, self.keep_scale), (general, self.prior_scale))
            for rows in weighted(some, scale)
        )
        return {group: one.rows for group, one in found.items()}

    def _pairs(self, parts: Parts, concept: Concept) -> list[tuple[Place, Place]]:
        """A concept's prompts, and the same with its anchor, token by token."""
        starts = _STYLES if concept.kind == "style" else _THINGS
        ours = fitting(parts, [start + end for end in _ENDINGS for start in starts], concept)
        wanted = max(self.prompts, len(concept.templates))
        templates = tuple(dict.fromkeys((*concept.templates, *ours)))[:wanted]
        streams = parts.streams()
        found: list[tuple[Place, Place]] = []
        for template in templates:
            becomes = template.replace("{}", concept.anchor or "")
            for phrase in concept.phrases:
                goes = template.replace("{}", phrase)
                sides = [self._rows(stream, goes, becomes) for stream in streams]
                for piece in zip(*sides, strict=True):
                    one, other = zip(*piece, strict=True)
                    found.append(((goes, one), (becomes, other)))
        return found

    def _rows(self, stream: Stream, goes: str, becomes: str) -> list[tuple[Tokens, Tokens]]:
        """The rows of two prompts side by side: before the phrase, its own, and after it."""
        nothing = (Tokens(), Tokens())
        if stream.pooled:
            return [nothing, nothing, (Tokens((0,)), Tokens((0,)))][-self._pieces :]
        begin, last, its_last = (
            stream.start + row for row in aligned(stream.tokens(goes), stream.tokens(becomes))
        )
        before = Tokens(tuple(range(stream.first, begin)))
        # Aligned at their ends; what the phrase has more goes to the anchor's first.
        first = max(stream.first, min(begin, its_last))
        own = range(begin, last + 1)
        its = tuple(max(i - last + its_last, first) for i in own)
        # On to the last padding, as far as both have it
        after = (Tokens(rest=last + 1), Tokens(rest=its_last + 1))
        if self.tokens == "around":
            return [(before, before), after]
        return [(before, before), (Tokens(tuple(own)), Tokens(its)), after]

    @property
    def _pieces(self) -> int:
        return 2 if self.tokens == "around" else 3


def aligned(goes: Sequence[int], becomes: Sequence[int]) -> tuple[int, int, int]:
    """Where two texts' tokens differ.

    Args:
        goes: A text's tokens.
        becomes: The other text's.

    Returns:
        The first token that is not the same in both, and, in the one and in the other, the last
        before both go on alike to their ends.
    """
    shorter = min(len(goes), len(becomes))
    begin = next((i for i in range(shorter) if goes[i] != becomes[i]), shorter)
    end = 0
    while end < shorter - begin and goes[-1 - end] == becomes[-1 - end]:
        end += 1
    return begin, len(goes) - 1 - end, len(becomes) - 1 - end


@functools.cache
def captions() -> Mapping[str, Sequence[str]]:
    """The sets of captions of everyday things, by name: ``captions.yaml`` of the prompts."""
    path = CONCEPTS.parent / "captions.yaml"
    return cast(Mapping[str, Sequence[str]], read_yaml(path))


def _anchored(concept: Concept) -> Concept:
    """The concept with its anchor; it is refused if it is its own."""
    if concept.anchor is not None:
        return concept
    return replace(concept, anchor=ANCHORS.get(concept.kind, ""))
