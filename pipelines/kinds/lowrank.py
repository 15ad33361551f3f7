"""Low-rank updates of linear layers and convolutions, as an ordinary LoRA beside the weights.

For each edited layer a file holds ``unet.<module>.lora_A.weight`` (rank × in) and
``.lora_B.weight`` (out × rank), of a convolution (rank, in, height, width) and (out, rank, 1, 1),
to be added to the weight as B A: what ``load_lora_weights`` of diffusers reads.
"""

import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..._errors import InputError
from ..modules import base_layer, denoiser_of
from ..transport import Transported
from .dense import DenseErasures
from .place import Value, fusible, missing, places, ways

if TYPE_CHECKING:
    from ..erasure import Erasure
    from ..watch import Put
    from . import Shapes

# The ends of the lines that say what was found.
AGAIN = (
    "load the pipeline again, or take it off with unsee.remove(pipe) and put it on with add_to."
)
GONE = f"has been taken out of the pipeline: {AGAIN}"


def shapes(layers: "Shapes", tensors: Mapping[str, Tensor]) -> "Shapes":
    """As ``Kind.shapes``; the rank is that of each layer's B."""
    wanted: Shapes = {}
    for name, (out, *rest) in layers.items():
        b = tensors.get(f"{name}.lora_B.weight")
        rank = b.shape[1] if b is not None and b.ndim == 1 + len(rest) else 0
        wanted[f"{name}.lora_A.weight"] = (rank, *rest)
        wanted[f"{name}.lora_B.weight"] = (out, rank, *(1 for _ in rest[1:]))
    return wanted


def put(pipe: Any, erasure: "Erasure", weight: float) -> "Put":
    """As ``Kind.put``; with ``transport`` in the record, each prompt has its own strength."""
    adapter = Adapter(pipe, erasure, weight)
    if transport := erasure.record.transport:
        try:
            adapter.transport = Transported(pipe, adapter.adapter, transport)
        except BaseException:
            adapter.off()
            raise
    return adapter


def free_name(wanted: str, taken: Iterable[str]) -> str:
    """A name for a LoRA that none has, as near as can be to the one that is wanted."""
    name = "".join(c if c.isalnum() else "-" for c in wanted)
    # peft keeps LoRAs in a ModuleDict, where what it has itself, such as `train`, is no name.
    taken, own = set(taken), nn.ModuleDict()
    names = (name, *(f"{name}-{n}" for n in range(2, 2 + len(taken) + 1)))
    return next(n for n in names if n not in taken and not hasattr(own, n))


class Adapter:
    """An erasure as a LoRA of peft's."""

    def __init__(self, pipe: Any, erasure: "Erasure", weight: float) -> None:
        (prefix,) = erasure.record.base.components
        self.component = prefix
        denoiser: Any = denoiser_of(pipe, prefix)
        self.denoiser = denoiser
        self.transport: Transported | None = None
        active = {layer: list(layer.active_adapters) for layer in self.tuners()}
        taken = {
            name
            for component in (denoiser, *pipe.components.values())
            for name in getattr(component, "peft_config", None) or ()
        }
        self.adapter: str = free_name(erasure.name, taken)
        # The tensors that peft draws to begin with are replaced at once.
        with torch.random.fork_rng(), warnings.catch_warnings():
            # Several at once are what is meant here.
            warnings.filterwarnings("ignore", "Already found a `peft_config`", UserWarning)
            # That it cannot be merged, which nobody does
            warnings.filterwarnings("ignore", "TorchaoLoraLinear was instantiated", UserWarning)
            _inject(denoiser, prefix, self.adapter, dict(erasure.tensors))
        # Not set_adapters, which would put the scales of the others back to 1.
        for layer in self.tuners():
            ours = [self.adapter] if self.adapter in layer.scaling else []
            layer.set_adapter([*active.get(layer, ()), *ours])
        names = {key.rpartition(".lora_")[0].removeprefix(f"{prefix}.") for key in erasure.tensors}
        found = places(denoiser, sorted(names))
        self.steps = ways(found)
        # What fuse_qkv_projections of diffusers puts in the place of an attention's own layers.
        self.attentions = fusible(found)
        self.layers = []
        for place in found:
            layer, key = place.module, f"{prefix}.{place.name}"
            base: Any = base_layer(layer)
            layer.scaling[self.adapter] *= weight
            self.steps += [
                place.steps[-1],
                (layer, "lora_A", layer.lora_A),
                (layer, "lora_B", layer.lora_B),
                (layer.lora_A, self.adapter, layer.lora_A[self.adapter]),
                (layer.lora_B, self.adapter, layer.lora_B[self.adapter]),
            ]
            values = (
                Value(layer.lora_A[self.adapter], erasure.tensors[f"{key}.lora_A.weight"]),
                Value(layer.lora_B[self.adapter], erasure.tensors[f"{key}.lora_B.weight"]),
                # What was there before any dense erasure is the base.
                Value.sampled(base, self.originals.get(f"{place.name}.weight", base.weight)),
            )
            self.layers.append((place.name, layer, layer.scaling[self.adapter], values))

    @property
    def alone(self) -> bool:
        return self.transport is not None

    def tuners(self) -> Iterator[Any]:
        """The denoiser's layers that have adapters, anybody's."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        return (m for m in self.denoiser.modules() if isinstance(m, BaseTunerLayer))

    @property
    def originals(self) -> Mapping[str, Tensor]:
        """What the weights were that dense erasures have changed."""
        return getattr(self.denoiser, "dense_erasures", DenseErasures()).originals

    def look(self, whole: bool) -> str | None:
        if missing(self.steps if whole else self.steps[-5:]) is not None:
            raise InputError(GONE)
        for attention in self.attentions:
            if attention.fused_projections:
                raise InputError(
                    "does not act in fused projections: call pipe.unfuse_qkv_projections()."
                )
        off, adapter = False, self.adapter
        originals = self.originals
        for name, layer, scale, values in self.layers if whole else self.layers[-1:]:
            if layer.merged_adapters:
                raise InputError(
                    "does not act while a LoRA is fused into the weights: call pipe.unfuse_lora()."
                )
            if not (values[0].holds() and values[1].holds()):
                raise InputError(f"has been overwritten: {AGAIN}")
            if layer._modules.get("base_layer") is not values[2].module:
                values[2].module, values[2].mark = base_layer(layer), None
            if f"{name}.weight" not in originals and not values[2].holds():
                raise InputError(
                    "was made for other weights than the model has now: load the pipeline again."
                )
            if (
                layer.disable_adapters
                or adapter not in layer.active_adapters
                or layer.scaling[adapter] != scale
            ):
                off = True
        return self.switch_on() if off else None

    def switch_on(self) -> str:
        weakened = False
        for _, layer, scale, _ in self.layers:
            # Those that were switched off with it stay so.
            others = [] if layer.disable_adapters else layer.active_adapters
            weakened |= layer.scaling[self.adapter] != scale
            layer.scaling[self.adapter] = scale
            if self.adapter not in others or layer.disable_adapters:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    layer.set_adapter([*(o for o in others if o != self.adapter), self.adapter])
                    layer.enable_adapters(True)
        return "was given another weight" if weakened else "was switched off"

    def off(self) -> None:
        if any(self.adapter in layer.merged_adapters for _, layer, _, _ in self.layers):
            raise InputError(
                f"The erasure's LoRA {self.adapter!r} is fused into the weights: call "
                "pipe.unfuse_lora() before it is taken off."
            )
        if self.transport is not None:
            self.transport.off()
        # Those that are there now: more may have come since, and it may be gone.
        there = list(getattr(self.denoiser, "peft_config", None) or ())
        if there == [self.adapter]:
            unload(self.denoiser)
        elif self.adapter in there:
            active = {
                layer: [name for name in layer.active_adapters if name != self.adapter]
                for layer in self.tuners()
            }
            with warnings.catch_warnings():
                # peft switches another on in its place, which is not meant here.
                warnings.simplefilter("ignore")
                _delete(self.denoiser, self.adapter)
            for layer, names in active.items():
                layer.set_adapter(names)

    def write(self, state: dict[str, Tensor]) -> None:
        if self.transport is not None:
            raise InputError(
                "has a strength of its own for each prompt, which saved weights cannot hold: save "
                "its file beside the base model, or take it off with unsee.remove(pipe) first."
            )
        for name, layer, _, _ in self.layers if state else ():
            weight = state[f"{name}.weight"]
            if not weight.is_floating_point():
                raise InputError("cannot be written into quantised weights: save its file.")
            delta = layer.get_delta_weight(self.adapter).float().to(weight.device)
            state[f"{name}.weight"] = (weight.float() + delta).to(weight.dtype)


def _inject(denoiser: Any, prefix: str, name: str, tensors: dict[str, Tensor]) -> None:
    """Puts a LoRA into a denoiser: by diffusers, and by peft into a model that has no such method.

    Both make of each two tensors B A, at a scale of 1.
    """
    if hasattr(denoiser, "load_lora_adapter"):
        denoiser.load_lora_adapter(tensors, prefix=prefix, adapter_name=name)
        return
    from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict

    state = {key.removeprefix(f"{prefix}."): tensor for key, tensor in tensors.items()}
    ranks = {
        key.removesuffix(".lora_A.weight"): len(tensor)
        for key, tensor in state.items()
        if key.endswith(".lora_A.weight")
    }
    # ^: the whole name, not the end of one
    pattern = {f"^{layer}": rank for layer, rank in ranks.items()}
    config = LoraConfig(
        target_modules=list(ranks), rank_pattern=pattern, alpha_pattern=dict(pattern)
    )
    inject_adapter_in_model(config, denoiser, adapter_name=name, state_dict=state)
    set_peft_model_state_dict(denoiser, state, name)


def unload(denoiser: Any) -> None:
    """Takes all LoRAs out of a denoiser, of which the layers are then what they were."""
    if hasattr(denoiser, "unload_lora"):
        denoiser.unload_lora()
        return
    from diffusers.utils.peft_utils import recurse_remove_peft_layers

    recurse_remove_peft_layers(denoiser)
    del denoiser.peft_config


def _delete(denoiser: Any, name: str) -> None:
    """Takes one LoRA of several out of a denoiser."""
    if hasattr(denoiser, "delete_adapters"):
        denoiser.delete_adapters(name)
        return
    for module in denoiser.modules():
        if name in getattr(module, "lora_A", ()):
            module.delete_adapter(name)
    del denoiser.peft_config[name]
