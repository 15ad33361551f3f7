"""Stable Diffusion 1.x and 2.x: a CLIP text encoder, a UNet that reads it by cross attention."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from .._errors import InputError
from .parts import check_readable, uncompiled


@dataclass(frozen=True)
class StableDiffusionParts:
    """The parts of a ``StableDiffusionPipeline``, as ``Parts`` describes them."""

    pipe: Any
    prefix: str = "unet"

    @property
    def denoiser(self) -> nn.Module:
        return uncompiled(self.pipe.unet)

    @property
    def scheduler(self) -> Any:
        return self.pipe.scheduler

    def count_tokens(self, text: str) -> int:
        tokenizer = self.pipe.tokenizer
        count = len(tokenizer(text, add_special_tokens=False).input_ids)
        room = tokenizer.model_max_length - 2
        if count > room:
            raise InputError(
                f"{text!r} is {count} tokens long and the tokenizer cuts after {room}: shorten it."
            )
        return count

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Tensor:
        for text in texts:
            self.count_tokens(text)
        embeddings, _ = self.pipe.encode_prompt(list(texts), self.pipe._execution_device, 1, False)
        return cast(Tensor, embeddings)

    def text_layers(self) -> dict[str, nn.Linear]:
        found = text_layers(self.denoiser)
        for name, layer in found.items():
            check_readable(name, layer.weight)
        return found

    def latent_shape(self, height: int | None = None, width: int | None = None) -> tuple[int, ...]:
        factor = self.pipe.vae_scale_factor
        if (channels := self.pipe.unet.config.in_channels) != self.pipe.unet.config.out_channels:
            raise InputError(
                f"This UNet reads {channels} channels, as one made for inpainting does, and its "
                "latents cannot be drawn from a prompt alone: take a method that needs no "
                "drawing, such as uce, without a check of its effect (--no-check)."
            )
        size = self.pipe.unet.config.sample_size
        rows = size if height is None else height // factor
        columns = size if width is None else width // factor
        return (channels, rows, columns)

    def predict(
        self, latents: Tensor, timestep: Tensor, text: Tensor, scheduler: Any = None
    ) -> Tensor:
        scaled = (scheduler or self.pipe.scheduler).scale_model_input(latents, timestep)
        return cast(Tensor, self.denoiser(scaled, timestep, encoder_hidden_states=text).sample)

    def sampler(self, steps: int) -> Any:
        sampler = ddim(self.pipe.scheduler)
        sampler.set_timesteps(steps)
        return sampler


def ddim(own: Any) -> Any:
    """A DDIM scheduler on another's noise schedule, which goes where that one goes.

    What the other's class has no setting for would else be DDIM's default, which clips the
    predicted image to [-1, 1]: right for pixels, and noise for latents.

    Raises:
        InputError: The other's noise schedule is not one of DDPM's kind.
    """
    from diffusers import DDIMScheduler

    takes = inspect.signature(type(own).__init__).parameters

    def setting(name: str, otherwise: Any) -> Any:
        return own.config[name] if name in takes else otherwise

    sampler = DDIMScheduler.from_config(
        own.config,
        clip_sample=setting("clip_sample", False),
        clip_sample_range=setting("clip_sample_range", 1.0),
        # Those without the setting end at the image itself, unless they say otherwise.
        set_alpha_to_one=setting(
            "set_alpha_to_one", setting("final_sigmas_type", "zero") != "sigma_min"
        ),
        steps_offset=setting("steps_offset", 0),
    )
    alphas = getattr(own, "alphas_cumprod", None)
    # 1e-6: at zero terminal SNR some put 2⁻²⁴ in the place of 0
    if (
        setting("use_flow_sigmas", False)
        or alphas is None
        or alphas.shape != sampler.alphas_cumprod.shape
        or not torch.allclose(alphas.cpu(), sampler.alphas_cumprod, rtol=0, atol=1e-6)
    ):
        raise InputError(
            f"The pipeline's {type(own).__name__} has another noise schedule than its betas give: "
            "set pipe.scheduler to one that this model was trained with, such as DDIMScheduler."
        )
    return sampler


def text_layers(unet: nn.Module) -> dict[str, nn.Linear]:
    """The keys and values of cross attention, by their names in the UNet."""
    return {
        name: module
        for name, module in unet.named_modules()
        if name.endswith(("attn2.to_k", "attn2.to_v")) and isinstance(module, nn.Linear)
    }
