"""FLUX.1: T5's rows in joint attention, CLIP's pooled embedding beside the time."""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from ..parts import Heard, Parts, Stream
from ..text import Text
from .stable_diffusion import clip
from .stable_diffusion_3 import each, t5


class Flux(Parts):
    """The parts of a ``FluxPipeline``: dev, schnell, and either with true guidance.

    Without ``true_cfg_scale`` the pipeline has no empty prompt: dev has learnt what guidance does
    and reads its scale, schnell has none. Trajectories are then drawn as the pipeline draws.
    """

    text = ("encoder_hidden_states", "pooled_projections")
    shared = ("txt_ids", "img_ids")
    readers_by_name = {
        "sequence": r"context_embedder",
        "pooled": r"time_text_embed\.text_embedder\.linear_1",
    }
    crosses = r"(single_)?transformer_blocks\.\d+\.attn\..*"
    crosses_strict = r"transformer_blocks\.\d+\.attn\.add_[kv]_proj"
    calls = 2
    guiding = "true_cfg_scale above 1 and a negative_prompt"

    def streams(self) -> tuple[Stream, ...]:
        return (
            t5("sequence", self, self.pipe.tokenizer_2),
            clip("pooled", self.pipe.tokenizer, pooled=True),
        )

    def heard(self, given: tuple[Any, ...]) -> Heard:
        prompt, pooled, _ = given
        return Heard(Text({"encoder_hidden_states": prompt, "pooled_projections": pooled}), None)

    def reads(self, text: Text) -> dict[str, list[Tensor]]:
        pooled = text.inputs["pooled_projections"]
        return super().reads(text) | {"pooled": [one[None] for one in pooled]}

    def latent_shape(self, height: int | None = None, width: int | None = None) -> tuple[int, ...]:
        return packed_shape(self.pipe, height, width)

    def predict(self, latents: Tensor, t: Tensor, text: Text) -> Tensor:
        n, channels, rows, columns = latents.shape
        pipe, like = self.pipe, latents
        sequence = text.first
        scale = None
        if pipe.transformer.config.guidance_embeds:
            scale = torch.full((n,), _own_scale(pipe), device=like.device, dtype=torch.float32)
        found = self.denoiser(
            hidden_states=pipe._pack_latents(latents, n, channels, rows, columns),
            timestep=each(t, latents) / 1000,
            guidance=scale,
            txt_ids=torch.zeros(sequence.shape[1], 3).to(like),
            img_ids=pipe._prepare_latent_image_ids(
                n, rows // 2, columns // 2, like.device, like.dtype
            ),
            **text.inputs,
        ).sample
        return unpacked(found, rows, columns)

    def combine(self, empty: Tensor, prompt: Tensor, scale: float) -> Tensor:
        return prompt

    def time_of(self, given: Mapping[str, Any]) -> Tensor:
        return 1000 * cast(Tensor, given["timestep"])

    def guided(self) -> bool:
        # By whether an empty prompt was encoded, which is seen when it is looked for
        return True


def packed_shape(pipe: Any, height: int | None, width: int | None) -> tuple[int, int, int]:
    """The shape of the latents that a pipeline packs two by two into a token."""
    token = 2 * pipe.vae_scale_factor
    own = pipe.default_sample_size * pipe.vae_scale_factor
    rows, columns = (2 * ((length or own) // token) for length in (height, width))
    return (pipe.transformer.config.in_channels // 4, rows, columns)


def unpacked(tokens: Tensor, rows: int, columns: int) -> Tensor:
    """Latents (n, channels, rows, columns) from tokens (n, rows · columns / 4, 4 · channels)."""
    n, _, channels = tokens.shape
    found = tokens.view(n, rows // 2, columns // 2, channels // 4, 2, 2)
    return found.permute(0, 3, 1, 4, 2, 5).reshape(n, channels // 4, rows, columns)


def _own_scale(pipe: Any) -> float:
    """The scale of guidance that the pipeline's call has by default."""
    from inspect import signature

    return float(signature(type(pipe).__call__).parameters["guidance_scale"].default)
