"""Qwen-Image: Qwen2.5-VL's rows of a prompt in a frame of words, in joint attention."""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..parts import Heard, Parts, Stream, token_ids
from ..text import Text
from .flux import packed_shape, unpacked
from .stable_diffusion_3 import each


class QwenImage(Parts):
    """The parts of a ``QwenImagePipeline``.

    It has classifier-free guidance in a call with a negative prompt, so ``call`` has one. Where
    all texts of a batch have one length, the pipeline has no mask; here there always is one.
    """

    text = ("encoder_hidden_states", "encoder_hidden_states_mask")
    masked = "encoder_hidden_states_mask"
    shared = ("img_shapes",)
    readers_by_name = {"sequence": r"txt_in"}
    before_readers = ("txt_norm",)
    crosses = r"transformer_blocks\.\d+\.attn\..*"
    crosses_strict = r"transformer_blocks\.\d+\.attn\.add_[kv]_proj"
    calls = 2
    guidance_argument = "true_cfg_scale"
    guiding = "true_cfg_scale above 1 and a negative_prompt"

    def streams(self) -> tuple[Stream, ...]:
        pipe = self.pipe
        # The pipeline leaves out the rows of the system prompt.
        dropped = pipe.prompt_template_encode_start_idx
        rows = self.passes("max_sequence_length") + dropped
        return (framed("sequence", pipe.tokenizer, pipe.prompt_template_encode, rows, dropped),)

    def heard(self, given: tuple[Any, ...]) -> Heard:
        return Heard(_text(*given), None)

    def reads(self, text: Text) -> dict[str, list[Tensor]]:
        return normed(super().reads(text), self.pipe.transformer.txt_norm)

    def latent_shape(self, height: int | None = None, width: int | None = None) -> tuple[int, ...]:
        return packed_shape(self.pipe, height, width)

    def predict(self, latents: Tensor, t: Tensor, text: Text) -> Tensor:
        n, channels, rows, columns = latents.shape
        found = self.denoiser(
            hidden_states=self.pipe._pack_latents(latents, n, channels, rows, columns),
            timestep=each(t, latents) / 1000,
            guidance=None,
            img_shapes=[[(1, rows // 2, columns // 2)]] * n,
            **text.inputs,
        ).sample
        return unpacked(found, rows, columns)

    def combine(self, empty: Tensor, prompt: Tensor, scale: float) -> Tensor:
        n, channels, rows, columns = prompt.shape
        one, other = (
            self.pipe._pack_latents(x, n, channels, rows, columns) for x in (empty, prompt)
        )
        # Each token for itself
        guided = renormed(super().combine(one, other, scale), other)
        return unpacked(guided, rows, columns)

    def call(self, **settings: Any) -> dict[str, Any]:
        prompt = settings["prompt"]
        empty = "" if isinstance(prompt, str) else [""] * len(prompt)
        return super().call(**{"negative_prompt": empty, **settings})

    def text_of(self, given: Mapping[str, Any]) -> Text:
        return _text(*(given.get(name) for name in self.text))

    def time_of(self, given: Mapping[str, Any]) -> Tensor:
        return 1000 * cast(Tensor, given["timestep"])

    def guided(self) -> bool:
        # By whether a negative prompt was encoded, which is seen when it is looked for
        return True


def framed(group: str, tokenizer: Any, frame: str, rows: int, dropped: int = 0) -> Stream:
    """The stream of a language model, which reads a text in a frame of words.

    Args:
        frame: The words, with {} for the text.
        rows: How many tokens there are at most, the frame's among them.
        dropped: Of so many of the first tokens the denoiser is given no row.
    """
    before = frame.partition("{}")[0]
    special = tokenizer.num_special_tokens_to_add()
    around = len(token_ids(tokenizer, frame.replace("{}", "")))
    return Stream(
        group,
        tokenizer,
        room=rows - special - around,
        start=special + len(token_ids(tokenizer, before.rstrip(" "))) - dropped,
        before=before,
    )


@torch.no_grad()
def normed(read: Mapping[str, list[Tensor]], norm: nn.Module) -> dict[str, list[Tensor]]:
    """What layers read behind a norm of each row."""
    place = next(norm.parameters())
    return {
        group: [cast(Tensor, norm(one.to(place))).to(one) for one in rows]
        for group, rows in read.items()
    }


def renormed(guided: Tensor, prompt: Tensor) -> Tensor:
    """What guidance gives, with the prediction's norm for the prompt along the last dimension."""
    own, wanted = (x.norm(dim=-1, keepdim=True) for x in (guided, prompt))
    return cast(Tensor, guided * (wanted / own))


def _text(sequence: Any, mask: Any) -> Text:
    if mask is None:
        mask = torch.ones(sequence.shape[:2], dtype=torch.long, device=sequence.device)
    return Text({"encoder_hidden_states": sequence, "encoder_hidden_states_mask": mask})
