"""Low-rank updates of linear layers and convolutions, as an ordinary LoRA beside the weights.

For each edited layer a file holds ``unet.<module>.lora_A.weight`` (rank × in) and
``.lora_B.weight`` (out × rank), of a convolution (rank, in, height, width) and (out, rank, 1, 1),
to be added to the weight as B A: what ``load_lora_weights`` of diffusers reads.
"""

import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...records import Transport
from ..transport import add_transport

if TYPE_CHECKING:
    from ..erasure import Erasure
    from . import Shapes


def shapes(layers: "Shapes", tensors: Mapping[str, Tensor]) -> "Shapes":
    """As ``Kind.shapes``; the rank is that of each layer's B."""
    wanted: Shapes = {}
    for name, (out, *rest) in layers.items():
        b = tensors.get(f"{name}.lora_B.weight")
        rank = b.shape[1] if b is not None and b.ndim == 1 + len(rest) else 0
        wanted[f"{name}.lora_A.weight"] = (rank, *rest)
        wanted[f"{name}.lora_B.weight"] = (out, rank, *(1 for _ in rest[1:]))
    return wanted


def put(pipe: Any, erasure: "Erasure") -> Callable[[], None]:
    """As ``Kind.put``; with ``transport`` in the record, each prompt has its own strength."""
    (prefix,) = erasure.record.base.components
    denoiser = getattr(pipe, prefix)
    remove = _add(denoiser, erasure)
    if transport := erasure.record.transport:
        return _transported(pipe, list(denoiser.peft_config)[-1], transport, remove)
    return remove


def _add(denoiser: Any, erasure: "Erasure") -> Callable[[], None]:
    (prefix,) = erasure.record.base.components
    others = list(getattr(denoiser, "peft_config", {}))
    active = denoiser.active_adapters() if others else []
    name = "".join(c if c.isalnum() else "-" for c in erasure.name)
    if name in others:
        name = f"{name}-{len(others)}"
    # The tensors that peft draws to begin with are replaced at once.
    with torch.random.fork_rng(), warnings.catch_warnings():
        # Several at once are what is meant here.
        warnings.filterwarnings("ignore", "Already found a `peft_config`", UserWarning)
        denoiser.load_lora_adapter(dict(erasure.tensors), prefix=prefix, adapter_name=name)
    # Not set_adapters, which would put the scales of the others back to 1.
    denoiser.set_adapter([*active, name])

    def remove() -> None:
        # Those that are there now: more may have come since.
        if len(denoiser.peft_config) > 1:
            active = [other for other in denoiser.active_adapters() if other != name]
            denoiser.delete_adapters(name)
            denoiser.set_adapter(active)
        else:
            denoiser.unload_lora()

    return remove


def _transported(
    pipe: Any, adapter: str, transport: Transport, remove: Callable[[], None]
) -> Callable[[], None]:
    try:
        end = add_transport(pipe, adapter, transport)
    except BaseException:
        remove()
        raise

    def remove_both() -> None:
        end()
        remove()

    return remove_both
