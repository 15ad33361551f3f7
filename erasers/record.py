"""From a method's result to an erasure with its whole record."""

import dataclasses
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from torch import Tensor

from ..pipelines.erasure import FORMAT, Erasure, fingerprint
from ..pipelines.parts import Parts, weights_of
from ..prompts import Concept

_RECORDED = ("unsee", "torch", "diffusers", "transformers")


def lowrank(
    parts: Parts,
    method: str,
    settings: Any,
    concepts: Sequence[Concept],
    seed: int,
    updates: Mapping[str, tuple[Tensor, Tensor]],
) -> Erasure:
    """The erasure that adds B A to each named layer of the denoiser.

    Args:
        parts: The base model.
        method: The method's name.
        settings: Its dataclass.
        concepts: What goes.
        seed: As ``fit`` was given it.
        updates: A (rank, in) and B (out, rank) by layer.
    """
    tensors = {}
    for name, (a, b) in updates.items():
        tensors[f"{parts.prefix}.{name}.lora_A.weight"] = a
        tensors[f"{parts.prefix}.{name}.lora_B.weight"] = b
    weights = {n: w for n, w in weights_of(parts.denoiser, updates).items() if w is not None}
    record = {
        "format": FORMAT,
        "kind": "lowrank",
        "method": method,
        "settings": dataclasses.asdict(settings),
        "concepts": [concept.to_json() for concept in concepts],
        "seed": seed,
        "base": {
            "name": str(parts.pipe.name_or_path or parts.pipe.config.get("_name_or_path", "")),
            "class": type(parts.pipe).__name__,
            "prefix": parts.prefix,
            "fingerprint": fingerprint(weights),
            "layers": {name: list(weight.shape) for name, weight in weights.items()},
        },
        "versions": {name: version(name) for name in _RECORDED},
    }
    return Erasure(tensors, record)
