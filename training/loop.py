"""The one training loop: steps of AdamW that an interrupt cannot lose."""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ParamSpec

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from .._errors import InputError
from .._files import write_atomically
from .._reading import loads
from .._settings import shown
from ..prompts import Concept

# Seconds between two checkpoints.
EVERY = 60.0

P = ParamSpec("P")


def every_phrase_fits(concepts: Sequence[Concept], iterations: int, batch_size: int) -> None:
    """Sees to it that a training has at least a sample for each phrase.

    Raises:
        InputError: It has not, and some of the phrases would never be learnt.
    """
    phrases = sum(len(concept.phrases) for concept in concepts)
    if phrases > iterations * batch_size:
        raise InputError(
            f"{phrases} phrases are to go, and {iterations} iterations with a batch_size of "
            f"{batch_size} show the model only {iterations * batch_size} samples: set iterations "
            f"to {math.ceil(phrases / batch_size)} or more."
        )


def halves(steps: int, count: int) -> list[int]:
    """So many rungs of a budget: the whole, a half, a quarter … of its steps, the least first.

    >>> halves(40, 4)
    [5, 10, 20, 40]
    """
    return sorted({max(1, steps >> i) for i in range(count)})


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


def training(
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
) -> Iterator[list[float]]:
    """Steps of AdamW, which without decay is Adam, one at a time.

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

    Yields:
        The losses so far: before the first step, and after each.

    Raises:
        InputError: The loss or its gradient is not finite (the checkpoint then holds the state
            before that step), or the checkpoint is not this run's.
    """
    optimizer = torch.optim.AdamW(parameters.values(), lr=lr, weight_decay=weight_decay)
    losses: list[float] = []
    if checkpoint is not None and checkpoint.exists():
        losses = _resume(checkpoint, run, parameters, optimizer, steps)
        progress(len(losses) / steps)
    yield losses
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
            yield losses
    except BaseException:
        # A step that was cut short has changed some parameters and not others.
        if checkpoint is not None and whole:
            _save(checkpoint, run, parameters, optimizer, losses)
        raise


def _to_the_end(steps: Callable[P, Iterator[list[float]]]) -> Callable[P, list[float]]:
    def train(*args: P.args, **kwargs: P.kwargs) -> list[float]:
        """All steps of a ``training`` at once: the loss of every step."""
        *_, losses = steps(*args, **kwargs)
        return losses

    return train


train = _to_the_end(training)


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
