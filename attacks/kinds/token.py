"""A learnt token: a new word of the tokenizers, with embeddings of its own.

Tensors, by the names that tools for textual inversion read: of a pipeline with one text encoder
the token's own name, shape (vectors, dim); of several, by what the encoders are called there,
``clip_l`` and ``clip_g`` for SDXL, and else by their names in the pipeline.
"""

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from ...training.search import TOKEN, encoders, learnt
from .text import prompt as prompt

if TYPE_CHECKING:
    from torch import Tensor

    from ..attacked import Attacked

_KNOWN_AS = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}


def changes_model(attacked: "Attacked") -> bool:
    return bool(attacked.tensors)


def applied(attacked: "Attacked", pipe: Any) -> AbstractContextManager[None]:
    return learnt(pipe, vectors(attacked, pipe))


def vectors(attacked: "Attacked", pipe: Any) -> "dict[str, Tensor]":
    """The token's embeddings by text encoder, (vectors, dim)."""
    names = file_names(pipe)
    return {names.get(key, key): tensor for key, tensor in attacked.tensors.items()}


def file_names(pipe: Any) -> dict[str, str]:
    """What a text encoder is called in a file, to its name in the pipeline."""
    there = list(encoders(pipe))
    if len(there) == 1:
        return {TOKEN: there[0]}
    if there == list(_KNOWN_AS):
        return {known: name for name, known in _KNOWN_AS.items()}
    return {name: name for name in there}
