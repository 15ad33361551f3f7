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
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from .._errors import InputError
from ..pipelines.erasure import Erasure
from ..pipelines.parts import Parts
from ..prompts import Concept
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
        ridge: λ > 0.

    Returns:
        D, shape (d, edited), and R, shape (edited, d), in the sources' precision.
    """
    rows, dim = sources.shape
    difference = (targets - sources[:edited]).T
    root = scales.sqrt()[:, None] * sources
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


@dataclass(frozen=True)
class UCE:
    """Unified concept editing.

    Attributes:
        ridge: λ, how strongly the weights stay where they are. 0.5 is the authors'.
        erase_scale: s of what goes.
        keep_scale: s of what stays. 0.05 did best on the built-in model, where all else is
            kept; the authors' is 1 in the 2025 settings; None is
            max(0.1, 1/number kept), as the 2023 code has it.
        tokens: Which embeddings of a prompt are edited: the phrase's ``last`` token, or the
            ``tail`` from there to the last padding. Of what is kept, the last or all.
        expand: Whether phrases stand in their concept's templates, or by themselves.
        keep_empty: Whether the empty prompt is always kept.
        style_anchor: What a style becomes if its concept names no anchor; others become nothing.
        residual: How much of the edit, relative in Frobenius' norm, the stored rank may leave out.
    """

    ridge: float = 0.5
    erase_scale: float = 1.0
    keep_scale: float | None = 0.05
    tokens: Literal["last", "tail"] = "tail"
    expand: bool = True
    keep_empty: bool = True
    style_anchor: str = "art"
    residual: float = 0.02

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "2025": {
            "tokens": "last",
            "expand": False,
            "keep_empty": False,
            "keep_scale": 1.0,
            "residual": 1e-6,
        },
        "2023": {
            "tokens": "tail",
            "expand": False,
            "keep_scale": None,
            "style_anchor": "",
            "residual": 1e-6,
        },
    }

    def __post_init__(self) -> None:
        if self.ridge <= 0:
            raise InputError(
                f"ridge is {self.ridge}; it must be above 0 for there to be one answer."
            )
        if self.erase_scale <= 0:
            raise InputError(f"erase_scale is {self.erase_scale}; at 0 or less nothing is erased.")
        if self.keep_scale is not None and self.keep_scale < 0:
            raise InputError(f"keep_scale is {self.keep_scale}; it cannot be below 0.")
        if self.tokens not in ("last", "tail"):
            raise InputError(f"tokens is {self.tokens!r}; it can be 'last' or 'tail'.")

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
        keep_scale = self.keep_scale
        if keep_scale is None:
            keep_scale = max(0.1, 1 / max(1, _kept(concepts)))
        left, right = rows.solve(self.erase_scale, keep_scale, self.ridge)
        updates = times(parts, *thin(left, right, self.residual))
        progress(1.0)
        return lowrank(parts, "uce", self, concepts, seed, updates)

    def rows(self, parts: Parts, concepts: Sequence[Concept]) -> "Rows":
        """What goes, what it becomes and what stays."""
        pairs, kept = self._prompts(parts, concepts)
        embeddings = _encode(parts, [p[0] for p in pairs] + [p[2] for p in pairs] + list(kept))
        sources, targets = [], []
        for text, last, becomes, its_last in pairs:
            length = len(embeddings[text]) - max(last, its_last) if self.tokens == "tail" else 1
            sources.append(embeddings[text][last : last + length])
            targets.append(embeddings[becomes][its_last : its_last + length])
        stays = [
            embeddings[text] if self.tokens == "tail" else embeddings[text][last : last + 1]
            for text, last in kept.items()
        ]
        source = torch.cat(sources)
        return Rows(source, torch.cat(targets), torch.cat(stays) if stays else source[:0])

    def whole(self, parts: Parts, concepts: Sequence[Concept]) -> tuple[Tensor, Tensor]:
        """Every token of what goes and of what it becomes, each (rows, d), float64."""
        pairs, _ = self._prompts(parts, concepts)
        goes, becomes = [text for text, *_ in pairs], [text for *_, text, _ in pairs]
        embeddings = _encode(parts, goes + becomes)
        return (
            torch.cat([embeddings[text] for text in goes]),
            torch.cat([embeddings[text] for text in becomes]),
        )

    def _prompts(
        self, parts: Parts, concepts: Sequence[Concept]
    ) -> tuple[list[tuple[str, int, str, int]], dict[str, int]]:
        """Each prompt that goes and what it becomes, and what is kept, with the last tokens."""
        pairs: list[tuple[str, int, str, int]] = []
        kept: dict[str, int] = {}
        for concept in concepts:
            anchor = concept.anchor
            if anchor is None:
                anchor = self.style_anchor if concept.kind == "style" else ""
            for template in concept.templates if self.expand else ("{}",):
                for phrase in concept.phrases:
                    goes, comes = (_place(parts, template, p) for p in (phrase, anchor))
                    pairs.append((*goes, *comes))
                kept |= dict(_place(parts, template, phrase) for phrase in concept.keep)
        if self.keep_empty:
            kept[""] = 0
        return pairs, kept


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


def _kept(concepts: Sequence[Concept]) -> int:
    return len({phrase for concept in concepts for phrase in concept.keep})


def _place(parts: Parts, template: str, phrase: str) -> tuple[str, int]:
    """The prompt, and the position in it of the phrase's last token."""
    before, after = template.split("{}")
    # attention_mask.sum() − 2 of the authors' code, for the text as far as the phrase's end
    return before + phrase + after, parts.count_tokens((before + phrase).rstrip())


def _encode(parts: Parts, texts: Sequence[str], batch: int = 64) -> dict[str, Tensor]:
    """Each text's embedding, shape (tokens, dim), float64; a text that comes again once."""
    unique = list(dict.fromkeys(texts))
    found: dict[str, Tensor] = {}
    for start in range(0, len(unique), batch):
        some = unique[start : start + batch]
        found |= zip(some, parts.encode(some).cpu().double(), strict=True)
    return found
