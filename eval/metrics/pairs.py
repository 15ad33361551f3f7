"""Distances from each image to its partner: the same prompt and seed, before and after."""

import re
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..._errors import InputError
from ..images import Taken, Unscored, describe
from ..statistics import Score
from .features import load_tensors, weights_sha256
from .mean import INTERVAL, mean_by_prompt

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


class _Pairs(ABC):
    """A measure of two images, averaged over the pairs of one id in a gallery and a reference.

    What has no partner on the other side, or one that cannot be read or is of another size, is
    unscored. The interval is by a bootstrap over prompts.
    """

    name: str
    higher_is_better = False
    unit = ""
    needs_reference = paired = True
    protocol: Mapping[str, Any]

    def look(
        self, images: Sequence["Image"], partners: Sequence["Image"] = ()
    ) -> Sequence["Tensor"]:
        import torch

        x, y = _pixels(images), _pixels(partners)
        with torch.inference_mode():
            return list(self._compare(x, y))

    def score(self, ours: Sequence[Taken], theirs: Sequence[Taken] = ()) -> Score:
        """The mean over pairs; ``theirs`` are those of the reference that have no partner."""
        by_prompt: dict[str, list[float]] = defaultdict(list)
        for taken in ours:
            if not isinstance(taken.value, Unscored):
                by_prompt[taken.prompt.prompt].append(float(taken.value))
        unscored = len(ours) + len(theirs) - sum(map(len, by_prompt.values()))
        return mean_by_prompt(self, by_prompt, unscored, paired=True)

    @abstractmethod
    def _compare(self, x: "Tensor", y: "Tensor") -> "Tensor":
        """The measure of each pair, shape (n,).

        Args:
            x, y: Pixels in [0, 1], float32, shape (n, 3, height, width).
        """


class Rmse(_Pairs):
    """√(mean (x − y)²) over an image's pixels and channels in [0, 1]; lower is closer."""

    name = "pixels/rmse"
    unit = "of [0, 1]"
    protocol: Mapping[str, Any] = {
        "distance": "root mean square over pixels and channels, mean over images",
        "pixels": "[0, 1]",
        "resize": "none",
        "interval": INTERVAL,
    }

    def _compare(self, x: "Tensor", y: "Tensor") -> "Tensor":
        return (x.double() - y.double()).square().mean((1, 2, 3)).sqrt()


class Ssim(_Pairs):
    """Structural similarity, in [−1, 1]; 1 is the same image.

    torchmetrics', in float32, over the three channels, with the paper's Gaussian window (σ = 1.5,
    11 pixels), K₁ = 0.01 and K₂ = 0.03. Borders are mirrored.

    Source: Z. Wang et al., Image Quality Assessment: From Error Visibility to Structural
    Similarity (2004).
    """

    name = "pixels/ssim"
    higher_is_better = True
    protocol: Mapping[str, Any] = {
        "distance": "SSIM, torchmetrics, Gaussian window of σ 1.5 and 11 px, mean over images",
        "pixels": "[0, 1]",
        "resize": "none",
        "interval": INTERVAL,
    }

    def _compare(self, x: "Tensor", y: "Tensor") -> "Tensor":
        from torchmetrics.functional.image import structural_similarity_index_measure

        found = structural_similarity_index_measure(x, y, data_range=1.0, reduction="none")
        assert not isinstance(found, tuple)
        return found.reshape(len(x))


class Lpips(_Pairs):
    """LPIPS: a weighted distance of two images' features in a classifier; lower is closer.

    torchmetrics', with the authors' linear weights of version 0.1, which ship with it. The
    classifier's own weights are torchvision's, trained on ImageNet.

    Source: R. Zhang et al., The Unreasonable Effectiveness of Deep Features as a Perceptual Metric
    (2018).

    Args:
        net: "alex" (the authors' choice as a metric), "vgg" or "squeeze".
        weights: A local copy of torchvision's file; otherwise torch's cache, or a download.
        device: torch's name; a GPU when there is one.

    Raises:
        InputError: The weights are not to be had, or are another network's.
    """

    def __init__(
        self, net: str = "alex", weights: str | Path | None = None, *, device: str | None = None
    ) -> None:
        import torch
        from torchmetrics.functional.image.lpips import _NoTrainLpips

        state = None if weights is None else load_tensors(Path(weights))
        # A network's first weights, soon overwritten, are drawn from the global generator
        with torch.random.fork_rng(devices=[]):
            try:
                # torchmetrics' public class would fetch a network even where one is given
                model = _NoTrainLpips(net=net, pnet_rand=state is not None)  # type: ignore[arg-type]
            except (OSError, RuntimeError) as error:
                raise InputError(
                    f"LPIPS's {net} cannot be fetched: {describe(error)}. Give a local copy of "
                    f"torchvision's weights, as in lpips/{net}:FILE."
                ) from error
        if state is not None:
            # slice2.3.weight here is features.3.weight in torchvision's
            old = {k: re.sub(r"^slices?\.?\d+\.", "features.", k) for k in model.net.state_dict()}
            try:
                model.net.load_state_dict({k: state[name] for k, name in old.items()})
            except (KeyError, RuntimeError) as error:
                raise InputError(
                    f"{weights} holds no {net} of torchvision's: {describe(error)}"
                ) from error
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._model = model.to(self._device)
        self.name = f"lpips/{net}"
        self.protocol: Mapping[str, Any] = {
            "distance": "LPIPS 0.1, torchmetrics, mean over images",
            "model": f"torchvision {net}",
            "weights_sha256": weights_sha256(model),
            "pixels": "[0, 1], then [-1, 1]",
            "resize": "none",
            "dtype": "float32",
            "interval": INTERVAL,
        }

    def _compare(self, x: "Tensor", y: "Tensor") -> "Tensor":
        found: Tensor = self._model(x.to(self._device), y.to(self._device), normalize=True)
        return found.reshape(len(x)).cpu()


def lpips_alex(weights: str | None = None) -> Lpips:
    """LPIPS on AlexNet."""
    return Lpips("alex", weights)


def lpips_vgg(weights: str | None = None) -> Lpips:
    """LPIPS on VGG-16."""
    return Lpips("vgg", weights)


def lpips_squeeze(weights: str | None = None) -> Lpips:
    """LPIPS on SqueezeNet 1.1, the smallest: 5 MB."""
    return Lpips("squeeze", weights)


def _pixels(images: Sequence["Image"]) -> "Tensor":
    import numpy as np
    import torch

    stacked = torch.from_numpy(np.stack([np.asarray(image) for image in images]))
    return stacked.permute(0, 3, 1, 2).float() / 255
