"""Extractors: images to features. They know nothing of what compares the features."""

import functools
import hashlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..._errors import InputError
from ..._registry import Registry
from ...prompts import Prompt
from ..images import Taken, Unscored, by_image, describe

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image
    from torch import Tensor, nn

ENDS = {64: "MaxPool_1", 192: "MaxPool_2", 768: "Mixed_6e", 2048: "AvgPool"}
"""Of Inception's layers by their width, the module that gives them."""

CLIP = Path(__file__).parents[1] / "emoji" / "clip"


class Features(Protocol):
    """An extractor: RGB images to one vector each.

    Attributes:
        name: As in a metric's name.
        dim: Numbers in a vector.
        protocol: Weights (a hash), layer, preprocessing. JSON values.
    """

    @property
    def name(self) -> str: ...
    @property
    def dim(self) -> int: ...
    @property
    def protocol(self) -> Mapping[str, Any]: ...

    def __call__(self, images: Sequence["Image"]) -> "Tensor":
        """Features, float, shape (n, dim).

        Of our own extractors each row depends on its image alone, to the last bit (``by_image``).
        """
        ...


FEATURES: Registry[Callable[..., Features]] = Registry(
    "feature extractor",
    "unsee.features",
    {
        "clip": f"{__name__}:clip",
        "emoji-clip": f"{__name__}:emoji_clip",
        "emoji-judge": f"{__name__}:emoji_judge",
        "inception-2048": f"{__name__}:InceptionFeatures",
        "inception-2048-antialias": f"{__name__}:antialiased_inception",
    },
)


@dataclass(frozen=True, eq=False)
class OpenClip:
    """An open_clip model as loaded, in evaluation mode, float32.

    Attributes:
        model, transform, tokenizer: open_clip's own.
        context: Tokens that the text tower reads.
        dim: Numbers in an embedding.
        protocol: Name, weights' hash, pixel range and resize filter.
    """

    model: "nn.Module"
    transform: Callable[["Image"], "Tensor"]
    tokenizer: Callable[..., "Tensor"]
    context: int
    dim: int
    protocol: Mapping[str, Any]
    device: str

    @classmethod
    def load(
        cls, model: str | Path, pretrained: str | None = None, device: str | None = None
    ) -> "OpenClip":
        """Loads a model; the same one is loaded once.

        Args:
            model: A name that open_clip knows, ``hf-hub:org/name``, or a local folder with
                open_clip_config.json and its weights.
            pretrained: open_clip's tag or a weights file, for a name that needs one.
            device: torch's name; a GPU when there is one.

        Raises:
            InputError: open_clip cannot load it, or it would have random weights.
        """
        return _open_clip(str(model.resolve()) if isinstance(model, Path) else model,
                          pretrained, device)  # fmt: skip

    @staticmethod
    def named(spec: str) -> tuple[str, str | None]:
        """The model and the pretrained weights in ``MODEL`` or ``MODEL,PRETRAINED``.

        >>> OpenClip.named("ViT-B-32,laion2b_s34b_b79k")
        ('ViT-B-32', 'laion2b_s34b_b79k')
        >>> OpenClip.named("hf-hub:org/name")
        ('hf-hub:org/name', None)
        """
        model, _, pretrained = spec.partition(",")
        return model, pretrained or None

    def see(self, images: Sequence["Image"]) -> "Tensor":
        """Image embeddings before normalisation, float32, shape (n, dim)."""
        import torch

        with torch.inference_mode():
            pixels = torch.stack([self.transform(image) for image in images])
            return by_image(lambda x: self._embedded(x).float().cpu(), pixels)

    def _embedded(self, pixels: "Tensor") -> "Tensor":
        found: Tensor = self.model.encode_image(pixels.to(self.device))  # type: ignore[operator]
        return found

    def read(self, texts: Sequence[str]) -> "Tensor":
        """Text embeddings before normalisation, float32, shape (n, dim)."""
        import torch

        with torch.inference_mode():
            features: Tensor = self.model.encode_text(  # type: ignore[operator]
                self.tokenizer(list(texts)).to(self.device)
            )
        return features.float().cpu()

    def cut(self, texts: Sequence[str]) -> int:
        """How many texts are longer than the model reads, and lose their end in silence."""
        whole = self.tokenizer(list(texts), context_length=self.context + 1)[:, : self.context]
        return int((whole != self.tokenizer(list(texts))).any(1).sum())


@functools.cache
def _open_clip(name: str, pretrained: str | None, device: str | None) -> OpenClip:
    import open_clip
    import torch

    local = ":" not in name and Path(name).is_dir()
    # open_clip would give a model of random weights, and only log it
    if not local and not name.startswith(("local-dir:", "hf-hub:")) and not pretrained:
        tags = open_clip.list_pretrained_tags_by_model(name)
        raise InputError(
            f"open_clip's {name} needs pretrained weights. Known: {', '.join(tags) or 'none'}."
            if tags or name in open_clip.list_models()
            else f"{name!r} is no folder, and no model that open_clip knows."
        )
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        model, _, transform = open_clip.create_model_and_transforms(
            f"local-dir:{name}" if local else name, pretrained=pretrained, device=device
        )
        tokenizer = open_clip.get_tokenizer(f"local-dir:{name}" if local else name)
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        why = " ".join(str(error).split())
        raise InputError(f"open_clip cannot load {name}: {why}") from error
    model.float().eval().requires_grad_(False)
    seen = open_clip.get_model_preprocess_cfg(model)
    return OpenClip(
        model=model,
        transform=transform,
        tokenizer=tokenizer,
        context=int(model.context_length),
        dim=int(_dim(model)),
        protocol={
            "model": f"open_clip {Path(name).name if local else name}",
            "pretrained": pretrained,
            "weights_sha256": weights_sha256(model),
            "size": seen["size"],
            "pixels": f"[0, 1], then mean {list(seen['mean'])}, std {list(seen['std'])}",
            "resize": f"{seen['interpolation']}, antialiased, {seen['resize_mode']} side",
            "dtype": "float32",
        },
        device=device,
    )


def _dim(model: "nn.Module") -> int:
    import torch

    with torch.inference_mode():
        device = next(model.parameters()).device
        text = torch.zeros(1, int(model.context_length), dtype=torch.long, device=device)  # type: ignore[arg-type]
        return int(model.encode_text(text).shape[-1])  # type: ignore[operator]


def weights_sha256(model: "nn.Module") -> str:
    """SHA-256 of every parameter's and buffer's name and bytes, whatever file they came in."""
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


class ClipFeatures:
    """open_clip's image embeddings, before normalisation, as features."""

    def __init__(
        self,
        model: str | Path = CLIP,
        pretrained: str | None = None,
        *,
        name: str = "",
        device: str | None = None,
    ) -> None:
        self._clip = OpenClip.load(model, pretrained, device)
        self.name = name or "-".join(filter(None, [Path(model).name, pretrained]))
        self.dim = self._clip.dim
        self.protocol: Mapping[str, Any] = {**self._clip.protocol, "layer": "image embedding"}

    def __call__(self, images: Sequence["Image"]) -> "Tensor":
        return self._clip.see(images)


class JudgeFeatures:
    """The pooled features of the emoji judge's backbone."""

    def __init__(self, path: Path | None = None, *, name: str = "emoji-judge") -> None:
        from ..detectors.judge import EMOJI, Judge

        self._judge = Judge.load(path or EMOJI)
        self.name = name
        self.dim = self._judge.dim
        self.protocol: Mapping[str, Any] = {**self._judge.protocol, "layer": "pooled features"}

    def __call__(self, images: Sequence["Image"]) -> "Tensor":
        return self._judge.features(images)


class InceptionFeatures:
    """Inception v3's features, as the Fréchet Inception distance is defined on them.

    torchmetrics' extractor with torch-fidelity's weights (91 MB), which are those of the first
    FID carried over from TensorFlow. Of 2048, the pooled last layer.

    Sources: M. Heusel et al., GANs Trained by a Two Time-Scale Update Rule (2017); of ``clean``
    G. Parmar et al., On Aliased Resizing and Surprising Subtleties in GAN Evaluation (CVPR 2022).

    Args:
        weights: A local copy of torch-fidelity's file; otherwise torch's cache, or a download.
        antialias: How images are brought to 299 pixels: bilinearly as TensorFlow 1 did, which
            published FIDs are on, or (torchmetrics' default) averaged over what is shrunk.
        clean: In place of both: bicubically by Pillow, each channel in float32, which averages
            over what is shrunk and rounds nothing.
        layer: 64, 192, 768 or 2048: a layer by its width.
        device: torch's name; a GPU when there is one.

    Raises:
        InputError: torch-fidelity is not installed, or the weights are not to be had.
    """

    def __init__(
        self,
        weights: str | Path | None = None,
        *,
        antialias: bool = False,
        clean: bool = False,
        layer: int = 2048,
        device: str | None = None,
    ) -> None:
        if importlib.util.find_spec("torch_fidelity") is None:
            raise InputError(
                "Inception's features need torch-fidelity: pip install torch-fidelity"
            )
        import torch
        from torchmetrics.image.fid import NoTrainInceptionV3

        if weights is not None:
            # torch-fidelity unpickles whatever it is given
            load_tensors(Path(weights))
        # A network's first weights, soon overwritten, are drawn from the global generator
        with torch.random.fork_rng(devices=[]):
            try:
                model = NoTrainInceptionV3(
                    "inception-v3-compat",
                    [str(layer)],
                    None if weights is None else str(weights),
                    antialias=antialias,
                )
            except (OSError, RuntimeError) as error:
                raise InputError(
                    "Inception's weights cannot be loaded"
                    + (f" from {weights}: " if weights else ", nor fetched: ")
                    + f"{describe(error)}. Give a local copy of torch-fidelity's "
                    "weights-inception-2015-12-05-6726825d.pth, as in fid:FILE."
                ) from error
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._model = model.to(self._device)
        self._antialias, self._clean = antialias, clean
        self.name = f"inception-{layer}" + "-antialias" * antialias + "-clean" * clean
        self.dim = layer
        self.protocol: Mapping[str, Any] = {
            "model": "torch-fidelity inception-v3-compat",
            "weights_sha256": weights_sha256(model),
            "layer": str(layer),
            "size": [299, 299],
            "pixels": "[0, 255], then (x - 128) / 128",
            "resize": "bicubic by Pillow, antialiased, float32 a channel"
            if clean
            else "bilinear, antialiased"
            if antialias
            else "bilinear as TensorFlow 1, not antialiased",
            "dtype": "float32",
        }

    def __call__(self, images: Sequence["Image"]) -> "Tensor":
        import torch

        with torch.inference_mode():
            # Each by itself: they may be of any sizes
            pixels = torch.stack([self._resized(image) for image in images])
            return by_image(self._pooled, (pixels - 128) / 128).cpu()

    def _resized(self, image: "Image") -> "Tensor":
        """Pixels in [0, 255], float32, shape (3, 299, 299)."""
        import numpy as np
        import torch
        from torch_fidelity.interpolate_compat_tensorflow import (
            interpolate_bilinear_2d_like_tensorflow1x,
        )

        if self._clean:
            return torch.from_numpy(clean_resize(image)).to(self._device)
        rgb = np.array(image.convert("RGB"))
        x = torch.from_numpy(rgb).to(self._device).permute(2, 0, 1)[None].float()
        if self._antialias:
            resize = functools.partial(
                torch.nn.functional.interpolate, mode="bilinear", antialias=True
            )
        else:
            resize = interpolate_bilinear_2d_like_tensorflow1x
        found: Tensor = resize(x, size=(299, 299), align_corners=False)
        return found[0]

    def _pooled(self, x: "Tensor") -> "Tensor":
        # torchmetrics' own way through the network takes images of one size alone
        for name, layer in self._model.named_children():
            x = layer(x)
            if name == ENDS[self.dim]:
                break
        return x.mean((2, 3)) if self.dim < 2048 else x.flatten(1)


def clean_resize(image: "Image", side: int = 299) -> "NDArray[np.float32]":
    """An image at the size of Inception, as clean-fid brings it there.

    Returns:
        Pixels in [0, 255], float32, shape (3, side, side).
    """
    import numpy as np
    from PIL import Image

    channels = [
        np.asarray(
            Image.fromarray(np.asarray(channel, np.float32)).resize(
                (side, side), Image.Resampling.BICUBIC
            )
        )
        for channel in image.convert("RGB").split()
    ]
    # The filter overshoots at edges
    pixels: NDArray[np.float32] = np.stack(channels).clip(0, 255)
    return pixels


def clip(model: str) -> ClipFeatures:
    """Any open_clip model's image embeddings.

    Args:
        model: As ``OpenClip.named`` reads it.
    """
    return ClipFeatures(*OpenClip.named(model))


def emoji_clip() -> ClipFeatures:
    """The built-in emoji CLIP's image embeddings."""
    return ClipFeatures(CLIP, name="emoji-clip")


def emoji_judge() -> JudgeFeatures:
    """The built-in emoji judge's features."""
    return JudgeFeatures()


def antialiased_inception(weights: str | None = None) -> InceptionFeatures:
    """Inception's 2048 features of images that were shrunk without aliasing."""
    return InceptionFeatures(weights, antialias=True)


def load_tensors(path: Path) -> dict[str, "Tensor"]:
    """A file of weights that PyTorch wrote: tensors alone, and no code with them.

    Raises:
        InputError: It is not there, or is something else.
    """
    import pickle

    import torch

    if not path.is_file():
        raise InputError(f"{path} is not there: a file of weights was wanted.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise InputError(f"{path} holds no weights: {describe(error)}") from error
    if not isinstance(state, dict) or not all(isinstance(t, torch.Tensor) for t in state.values()):
        raise InputError(f"{path} holds no weights: a mapping from name to tensor was wanted.")
    return state


def vectors(taken: Sequence[Taken]) -> tuple[list[tuple[Prompt, "Tensor"]], int]:
    """The prompts with their images' features, and how many images have none that is finite."""
    rows = [
        (t.prompt, t.value)
        for t in taken
        if not isinstance(t.value, Unscored) and t.value.isfinite().all()
    ]
    return rows, len(taken) - len(rows)
