"""Fewer bits: the denoiser's weights, the erasures merged into them, are rounded.

b bits:   W′ = s · round(W / s),   s = max |W| / (2^(b−1) − 1)   of each output channel
16 bits:  W′ = bfloat16(W)
"""

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...pipelines.weaken import merged
from .switch import prompt as prompt

if TYPE_CHECKING:
    from ..attacked import Attacked


def changes_model(attacked: "Attacked") -> bool:
    return attacked.record.bits is not None


def applied(attacked: "Attacked", pipe: Any) -> AbstractContextManager[None]:
    bits = attacked.record.bits
    return nullcontext() if bits is None else merged(pipe, partial(rounded, bits=bits))


def rounded(weight: Tensor, bits: int) -> Tensor:
    """A weight (out, …) that takes so many bits, to the nearest of its output channel's steps.

    The greatest of a channel stays what it is, and a channel of zeros does.
    """
    if bits == 16:
        return weight.to(torch.bfloat16).to(weight.dtype)
    rows = weight.float().flatten(1)
    step = rows.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
    whole = torch.where(step > 0, rows / step, 0.0).round()
    found: Tensor = whole * step
    return found.reshape(weight.shape).to(weight.dtype)
