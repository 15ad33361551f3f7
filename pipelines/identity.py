"""By what weights are known again: a fixed sample of every tensor.

A *base*, which an erasure was made for, is known by a sample of each weight that is edited, in
bfloat16, and compared within one rounding: float32, float16 and bfloat16 of one model are one
base. A *model*, which made a gallery's images, is known by an exact sample of every tensor of all
its components, as a hash, with whatever else of it the images depend on. The scales of a quantised
weight, which are no tensors of the module's own, are among them.

The sample is ``VALUES`` values of a tensor at even distances from the first to the last, so that
it meets every part of it, and nearly as many rows and columns. What it tells apart: other weights;
layers that were exchanged; fine-tuning, which moves all weights of a layer. A bfloat16 is exact to
0.4 % of its own size, so that small weights show small changes: where weights lie around zero with
a deviation of 0.02, as in Stable Diffusion, a few of the sample show one step of Adam at a rate of
1e-5, although it is less than a rounding of most weights. What it does not: a change of less than
a rounding of every value that is looked at, or of a few rows that it does not meet. So a sample
is no proof against forgery: who knows the places can change the weights between them.
"""

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .._errors import InputError
from .._reading import plain
from ..records import Model
from .modules import uncompiled

VALUES = 128
"""How many values of each tensor are looked at."""

# Of a component's settings, what says where it came from or by what it is run, not what it is.
_LABELS = (
    "_name_or_path",
    "_diffusers_version",
    "_attn_implementation",
    "_commit_hash",
    "transformers_version",
    "torch_dtype",
    "dtype",
)


@functools.lru_cache(maxsize=4096)
def _places(shape: tuple[int, ...], count: int) -> tuple[Tensor, ...]:
    """The indices, by dimension, of that many values of a tensor, or of all that it has."""
    size = 1
    for length in shape:
        size *= length
    count = min(count, size)
    flat = torch.arange(count) * (size - 1) // max(1, count - 1)
    return tuple(torch.unravel_index(flat, shape))


def look(tensor: Tensor, count: int = VALUES) -> Tensor:
    """Values of a tensor at even distances, shape (min(count, size),), where the tensor is."""
    found = tensor.detach()
    if not tensor.ndim:
        return found.reshape(1)
    return found[_places(tuple(tensor.shape), count)]


def quantised(weight: Tensor) -> bool:
    """Whether a weight holds codes, or too few bits, so that its values are not its numbers.

    torchao's is of a class of its own, which says of itself that it is of floats.
    """
    own = type(weight.data) is not Tensor
    return own or not weight.is_floating_point() or weight.element_size() < 2


def sample(weights: Mapping[str, Tensor]) -> dict[str, bytes]:
    """What a base is known by: of each weight, values in bfloat16, two bytes each."""
    return {
        name: look(weight).bfloat16().cpu().view(torch.int16).numpy().astype("<i2").tobytes()
        for name, weight in weights.items()
    }


def alike(wanted: bytes, weight: Tensor) -> bool:
    """Whether a weight is the one of which this is the ``sample``, but for a rounding.

    Rounded to bfloat16, by way of float16 or not, a value comes to the same or to the next one;
    next to zero, float16 has no more than multiples of 2⁻²⁴.
    """
    theirs = look(weight, len(wanted) // 2).bfloat16().cpu().view(torch.int16)
    return same_sample(wanted, theirs.numpy().tobytes())


def same_sample(one: bytes, other: bytes) -> bool:
    """Whether two samples of a weight are of the same one, but for a rounding: see ``alike``."""
    if len(one) != len(other):
        return False
    ours, theirs = (torch.frombuffer(bytearray(s), dtype=torch.int16) for s in (one, other))
    off = (ours.view(torch.bfloat16).double() - theirs.view(torch.bfloat16).double()).abs()
    return bool(((_ordered(ours) - _ordered(theirs)).abs() <= 1).logical_or(off <= 2**-24).all())


def _ordered(bits: Tensor) -> Tensor:
    """Floats' bits as whole numbers in the floats' order, one apart where they are neighbours."""
    bits = bits.int()
    return torch.where(bits < 0, -(bits & 0x7FFF), bits)


def model_of(pipe: Any, name: str) -> Model:
    """What a pipeline's images depend on, as it is now: LoRAs and erasures in it count too.

    Args:
        pipe: A diffusers pipeline.
        name: What it is called, a label.

    Raises:
        InputError: A component's weights have no memory, and nothing says where they are.
    """
    from .watch import carried

    own = {key: value for key, value in pipe.config.items() if key not in pipe.components}
    components = {
        "pipeline's configuration": _hash(json.dumps(_settings(own), sort_keys=True).encode())
    }
    for part, component in sorted(pipe.components.items()):
        if component is None or component is pipe.scheduler:
            continue
        components[part] = _known(part, component)
    if on := [erasure.sha256 for erasure in carried(pipe)]:
        # Guides and transport are in no tensor.
        components["erasures that are on"] = _hash("\n".join(on).encode())
    return Model(
        name=name,
        pipeline=type(pipe).__name__,
        dtype=str(pipe.dtype).removeprefix("torch."),
        components=components,
        scheduler={"class": type(pipe.scheduler).__name__} | _settings(pipe.scheduler.config),
    )


def _known(part: str, component: Any) -> str:
    """The hash by which a component is known."""
    if isinstance(component, nn.Module):
        return known_module(part, component)
    if hasattr(component, "get_vocab"):  # a tokenizer
        what = {"class": type(component).__name__, "vocabulary": component.get_vocab()}
        what["length"] = component.model_max_length
        return _hash(json.dumps(what, sort_keys=True).encode())
    settings = component.to_dict() if hasattr(component, "to_dict") else {}
    what = {"class": type(component).__name__} | _settings(settings)
    return _hash(json.dumps(what, sort_keys=True).encode())


def known_module(part: str, module: nn.Module) -> str:
    """The hash by which a component of a pipeline, named ``part`` in messages, is known."""
    module = uncompiled(module)
    names, found = [], []
    for name, tensor in _tensors(part, module):
        names.append(f"{name} {tuple(tensor.shape)} {tensor.dtype}")
        found.append(look(tensor))
    sha = hashlib.sha256("\n".join(names).encode())
    # Together by type and place, so that a GPU is waited for a few times and not thousands
    groups: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for values in found:
        groups.setdefault((values.dtype, values.device), []).append(values)
    for group in groups.values():
        sha.update(torch.cat(group).cpu().contiguous().view(torch.uint8).numpy().tobytes())
    config = getattr(module, "config", {})
    config = config.to_dict() if hasattr(config, "to_dict") else config
    sha.update(json.dumps(_settings(config), sort_keys=True).encode())
    for name, layer in module.named_modules():
        # How peft's adapters act is not in their tensors.
        if isinstance(scaling := getattr(layer, "scaling", None), dict):
            active = (layer.active_adapters, layer.disable_adapters, layer.merged_adapters)
            sha.update(json.dumps([name, scaling, plain(active)], sort_keys=True).encode())
    return sha.hexdigest()


def _tensors(part: str, module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """A module's parameters and buffers by name, fetched where offloading has put them."""
    for place, layer in module.named_modules():
        place = place.replace("_orig_mod.", "")
        own = (layer.named_parameters(recurse=False), layer.named_buffers(recurse=False))
        for name, tensor in (pair for pairs in own for pair in pairs):
            if tensor.is_meta:
                elsewhere = getattr(getattr(layer, "_hf_hook", None), "weights_map", None)
                if elsewhere is None:
                    raise InputError(
                        f"The {part}'s {place}.{name} has no memory, so that the model cannot be "
                        "known: load it whole."
                    )
                tensor = elsewhere[name]
            yield f"{place}.{name}", tensor
            yield from _beside(f"{place}.{name}", tensor)


def _beside(name: str, tensor: Tensor, depth: int = 3) -> Iterator[tuple[str, Tensor]]:
    """The tensors that a tensor carries: of a quantised one the scales that its codes need.

    bitsandbytes keeps them as attributes, in 4 bits in an object ``quant_state`` that can have
    another inside; torchao inside a subclass of Tensor.
    """
    carried = dict(getattr(tensor, "__dict__", {}))
    if hasattr(tensor, "__tensor_flatten__"):
        inner, _ = tensor.__tensor_flatten__()
        carried |= {key: getattr(tensor, key) for key in inner}
    for key, value in sorted(carried.items()):
        if isinstance(value, Tensor) and value is not tensor:
            yield f"{name}.{key}", value
        if depth and not isinstance(value, nn.Module):
            yield from _beside(f"{name}.{key}", value, depth - 1)


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration as JSON, without labels."""
    kept = {key: value for key, value in config.items() if key not in _LABELS}
    # JSON knows no infinity, as DPM-Solver's lambda_min_clipped: its name stands for it
    found: dict[str, Any] = json.loads(json.dumps(kept, default=str), parse_constant=str)
    return found


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
