"""Z-Image: Qwen3's rows of a prompt in a chat, a list of them, in one stream with the image."""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from ..parts import Heard, Parts, Stream, default
from ..text import Text
from .qwen_image import framed, normed
from .stable_diffusion_3 import each


class ZImage(Parts):
    """The parts of a ``ZImagePipeline``, Turbo too.

    It counts t from noise to image, its output is the negative of the velocity, and its scale of
    guidance is 0 where others' is 1.
    """

    text = ("cap_feats",)
    listed = ("x",)
    readers_by_name = {"sequence": r"cap_embedder\.1"}
    before_readers = ("cap_embedder.0",)
    # One stream of text and image
    crosses = r"layers\.\d+\.attention\..*"
    crosses_strict = r"layers\.\d+\.attention\.to_[kv]"
    blocks = r"(noise_refiner|context_refiner|layers)\..*"
    empty_first = False
    sign = -1.0
    guiding = "guidance_scale above 0"

    def streams(self) -> tuple[Stream, ...]:
        pipe = self.pipe
        frame = chat(pipe.tokenizer, enable_thinking=True)
        return (framed("sequence", pipe.tokenizer, frame, self.passes("max_sequence_length")),)

    def heard(self, given: tuple[Any, ...]) -> Heard:
        prompt, empty = given
        return Heard(Text({"cap_feats": prompt}), Text({"cap_feats": empty}) if empty else None)

    def reads(self, text: Text) -> dict[str, list[Tensor]]:
        return normed(super().reads(text), self.pipe.transformer.cap_embedder[0])

    def latent_shape(self, height: int | None = None, width: int | None = None) -> tuple[int, ...]:
        pipe = self.pipe
        token = 2 * pipe.vae_scale_factor
        # 1024: written in the pipeline's call
        rows, columns = (
            2 * ((length or default(pipe, name) or 1024) // token)
            for name, length in (("height", height), ("width", width))
        )
        return (pipe.transformer.config.in_channels, rows, columns)

    def predict(self, latents: Tensor, t: Tensor, text: Text) -> Tensor:
        time = (1000 - each(t, latents)) / 1000
        # Frames of a video, one each
        images = list(latents.unsqueeze(2).unbind(0))
        found = self.denoiser(images, time, text.inputs["cap_feats"]).sample
        return self.sign * torch.stack(found).squeeze(2)

    def combine(self, empty: Tensor, prompt: Tensor, scale: float) -> Tensor:
        return prompt + scale * (prompt - empty)

    def time_of(self, given: Mapping[str, Any]) -> Tensor:
        return 1000 * (1 - cast(Tensor, given["t"]))


def chat(tokenizer: Any, **settings: Any) -> str:
    """What a tokenizer's chat template puts around a text, with {} for the text."""
    said = tokenizer.apply_chat_template(
        [{"role": "user", "content": "{}"}], tokenize=False, add_generation_prompt=True, **settings
    )
    return cast(str, said)
