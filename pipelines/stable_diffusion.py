"""Stable Diffusion 1.x and 2.x: a CLIP text encoder, a UNet that reads it by cross attention."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from .._errors import InputError
from .parts import uncompiled


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
        return text_layers(self.denoiser)

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
        from diffusers import DDIMScheduler

        sampler = DDIMScheduler.from_config(self.pipe.scheduler.config)
        sampler.set_timesteps(steps)
        return sampler


def text_layers(unet: nn.Module) -> dict[str, nn.Linear]:
    """The keys and values of cross attention, by their names in the UNet."""
    return {
        name: module
        for name, module in unet.named_modules()
        if name.endswith(("attn2.to_k", "attn2.to_v")) and isinstance(module, nn.Linear)
    }
