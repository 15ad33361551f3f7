"""Stable Diffusion XL, Turbo and Lightning: two CLIPs side by side, and the second one's pooled
embedding beside the image's size."""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..parts import Encoder, Heard, Stream
from ..text import Text
from .stable_diffusion import StableDiffusion, clip

# Of added_cond_kwargs, what is text's and what is the image's.
_POOLED, _SIZES = "text_embeds", "time_ids"


class StableDiffusionXL(StableDiffusion):
    """The parts of a ``StableDiffusionXLPipeline``."""

    text = ("encoder_hidden_states", _POOLED)
    readers_by_name = StableDiffusion.readers_by_name | {"pooled": r"add_embedding\.linear_1"}
    relative = True

    def streams(self) -> tuple[Stream, ...]:
        pipe = self.pipe
        return (
            clip("sequence", pipe.tokenizer or pipe.tokenizer_2),
            clip("pooled", pipe.tokenizer_2, pooled=True),
        )

    def encoders(self) -> tuple[Encoder, ...]:
        pipe, found, start = self.pipe, [], 0
        for tokenizer, model in (
            (pipe.tokenizer, pipe.text_encoder),
            (pipe.tokenizer_2, pipe.text_encoder_2),
        ):
            if model is not None:
                stop = start + model.config.hidden_size
                found.append(Encoder(tokenizer, model, slice(start, stop)))
                start = stop
        return tuple(found)

    @property
    def empty_is_text(self) -> bool:
        return not self.pipe.config.force_zeros_for_empty_prompt

    def heard(self, given: tuple[Any, ...]) -> Heard:
        prompt, empty, pooled, empty_pooled = given
        return Heard(
            Text({"encoder_hidden_states": prompt, _POOLED: pooled}),
            None
            if empty is None
            else Text({"encoder_hidden_states": empty, _POOLED: empty_pooled}),
        )

    def columns(self, group: str, layer: nn.Linear) -> int:
        if group == "sequence":
            return layer.in_features
        # Pooled embedding, then six sizes
        sizes = 6 * self.pipe.unet.config.addition_time_embed_dim
        return layer.in_features - cast(int, sizes)

    def reads(self, text: Text) -> dict[str, list[Tensor]]:
        pooled = text.inputs[_POOLED]
        return super().reads(text) | {"pooled": [one[None] for one in pooled]}

    def predict(self, latents: Tensor, t: Tensor, text: Text) -> Tensor:
        factor = self.pipe.vae_scale_factor
        height, width = (factor * length for length in latents.shape[-2:])
        # As the pipeline does: an image that was never scaled, and nothing cropped
        sizes = torch.tensor([[height, width, 0, 0, height, width]]).to(latents)
        added = {_POOLED: text.inputs[_POOLED], _SIZES: sizes.expand(len(latents), -1)}
        found = self.denoiser(
            latents,
            t,
            encoder_hidden_states=text.inputs["encoder_hidden_states"],
            added_cond_kwargs=added,
        )
        return cast(Tensor, found.sample)

    def text_of(self, given: Mapping[str, Any]) -> Text:
        sequence, added = given["encoder_hidden_states"], given["added_cond_kwargs"]
        return Text({"encoder_hidden_states": sequence, _POOLED: added[_POOLED]})

    def with_text(self, given: Mapping[str, Any], text: Text) -> dict[str, Any]:
        added = given["added_cond_kwargs"] | {_POOLED: text.inputs[_POOLED]}
        sequence = text.inputs["encoder_hidden_states"]
        return {**given, "encoder_hidden_states": sequence, "added_cond_kwargs": added}
