"""Stable Diffusion 3 and 3.5: two CLIPs' rows and, behind them, T5's, in joint attention; the
CLIPs' pooled embeddings beside the time."""

from typing import Any, cast

import torch
from torch import Tensor

from ..parts import Heard, Parts, Stream
from ..text import Text
from .stable_diffusion import clip


class StableDiffusion3(Parts):
    """The parts of a ``StableDiffusion3Pipeline``."""

    text = ("encoder_hidden_states", "pooled_projections")
    readers_by_name = {
        "sequence": r"context_embedder",
        "pooled": r"time_text_embed\.text_embedder\.linear_1",
    }
    # attn2 of SD 3.5 medium is the image's attention to itself.
    crosses = r"transformer_blocks\.\d+\.attn\..*"
    crosses_strict = r"transformer_blocks\.\d+\.attn\.add_[kv]_proj"

    def streams(self) -> tuple[Stream, ...]:
        pipe = self.pipe
        rows = pipe.tokenizer_max_length
        found = [
            clip("sequence", pipe.tokenizer, stop=rows),
            clip("pooled", pipe.tokenizer_2, pooled=True),
        ]
        if pipe.tokenizer_3 is not None:
            found.insert(1, t5("sequence", self, pipe.tokenizer_3, first=rows))
        return tuple(found)

    def heard(self, given: tuple[Any, ...]) -> Heard:
        prompt, empty, pooled, empty_pooled = given
        return Heard(
            Text({"encoder_hidden_states": prompt, "pooled_projections": pooled}),
            None
            if empty is None
            else Text({"encoder_hidden_states": empty, "pooled_projections": empty_pooled}),
        )

    def reads(self, text: Text) -> dict[str, list[Tensor]]:
        pooled = text.inputs["pooled_projections"]
        return super().reads(text) | {"pooled": [one[None] for one in pooled]}

    def latent_shape(self, height: int | None = None, width: int | None = None) -> tuple[int, ...]:
        pipe = self.pipe
        own = pipe.default_sample_size * pipe.vae_scale_factor
        rows, columns = ((length or own) // pipe.vae_scale_factor for length in (height, width))
        return (pipe.transformer.config.in_channels, rows, columns)

    def predict(self, latents: Tensor, t: Tensor, text: Text) -> Tensor:
        times = each(t, latents)
        return cast(Tensor, self.denoiser(latents, timestep=times, **text.inputs).sample)


def t5(group: str, parts: Parts, tokenizer: Any, first: int = 0, **more: Any) -> Stream:
    """The stream of a T5 text encoder, which puts nothing before a text and one token behind."""
    room = parts.passes("max_sequence_length") - 1
    return Stream(group, tokenizer, room, start=first, first=first, causal=False, **more)


def each(t: Tensor, latents: Tensor) -> Tensor:
    """A time for each image, in float32."""
    return torch.as_tensor(t, device=latents.device).float().reshape(-1).expand(len(latents))
