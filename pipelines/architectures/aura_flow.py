"""AuraFlow: T5's rows in joint attention, and zeros where there is no text."""

from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor

from ..parts import Heard, Parts, Stream, default
from ..text import Text
from .stable_diffusion_3 import each, t5


class AuraFlow(Parts):
    """The parts of an ``AuraFlowPipeline``."""

    readers_by_name = {"sequence": r"context_embedder"}
    crosses = r"(joint|single)_transformer_blocks\.\d+\.attn\..*"
    crosses_strict = r"joint_transformer_blocks\.\d+\.attn\.add_[kv]_proj"
    blocks = r"(joint|single)_transformer_blocks\..*"

    def streams(self) -> tuple[Stream, ...]:
        return (t5("sequence", self, self.pipe.tokenizer),)

    def heard(self, given: tuple[Any, ...]) -> Heard:
        prompt, _, empty, _ = given
        return pair(prompt, empty)

    def reads(self, text: Text) -> dict[str, list[Tensor]]:
        return {name: unpadded(rows) for name, rows in super().reads(text).items()}

    def latent_shape(self, height: int | None = None, width: int | None = None) -> tuple[int, ...]:
        pipe = self.pipe
        rows, columns = (
            (length or default(pipe, name)) // pipe.vae_scale_factor
            for name, length in (("height", height), ("width", width))
        )
        return (pipe.transformer.config.in_channels, rows, columns)

    def predict(self, latents: Tensor, t: Tensor, text: Text) -> Tensor:
        times = each(t, latents) / 1000
        return cast(Tensor, self.denoiser(latents, timestep=times, **text.inputs).sample)

    def time_of(self, given: Mapping[str, Any]) -> Tensor:
        return 1000 * cast(Tensor, given["timestep"])


def pair(prompt: Tensor, empty: Tensor | None) -> Heard:
    """Prompt and empty prompt, each its rows alone."""

    def text(rows: Tensor) -> Text:
        return Text({"encoder_hidden_states": rows})

    return Heard(text(prompt), None if empty is None else text(empty))


def unpadded(texts: list[Tensor]) -> list[Tensor]:
    """The rows of each text without those of zeros, which no weights make anything else of."""
    return [rows[rows.any(1)] for rows in texts]
