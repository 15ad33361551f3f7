"""Low-rank updates of linear layers and convolutions, as an ordinary LoRA beside the weights.

For each edited layer a file holds ``unet.<module>.lora_A.weight`` (rank × in) and
``.lora_B.weight`` (out × rank), of a convolution (rank, in, height, width) and (out, rank, 1, 1),
to be added to the weight as B A: what ``load_lora_weights`` of diffusers reads. Of all layers or
of none it holds ``.lora_B.bias`` (out,) too, to be added to the bias, or in place of none.
"""

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..._errors import InputError
from ..modules import base_layer, component_of, own_name
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

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""What a LoRA of ours can be put around; quantised linear layers are ``nn.Linear`` too."""


def shapes(layers: "Shapes", tensors: Mapping[str, Tensor]) -> "Shapes":
    """As ``Kind.shapes``; the rank is that of each layer's B, and one bias makes all wanted."""
    wanted: Shapes = {}
    biases = has_biases(tensors)
    for name, (out, *rest) in layers.items():
        b = tensors.get(f"{name}.lora_B.weight")
        # A weight of one dimension is a norm's or the like, which no B A can be added to.
        rank = b.shape[1] if b is not None and rest and b.ndim == 1 + len(rest) else 0
        wanted[f"{name}.lora_A.weight"] = (rank, *rest)
        wanted[f"{name}.lora_B.weight"] = (out, rank, *(1 for _ in rest[1:]))
        if biases:
            wanted[f"{name}.lora_B.bias"] = (out,)
    return wanted


def has_biases(names: Iterable[str]) -> bool:
    """Whether biases are edited, by the names of a file's tensors."""
    return any(name.endswith(".lora_B.bias") for name in names)


def put(pipe: Any, erasure: "Erasure", weight: float) -> "tuple[Put, ...]":
    """As ``Kind.put``; with ``transport`` in the record, each prompt has its own strength."""
    taken = {
        name
        for component in pipe.components.values()
        for name in getattr(component, "peft_config", None) or ()
    }
    name = free_name(erasure.name, taken)
    edited = erasure.record.base.components
    for component, one in edited.items():
        try:
            check_layers(component_of(pipe, component), one.layers)
        except InputError as error:
            raise InputError(f"The erasure {erasure.name!r} edits {component}.{error}") from error
    adapters: list[Adapter] = []
    try:
        for component, one in sorted(edited.items()):
            tensors = own_tensors(pipe, component, one.layers, erasure.tensors)
            adapters.append(Adapter(pipe, component, name, tensors, weight))
        if transport := erasure.record.transport:
            (adapter,) = adapters
            adapter.transport = Transported(pipe, adapter.adapter, transport)
    except BaseException:
        for adapter in adapters:
            adapter.off()
        raise
    return tuple(adapters)


def own_tensors(
    pipe: Any, component: str, layers: Iterable[str], tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """A file's tensors for one component, by the names that its layers have there.

    Args:
        layers: The layers by the names that the file has.
        tensors: All of the file's.
    """
    module = component_of(pipe, component)
    return {
        f"{own_name(module, layer)}.lora_{end}": tensors[key]  # type: ignore[arg-type]
        for layer in layers
        for end in ("A.weight", "B.weight", "B.bias")
        if (key := f"{component}.{layer}.lora_{end}") in tensors
    }


def check_layers(module: Any, names: Iterable[str]) -> None:
    """Makes sure that a LoRA can be put around layers.

    Raises:
        InputError: One is no linear layer and no convolution; its name begins the line.
    """
    for name in names:
        own = own_name(module, name)
        assert own is not None
        layer = base_layer(module.get_submodule(own))
        if not isinstance(layer, LAYERS):
            raise InputError(
                f"{name}, which is of {type(layer).__name__}; the kind lowrank can edit linear "
                "layers and convolutions alone: make it again."
            )


def free_name(wanted: str, taken: Iterable[str]) -> str:
    """A name for a LoRA that none has, as near as can be to the one that is wanted."""
    name = "".join(c if c.isalnum() else "-" for c in wanted)
    # peft keeps LoRAs in a ModuleDict, where what it has itself, such as `train`, is no name.
    taken, own = set(taken), nn.ModuleDict()
    names = (name, *(f"{name}-{n}" for n in range(2, 2 + len(taken) + 1)))
    return next(n for n in names if n not in taken and not hasattr(own, n))


@dataclass(frozen=True)
class Around:
    """A LoRA around one layer.

    Attributes:
        name: The layer's own.
        layer: peft's, around it.
        scale: What B A and the bias are multiplied by.
        ours: A, B and, if there is one, the bias.
        own: The layer's weight.
    """

    name: str
    layer: Any
    scale: float
    ours: list[Value]
    own: Value


class Adapter:
    """What is added to the weights of one component, as a LoRA of peft's.

    Args:
        component: The component's name in the pipeline.
        name: The LoRA's, which no other there has.
        tensors: A, B and biases, as ``own_tensors`` names them.
        weight: What they are multiplied by.
    """

    def __init__(
        self, pipe: Any, component: str, name: str, tensors: dict[str, Tensor], weight: float
    ) -> None:
        self.component, self.adapter = component, name
        denoiser: Any = component_of(pipe, component)
        self.denoiser = denoiser
        self.share = 1.0
        # the layers' active adapters while it is weighed to nothing
        self.others: dict[Any, tuple[list[str], list[str]]] = {}
        self.transport: Transported | None = None
        # The tensors that peft draws to begin with are replaced at once.
        with torch.random.fork_rng(), beside(denoiser, name):
            _inject(denoiser, name, tensors)
        found = places(denoiser, sorted({key.rpartition(".lora_")[0] for key in tensors}))
        self.steps = ways(found)
        # What fuse_qkv_projections of diffusers puts in the place of an attention's own layers.
        self.attentions = fusible(found)
        self.layers: list[Around] = []
        for place in found:
            layer, key = place.module, place.name
            base: Any = base_layer(layer)
            layer.scaling[self.adapter] *= weight
            self.steps += [
                place.steps[-1],
                (layer, "lora_A", layer.lora_A),
                (layer, "lora_B", layer.lora_B),
                (layer.lora_A, self.adapter, layer.lora_A[self.adapter]),
                (layer.lora_B, self.adapter, layer.lora_B[self.adapter]),
            ]
            a, b = layer.lora_A[self.adapter], layer.lora_B[self.adapter]
            values = [
                Value(a, tensors[f"{key}.lora_A.weight"]),
                Value(b, tensors[f"{key}.lora_B.weight"]),
            ]
            if (bias := tensors.get(f"{key}.lora_B.bias")) is not None:
                values.append(Value(b, bias, "bias"))
            # What was there before any dense erasure is the base.
            own = Value.sampled(base, self.originals.get(f"{key}.weight", base.weight))
            self.layers.append(Around(key, layer, layer.scaling[self.adapter], values, own))

    @property
    def alone(self) -> bool:
        return self.transport is not None

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
        for place in self.layers if whole else self.layers[-1:]:
            layer, own = place.layer, place.own
            if layer.merged_adapters:
                raise InputError(
                    "does not act while a LoRA is fused into the weights: call pipe.unfuse_lora()."
                )
            if not all(value.holds() for value in place.ours):
                raise InputError(f"has been overwritten: {AGAIN}")
            if layer._modules.get("base_layer") is not own.module:
                own.module, own.mark = base_layer(layer), None
            if f"{place.name}.weight" not in originals and not own.holds():
                raise InputError(
                    "was made for other weights than the model has now: load the pipeline again."
                )
            if (
                layer.disable_adapters
                or adapter not in layer.active_adapters
                or layer.scaling[adapter] != place.scale * self.share
            ):
                off = True
        return self.switch_on() if off else None

    def switch_on(self) -> str:
        weakened = False
        for place in self.layers:
            layer = place.layer
            # Those that were switched off with it stay so.
            others = [] if layer.disable_adapters else layer.active_adapters
            scale = place.scale * self.share
            weakened |= layer.scaling[self.adapter] != scale
            layer.scaling[self.adapter] = scale
            if self.adapter not in others or layer.disable_adapters:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    layer.set_adapter([*(o for o in others if o != self.adapter), self.adapter])
                    layer.enable_adapters(True)
        return "was given another weight" if weakened else "was switched off"

    def weigh(self, share: float) -> None:
        if share == self.share:
            return
        before, self.share = self.share, share
        for place in self.layers:
            layer = place.layer
            if share and self.adapter in layer.scaling:
                layer.scaling[self.adapter] = place.scale * share
            if share == 0:
                active = list(layer.active_adapters)
                left = [name for name in active if name != self.adapter]
                self.others[layer] = (active, left)
                _activate(layer, left)
            elif before == 0:
                active, left = self.others.pop(layer)
                now = list(layer.active_adapters)
                _activate(layer, active if now == left else [*now, self.adapter])

    def off(self) -> None:
        if any(self.adapter in place.layer.merged_adapters for place in self.layers):
            raise InputError(
                f"The erasure's LoRA {self.adapter!r} is fused into the weights: call "
                "pipe.unfuse_lora() before it is taken off."
            )
        if self.transport is not None:
            self.transport.off()
        take_out(self.denoiser, self.adapter)

    def write(self, state: dict[str, Tensor]) -> None:
        if self.transport is not None:
            raise InputError(
                "has a strength of its own for each prompt, which saved weights cannot hold: save "
                "its file beside the base model, or take it off with unsee.remove(pipe) first."
            )
        for place in self.layers:
            if len(place.ours) > 2 and base_layer(place.layer).bias is None:
                raise InputError(
                    f"adds a bias to {self.component}.{place.name}, which has none that saved "
                    "weights could hold: save its file."
                )
        for place in self.layers if state else ():
            layer, name = place.layer, place.name
            weight = state[f"{name}.weight"]
            if not weight.is_floating_point():
                raise InputError("cannot be written into quantised weights: save its file.")
            delta = layer.get_delta_weight(self.adapter).float().to(weight.device)
            state[f"{name}.weight"] = (weight.float() + delta).to(weight.dtype)
            if len(place.ours) > 2:
                bias, more = state[f"{name}.bias"], layer.lora_B[self.adapter].bias.detach()
                more = more.float().to(bias.device) * place.scale
                state[f"{name}.bias"] = (bias.float() + more).to(bias.dtype)


def _activate(layer: Any, names: list[str]) -> None:
    """Lets these LoRAs of a layer act and no others, and what can be trained stay as it is."""
    flags = [(parameter, parameter.requires_grad) for parameter in layer.parameters()]
    layer.set_adapter(names)
    for parameter, flag in flags:
        parameter.requires_grad_(flag)


def tuners(denoiser: nn.Module) -> dict[str, Any]:
    """A denoiser's layers that LoRAs are around, anybody's, by name."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {n: m for n, m in denoiser.named_modules() if isinstance(m, BaseTunerLayer)}


@contextmanager
def beside(denoiser: nn.Module, name: str) -> Iterator[None]:
    """Puts a LoRA into a denoiser, inside a ``with``: it and those that act already then act.

    What was there learns afterwards if it did before.
    """
    active = {layer: list(layer.active_adapters) for layer in tuners(denoiser).values()}
    flags = [(p, p.requires_grad) for p in denoiser.parameters()]
    with warnings.catch_warnings():
        # Several at once are what is meant here.
        warnings.filterwarnings("ignore", "Already found a `peft_config`", UserWarning)
        # That it cannot be merged, which nobody does
        warnings.filterwarnings("ignore", "TorchaoLoraLinear was instantiated", UserWarning)
        warnings.filterwarnings("ignore", "`lora_bias=True` was passed", UserWarning)
        yield
    # Not set_adapters, which would put the scales of the others back to 1.
    for layer in tuners(denoiser).values():
        ours = [name] if name in layer.scaling else []
        layer.set_adapter([*active.get(layer, ()), *ours])
    for parameter, flag in flags:
        parameter.requires_grad_(flag)


def take_out(denoiser: Any, name: str) -> None:
    """Takes one LoRA out of a denoiser, in which the others stay and act as they did.

    A layer that no LoRA is left around is what it was. What is not there is let be.
    """
    # Those that are there now: more may have come since, and it may be gone.
    there = list(getattr(denoiser, "peft_config", None) or ())
    if there == [name]:
        unload(denoiser)
        return
    if name not in there:
        return
    active = {
        layer: [other for other in layer.active_adapters if other != name]
        for layer in tuners(denoiser).values()
    }
    flags = [(p, p.requires_grad) for p in denoiser.parameters()]
    with warnings.catch_warnings():
        # peft switches another on in its place, which is not meant here.
        warnings.simplefilter("ignore")
        _delete(denoiser, name)
    for key, layer in tuners(denoiser).items():
        if layer.scaling:
            layer.set_adapter(active[layer])
        else:
            parent, _, own = key.rpartition(".")
            setattr(denoiser.get_submodule(parent), own, layer.get_base_layer())
    for parameter, flag in flags:
        parameter.requires_grad_(flag)


def check_on(denoiser: nn.Module) -> None:
    """Makes sure that a LoRA which is put in would act.

    Raises:
        InputError: Somebody has switched all LoRAs off, or fused one into the weights.
    """
    for layer in tuners(denoiser).values():
        if layer.disable_adapters or layer.merged_adapters:
            off = layer.disable_adapters
            what = "switched off" if off else "fused into the weights"
            raise InputError(
                f"The pipeline's LoRAs are {what}, and one that is put beside them would not act: "
                f"call pipe.{'enable_lora' if off else 'unfuse_lora'}() first."
            )


def _inject(denoiser: Any, name: str, state: dict[str, Tensor]) -> None:
    """Puts a LoRA into a component: by diffusers, and by peft into one that has no such method.

    Both make of each two tensors B A, at a scale of 1.

    Args:
        state: By the layers' own names.
    """
    if hasattr(denoiser, "load_lora_adapter"):
        denoiser.load_lora_adapter(state, prefix=None, adapter_name=name)
        return
    from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict

    ranks = {
        key.removesuffix(".lora_A.weight"): len(tensor)
        for key, tensor in state.items()
        if key.endswith(".lora_A.weight")
    }
    # ^: the whole name, not the end of one
    pattern = {f"^{layer}": rank for layer, rank in ranks.items()}
    config = LoraConfig(
        target_modules=list(ranks),
        rank_pattern=pattern,
        alpha_pattern=dict(pattern),
        lora_bias=has_biases(state),
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
    if getattr(denoiser, "_hf_peft_config_loaded", False):
        # By this, transformers knows that a text encoder has a LoRA.
        denoiser._hf_peft_config_loaded = False


def _delete(denoiser: Any, name: str) -> None:
    """Takes one LoRA of several out of a denoiser."""
    if hasattr(denoiser, "delete_adapters"):
        denoiser.delete_adapters(name)
        return
    for module in denoiser.modules():
        if name in getattr(module, "lora_A", ()):
            module.delete_adapter(name)
    del denoiser.peft_config[name]
