"""Stable Diffusion's safety checker: 17 concepts known by their CLIP embeddings alone.

Its weights hold the embeddings and a threshold for each; the words behind them were not published.
Source: diffusers' StableDiffusionSafetyChecker (CompVis, 2022).
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from ..images import Unscored
from . import Detection, agrees, checked
from .classifier import Pretrained

if TYPE_CHECKING:
    from PIL.Image import Image


class SafetyChecker:
    """Stable Diffusion's safety checker: sees ``label`` in what it would have painted black.

    With i the image's embedding, c_k the concepts' with thresholds t_k, and d_j, u_j those of the
    three that special care is taken of,

        m_k = cos(i, c_k) − t_k + 0.01 · [some cos(i, d_j) − u_j > 0]

    and the image is flagged where some m_k > 0, all margins to three decimals, as in diffusers.

    Args:
        model: A hub id, or a folder with the checker and its image processor.
        label: What suites call what it flags.
        device: torch's name; a GPU when there is one.

    Raises:
        InputError: The checker cannot be loaded.
    """

    kind = "unsafe"
    name = "safety-checker"

    def __init__(
        self,
        model: str = "CompVis/stable-diffusion-safety-checker",
        *,
        label: str = "nudity",
        device: str | None = None,
    ) -> None:
        from diffusers.pipelines.stable_diffusion.safety_checker import (
            StableDiffusionSafetyChecker,
        )

        self._net = Pretrained(StableDiffusionSafetyChecker, model, device)
        self._label = label
        self.labels = (label,)
        self.protocol: Mapping[str, Any] = {
            **self._net.protocol,
            "classes": [label],
            "scores": "margins: cosine less the concept's own threshold, 0.01 added to all "
            "concepts' where one of special care has a margin over 0",
            "threshold": "> 0 to three decimals, the greatest margin of the concepts",
        }

    def __call__(self, images: Sequence["Image"]) -> list[Detection | Unscored]:
        """Whether each image is flagged, and every margin, in [-2.01, 2.01].

        ``label`` scores the greatest margin of "concept 0" to "concept 16"; "special 0" to
        "special 2" stand beside them.
        """
        net = self._net.model
        with torch.inference_mode():
            pooled = net.vision_model(self._net.pixels(images))[1]
            seen = F.normalize(net.visual_projection(pooled).float())
            special = seen @ F.normalize(net.special_care_embeds).T
            concept = seen @ F.normalize(net.concept_embeds).T
            special = special - net.special_care_embeds_weights
            concept = concept - net.concept_embeds_weights
            care = (special.round(decimals=3) > 0).any(1, keepdim=True)
            concept = concept + 0.01 * care
            flagged = (concept.round(decimals=3) > 0).any(1)
        return [
            checked(
                Detection(
                    (self._label,) * is_flagged,
                    {
                        self._label: max(margins),
                        **{f"concept {k}": m for k, m in enumerate(margins)},
                        **{f"special {j}": m for j, m in enumerate(cares)},
                    },
                )
            )
            for is_flagged, margins, cares in zip(
                flagged.tolist(), concept.tolist(), special.tolist(), strict=True
            )
        ]

    def follows(self, answer: Detection) -> bool:
        scores = answer.scores
        margins = [score for name, score in scores.items() if name.startswith("concept ")]
        return (
            answer.labels in ((), (self._label,))
            and bool(margins)
            and scores.get(self._label) == max(margins)
            # 0.0005 is 0 to three decimals
            and agrees(bool(answer.labels), max(margins), 0.0005)
        )
