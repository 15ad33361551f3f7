"""FLUX.2 klein: three layers of Qwen3's rows side by side, in joint attention; nothing pooled."""

from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor

from ..parts import Heard, Parts, Stream
from ..text import Text
from .qwen_image import framed
from .stable_diffusion_3 import each
from .z_image import chat


class Flux2Klein(Parts):
    """The parts of a ``Flux2KleinPipeline``.

    Its call takes no negative prompt: a guide is the only way to one. The distilled ones have no
    guidance.
    """

    shared = ("txt_ids", "img_ids")
    readers_by_name = {"sequence": r"context_embedder"}
    crosses = r"(single_)?transformer_blocks\.\d+\.attn\..*"
    crosses_strict = r"transformer_blocks\.\d+\.attn\.add_[kv]_proj"
    calls = 2
    guiding = "guidance_scale above 1, of a model that is not distilled"

    def streams(self) -> tuple[Stream, ...]:
        pipe = self.pipe
        frame = chat(pipe.tokenizer, enable_thinking=False)
        return (framed("sequence", pipe.tokenizer, frame, self.passes("max_sequence_length")),)

    def heard(self, given: tuple[Any, ...]) -> Heard:
        prompt, _ = given
        return Heard(Text({"encoder_hidden_states": prompt}), None)

    def latent_shape(self, height: int | None = None, width: int | None = None) -> tuple[int, ...]:
        pipe = self.pipe
        # Drawn as tokens, each of two by two of the autoencoder's latents
        token = 2 * pipe.vae_scale_factor
        own = pipe.default_sample_size * pipe.vae_scale_factor
        rows, columns = ((length or own) // token for length in (height, width))
        return (pipe.transformer.config.in_channels, rows, columns)

    def predict(self, latents: Tensor, t: Tensor, text: Text) -> Tensor:
        pipe, device = self.pipe, latents.device
        found = self.denoiser(
            hidden_states=pipe._pack_latents(latents),
            timestep=each(t, latents) / 1000,
            guidance=None,
            txt_ids=pipe._prepare_text_ids(text.first).to(device),
            img_ids=pipe._prepare_latent_ids(latents).to(device),
            **text.inputs,
        ).sample
        return cast(Tensor, found.transpose(1, 2).reshape(latents.shape))

    def time_of(self, given: Mapping[str, Any]) -> Tensor:
        return 1000 * cast(Tensor, given["timestep"])
