"""LECO's and SPM's files of prompts, as concepts and settings of ESD and SPM.

LECO (https://github.com/p1atdev/LECO, and since then in kohya's sd-scripts) trains a LoRA on ESD's
loss. Each prompt of its file has the student learn, under ``target``,

    ε(neutral) − guidance_scale (ε(positive) − ε(unconditional))

which is ESD's target: the concept is ``positive``, taken from ``target``, its anchor ``neutral``,
the paper's η ``guidance_scale``, and ∅ ``unconditional``. SPM (https://github.com/Con6924/SPM)
reads files of the same form, with ``neutral`` in the bracket too.

Each step of LECO's draws one of the prompts and as many samples of it as its ``batch_size`` says.
Here all steps have one batch size, the mean, and a prompt comes as often as its share of samples
wants: a phrase is named several times.
"""

import math
import sys
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from .._errors import InputError
from .._files import read_text
from .._settings import Count, NotNegative, Range, read, shown
from ..prompts import Concept
from ..prompts.concept import read_yaml

# What stands in a prompt, and what it is where it does not. ``target`` must stand there,
# ``positive`` is the target, ``multiplier`` and ``weight`` are of sd-scripts, and from
# ``la_strength`` on they are SPM's.
_DEFAULTS: dict[str, Any] = {
    "target": None,
    "positive": None,
    "unconditional": "",
    "neutral": "",
    "action": "erase",
    "guidance_scale": 1.0,
    "batch_size": 1,
    "resolution": 512,
    "bucketing": False,
    "dynamic_resolution": False,
    "dynamic_crops": False,
    "multiplier": 1.0,
    "weight": 1.0,
    "la_strength": 1000.0,
    "sampling_batch_size": 4,
    "use_template": False,
}
# Numbers may be written as texts.
_NUMBERS: dict[str, Any] = {
    "guidance_scale": Annotated[float, Range(least=-1000, most=1000)],
    "batch_size": Count,
    "multiplier": float,
    "weight": float,
    "la_strength": NotNegative,
    "sampling_batch_size": Count,
}
# Without these something else would be learnt, …
_REFUSED = ("unconditional", "action", "multiplier", "weight", "use_template")
# … and without these the same at another size, or held by other words.
_PASSED_OVER = (
    "resolution",
    "bucketing",
    "dynamic_resolution",
    "dynamic_crops",
    "la_strength",
    "sampling_batch_size",
)
# Settings of the whole training here, and the file's word for each.
_SHARED = {
    "eta": "guidance_scale",
    "erase_from": "target",
    "anchoring": "action",
}
# What SPM calls its loss with anchoring.
_ANCHORED = "erase_with_la"


def leco(
    path: Path, kind: str = "object", method: str = "esd"
) -> tuple[list[Concept], dict[str, Any]]:
    """Reads a file of prompts.

    Args:
        path: YAML, a list of prompts; or TOML (``.toml``, from Python 3.11 on), whose list is
            called ``prompts`` or ``targets``, as it is or in ``slider``, and beside which stands
            what holds for all.
        kind: What the concepts are.
        method: Whose settings are wanted, ``esd`` or ``spm``. LECO's own configuration of the
            training (rank, rate, length), which is not in this file, is ESD's preset "leco".

    Returns:
        The concepts, and settings of the method by name.

    Warns:
        UserWarning: The file asks for another size than LECO's own default; the model's is taken.
            Or something beside its prompts is not known and not read.

    Raises:
        InputError: The file cannot be read, or wants what the method does not do: to enhance, to
            slide, another prompt than the empty one as unconditional, several guidance scales at
            once.
    """
    entries = [_checked(f"Prompt {n} of {path}", e, method) for n, e in enumerate(_read(path), 1)]
    if not entries:
        raise InputError(f"{path} holds no prompt: name at least one target.")
    samples: Counter[tuple[str, str]] = Counter()
    settings: list[dict[str, Any]] = []
    for number, entry in enumerate(entries, 1):
        target, neutral, eta = entry["target"], entry["neutral"], entry["guidance_scale"]
        positive = target if entry["positive"] is None else entry["positive"]
        taken_from = None if target == positive else target
        if method == "spm":
            if taken_from is not None:
                raise InputError(
                    f"Prompt {number} of {path}: spm takes a concept from itself alone, so target "
                    f"and positive must be one; they are {shown(target)} and {shown(positive)}."
                )
            # Its la_strength weighs noise around the concept; what is anchored here are words.
            anchored = {} if entry["action"] == _ANCHORED else {"anchoring": 0.0}
            settings.append({"eta": eta} | anchored)
        else:
            if neutral == positive:
                # ε(c) − s(ε(c) − ε(∅)) = ε(∅) − (s − 1)(ε(c) − ε(∅))
                neutral, eta = "", eta - 1
            settings.append({"eta": eta, "erase_from": taken_from})
        samples[positive, neutral] += entry["batch_size"]
    for name in _SHARED:
        if any(other.get(name) != settings[0].get(name) for other in settings):
            raise InputError(
                f"The prompts of {path} differ in {name}, from their {_SHARED[name]}: here it is "
                "one for all, so give each a file."
            )
    if passed_over := [n for n in _PASSED_OVER if any(e[n] != _DEFAULTS[n] for e in entries)]:
        warnings.warn(
            f"{path}: {', '.join(passed_over)} not taken, the model's own size and the method's "
            "own anchoring are.",
            stacklevel=2,
        )
    unit = math.gcd(*samples.values())
    concepts = [
        Concept(positive, kind, phrases=(positive,) * (count // unit), anchor=neutral)
        for (positive, neutral), count in samples.items()
    ]
    mean = round(sum(samples.values()) / len(entries))
    return concepts, settings[0] | {"batch_size": max(1, mean)}


def _read(path: Path) -> list[dict[str, Any]]:
    """The file's prompts, each with what holds for all."""
    found = _parsed(path)
    beside: Mapping[str, Any] = {}
    if isinstance(found, dict):
        # As sd-scripts reads it: prompts; or targets in a slider; or one target
        name = "prompts" if "prompts" in found else "targets"
        if name == "targets" and isinstance(found.get("slider"), dict):
            found = found["slider"]
        beside = {key: value for key, value in found.items() if key != name}
        if name in found:
            found = found[name]
            beside = {key: v for key, v in beside.items() if key not in ("target", "positive")}
        elif {"target", "target_class"} & beside.keys():
            found, beside = [beside], {}
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise InputError(f"{path} must hold a list of LECO's prompts, each with its target.")
    if any("target_class" in entry for entry in found):
        raise InputError(
            f"{path} has a slider (target_class), which pulls a model both ways: give the concept "
            "as target, to erase it."
        )
    if strange := sorted(str(key) for key in beside.keys() - _DEFAULTS.keys()):
        warnings.warn(
            f"{path}: {shown(', '.join(strange))} not known beside the prompts, and not read.",
            stacklevel=3,
        )
    common = {key: value for key, value in beside.items() if key in _DEFAULTS}
    return [common | entry for entry in found]


def _parsed(path: Path) -> Any:
    """What the file's YAML or TOML says."""
    if path.suffix != ".toml":
        return read_yaml(path)
    if sys.version_info < (3, 11):
        raise InputError(f"{path} is TOML, which needs Python 3.11: write it as YAML.")
    import tomllib

    try:
        return tomllib.loads(read_text(path))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise InputError(f"{path} is not TOML: {reason}.") from error


def _checked(where: str, entry: Mapping[str, Any], method: str) -> dict[str, Any]:
    if extra := sorted(str(name) for name in entry.keys() - _DEFAULTS.keys()):
        raise InputError(
            f"{where} has {shown(', '.join(extra))}, which LECO's prompts have not. They have "
            f"{', '.join(_DEFAULTS)}."
        )
    # An empty value in YAML is one that was left out.
    given = {name: value for name, value in entry.items() if value is not None}
    values = _DEFAULTS | given
    for name in ("target", "positive", "neutral"):
        if not isinstance(values[name], str) and (name != "positive" or name in given):
            raise InputError(f"{where}: {name} must be text, and is {shown(values[name])}.")
    for name, hint in _NUMBERS.items():
        try:
            values[name] = read(name, values[name], hint)
        except InputError:
            raise InputError(
                f"{where}: {name} must be a number, and is {shown(values[name])}."
            ) from None
    if str(values["resolution"]) == str(_DEFAULTS["resolution"]):
        values["resolution"] = _DEFAULTS["resolution"]
    for name in _REFUSED:
        known = (_DEFAULTS[name], _ANCHORED) if name == "action" and method == "spm" else ()
        if values[name] != _DEFAULTS[name] and values[name] not in known:
            raise InputError(
                f"{where} has {name} {shown(values[name])}: {method} erases, against the empty "
                f"prompt and with one weight for all, so {name} can only be {_DEFAULTS[name]!r}."
            )
    return values
