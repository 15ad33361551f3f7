"""Lumina Image 2: Gemma's rows behind a system prompt, in one stream with the image."""

from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor

from ..parts import Heard, Parts, Stream
from ..text import Text
from .pixart_sigma import masked_pair
from .qwen_image import framed, normed, renormed
from .stable_diffusion_3 import each


class Lumina2(Parts):
    """The parts of a ``Lumina2Pipeline``.

    It counts t from noise to image, and its output is the negative of the velocity. The system
    prompt is put before prompts, and before no negative one: its ∅ is no text's.
    """

    text = ("encoder_hidden_states", "encoder_attention_mask")
    masked = "encoder_attention_mask"
    readers_by_name = {"sequence": r"time_caption_embed\.caption_embedder\.1"}
    before_readers = ("time_caption_embed.caption_embedder.0",)
    # One stream of text and image
    crosses = r"layers\.\d+\.attn\..*"
    crosses_strict = r"layers\.\d+\.attn\.to_[kv]"
    blocks = r"(noise_refiner|context_refiner|layers)\..*"
    calls = 2
    sign = -1.0

    def streams(self) -> tuple[Stream, ...]:
        pipe = self.pipe
        frame = f"{pipe.system_prompt} <Prompt Start> {{}}"
        return (framed("sequence", pipe.tokenizer, frame, self.passes("max_sequence_length")),)

    @property
    def empty_is_text(self) -> bool:
        return False

    def heard(self, given: tuple[Any, ...]) -> Heard:
        return masked_pair(given)

    def reads(self, text: Text) -> dict[str, list[Tensor]]:
        return normed(
            super().reads(text), self.pipe.transformer.time_caption_embed.caption_embedder[0]
        )

    def latent_shape(self, height: int | None = None, width: int | None = None) -> tuple[int, ...]:
        pipe = self.pipe
        token = 2 * pipe.vae_scale_factor
        own = pipe.default_sample_size * pipe.vae_scale_factor
        rows, columns = (2 * ((length or own) // token) for length in (height, width))
        return (pipe.transformer.config.in_channels, rows, columns)

    def predict(self, latents: Tensor, t: Tensor, text: Text) -> Tensor:
        span = self.scheduler.config.num_train_timesteps
        time = 1 - each(t, latents) / span
        found = self.denoiser(hidden_states=latents, timestep=time, **text.inputs).sample
        return self.sign * cast(Tensor, found)

    def combine(self, empty: Tensor, prompt: Tensor, scale: float) -> Tensor:
        # By default (cfg_normalization), each row of the latents for itself
        return renormed(super().combine(empty, prompt, scale), prompt)

    def time_of(self, given: Mapping[str, Any]) -> Tensor:
        return 1000 * (1 - cast(Tensor, given["timestep"]))
