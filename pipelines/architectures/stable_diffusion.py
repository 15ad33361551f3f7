"""Stable Diffusion 1.x and 2.x: a CLIP text encoder, a UNet that reads it by cross attention."""

from typing import Any, cast

from torch import Tensor

from ..._errors import InputError
from ..parts import Encoder, Heard, Parts, Stream
from ..text import Text


class StableDiffusion(Parts):
    """The parts of a ``StableDiffusionPipeline``."""

    prefix = "unet"
    readers_by_name = {"sequence": r".*attn2\.to_[kv]"}
    crosses = r".*attn2\..*"
    crosses_strict = r".*attn2\.to_[kv]"
    blocks = r".*attentions\..*"
    flow = False
    # The closed forms' authors tried their λ on this family.
    relative = False

    def streams(self) -> tuple[Stream, ...]:
        return (clip("sequence", self.pipe.tokenizer, from_last=True),)

    def encoders(self) -> tuple[Encoder, ...]:
        return (Encoder(self.pipe.tokenizer, self.pipe.text_encoder, slice(None)),)

    def heard(self, given: tuple[Any, ...]) -> Heard:
        prompt, empty = (_text(one) for one in given)
        assert prompt is not None
        return Heard(prompt, empty)

    def latent_shape(self, height: int | None = None, width: int | None = None) -> tuple[int, ...]:
        config = self.pipe.unet.config
        if config.in_channels != config.out_channels:
            raise InputError(
                f"This UNet reads {config.in_channels} channels, as one made for inpainting does, "
                "and its latents cannot be drawn from a prompt alone: take a method that needs no "
                "drawing, such as uce, without a check of its effect (--no-check)."
            )
        factor, size = self.pipe.vae_scale_factor, config.sample_size
        rows = size if height is None else height // factor
        columns = size if width is None else width // factor
        return (config.in_channels, rows, columns)

    def predict(self, latents: Tensor, t: Tensor, text: Text) -> Tensor:
        return cast(Tensor, self.denoiser(latents, t, **text.inputs).sample)


def clip(group: str, tokenizer: Any, **more: Any) -> Stream:
    """The stream of a CLIP text encoder, which puts one token before a text and one behind."""
    return Stream(group, tokenizer, room=tokenizer.model_max_length - 2, start=1, **more)


def _text(embeddings: Tensor | None) -> Text | None:
    return None if embeddings is None else Text({"encoder_hidden_states": embeddings})
