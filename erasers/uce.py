"""UCE: unified concept editing, in closed form.

Gandikota et al., "Unified Concept Editing in Diffusion Models", WACV 2024
(https://arxiv.org/abs/2308.14761). With text embeddings cᵢ, what they become gᵢ (cᵢ itself for
what is kept) and scales sᵢ, every cross-attention key and value weight W becomes the W′ with the
least

    Σᵢ sᵢ‖W′cᵢ − W gᵢ‖² + λ‖W′ − W‖²

The minimum is W′ = W M, with one M = I + D R for all layers:

    D = (G − C)ᵀ                    the edited rows alone, d × n
    R = (λS⁻¹ + CCᵀ)⁻¹C  =  SC(λI + CᵀSC)⁻¹     of which the edited rows, n × d

So one solve of the smaller of the two sizes serves the whole model, and what is stored is a LoRA,
A = R and B = W D.

The rows enter by Σ s ccᵀ and Σ s gcᵀ alone, which a rotation of the rows leaves as they are. So
however many there are, at most as many as they have columns need be kept (``gather``).

What is known to undo it: in UnlearnDiffAtk's benchmark (https://arxiv.org/abs/2310.11868) its
attack brings nudity back by 79.6 % of the prompts, 21.8 % without it; on the built-in model, tried
once, one learnt token drew the kitchen knife in 16 of 16 images, none without it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from .._errors import InputError
from .._settings import NotNegative, Positive, Rest, check
from ..pipelines.erasure import Erasure
from ..pipelines.parts import Parts, Stream
from ..prompts import Concept
from ..training.record import lowrank
from . import Eraser


def multiplier(
    sources: Tensor, targets: Tensor, scales: Tensor, edited: int, ridge: float
) -> tuple[Tensor, Tensor]:
    """The factors of M − I, where W M sends each source where W sends its target.

    Args:
        sources: C, what is edited first and then what is kept, shape (n, d).
        targets: G of the edited rows, shape (edited, d); what is kept is its own target.
        scales: sᵢ ≥ 0, shape (n,).
        edited: How many of the rows are edited.
        ridge: λ ≥ 0; at 0 of all M that fit best the one that is nearest to I.

    Returns:
        D, shape (d, edited), and R, shape (edited, d), in the sources' precision.
    """
    rows, dim = sources.shape
    difference = (targets - sources[:edited]).T
    root = scales.sqrt()[:, None] * sources
    if ridge == 0:
        solved = scales.sqrt()[:, None] * torch.linalg.pinv(root).T
        return difference, solved[:edited]
    if rows <= dim:
        # S^½(λI + S^½CCᵀS^½)⁻¹S^½C, which is (λS⁻¹ + CCᵀ)⁻¹C and takes a scale of 0 too.
        gram = root @ root.T + ridge * torch.eye(rows, dtype=sources.dtype)
        solved = scales.sqrt()[:, None] * torch.linalg.solve(gram, root)
        return difference, solved[:edited]
    gram = root.T @ root + ridge * torch.eye(dim, dtype=sources.dtype)
    return difference, torch.linalg.solve(gram, (scales[:edited, None] * sources[:edited]).T).T


def thin(left: Tensor, right: Tensor, residual: float) -> tuple[Tensor, Tensor]:
    """The product of two factors by the fewest columns.

    Args:
        left: Shape (d, n).
        right: Shape (n, d).
        residual: How much of the product, relative in Frobenius' norm, may be left out.

    Returns:
        Factors (d, r) and (r, d), 1 ≤ r ≤ min(n, d).
    """
    q_left, t_left = torch.linalg.qr(left)
    q_right, t_right = torch.linalg.qr(right.T)
    u, s, vh = torch.linalg.svd(t_left @ t_right.T)
    tail = s.square().flip(0).cumsum(0).flip(0).sqrt()
    rank = max(1, int((tail > residual * tail[0]).sum()))
    return q_left @ (u[:, :rank] * s[:rank]), vh[:rank] @ q_right.T


# The authors' settings of 2025, and the prompts by which they expand a style and anything else.
_2025: dict[str, Any] = {
    "tokens": "last",
    "expand": False,
    "expand_keep": False,
    "keep_empty": False,
    "keep_scale": 1.0,
    "residual": 1e-6,
}
_STYLE_TEMPLATES = (
    "painting by {}",
    "art by {}",
    "artwork by {}",
    "picture by {}",
    "style of {}",
)
_TEMPLATES = (
    "image of {}",
    "photo of {}",
    "portrait of {}",
    "picture of {}",
    "painting of {}",
)


@dataclass(frozen=True)
class UCE(Eraser):
    """Unified concept editing.

    What a concept becomes goes by its kind where it names no anchor: a style becomes 'art', and
    an object, a person and what is unsafe become nothing. The preset ``moderate`` is the authors'
    moderation: a style becomes nothing too.

    Attributes:
        ridge: λ, how strongly the weights stay where they are. 0.5 is the authors'.
        erase_scale: s of what goes.
        keep_scale: s of what stays. 0.05 did best on the built-in model, where all else is
            kept; the authors' is 1 in the 2025 settings; None is
            max(0.1, 1/number of texts kept), as the 2023 code has it: the empty prompt counts.
        tokens: Which embeddings of a prompt are edited: the phrase's ``last`` token, or the
            ``tail`` from there to the last padding; elsewhere than in Stable Diffusion 1 and 2
            the tail begins earlier (``Stream``). Of what is kept, the last or all.
        expand: Whether what goes stands in its concept's templates, or by itself. A concept
            that brings no templates gets the authors' expanded prompts for its kind.
        expand_keep: Whether what is kept is expanded as well, where ``expand`` is set. The
            authors' code does not.
        keep_empty: Whether the empty prompt is always kept.
        style_anchor: What a style becomes if its concept names no anchor; others become nothing.
        residual: How much of the edit, relative in Frobenius' norm, the stored rank may leave out.
    """

    ridge: Positive = 0.5
    erase_scale: Positive = 1.0
    keep_scale: NotNegative | None = 0.05
    tokens: Literal["last", "tail"] = "tail"
    expand: bool = True
    expand_keep: bool = True
    keep_empty: bool = True
    style_anchor: str = "art"
    residual: Rest = 0.02

    needs = "text"
    keep_setting = "keep_scale"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "2025": _2025,
        "2025-expanded": _2025 | {"expand": True},
        "moderate": _2025 | {"style_anchor": ""},
        "2023": {
            "tokens": "tail",
            "expand": False,
            "expand_keep": False,
            "keep_scale": None,
            "style_anchor": "",
            "residual": 1e-6,
        },
    }

    def __post_init__(self) -> None:
        check(self)

    def fit(
        self,
        parts: Parts,
        concepts: Sequence[Concept],
        *,
        seed: int = 0,
        progress: Callable[[float], None] = lambda done: None,
    ) -> Erasure:
        rows = self.rows(parts, concepts)
        progress(0.5)
        keep_scale = self.weigh(parts, concepts)
        updates = edits(parts, rows, self.erase_scale, keep_scale, self.ridge, self.residual)
        progress(1.0)
        return lowrank(parts, "uce", self, concepts, seed, updates)

    def rows(self, parts: Parts, concepts: Sequence[Concept]) -> "dict[str, Rows]":
        """What goes, what it becomes and what stays, by the group of layers that reads it."""
        return paired(
            gather(embeddings(parts, self._pairs(parts, concepts))), self.kept(parts, concepts)
        )

    def texts(self, parts: Parts, concepts: Sequence[Concept]) -> int:
        """How many texts go."""
        return len(self._pairs(parts, concepts))

    def whole(
        self, parts: Parts, concepts: Sequence[Concept]
    ) -> "dict[str, tuple[Tensor, Tensor]]":
        """Every token of what goes and of what it becomes, each (rows, columns), float64."""
        every = all_rows(parts)
        pairs = [tuple((text, every) for text, _ in pair) for pair in self._pairs(parts, concepts)]
        found = gather(embeddings(parts, pairs))
        return {group: one.rows.chunk(2, dim=1) for group, one in found.items()}  # type: ignore[misc]

    def weigh(self, parts: Parts, concepts: Sequence[Concept]) -> float:
        """The scale of what stays."""
        if self.keep_scale is not None:
            return self.keep_scale
        return max(0.1, 1 / max(1, len(self._stays(parts, concepts))))

    def kept(self, parts: Parts, concepts: Sequence[Concept]) -> dict[str, Tensor]:
        """What stays, by group, shape (rows, columns), float64."""
        stays = self._stays(parts, concepts)
        if not stays:
            return {
                group: torch.empty(0, one.columns, dtype=torch.float64)
                for group, one in parts.readers().items()
            }
        found = gather(embeddings(parts, [(one,) for one in stays.items()]))
        return {group: one.rows for group, one in found.items()}

    def places(
        self, parts: Parts, concept: Concept, others: Sequence[str]
    ) -> list[tuple["Place", ...]]:
        """Each prompt of a concept, beside those where another phrase stands in its place."""
        streams = parts.streams()
        return [
            tuple(
                zip(
                    (template.replace("{}", words) for words in (phrase, *others)),
                    zip(
                        *(self._rows(s, template, (phrase, *others)) for s in streams), strict=True
                    ),
                    strict=True,
                )
            )
            for template in self._templates(parts, concept)
            for phrase in concept.phrases
        ]

    def _rows(self, stream: Stream, template: str, phrases: Sequence[str]) -> list["Tokens"]:
        """Which rows of a prompt go, and which of the others they become, side by side."""
        if stream.pooled:
            return [Tokens((0,))] * len(phrases)
        before = template.split("{}")[0]
        # attention_mask.sum() − 2 of the authors' code, for the text as far as the phrase's end
        last = [stream.position((before + phrase).rstrip()) for phrase in phrases]
        if self.tokens == "last":
            return [Tokens((row,)) for row in last]
        if stream.from_last:
            return [Tokens(rest=row) for row in last]
        # Each token of the phrase, and where one word changes all rows, those before it too
        start = stream.position(before.rstrip()) + 1 if before.strip() else stream.start
        found = []
        for row in last:
            first = min(start, row)
            own = (max(first, i - last[0] + row) for i in range(start, last[0]))
            before_it = () if stream.causal else range(stream.first, start)
            found.append(Tokens((*before_it, *own), rest=row))
        return found

    def _stays(
        self, parts: Parts, concepts: Sequence[Concept]
    ) -> "dict[str | None, tuple[Tokens, ...]]":
        """The texts that stay, each once, and which of their rows."""
        streams, every = parts.streams(), all_rows(parts)
        stays: dict[str | None, tuple[Tokens, ...]] = {}

        def stay(text: str | None, ends: str) -> None:
            last = tuple(Tokens((0 if s.pooled else s.position(ends.rstrip()),)) for s in streams)
            stays[text] = every if self.tokens == "tail" else last

        if self.keep_empty:
            stay("", "")
            if not parts.empty_is_text:
                stay(None, "")
        for concept in concepts:
            templates = self._templates(parts, concept) if self.expand_keep else ("{}",)
            for template in templates:
                for phrase in concept.keep:
                    stay(template.replace("{}", phrase), template.split("{}")[0] + phrase)
        return stays

    def _pairs(self, parts: Parts, concepts: Sequence[Concept]) -> list[tuple["Place", ...]]:
        pairs = []
        for concept in concepts:
            anchor = concept.anchor
            if anchor is None:
                anchor = self.style_anchor if concept.kind == "style" else ""
            # Made anew, it is refused if it is its own anchor.
            pairs += self.places(parts, replace(concept, anchor=anchor), (anchor,))
        # Those that become the same prompt stand together, for which it is encoded once.
        return sorted(pairs, key=lambda pair: pair[1][0] or "")

    def _templates(self, parts: Parts, concept: Concept) -> Sequence[str]:
        if not self.expand:
            return ("{}",)
        if concept.templates != ("{}",):
            return concept.templates
        ours = _STYLE_TEMPLATES if concept.kind == "style" else _TEMPLATES
        return ("{}", *fitting(parts, ours, concept))


class Rows(NamedTuple):
    """Rows that a group of layers reads, in float64.

    Attributes:
        sources, targets: What goes and what it becomes, each (n, columns).
        kept: What stays, shape (m, columns).
        norm: The mean square norm of what goes.
    """

    sources: Tensor
    targets: Tensor
    kept: Tensor
    norm: float

    def solve(self, erase_scale: float, keep_scale: float, ridge: float) -> tuple[Tensor, Tensor]:
        """``multiplier`` with one scale for all that goes and one for all that stays."""
        edited = len(self.sources)
        sources = torch.cat([self.sources, self.kept])
        scales = torch.full((len(sources),), keep_scale, dtype=sources.dtype)
        scales[:edited] = erase_scale
        return multiplier(sources, self.targets, scales, edited, ridge)


def edits(
    parts: Parts,
    rows: Mapping[str, Rows],
    erase_scale: float,
    keep_scale: float,
    ridge: float,
    residual: float,
) -> dict[str, tuple[Tensor, Tensor]]:
    """A and B of every layer, of one edit for each group of them."""
    solved = {
        group: one.solve(erase_scale, keep_scale, parts.ridge(ridge, one.norm))
        for group, one in rows.items()
    }
    return times(parts, {group: thin(*one, residual) for group, one in solved.items()})


def times(
    parts: Parts, factors: Mapping[str, tuple[Tensor, Tensor]]
) -> dict[str, tuple[Tensor, Tensor]]:
    """A and B of every layer that reads text, of which W becomes W + W left right.

    What was solved in float64 is stored in float32, and so is the product with the weights. Of a
    layer that reads more than text, the other columns stay as they are.

    Args:
        factors: Left (columns, rank) and right (rank, columns) by the group of layers.
    """
    found = {}
    for group, one in parts.readers().items():
        left, right = factors[group]
        a, b = right.float(), left.float()
        for name, layer in one.layers.items():
            weight = layer.weight.detach()[:, : one.columns].float()
            more = layer.in_features - one.columns
            found[name] = (functional.pad(a, (0, more)), (weight @ b.to(weight.device)).cpu())
    return found


class Tokens(NamedTuple):
    """Some rows of a stream: the ``fixed`` ones, and then all from ``rest`` on."""

    fixed: tuple[int, ...] = ()
    rest: int | None = None

    def of(self, rows: Tensor) -> Tensor:
        """These of the rows (rows, columns)."""
        found = [rows[list(self.fixed)]] if self.fixed else []
        if self.rest is not None:
            found.append(rows[self.rest :])
        return torch.cat(found) if found else rows[:0]


# A prompt, of which None is the empty one ∅, and which of its rows are meant, by stream.
Place = tuple[str | None, tuple[Tokens, ...]]


def all_rows(parts: Parts) -> tuple[Tokens, ...]:
    """All rows of every stream."""
    return tuple(Tokens(rest=stream.first) for stream in parts.streams())


def fits(parts: Parts, text: str) -> bool:
    """Whether the tokenizers take the whole text."""
    try:
        parts.check_fits(text)
    except InputError:
        return False
    return True


def fitting(parts: Parts, templates: Sequence[str], concept: Concept) -> list[str]:
    """Those of our own templates that have room for all the words of a concept."""
    words = (*concept.phrases, *concept.keep, concept.anchor or "")
    return [t for t in templates if all(fits(parts, t.replace("{}", w)) for w in words)]


def embeddings(
    parts: Parts, groups: Sequence[Sequence[Place]], batch: int = 32
) -> Iterator[dict[str, Tensor]]:
    """What the layers read of each group's prompts side by side, row by row, in float64.

    Args:
        groups: Prompts that are aligned, each with the rows that are meant; the rest of the
            longer ones is left out. A prompt that comes again in a batch is encoded once.
        batch: Groups at a time, and no more are held.

    Yields:
        For each group of prompts, by group of layers, shape (rows, prompts · columns).

    Raises:
        InputError: A tokenizer would cut one of the prompts.
    """
    streams = parts.streams()
    for start in range(0, len(groups), batch):
        some = groups[start : start + batch]
        texts = list(dict.fromkeys(text for group in some for text, _ in group))
        read = parts.reads(parts.encode(texts).cpu())
        at = {text: i for i, text in enumerate(texts)}
        for group in some:
            found: dict[str, list[Tensor]] = {}
            for s, stream in enumerate(streams):
                rows = [
                    tokens[s].of(read[stream.group][at[text]][: stream.stop]).double()
                    for text, tokens in group
                ]
                length = min(map(len, rows))
                beside = torch.cat([one[:length] for one in rows], dim=1)
                found.setdefault(stream.group, []).append(beside)
            yield {name: torch.cat(rows) for name, rows in found.items()}


@dataclass(frozen=True)
class Gathered:
    """Rows of a group of layers, and how many there were before some were put together."""

    rows: Tensor
    count: int


def gather(batches: Iterable[Mapping[str, Tensor]]) -> dict[str, Gathered]:
    """All rows, or fewer that an edit cannot tell from them.

    Many are replaced by R of their QR decomposition, as RᵀR is the same sum over rows.

    Args:
        batches: By group of layers, rows of one precision, each of shape (n, columns).

    Returns:
        Of each group rows of shape (≤ 4 · columns, columns).
    """
    found: dict[str, list[Tensor]] = {}
    counts: dict[str, int] = {}
    for batch in batches:
        for group, rows in batch.items():
            own = found.setdefault(group, [])
            own.append(rows)
            counts[group] = counts.get(group, 0) + len(rows)
            if sum(map(len, own)) > 4 * rows.shape[1]:
                found[group] = [torch.linalg.qr(torch.cat(own), mode="r").R]
    return {group: Gathered(torch.cat(rows), counts[group]) for group, rows in found.items()}


def paired(pairs: Mapping[str, Gathered], kept: Mapping[str, Tensor]) -> dict[str, Rows]:
    """The rows of an edit, of sources and targets side by side and of what stays."""
    found = {}
    for group, one in pairs.items():
        sources, targets = one.rows.chunk(2, dim=1)
        norm = float(sources.square().sum()) / max(1, one.count)
        found[group] = Rows(sources, targets, kept[group], norm)
    return found
