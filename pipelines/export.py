"""An erasure for other tools: as a LoRA of theirs, or in the weights of a whole model.

- ``diffusers``: the LoRA without our record. For diffusers itself an erasure file is that already;
  this one says nothing of the base model, the concepts and the settings.
- ``kohya`` and ``comfyui``: under the names that these read (``names``). Neither says when it
  drops a layer, so that a layer that they do not know is refused here.
- ``pipeline``: a folder of diffusers' with the erasure in its weights, and its record in the model
  card.
- ``checkpoint``: one file under the original Stable Diffusion's names, for 1.x, 2.x and XL.
"""

import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors.torch import save_file
from torch import Tensor

from .._errors import InputError
from .._files import check_file, check_folder
from .._settings import checked
from . import MODELS
from .card import card
from .erasure import Erasure
from .load import load_pipeline
from .loading import Loading
from .modules import DENOISERS, uncompiled
from .names import (
    CHECKPOINTS,
    COMFYUI,
    KOHYA,
    PUBLISHED_XL,
    Names,
    checkpoint_clip,
    checkpoint_open_clip,
    checkpoint_unet,
    checkpoint_vae,
    unread,
)
from .watch import active, erasures_on

Target = Literal["diffusers", "kohya", "comfyui", "pipeline", "checkpoint"]
TARGETS: tuple[str, ...] = get_args(Target)


@checked
def export(
    erasure: Erasure | str | Path,
    path: str | Path,
    *,
    to: Target,
    model: Any = None,
    license: str = "unknown",
    loading: Loading | None = None,
    force: bool = False,
) -> None:
    """Writes an erasure as another tool reads it, whole or not at all.

    Args:
        erasure: An erasure, its file or its id.
        path: The file to write; for ``pipeline`` the folder.
        to: What for: see the module.
        model: The base model, as ``load_pipeline`` takes it, or a pipeline of it, which is left
            as it was; None is what the erasure names. ``pipeline`` and ``checkpoint`` need it; of
            Stable Diffusion XL in another size than the published one, ``kohya`` and ``comfyui``
            read its configuration.
        license: Of the base model, for the model card of a ``pipeline``.
        loading: How the model is loaded, if it is; its ``dtype`` is that of what is written.
            None is as float32 on the CPU.
        force: Whether to replace a file that is there.

    Raises:
        InputError: That tool cannot hold this erasure, there is something already, or the model
            cannot be loaded or is another; before anything is written.
    """
    one = erasure if isinstance(erasure, Erasure) else Erasure.load(erasure)
    place = Path(path)
    _check_free(place, to, force)
    _check_goes(one, to)
    if loading is not None:
        loading.check_exporting()
    if to in ("pipeline", "checkpoint"):
        pipe = _loaded(one, model, loading)
        with one.applied(pipe), _whole(place) as part:
            if to == "pipeline":
                pipe.save_pretrained(part)
                (part / "README.md").write_text(card(one, license=license), encoding="utf-8")
            else:
                save_file(_checkpoint(one, pipe), part)
        return
    if loading not in (None, Loading()):
        raise InputError(f"--to {to} loads no model: leave out what says how one is loaded.")
    tensors = _lora(one, to, model)
    with _whole(place) as part:
        # No record: with any header AUTOMATIC1111 takes a LoRA for one of Stable Diffusion 1.
        save_file(tensors, part)


def _check_free(path: Path, to: Target, force: bool) -> None:
    if to == "pipeline":
        check_folder(path)
        if path.is_dir() and any(path.iterdir()):
            raise InputError(f"{path} is a folder with something in it: name another one.")
        return
    check_file(path)
    if path.exists() and not force:
        raise InputError(f"{path} is there already: name another file, or add --force.")


def _check_goes(erasure: Erasure, to: Target) -> None:
    """Makes sure that what an erasure is can be said there."""
    record, who = erasure.record, f"The erasure {erasure.name!r}"
    if record.kind == "guidance":
        raise InputError(
            f"{who} is a guide ({record.method}) without weights, which unsee alone can apply: "
            "put its file on with load_pipeline, or erase with a method that has weights."
        )
    if record.transport is not None:
        raise InputError(
            f"{who} acts on each prompt as strongly as the prompt is like the concept, which "
            "unsee alone can do: put its file on with load_pipeline, or erase with another method."
        )
    if to in ("pipeline", "checkpoint"):
        if to == "checkpoint" and record.base.pipeline not in CHECKPOINTS:
            raise InputError(
                f"Nothing here writes a {record.base.pipeline} into one checkpoint file, only "
                "Stable Diffusion 1.x, 2.x and XL: take --to pipeline."
            )
        return
    if record.kind != "lowrank":
        raise InputError(
            f"{who} is {record.kind}, whole weights and no LoRA: take --to pipeline or "
            "--to checkpoint, or erase with --set store=lora."
        )
    others = sorted(record.base.components.keys() - set(DENOISERS))
    if others and to != "diffusers":
        raise InputError(f"{who} edits the {others[0]}, whose names for {to} are not known here.")
    biases = sorted(key for key in erasure.tensors if key.endswith(".lora_B.bias"))
    if biases and to != "diffusers":
        raise InputError(
            f"{who} edits biases ({biases[0]}), which {to} drops in silence: take --to pipeline."
        )


def _loaded(erasure: Erasure, model: Any, loading: Loading | None) -> Any:
    """The base model, with nothing in it."""
    given = erasure.record.base.name if model is None else model
    if isinstance(given, (str, Path)):
        if not str(given):
            raise InputError("The erasure does not say where its base model is: name it.")
        how = loading or Loading()
        return load_pipeline(given, device=how.device or "cpu", **how.reading)
    if loading is not None:
        raise InputError(
            "loading says how a model is loaded, and a pipeline was given: leave it out."
        )
    if on := [one for one in active(given) if one.kind != "weights"]:
        raise InputError(
            f"The erasure {on[0].name!r} is on in this pipeline and would be written too: call "
            "unsee.remove(pipe) first."
        )
    return given


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A place beside another, which takes its name once it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as near:
        part = Path(near) / path.name
        yield part
        if path.is_dir():
            path.rmdir()  # which is empty
        os.replace(part, path)


def _lora(erasure: Erasure, to: Target, model: Any) -> dict[str, Tensor]:
    """A LoRA's tensors under a tool's names."""
    pipeline = erasure.record.base.pipeline
    tensors = {name: t.detach().cpu().contiguous() for name, t in erasure.tensors.items()}
    if to == "diffusers":
        if why := unread(erasure.record):
            raise InputError(f"{why}: take --to pipeline.")
        _check_unasked(model, to, pipeline)
        return tensors
    names = (KOHYA if to == "kohya" else COMFYUI).get(pipeline)
    if names is None:
        raise InputError(
            f"No names that {to} reads are known for a {pipeline}: take --to diffusers or "
            "--to pipeline."
        )
    if not names.original:
        _check_unasked(model, to, pipeline)
    return renamed(tensors, names, to, _config(erasure, model) if names.original else {})


def renamed(
    tensors: Mapping[str, Tensor], names: Names, to: str, config: Mapping[str, Any]
) -> dict[str, Tensor]:
    """``<prefix>.<layer>.lora_A.weight`` and ``.lora_B.weight`` under a tool's names.

    Raises:
        InputError: A layer has none.
    """
    found: dict[str, Tensor] = {}
    sides = {"lora_A": "lora_down", "lora_B": "lora_up"} if names.kohya else {}
    for key, tensor in tensors.items():
        layer, side = re.fullmatch(r"[a-z]+\.(.+)\.(lora_[AB])\.weight", key).groups()  # type: ignore[union-attr]
        name = names.of(layer, config)
        if name is None:
            raise InputError(
                f"The erasure edits {layer}, which {to} does not know by a name and would drop in "
                "silence: take --to diffusers or --to pipeline."
            )
        found[f"{name}.{sides.get(side, side)}.weight"] = tensor
        if names.kohya and side == "lora_A":
            found[f"{name}.alpha"] = torch.tensor(float(len(tensor)))
    return found


def _check_unasked(model: Any, to: str, pipeline: str) -> None:
    if model is not None:
        raise InputError(f"--to {to} needs no base model for a {pipeline}: leave it out.")


def _config(erasure: Erasure, model: Any) -> Mapping[str, Any]:
    """The configuration of a base's UNet, of which names depend on a part."""
    if model is None:
        (edited,) = erasure.record.base.components.values()
        blocks = [re.match(r"(down|up)_blocks\.(\d)\.\w+\.(\d)", name) for name in edited.layers]
        places = {found.groups() for found in blocks if found}
        if not any(side == "up" and n == "2" for side, _, n in places) or any(
            n > ("1" if side == "down" else "2") or block > "2" for side, block, n in places
        ):
            raise InputError(
                "The layers' names there go by the size of the base's UNet, and this erasure does "
                "not show that it is that of Stable Diffusion XL: name the base with --model."
            )
        return PUBLISHED_XL
    if not isinstance(model, (str, Path)):
        return _sized(model.unet.config)
    from diffusers import UNet2DConditionModel

    folder = MODELS[str(model)] if str(model) in MODELS else str(model)
    try:
        return _sized(UNet2DConditionModel.load_config(folder, subfolder="unet"))
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        said = " ".join(str(error).split())
        raise InputError(
            f"{folder} has no UNet whose configuration could be read: {said}"
        ) from error


def _sized(config: Mapping[str, Any]) -> Mapping[str, Any]:
    if not isinstance(config["layers_per_block"], int):
        raise InputError(
            "The UNet has another number of layers in each block, for which the original Stable "
            "Diffusion has no names."
        )
    return config


def _checkpoint(erasure: Erasure, pipe: Any) -> dict[str, Tensor]:
    """All weights of a pipeline that an erasure is on, under the original's names."""
    found = checkpoint_unet(_state(pipe.unet), _sized(pipe.unet.config))
    config = pipe.vae.config
    found |= checkpoint_vae(pipe.vae.state_dict(), len(config.block_out_channels))
    for prefix, encoder, write in _encoders(erasure.record.base.pipeline, pipe):
        found |= write(_state(encoder), prefix)
    return {name: tensor.cpu().contiguous() for name, tensor in found.items()}


def _state(component: Any) -> dict[str, Tensor]:
    """A component's weights, with what is on in it."""
    module = uncompiled(component)
    state: dict[str, Tensor] = module.state_dict()
    if (on := erasures_on(module)) is not None:
        on.check_saving()
        on.state(state)
    return state


def _encoders(
    pipeline: str, pipe: Any
) -> list[tuple[str, Any, Callable[[Mapping[str, Tensor], str], dict[str, Tensor]]]]:
    """The text encoders, with what their names begin with and what gives them."""
    if "XL" in pipeline:
        return [
            ("conditioner.embedders.0.transformer.", pipe.text_encoder, checkpoint_clip),
            ("conditioner.embedders.1.model.", pipe.text_encoder_2, checkpoint_open_clip),
        ]
    # OpenAI's CLIP, of 1.x, has an activation of its own; 2.x reads OpenCLIP.
    if pipe.text_encoder.config.hidden_act == "quick_gelu":
        return [("cond_stage_model.transformer.", pipe.text_encoder, checkpoint_clip)]
    return [("cond_stage_model.model.", pipe.text_encoder, checkpoint_open_clip)]
