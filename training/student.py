"""What learns, of the layers that are selected: float32 masters of their weights, or a LoRA.

Nothing is left behind: the denoiser has its own parameters, flags and modes again afterwards.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from .._errors import InputError
from ..pipelines.kinds.lowrank import beside, check_on, free_name, take_out
from ..pipelines.parts import Parts
from ..pipelines.text import Text


def check_store(rank: int | None, store: str) -> None:
    """Looks at whether two settings of a training go together.

    Raises:
        InputError: A LoRA is to be trained, and stored as something else.
    """
    if rank is not None and store == "dense":
        raise InputError(f"rank is {rank} and store is 'dense': a LoRA is stored as it is.")


def select(
    parts: Parts, variant: str, pattern: str = "*", *, everything: bool = False
) -> list[str]:
    """The layers of the denoiser that a variant trains, by name.

    Args:
        parts: The base model.
        variant: ``x``, the attention in which image and text meet; ``x-strict``, of it what reads
            the text; ``u``, all but that attention; ``blocks``, the transformer blocks; ``all``.
        pattern: Of these, the names that match, as file names do: ``mid_block.*``.
        everything: Whether norms are layers too, which a LoRA cannot change.

    Raises:
        InputError: There is no such layer.
    """
    found = [
        name
        for name, module in parts.layers(variant).items()
        if (_has_weight(module) if everything else _takes_lora(module))
        and fnmatchcase(name, pattern)
    ]
    if not found:
        raise InputError(
            f"No layer of the {type(parts.denoiser).__name__} is selected by variant {variant!r} "
            f"with layers {pattern!r}: nothing would be trained."
        )
    return found


def encoded(parts: Parts, prompts: Sequence[str | None], batch: int = 64) -> Text:
    """Any number of prompts, so many of which go through the text encoder at a time."""
    return Text.cat([parts.encode(prompts[i : i + batch]) for i in range(0, len(prompts), batch)])


@contextmanager
def frozen(denoiser: Any, gradient_checkpointing: bool = False) -> Iterator[None]:
    """A denoiser or text encoder in evaluation, no parameter learning; then as it was."""
    flags = [(p, p.requires_grad) for p in denoiser.parameters()]
    modes = [(m, m.training) for m in denoiser.modules()]
    checkpointing = gradient_checkpointing and not denoiser.is_gradient_checkpointing
    try:
        denoiser.eval().requires_grad_(False)
        if checkpointing:
            denoiser.enable_gradient_checkpointing()
        yield
    finally:
        if checkpointing:
            denoiser.disable_gradient_checkpointing()
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        for module, mode in modes:
            module.training = mode


@contextmanager
def masters(denoiser: nn.Module, names: Sequence[str]) -> Iterator[dict[str, nn.Parameter]]:
    """Float32 copies that learn, in the place of the named parameters."""
    originals = {name: denoiser.get_parameter(name) for name in names}
    copies = {
        name: nn.Parameter(p.detach().to(torch.float32, copy=True))
        for name, p in originals.items()
    }

    def put(parameters: Mapping[str, nn.Parameter]) -> None:
        for name, parameter in parameters.items():
            module, _, attribute = name.rpartition(".")
            setattr(denoiser.get_submodule(module), attribute, parameter)

    try:
        put(copies)
        yield copies
    finally:
        put(originals)


def learnable(denoiser: nn.Module, layers: Sequence[str], everything: bool = False) -> list[str]:
    """The parameters of the layers, by name: their weights, and if everything their biases."""
    kinds = ("weight", "bias") if everything else ("weight",)
    known = dict(denoiser.named_parameters())
    names = (f"{layer}.{kind}" for layer in layers for kind in kinds)
    return [name for name in names if name in known]


@contextmanager
def lora(
    denoiser: Any,
    layers: Sequence[str],
    rank: int,
    seed: int,
    alpha: float | None = None,
    learnt: Mapping[str, nn.Parameter] | None = None,
) -> Iterator[dict[str, nn.Parameter]]:
    """A LoRA of peft's around the named layers, in float32 and with scale alpha / rank, or 1.

    Its parameters are named ``<layer>.lora_A.weight`` and ``<layer>.lora_B.weight``. LoRAs that
    are there already act as they did, inside and afterwards. Use it inside ``frozen``: peft sets
    flags of its own.

    Args:
        learnt: The parameters of an earlier one, which go on learning; None draws them.

    Raises:
        InputError: The LoRAs that are there are switched off, or fused into the weights.
    """
    import re

    from peft import LoraConfig, inject_adapter_in_model

    check_on(denoiser)
    name = free_name("student", getattr(denoiser, "peft_config", None) or ())
    config = LoraConfig(
        r=rank,
        # Any number will do, whatever peft's annotation says.
        lora_alpha=rank if alpha is None else alpha,  # type: ignore[arg-type]
        target_modules="|".join(re.escape(layer) for layer in layers),
    )
    try:
        with torch.random.fork_rng(), beside(denoiser, name):
            torch.manual_seed(seed)
            inject_adapter_in_model(config, denoiser, name)
        parameters = {}
        for layer in layers:
            for side in "AB":
                module = getattr(denoiser.get_submodule(layer), f"lora_{side}")[name].float()
                key = f"{layer}.lora_{side}.weight"
                if learnt is not None:
                    module.weight = learnt[key]
                parameters[key] = module.weight.requires_grad_()
        yield parameters
    finally:
        take_out(denoiser, name)


def student(
    denoiser: Any,
    layers: Sequence[str],
    rank: int | None,
    everything: bool,
    seed: int,
    alpha: float | None = None,
) -> AbstractContextManager[dict[str, nn.Parameter]]:
    """What learns: ``masters`` of what is ``learnable`` if rank is None, else a ``lora``."""
    if rank is None:
        return masters(denoiser, learnable(denoiser, layers, everything))
    return lora(denoiser, layers, rank, seed, alpha)


def precision(setting: str, dtype: torch.dtype) -> torch.dtype | None:
    """What to compute in, for ``autocast``: None is float32 throughout.

    Args:
        setting: "auto", "float32" or "bfloat16".
        dtype: The denoiser's.

    Raises:
        InputError: Float32 was asked for and the denoiser is not.
    """
    if setting == "float32" and dtype != torch.float32:
        raise InputError(
            f"precision is float32 and the model was loaded as {dtype}: load it as torch.float32, "
            "or leave precision at 'auto'."
        )
    half = setting == "bfloat16" or dtype != torch.float32
    return torch.bfloat16 if half else None


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    """Torch's autocast to that type, or nothing at all."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def _has_weight(module: nn.Module) -> bool:
    return isinstance(module._parameters.get("weight"), nn.Parameter)


def _takes_lora(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or isinstance(module, nn.Conv2d) and module.groups == 1
