"""A pipeline with its erasures in it, or as little of one as an eraser reads."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from .._errors import InputError
from .._registry import unknown
from .._settings import checked, shown
from . import MODELS
from .erasure import Erasure
from .stable_diffusion import text_layers

LONGEST = 1_000_000
"""Tokens of a text, for any tokenizer."""

EMOJI = str(Path(__file__).parent / "emoji")


@checked
def load_pipeline(
    base: str | Path,
    *erasures: Erasure | str | Path,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    **from_pretrained: Any,
) -> Any:
    """Loads diffusers' own pipeline for a model and takes the erasures' concepts out of it.

    Args:
        base: A built-in model's name (``MODELS``), a folder, or a Hugging Face id.
        erasures: Erasures or their files, as many as wanted: they add up.
        device: Where to; None is the accelerator if there is one, else the CPU.
        dtype: Of the weights.
        from_pretrained: Passed on to ``DiffusionPipeline.from_pretrained``.

    Raises:
        InputError: There is no such model or device, or an erasure cannot be read or was made for
            another.
    """
    from accelerate import PartialState

    place = PartialState().device if device is None else _device(device)

    loaded = [e if isinstance(e, Erasure) else Erasure.load(e) for e in erasures]
    pipe = _assembled(base, lambda folder: from_pretrained, dtype)
    for erasure in loaded:
        erasure.add_to(pipe)
    return pipe.to(place)


def _device(device: str | torch.device) -> torch.device:
    """A device that is here: tried, as its name alone says nothing of this machine.

    Raises:
        InputError: It is not.
    """
    try:
        found = torch.device(device)
        torch.empty(1, device=found)
    except (RuntimeError, ValueError, AssertionError, NotImplementedError) as error:
        reason = " ".join(str(error).split()).partition(". ")[0]
        raise InputError(
            f"device is {shown(device)}, which cannot be used here: torch says {reason!r}. Leave "
            "device out to take what there is."
        ) from error
    return found


def load_text_side(base: str | Path, **from_pretrained: Any) -> Any:
    """Loads what a model makes of text, on the CPU in float32: enough for a closed form.

    That is the tokenizer, the text encoder and, of the denoiser, the layers that read the text;
    its other weights are left without memory, and there is no autoencoder. A model that is no
    folder, or whose denoiser is not one file of safetensors, is loaded whole.

    Args:
        base: As ``load_pipeline``.
        from_pretrained: Passed on to ``DiffusionPipeline.from_pretrained``.

    Raises:
        InputError: There is no such model.
    """

    def parts(folder: Path) -> dict[str, Any]:
        weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
        if not weights.is_file():
            return from_pretrained
        return from_pretrained | {"unet": _shell(weights), "vae": None}

    return _assembled(base, parts, torch.float32)


def _shell(weights: Path) -> Any:
    """A UNet of which only the layers that read the text have memory."""
    from accelerate import init_empty_weights
    from diffusers import UNet2DConditionModel

    with init_empty_weights():
        config = UNet2DConditionModel.load_config(weights.parent)
        unet: Any = UNet2DConditionModel.from_config(config)
    with safe_open(weights, "pt") as file:
        for name, layer in text_layers(unet).items():
            weight = file.get_tensor(f"{name}.weight").float()
            layer.weight = nn.Parameter(weight, requires_grad=False)
    return unet


def _assembled(
    base: str | Path, arguments: Callable[[Path], dict[str, Any]], dtype: torch.dtype
) -> Any:
    """The pipeline of a model, with arguments that may depend on its folder."""
    from diffusers import DiffusionPipeline

    folder = MODELS[str(base)] if str(base) in MODELS else str(base)
    if "/" not in folder and not Path(folder).exists():
        error = unknown("built-in model", folder, MODELS)
        raise InputError(
            f"{error} A Hugging Face id is owner/name; a folder {folder!r} is not here."
        )
    if Path(folder).exists() and not (Path(folder) / "model_index.json").is_file():
        raise InputError(f"{folder} is no diffusers model: it has no model_index.json.")
    try:
        pipe = DiffusionPipeline.from_pretrained(folder, dtype=dtype, **arguments(Path(folder)))
    except Exception as error:
        # Whatever a library makes of a folder that is cut or edited: KeyError, TypeError, …
        said = " ".join(str(error).split())
        if isinstance(error, MemoryError) or re.search("out of memory|allocate memory", said):
            raise
        named = isinstance(error, (OSError, ValueError, SafetensorError))
        reason = said if named else f"{type(error).__name__}: {said}"
        raise InputError(
            f"No model could be loaded as {str(base)!r}: wanted a folder, a Hugging Face id or "
            f"one of {', '.join(MODELS)}. diffusers says: {reason}"
        ) from error
    for name, part in pipe.components.items():
        length = getattr(part, "model_max_length", 0) if name.startswith("tokenizer") else 0
        if length > LONGEST:  # transformers' stand-in for a number that is not there
            raise InputError(
                f"The {name} of {str(base)!r} does not say after how many tokens it cuts: its "
                "tokenizer_config.json lacks model_max_length."
            )
    pipe.set_progress_bar_config(disable=True)
    pipe.register_to_config(_name_or_path=str(base))
    return pipe
