"""SLD: safe latent diffusion, a guidance away from a concept.

Schramowski et al., "Safe Latent Diffusion", CVPR 2023 (https://arxiv.org/abs/2211.05105). At each
step, with predictions ε_∅ of the empty prompt, ε_c of the prompt and ε_S of the concept,

    μ = min(1, s_S |ε_c − ε_S|)  where ε_c − ε_S < λ, else 0        element by element
    g = μ (ε_S − ε_∅) + s_m ν
    ν ← β ν + (1 − β) g                                             from 0, in every step
    ε = ε_∅ + w (ε_c − ε_∅ − g)    from step δ on, before it without g

Nothing is trained: half as many denoiser rows again buy it, and at δ = 0 and a large s_S it can
draw far from the prompt. The phrases of all concepts are one text, between commas; what is to be
kept and anchors have no place in it.

What is known to undo it: in UnlearnDiffAtk's benchmark (https://arxiv.org/abs/2310.11868) its
attack brings nudity back by 82.4 % of the prompts, 33.1 % without it (the medium setting).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from .._reading import read
from .._settings import NotNegative, Positive, Range, Rest, check
from ..pipelines.erasure import Erasure
from ..pipelines.guidance import Guide, Start
from ..pipelines.parts import Parts
from ..pipelines.text import Text
from ..prompts import Concept
from ..records import Record
from ..training.record import encode_concepts, guidance
from . import Eraser


@dataclass(frozen=True)
class SLD(Eraser):
    """Safe latent diffusion. The defaults are the paper's medium strength.

    Attributes:
        scale: s_S, how sharply the concept is pushed away.
        threshold: λ, above which difference an element is let be.
        warmup: δ, the first step that is guided, of 50 steps; of another number as great a share.
            A call with so few steps that none would be guided is refused.
        momentum: s_m, how much of the past pushes is added.
        momentum_decay: β, how much of them is kept from step to step.
    """

    scale: Positive = 1000.0
    threshold: float = 0.01
    warmup: Annotated[int, Range(least=0, most=50)] = 10
    momentum: NotNegative = 0.3
    momentum_decay: Rest = 0.4

    needs = "text"
    honours_keep = False
    honours_anchor = False
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "weak": {
            "scale": 200.0,
            "threshold": 0.0,
            "warmup": 15,
            "momentum": 0.0,
            "momentum_decay": 0.0,
        },
        "strong": {
            "scale": 2000.0,
            "threshold": 0.025,
            "warmup": 7,
            "momentum": 0.5,
            "momentum_decay": 0.7,
        },
        "max": {
            "scale": 5000.0,
            "threshold": 1.0,
            "warmup": 0,
            "momentum": 0.5,
            "momentum_decay": 0.7,
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
        progress(1.0)
        return guidance(parts, "sld", self, concepts, seed)


def guide(record: Record, parts: Parts) -> Start:
    """What makes the guide of a record, for a trajectory.

    Raises:
        InputError: Its settings are none of this method's.
    """
    settings = read(SLD, record.settings, "The record: settings of sld", defaults=True)
    concept = encode_concepts(parts, record.concepts)

    def start(steps: int, prompts: Sequence[str]) -> Guide:
        return _Guide(settings, concept, round(settings.warmup * steps / 50))

    return start


@dataclass
class _Guide:
    settings: SLD
    concept: Text
    begins: int
    changes: ClassVar[tuple[int, ...]] = ()
    past: Tensor = field(default_factory=lambda: torch.zeros(()))

    def before(self, step: int, empty: Text, prompt: Text) -> tuple[Text, Text, Sequence[Text]]:
        return empty, prompt, (self.concept.to(prompt.first).expand(len(prompt)),)

    def after(
        self, step: int, empty: Tensor, prompt: Tensor, more: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        s = self.settings
        apart = prompt - more[0]
        mu = torch.where(apart < s.threshold, (s.scale * apart.abs()).clamp(max=1), 0.0)
        g = mu * (more[0] - empty) + s.momentum * self.past.to(prompt)
        self.past = s.momentum_decay * self.past.to(prompt) + (1 - s.momentum_decay) * g
        return empty, prompt - g if step >= self.begins else prompt
