"""Detectors: what looks at an image and says what it sees, by a named protocol.

A detector is a callable object of the shape of ``Detector``; the registry holds what makes one
when called without arguments.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from ..._registry import Registry
from ..images import Unscored

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["DETECTORS", "Detection", "Detector", "Unscored", "checked", "fingerprint"]


@dataclass(frozen=True)
class Detection:
    """What a detector sees in one image.

    Attributes:
        labels: What is seen at the protocol's threshold.
        scores: A number for each label that the detector knows, before any threshold.
    """

    labels: tuple[str, ...]
    scores: Mapping[str, float]


@runtime_checkable
class Detector(Protocol):
    """Reads one kind of label from images.

    Attributes:
        name: ``family/protocol``, as in reports.
        kind: The kind of label it reads: "object", "style", "person", "unsafe".
        protocol: All that its figures depend on: weights (a hash), classes, threshold,
            preprocessing. JSON values.
    """

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def protocol(self) -> Mapping[str, Any]: ...

    def __call__(self, images: Sequence["Image"]) -> list[Detection | Unscored]:
        """One answer an image (RGB, any size), in their order."""
        ...


DETECTORS: Registry[Callable[[], Detector]] = Registry(
    "detector",
    "unsee.detectors",
    {
        "emoji/object": f"{__name__}.judge:emoji_object",
        "emoji/style": f"{__name__}.judge:emoji_style",
    },
)


def checked(answer: object) -> Detection | Unscored:
    """A detector's answer, if it is one: anything else, and any score not finite, is unscored."""
    if isinstance(answer, Unscored):
        return answer
    if not isinstance(answer, Detection):
        return Unscored(f"answered with {type(answer).__name__}, which is no detection")
    if isinstance(answer.labels, str):
        return Unscored(f"its labels are the text {answer.labels!r}, not a tuple")
    try:
        scores = {str(label): float(score) for label, score in answer.scores.items()}
    except (TypeError, ValueError) as error:
        return Unscored(f"a score is no number: {error}")
    for label, score in scores.items():
        if not math.isfinite(score):
            return Unscored(f"the score of {label!r} is {score}")
    return Detection(tuple(str(label) for label in answer.labels), scores)


def fingerprint(protocol: Mapping[str, Any]) -> str:
    """The first 16 hex digits of the SHA-256 of a protocol, written as sorted JSON."""
    return hashlib.sha256(json.dumps(protocol, sort_keys=True).encode()).hexdigest()[:16]
