"""What a method needs to know of a pipeline: the one place that knows architectures."""

from collections.abc import Iterable, Sequence
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
    name = type(pipe).__name__
    if name not in _ARCHITECTURES:
        raise InputError(
            f"Cannot take a {name} apart. Described so far: {', '.join(_ARCHITECTURES)}."
        )
    module, _, attribute = _ARCHITECTURES[name].partition(":")
    return cast(Parts, getattr(import_module(module, __package__), attribute)(pipe))


def parts_of(pipe: Any) -> Parts:
    """Takes a diffusers pipeline with the base model's own weights apart.

    Raises:
        InputError: Its architecture is not described here, or it carries a LoRA or an erasure.
    """
    parts = described(pipe)
    if adapters := getattr(parts.denoiser, "peft_config", None):
        raise InputError(
            f"The pipeline carries the LoRA {', '.join(adapters)}: erasing starts from the base "
            "model, so call unload_lora_weights() first."
        )
    if hasattr(parts.denoiser, "dense_erasures"):
        raise InputError(
            "The pipeline carries a dense erasure: erasing starts from the base model, so take it "
            "off, or load the model without it."
        )
    return parts


def base_layer(module: nn.Module) -> nn.Module:
    """The layer itself, also where a LoRA has been put around it."""
    found = getattr(module, "base_layer", module)
    if not isinstance(getattr(found, "weight", None), Tensor):
        raise TypeError(f"a layer with a weight was wanted, this is {type(found).__name__}")
    return cast(nn.Module, found)


def weights_of(denoiser: nn.Module, names: Iterable[str]) -> dict[str, Tensor | None]:
    """The weights (out, …) of the named layers; None where there is no such layer."""
    modules = dict(denoiser.named_modules())
    return {
        name: cast(Tensor, base_layer(modules[name]).weight).detach() if name in modules else None
        for name in names
    }
