"""Where an erasure is: the modules that lead to a layer, and the values that its weights have.

The look before each call of the denoiser asks both, of every layer, so they answer at once where
nothing was touched: a parameter that is the same object, of the same version and at the same
address, is not read.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..modules import base_layer, plain

# How many values of a weight are compared, where a sample of them will do.
SAMPLE = 64


@dataclass(frozen=True)
class Place:
    """A layer of a denoiser.

    Attributes:
        name: The layer's.
        steps: The way to it: a module, the name of its child, the child.
        module: The layer itself, or the LoRA around it.
    """

    name: str
    steps: tuple[tuple[nn.Module, str, nn.Module], ...]

    @property
    def module(self) -> Any:
        return self.steps[-1][2]


def places(denoiser: nn.Module, names: Iterable[str], bare: bool = False) -> list[Place]:
    """The places of a denoiser's layers; if bare, of the layers that LoRAs are around."""
    found = []
    for name in names:
        steps, module = [], denoiser
        for key in name.split("."):
            child = module.get_submodule(key)
            steps.append((module, key, child))
            module = child
        if bare:
            parent, key, child = steps[-1]
            steps[-1] = (parent, key, base_layer(child))
        found.append(Place(name, tuple(steps)))
    return found


def ways(found: Iterable[Place]) -> list[tuple[nn.Module, str, nn.Module]]:
    """Each step that leads to one of the places, once."""
    return list({(id(s[0]), s[1]): s for place in found for s in place.steps}.values())


def fusible(found: Iterable[Place]) -> list[Any]:
    """The attentions of the places, which diffusers can fuse: other layers then run."""
    parents = {id(place.steps[-1][0]): place.steps[-1][0] for place in found}.values()
    return [parent for parent in parents if hasattr(parent, "fused_projections")]


def missing(steps: Iterable[tuple[nn.Module, str, nn.Module]]) -> str | None:
    """The name of a module that is not where it was, if there is one."""
    for parent, key, child in steps:
        now: Any = parent._modules.get(key)
        if now is not child:
            # An adapter may have been put around it.
            while now is not None and now is not child:
                now = now._modules.get("base_layer")
            if now is None:
                return key
    return None


class Value:
    """What a parameter of a module is to be.

    Args:
        module: The module.
        wanted: The parameter's values; what is in memory may be them in another precision.
        attribute: Its name in the module.
    """

    def __init__(self, module: Any, wanted: Tensor, attribute: str = "weight") -> None:
        self.module, self.wanted, self.attribute = module, wanted, attribute
        self.sample = False
        self.mark: tuple[int, int, int] | None = None

    @classmethod
    def sampled(cls, module: Any, weight: Tensor) -> "Value":
        """A module's weight, which is to be this one up to its rounding; a sample is compared."""
        value = cls(module, _sample(weight.detach()).cpu() if plain(weight) else torch.empty(0))
        value.sample = True
        return value

    @property
    def parameter(self) -> Tensor:
        found: Tensor = self.module._parameters[self.attribute]
        return found

    @property
    def is_meta(self) -> bool:
        """Whether the values are offloaded."""
        parameter = self.module._parameters.get(self.attribute)
        return parameter is not None and bool(parameter.is_meta)

    def marked(self) -> bool:
        """Whether nothing has touched the parameter since its values were read."""
        parameter = self.module._parameters.get(self.attribute)
        return parameter is not None and _mark(parameter) == self.mark

    def read(self) -> Tensor | None:
        """The values, or a sample of them, on the CPU; None if they are elsewhere or quantised."""
        parameter = self.module._parameters.get(self.attribute)
        if parameter is None or not plain(parameter):
            return None
        values: Tensor = parameter.detach()
        return (_sample(values) if self.sample else values).clone().cpu()

    def holds(self) -> bool:
        """Whether the parameter has these values, as far as can be seen."""
        parameter = self.module._parameters.get(self.attribute)
        if parameter is None:
            return False
        if self.marked():
            return True
        if (now := self.read()) is not None and not self._equal(now):
            return False
        self.mark = _mark(parameter)
        return True

    def _equal(self, now: Tensor) -> bool:
        wanted = self.wanted.detach().cpu()
        if now.shape != wanted.shape:
            return self.sample and not wanted.numel()
        if self.sample:
            apart = (now.float() - wanted.float()).norm()
            # bfloat16's rounding
            return bool(apart <= 2**-7 * wanted.float().norm())
        return any(
            torch.equal(now, wanted.to(through).to(now.dtype))
            for through in (wanted.dtype, torch.float16, torch.bfloat16)
        )


def _sample(values: Tensor) -> Tensor:
    flat = values.reshape(-1)
    return flat[:: max(1, len(flat) // SAMPLE)][:SAMPLE].clone()


def _mark(parameter: Tensor) -> tuple[int, int, int]:
    try:
        return (id(parameter), parameter._version, parameter.data_ptr())
    except RuntimeError:
        # Tensors of inference mode have no version, and some quantised ones no address.
        return (id(parameter), 0, 0)
