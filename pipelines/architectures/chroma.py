"""Chroma: FLUX without CLIP, with a mask of its text, and with guidance that was not learnt."""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from ..parts import Heard, Parts, Stream
from ..text import Text
from .flux import packed_shape, unpacked
from .stable_diffusion_3 import each, t5


class Chroma(Parts):
    """The parts of a ``ChromaPipeline``.

    Its mask of 0 and 1 is added to the attention's scores, so that the denoiser reads the padding
    too: no row is left out. The denoiser is given it with a 1 for each of the image's tokens.
    """

    text = ("encoder_hidden_states", "attention_mask")
    shared = ("txt_ids", "img_ids")
    readers_by_name = {"sequence": r"context_embedder"}
    crosses = r"(single_)?transformer_blocks\.\d+\.attn\..*"
    crosses_strict = r"transformer_blocks\.\d+\.attn\.add_[kv]_proj"
    calls = 2

    def streams(self) -> tuple[Stream, ...]:
        return (t5("sequence", self, self.pipe.tokenizer),)

    def heard(self, given: tuple[Any, ...]) -> Heard:
        prompt, _, mask, empty, _, empty_mask = given
        return Heard(_text(prompt, mask), None if empty is None else _text(empty, empty_mask))

    def latent_shape(self, height: int | None = None, width: int | None = None) -> tuple[int, ...]:
        return packed_shape(self.pipe, height, width)

    def predict(self, latents: Tensor, t: Tensor, text: Text) -> Tensor:
        n, channels, rows, columns = latents.shape
        pipe, like = self.pipe, latents
        tokens = pipe._pack_latents(latents, n, channels, rows, columns)
        found = self.denoiser(
            hidden_states=tokens,
            timestep=each(t, latents) / 1000,
            encoder_hidden_states=text.first,
            txt_ids=torch.zeros(text.first.shape[1], 3).to(like),
            img_ids=pipe._prepare_latent_image_ids(
                n, rows // 2, columns // 2, like.device, like.dtype
            ),
            attention_mask=_with_image(text, tokens.shape[1]),
        ).sample
        return unpacked(found, rows, columns)

    def text_of(self, given: Mapping[str, Any]) -> Text:
        sequence = given["encoder_hidden_states"]
        return _text(sequence, given["attention_mask"][:, : sequence.shape[1]])

    def with_text(self, given: Mapping[str, Any], text: Text) -> dict[str, Any]:
        mask = _with_image(text, given["hidden_states"].shape[1])
        return {**given, "encoder_hidden_states": text.first, "attention_mask": mask}

    def time_of(self, given: Mapping[str, Any]) -> Tensor:
        return 1000 * cast(Tensor, given["timestep"])


def _text(sequence: Tensor, mask: Tensor) -> Text:
    return Text({"encoder_hidden_states": sequence, "attention_mask": mask})


def _with_image(text: Text, tokens: int) -> Tensor:
    """A text's mask, and behind it that of so many tokens of an image."""
    mask = cast(Tensor, text.inputs["attention_mask"])
    return torch.cat([mask, mask.new_ones(len(mask), tokens)], dim=1)
