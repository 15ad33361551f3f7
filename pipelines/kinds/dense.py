"""Dense updates: what is added to whole weights and biases, which only unsee reads.

For each edited layer a file holds ``unet.<module>.weight_delta``, of its weight's shape, and,
where the bias is edited too, ``.bias_delta``.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from ..erasure import Erasure
    from . import Shapes


def shapes(layers: "Shapes", tensors: Mapping[str, Tensor]) -> "Shapes":
    """As ``Kind.shapes``; a bias is where the file has one."""
    wanted = {f"{name}.weight_delta": shape for name, shape in layers.items()}
    biases = {f"{name}.bias_delta": shape[:1] for name, shape in layers.items()}
    return wanted | {key: shape for key, shape in biases.items() if key in tensors}


@dataclass
class DenseErasures:
    """The dense erasures in a denoiser, and the parameters that it had without them, by name.

    Kept as the denoiser's attribute ``dense_erasures`` while there are any.
    """

    originals: dict[str, Tensor] = field(default_factory=dict)
    added: list[dict[str, Tensor]] = field(default_factory=list)


def deltas_of(erasure: "Erasure") -> dict[str, Tensor]:
    (prefix,) = erasure.record.base.components
    return {
        key.removeprefix(f"{prefix}.").removesuffix("_delta"): delta
        for key, delta in erasure.tensors.items()
    }


def parameters_of(denoiser: nn.Module) -> dict[str, nn.Parameter]:
    """By the names that they have when no LoRA is around their layers."""
    return {n.replace(".base_layer.", "."): p for n, p in denoiser.named_parameters()}


@torch.no_grad()
def put(pipe: Any, erasure: "Erasure") -> Callable[[], None]:
    """As ``Kind.put``."""
    (prefix,) = erasure.record.base.components
    denoiser = getattr(pipe, prefix)
    if not hasattr(denoiser, "dense_erasures"):
        denoiser.dense_erasures = DenseErasures()
    dense: DenseErasures = denoiser.dense_erasures
    deltas, parameters = deltas_of(erasure), parameters_of(denoiser)
    for name in deltas:
        dense.originals.setdefault(name, parameters[name].detach().clone())
    dense.added.append(deltas)
    _settle(dense, parameters, deltas)

    def remove() -> None:
        dense.added = [others for others in dense.added if others is not deltas]
        _settle(dense, parameters_of(denoiser), deltas)
        for name in deltas:
            if not any(name in others for others in dense.added):
                del dense.originals[name]
        if not dense.added:
            del denoiser.dense_erasures

    return remove


@torch.no_grad()
def _settle(
    dense: DenseErasures, parameters: Mapping[str, nn.Parameter], names: Iterable[str]
) -> None:
    # Always from the original: taking a delta off again would leave a rounding behind.
    for name in names:
        parameter, value = parameters[name], dense.originals[name]
        deltas = [d[name] for d in dense.added if name in d]
        if deltas:
            value = value.float() + sum(delta.to(value.device) for delta in deltas)
        parameter.copy_(value)
