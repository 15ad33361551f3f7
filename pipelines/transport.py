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

from ..records import Transport
from .modules import eager, named
from .parts import described
from .text import Text
from .watch import Spoken, spoken_in


def similarity(texts: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
    """The cosine of each two of n and m embeddings (tokens, dim), shape (n, m).

    Those with fewer tokens are filled up with zeros.
    """
    longest = max(len(one) for one in (*texts, *others))
    one, other = (
        torch.stack([functional.pad(rows, (0, 0, 0, longest - len(rows))) for rows in some])
        .flatten(1)
        .float()
        for some in (texts, others)
    )
    return functional.normalize(one, dim=1) @ functional.normalize(other, dim=1).T


def overlap(prompt: set[int], phrases: Sequence[set[int]]) -> float:
    """The largest share of a phrase's tokens that a prompt has, in [0, 1]."""
    # A phrase of unknown tokens alone is in every prompt: not known is not let pass.
    return max(len(prompt & phrase) / len(phrase) if phrase else 1.0 for phrase in phrases)


class Transported:
    """Scales a LoRA that is in the pipeline's denoiser by facilitated transport.

    What the pipeline encodes is listened to, and a row whose text it did not encode, or whose
    embedding was changed on the way, has the whole strength: what is not known is not let pass.
    So has the row that a guide added, if the guide was there before, and what another pipeline
    of the same denoiser draws.

    Args:
        pipe: The pipeline.
        adapter: The LoRA's name in the denoiser.
        transport: What of prompt and phrases is compared, and the phrases.
    """

    def __init__(self, pipe: Any, adapter: str, transport: Transport) -> None:
        self.parts = parts = described(pipe)
        phrases = list(transport.phrases)
        self.kind = transport.similarity
        self.concepts = parts.sequence(parts.encode(phrases))
        # A first word can be another token than the same within a text.
        starts = ("", " ")
        self.tokens = [self.tokens_of(start + phrase) for phrase in phrases for start in starts]
        self.known: dict[bytes, float] = {}
        # of the denoiser's call that goes on: its text and each row's strength
        self.text: Text | None = None
        self.strengths = torch.empty(0)
        self.spoken: tuple[Spoken, ...] = ()
        self.handles = [parts.denoiser.register_forward_pre_hook(self.before, with_kwargs=True)]
        for module in parts.denoiser.modules():
            if adapter in (sides := getattr(module, "lora_B", {})):
                self.handles.append(sides[adapter].register_forward_hook(self.scale))

    def off(self) -> None:
        """Ends it; the LoRA then has its whole strength."""
        for handle in self.handles:
            handle.remove()

    def tokens_of(self, text: str) -> set[int]:
        stream = self.parts.streams()[0]
        return set(stream.tokens(text)) - set(stream.tokenizer.all_special_ids)

    def listen(self, spoken: Spoken) -> None:
        """Takes down how strongly the erasure is to act on what was encoded."""
        heard = self.parts.heard(spoken.given)
        for text, words in ((heard.prompt, spoken.prompts), (heard.empty, spoken.negatives)):
            if text is None or len(words) != len(text):
                continue
            rows = self.parts.sequence(text)
            concepts = [one.to(rows[0]) for one in self.concepts]
            sentences = similarity(rows, concepts).amax(1).clamp(0, 1).tolist()
            for key, said, sentence in zip(_keys(text), words, sentences, strict=True):
                both = {
                    "sentence": sentence,
                    "token": overlap(self.tokens_of(said), self.tokens),
                }
                self.known[key] = both[self.kind] if self.kind in both else max(both.values())

    @eager
    def before(self, module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
        text = self.parts.text_of(named(module, args, kwargs))
        spoken = spoken_in(self.parts.pipe)
        if spoken is not self.spoken:
            for one in self.parts.spoken():
                if one not in self.spoken:
                    self.listen(one)
            self.spoken = spoken
        elif self.text is not None and text.equals(self.text):
            return
        self.text = text
        self.strengths = torch.tensor([self.known.get(key, 1.0) for key in _keys(text)])

    @eager
    def scale(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return output * self.strengths.to(output).view(-1, *(1 for _ in output.shape[1:]))


def _keys(text: Text) -> list[bytes]:
    """What each text of a call is known by."""
    rows = next(iter(text.inputs.values()))
    return [
        hashlib.blake2b(row.detach().float().cpu().contiguous().numpy().tobytes()).digest()
        for row in rows
    ]
