"""Learnt embeddings: a token of the tokenizers whose embedding is searched for, not given.

    y = encoder(… e(w₁), v, e(w₂) …)        v in the place of a word's embedding

The pipeline's tokenizers are replaced by copies that know the token. Each text encoder is given an
ordinary word's id in its place and, at its embeddings, the token's own rows. So no weight of the
pipeline is touched, an encoder that finds a text's end by the greatest id still does, and the rows
can be what a gradient is taken to. Afterwards the pipeline is bit for bit as it was.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .._errors import InputError
from ..pipelines.modules import ENCODERS, component_of, named
from ..pipelines.parts import Parts
from ..pipelines.text import Text

TOKEN = "unseetoken"
"""The token's name; a second vector's is ``unseetoken_1``, and so on, as diffusers has them."""


def encoders(pipe: Any) -> dict[str, nn.Module]:
    """The text encoders whose tokens a pipeline's tokenizers know, by name."""
    found = {}
    for name in ENCODERS:
        module = component_of(pipe, name)
        tokenizer = getattr(pipe, name.replace("text_encoder", "tokenizer"), None)
        if module is not None and hasattr(tokenizer, "add_tokens"):
            found[name] = module
    return found


def words(pipe: Any, count: int) -> str:
    """What a prompt says for a token of so many vectors.

    Most of diffusers' pipelines put the names of all vectors in the place of the first themselves.
    """
    from diffusers.loaders.textual_inversion import TextualInversionLoaderMixin

    return TOKEN if isinstance(pipe, TextualInversionLoaderMixin) else " ".join(_names(count))


def like(pipe: Any, word: str, vectors: int) -> dict[str, Tensor]:
    """The embeddings of a word's last token in each text encoder, so many times, in float32."""
    found = {}
    for name, module in encoders(pipe).items():
        tokenizer = _tokenizer(pipe, name)
        ids = tokenizer(word, add_special_tokens=False, verbose=False).input_ids
        if not ids:
            raise InputError(f"The tokenizer has no token for {word!r}: take another word.")
        row = _table(module).weight.detach()[ids[-1]]
        found[name] = row.float().repeat(vectors, 1)
    return found


@contextmanager
def learnt(pipe: Any, vectors: Mapping[str, Tensor]) -> Iterator[None]:
    """A pipeline that knows the token, inside a ``with``.

    Args:
        vectors: By text encoder, the token's embeddings, shape (vectors, dim), which may be a
            parameter; of none, nothing is done.

    Raises:
        InputError: The pipeline has other text encoders, or they read other embeddings.
    """
    there = encoders(pipe)
    if vectors and vectors.keys() != there.keys():
        raise InputError(
            f"The token has embeddings for {', '.join(vectors)}, and the pipeline has "
            f"{', '.join(there) or 'no text encoder of tokens'}: take the model that it was "
            "learnt on."
        )
    with ExitStack() as stack:
        for name, rows in vectors.items():
            stack.enter_context(_known(pipe, name, there[name], rows))
        yield


@contextmanager
def _known(pipe: Any, name: str, module: nn.Module, rows: Tensor) -> Iterator[None]:
    """One text encoder and its tokenizer."""
    table = _table(module)
    if rows.ndim != 2 or rows.shape[1] != table.weight.shape[1]:
        raise InputError(
            f"The token's embeddings for the {name} have shape {tuple(rows.shape)}; wanted "
            f"(vectors, {table.weight.shape[1]}): take the model that it was learnt on."
        )
    attribute = name.replace("text_encoder", "tokenizer")
    own = getattr(pipe, attribute)
    tokenizer = deepcopy(own)
    if tokenizer.add_tokens(_names(len(rows))) != len(rows):
        raise InputError(f"The tokenizer knows {TOKEN!r} already: it cannot stand for a new one.")
    ids = tokenizer.convert_tokens_to_ids(_names(len(rows)))
    # Any ordinary word: special ones mark a text's end
    special = set(own.all_special_ids)
    stand_in = next(i for i in range(table.weight.shape[0]) if i not in special)
    places: list[Tensor] = []

    def before(module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        places.clear()
        given = named(module, args, kwargs)
        read = given.get("input_ids")
        if read is None:
            return None
        known = torch.stack([read == i for i in ids]).long()
        # The vector's number from 1 on, 0 where there is another word
        order = torch.arange(1, len(ids) + 1, device=read.device)
        places.append((known * order.view(-1, *(1 for _ in read.shape))).sum(0))
        return (), given | {"input_ids": torch.where(places[0] > 0, stand_in, read)}

    def after(module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        if not places or places[0].shape != output.shape[:-1] or not places[0].any():
            return None
        own = torch.cat([torch.zeros_like(rows[:1]), rows]).to(output)
        return torch.where(places[0][..., None] > 0, own[places[0]], output)

    handles = [
        module.register_forward_pre_hook(before, with_kwargs=True),
        *(one.register_forward_hook(after) for one in _tables(module)),
    ]
    try:
        setattr(pipe, attribute, tokenizer)
        yield
    finally:
        setattr(pipe, attribute, own)
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class Embedded:
    """What a text encoder read.

    Attributes:
        ids: The tokens, shape (texts, length).
        rows: Their embeddings, shape (texts, length, dim), at which the gradient's way back ends.
    """

    ids: Tensor
    rows: Tensor


@contextmanager
def embedded(pipe: Any) -> Iterator[dict[str, Embedded]]:
    """What each text encoder reads last inside a ``with``, by name, for a gradient with respect
    to it."""
    found: dict[str, Embedded] = {}
    with ExitStack() as stack:
        for name, module in encoders(pipe).items():
            _watch(stack, found, name, module)
        yield found


def _watch(stack: ExitStack, found: dict[str, Embedded], name: str, module: nn.Module) -> None:
    read: list[Tensor] = []

    def before(module: nn.Module, args: Any, kwargs: Any) -> None:
        ids = named(module, args, kwargs).get("input_ids")
        read[:] = [] if ids is None else [ids]

    def after(module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        if not read or read[0].shape != output.shape[:-1]:
            return None
        rows = output.detach().requires_grad_()
        found[name] = Embedded(read[0], rows)
        return rows

    for handle in (
        module.register_forward_pre_hook(before, with_kwargs=True),
        *(one.register_forward_hook(after) for one in _tables(module)),
    ):
        stack.callback(handle.remove)


def check_learns(text: Text, parts: Parts, what: str) -> None:
    """Makes sure that a gradient goes back through the text encoders.

    Args:
        text: What was encoded for it.
        what: What cannot be done if not.

    Raises:
        InputError: It does not.
    """
    found = [v for v in text.inputs.values() if isinstance(v, Tensor)]
    listed = [one for v in text.inputs.values() if isinstance(v, list) for one in v]
    if not any(tensor.requires_grad for tensor in (*found, *listed)):
        raise InputError(
            f"No gradient goes back through the text encoders of a {type(parts.pipe).__name__}: "
            f"{what} cannot search there."
        )


def _names(count: int) -> list[str]:
    return [TOKEN, *(f"{TOKEN}_{i}" for i in range(1, count))]


def _tokenizer(pipe: Any, name: str) -> Any:
    return getattr(pipe, name.replace("text_encoder", "tokenizer"))


def _table(module: Any) -> Any:
    return module.get_input_embeddings()


def _tables(module: nn.Module) -> list[nn.Module]:
    """What looks embeddings up. T5's stack does by a module of its own, of the same weight."""
    own = _table(module)
    weight = own.weight
    return [m for m in module.modules() if m is own or getattr(m, "weight", None) is weight]
