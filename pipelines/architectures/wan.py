"""Wan, text to video: T5's rows, and zeros where there is no text, into cross attention."""

from collections.abc import Sequence
from typing import Any, ClassVar, cast

from torch import Tensor

from ..._errors import InputError
from ..parts import Heard, Parts, Stream, default
from ..text import Text
from .aura_flow import pair, unpadded
from .stable_diffusion_3 import each, t5


class Wan(Parts):
    """The parts of a ``WanPipeline`` with one transformer.

    Attributes:
        sampled: How many frames of a video are looked at.
    """

    sampled: ClassVar[int] = 5

    readers_by_name = {"sequence": r"condition_embedder\.text_embedder\.linear_1"}
    crosses = r"blocks\.\d+\.attn2\..*"
    crosses_strict = r"blocks\.\d+\.attn2\.to_[kv]"
    blocks = r"blocks\..*"
    calls = 2
    pictured = (
        f"The model draws videos: {sampled} frames of each were looked at, evenly spaced from the "
        "first to the last. What is in one of them counts as seen; what is between them alone "
        "does not. Metrics are of the middle one."
    )

    def __init__(self, pipe: Any) -> None:
        super().__init__(pipe)
        config = pipe.config
        second = getattr(pipe, "transformer_2", None) is not None
        if second or config.get("boundary_ratio") or config.get("expand_timesteps"):
            raise InputError(
                "This is a Wan 2.2, with a second transformer or a time for each frame, and what "
                "is described so far is Wan 2.1: take that one."
            )

    def streams(self) -> tuple[Stream, ...]:
        from diffusers.pipelines.wan.pipeline_wan import prompt_clean

        return (t5("sequence", self, self.pipe.tokenizer, clean=prompt_clean),)

    def heard(self, given: tuple[Any, ...]) -> Heard:
        return pair(*given)

    def reads(self, text: Text) -> dict[str, list[Tensor]]:
        return {name: unpadded(rows) for name, rows in super().reads(text).items()}

    def latent_shape(self, height: int | None = None, width: int | None = None) -> tuple[int, ...]:
        pipe = self.pipe
        frames = (default(pipe, "num_frames") - 1) // pipe.vae_scale_factor_temporal + 1
        rows, columns = (
            (length or default(pipe, name)) // pipe.vae_scale_factor_spatial
            for name, length in (("height", height), ("width", width))
        )
        return (pipe.transformer.config.in_channels, frames, rows, columns)

    def predict(self, latents: Tensor, t: Tensor, text: Text) -> Tensor:
        times = each(t, latents)
        return cast(Tensor, self.denoiser(latents, timestep=times, **text.inputs).sample)

    def images(self, result: Any) -> list[tuple[Any, ...]]:
        def sample(frames: Sequence[Any]) -> tuple[Any, ...]:
            last = len(frames) - 1
            each = (round(i * last / (self.sampled - 1)) for i in range(self.sampled))
            return tuple(frames[at] for at in dict.fromkeys(each))

        return [sample(frames) for frames in result.frames]
