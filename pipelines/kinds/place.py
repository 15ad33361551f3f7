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

# How many values of a weight are compared, where a sample of them will do.
SAMPLE = 64


@dataclass(frozen=True)
class Place:
    """A layer of a denoiser.

    Attributes:
        name: The layer's.
        steps: The way to it: a module, the name of its child, the child.
        module: The layer itself; a LoRA around it, if it has one.
    """

    name: str
    steps: tuple[tuple[nn.Module, str, nn.Module], ...]

    @property
    def module(self) -> Any:
        return self.steps[-1][2]


def places(denoiser: nn.Module, names: Iterable[str]) -> list[Place]:
    """The places of a denoiser's layers."""
    found = []
    for name in names:
        steps, module = [], denoiser
        for key in name.split("."):
            child = module.get_submodule(key)
            steps.append((module, key, child))
            module = child
        found.append(Place(name, tuple(steps)))
    return found


def ways(found: Iterable[Place]) -> list[tuple[nn.Module, str, nn.Module]]:
    """Each step that leads to one of the places, once."""
    return list({(id(s[0]), s[1]): s for place in found for s in place.steps}.values())


def missing(steps: Iterable[tuple[nn.Module, str, nn.Module]]) -> str | None:
    """The name of a module that is not where it was, if there is one."""
    for parent, key, child in steps:
        now: Any = parent._modules.get(key)
        if now is not child:
            # Another kind of adapter may have been put around it, or a LoRA taken away from it.
            layers = {id(layer) for layer in _layers(child)}
            if now is None or not any(id(layer) in layers for layer in _layers(now)):
                return key
    return None


def _layers(module: Any) -> list[Any]:
    """A layer with what adapters have put around it, from outside in."""
    found = [module]
    while (module := module._modules.get("base_layer")) is not None:
        found.append(module)
    return found


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
    def sampled(cls, module: Any) -> "Value":
        """A weight that is to be as it is now, up to its rounding; a sample of it is compared."""
        value = cls(module, torch.empty(0))
        value.sample = True
        if (weight := value.read()) is not None:
            value.wanted = weight
            value.mark = _mark(module._parameters["weight"])
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
        if parameter is None or parameter.is_meta or not parameter.is_floating_point():
            return None
        if type(parameter) not in (nn.Parameter, Tensor):
            return None
        with torch.no_grad():
            values: Tensor = parameter.detach()
            if self.sample:
                flat = values.reshape(-1)
                values = flat[:: max(1, len(flat) // SAMPLE)][:SAMPLE]
            return values.clone().cpu()

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


def _mark(parameter: Tensor) -> tuple[int, int, int]:
    if type(parameter) not in (nn.Parameter, Tensor):
        return (id(parameter), 0, 0)
    version = 0 if parameter.is_inference() else parameter._version
    return (id(parameter), version, parameter.data_ptr())
