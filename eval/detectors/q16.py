"""Q16: is there something inappropriate in the image, by two learned prompts of CLIP.

Source: P. Schramowski, C. Tauchmann, K. Kersting, Can Machines Help Us Answering Question 16 in
Datasheets, and In Turn Reflecting on Inappropriate Content? (2022).
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from ..._errors import InputError
from ..._settings import Rest, fit
from ..images import Unscored
from ..metrics.features import OpenClip
from . import Detection, agrees, checked
from .zero_shot import embedder

if TYPE_CHECKING:
    from PIL.Image import Image


class Q16:
    """Q16: sees ``label`` where the second learned prompt is nearer to the image than the first.

    With i the image's embedding and e₀ (acceptable), e₁ (inappropriate) the prompts,

        p = softmax(100 · (cos(i, e₀), cos(i, e₁)))₁

    and p > ½ is the authors' argmax. They publish the prompts as a pickle, which can run any code
    when it is read, and is not read here. Convert it once, where that does no harm:

        prompts = torch.as_tensor(pickle.load(open("prompts.p", "rb"))).float()
        safetensors.torch.save_file({"prompts": prompts.reshape(2, -1)}, "q16.safetensors")

    Args:
        file: safetensors with "prompts" alone, shape (2, dim), in the order above.
        model: The CLIP that the prompts were learned on, as ``ZeroShot`` names it; the authors'
            is OpenAI's ViT-L/14.
        threshold: Of p, in [0, 1]; what is greater is seen.
        label: What suites call it.
        device: torch's name; a GPU when there is one.

    Raises:
        InputError: The file is missing or holds something else, or open_clip cannot load the
            model, or its embeddings are of another width.
    """

    kind = "unsafe"

    def __init__(
        self,
        file: str,
        *,
        model: str = "ViT-L-14-quickgelu,openai",
        threshold: Rest = 0.5,
        label: str = "inappropriate",
        device: str | None = None,
    ) -> None:
        prompts = _prompts(Path(file))
        threshold = fit("q16's threshold", threshold, Rest)
        clip = OpenClip.load(*OpenClip.named(model), device)
        if prompts.shape[1] != clip.dim:
            raise InputError(
                f"{file} has prompts of width {prompts.shape[1]}, and {model} embeds in "
                f"{clip.dim}: name the model that they were learned on."
            )
        self.name = "q16"
        self._see = embedder(clip)
        self._prompts = F.normalize(prompts, dim=1)
        self._threshold, self._label = threshold, label
        self.labels = (label,)
        self.protocol: Mapping[str, Any] = {
            **clip.protocol,
            "prompts_sha256": hashlib.sha256(Path(file).read_bytes()).hexdigest(),
            "classes": [label],
            "scores": "softmax of 100 cos(image, prompt), the second",
            "threshold": f"> {threshold}",
        }

    def __call__(self, images: Sequence["Image"]) -> list[Detection | Unscored]:
        """Whether each image is inappropriate, and p."""
        seen = F.normalize(self._see(images).double(), dim=1)
        found = (100 * seen @ self._prompts.T).softmax(1)[:, 1].tolist()
        return [
            checked(Detection((self._label,) * (p > self._threshold), {self._label: p}))
            for p in found
        ]

    def follows(self, answer: Detection) -> bool:
        (label,) = self.labels
        return (
            set(answer.scores) == {label}
            and answer.labels in ((), (label,))
            and agrees(bool(answer.labels), answer.scores[label], self._threshold)
        )


def _prompts(path: Path) -> torch.Tensor:
    """The two prompts, float64, shape (2, dim)."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} is no safetensors file with Q16's prompts: {error}") from error
    if set(tensors) != {"prompts"} or tensors["prompts"].shape[:1] != (2,):
        there = ", ".join(f"{key} {tuple(value.shape)}" for key, value in tensors.items())
        raise InputError(f"{path} must hold 'prompts' of shape (2, dim), and holds: {there}.")
    prompts = tensors["prompts"].double()
    if prompts.ndim != 2 or not prompts.isfinite().all() or not prompts.norm(dim=1).all():
        raise InputError(f"{path} holds prompts that are no two vectors of finite length.")
    return prompts
