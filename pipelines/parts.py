"""What a method needs to know of a pipeline: the one place that knows architectures."""

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Tensor, nn

from .._errors import InputError

F = TypeVar("F", bound=Callable[..., Any])

# The pipeline's class, or one that it is derived from, to the description of its architecture.
_ARCHITECTURES = {
    "StableDiffusionPipeline": ".stable_diffusion:StableDiffusionParts",
    "StableDiffusionImg2ImgPipeline": ".stable_diffusion:StableDiffusionParts",
    "StableDiffusionInpaintPipeline": ".stable_diffusion:StableDiffusionParts",
}


DENOISERS = ("unet", "transformer")
"""What pipelines call the network that predicts the noise."""


class Parts(Protocol):
    """A pipeline taken apart. Nothing here changes the pipeline.

    Attributes:
        pipe: The pipeline itself.
        prefix: What a LoRA file puts before the names of the denoiser's modules: ``unet``.
        denoiser: The network that predicts the noise.
        scheduler: The pipeline's own.
    """

    @property
    def pipe(self) -> Any: ...

    @property
    def prefix(self) -> str: ...

    @property
    def denoiser(self) -> nn.Module: ...

    @property
    def scheduler(self) -> Any: ...

    def count_tokens(self, text: str) -> int:
        """The tokens of a text, without begin- and end-of-text.

        It is also the position of the text's last token, as begin-of-text has position 0.

        Raises:
            InputError: The tokenizer would cut the text.
        """
        ...

    def encode(self, texts: Sequence[str]) -> Tensor:
        """What cross attention reads of each text, shape (texts, tokens, dim).

        Raises:
            InputError: The tokenizer would cut one of them.
        """
        ...

    def text_layers(self) -> dict[str, nn.Linear]:
        """The linear layers that read the encoded text, by their names in the denoiser."""
        ...

    def latent_shape(self, height: int | None = None, width: int | None = None) -> tuple[int, ...]:
        """Channels, rows and columns of the latents of an image of that many pixels.

        The model's own size is meant where none is given.
        """
        ...

    def predict(
        self, latents: Tensor, timestep: Tensor, text: Tensor, scheduler: Any = None
    ) -> Tensor:
        """The denoiser's prediction for latents (n, *latent_shape) and text (n, tokens, dim).

        Args:
            timestep: One for all, or shape (n,).
            scheduler: Whose latents they are, before ``scale_model_input``; None is the
                pipeline's own.
        """
        ...

    def sampler(self, steps: int) -> Any:
        """A deterministic sampler of its own, on the model's noise schedule, of that many steps.

        Its ``scale_model_input`` changes nothing, so ``predict`` takes its latents at several
        timesteps at once.
        """
        ...


def described(pipe: Any) -> Parts:
    """Takes a diffusers pipeline apart, whatever is in it.

    Raises:
        InputError: Its architecture is not described here.
    """
    found = next((c.__name__ for c in type(pipe).__mro__ if c.__name__ in _ARCHITECTURES), None)
    if found is None:
        raise InputError(
            f"Cannot take a {type(pipe).__name__} apart. Described so far: "
            f"{', '.join(_ARCHITECTURES)}."
        )
    module, _, attribute = _ARCHITECTURES[found].partition(":")
    return cast(Parts, getattr(import_module(module, __package__), attribute)(pipe))


def parts_of(pipe: Any) -> Parts:
    """Takes a diffusers pipeline with the base model's own weights apart.

    Raises:
        InputError: Its architecture is not described here, or it carries a LoRA or an erasure.
    """
    from .watch import active

    parts = described(pipe)
    if on := [one for one in active(pipe) if one.kind != "weights"]:
        raise InputError(
            f"The erasure {on[0].name!r} is on in this pipeline, and erasing starts from the base "
            "model: call unsee.remove(pipe) first."
        )
    if adapters := getattr(parts.denoiser, "peft_config", None):
        raise InputError(
            f"The pipeline carries the LoRA {', '.join(adapters)}: erasing starts from the base "
            "model, so call unload_lora_weights() first."
        )
    return parts


def uncompiled(module: nn.Module) -> nn.Module:
    """The module itself, also where torch.compile has been put around it."""
    return cast(nn.Module, getattr(module, "_orig_mod", module))


def denoiser_of(pipe: Any, prefix: str) -> nn.Module | None:
    """A pipeline's denoiser, whose layers have their own names also when it is compiled."""
    module = getattr(pipe, prefix, None)
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


def weights_of(denoiser: nn.Module, names: Iterable[str]) -> dict[str, Tensor | None]:
    """The weights (out, …) of the named layers; None where there is no such layer.

    Raises:
        InputError: A weight is nowhere in memory.
    """
    modules = dict(denoiser.named_modules())
    found: dict[str, Tensor | None] = dict.fromkeys(names)
    for name in found:
        if name in modules:
            weight = cast(Tensor, base_layer(modules[name]).weight).detach()
            if weight.is_meta:
                check_readable(name, weight)
            found[name] = weight
    return found
