"""A pipeline with its erasures in it."""

from pathlib import Path
from typing import Any

import torch

from .._errors import InputError
from .._registry import unknown
from . import MODELS
from .erasure import Erasure

EMOJI = str(Path(__file__).parent / "emoji")


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
        InputError: There is no such model, or an erasure cannot be read or was made for another.
    """
    from accelerate import PartialState
    from diffusers import DiffusionPipeline

    loaded = [e if isinstance(e, Erasure) else Erasure.load(e) for e in erasures]
    folder = MODELS[str(base)] if str(base) in MODELS else str(base)
    if "/" not in folder and not Path(folder).exists():
        error = unknown("built-in model", folder, MODELS)
        raise InputError(
            f"{error} A Hugging Face id is owner/name; a folder {folder!r} is not here."
        )
    if Path(folder).exists() and not (Path(folder) / "model_index.json").is_file():
        raise InputError(f"{folder} is no diffusers model: it has no model_index.json.")
    try:
        pipe = DiffusionPipeline.from_pretrained(folder, dtype=dtype, **from_pretrained)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"No model could be loaded as {str(base)!r}: wanted a folder, a Hugging Face id or "
            f"one of {', '.join(MODELS)}. diffusers says: {reason}"
        ) from error
    pipe.set_progress_bar_config(disable=True)
    pipe.register_to_config(_name_or_path=str(base))
    for erasure in loaded:
        erasure.add_to(pipe)
    return pipe.to(PartialState().device if device is None else device)
