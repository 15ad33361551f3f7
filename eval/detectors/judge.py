"""The emoji world's judge: one timm backbone, an object head and a style head.

It was trained on the real icons alone and shares nothing with the model that it judges.
"""

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..._errors import InputError
from ..images import Unscored, by_image
from . import Detection, highest

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor, nn

EMOJI = Path(__file__).parents[1] / "emoji" / "judge.safetensors"


@dataclass(frozen=True, eq=False)
class Judge:
    """The judge as loaded, float32, in evaluation mode.

    Attributes:
        backbone: A timm model without its head: (n, 3, size, size) to (n, dim).
        heads: Linear heads by kind: (n, dim) to (n, labels of the kind).
        labels: Kind to the head's labels, in its order.
        protocol: Weights' hash and preprocessing.
    """

    backbone: "nn.Module"
    heads: "nn.ModuleDict"
    labels: Mapping[str, tuple[str, ...]]
    protocol: Mapping[str, Any]
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dim: int
    _last: dict[int, tuple["Image", "Tensor"]] = field(default_factory=dict, repr=False)

    @classmethod
    def load(cls, path: Path = EMOJI) -> "Judge":
        """Reads a judge; the same file is read once.

        The file is safetensors: ``backbone.*``, ``object.*`` and ``style.*`` in fp16 or more, and
        under "config" in its header JSON with ``model`` and ``settings`` (timm's name and
        keywords), ``objects`` and ``styles`` (labels), ``size`` (pixels), ``mean`` and ``std`` (of
        pixels in [0, 1]) and ``resize``.

        Raises:
            InputError: The file is missing or holds no judge.
        """
        return _load(path.resolve())

    def pixels(self, images: Sequence["Image"]) -> "Tensor":
        """RGB images as the backbone wants them, float32, shape (n, 3, size, size)."""
        import numpy as np
        import torch
        from PIL.Image import Resampling

        side = (self.size, self.size)
        # Pillow's resize averages over what it shrinks: antialiased
        fitting = [
            i if i.size == side else i.resize(side, Resampling.BICUBIC)
            for i in (image.convert("RGB") for image in images)
        ]
        pixels = torch.from_numpy(np.stack([np.asarray(i, dtype=np.float32) for i in fitting]))
        pixels = (pixels / 255 - torch.tensor(self.mean)) / torch.tensor(self.std)
        return pixels.permute(0, 3, 1, 2).contiguous()

    def features(self, images: Sequence["Image"]) -> "Tensor":
        """The backbone's pooled features, float32, shape (n, dim).

        Those of the last images are kept: both heads are asked about the same ones in turn, and
        metrics about some of them.
        """
        import torch

        if any(id(image) not in self._last for image in images):
            with torch.inference_mode():
                rows = by_image(self.backbone, self.pixels(images))
            self._last.clear()
            # With the images, so that no other has the id of one of them
            self._last.update((id(i), (i, row)) for i, row in zip(images, rows, strict=True))
        return torch.stack([self._last[id(image)][1] for image in images])


@functools.cache
def _load(path: Path) -> Judge:
    import timm
    import torch
    from safetensors import SafetensorError, safe_open
    from torch import nn

    if not path.exists():
        raise InputError(f"{path} is not there: the emoji judge is needed to score emoji.")
    try:
        with safe_open(path, framework="pt") as file:
            config = json.loads((file.metadata() or {})["config"])
            state = {key: file.get_tensor(key) for key in file.keys()}
        labels = {"object": tuple(config["objects"]), "style": tuple(config["styles"])}
        backbone = timm.create_model(config["model"], num_classes=0, **config["settings"])
        dim = int(backbone.num_features)  # type: ignore[arg-type]
        heads = nn.ModuleDict({kind: nn.Linear(dim, len(of)) for kind, of in labels.items()})
        whole = nn.ModuleDict({"backbone": backbone, **heads})
        whole.load_state_dict(
            {k: v.float() if v.is_floating_point() else v for k, v in state.items()}
        )
    except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"{path} holds no judge: {' '.join(str(error).split())}") from error
    whole.to(torch.float32).eval().requires_grad_(False)
    return Judge(
        backbone=backbone,
        heads=heads,
        labels=labels,
        protocol={
            "weights_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "model": f"timm {config['model']}",
            "resize": f"{config['size']} px, bicubic, antialiased",
            "mean": config["mean"],
            "std": config["std"],
            "dtype": "float32",
        },
        size=int(config["size"]),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        dim=dim,
    )


class JudgeDetector:
    """One of the judge's heads as a detector: it sees one label, the likeliest.

    Args:
        kind: "object" or "style".
        path: A judge's file.
        family: First part of the name.

    Raises:
        InputError: The file is missing or holds no judge.
    """

    def __init__(self, kind: str, path: Path = EMOJI, family: str = "emoji") -> None:
        self._judge = Judge.load(path)
        self.kind = kind
        self.labels = self._judge.labels[kind]
        self.name = f"{family}/{kind}"
        self.protocol: Mapping[str, Any] = {
            **self._judge.protocol,
            "classes": list(self.labels),
            "threshold": "argmax",
        }

    def __call__(self, images: Sequence["Image"]) -> list[Detection | Unscored]:
        """The likeliest label of each image, and the softmax over all labels, in [0, 1]."""
        import torch

        if not images:
            return []
        with torch.inference_mode():
            logits = self._judge.heads[self.kind](self._judge.features(images))
        found: list[Detection | Unscored] = []
        for row in logits.double().softmax(1):
            # argmax of NaN is a label too; a number that is not one is said to be so
            if not row.isfinite().all():
                found.append(Unscored("the judge's answer is not finite"))
                continue
            scores = dict(zip(self.labels, row.tolist(), strict=True))
            found.append(Detection((self.labels[int(row.argmax())],), scores))
        return found

    def follows(self, answer: Detection) -> bool:
        return highest(answer, self.labels, 1)


def emoji_object() -> JudgeDetector:
    """The built-in object detector."""
    return JudgeDetector("object")


def emoji_style() -> JudgeDetector:
    """The built-in style detector."""
    return JudgeDetector("style")
