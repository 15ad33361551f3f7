"""What the diffusion loss is taken on: noised images, and what a perfect denoiser says of them.

    ‖truth(x₀, n, t) − ε_θ(x_t, t, c)‖²        x_t = noised(x₀, n, t)

The model's own schedule says both, so that one loss serves models that predict ε, v or x₀, and
flow models.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from .._errors import InputError
from ..pipelines.parts import Parts
from ..pipelines.schedule import SPAN
from ..pipelines.text import Text
from ..pipelines.watch import active

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Noised:
    """The samples of one step, on the CPU in float32.

    Attributes:
        which: Of each sample the number of its image, shape (n,).
        latents: x_t, shape (n, *latent_shape).
        times: t, shape (n,).
        truth: What a perfect denoiser predicts, shape (n, *latent_shape).
    """

    which: Tensor
    latents: Tensor
    times: Tensor
    truth: Tensor


def noised(
    parts: Parts, images: "Sequence[Image]", steps: int, batch_size: int, seed: int
) -> Iterator[Noised]:
    """The samples of so many steps, one step at a time; all of their draws are by the seed."""
    draw = torch.Generator().manual_seed(seed)
    order = torch.randint(len(images), (steps, batch_size), generator=draw)
    times = torch.randint(SPAN, (steps, batch_size), generator=draw)
    schedule = parts.schedule(2)
    latents = parts.latents(images).float().cpu()
    for which, t in zip(order, times, strict=True):
        noise = torch.randn((batch_size, *latents.shape[1:]), generator=draw)
        x, goal = (made(latents[which], noise, t) for made in (schedule.noised, schedule.truth))
        yield Noised(which, x, t, goal)


def loss(parts: Parts, samples: Noised, text: Text) -> Tensor:
    """The mean of the squares that are above, for a text a sample."""
    device = text.first.device
    made = parts.predict(samples.latents.to(text.first), samples.times.to(device), text)
    return functional.mse_loss(made.float(), samples.truth.to(device))


def check_unguided(parts: Parts, what: str) -> None:
    """Makes sure that the erasures act on single predictions, which a guide does not.

    Args:
        what: Who asks for such predictions.

    Raises:
        InputError: A guide is on.
    """
    if guides := [one.name for one in active(parts.pipe) if one.kind == "guidance"]:
        raise InputError(
            f"The erasure {guides[0]!r} steers guidance, and {what} goes by single predictions: "
            "attack it by words or completion."
        )
