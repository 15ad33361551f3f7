"""A change of weights: a LoRA on top of whatever is on, as in the file of an erasure.

For each layer ``<prefix>.<module>.lora_A.weight`` (rank, in) and ``.lora_B.weight`` (out, rank),
of a convolution (rank, in, height, width) and (out, rank, 1, 1): ``load_lora_weights`` of
diffusers reads it.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch

from ..._errors import InputError
from ...pipelines.kinds.lowrank import (
    Adapter,
    check_layers,
    check_on,
    free_name,
    own_tensors,
    shapes,
)
from ...pipelines.modules import component_of, weights_of
from .text import prompt as prompt

if TYPE_CHECKING:
    from ..attacked import Attacked


def changes_model(attacked: "Attacked") -> bool:
    return bool(attacked.tensors)


@contextmanager
def applied(attacked: "Attacked", pipe: Any) -> Iterator[None]:
    edited: dict[str, list[str]] = {}
    for key in attacked.tensors:
        component, _, layer = key.rpartition(".lora_")[0].partition(".")
        if layer not in (layers := edited.setdefault(component, [])):
            layers.append(layer)
    for component, layers in edited.items():
        _check_fits(attacked, pipe, component, layers)
    with ExitStack() as stack:
        for component, layers in edited.items():
            denoiser: Any = component_of(pipe, component)
            name = free_name(attacked.record.attack, getattr(denoiser, "peft_config", None) or ())
            tensors = own_tensors(pipe, component, layers, attacked.tensors)
            stack.callback(Adapter(pipe, component, name, tensors, 1.0).off)
            if getattr(pipe, component) is not denoiser:
                # What was compiled without it would go on without it.
                stack.callback(torch.compiler.reset)
                torch.compiler.reset()
        yield


def _check_fits(attacked: "Attacked", pipe: Any, component: str, layers: list[str]) -> None:
    """Makes sure that a LoRA is one of a component's layers.

    Raises:
        InputError: The pipeline has other layers, or others' LoRAs there would not let it act.
    """
    module = component_of(pipe, component)
    weights = {} if module is None else weights_of(module, layers)
    there = {f"{component}.{n}": tuple(w.shape) for n, w in weights.items() if w is not None}
    found = {key: tuple(tensor.shape) for key, tensor in attacked.tensors.items()}
    ours = {key: shape for key, shape in found.items() if key.startswith(f"{component}.")}
    wanted = shapes(there, attacked.tensors)
    for key in ours:
        if wanted.get(key) != ours[key]:
            raise InputError(
                f"The attack has {key} {ours[key]}; wanted {wanted.get(key, 'no such layer')}: "
                "take the model that it was learnt on."
            )
    assert module is not None
    check_layers(module, layers)
    check_on(module)
