"""Models that anybody erased from, in whatever form they are published.

    a folder with model_index.json, or a hub id     a whole pipeline
    a checkpoint of a whole model (.safetensors)    the same, put together as the base is
    a folder or file of one component's weights     in diffusers' names, or CompVis' of a UNet:
                                                    all of them, or those alone that were trained
    a LoRA that diffusers reads
    an erasure of unsee's                           which is one

What has weights for some layers stands on the base for the others. Every tensor of a file must be
one of the base's, by name and shape: what does not fit is refused and never left out in silence,
as then the base itself would be judged.
"""

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from .._errors import InputError
from .._settings import shown
from . import MODELS
from .modules import DENOISERS, ENCODERS, uncompiled

PICKLES = (".pt", ".pth", ".bin", ".ckpt")

_AROUND = ("state_dict", "model", "module", "unet", "transformer", "text_encoder")
"""What some files have around their weights, as the name of a mapping."""

_BEFORE = (
    *("module.", "model."),
    *(f"{name}." for name in (*DENOISERS, *ENCODERS)),
    *("cond_stage_model.transformer.", "text_model."),
)
"""What may stand before a layer's name in the component."""

_COMPVIS = "model.diffusion_model."


def against(pipe: Any, other: Any, *, config: Any = None, **loading: Any) -> Any:
    """A pipeline of what somebody made of a model, to be judged beside the model.

    Args:
        pipe: The model's pipeline, which is left as it was; what it has that the other lacks is
            shared.
        other: A pipeline, or one of the forms above.
        config: For a checkpoint of a whole model, as ``load_pipeline`` has it; None is the model's
            own folder.
        loading: How a whole pipeline is loaded: see ``load_pipeline``.

    Raises:
        InputError: It cannot be read, holds code, or does not fit the model.
    """
    from .load import load_pipeline

    if not isinstance(other, (str, Path)):
        return other
    path = Path(other)
    if not path.exists() or (path / "model_index.json").is_file():
        return load_pipeline(other, **loading)
    tensors = _read(path)
    if any(".lora" in name or "_lora" in name for name in tensors):
        return _with_lora(pipe, path)
    if path.is_file() and any(name.startswith("first_stage_model.") for name in tensors):
        if path.suffix != ".safetensors":
            raise InputError(
                f"{path} is a pickle of a whole model: convert it to .safetensors, or name the "
                "folder of its pipeline."
            )
        name = str(pipe.name_or_path)
        folder = MODELS[name] if name in MODELS else name
        return load_pipeline(path, config=config or folder, **loading)
    return _with_weights(pipe, path, tensors)


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, or of a component's folder, by their names there.

    Raises:
        InputError: There are none, or they cannot be read without running code.
    """
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix in (".safetensors", *PICKLES))
        chosen = [p for p in files if p.suffix == ".safetensors"] or files
        if not chosen:
            raise InputError(
                f"{path} is a folder without model_index.json and without weights "
                f"(.safetensors, {', '.join(PICKLES)}): wanted a pipeline's folder or a "
                "component's."
            )
        return {name: tensor for file in chosen for name, tensor in _read(file).items()}
    try:
        if path.suffix == ".safetensors":
            page: Any = load_file(path)
        elif path.suffix in PICKLES:
            # Tensors alone: what would run code as it is read is refused
            page = torch.load(path, map_location="cpu", weights_only=True)
        else:
            raise InputError(
                f"{path} is of no kind that holds weights: wanted a folder, .safetensors, or "
                f"{', '.join(PICKLES)}."
            )
    except InputError:
        raise
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    except Exception as error:
        # torch's UnpicklingError and RuntimeError, pickle's own, and what a cut file makes of them
        raise InputError(
            f"{path} cannot be read as weights alone; it is cut, no file of torch, or would run "
            f"code: {' '.join(str(error).split())[:200]}"
        ) from error
    return _unwrapped(page, path)


def _unwrapped(page: Any, path: Path) -> dict[str, Tensor]:
    """The mapping from names to tensors that is in a file, however it is wrapped."""
    while isinstance(page, Mapping) and not any(isinstance(v, Tensor) for v in page.values()):
        inner = [page[name] for name in _AROUND if isinstance(page.get(name), Mapping)]
        if len(inner) != 1:
            break
        page = inner[0]
    found = {
        str(name): value
        for name, value in (page.items() if isinstance(page, Mapping) else ())
        if isinstance(value, Tensor)
    }
    if not found:
        raise InputError(f"{path} holds no tensors by name, so there is no model in it.")
    return found


def _with_weights(pipe: Any, path: Path, tensors: Mapping[str, Tensor]) -> Any:
    """The model with the weights of a file in the place of its own.

    Raises:
        InputError: They are no component's of the model; or not finite.
    """
    best: tuple[int, str, dict[str, Tensor]] = (-1, "", {})
    for name, component in _components(pipe):
        theirs = component.state_dict()
        for named in _readings(component, tensors):
            fits = {
                key: tensor
                for key, tensor in named.items()
                if key in theirs and theirs[key].shape == tensor.shape
            }
            if len(fits) > best[0]:
                best = (len(fits), name, named)
    _, name, named = best
    component = uncompiled(getattr(pipe, name))
    own = component.state_dict()
    # Positions are counted, not learnt; old files have them among their weights
    named = {key: value for key, value in named.items() if not key.endswith("position_ids")}
    if odd := [key for key, value in named.items() if key not in own]:
        raise InputError(
            f"{path} does not fit this {type(pipe).__name__}: {len(odd)} of its {len(named)} "
            f"tensors are in no component of it, such as {shown(odd[0])}. Name the base that it "
            "was made from."
        )
    if odd := [key for key, value in named.items() if own[key].shape != value.shape]:
        raise InputError(
            f"{path} does not fit this {type(pipe).__name__}: {odd[0]} has the shape "
            f"{tuple(named[odd[0]].shape)}, and in the {name} {tuple(own[odd[0]].shape)}. Name "
            "the base that it was made from."
        )
    if odd := [
        key for key, t in named.items() if t.is_floating_point() != own[key].is_floating_point()
    ]:
        # Codes of a quantised weight, which stand for other numbers
        raise InputError(
            f"{path} has {odd[0]} in {str(named[odd[0]].dtype).removeprefix('torch.')}, and the "
            f"{name} has it in {str(own[odd[0]].dtype).removeprefix('torch.')}: wanted weights "
            "that are not quantised."
        )
    # torch cannot look at eight bits for what is not finite
    if odd := [key for key, value in named.items() if not value.float().isfinite().all()]:
        raise InputError(f"{path} has NaN or infinity in {odd[0]}: it would draw nothing.")
    erased = copy.deepcopy(component)
    erased.load_state_dict(named, strict=False)
    return _replaced(pipe, {name: erased})


def _readings(component: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """A file's tensors by the names that they may have in a component."""
    named = dict(tensors)
    yield named
    for _ in range(3):
        first = next((p for p in _BEFORE if all(name.startswith(p) for name in named)), None)
        if first is None:
            break
        named = {name.removeprefix(first): tensor for name, tensor in named.items()}
        yield named
    # transformers 4's names, of which 5 has left out what stood before all of them
    yield {name.removeprefix("text_model."): tensor for name, tensor in named.items()}
    yield {f"text_model.{name}": tensor for name, tensor in named.items()}
    compvis = {name: t for name, t in tensors.items() if name.startswith(_COMPVIS)} or {
        f"{_COMPVIS}{name}": tensor for name, tensor in named.items()
    }
    config: Any = getattr(component, "config", None)
    if f"{_COMPVIS}input_blocks.0.0.weight" in compvis and isinstance(config, Mapping):
        from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

        try:
            yield convert_ldm_unet_checkpoint(compvis, dict(config))
        except (KeyError, ValueError, IndexError):  # another architecture's
            return


def _components(pipe: Any) -> Iterator[tuple[str, nn.Module]]:
    for name in (*DENOISERS, *ENCODERS):
        if isinstance(component := getattr(pipe, name, None), nn.Module):
            yield name, uncompiled(component)


def _with_lora(pipe: Any, path: Path) -> Any:
    from .load import put_lora

    copied = _replaced(pipe, {name: copy.deepcopy(part) for name, part in _components(pipe)})
    put_lora(copied, str(path), 1.0, whole=True)
    return copied


def _replaced(pipe: Any, components: Mapping[str, nn.Module]) -> Any:
    """The same pipeline with other components; what it shares with the first is not copied."""
    other = copy.copy(pipe)
    other.register_modules(**components)
    return other
