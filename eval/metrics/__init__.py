"""Metrics: one number for a gallery, or for a gallery beside a reference.

Extractors turn images into features, metrics compare features; neither knows the other.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from ..._errors import InputError
from ..._registry import Registry, make, told
from ..images import Taken
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

if TYPE_CHECKING:
    from PIL.Image import Image

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
    "Published",
    "Rmse",
    "Ssim",
    "Taken",
    "biased_last",
    "check_published",
    "find_metric",
]


@runtime_checkable
class Metric(Protocol):
    """Measures a gallery: it takes something from each image, and makes one score of that.

    Attributes:
        name: As in reports.
        higher_is_better: Its direction.
        unit: Of its value.
        needs_reference: Whether it compares with a reference gallery.
        paired: Whether it looks at an image beside the reference's of the same id, and not at the
            images of each side by themselves.
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
    def paired(self) -> bool: ...
    @property
    def protocol(self) -> Mapping[str, Any]: ...

    def look(self, images: Sequence["Image"], partners: Sequence["Image"] = ()) -> Sequence[Any]:
        """What it takes from each image (RGB, any size), a value an image, in their order.

        Args:
            partners: The reference's images, one each, if it is ``paired``; of the same sizes.
        """
        ...

    def score(self, ours: Sequence[Taken], theirs: Sequence[Taken] = ()) -> Score:
        """The score over what was taken from a gallery's images, and from the reference's.

        What is unscored counts in the score's ``unscored``.
        """
        ...


@runtime_checkable
class Published(Protocol):
    """A metric by a published protocol: against images of its own, on so many images or none.

    Attributes:
        least: Images that it must be given.
    """

    @property
    def least(self) -> int: ...


METRICS: Registry[Callable[..., Metric]] = Registry(
    "metric",
    "unsee.metrics",
    {
        "clip": f"{__name__}.clip:clip",
        "cmmd": f"{__name__}.distances:cmmd",
        "emoji/clip": f"{__name__}.clip:emoji_clip",
        "fid": f"{__name__}.distances:fid",
        "fid:published": f"{__name__}.distances:published",
        "frechet": f"{__name__}.distances:frechet",
        "frechet/emoji-clip": f"{__name__}.distances:frechet_emoji_clip",
        "frechet/emoji-judge": f"{__name__}.distances:frechet_emoji_judge",
        "kid": f"{__name__}.distances:kid",
        "kid/emoji-judge": f"{__name__}.distances:kid_emoji_judge",
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
            "emoji/clip", "clip:ViT-B-32,openai", "kid:emoji-judge", "fid:inception.pth"; and its
            settings after a question mark: "fid:published?real=coco&resize=clean".

    Raises:
        InputError: There is none of that name, its argument is missing or one too many, or what
            it needs is not to be had.
    """
    head, settings, _ = told(METRICS, spec, {})
    return make(METRICS, head, **settings)


def check_published(metrics: Sequence[Metric], images: int, what: str) -> None:
    """Refuses too few images for a metric by a published protocol, before any work.

    Args:
        images: How many there will be.
        what: What they are, for the message.

    Raises:
        InputError: A metric needs more.
    """
    for metric in metrics:
        if isinstance(metric, Published) and images < metric.least:
            raise InputError(
                f"{metric.name} is defined on {metric.least} images, and {what} {images}: give as "
                "many, or leave it out and take kid or cmmd."
            )


def biased_last(metrics: Sequence[Metric]) -> list[Metric]:
    """The metrics in the order in which they are reported: Fréchet distances after all others."""
    return sorted(metrics, key=lambda metric: isinstance(metric, FrechetDistance))
