"""Any image classifier of the Hugging Face hub, or of a local folder."""

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..._errors import InputError
from ..._registry import unknown
from ..images import Unscored, describe
from ..metrics.features import weights_sha256
from . import Detection, highest, likeliest

if TYPE_CHECKING:
    from PIL.Image import Image


class Pretrained:
    """A transformers model with its image processor, float32, in evaluation mode.

    Args:
        cls: What loads it: a class with ``from_pretrained``.
        name: A hub id, or a folder with config, preprocessor_config and safetensors weights.
        device: torch's name; a GPU when there is one.

    Raises:
        InputError: It cannot be loaded, or some of its weights are not in the file, which
            transformers would draw at random.
    """

    def __init__(self, cls: Any, name: str, device: str | None) -> None:
        from transformers import AutoImageProcessor

        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            self.processor = AutoImageProcessor.from_pretrained(name)
            # Weights that are a pickle could run any code
            self.model, loading = cls.from_pretrained(
                name, use_safetensors=True, dtype=torch.float32, output_loading_info=True
            )
        except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
            raise InputError(f"{name} cannot be loaded: {describe(error)}") from error
        if missing := sorted(loading["missing_keys"]):
            raise InputError(
                f"{name} is no {type(self.model).__name__}: it lacks {len(missing)} of its "
                f"weights, such as {missing[0]}."
            )
        self.model.to(self.device).eval().requires_grad_(False)
        self.protocol: Mapping[str, Any] = {
            # Not where it lies on this machine
            "model": f"{type(self.model).__name__} "
            f"{Path(name).name if Path(name).is_dir() else name}",
            "weights_sha256": weights_sha256(self.model),
            "preprocessing": json.loads(self.processor.to_json_string()),
            "dtype": "float32",
        }

    def pixels(self, images: Sequence["Image"]) -> torch.Tensor:
        """RGB images as the model wants them, on its device."""
        batch = self.processor(images=[i.convert("RGB") for i in images], return_tensors="pt")
        pixels: torch.Tensor = batch["pixel_values"].to(self.device)
        return pixels


class Classifier:
    """A Hugging Face image classifier: sees its ``top`` likeliest classes, by softmax.

    Args:
        model: A hub id, or a folder.
        kind: Of its labels.
        rename: Class to label, where a suite says something else: ``{"tench, Tinca tinca":
            "tench"}``. Classes of one label are added up; a class not in it keeps its name.
        top: How many of the likeliest labels count as seen.
        device: torch's name; a GPU when there is one.

    Raises:
        InputError: The model cannot be loaded or has no softmax over classes, ``rename`` names a
            class that it has not, or ``top`` cannot be.
    """

    def __init__(
        self,
        model: str,
        *,
        kind: str = "object",
        rename: Mapping[str, str] | None = None,
        top: int = 1,
        device: str | None = None,
    ) -> None:
        self._net = _classifier(model, device)
        config = self._net.model.config
        if config.problem_type == "multi_label_classification" or config.num_labels < 2:
            raise InputError(
                f"{model} does not choose among classes (problem type: {config.problem_type}, "
                f"{config.num_labels} classes): wanted is a classifier by softmax."
            )
        classes = [str(config.id2label[i]) for i in range(config.num_labels)]
        rename = rename or {}
        for name in rename:
            if name not in classes:
                raise unknown(f"class of {model}", name, classes)
        of_class = [rename.get(name, name) for name in classes]
        self.labels = tuple(dict.fromkeys(of_class))
        if not 0 < top < len(self.labels):
            raise InputError(
                f"top must be from 1 to {len(self.labels) - 1}, one less than the labels."
            )
        self._top = top
        # Columns of 0 and 1: which classes a label adds up
        index = torch.tensor([self.labels.index(label) for label in of_class])
        self._sum = torch.eye(len(self.labels), dtype=torch.float64)[index]
        self.kind = kind
        self.name = f"hf/{Path(model).name}/top-{top}"
        self.protocol: Mapping[str, Any] = {
            **self._net.protocol,
            "classes": list(self.labels),
            "renamed": dict(rename),
            "scores": "softmax",
            "threshold": f"top-{top}",
        }

    def __call__(self, images: Sequence["Image"]) -> list[Detection | Unscored]:
        """The likeliest labels of each image, and every label's share in [0, 1]."""
        with torch.inference_mode():
            logits = self._net.model(self._net.pixels(images)).logits
        shares = logits.double().cpu().softmax(1) @ self._sum
        return likeliest(self.labels, shares.tolist(), self._top)

    def follows(self, answer: Detection) -> bool:
        return highest(answer, self.labels, self._top)


@functools.cache
def _classifier(name: str, device: str | None) -> Pretrained:
    from transformers import AutoModelForImageClassification

    return Pretrained(AutoModelForImageClassification, name, device)
