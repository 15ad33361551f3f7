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
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from .._errors import InputError
from .._settings import NotNegative, Positive, Rest, check
from ..pipelines.erasure import Erasure
from ..pipelines.parts import Parts
from ..prompts import Concept
from . import Eraser
from .record import lowrank


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
            ``tail`` from there to the last padding. Of what is kept, the last or all.
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
        left, right = rows.solve(self.erase_scale, self.weigh(parts, concepts), self.ridge)
        updates = times(parts, *thin(left, right, self.residual))
        progress(1.0)
        return lowrank(parts, "uce", self, concepts, seed, updates)

    def rows(self, parts: Parts, concepts: Sequence[Concept]) -> "Rows":
        """What goes, what it becomes and what stays."""
        pairs = self._pairs(parts, concepts)
        sources, targets = gather(embeddings(parts, pairs)).chunk(2, dim=1)
        return Rows(sources, targets, self.kept(parts, concepts))

    def texts(self, parts: Parts, concepts: Sequence[Concept]) -> int:
        """How many texts go."""
        return len(self._pairs(parts, concepts))

    def whole(self, parts: Parts, concepts: Sequence[Concept]) -> tuple[Tensor, Tensor]:
        """Every token of what goes and of what it becomes, each (rows, d), float64."""
        pairs = [
            tuple((text, slice(None)) for text, _ in pair) for pair in self._pairs(parts, concepts)
        ]
        goes, becomes = gather(embeddings(parts, pairs)).chunk(2, dim=1)
        return goes, becomes

    def weigh(self, parts: Parts, concepts: Sequence[Concept]) -> float:
        """The scale of what stays."""
        if self.keep_scale is not None:
            return self.keep_scale
        return max(0.1, 1 / max(1, len(self._stays(parts, concepts))))

    def kept(self, parts: Parts, concepts: Sequence[Concept]) -> Tensor:
        """What stays, shape (rows, d), float64."""
        stays = self._stays(parts, concepts)
        if not stays:
            dim = next(iter(parts.text_layers().values())).in_features
            return torch.empty(0, dim, dtype=torch.float64)
        return gather(embeddings(parts, [(one,) for one in stays.items()]))

    def places(
        self, parts: Parts, concept: Concept, others: Sequence[str]
    ) -> list[tuple["Place", ...]]:
        """Each prompt of a concept, beside those where another phrase stands in its place."""
        return [
            tuple(
                (text, self._tokens(last))
                for text, last in (place(parts, template, words) for words in (phrase, *others))
            )
            for template in self._templates(parts, concept)
            for phrase in concept.phrases
        ]

    def _tokens(self, last: int) -> slice:
        return slice(last, None if self.tokens == "tail" else last + 1)

    def _stays(self, parts: Parts, concepts: Sequence[Concept]) -> dict[str, slice]:
        """The texts that stay, each once, and which of their tokens."""
        stays: dict[str, slice] = {"": self._tokens(0)} if self.keep_empty else {}
        for concept in concepts:
            templates = self._templates(parts, concept) if self.expand_keep else ("{}",)
            for template in templates:
                for phrase in concept.keep:
                    text, last = place(parts, template, phrase)
                    stays[text] = self._tokens(last)
        return dict.fromkeys(stays, slice(None)) if self.tokens == "tail" else stays

    def _pairs(self, parts: Parts, concepts: Sequence[Concept]) -> list[tuple["Place", ...]]:
        pairs = []
        for concept in concepts:
            anchor = concept.anchor
            if anchor is None:
                anchor = self.style_anchor if concept.kind == "style" else ""
            # Made anew, it is refused if it is its own anchor.
            pairs += self.places(parts, replace(concept, anchor=anchor), (anchor,))
        # Those that become the same prompt stand together, for which it is encoded once.
        return sorted(pairs, key=lambda pair: pair[1][0])

    def _templates(self, parts: Parts, concept: Concept) -> Sequence[str]:
        if not self.expand:
            return ("{}",)
        if concept.templates != ("{}",):
            return concept.templates
        ours = _STYLE_TEMPLATES if concept.kind == "style" else _TEMPLATES
        return ("{}", *fitting(parts, ours, concept))


class Rows(NamedTuple):
    """Embeddings in float64: what goes and what it becomes (n, d), and what stays (m, d)."""

    sources: Tensor
    targets: Tensor
    kept: Tensor

    def solve(self, erase_scale: float, keep_scale: float, ridge: float) -> tuple[Tensor, Tensor]:
        """``multiplier`` with one scale for all that goes and one for all that stays."""
        edited = len(self.sources)
        sources = torch.cat([self.sources, self.kept])
        scales = torch.full((len(sources),), keep_scale, dtype=sources.dtype)
        scales[:edited] = erase_scale
        return multiplier(sources, self.targets, scales, edited, ridge)


def times(parts: Parts, left: Tensor, right: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """A and B of every layer that reads text, of which W becomes W + W left right.

    What was solved in float64 is stored in float32, and so is the product with the weights.
    """
    a, b = right.float(), left.float()
    return {
        name: (a, (layer.weight.detach().float() @ b.to(layer.weight.device)).cpu())
        for name, layer in parts.text_layers().items()
    }


# A prompt, and which of its tokens are meant.
Place = tuple[str, slice | list[int]]


def place(parts: Parts, template: str, phrase: str) -> tuple[str, int]:
    """The prompt, and the position in it of the phrase's last token.

    Raises:
        InputError: The tokenizer would cut the prompt before that.
    """
    before, after = template.split("{}")
    # attention_mask.sum() − 2 of the authors' code, for the text as far as the phrase's end
    return before + phrase + after, parts.count_tokens((before + phrase).rstrip())


def fits(parts: Parts, text: str) -> bool:
    """Whether the tokenizer takes the whole text."""
    try:
        parts.count_tokens(text)
    except InputError:
        return False
    return True


def fitting(parts: Parts, templates: Sequence[str], concept: Concept) -> list[str]:
    """Those of our own templates that have room for all the words of a concept."""
    words = (*concept.phrases, *concept.keep, concept.anchor or "")
    return [t for t in templates if all(fits(parts, t.replace("{}", w)) for w in words)]


def embeddings(
    parts: Parts, groups: Sequence[Sequence[Place]], batch: int = 32
) -> Iterator[Tensor]:
    """The embeddings of each group's prompts side by side, token by token, in float64.

    Args:
        groups: Prompts that are aligned, each with the tokens that are meant; the rest of the
            longer ones is left out. A prompt that comes again in a batch is encoded once.
        batch: Groups at a time, and no more are held.

    Yields:
        For each group, shape (tokens, prompts · dim).

    Raises:
        InputError: The tokenizer would cut one of the prompts.
    """
    for start in range(0, len(groups), batch):
        some = groups[start : start + batch]
        texts = list(dict.fromkeys(text for group in some for text, _ in group))
        encoded = dict(zip(texts, parts.encode(texts).cpu(), strict=True))
        for group in some:
            rows = [encoded[text][tokens].double() for text, tokens in group]
            length = min(map(len, rows))
            yield torch.cat([one[:length] for one in rows], dim=1)


def gather(batches: Iterable[Tensor]) -> Tensor:
    """All rows, or fewer that an edit cannot tell from them.

    Many are replaced by R of their QR decomposition, as RᵀR is the same sum over rows.

    Args:
        batches: Rows of one precision, each of shape (n, columns).

    Returns:
        Shape (rows, columns), rows ≤ 4 · columns.
    """
    found: list[Tensor] = []
    for rows in batches:
        found.append(rows)
        if sum(map(len, found)) > 4 * rows.shape[1]:
            found = [torch.linalg.qr(torch.cat(found), mode="r").R]
    return torch.cat(found)
