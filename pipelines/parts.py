"""What a method needs to know of a pipeline: the one place that knows architectures."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, Protocol, cast

from torch import Tensor, nn

from .._errors import InputError

# The pipeline's class, to the description of its architecture.
_ARCHITECTURES = {"StableDiffusionPipeline": ".stable_diffusion:StableDiffusionParts"}


class Parts(Protocol):
    """A pipeline taken apart. Nothing here changes the pipeline.

    Attributes:
        pipe: The pipeline itself.
        prefix: What a LoRA file puts before the names of the denoiser's modules: ``unet``.
        denoiser: The network that predicts the noise.
        scheduler: The pipeline's own.
    """

    pipe: Any
    prefix: str

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

    def predict(self, latents: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        """The denoiser's prediction for latents (n, *latent_shape) and text (n, tokens, dim).

        The latents are as the scheduler passes them on, before ``scale_model_input``.
        """
        ...


def parts_of(pipe: Any) -> Parts:
    """Takes a diffusers pipeline apart.

    Raises:
        InputError: Its architecture is not described here, or it carries LoRA weights already.
    """
    name = type(pipe).__name__
    if name not in _ARCHITECTURES:
        raise InputError(
            f"Cannot take a {name} apart. Described so far: {', '.join(_ARCHITECTURES)}."
        )
    module, _, attribute = _ARCHITECTURES[name].partition(":")
    parts = cast(Parts, getattr(import_module(module, __package__), attribute)(pipe))
    if adapters := getattr(parts.denoiser, "peft_config", None):
        raise InputError(
            f"The pipeline carries the LoRA {', '.join(adapters)}: erasing starts from the base "
            "model, so call unload_lora_weights() first."
        )
    return parts


def base_layer(module: nn.Module) -> nn.Linear:
    """The linear layer itself, also where a LoRA has been put around it."""
    found = getattr(module, "base_layer", module)
    if not isinstance(found, nn.Linear):
        raise TypeError(f"a linear layer was wanted, this is {type(found).__name__}")
    return found


def weights_of(denoiser: nn.Module, names: Mapping[str, Any]) -> dict[str, Tensor | None]:
    """The weights (out, in) of the named linear layers; None where there is no such layer."""
    modules = dict(denoiser.named_modules())
    return {
        name: base_layer(modules[name]).weight.detach() if name in modules else None
        for name in names
    }
