"""HunyuanDiT: BERT's rows and, behind them, T5's in cross attention, learnt rows where there is no
text, and what a pooler makes of T5's beside the time."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..parts import Heard, Parts, Stream
from ..text import Text
from .stable_diffusion_3 import each

# What the pipeline passes to its encode_prompt for each text encoder.
_ENCODERS = (
    {"text_encoder_index": 0, "max_sequence_length": 77},
    {"text_encoder_index": 1, "max_sequence_length": 256},
)


class HunyuanDiT(Parts):
    """The parts of a ``HunyuanDiTPipeline``.

    The transformer's output has twice the latents' channels, of which the scheduler is given the
    first half: the others are a variance that no scheduler of diffusers takes.
    """

    text = (
        "encoder_hidden_states",
        "text_embedding_mask",
        "encoder_hidden_states_t5",
        "text_embedding_mask_t5",
    )
    shared = ("image_rotary_emb",)
    readers_by_name = {
        "sequence": r"blocks\.\d+\.attn2\.to_[kv]",
        "pooled": r"time_extra_emb\.extra_embedder\.linear_1",
    }
    before_readers = (
        r"text_embedder\.linear_\d",
        r"text_embedding_padding",
        r"time_extra_emb\.pooler(\.\w+)?",
    )
    encodings = 2
    crosses = r"blocks\.\d+\.attn2\..*"
    crosses_strict = r"blocks\.\d+\.attn2\.to_[kv]"
    blocks = r"blocks\..*"
    flow = False
    # With it an image would have another size than it is asked for.
    settings = {"use_resolution_binning": False}

    def streams(self) -> tuple[Stream, ...]:
        pipe = self.pipe
        bert, t5 = (one["max_sequence_length"] for one in _ENCODERS)
        return (
            # One token before a text and one behind, and of T5's one behind
            Stream("sequence", pipe.tokenizer, room=bert - 2, start=1, stop=bert, causal=False),
            Stream(
                "sequence",
                pipe.tokenizer_2,
                room=t5 - 1,
                start=bert,
                first=bert,
                causal=False,
            ),
            Stream("pooled", pipe.tokenizer_2, room=t5 - 1, pooled=True),
        )

    def encoded(
        self,
        texts: Sequence[str],
        guided: bool,
        negative: Sequence[str] | None = None,
        **more: Any,
    ) -> tuple[Any, ...]:
        encoded = super().encoded
        one, other = (encoded(texts, guided, negative, **more | own) for own in _ENCODERS)
        return (*one, *other)

    def heard(self, given: tuple[Any, ...]) -> Heard:
        prompt, empty, mask, empty_mask, prompt_2, empty_2, mask_2, empty_mask_2 = given

        def text(*inputs: Tensor) -> Text:
            return Text(dict(zip(self.text, inputs, strict=True)))

        return Heard(
            text(prompt, mask, prompt_2, mask_2),
            None if empty is None else text(empty, empty_mask, empty_2, empty_mask_2),
        )

    def columns(self, group: str, layer: nn.Linear) -> int:
        if group == "sequence":
            return layer.in_features
        # Pooled embedding, then the image's sizes and style
        return cast(int, self.pipe.transformer.config.pooled_projection_dim)

    @torch.no_grad()
    def reads(self, text: Text) -> dict[str, list[Tensor]]:
        denoiser: Any = self.denoiser
        padding = denoiser.text_embedding_padding
        bert, _, t5, _ = text.to(padding).inputs.values()
        rows = torch.cat([cast(Tensor, bert), denoiser.text_embedder(t5)], dim=1)
        found = torch.where(_mask(text).to(rows.device), rows, padding).to(text.first)
        pooled = denoiser.time_extra_emb.pooler(t5).to(text.first)
        return {"sequence": list(found), "pooled": [one[None] for one in pooled]}

    def sequence(self, text: Text) -> list[Tensor]:
        # All texts have the same padding, which would make them alike.
        return list(torch.stack(super().sequence(text)) * _mask(text))

    def latent_shape(self, height: int | None = None, width: int | None = None) -> tuple[int, ...]:
        pipe = self.pipe
        own = pipe.default_sample_size * pipe.vae_scale_factor
        rows, columns = (
            (length or own) // 16 * 16 // pipe.vae_scale_factor for length in (height, width)
        )
        return (pipe.transformer.config.in_channels, rows, columns)

    def predict(self, latents: Tensor, t: Tensor, text: Text) -> Tensor:
        from diffusers.models.embeddings import get_2d_rotary_pos_embed
        from diffusers.pipelines.hunyuandit.pipeline_hunyuandit import (
            get_resize_crop_region_for_grid,
        )

        denoiser: Any = self.denoiser
        pipe, n, patch = self.pipe, len(latents), self.pipe.transformer.config.patch_size
        height, width = (pipe.vae_scale_factor * length for length in latents.shape[-2:])
        grid = (height // 8 // patch, width // 8 // patch)
        # As the pipeline does: an image that was 1024 pixels a side, and nothing cropped
        sizes = torch.tensor([[1024, 1024, height, width, 0, 0]]).to(latents)
        found = denoiser(
            latents,
            each(t, latents).to(latents),
            image_meta_size=sizes.repeat(n, 1),
            style=torch.zeros(n, dtype=torch.long, device=latents.device),
            image_rotary_emb=get_2d_rotary_pos_embed(
                denoiser.inner_dim // denoiser.num_heads,
                get_resize_crop_region_for_grid(grid, 512 // 8 // patch),
                grid,
                device=latents.device,
                output_type="pt",
            ),
            # It takes views of its inputs.
            **text.map(Tensor.contiguous).inputs,
        ).sample
        return cast(Tensor, found[:, : latents.shape[1]])


def _mask(text: Text) -> Tensor:
    """Which rows are text's, shape (texts, rows, 1)."""
    masks = (text.inputs["text_embedding_mask"], text.inputs["text_embedding_mask_t5"])
    return torch.cat(cast(tuple[Tensor, ...], masks), dim=1)[..., None].bool()
