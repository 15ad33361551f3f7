"""The built-in object detector that also knows the controls, by the nearest of known icons.

The judge's head chooses among the objects that it was trained on and has no answer for anything
else: it takes a wrench for a hammer or a kitchen knife. Here an image is compared with icons, all
that the model knows and those of the controls (``unsee.prompts.control``), in the judge's
features, and is what the nearest one is. Nothing is trained, so an object is added by its icons
alone. The judge was shown the controls' icons for their style, and never told what they are.

A drawing must be near to a known icon. Of each control's icons by the other seven 24 of 32 are
right, of the model's own objects 736 of 1336, as styles draw things unlike each other; of icons
that were moved, blurred and recoloured as the judge's training does it, 31 of 32 and 1336 of 1336
(``python -m lab.controls``).
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..._errors import InputError
from ..images import Unscored
from . import Detection, highest, likeliest
from .judge import EMOJI, Judge

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

FILE = EMOJI.with_name("nearest.safetensors")


class Nearest:
    """Sees the object of the icon whose features have the highest cosine with the image's.

    Args:
        path: Safetensors: ``features``, one icon a row, and under "config" in its header JSON with
            ``objects``, each row's, and ``judge_sha256``, of the judge that gave the features.
        judge: The judge's file.

    Raises:
        InputError: A file is missing or holds something else, or they do not belong together.
    """

    name = "emoji/nearest"
    kind = "object"

    def __init__(self, path: Path = FILE, judge: Path = EMOJI) -> None:
        import torch

        self._judge = Judge.load(judge)
        self._icons, self._objects, of = _load(path)
        if of != self._judge.protocol["weights_sha256"]:
            raise InputError(
                f"{path} has the features of another judge than {judge}: python -m lab.controls "
                "makes them anew."
            )
        self.labels: tuple[str, ...] = tuple(dict.fromkeys(self._objects))
        index = torch.tensor([self.labels.index(name) for name in self._objects])
        self._of = index.expand(1, -1)
        self.protocol: Mapping[str, Any] = {
            **self._judge.protocol,
            "icons_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "classes": list(self.labels),
            "scores": "cosine of the features with the nearest icon's",
            "threshold": "nearest",
        }

    def __call__(self, images: Sequence["Image"]) -> list[Detection | Unscored]:
        """The nearest object of each image, and for each object the cosine, in [0, 1]."""
        import torch

        if not images:
            return []
        with torch.inference_mode():
            cosines = likeness(self._judge.features(images), self._icons)
        best = cosines.new_zeros(len(images), len(self.labels))
        best = best.scatter_reduce(1, self._of.expand_as(cosines), cosines, "amax")
        return likeliest(self.labels, best.tolist(), 1)

    def follows(self, answer: Detection) -> bool:
        return highest(answer, self.labels, 1)


def likeness(features: "Tensor", icons: "Tensor") -> "Tensor":
    """Cosines, float64, of shapes (n, dim) and (m, dim): (n, m). Features are never negative."""
    import torch.nn.functional as F

    return F.normalize(features.double(), dim=1) @ F.normalize(icons.double(), dim=1).T


def _load(path: Path) -> "tuple[Tensor, tuple[str, ...], str]":
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        raise InputError(f"{path} is not there: the icons' features are needed to compare with.")
    try:
        with safe_open(path, framework="pt") as file:
            config = json.loads((file.metadata() or {})["config"])
            features = file.get_tensor("features").float()
        objects, of = tuple(map(str, config["objects"])), str(config["judge_sha256"])
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise InputError(f"{path} holds no features: {' '.join(str(error).split())}") from error
    if features.ndim != 2 or len(features) != len(objects):
        raise InputError(f"{path} has {len(objects)} objects for features {list(features.shape)}.")
    return features, objects, of
