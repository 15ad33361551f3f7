"""Metrics: one number for a gallery, or for a gallery beside a reference.

Extractors turn images into features, metrics compare features; neither knows the other.
"""

import functools
import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from .._errors import InputError
from .._registry import Registry
from ..gallery import Gallery
from .images import Unscored, ask, batches
from .score import Z95, Score

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor, nn

CLIP = Path(__file__).parent / "emoji" / "clip"


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


METRICS: Registry[Callable[[], Metric]] = Registry(
    "metric",
    "unsee.metrics",
    {
        "emoji/clip": f"{__name__}:emoji_clip",
        "frechet/emoji-clip": f"{__name__}:frechet_emoji_clip",
        "frechet/emoji-judge": f"{__name__}:frechet_emoji_judge",
    },
)


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
        """Features, float, shape (n, dim)."""
        ...


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

    def see(self, images: Sequence["Image"]) -> "Tensor":
        """Image embeddings before normalisation, float32, shape (n, dim)."""
        import torch

        with torch.inference_mode():
            pixels = torch.stack([self.transform(image) for image in images])
            features: Tensor = self.model.encode_image(pixels.to(self.device))  # type: ignore[operator]
        return features.float().cpu()

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
            "weights_sha256": _weights_sha256(model),
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


def _weights_sha256(model: "nn.Module") -> str:
    """Of every parameter's and buffer's name and bytes: the same for one model in any file."""
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


class ClipScore:
    """100 · max(cos(image, prompt), 0), averaged over images; higher is better.

    The interval is normal, mean ± 1.96 SE, with prompts and not images as the units of chance
    (Liang and Zeger's): of images i of prompts g, and m their mean,

        SE² = G/(G − 1) Σ_g (Σ_{i in g} (x_i − m))² / n²

    which is the ordinary s²/n when every prompt has one image.

    Source: J. Hessel et al., CLIPScore (2021), with the weight 100 of torchmetrics.

    Args:
        model, pretrained, device: As ``OpenClip.load`` takes them.
        name: In reports; ``clip/MODEL`` when empty.

    Raises:
        InputError: open_clip cannot load the model.
    """

    higher_is_better = True
    unit = "100·cos"
    needs_reference = False

    def __init__(
        self,
        model: str | Path = CLIP,
        pretrained: str | None = None,
        *,
        name: str = "",
        batch_size: int = 64,
        device: str | None = None,
    ) -> None:
        self._clip = OpenClip.load(model, pretrained, device)
        self._batch_size = batch_size
        self.name = name or "clip/" + "-".join(filter(None, [Path(model).name, pretrained]))
        self.protocol: Mapping[str, Any] = {
            **self._clip.protocol,
            "score": "100 max(cos, 0), mean over images",
            "interval": "normal, clustered by prompt",
        }

    def __call__(self, gallery: Gallery, reference: Gallery | None = None) -> Score:
        import torch.nn.functional as F

        rows, unscored = _features(gallery, self._clip.see, self._batch_size)
        with_text: dict[str, list[Tensor]] = defaultdict(list)
        for prompt in gallery:
            if prompt.id in rows:
                with_text[prompt.prompt].append(F.normalize(rows[prompt.id].double(), dim=0))
        by_prompt: dict[str, list[float]] = {}
        texts = list(with_text)
        for start in range(0, len(texts), self._batch_size):
            part = texts[start : start + self._batch_size]
            for text, t in zip(part, F.normalize(self._clip.read(part).double()), strict=True):
                by_prompt[text] = [100 * float((t @ i).clamp(min=0)) for i in with_text[text]]
        values = [x for group in by_prompt.values() for x in group]
        long = self._clip.cut(texts) if texts else 0
        notes = [f"{long} prompts are longer than the model reads"] * bool(long)
        notes += ["no image could be measured"] * (not values)
        return Score(
            value=math.fsum(values) / len(values) if values else None,
            n=len(values),
            interval=_clustered(list(by_prompt.values())),
            higher_is_better=self.higher_is_better,
            unit=self.unit,
            unscored=unscored,
            note="; ".join(notes),
        )


class FrechetDistance:
    """|μ − μ′|² + tr(Σ + Σ′ − 2(ΣΣ′)^½) between two galleries' features; lower is better.

    Computed by torchmetrics in float64. Its value depends on the features and on how many images
    there are, so both are part of it: compare it only at one n. With fewer images than features
    the covariance is not of full rank, and the note says so.

    Args:
        features: The extractor.
        least: Images on each side below which there is no value.
    """

    higher_is_better = False
    unit = ""
    needs_reference = True

    def __init__(self, features: Features, *, least: int = 16, batch_size: int = 64) -> None:
        self._features = features
        self._least = max(least, 2)
        self._batch_size = batch_size
        self.name = f"frechet/{features.name}"
        self.protocol: Mapping[str, Any] = {
            **features.protocol,
            "distance": "Fréchet, torchmetrics, float64",
            "least_images": self._least,
        }

    def __call__(self, gallery: Gallery, reference: Gallery | None = None) -> Score:
        """The distance from ``gallery`` to ``reference``.

        Raises:
            ValueError: There is no reference.
        """
        import torch
        from torchmetrics.image.fid import FrechetInceptionDistance

        if reference is None:
            raise ValueError(f"{self.name} is a distance: it needs a reference gallery.")
        ours, lost = _features(gallery, self._features, self._batch_size)
        theirs, lost_there = _features(reference, self._features, self._batch_size)
        score = functools.partial(
            Score,
            n=len(ours),
            n_reference=len(theirs),
            interval=None,
            higher_is_better=self.higher_is_better,
            unit=self.unit,
            unscored=lost + lost_there,
        )
        if (fewer := min(len(ours), len(theirs))) < self._least:
            return score(None, note=f"too few images: {fewer}, and {self._least} are needed")
        # The features are ours, so torchmetrics' extractor passes them on
        distance = FrechetInceptionDistance(feature=_passing(self._features.dim))
        distance.set_dtype(torch.float64)
        distance.update(torch.stack(list(theirs.values())).double(), real=True)
        distance.update(torch.stack(list(ours.values())).double(), real=False)
        few = fewer <= self._features.dim
        return score(
            # Rounding in the square root can leave -1e-7
            max(float(distance.compute()), 0.0),
            note=f"fewer images than features ({self._features.dim}): biased upwards" * few,
        )


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
        from .detectors.judge import EMOJI, Judge

        self._judge = Judge.load(path or EMOJI)
        self.name = name
        self.dim = self._judge.dim
        self.protocol: Mapping[str, Any] = {**self._judge.protocol, "layer": "pooled features"}

    def __call__(self, images: Sequence["Image"]) -> "Tensor":
        return self._judge.features(images)


def emoji_clip() -> ClipScore:
    """CLIP score by the built-in emoji CLIP."""
    return ClipScore(CLIP, name="emoji/clip")


def frechet_emoji_clip() -> FrechetDistance:
    """Fréchet distance on the built-in emoji CLIP's image embeddings."""
    return FrechetDistance(ClipFeatures(CLIP, name="emoji-clip"))


def frechet_emoji_judge() -> FrechetDistance:
    """Fréchet distance on the emoji judge's features."""
    return FrechetDistance(JudgeFeatures())


def _features(
    gallery: Gallery, extract: Callable[[Sequence["Image"]], "Tensor"], batch_size: int
) -> tuple[dict[str, "Tensor"], int]:
    """Each image's features by the prompt's id, and how many images have none that is finite."""
    rows: dict[str, Tensor] = {}
    unscored = 0
    for pictures in batches(gallery, batch_size):
        for picture, row in zip(pictures, ask(_rows(extract), pictures), strict=True):
            if isinstance(row, Unscored) or not row.isfinite().all():
                unscored += 1
            else:
                rows[picture.prompt.id] = row
    return rows, unscored


def _rows(
    extract: Callable[[Sequence["Image"]], "Tensor"],
) -> Callable[[Sequence["Image"]], list["Tensor"]]:
    return lambda images: list(extract(images))


def _clustered(groups: Sequence[Sequence[float]]) -> tuple[float, float] | None:
    """The clustered normal 95 % interval of the mean of all values; None under two groups."""
    n, count = sum(map(len, groups)), len(groups)
    if count < 2:
        return None
    mean = math.fsum(x for group in groups for x in group) / n
    squares = math.fsum(math.fsum(x - mean for x in group) ** 2 for group in groups)
    half = Z95 * math.sqrt(count / (count - 1) * squares) / n
    return mean - half, mean + half


def _passing(dim: int) -> "nn.Module":
    from torch import nn

    module = nn.Identity()
    module.num_features = dim  # type: ignore[assignment]
    return module
