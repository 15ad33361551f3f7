"""The modules of a pipeline as they are: compiled or not, with a LoRA around them, quantised."""

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from .._errors import InputError

F = TypeVar("F", bound=Callable[..., Any])

DENOISERS = ("unet", "transformer")
"""What pipelines call the network that predicts."""

ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3", "text_encoder_4")
"""What pipelines call the networks that read the prompts before it."""


def uncompiled(module: nn.Module) -> nn.Module:
    """The module itself, also where torch.compile has been put around it."""
    return cast(nn.Module, getattr(module, "_orig_mod", module))


def component_of(pipe: Any, name: str) -> nn.Module | None:
    """A pipeline's component, whose layers have their own names also when it is compiled."""
    module = getattr(pipe, name, None)
    return uncompiled(module) if isinstance(module, nn.Module) else None


def named(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a module's call by name, however they were passed."""
    return dict(zip(_names(cast(Any, type(module))), args, strict=False)) | dict(kwargs)


@functools.cache
def _names(module: Any) -> tuple[str, ...]:
    return tuple(inspect.signature(module.forward).parameters)[1:]


def eager(function: F) -> F:
    """Marks a hook that torch.compile leaves as it is: what it finds out is not to be traced."""
    return cast(F, torch.compiler.disable(function))


def base_layer(module: nn.Module) -> nn.Module:
    """The layer itself, also where a LoRA has been put around it."""
    found = getattr(module, "base_layer", module)
    if not isinstance(getattr(found, "weight", None), Tensor):
        raise TypeError(f"a layer with a weight was wanted, this is {type(found).__name__}")
    return cast(nn.Module, found)


def own_modules(component: nn.Module) -> dict[str, nn.Module]:
    """A component's modules by their own names, whatever LoRAs are around them."""
    found: dict[str, nn.Module] = {}
    around = ""
    for name, module in component.named_modules():
        if around and name.startswith(around):
            continue
        base = getattr(module, "base_layer", None)
        if isinstance(base, nn.Module):
            around = f"{name}."
            module = base
        found[name] = module
    return found


def plain(weight: Tensor) -> bool:
    """Whether a weight's values can be read as they are: in memory and not quantised."""
    kind = type(weight.data)
    return kind is Tensor and not weight.is_meta and weight.is_floating_point()


def check_readable(name: str, weight: Tensor) -> None:
    """Makes sure that a layer's weight can be read.

    Raises:
        InputError: It is offloaded or quantised.
    """
    if weight.is_meta:
        raise InputError(
            f"The weights of {name} are not in memory, but offloaded or never loaded: erase, and "
            "put erasures on, before enable_sequential_cpu_offload()."
        )
    if not plain(weight):
        raise InputError(
            f"The weights of {name} are quantised, and a method starts from what they were: erase "
            "from the model as it was before, and put the file on the quantised one."
        )


def own_name(component: nn.Module, name: str) -> str | None:
    """What a layer is called in a component; None where it cannot be one of it.

    Files have the names of transformers 4, where all of a CLIPTextModel was in its ``text_model``.
    5 has left that part out of the names, as diffusers does when it reads a LoRA.
    """
    if type(component).__name__ != "CLIPTextModel" or hasattr(component, "text_model"):
        return name
    return name.removeprefix("text_model.") if name.startswith("text_model.") else None


def weights_of(component: nn.Module, names: Iterable[str]) -> dict[str, Tensor | None]:
    """The weights (out, …) of layers by the names that files have; None where there is none.

    Raises:
        InputError: A weight is nowhere in memory.
    """
    modules = dict(component.named_modules())
    found: dict[str, Tensor | None] = dict.fromkeys(names)
    for name in found:
        module = modules.get(own_name(component, name) or "")
        weight = getattr(getattr(module, "base_layer", module), "weight", None)
        if isinstance(weight, Tensor):
            weight = weight.detach()
            if weight.is_meta:
                check_readable(name, weight)
            found[name] = weight
    return found
