"""A pipeline with its erasures in it, or as little of one as an eraser reads."""

import inspect
import json
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from .._errors import InputError
from .._registry import unknown
from .._settings import checked, shown
from . import MODELS
from .architectures import family_of
from .erasure import Given, weighted
from .loading import Dtype, Offload, split_weight
from .modules import DENOISERS

LONGEST = 1_000_000
"""Tokens of a text, for any tokenizer."""

EMOJI = str(Path(__file__).parent / "emoji")

CHECKPOINTS = (".safetensors", ".gguf")

# How the names of what is beside the denoiser begin in a checkpoint of a whole model.
_WHOLE = ("first_stage_model.", "vae.")
_SPOKEN = ("cond_stage_model.", "conditioner.embedders.", "text_encoders.")


@checked
def load_pipeline(
    base: str | Path,
    *erasures: Given,
    device: str | torch.device | None = None,
    dtype: torch.dtype | Dtype = torch.float32,
    variant: str | None = None,
    config: str | Path | None = None,
    offload: Offload | None = None,
    lora: Sequence[str] = (),
    **from_pretrained: Any,
) -> Any:
    """Loads diffusers' own pipeline for a model and takes the erasures' concepts out of it.

    Args:
        base: A built-in model's name (``MODELS``), a folder, a Hugging Face id, or a single
            checkpoint (.safetensors, .gguf), which needs ``config``.
        erasures: Erasures, their files or ids, as many as wanted: they add up. One with a weight
            is a pair ``(erasure, 0.8)``, or the text "FILE:0.8".
        device: Where to; None is the accelerator if there is one, else the CPU.
        dtype: Of the weights.
        variant, config, offload, lora: As ``Loading``.
        from_pretrained: Passed on to ``DiffusionPipeline.from_pretrained``.

    Warns:
        UserWarning: The model is quantised, or has no layers for parts of a LoRA.

    Raises:
        InputError: There is no such model or device, or an erasure cannot be read or was made for
            another.
    """
    from accelerate import PartialState

    moved = accelerator(device) if offload else None
    place = PartialState().device if device is None else _device(device)

    own = [split_weight(one) for one in lora]
    loaded = [weighted(one) for one in erasures]
    pipe = _assembled(base, lambda folder: {}, dtype, variant, config, from_pretrained)
    for file, weight in own:
        put_lora(pipe, file, 1.0 if weight is None else weight)
    for erasure, weight in loaded:
        erasure.add_to(pipe, weight)
    if offload:
        assert moved is not None
        _offload(pipe, offload, moved)
        return pipe
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


def accelerator(device: str | torch.device | None = None) -> torch.device:
    """Where offloading moves weights to while they run.

    Raises:
        InputError: There is no accelerator, or the device is none.
    """
    there = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    found = there if device is None else _device(device)
    if found is None or found.type == "cpu":
        raise InputError(
            "Offloading moves weights between the CPU and an accelerator, and "
            + ("this machine has no accelerator" if found is None else f"{device} is none")
            + ": leave offload out."
        )
    return found


def _offload(pipe: Any, how: Offload, to: torch.device) -> None:
    if how == "model":
        pipe.enable_model_cpu_offload(device=to)
    else:
        pipe.enable_sequential_cpu_offload(device=to)


@contextmanager
def offloaded(pipe: Any, how: Offload | None, to: torch.device | None) -> Iterator[None]:
    """A pipeline whose weights are on an accelerator only while they run, inside a ``with``.

    What is put on a pipeline is put on before, and taken off after: here the weights may lie
    where nothing can read them.
    """
    if how is None or to is None:
        yield
        return
    _offload(pipe, how, to)
    try:
        yield
    finally:
        pipe.remove_all_hooks()
        pipe.to("cpu")


def put_lora(pipe: Any, file: str, weight: float, *, whole: bool = False) -> None:
    """Puts a LoRA of the user's own on a pipeline, and makes sure that it is there.

    Args:
        whole: Whether all of it must act.

    Raises:
        InputError: It cannot be read, or this pipeline has no layer for it, or for some of it.
    """
    from .kinds.lowrank import free_name, tuners

    modules = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    taken = {name for part in modules for name in getattr(part, "peft_config", None) or ()}
    if not hasattr(pipe, "load_lora_weights"):
        raise InputError(f"A {type(pipe).__name__} takes no LoRAs: leave lora out.")
    if not Path(file).is_file():
        raise InputError(f"The LoRA {file} is not there: wanted a .safetensors file.")
    name = free_name(Path(file).stem, taken)
    try:
        with safe_open(file, "pt") as opened:
            keys = list(opened.keys())
        with _errors_alone(), torch.random.fork_rng(), warnings.catch_warnings():
            # Several at once are what is meant here.
            warnings.filterwarnings("ignore", "Already found a `peft_config`", UserWarning)
            pipe.load_lora_weights(file, adapter_name=name)
    except Exception as error:
        # Whatever a library makes of names that it does not know: KeyError, IndexError, …
        said = " ".join(str(error).split())
        raise InputError(
            f"The LoRA {file} cannot be put on this {type(pipe).__name__}. diffusers says: "
            f"{type(error).__name__}: {said}"
        ) from error
    every = [layer for part in modules for layer in tuners(part).values()]
    layers = [layer for layer in every if name in layer.scaling]
    # As the file names them: PEFT's, kohya's and diffusers' older names of the first factor
    wanted = sum(bool(re.search(r"\.lora(_A|_down|\.down)\.", key)) for key in keys)
    if not layers:
        raise InputError(
            f"The LoRA {file} changes no layer of this {type(pipe).__name__}: it was made for "
            "another model, or has names that diffusers does not read."
        )
    if len(layers) < wanted:
        lacking = (
            f"Of the LoRA {file}, {wanted - len(layers)} of {wanted} layers are none of this "
            f"{type(pipe).__name__}'s that diffusers knows, and do not act"
        )
        if whole:
            raise InputError(f"{lacking}: name the base that it was made for.")
        warnings.warn(f"{lacking}.", stacklevel=4)
    for layer in every:
        # Not set_adapters, which would put the scales of the others back to 1.
        layer.set_adapter(list(layer.scaling))
    for layer in layers:
        layer.scaling[name] *= weight


@contextmanager
def lora_on(pipe: Any, file: str, weight: float) -> Iterator[None]:
    """A pipeline with a LoRA of the user's own, inside a ``with``; afterwards it is as it was.

    Raises:
        InputError: As ``put_lora``.
    """
    from .kinds.lowrank import take_out, tuners

    modules = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    before = [list(getattr(part, "peft_config", None) or ()) for part in modules]
    active = [
        (layer, list(layer.active_adapters)) for m in modules for layer in tuners(m).values()
    ]
    try:
        put_lora(pipe, file, weight)
        yield
    finally:
        for part, names in zip(modules, before, strict=True):
            for name in set(getattr(part, "peft_config", None) or ()) - set(names):
                take_out(part, name)
        for layer, names in active:
            layer.set_adapter(names)


@contextmanager
def _errors_alone() -> Iterator[None]:
    """diffusers without what it logs of a LoRA's names, which are counted here."""
    from diffusers.utils import logging as diffusers_logging

    before = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(before)


@checked
def load_text_side(
    base: str | Path,
    *,
    dtype: torch.dtype | Dtype = torch.float32,
    variant: str | None = None,
    config: str | Path | None = None,
    **from_pretrained: Any,
) -> Any:
    """Loads what a model makes of text, on the CPU: enough for a closed form.

    That is the tokenizers, the text encoders and, of the denoiser, the layers that read the text;
    its other weights are left without memory, and there is no autoencoder. Of a Hugging Face id
    only these files are fetched. A model whose denoiser is not of safetensors, or quantised, is
    loaded whole.

    Args:
        base, dtype, variant, config: As ``load_pipeline``.
        from_pretrained: Passed on to ``DiffusionPipeline.from_pretrained``.

    Raises:
        InputError: There is no such model.
    """

    def parts(folder: Path) -> dict[str, Any]:
        shell = _shell(folder, variant, dtype)
        return {} if shell is None else shell | {"vae": None}

    return _assembled(base, parts, dtype, variant, config, from_pretrained, text=True)


def _shell(folder: Path, variant: str | None, dtype: torch.dtype | Dtype) -> dict[str, Any] | None:
    """A denoiser of which only the layers that read the text have memory, by its name.

    None where the folder does not say enough, or has no weights of safetensors.
    """
    import diffusers
    from accelerate import init_empty_weights
    from accelerate.utils import set_module_tensor_to_device

    try:
        pipeline, index = _pipeline_in(folder)
        family = family_of(pipeline)
        if family is None:
            return None
        cls = getattr(diffusers, index[family.prefix][1])
    except (OSError, ValueError, LookupError, AttributeError, TypeError):
        return None
    files = _files(folder / family.prefix, variant)
    if not files:
        return None
    with init_empty_weights():
        settings = cls.load_config(folder / family.prefix)
        if "quantization_config" in settings:
            return None
        denoiser: Any = cls.from_config(settings)
    wanted = [name for name, _ in denoiser.named_parameters() if of_text(family, name)]
    for path in sorted({files[name] for name in wanted if name in files}):
        with safe_open(path, "pt") as file:
            for name in wanted:
                if files.get(name) == path:
                    value = file.get_tensor(name).to(_dtype(dtype))
                    set_module_tensor_to_device(denoiser, name, "cpu", value)
    return {family.prefix: denoiser.requires_grad_(False)}


def _pipeline_in(folder: Path) -> tuple[Any, dict[str, Any]]:
    """diffusers' class of the pipeline in a folder, and what the folder says of its components."""
    import diffusers

    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    return getattr(diffusers, str(index["_class_name"])), index


def _class_of(path: Path) -> Any:
    """The class that a folder is loaded by; diffusers' general one where it does not say.

    That one drops in silence what is given for a component that is optional.
    """
    from diffusers import DiffusionPipeline

    try:
        return _pipeline_in(path)[0]
    except (OSError, ValueError, LookupError, AttributeError, TypeError):
        return DiffusionPipeline


def of_text(family: Any, name: str) -> bool:
    """Whether a parameter of that name is of what reads the text first, or stands before that."""
    patterns = (*family.readers_by_name.values(), *family.before_readers)
    return any(re.fullmatch(rf"{pattern}(\.\w+)?", name) for pattern in patterns)


def _dtype(dtype: torch.dtype | Dtype) -> torch.dtype:
    found: torch.dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    return found


def _files(folder: Path, variant: str | None = None) -> dict[str, Path]:
    """The file of each weight of a model, in one file or in several.

    Of a component that lacks the variant, the files without one, as diffusers takes them.
    """
    names = [f".{variant}", ""] if variant else [""]
    for name in names:
        whole = folder / f"diffusion_pytorch_model{name}.safetensors"
        index = folder / f"diffusion_pytorch_model.safetensors.index{name}.json"
        if whole.is_file():
            with safe_open(whole, "pt") as file:
                return dict.fromkeys(file.keys(), whole)
        if index.is_file():
            parts = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            return {key: folder / part for key, part in parts.items()}
    return {}


def _from_hub(repo: str, variant: str | None, given: Mapping[str, Any]) -> Path | None:
    """The folder, in the hub's cache, of a model without what a text side does not need.

    Of the denoiser these are its configuration and the files that have its readers; None where
    they cannot be told from its others.
    """
    import diffusers
    from huggingface_hub import HfApi
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    left = dict.fromkeys((*DENOISERS, "vae"))
    download = diffusers.DiffusionPipeline.download
    folder = Path(download(repo, variant=variant, **{**given, **left}))
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    family = family_of(getattr(diffusers, str(index["_class_name"])))
    if family is None:
        return None
    prefix = family.prefix

    def fetched(name: str) -> bool:
        try:
            HfApi().hf_hub_download(repo, f"{prefix}/{name}", revision=folder.name)
        except (EntryNotFoundError, LocalEntryNotFoundError):
            return False
        return True

    if not fetched("config.json"):
        return None
    for infix in [f".{variant}", ""] if variant else [""]:
        if fetched(f"diffusion_pytorch_model.safetensors.index{infix}.json"):
            files = _files(folder / prefix, variant)
            needed = {path.name for name, path in files.items() if of_text(family, name)}
            return folder if all(map(fetched, sorted(needed))) else None
        if fetched(f"diffusion_pytorch_model{infix}.safetensors"):
            return folder
    return None


def _assembled(
    base: str | Path,
    arguments: Callable[[Path], dict[str, Any]],
    dtype: torch.dtype | Dtype,
    variant: str | None,
    config: str | Path | None,
    given: Mapping[str, Any],
    text: bool = False,
) -> Any:
    """The pipeline of a model.

    Args:
        arguments: What depends on its folder.
        given: What goes before that, as ``from_pretrained`` takes it.
        text: Whether its text side will do.
    """

    folder = MODELS[str(base)] if str(base) in MODELS else str(base)
    path = Path(folder)
    single = path.suffix.lower() in CHECKPOINTS
    if path.suffix.lower() in (".ckpt", ".pt", ".pth", ".bin"):
        raise InputError(
            f"{path} is a pickle, which can run any code as it is read: convert it to "
            ".safetensors."
        )
    if single:
        _check_checkpoint(path, config)
    elif config is not None:
        raise InputError(
            f"config is for a single checkpoint (.safetensors), and {str(base)!r} has its own: "
            "leave it out."
        )
    if "/" not in folder and not path.exists():
        error = unknown("built-in model", folder, MODELS)
        raise InputError(
            f"{error} A Hugging Face id is owner/name; a folder {folder!r} is not here."
        )
    if not single and path.exists():
        if not (path / "model_index.json").is_file():
            raise InputError(f"{folder} is no diffusers model: it has no model_index.json.")
        _check_variant(path, variant)
    try:
        if single:
            assert config is not None
            pipe = _from_checkpoint(path, Path(config), _dtype(dtype), variant, given)
        else:
            if text and not path.exists():
                path = _from_hub(folder, variant, given) or path
                folder = str(path)
            more = _expected(path, {**given, **arguments(path)})
            pipe = _class_of(path).from_pretrained(
                folder, dtype=_dtype(dtype), variant=variant, **more
            )
    except InputError:
        raise
    except Exception as error:
        # Whatever a library makes of a folder that is cut or edited: KeyError, TypeError, …
        said = " ".join(str(error).split())
        if isinstance(error, MemoryError) or re.search("out of memory|allocate memory", said):
            raise
        named = isinstance(error, (OSError, ValueError, SafetensorError))
        reason = said if named else f"{type(error).__name__}: {said}"
        raise InputError(
            f"No model could be loaded as {str(base)!r}: wanted a folder, a Hugging Face id, a "
            f"checkpoint or one of {', '.join(MODELS)}. diffusers says: {reason}"
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


def _expected(folder: Path, given: dict[str, Any]) -> dict[str, Any]:
    """Arguments without a safety checker's where the pipeline takes none, which diffusers names.

    Of a Hugging Face id all are left, as nothing of it is here yet.
    """
    try:
        pipeline, _ = _pipeline_in(folder)
        takes = inspect.signature(pipeline.__init__).parameters
    except (OSError, ValueError, LookupError, AttributeError, TypeError):
        return given  # diffusers says what is wrong
    return {
        name: value
        for name, value in given.items()
        if name in takes or value or "safety_checker" not in name
    }


def _check_variant(folder: Path, variant: str | None) -> None:
    """Makes sure that a folder has weights of the variant that is wanted.

    Raises:
        InputError: It has others; the line names them.
    """
    pattern = r"(?:diffusion_pytorch_)?model(?:\.(\w+))?(?:-\d+-of-\d+)?\.(?:safetensors|bin)"
    found: dict[str, set[str | None]] = {}
    for file in folder.glob("*/*"):
        if match := re.fullmatch(pattern, file.name):
            found.setdefault(file.parent.name, set()).add(match[1])
    known = sorted({name for names in found.values() for name in names if name})
    if variant is not None and variant not in known:
        there = f"has {', '.join(known)}" if known else "has none"
        raise InputError(
            f"{folder} has no weights of the variant {variant!r}; it {there}: "
            + ("name one of these, or " if known else "")
            + "leave variant out."
        )
    lacking = sorted(part for part, names in found.items() if None not in names)
    if variant is None and lacking:
        of = sorted(name for name in found[lacking[0]] if name)
        raise InputError(
            f"{folder} has its {lacking[0]} in the variant {' or '.join(of)} alone: pass "
            f"--variant {of[0]} (variant={of[0]!r} in Python)."
        )


def _check_checkpoint(path: Path, config: str | Path | None) -> None:
    """Makes sure that a single checkpoint can be read as a model.

    Raises:
        InputError: It is not there, is a LoRA, or nothing says how its model is put together.
    """
    if not path.is_file():
        raise InputError(f"{path} is not there: wanted a checkpoint (.safetensors or .gguf).")
    if any(".lora_" in key for key in _keys(path)):
        raise InputError(
            f"{path} is a LoRA or an erasure, and no model: name the model that it was made for."
        )
    if config is None:
        raise InputError(
            f"{path} is a single checkpoint, which does not say how its model is put together: "
            "pass the folder of a diffusers model of its architecture, --config FOLDER (config=… "
            "in Python)."
        )
    if not (Path(config) / "model_index.json").is_file():
        raise InputError(
            f"{config} is no folder of a diffusers model: it has no model_index.json, and a "
            "checkpoint needs one of its architecture."
        )


def _keys(path: Path) -> list[str]:
    """The names of a checkpoint's tensors; none of what is no safetensors file."""
    try:
        with safe_open(path, "pt") as file:
            return list(file.keys())
    except (SafetensorError, OSError, ValueError):
        return []


def _from_checkpoint(
    path: Path,
    config: Path,
    dtype: torch.dtype,
    variant: str | None,
    given: Mapping[str, Any],
) -> Any:
    """The pipeline of a single checkpoint, and of a folder what the checkpoint lacks.

    Raises:
        InputError: It cannot be read as a model of the folder's architecture.
    """
    import diffusers

    index = json.loads((config / "model_index.json").read_text(encoding="utf-8"))
    pipeline: Any = getattr(diffusers, str(index["_class_name"]))
    prefix = next(name for name in DENOISERS if name in index)
    keys = _keys(path)
    has_vae, has_text = (any(key.startswith(names) for key in keys) for names in (_WHOLE, _SPOKEN))
    given = _expected(config, dict(given))
    if has_text:
        if not has_vae:
            cls = getattr(diffusers, index["vae"][1])
            given["vae"] = cls.from_pretrained(config, subfolder="vae", dtype=dtype)
        pipe = pipeline.from_single_file(
            str(path), config=str(config), dtype=dtype, local_files_only=True, **given
        )
    else:
        cls = getattr(diffusers, index[prefix][1])
        if not hasattr(cls, "from_single_file"):
            raise InputError(
                f"A {cls.__name__} cannot be read from a single checkpoint: wanted a folder of "
                "diffusers'."
            )
        more: dict[str, Any] = {}
        if path.suffix.lower() == ".gguf":
            more["quantization_config"] = _gguf(dtype)
        denoiser = cls.from_single_file(
            str(path), config=str(config), subfolder=prefix, dtype=dtype, **more
        )
        given[prefix] = denoiser
        if has_vae:
            vae = getattr(diffusers, index["vae"][1])
            given["vae"] = vae.from_single_file(
                str(path), config=str(config), subfolder="vae", dtype=dtype
            )
        pipe = diffusers.DiffusionPipeline.from_pretrained(
            config, dtype=dtype, variant=variant, **given
        )
    for name, part in pipe.components.items():
        for weight, tensor in part.named_parameters() if isinstance(part, nn.Module) else ():
            if tensor.is_meta:
                raise InputError(
                    f"{path} lacks {weight} of the {name}: it is no checkpoint of the "
                    f"architecture of {config}, or is cut."
                )
    return pipe


def _gguf(dtype: torch.dtype) -> Any:
    from importlib.util import find_spec

    if find_spec("gguf") is None:
        raise InputError("A GGUF checkpoint needs gguf: pip install 'unsee[quantised]'")
    from diffusers import GGUFQuantizationConfig

    return GGUFQuantizationConfig(compute_dtype=dtype)
