"""A pipeline with its erasures in it, or as little of one as an eraser reads."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from .._errors import InputError
from .._registry import unknown
from .._settings import checked, shown
from . import MODELS
from .architectures import family_of
from .erasure import Erasure

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
    folder, or whose denoiser is not of safetensors, is loaded whole.

    Args:
        base: As ``load_pipeline``.
        from_pretrained: Passed on to ``DiffusionPipeline.from_pretrained``.

    Raises:
        InputError: There is no such model.
    """

    def parts(folder: Path) -> dict[str, Any]:
        shell = _shell(folder)
        return from_pretrained if shell is None else from_pretrained | shell | {"vae": None}

    return _assembled(base, parts, torch.float32)


def _shell(folder: Path) -> dict[str, Any] | None:
    """A denoiser of which only the layers that read the text have memory, by its name.

    None where the folder does not say enough, or has no weights of safetensors.
    """
    import diffusers
    from accelerate import init_empty_weights
    from accelerate.utils import set_module_tensor_to_device

    try:
        pipeline, index = _pipeline_in(folder)
        family = family_of(pipeline)
        cls = getattr(diffusers, index[family.prefix][1])
    except (OSError, ValueError, LookupError, AttributeError, TypeError):
        return None
    files = _files(folder / family.prefix)
    if not files:
        return None
    with init_empty_weights():
        config = cls.load_config(folder / family.prefix)
        denoiser: Any = cls.from_config(config)
    patterns = (*family.readers_by_name.values(), *family.before_readers)
    wanted = [
        name
        for name, _ in denoiser.named_parameters()
        if any(re.fullmatch(rf"{pattern}(\.\w+)?", name) for pattern in patterns)
    ]
    for path in sorted({files[name] for name in wanted if name in files}):
        with safe_open(path, "pt") as file:
            for name in wanted:
                if files.get(name) == path:
                    value = file.get_tensor(name).float()
                    set_module_tensor_to_device(denoiser, name, "cpu", value)
    return {family.prefix: denoiser.requires_grad_(False)}


def _pipeline_in(folder: Path) -> tuple[Any, dict[str, Any]]:
    """diffusers' class of the pipeline in a folder, and what the folder says of its components."""
    import diffusers

    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    return getattr(diffusers, str(index["_class_name"])), index


def _files(folder: Path) -> dict[str, Path]:
    """The file of each weight of a model, in one file or in several."""
    whole = folder / "diffusion_pytorch_model.safetensors"
    index = whole.with_name(f"{whole.name}.index.json")
    if whole.is_file():
        with safe_open(whole, "pt") as file:
            return dict.fromkeys(file.keys(), whole)
    if index.is_file():
        parts = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return {name: folder / part for name, part in parts.items()}
    return {}


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
        # DiffusionPipeline drops in silence what is given for a component that is optional.
        cls, _ = _pipeline_in(Path(folder))
    except (OSError, ValueError, LookupError, AttributeError, TypeError):
        cls = DiffusionPipeline
    try:
        pipe = cls.from_pretrained(folder, dtype=dtype, **arguments(Path(folder)))
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
