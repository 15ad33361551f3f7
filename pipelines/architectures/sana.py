"""Sana: Gemma's rows behind an instruction, by way of a projection into cross attention."""

from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor

from ..parts import Heard, Parts, Stream, default, token_ids
from ..text import Text
from .pixart_sigma import cleaned, masked_pair
from .stable_diffusion_3 import each


class Sana(Parts):
    """The parts of a ``SanaPipeline``.

    The pipeline puts an instruction to the text encoder before a prompt, and none before the
    negative one. Of all rows, the denoiser is given the first one and the last
    ``max_sequence_length`` − 1, of which it leaves out padding.
    """

    text = ("encoder_hidden_states", "encoder_attention_mask")
    masked = "encoder_attention_mask"
    readers_by_name = {"sequence": r"caption_projection\.linear_1"}
    crosses = r"transformer_blocks\.\d+\.attn2\..*"
    crosses_strict = r"transformer_blocks\.\d+\.attn2\.to_[kv]"
    # With it an image would be drawn in another size than it is asked for.
    settings = {"use_resolution_binning": False}

    def streams(self) -> tuple[Stream, ...]:
        pipe, before, start = self.pipe, self._instruction, 1
        rows = self.passes("max_sequence_length")
        if before:
            # With the instruction's tokens there are as many rows more, but for two.
            more = len(pipe.tokenizer.encode(before)) - 2
            start += len(token_ids(pipe.tokenizer, before.rstrip(" "))) - more
        return (
            Stream(
                "sequence",
                pipe.tokenizer,
                room=rows - start,
                start=start,
                before=before,
                clean=cleaned(pipe),
            ),
        )

    @property
    def _instruction(self) -> str:
        return "\n".join(default(self.pipe, "complex_human_instruction") or ())

    @property
    def empty_is_text(self) -> bool:
        return not self._instruction

    def heard(self, given: tuple[Any, ...]) -> Heard:
        return masked_pair(given)

    def latent_shape(self, height: int | None = None, width: int | None = None) -> tuple[int, ...]:
        pipe = self.pipe
        rows, columns = (
            (length or default(pipe, name)) // pipe.vae_scale_factor
            for name, length in (("height", height), ("width", width))
        )
        return (pipe.transformer.config.in_channels, rows, columns)

    def predict(self, latents: Tensor, t: Tensor, text: Text) -> Tensor:
        times = each(t, latents) * self._scale
        return cast(Tensor, self.denoiser(latents, timestep=times, **text.inputs).sample)

    def time_of(self, given: Mapping[str, Any]) -> Tensor:
        # In double precision, so that noise is t = 1000
        return cast(Tensor, given["timestep"].double() / self._scale)

    @property
    def _scale(self) -> float:
        return float(self.pipe.transformer.config.timestep_scale)
