"""Dense updates: what is added to whole weights and biases, which only unsee reads.

For each edited layer a file holds ``unet.<module>.weight_delta``, of its weight's shape, and,
where the bias is edited too, ``.bias_delta``.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..._errors import InputError
from ..modules import component_of
from .place import Value, fusible, missing, places, ways

if TYPE_CHECKING:
    from ..erasure import Erasure
    from ..watch import Put
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
    added: "list[Deltas]" = field(default_factory=list)

    def value(self, name: str) -> Tensor:
        """What a parameter is to be."""
        # Always from the original: taking a delta off again would leave a rounding behind.
        value = self.originals[name]
        if acting := [one for one in self.added if one.share and name in one.deltas]:
            value = value.float() + sum(
                one.deltas[name].to(value.device) * one.share for one in acting
            )
        return value


def deltas_of(erasure: "Erasure") -> dict[str, Tensor]:
    (prefix,) = erasure.record.base.components
    return {
        key.removeprefix(f"{prefix}.").removesuffix("_delta"): delta
        for key, delta in erasure.tensors.items()
    }


def parameters_of(denoiser: nn.Module) -> dict[str, nn.Parameter]:
    """By the names that they have when no LoRA is around their layers."""
    return {n.replace(".base_layer.", "."): p for n, p in denoiser.named_parameters()}


def put(pipe: Any, erasure: "Erasure", weight: float) -> "tuple[Put, ...]":
    """As ``Kind.put``."""
    (prefix,) = erasure.record.base.components
    deltas = deltas_of(erasure)
    if weight != 1:
        deltas = {name: delta.float() * weight for name, delta in deltas.items()}
    return (Deltas(component_of(pipe, prefix), prefix, deltas),)


class Deltas:
    """An erasure as what is added to a denoiser's parameters."""

    adapter = None
    alone = False

    @torch.no_grad()
    def __init__(self, denoiser: Any, component: str, deltas: dict[str, Tensor]) -> None:
        self.denoiser, self.component, self.deltas = denoiser, component, deltas
        self.share = 1.0
        if not hasattr(denoiser, "dense_erasures"):
            denoiser.dense_erasures = DenseErasures()
        self.dense: DenseErasures = denoiser.dense_erasures
        found = places(denoiser, sorted({name.rpartition(".")[0] for name in deltas}), bare=True)
        self.steps = ways(found)
        self.attentions = fusible(found)
        modules = {place.name: place.module for place in found}
        self.values = {
            name: Value(modules[name.rpartition(".")[0]], torch.empty(0), name.rpartition(".")[2])
            for name in deltas
        }
        for name, value in self.values.items():
            self.dense.originals.setdefault(name, value.parameter.detach().clone())
        self.dense.added.append(self)
        self.settle(deltas)

    @torch.no_grad()
    def settle(self, names: Iterable[str]) -> None:
        for name in names:
            self.values[name].parameter.copy_(self.dense.value(name))

    def look(self, whole: bool) -> str | None:
        if missing(self.steps if whole else self.steps[-1:]) is not None:
            raise InputError(f"has been taken out of the pipeline: {AGAIN}")
        for parent in self.attentions:
            if parent.fused_projections:
                raise InputError(
                    "cannot be seen in fused projections: call pipe.unfuse_qkv_projections()."
                )
        for name, value in list(self.values.items())[None if whole else -1 :]:
            if not value.marked() and not self.holds(name):
                raise InputError(f"has been overwritten in {name}: {AGAIN}")
        return None

    def holds(self, name: str) -> bool:
        """Whether a parameter has the values that all dense erasures together give it."""
        value = self.values[name]
        if value.read() is None and not value.is_meta:
            return False
        value.wanted = self.dense.value(name)
        held, value.wanted = value.holds(), torch.empty(0)
        return held

    def weigh(self, share: float) -> None:
        if share == self.share:
            return
        if any(value.is_meta for value in self.values.values()):
            raise InputError(
                "is in weights that are offloaded, and cannot be weighed anew: call "
                "pipe.reset_device_map() first."
            )
        self.share = share
        self.settle(self.deltas)

    def off(self) -> None:
        if any(value.is_meta for value in self.values.values()):
            raise InputError(
                "The weights are offloaded, and an erasure in them cannot be taken off: call "
                "pipe.reset_device_map() or load the pipeline again."
            )
        # What has taken its place is somebody else's.
        there = [name for name in self.deltas if self.holds(name)]
        self.dense.added = [other for other in self.dense.added if other is not self]
        self.settle(there)
        for name in self.deltas:
            if not any(name in other.deltas for other in self.dense.added):
                del self.dense.originals[name]
        if not self.dense.added:
            del self.denoiser.dense_erasures

    def write(self, state: dict[str, Tensor]) -> None:
        """Nothing is to be done: the weights have it."""


AGAIN = "load the pipeline again."
