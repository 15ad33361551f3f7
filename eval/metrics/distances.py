"""Distances between two galleries' features. They know nothing of what made the features."""

import functools
import hashlib
import math
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ..._errors import InputError
from ..._registry import make
from ...gallery import Gallery
from ...prompts import Prompt
from ..images import Taken
from ..statistics import Floor, Score
from .features import FEATURES, Features, InceptionFeatures, emoji_clip, emoji_judge, vectors

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor, nn

BLOCK = 1024

PUBLISHED = 30_000
"""Images on either side of a published FID."""

Row = tuple[Prompt, "Tensor"]
"""An image's prompt and its features."""


class _Distance(ABC):
    """From a gallery's features to a reference's; lower is better.

    Args:
        features: The extractor.
        name: In reports; ``family/features`` when empty.
        least: Images on each side below which there is no value.
    """

    higher_is_better = False
    unit = ""
    needs_reference, paired = True, False
    family: ClassVar[str]
    says: ClassVar[Mapping[str, Any]]

    def __init__(self, features: Features, *, name: str = "", least: int = 16) -> None:
        self.features = features
        self._least = max(least, 2)
        self.name = name or f"{self.family}/{features.name}"
        self.protocol: Mapping[str, Any] = {
            **features.protocol,
            **self.says,
            "least_images": self._least,
        }

    def look(
        self, images: Sequence["Image"], partners: Sequence["Image"] = ()
    ) -> Sequence["Tensor"]:
        return list(self.features(images))

    def score(self, ours: Sequence[Taken], theirs: Sequence[Taken] = ()) -> Score:
        """The distance from our images' features to theirs."""
        import torch

        x, lost = vectors(ours)
        y, lost_there = vectors(theirs)
        score = functools.partial(
            Score,
            n=len(x),
            n_reference=len(y),
            interval=None,
            higher_is_better=self.higher_is_better,
            unit=self.unit,
            unscored=lost + lost_there,
        )
        if (fewer := min(len(x), len(y))) < self._least:
            return score(None, note=f"too few images: {fewer}, and {self._least} are needed")
        place = {prompt.id: j for j, (prompt, _) in enumerate(y)}
        same = [(i, place[p.id]) for i, (p, _) in enumerate(x) if p.id in place]
        value = self._between(
            torch.stack([row for _, row in x]).double(),
            torch.stack([row for _, row in y]).double(),
            same,
        )
        if not math.isfinite(value):
            return score(None, note=f"the distance is {value}")
        # Of images that came from anywhere nobody knows the prompt
        known = [(x[i], y[j]) for i, j in same if x[i][0] == y[j][0] and x[i][0].prompt]
        floor, why = self._floor(known)
        return score(
            value,
            note="; ".join(filter(None, (self._note(fewer, len(known)), why))),
            withheld=self._withheld(fewer),
            pairs=len(known),
            floor=floor,
        )

    @abstractmethod
    def _between(self, x: "Tensor", y: "Tensor", same: Sequence[tuple[int, int]]) -> float:
        """The distance between features, float64, shapes (m, dim) and (n, dim).

        Args:
            same: Rows of x and of y that are of one prompt and seed.
        """

    def _note(self, fewer: int, pairs: int) -> str:
        return ""

    def _withheld(self, fewer: int) -> str:
        return ""

    def _floor(self, pairs: "Sequence[tuple[Row, Row]]") -> tuple[Floor | None, str]:
        """The floor, or why there is none; neither where the estimate has no bias.

        Args:
            pairs: Our rows and theirs, of the same prompts and seeds.
        """
        return None, ""


class FrechetDistance(_Distance):
    """|μ − μ′|² + tr(Σ + Σ′ − 2(ΣΣ′)^½) between two galleries' features; lower is better.

    Computed by torchmetrics in float64. Its value depends on the features and on how many images
    there are, so both are part of it: compare it only at one n. Of two samples it is biased
    upwards, the more so the fewer they are (on 384 features of normal images whose variance adds
    up to 100, 62 at 90 images, 8 at 1000 and 3 at 3000, where the truth is 0). Under two images a
    feature it is therefore withheld: ``KernelDistance`` and ``ClipKernelDistance`` have no such
    bias. Where prompts have several seeds it has its floor.

    Source: M. J. Chong and D. Forsyth, Effectively Unbiased FID and Inception Score and Where to
    Find Them (CVPR 2020): the bias depends on the model, so that one n does not cure it.
    """

    family = "frechet"
    says: ClassVar[Mapping[str, Any]] = {"distance": "Fréchet, torchmetrics, float64"}

    def _between(self, x: "Tensor", y: "Tensor", same: Sequence[tuple[int, int]]) -> float:
        import torch
        from torchmetrics.image.fid import FrechetInceptionDistance

        # Bounds every product below: LAPACK can end the process over what is not finite
        if not (x.square().sum() * y.square().sum()).isfinite():
            return math.inf
        # The features are ours, so torchmetrics' extractor passes them on
        distance = FrechetInceptionDistance(feature=_passing(self.features.dim))
        distance.set_dtype(torch.float64)
        distance.update(y, real=True)
        distance.update(x, real=False)
        value = float(distance.compute())
        # Rounding in the square root can leave -1e-7; max would make a number of NaN
        return 0.0 if value < 0 else value

    def _note(self, fewer: int, pairs: int) -> str:
        # Pairs that did not change are at distance 0, however few they are
        few = fewer <= self.features.dim and not pairs
        return f"fewer images than features ({self.features.dim}): biased upwards" * few

    def _withheld(self, fewer: int) -> str:
        least = 2 * self.features.dim
        if fewer >= least:
            return ""
        return (
            f"{fewer} images on a side are too few for {self.features.dim} features: under "
            f"{least} it says more of how many images there are than of what they show"
        )

    def _floor(self, pairs: "Sequence[tuple[Row, Row]]") -> tuple[Floor | None, str]:
        import torch

        if not pairs:
            return None, ""
        first, second = _halves([theirs[0] for _, theirs in pairs])
        if len(first) < self._least:
            return None, "no floor: it needs several seeds of each prompt"
        base, other, erased = (
            torch.stack([pairs[i][side][1] for i in rows]).double()
            for side, rows in ((1, first), (1, second), (0, second))
        )
        found = [self._between(z, base, []) for z in (other, erased)]
        if not all(map(math.isfinite, found)):
            return None, f"no floor: the distance on other seeds is {max(found)}"
        return Floor(found[0], found[1], len(first)), ""


class KernelDistance(_Distance):
    """KID: MMD² of features under the kernel (x·y / dim + 1)³; lower is better.

    The unbiased estimate over all images at once (``mmd_squared``), so it can be below 0.
    torchmetrics' averages over random subsets that it draws from the global generator; over one
    subset of everything it is this. Many papers print it times 100 or 1000.

    Source: M. Bińkowski et al., Demystifying MMD GANs (2018).
    """

    family = "kid"
    says: ClassVar[Mapping[str, Any]] = {
        "distance": "MMD², kernel (x·y / dim + 1)³, unbiased, all images, float64",
        "cross_term": "without the pairs of one prompt and seed",
    }

    def _between(self, x: "Tensor", y: "Tensor", same: Sequence[tuple[int, int]]) -> float:
        return mmd_squared(x, y, polynomial, same)


class ClipKernelDistance(_Distance):
    """CMMD: 1000 MMD² of embeddings of length 1 under a Gaussian kernel; lower is better.

    k(x, y) = exp(−|x − y|² / 2σ²) with the authors' σ = 10. Theirs is on CLIP ViT-L/14 at 336
    pixels. The estimate is the paper's, unbiased (``mmd_squared``), so it can be below 0; the
    authors' code has the biased one, which at their 30,000 images is the same.

    Source: S. Jayasumana et al., Rethinking FID: Towards a Better Evaluation Metric for Image
    Generation (CVPR 2024).
    """

    unit = "10⁻³"
    family = "cmmd"
    says: ClassVar[Mapping[str, Any]] = {
        "distance": "1000 MMD², features of length 1, Gaussian kernel of width 10, unbiased, "
        "float64",
        "cross_term": "without the pairs of one prompt and seed",
    }

    def _between(self, x: "Tensor", y: "Tensor", same: Sequence[tuple[int, int]]) -> float:
        from torch.nn.functional import normalize

        return 1000 * mmd_squared(normalize(x), normalize(y), gaussian, same)


def polynomial(x: "Tensor", y: "Tensor") -> "Tensor":
    """(x·y / dim + 1)³ of all rows, shapes (…, m, dim) and (…, n, dim) to (…, m, n)."""
    value: Tensor = (x @ y.mT / x.shape[-1] + 1) ** 3
    return value


def gaussian(x: "Tensor", y: "Tensor", width: float = 10.0) -> "Tensor":
    """exp(−|x − y|² / 2 width²) of all rows, shapes (…, m, dim) and (…, n, dim) to (…, m, n)."""
    squares = x.square().sum(-1)[..., :, None] + y.square().sum(-1)[..., None, :]
    return ((2 * x @ y.mT - squares) / (2 * width**2)).exp()


def mmd_squared(
    x: "Tensor",
    y: "Tensor",
    kernel: Callable[["Tensor", "Tensor"], "Tensor"],
    same: Sequence[tuple[int, int]] = (),
) -> float:
    """The squared maximum mean discrepancy, without bias.

        Σ_{i≠j} k(xᵢ, xⱼ) / m(m−1) + Σ_{i≠j} k(yᵢ, yⱼ) / n(n−1) − 2 mean_{(i, j) ∉ same} k(xᵢ, yⱼ)

    Two images of one prompt and seed are no independent draws, so pairs of them are left out of
    the last mean. When all images are in such pairs, this is the U-statistic of Gretton et al.,
    and a gallery is at distance 0 from itself, where the mean over all pairs would put it below 0.

    Source: A. Gretton et al., A Kernel Two-Sample Test, JMLR 13 (2012), equations 3 and 4.

    Args:
        x, y: Features, float64, shapes (m, dim) and (n, dim), of two rows or more.
        kernel: Of all pairs of rows.
        same: Rows of x and of y that are not independent.
    """
    within = [_mean(z, z, kernel, [(i, i) for i in range(len(z))]) for z in (x, y)]
    return within[0] + within[1] - 2 * _mean(x, y, kernel, same)


def _mean(
    x: "Tensor",
    y: "Tensor",
    kernel: Callable[["Tensor", "Tensor"], "Tensor"],
    but: Sequence[tuple[int, int]],
) -> float:
    """The kernel's mean over all pairs of rows but some."""
    # In blocks: all pairs of 30,000 images are 7 GB
    parts = (x[start : start + BLOCK] for start in range(0, len(x), BLOCK))
    whole = math.fsum(float(kernel(part, y).sum()) for part in parts)
    if but:
        rows, columns = (list(side) for side in zip(*but, strict=True))
        whole -= float(kernel(x[rows][:, None], y[columns][:, None]).sum())
    return whole / (len(x) * len(y) - len(but))


def _halves(prompts: Sequence[Prompt]) -> tuple[list[int], list[int]]:
    """Places of rows, as many in either half: each prompt is in both, with other seeds.

    What a prompt has once, or once too often, is in neither.
    """
    rows: dict[tuple[Any, ...], dict[int, int]] = defaultdict(dict)
    for i, p in enumerate(prompts):
        rows[p.prompt, p.guidance, p.steps, p.width, p.height].setdefault(p.seed, i)
    halves: tuple[list[int], list[int]] = ([], [])
    for by_seed in rows.values():
        places = [by_seed[seed] for seed in sorted(by_seed)]
        for i, place in enumerate(places[: len(places) // 2 * 2]):
            halves[i % 2].append(place)
    return halves


def _passing(dim: int) -> "nn.Module":
    from torch import nn

    module = nn.Identity()
    module.num_features = dim  # type: ignore[assignment]
    return module


def frechet_emoji_clip() -> FrechetDistance:
    """Fréchet distance on the built-in emoji CLIP's image embeddings."""
    return FrechetDistance(emoji_clip())


def frechet_emoji_judge() -> FrechetDistance:
    """Fréchet distance on the emoji judge's features."""
    return FrechetDistance(emoji_judge())


def frechet(features: str) -> FrechetDistance:
    """Fréchet distance on any features, by their name in ``FEATURES``."""
    return FrechetDistance(make(FEATURES, features))


def fid(weights: str | None = None) -> FrechetDistance:
    """The Fréchet Inception distance, resized as published ones are."""
    features = InceptionFeatures(weights)
    return FrechetDistance(features, name=f"fid/{features.name}")


class PublishedFid(FrechetDistance):
    """The Fréchet Inception distance as papers give it: to real images, on 30,000 or none.

    Of prompts of COCO, against COCO's own images; both galleries, the base's and the erased one's,
    are measured against them.

    Args:
        features: What makes the extractor; not called where there are too few real images.
        real: The real images, as ``open_folder`` gives them.
        least: How many there must be of either.

    Raises:
        InputError: There are fewer.
    """

    needs_reference = False

    def __init__(
        self, features: Callable[[], Features], real: Gallery, *, least: int = PUBLISHED
    ) -> None:
        if len(real) < least:
            raise InputError(
                f"A published FID is to {least} real images, and {real.path} has {len(real)}: "
                "name a folder of as many (real=FOLDER), or take kid or cmmd."
            )
        self._real, self.least = real, least
        extract = features()
        super().__init__(extract, name=f"fid-published/{extract.name}", least=least)
        names = "\n".join(prompt.id for prompt in self._real)
        self.protocol = {
            **self.protocol,
            "real_images": len(self._real),
            "real_names_sha256": hashlib.sha256(names.encode()).hexdigest(),
        }

    def score(self, ours: Sequence[Taken], theirs: Sequence[Taken] = ()) -> Score:
        """The distance from our images' features to the real ones'."""
        return super().score(ours, self._looked)

    @functools.cached_property
    def _looked(self) -> list[Taken]:
        """What is taken from the real images, once for both galleries."""
        from ..answers import Side, look

        seen, _ = look(Side(self._real, metrics=(self,)), None)
        taken = seen.taken[self.name]
        return [taken[prompt.id] for prompt in self._real]


def published(
    *, real: str = "", resize: Literal["clean", "legacy"] = "legacy", weights: str = ""
) -> PublishedFid:
    """FID as published: 30,000 images or none, against those in ?real=FOLDER&resize=clean|legacy.

    Args:
        real: The folder of real images.
        resize: "legacy" is TensorFlow 1's, of most published figures; "clean" is clean-fid's.
        weights: A local copy of torch-fidelity's file; otherwise torch's cache, or a download.
    """
    if not real:
        raise InputError(
            "fid:published compares with real images: name their folder, as in "
            "fid:published?real=FOLDER."
        )
    from ..folder import open_folder

    return PublishedFid(
        lambda: InceptionFeatures(weights or None, clean=resize == "clean"),
        open_folder(Path(real)),
    )


def kid_emoji_judge() -> KernelDistance:
    """Kernel distance on the emoji judge's features."""
    return KernelDistance(emoji_judge())


def kid(features: str) -> KernelDistance:
    """KID on any features, by their name in ``FEATURES``."""
    return KernelDistance(make(FEATURES, features))


def cmmd(features: str) -> ClipKernelDistance:
    """CMMD on any features, by their name in ``FEATURES``."""
    return ClipKernelDistance(make(FEATURES, features))
