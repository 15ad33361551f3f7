"""Whether an erasure did anything, seen in the denoiser's own predictions."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..pipelines.erasure import Erasure
from ..pipelines.parts import Parts
from ..prompts import Concept

HARDLY = 0.1


@torch.no_grad()
def effect(
    parts: Parts, erasure: Erasure, concepts: Sequence[Concept], *, seed: int = 0, samples: int = 2
) -> dict[str, Any]:
    """How far the prediction on each concept went towards its anchor's, and on what is kept.

    With ε the base's prediction and ε′ the erased one's, at three points of the base's own
    trajectories under the concept c towards its anchor a:

        moved = Σ⟨ε′(c) − ε(c), ε(a) − ε(c)⟩ / Σ‖ε(a) − ε(c)‖²      0 is untouched, 1 is there
        kept_moved = √(Σ‖ε′(k) − ε(k)‖² / Σ‖ε(k) − ε(∅)‖²)       over what is kept, likewise

    Args:
        samples: Trajectories a concept, and how many of the kept phrases are looked at.

    Returns:
        For each concept's name, ``moved`` and ``kept_moved`` (None where nothing is kept).
    """
    return {c.name: _of_concept(parts, erasure, c, seed, samples) for c in concepts}


def _of_concept(
    parts: Parts, erasure: Erasure, concept: Concept, seed: int, samples: int
) -> dict[str, float | None]:
    template = concept.templates[0]
    phrase = template.replace("{}", concept.phrases[0])
    kept = [template.replace("{}", k) for k in _spread(concept.keep, samples)]
    texts = parts.encode([phrase, template.replace("{}", concept.anchor or ""), "", *kept])
    sampler = parts.sampler(5)
    points = _trajectory(parts, sampler, texts[:1], seed, samples)

    def predict(text: Tensor) -> Tensor:
        rows = text.expand(samples, -1, -1)
        return torch.stack([parts.predict(x, t, rows, sampler) for x, t in points]).double()

    before = [predict(text[None]) for text in texts]
    with erasure.applied(parts.pipe):
        after = [predict(text[None]) for text in (texts[0], *texts[3:])]
    towards = before[1] - before[0]
    moved = ((after[0] - before[0]) * towards).sum() / towards.square().sum()
    kept_moved = None
    if kept:
        shift = sum((a - b).square().sum() for a, b in zip(after[1:], before[3:], strict=True))
        scale = sum((b - before[2]).square().sum() for b in before[3:])
        kept_moved = float((shift / scale) ** 0.5)
    return {"moved": float(moved), "kept_moved": kept_moved}


def _spread(phrases: Sequence[str], count: int) -> Sequence[str]:
    return phrases[:: max(1, len(phrases) // count)][:count]


def _trajectory(
    parts: Parts, sampler: Any, text: Tensor, seed: int, samples: int
) -> list[tuple[Tensor, Tensor]]:
    """Three latents (samples, *latent_shape) on the way from noise, with their timesteps."""
    noise = torch.randn(
        (samples, *parts.latent_shape()), generator=torch.Generator("cpu").manual_seed(seed)
    )
    x = noise.to(text) * sampler.init_noise_sigma
    rows, points = text.expand(samples, -1, -1), []
    for t in sampler.timesteps[:3]:
        points.append((x, t))
        x = sampler.step(parts.predict(x, t, rows, sampler), t, x).prev_sample
    return points
