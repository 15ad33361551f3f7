"""The negative prompt: the baseline that every method should beat.

The concept's text takes the place of the empty prompt in classifier-free guidance (Ho & Salimans,
https://arxiv.org/abs/2207.12598), so that each step goes away from the concept as well as towards
the prompt: ε = ε_S + w (ε_c − ε_S). It is what ``negative_prompt`` of diffusers' pipelines does,
at no cost, and it takes the place of a negative prompt that is given.

What is known to undo it: P4D (https://arxiv.org/abs/2306.09135) finds prompts by which nudity
comes back in 41.0 % of its cases.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from .._reading import read
from ..pipelines.erasure import Erasure
from ..pipelines.guidance import Start
from ..pipelines.parts import Parts
from ..pipelines.text import Text
from ..prompts import Concept
from ..records import Record
from ..training.record import encode_concepts, guidance
from . import Eraser


@dataclass(frozen=True)
class Negative(Eraser):
    """The negative prompt, which has no settings."""

    needs = "text"
    honours_keep = False
    honours_anchor = False
    presets: ClassVar[dict[str, dict[str, Any]]] = {}

    def fit(
        self,
        parts: Parts,
        concepts: Sequence[Concept],
        *,
        seed: int = 0,
        progress: Callable[[float], None] = lambda done: None,
    ) -> Erasure:
        progress(1.0)
        return guidance(parts, "negative", self, concepts, seed)


def guide(record: Record, parts: Parts) -> Start:
    """What makes the guide of a record, for a trajectory.

    Raises:
        InputError: Its settings are none of this method's.
    """
    read(Negative, record.settings, "The record: settings of negative", defaults=True)
    concept = encode_concepts(parts, record.concepts, negative=True)
    return lambda steps, prompts: _Guide(concept)


@dataclass(frozen=True)
class _Guide:
    concept: Text
    begins: ClassVar[int] = 0
    changes: ClassVar[tuple[int, ...]] = ()

    def before(self, step: int, empty: Text, prompt: Text) -> tuple[Text, Text, Sequence[Text]]:
        return self.concept.to(empty.first).expand(len(empty)), prompt, ()

    def after(
        self, step: int, empty: Tensor, prompt: Tensor, more: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        return empty, prompt
