"""PixArt-Σ: T5's rows, padding left out, by way of a projection into cross attention."""

from collections.abc import Callable
from typing import Any, cast

from torch import Tensor

from ..parts import Heard, Parts, Stream, default
from ..text import Text
from .stable_diffusion_3 import each, t5


class PixArtSigma(Parts):
    """The parts of a ``PixArtSigmaPipeline``.

    The transformer's output has twice the latents' channels, of which the scheduler is given the
    first half: the others are a variance that no scheduler of diffusers takes.
    """

    text = ("encoder_hidden_states", "encoder_attention_mask")
    masked = "encoder_attention_mask"
    readers_by_name = {"sequence": r"caption_projection\.linear_1"}
    crosses = r"transformer_blocks\.\d+\.attn2\..*"
    crosses_strict = r"transformer_blocks\.\d+\.attn2\.to_[kv]"
    flow = False
    # With it an image would be drawn in another size than it is asked for.
    settings = {"use_resolution_binning": False}

    def streams(self) -> tuple[Stream, ...]:
        return (t5("sequence", self, self.pipe.tokenizer, clean=cleaned(self.pipe)),)

    def heard(self, given: tuple[Any, ...]) -> Heard:
        return masked_pair(given)

    def latent_shape(self, height: int | None = None, width: int | None = None) -> tuple[int, ...]:
        config, factor = self.pipe.transformer.config, self.pipe.vae_scale_factor
        own = config.sample_size * factor
        rows, columns = ((length or own) // factor for length in (height, width))
        return (config.in_channels, rows, columns)

    def predict(self, latents: Tensor, t: Tensor, text: Text) -> Tensor:
        found = self.denoiser(
            latents,
            timestep=each(t, latents),
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            **text.inputs,
        ).sample
        return cast(Tensor, found[:, : latents.shape[1]])


def masked_pair(given: tuple[Any, ...]) -> Heard:
    """Prompt and empty prompt, each its rows and a mask of them."""
    prompt, mask, empty, its_mask = given

    def text(rows: Tensor, mask: Tensor) -> Text:
        return Text({"encoder_hidden_states": rows, "encoder_attention_mask": mask})

    return Heard(text(prompt, mask), None if empty is None else text(empty, its_mask))


def cleaned(pipe: Any) -> Callable[[str], str]:
    """What a pipeline makes of a text before its tokenizer."""
    from diffusers.utils.import_utils import is_bs4_available, is_ftfy_available

    # The pipeline says so at every text where what it needs for it is not installed.
    thorough = default(pipe, "clean_caption") and is_bs4_available() and is_ftfy_available()

    def clean(text: str) -> str:
        (found,) = pipe._text_preprocessing(text, clean_caption=thorough)
        return cast(str, found)

    return clean
