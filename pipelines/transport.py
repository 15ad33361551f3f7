"""Facilitated transport: how strongly an erasure acts is for each prompt to say.

From SPM (https://arxiv.org/abs/2312.16145). The LoRA's B A x is scaled row by row of the batch
with γ(p, c), the likeness of the row's prompt p and the nearest of the erasure's phrases c:

    sentence(p, c) = max(0, cos(E(p), E(c)))        E: the text encoder's output, flattened
    token(p, c) = |T(p) ∩ T(c)| / |T(c)|            T: the set of a text's tokens
    γ = max over c, and over the two where both are asked for

The published code takes one prompt at a time, scales the empty prompt's row like it, and, as it
scales A and B alike, has γ² for γ; here each row has its own, once.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .._errors import InputError
from ..records import Transport
from .parts import described, eager, named, uncompiled


def similarity(texts: Tensor, others: Tensor) -> Tensor:
    """The cosine of each two embeddings (n, tokens, dim) and (m, tokens, dim), shape (n, m)."""
    one, other = texts.flatten(1).float(), others.flatten(1).float()
    return functional.normalize(one, dim=1) @ functional.normalize(other, dim=1).T


def overlap(prompt: set[int], phrases: Sequence[set[int]]) -> float:
    """The largest share of a phrase's tokens that a prompt has, in [0, 1]."""
    # A phrase of unknown tokens alone is in every prompt: not known is not let pass.
    return max(len(prompt & phrase) / len(phrase) if phrase else 1.0 for phrase in phrases)


class Transported:
    """Scales a LoRA that is in the pipeline's denoiser by facilitated transport.

    The text encoder is listened to, and a row whose text it did not encode since, or whose
    embedding was changed on the way, has the whole strength: what is not known is not let pass.
    So has the row that a guide added, if the guide was there before.

    Args:
        pipe: The pipeline.
        adapter: The LoRA's name in the denoiser.
        transport: What of prompt and phrases is compared, and the phrases.

    Raises:
        InputError: The pipeline has more than one text encoder.
    """

    def __init__(self, pipe: Any, adapter: str, transport: Transport) -> None:
        if getattr(pipe, "text_encoder_2", None) is not None:
            raise InputError(
                f"Facilitated transport listens to one text encoder, and a {type(pipe).__name__} "
                "has several: load the file with load_lora_weights, for its whole strength."
            )
        parts = described(pipe)
        phrases = list(transport.phrases)
        self.kind = transport.similarity
        self.concepts = parts.encode(phrases)
        self.special = set(pipe.tokenizer.all_special_ids)
        self.tokens = [set(ids) - self.special for ids in pipe.tokenizer(phrases).input_ids]
        self.known: dict[bytes, float] = {}
        # of the denoiser's call that goes on: its text and each row's strength
        self.text, self.strengths = torch.empty(0), torch.empty(0)
        self.handles = [
            pipe.text_encoder.register_forward_hook(self.listen, with_kwargs=True),
            parts.denoiser.register_forward_pre_hook(self.before, with_kwargs=True),
        ]
        for module in parts.denoiser.modules():
            if adapter in (sides := getattr(module, "lora_B", {})):
                self.handles.append(sides[adapter].register_forward_hook(self.scale))

    def off(self) -> None:
        """Ends it; the LoRA then has its whole strength."""
        for handle in self.handles:
            handle.remove()

    @eager
    def listen(self, module: nn.Module, args: Any, kwargs: Mapping[str, Any], output: Any) -> None:
        ids = named(uncompiled(module), args, kwargs)["input_ids"]
        sentence = similarity(output[0], self.concepts.to(output[0])).amax(1).clamp(0, 1).tolist()
        for row, embedding in enumerate(output[0]):
            token = overlap(set(ids[row].tolist()) - self.special, self.tokens)
            both = {"sentence": sentence[row], "token": token}
            known = both[self.kind] if self.kind in both else max(both.values())
            self.known[_key(embedding)] = known

    @eager
    def before(self, module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
        text = named(module, args, kwargs)["encoder_hidden_states"]
        if text is not self.text:
            self.text = text
            self.strengths = torch.tensor([self.known.get(_key(row), 1.0) for row in text])

    @eager
    def scale(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return output * self.strengths.to(output).view(-1, *(1 for _ in output.shape[1:]))


def _key(embedding: Tensor) -> bytes:
    """What an embedding (tokens, dim) is known by."""
    values = embedding.detach().float().cpu().contiguous().numpy()
    return hashlib.blake2b(values.tobytes()).digest()
