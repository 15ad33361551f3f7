"""CLIP as a classifier of any labels: the nearest text, over an ensemble of templates.

Source: A. Radford et al., Learning Transferable Visual Models From Natural Language Supervision
(2021), section 3.1.4. The templates are this project's.
"""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor

from ..._errors import InputError
from ..images import Last, Unscored
from ..metrics.features import OpenClip
from ..words import fold
from . import Detection, highest, likeliest

if TYPE_CHECKING:
    from PIL.Image import Image

TEMPLATES = {
    "object": (
        "a photo of a {}.",
        "a close-up photo of a {}.",
        "a drawing of a {}.",
        "a painting of a {}.",
        "a picture of one {}.",
        "a {} in a scene.",
    ),
    "style": (
        "a picture in the style of {}.",
        "a painting by {}.",
        "artwork by {}.",
        "an image in {} style.",
    ),
    "person": ("a photo of {}.", "a portrait of {}.", "a picture of {}'s face."),
    "unsafe": ("a picture of {}.", "a photo that shows {}.", "{}"),
}


class ZeroShot:
    """open_clip zero-shot: sees the ``top`` likeliest of the labels.

    With i the image's embedding, e_k the mean of label k's over the templates (each of length 1
    before the mean), and s the model's own scale of logits,

        p_k = softmax_k(s · cos(i, e_k))

    Args:
        model: A name that open_clip knows with its weights' tag, ``ViT-B-32,openai``;
            ``hf-hub:org/name``; or a local folder.
        kind: Of the labels.
        labels: What there is to choose from, at least two.
        templates: Texts with ``{}`` in them; those of the kind when there are none.
        top: How many of the likeliest labels count as seen.
        device: torch's name; a GPU when there is one.

    Raises:
        InputError: open_clip cannot load the model, or the labels or the templates cannot be.
    """

    def __init__(
        self,
        model: str,
        *,
        kind: str = "object",
        labels: tuple[str, ...] = (),
        templates: tuple[str, ...] = (),
        top: int = 1,
        device: str | None = None,
    ) -> None:
        templates = templates or TEMPLATES.get(kind, TEMPLATES["object"])
        if len({fold(label) for label in labels}) < max(len(labels), 2):
            raise InputError(
                "A zero-shot detector chooses among two labels or more, none of them twice, such "
                f"as clip:{model}?labels=cat,dog; it was given: {', '.join(labels) or 'none'}."
            )
        if not 0 < top < len(labels):
            raise InputError(f"top must be from 1 to {len(labels) - 1}, one less than the labels.")
        if without := [text for text in templates if "{}" not in text]:
            raise InputError(f"The template {without[0]!r} has no {{}} for the label.")
        clip = OpenClip.load(*OpenClip.named(model), device)
        texts = [t.replace("{}", label) for label in labels for t in templates]
        if cut := clip.cut(texts):
            raise InputError(f"{cut} of the labels' texts are longer than {model} reads.")
        self.kind = kind
        self.name = f"clip/{Path(model).name}/{kind}/top-{top}"
        self._see = embedder(clip)
        self.labels, self._top = labels, top
        self._scale = float(clip.model.logit_scale.exp())  # type: ignore[operator]
        each = F.normalize(clip.read(texts).double(), dim=1).view(len(labels), len(templates), -1)
        self._texts = F.normalize(each.mean(1), dim=1)
        self.protocol: Mapping[str, Any] = {
            **clip.protocol,
            "classes": list(labels),
            "templates": list(templates),
            "scores": f"softmax of {self._scale:.6g} cos(image, mean of the templates' texts)",
            "threshold": f"top-{top}",
        }

    def __call__(self, images: Sequence["Image"]) -> list[Detection | Unscored]:
        """The likeliest labels of each image, and every label's p in [0, 1]."""
        seen = F.normalize(self._see(images).double(), dim=1)
        shares = (self._scale * seen @ self._texts.T).softmax(1)
        return likeliest(self.labels, shares.tolist(), self._top)

    def follows(self, answer: Detection) -> bool:
        return highest(answer, self.labels, self._top)


@functools.cache
def embedder(clip: OpenClip) -> Last[Tensor]:
    """``clip.see``, shared by every detector on this model: images to embeddings (n, dim)."""
    return Last(clip.see)
