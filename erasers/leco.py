"""LECO's files of prompts, as concepts and settings of ESD.

LECO (https://github.com/p1atdev/LECO, and since then in kohya's sd-scripts) trains a LoRA on ESD's
loss. Each prompt of its file has the student learn, under ``target``,

    ε(neutral) − guidance_scale (ε(positive) − ε(unconditional))

which is ESD's target: the concept is ``positive``, taken from ``target``, its anchor ``neutral``,
the paper's η ``guidance_scale``, and ∅ ``unconditional``.
"""

import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .._errors import InputError
from .._files import read_text
from ..prompts import Concept
from ..prompts.concept import read_yaml

# What stands in a prompt of LECO's, and what it is where it does not. ``target`` must stand there,
# ``positive`` is the target, and the last two are of sd-scripts.
_DEFAULTS: dict[str, Any] = {
    "target": None,
    "positive": None,
    "unconditional": "",
    "neutral": "",
    "action": "erase",
    "guidance_scale": 1.0,
    "batch_size": 1,
    "resolution": 512,
    "dynamic_resolution": False,
    "dynamic_crops": False,
    "multiplier": 1.0,
    "weight": 1.0,
}
# Without these something else would be learnt, …
_REFUSED = ("unconditional", "action", "multiplier", "weight")
# … and without these the same at another size.
_PASSED_OVER = ("resolution", "dynamic_resolution", "dynamic_crops")
# Settings of the whole training here, and LECO's word for each.
_SHARED = {"eta": "guidance_scale", "batch_size": "batch_size", "erase_from": "target"}


def leco(path: Path, kind: str = "object") -> tuple[list[Concept], dict[str, Any]]:
    """Reads a file of LECO's prompts.

    Args:
        path: YAML, a list of prompts; or TOML (``.toml``, from Python 3.11 on) with the list
            ``prompts``, beside which stands what holds for all.
        kind: What the concepts are.

    Returns:
        The concepts, and settings of ``ESD`` by name. LECO's rank is not in this file.

    Warns:
        UserWarning: The file asks for another size than LECO's own default; ESD takes the model's.

    Raises:
        InputError: The file cannot be read, or wants what ESD does not do: to enhance, another
            prompt than the empty one as unconditional, several guidance scales at once.
    """
    entries = [_checked(f"Prompt {n} of {path}", e) for n, e in enumerate(_read(path), 1)]
    if not entries:
        raise InputError(f"{path} holds no prompt: name at least one target.")
    concepts, settings = [], []
    for entry in entries:
        target, neutral, eta = entry["target"], entry["neutral"], float(entry["guidance_scale"])
        positive = target if entry["positive"] is None else entry["positive"]
        if neutral == positive:
            # ε(c) − s(ε(c) − ε(∅)) = ε(∅) − (s − 1)(ε(c) − ε(∅))
            neutral, eta = "", eta - 1
        concepts.append(Concept(positive, kind, anchor=neutral))
        taken_from = None if target == positive else target
        settings.append({"eta": eta, "batch_size": entry["batch_size"], "erase_from": taken_from})
    for name, theirs in _SHARED.items():
        if any(other[name] != settings[0][name] for other in settings):
            raise InputError(
                f"The prompts of {path} differ in {name}, from their {theirs}: here it is one for "
                "all, so give each a file."
            )
    if passed_over := [n for n in _PASSED_OVER if any(e[n] != _DEFAULTS[n] for e in entries)]:
        warnings.warn(
            f"{path}: {', '.join(passed_over)} not taken, the model's own size is.", stacklevel=2
        )
    return list(dict.fromkeys(concepts)), settings[0]


def _read(path: Path) -> list[Any]:
    """The file's prompts, each with what holds for all."""
    found: Any
    if path.suffix == ".toml":
        if sys.version_info < (3, 11):
            raise InputError(f"{path} is TOML, which needs Python 3.11: write it as YAML.")
        import tomllib

        try:
            found = tomllib.loads(read_text(path))
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            reason = "nested too deeply" if isinstance(error, RecursionError) else error
            raise InputError(f"{path} is not TOML: {reason}.") from error
    else:
        found = read_yaml(path)
    common: dict[str, Any] = {}
    if isinstance(found, dict) and "prompts" in found:
        common = found
        found = common.pop("prompts")
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise InputError(f"{path} must hold a list of LECO's prompts, each with its target.")
    return [common | entry for entry in found]


def _checked(where: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    if extra := sorted(str(name) for name in entry.keys() - _DEFAULTS.keys()):
        raise InputError(
            f"{where} has {', '.join(extra)}, which LECO's prompts have not. They have "
            f"{', '.join(_DEFAULTS)}."
        )
    values = _DEFAULTS | dict(entry)
    for name in ("target", "positive", "neutral"):
        if not isinstance(values[name], str) and (name != "positive" or name in entry):
            raise InputError(f"{where}: {name} must be text, and is {values[name]!r}.")
    for name, kind in {"guidance_scale": (int, float), "batch_size": (int,)}.items():
        if not isinstance(values[name], kind) or isinstance(values[name], bool):
            raise InputError(f"{where}: {name} must be a number, and is {values[name]!r}.")
    for name in _REFUSED:
        if values[name] != _DEFAULTS[name]:
            raise InputError(
                f"{where} has {name} {values[name]!r}: esd erases, against the empty prompt and "
                f"with one weight for all, so {name} can only be {_DEFAULTS[name]!r}."
            )
    return values
