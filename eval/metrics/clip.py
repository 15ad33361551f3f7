"""CLIP score: how well an image fits its prompt."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..images import Taken
from ..statistics import Score
from .features import CLIP, ClipFeatures, OpenClip, vectors
from .mean import INTERVAL, mean_by_prompt

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

TEXTS = 64
"""Texts at a time in the text encoder."""


class ClipScore:
    """100 · max(cos(image, prompt), 0), averaged over images; higher is better.

    The interval is by a bootstrap over prompts.

    Source: J. Hessel et al., CLIPScore (2021), with the weight 100 of torchmetrics.

    Args:
        model, pretrained, device: As ``OpenClip.load`` takes them.
        name: In reports; ``clip/MODEL`` when empty.

    Raises:
        InputError: open_clip cannot load the model.
    """

    higher_is_better = True
    unit = "100·cos"
    needs_reference = paired = False

    def __init__(
        self,
        model: str | Path = CLIP,
        pretrained: str | None = None,
        *,
        name: str = "",
        device: str | None = None,
    ) -> None:
        self._clip = OpenClip.load(model, pretrained, device)
        self.features = ClipFeatures(model, pretrained, device=device)
        self.name = name or "clip/" + "-".join(filter(None, [Path(model).name, pretrained]))
        self.protocol: Mapping[str, Any] = {
            **self._clip.protocol,
            "score": "100 max(cos, 0), mean over images",
            "interval": INTERVAL,
        }

    def look(
        self, images: Sequence["Image"], partners: Sequence["Image"] = ()
    ) -> Sequence["Tensor"]:
        return list(self.features(images))

    def score(self, ours: Sequence[Taken], theirs: Sequence[Taken] = ()) -> Score:
        import torch.nn.functional as F

        rows, unscored = vectors(ours)
        with_text: dict[str, list[Tensor]] = defaultdict(list)
        for prompt, row in rows:
            with_text[prompt.prompt].append(F.normalize(row.double(), dim=0))
        by_prompt: dict[str, list[float]] = {}
        texts = list(with_text)
        for start in range(0, len(texts), TEXTS):
            part = texts[start : start + TEXTS]
            for text, t in zip(part, F.normalize(self._clip.read(part).double()), strict=True):
                by_prompt[text] = [100 * float((t @ i).clamp(min=0)) for i in with_text[text]]
        long = self._clip.cut(texts) if texts else 0
        note = f"{long} prompts are longer than the model reads" * bool(long)
        return mean_by_prompt(self, by_prompt, unscored, note)


def emoji_clip() -> ClipScore:
    """CLIP score by the built-in emoji CLIP."""
    return ClipScore(CLIP, name="emoji/clip")


def clip(model: str) -> ClipScore:
    """CLIP score by any open_clip model.

    Args:
        model: As ``OpenClip.named`` reads it.
    """
    return ClipScore(*OpenClip.named(model))
