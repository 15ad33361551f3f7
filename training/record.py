"""From a method's result to an erasure with its whole record."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .._reading import plain
from ..pipelines.erasure import Erasure
from ..pipelines.identity import sample
from ..pipelines.modules import weights_of
from ..pipelines.parts import Parts
from ..pipelines.text import Text
from ..prompts import Concept
from ..records import Base, Component, Loss, Measured, Record

_NOTHING = Measured()
_RECORDED = ("unsee", "torch", "diffusers", "transformers")


def lowrank(
    parts: Parts,
    method: str,
    settings: Any,
    concepts: Sequence[Concept],
    seed: int,
    updates: Mapping[str, tuple[Tensor, Tensor]],
    measured: Measured = _NOTHING,
) -> Erasure:
    """The erasure that adds B A to each named layer of the denoiser.

    Args:
        parts: The base model.
        method: The method's name.
        settings: Its dataclass.
        concepts: What goes.
        seed: As ``fit`` was given it.
        updates: A (rank, in) and B (out, rank) by layer.
        measured: What was measured so far.
    """
    tensors = {}
    for name, (a, b) in updates.items():
        tensors[f"{parts.prefix}.{name}.lora_A.weight"] = a.cpu()
        tensors[f"{parts.prefix}.{name}.lora_B.weight"] = b.cpu()
    record = _record(parts, "lowrank", method, settings, concepts, seed, updates)
    return Erasure(tensors, record, measured)


def dense(
    parts: Parts,
    method: str,
    settings: Any,
    concepts: Sequence[Concept],
    seed: int,
    updates: Mapping[str, Tensor],
    measured: Measured = _NOTHING,
) -> Erasure:
    """The erasure that adds to parameters of the denoiser what is given; else as ``lowrank``.

    Args:
        updates: By parameter, ``<layer>.weight`` or ``<layer>.bias``; every layer's weight is
            among them.
    """
    tensors = {f"{parts.prefix}.{name}_delta": delta.cpu() for name, delta in updates.items()}
    layers = list(dict.fromkeys(name.rpartition(".")[0] for name in updates))
    record = _record(parts, "dense", method, settings, concepts, seed, layers)
    return Erasure(tensors, record, measured)


def run(
    parts: Parts,
    method: str,
    settings: Any,
    concepts: Sequence[Concept],
    seed: int,
    layers: Sequence[str],
) -> dict[str, Any]:
    """What a training is, as JSON: the ``run`` by which ``train`` knows its checkpoint."""
    weights = _weights(parts, layers)
    return {
        "method": method,
        **plain(settings),
        "concepts": plain(concepts),
        "seed": seed,
        "base": Component({n: tuple(w.shape) for n, w in weights.items()}, sample(weights)).digest,
    }


def trained(
    parts: Parts,
    method: str,
    settings: Any,
    concepts: Sequence[Concept],
    seed: int,
    layers: Sequence[str],
    parameters: Mapping[str, Tensor],
    losses: Sequence[float],
    scale: float = 1.0,
) -> Erasure:
    """The erasure that a training came to; else as ``lowrank``.

    Args:
        settings: Its ``rank``, ``store`` and ``residual`` say what was trained and how it is kept:
            a LoRA of a rank as it is; weights as their whole change if ``store`` is "dense", else
            as the LoRA that keeps the change to the residual, which goes into the record.
        layers: What was trained, by name.
        parameters: What was learnt, as ``lora`` and ``masters`` name it.
        losses: Of every step; the means of the first and the last tenth go into the record.
        scale: At which a LoRA's B A acted while it learnt. The file's scale is 1.
    """
    tenth = max(1, len(losses) // 10)
    first, last = sum(losses[:tenth]) / tenth, sum(losses[-tenth:]) / tenth
    measured = Measured(loss=Loss(first, last))
    to_file = (parts, method, settings, concepts, seed)
    found = {name: parameter.detach() for name, parameter in parameters.items()}
    if settings.rank is not None:
        pairs = {
            layer: (found[f"{layer}.lora_A.weight"], scale * found[f"{layer}.lora_B.weight"])
            for layer in layers
        }
        return lowrank(*to_file, pairs, measured)
    updates = {
        name: learnt - parts.denoiser.get_parameter(name).detach().float()
        for name, learnt in found.items()
    }
    if settings.store == "dense":
        return dense(*to_file, updates, measured)
    weights = {name.removesuffix(".weight"): delta for name, delta in updates.items()}
    pairs, residual = factors(weights, settings.residual)
    return lowrank(*to_file, pairs, replace(measured, residual=residual))


def guidance(
    parts: Parts, method: str, settings: Any, concepts: Sequence[Concept], seed: int
) -> Erasure:
    """The erasure that steers guidance and leaves the weights alone; it is bound to no base.

    Raises:
        InputError: The concepts' text is longer than the tokenizer takes.
    """
    encode_concepts(parts, concepts)
    return Erasure({}, _record(parts, "guidance", method, settings, concepts, seed, ()))


def encode_concepts(parts: Parts, concepts: Sequence[Concept], *, negative: bool = False) -> Text:
    """All phrases of concepts as one text, between commas: a prompt, or a negative one."""
    phrases = ", ".join(phrase for c in concepts for phrase in c.phrases)
    return parts.encode([phrases], negative=negative)


def factors(
    updates: Mapping[str, Tensor], residual: float
) -> tuple[dict[str, tuple[Tensor, Tensor]], float]:
    """The LoRA of the least rank that keeps dense updates to a relative residual.

    All layers get one rank, in the smaller ones filled up with zeros: tools differ in how they
    scale a LoRA of several ranks. Beyond the rank, each layer's singular values are dropped.

    Args:
        updates: What is added to each layer's weight, shape (out, …).
        residual: How much of all updates together, relative in Frobenius' norm, may be left out.

    Returns:
        A and B by layer, and the residual that was reached.
    """
    parts: dict[str, Svd] = {
        name: torch.linalg.svd(delta.flatten(1), full_matrices=False)
        for name, delta in updates.items()
    }
    return thinned(parts, {name: tuple(delta.shape) for name, delta in updates.items()}, residual)


# U (out, n), the singular values (n,) and Vᵀ (n, in) of what is added to a layer's weight.
Svd = tuple[Tensor, Tensor, Tensor]


def thinned(
    parts: Mapping[str, Svd], shapes: Mapping[str, tuple[int, ...]], residual: float
) -> tuple[dict[str, tuple[Tensor, Tensor]], float]:
    """As ``factors``, of what is added to weights of these shapes and is decomposed already."""
    most = max(len(s) for _, s, _ in parts.values())
    # power[r]: what is left out at rank r, for r = 0 … most
    power = torch.zeros(most + 1, dtype=torch.float64)
    for _, s, _ in parts.values():
        power[: len(s)] += s.double().square().flip(0).cumsum(0).flip(0).cpu()
    left_out = (power / power[0].clamp_min(torch.finfo(torch.float64).tiny)).sqrt()
    rank = max(1, int((left_out > residual).sum()))
    found = {}
    for name, (u, s, vh) in parts.items():
        shape = shapes[name]
        more = max(0, rank - len(s))
        a = functional.pad(vh[:rank], (0, 0, 0, more))
        b = functional.pad(u[:, :rank] * s[:rank], (0, more))
        found[name] = (a.reshape(rank, *shape[1:]), b.reshape(*b.shape, *(1 for _ in shape[2:])))
    return found, float(left_out[rank])


def versions() -> dict[str, str]:
    """The versions that a record holds."""
    return {name: version(name) for name in _RECORDED}


def _weights(parts: Parts, layers: Iterable[str]) -> dict[str, Tensor]:
    """The weights that an erasure is bound to, by layer."""
    return {n: w for n, w in weights_of(parts.denoiser, layers).items() if w is not None}


def _record(
    parts: Parts,
    kind: str,
    method: str,
    settings: Any,
    concepts: Sequence[Concept],
    seed: int,
    layers: Iterable[str],
) -> Record:
    weights = _weights(parts, layers)
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    component = Component(shapes, sample(weights))
    base = Base(
        name=str(parts.pipe.name_or_path or parts.pipe.config.get("_name_or_path", "")),
        pipeline=type(parts.pipe).__name__,
        components={parts.prefix: component} if weights else {},
    )
    return Record(
        kind=kind,
        method=method,
        settings=plain(settings),
        concepts=tuple(concepts),
        seed=seed,
        base=base,
        versions=versions(),
    )
