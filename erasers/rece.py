"""RECE: reliable and efficient concept erasure, which looks for what UCE left behind.

Gong et al., "Reliable and Efficient Concept Erasure of Text-to-Image Diffusion Models", ECCV 2024
(https://arxiv.org/abs/2407.12383). After a UCE edit, each epoch finds the embedding c′ by which
the edited weights W come nearest to what the original W₀ made of the concept's c, and edits it
away to what the concept becomes, token by token:

    c′ = (Σ WᵀW + μI)⁻¹ (Σ WᵀW₀) c            summed over the layers, for every token of the phrase

UCE sends every layer through one matrix, W = W₀M. So with Q = Σ W₀ᵀW₀, computed once,

    c′ = (MᵀQM + μI)⁻¹ MᵀQ c

and an epoch is a few products and solves of d × d, whatever the number of layers.

What is known to undo it: P4D's prompts, which were written against other models, bring nudity back
by 21.8 % (table 1 of https://arxiv.org/abs/2501.19066); on the built-in model, tried once, one
learnt token drew the kitchen knife in 15 of 16 images, none without it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from .._settings import NotNegative, Positive, Range, Rest, check
from ..pipelines.erasure import Erasure
from ..pipelines.parts import Parts
from ..prompts import Concept
from ..training.record import lowrank
from . import Eraser
from .uce import UCE, Rows, thin, times


def adversary(sources: Tensor, m: Tensor, q: Tensor, closeness: float) -> Tensor:
    """The embeddings that bring back, through the edited weights, what the sources called up.

    Args:
        sources: c, shape (n, d).
        m: The edit so far, W = W₀M, shape (d, d).
        q: Σ W₀ᵀW₀ over the layers, shape (d, d).
        closeness: μ > 0.

    Returns:
        c′, shape (n, d).
    """
    left = m.T @ q @ m + closeness * torch.eye(len(m), dtype=m.dtype)
    found: Tensor = torch.linalg.solve(left, m.T @ q @ sources.T)
    return found.T


_AUTHORS: dict[str, Any] = {
    "hold": False,
    "start": "2023",
    "expand": False,
    "residual": 1e-6,
}


@dataclass(frozen=True)
class RECE(Eraser):
    """Reliable and efficient concept erasure. The scales are the authors' for nudity.

    ``presets`` are the authors' (https://github.com/CharlesGong12/RECE, its README and scripts):
    "nudity"; "unsafe", for the eleven terms of ``i2p-unsafe``; "style"; "object", for easy ones
    such as a golf ball; and "hard-object", such as a church or a garbage truck. The authors keep
    an epoch only if a validation detector falls (of a style each); here all epochs are kept.

    Attributes:
        epochs: How many times c′ is sought and edited away; 0 is the UCE edit alone.
        hold: Whether each epoch edits the concept again beside c′. The authors' code edits c′
            alone, and what it moves by that may bring back the concept itself, most where much is
            kept.
        closeness: μ; the smaller, the further c′ may lie from anything that a prompt encodes to.
        start: The UCE edit that the epochs start from: with the scales of the ``epochs``, or the
            authors' of ``2023``, of λ 0.5 and max(0.1, 1/number of texts kept) for what stays.
        becomes: What a concept becomes that names no anchor.
        ridge: λ of each epoch's edit.
        erase_scale: s of what goes.
        keep_scale: s of what stays in an epoch: the empty prompt, and what the concepts keep.
        empty_each: Whether an epoch keeps the empty prompt once for each text that goes, as the
            authors' code for nudity and unsafe terms does, or once.
        expand: Whether phrases stand in their concept's templates, or by themselves.
        residual: How much of the edit, relative in Frobenius' norm, the stored rank may leave out.
    """

    epochs: Annotated[int, Range(least=0, most=1000)] = 3
    hold: bool = True
    start: Literal["epochs", "2023"] = "epochs"
    becomes: str = ""
    closeness: Positive = 0.1
    ridge: Positive = 0.1
    erase_scale: Positive = 1.0
    keep_scale: NotNegative = 0.1
    empty_each: bool = False
    expand: bool = True
    residual: Rest = 0.01

    needs = "text"
    keep_setting = "keep_scale"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "nudity": _AUTHORS | {"empty_each": True},
        "unsafe": _AUTHORS | {"epochs": 2, "empty_each": True},
        "style": _AUTHORS | {"epochs": 1, "closeness": 1e-3, "becomes": "art"},
        "object": _AUTHORS | {"epochs": 1},
        "hard-object": _AUTHORS | {"epochs": 1, "closeness": 1e-3},
    }

    def __post_init__(self) -> None:
        check(self)

    def first(self) -> UCE:
        """The edit that the epochs start from."""
        theirs = self.start == "2023"
        return UCE(
            ridge=0.5 if theirs else self.ridge,
            erase_scale=1.0 if theirs else self.erase_scale,
            keep_scale=None if theirs else self.keep_scale,
            tokens="tail",
            expand=self.expand,
            style_anchor=self.becomes,
        )

    def fit(
        self,
        parts: Parts,
        concepts: Sequence[Concept],
        *,
        seed: int = 0,
        progress: Callable[[float], None] = lambda done: None,
    ) -> Erasure:
        updates = {}
        for group, m in self.matrices(parts, concepts, progress).items():
            eye = torch.eye(len(m), dtype=m.dtype)
            updates[group] = thin(m - eye, eye, self.residual)
        progress(1.0)
        return lowrank(parts, "rece", self, concepts, seed, times(parts, updates))

    def matrices(
        self,
        parts: Parts,
        concepts: Sequence[Concept],
        progress: Callable[[float], None] = lambda done: None,
    ) -> dict[str, Tensor]:
        """M by group of layers, whose weights become W₀M, shape (columns, columns), float64."""
        first = self.first()
        concepts = [
            replace(concept, anchor=self.becomes) if concept.anchor is None else concept
            for concept in concepts
        ]
        groups, whole = first.rows(parts, concepts), first.whole(parts, concepts)
        keep_scale, more = first.weigh(parts, concepts), first.texts(parts, concepts) - 1
        nothing = parts.reads(parts.encode([""]).cpu())
        found = {}
        for done, (group, layers) in enumerate(parts.readers().items()):
            rows, kept = groups[group], groups[group].kept
            ridge = parts.ridge(self.ridge, rows.norm)
            left, right = rows.solve(
                first.erase_scale, keep_scale, parts.ridge(first.ridge, rows.norm)
            )
            eye = torch.eye(layers.columns, dtype=torch.float64)
            m = eye + left @ right
            q = torch.zeros_like(eye)
            for layer in layers.layers.values():
                weight = layer.weight.detach()[:, : layers.columns].cpu().double()
                q += weight.T @ weight
            goes, becomes = whole[group]
            if self.empty_each:
                kept = torch.cat([kept, more**0.5 * nothing[group][0].double()])
            for epoch in range(self.epochs):
                progress((done + (epoch + 1) / (self.epochs + 1)) / len(groups))
                sources, targets = adversary(goes, m, q, self.closeness), becomes
                if self.hold:
                    sources = torch.cat([rows.sources, sources])
                    targets = torch.cat([rows.targets, targets])
                again = Rows(sources, targets, kept, rows.norm)
                left, right = again.solve(self.erase_scale, self.keep_scale, ridge)
                # On top of the edit so far: W₀M becomes W₀M(I + D R).
                m = m + (m @ left) @ right
            found[group] = m
        return found
