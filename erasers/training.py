"""The one training loop, and what it trains: float32 masters in the place of weights, or a LoRA.

Nothing is left behind: the denoiser has its own parameters, flags and modes again afterwards.
"""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from .._errors import InputError
from .._files import write_atomically
from .._reading import loads
from .._settings import shown
from ..pipelines.kinds.lowrank import unload

# Seconds between two checkpoints.
EVERY = 60.0


def check_store(rank: int | None, store: str) -> None:
    """Looks at whether two settings of a training go together.

    Raises:
        InputError: A LoRA is to be trained, and stored as something else.
    """
    if rank is not None and store == "dense":
        raise InputError(f"rank is {rank} and store is 'dense': a LoRA is stored as it is.")


def check_schedule(iterations: int, warmup: int) -> None:
    """Looks at whether a training's warm-up comes to its end.

    Raises:
        InputError: It does not: the learning rate would never be what was set.
    """
    if warmup and warmup >= iterations:
        raise InputError(
            f"warmup is {warmup} and iterations is {iterations}: the learning rate would never be "
            f"reached; set warmup below {iterations}."
        )


@contextmanager
def frozen(denoiser: Any, gradient_checkpointing: bool = False) -> Iterator[None]:
    """The denoiser in evaluation, no parameter of it learning; afterwards it is as it was."""
    flags = [(p, p.requires_grad) for p in denoiser.parameters()]
    modes = [(m, m.training) for m in denoiser.modules()]
    checkpointing = denoiser.is_gradient_checkpointing
    try:
        denoiser.eval().requires_grad_(False)
        if gradient_checkpointing and not checkpointing:
            denoiser.enable_gradient_checkpointing()
        yield
    finally:
        if gradient_checkpointing and not checkpointing:
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
    denoiser: Any, layers: Sequence[str], rank: int, seed: int, alpha: float | None = None
) -> Iterator[dict[str, nn.Parameter]]:
    """A LoRA of peft's around the named layers, in float32 and with scale alpha / rank, or 1.

    Its parameters are named ``<layer>.lora_A.weight`` and ``<layer>.lora_B.weight``. Use it inside
    ``frozen``: peft sets flags of its own.
    """
    import re

    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=rank,
        # Any number will do, whatever peft's annotation says.
        lora_alpha=rank if alpha is None else alpha,  # type: ignore[arg-type]
        target_modules="|".join(re.escape(layer) for layer in layers),
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inject_adapter_in_model(config, denoiser, "student")
    try:
        parameters = {}
        for layer in layers:
            for side in "AB":
                module = getattr(denoiser.get_submodule(layer), f"lora_{side}")["student"].float()
                parameters[f"{layer}.lora_{side}.weight"] = module.weight.requires_grad_()
        yield parameters
    finally:
        unload(denoiser)


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


def rate(step: int, steps: int, warmup: int, cycles: int) -> float:
    """The share of the learning rate in a step, from 0.

    It rises evenly from 0 over the warm-up. Then it is 1, or falls so many times from 1 to 0 as a
    half cosine does, over equal parts of what is left.
    """
    if step < warmup:
        return step / warmup
    if cycles == 0:
        return 1.0
    return 0.5 + 0.5 * math.cos(math.pi * (cycles * (step - warmup) / (steps - warmup) % 1))


def train(
    parameters: Mapping[str, nn.Parameter],
    loss: Callable[[int], Tensor],
    *,
    steps: int,
    lr: float,
    weight_decay: float = 0.0,
    clip: float | None = None,
    warmup: int = 0,
    cycles: int = 0,
    run: Mapping[str, Any],
    checkpoint: Path | None = None,
    progress: Callable[[float], None] = lambda done: None,
    watch: Callable[[float], None] = lambda loss: None,
) -> list[float]:
    """Steps of AdamW, which without decay is Adam.

    Args:
        parameters: What learns, by name.
        loss: The loss at a step. It makes no draws of its own, so that a run that was interrupted
            comes to the same weights.
        steps: How many.
        lr: The learning rate.
        weight_decay: The share of each parameter that a step at rate 1 takes away.
        clip: The norm that the gradient of all parameters together is brought down to; None is no
            limit.
        warmup: Steps in which the rate rises from 0 to ``lr``.
        cycles: How many times it falls to 0 after that, by a cosine; 0 is never.
        run: What this run is, as JSON: a checkpoint of another one is refused.
        checkpoint: A file that an interrupted run leaves and goes on from. It is written every
            minute, when something stops the run, and at the end; it is the caller's to remove
            once the result is safe.
        progress: Called with the share that is done.
        watch: Called with the loss of each step, before ``progress``.

    Returns:
        The loss of every step.

    Raises:
        InputError: The loss or its gradient is not finite (the checkpoint then holds the state
            before that step), or the checkpoint is not this run's.
    """
    optimizer = torch.optim.AdamW(parameters.values(), lr=lr, weight_decay=weight_decay)
    losses: list[float] = []
    if checkpoint is not None and checkpoint.exists():
        losses = _resume(checkpoint, run, parameters, optimizer, steps)
        progress(len(losses) / steps)
    saved, whole = time.monotonic(), True
    try:
        for step in range(len(losses), steps):
            value = loss(step)
            value.backward()
            gradients = [p.grad for p in parameters.values() if p.grad is not None]
            norm = nn.utils.get_total_norm(gradients)
            if not (torch.isfinite(value) and torch.isfinite(norm)):
                state = f" The state before it is in {checkpoint}: remove it to start anew."
                raise InputError(
                    f"The loss or its gradient is not finite at step {step + 1} of {steps} "
                    f"(loss {value.item()}): lower lr, which is {lr}.{state if checkpoint else ''}"
                )
            if clip is not None:
                nn.utils.clip_grads_with_norm_(parameters.values(), clip, norm)
            for group in optimizer.param_groups:
                group["lr"] = lr * rate(step, steps, warmup, cycles)
            whole = False
            optimizer.step()
            losses.append(value.item())
            whole = True
            optimizer.zero_grad(set_to_none=True)
            watch(losses[-1])
            progress((step + 1) / steps)
            due = step + 1 == steps or time.monotonic() - saved > EVERY
            if checkpoint is not None and due:
                _save(checkpoint, run, parameters, optimizer, losses)
                saved = time.monotonic()
    except BaseException:
        # A step that was cut short has changed some parameters and not others.
        if checkpoint is not None and whole:
            _save(checkpoint, run, parameters, optimizer, losses)
        raise
    return losses


def check_run(path: Path, run: Mapping[str, Any]) -> None:
    """Sees to it that a checkpoint, if there is one, is of this run.

    Raises:
        InputError: It is of another run, or no checkpoint at all.
    """
    if not path.exists():
        return
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {})["unsee-training"]
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise InputError(f"{path} is no checkpoint of a training: {error!r}.") from error
    of = loads(text, f"{path}, as a checkpoint of a training,")
    if not isinstance(of, Mapping):
        raise InputError(f"{path} is no checkpoint of a training: its run is {shown(of)}.")
    this = json.loads(json.dumps(run))
    if differing := sorted(k for k in of.keys() | this.keys() if of.get(k) != this.get(k)):
        raise InputError(
            f"{path} is the checkpoint of another run, with other {', '.join(differing)}: remove "
            "it, or name another file."
        )


def _save(
    path: Path,
    run: Mapping[str, Any],
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    losses: Sequence[float],
) -> None:
    tensors = {"losses": torch.tensor(losses, dtype=torch.float64)}
    for name, parameter in parameters.items():
        tensors[f"parameter:{name}"] = parameter.detach()
        for key, value in optimizer.state[parameter].items():
            tensors[f"{key}:{name}"] = value
    whole = {name: t.cpu().contiguous() for name, t in tensors.items()}
    write_atomically(path, save(whole, {"unsee-training": json.dumps(run, sort_keys=True)}))


@torch.no_grad()
def _resume(
    path: Path,
    run: Mapping[str, Any],
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    steps: int,
) -> list[float]:
    check_run(path, run)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} cannot be read: {error}. Remove it to start anew.") from error
    if wrong := _fault(tensors, parameters, steps):
        raise InputError(f"{path} is not as a training left it: {wrong}. Remove it to start anew.")
    state: dict[int, dict[str, Tensor]] = {}
    for index, (name, parameter) in enumerate(parameters.items()):
        parameter.copy_(tensors[f"parameter:{name}"])
        found = {key: tensors[f"{key}:{name}"] for key in _ADAM if f"{key}:{name}" in tensors}
        if found:
            state[index] = found
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
    return [float(value) for value in tensors["losses"]]


_ADAM = ("step", "exp_avg", "exp_avg_sq")
"""What torch's Adam remembers of each parameter that had a gradient."""


def _fault(
    tensors: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter], steps: int
) -> str:
    """What is wrong with a checkpoint's tensors, in words; empty if nothing is."""
    wanted: dict[str, tuple[torch.Size, torch.dtype]] = {}
    for name, p in parameters.items():
        wanted[f"parameter:{name}"] = (p.shape, p.dtype)
        if any(f"{key}:{name}" in tensors for key in _ADAM):
            wanted |= {f"{key}:{name}": (p.shape, p.dtype) for key in _ADAM[1:]}
            wanted[f"step:{name}"] = (torch.Size(), torch.float32)
    losses = tensors.get("losses")
    if losses is None or losses.ndim != 1 or not len(losses) <= steps:
        return f"it has no losses of at most {steps} steps"
    wanted["losses"] = (losses.shape, torch.float64)
    if missing := sorted(wanted.keys() - tensors.keys()):
        return f"it lacks {shown(missing[0])} ({len(missing)} missing)"
    if extra := sorted(tensors.keys() - wanted.keys()):
        return f"it has {shown(extra[0])}, which this training does not"
    for name, (shape, dtype) in wanted.items():
        tensor = tensors[name]
        if (tensor.shape, tensor.dtype) != (shape, dtype):
            found = f"{tuple(tensor.shape)} of {tensor.dtype}"
            return f"{shown(name)} is {found}, wanted {tuple(shape)} of {dtype}"
        if not torch.isfinite(tensor).all():
            return f"{shown(name)} has values that are not finite"
        if name.startswith(("step:", "exp_avg_sq:")) and (tensor < 0).any():
            return f"{shown(name)} has values below 0"
    return ""
