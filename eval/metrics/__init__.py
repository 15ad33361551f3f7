"""Metrics: one number for a gallery, or for a gallery beside a reference.

Extractors turn images into features, metrics compare features; neither knows the other.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

from ..._registry import Registry, make
from ...gallery import Gallery
from ..statistics import Score
from .clip import ClipScore
from .distances import ClipKernelDistance, FrechetDistance, KernelDistance
from .features import (
    CLIP,
    FEATURES,
    ClipFeatures,
    Features,
    InceptionFeatures,
    JudgeFeatures,
    OpenClip,
)
from .pairs import Lpips, Rmse, Ssim

__all__ = [
    "CLIP",
    "FEATURES",
    "METRICS",
    "ClipFeatures",
    "ClipKernelDistance",
    "ClipScore",
    "Features",
    "FrechetDistance",
    "InceptionFeatures",
    "JudgeFeatures",
    "KernelDistance",
    "Lpips",
    "Metric",
    "OpenClip",
    "Rmse",
    "Ssim",
    "find_metric",
]


@runtime_checkable
class Metric(Protocol):
    """Measures a gallery.

    Attributes:
        name: As in reports.
        higher_is_better: Its direction.
        unit: Of its value.
        needs_reference: Whether it compares with a reference gallery.
        protocol: All that its figure depends on. JSON values.
    """

    @property
    def name(self) -> str: ...
    @property
    def higher_is_better(self) -> bool: ...
    @property
    def unit(self) -> str: ...
    @property
    def needs_reference(self) -> bool: ...
    @property
    def protocol(self) -> Mapping[str, Any]: ...

    def __call__(self, gallery: Gallery, reference: Gallery | None = None) -> Score:
        """The score over all of the gallery's prompts."""
        ...


METRICS: Registry[Callable[..., Metric]] = Registry(
    "metric",
    "unsee.metrics",
    {
        "clip": f"{__name__}.clip:clip",
        "cmmd": f"{__name__}.distances:cmmd",
        "emoji/clip": f"{__name__}.clip:emoji_clip",
        "fid": f"{__name__}.distances:fid",
        "frechet": f"{__name__}.distances:frechet",
        "frechet/emoji-clip": f"{__name__}.distances:frechet_emoji_clip",
        "frechet/emoji-judge": f"{__name__}.distances:frechet_emoji_judge",
        "kid": f"{__name__}.distances:kid",
        "lpips/alex": f"{__name__}.pairs:lpips_alex",
        "lpips/squeeze": f"{__name__}.pairs:lpips_squeeze",
        "lpips/vgg": f"{__name__}.pairs:lpips_vgg",
        "pixels/rmse": f"{__name__}.pairs:Rmse",
        "pixels/ssim": f"{__name__}.pairs:Ssim",
    },
)


def find_metric(spec: str) -> Metric:
    """The metric that a user means.

    Args:
        spec: A name in ``METRICS``, with its argument after a colon where it takes one:
            "emoji/clip", "clip:ViT-B-32,openai", "kid:emoji-judge", "fid:inception.pth".

    Raises:
        InputError: There is none of that name, its argument is missing or one too many, or what
            it needs is not to be had.
    """
    return make(METRICS, spec)
