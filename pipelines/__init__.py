"""The few mechanisms that every method uses."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .._registry import Registry

if TYPE_CHECKING:
    from .erasure import Erasure as Erasure
    from .generation import cut as cut
    from .generation import generate as generate
    from .load import load_pipeline as load_pipeline
    from .load import load_text_side as load_text_side
    from .parts import Parts as Parts
    from .parts import parts_of as parts_of

# Name to the folder of a model that ships inside. A folder's path or a Hub id needs no entry.
MODELS: Registry[str] = Registry("model", "unsee.models", {"emoji": "unsee.pipelines.load:EMOJI"})

# Method to what makes its guides from a record and the pipeline's parts, once for all
# trajectories: see ``guidance``. No method is known by name here: they stand in it themselves.
GUIDES: Registry[Callable[..., Any]] = Registry("guide", "unsee.guides", {})

_EXPORTS = {
    "Erasure": "erasure",
    "Parts": "parts",
    "cut": "generation",
    "generate": "generation",
    "load_pipeline": "load",
    "load_text_side": "load",
    "parts_of": "parts",
}

__all__ = [
    "GUIDES",
    "MODELS",
    "Erasure",
    "Parts",
    "cut",
    "generate",
    "load_pipeline",
    "load_text_side",
    "parts_of",
]


def __getattr__(name: str) -> object:
    # Lazy: a name's module imports torch, and listing the models must not.
    from importlib import import_module

    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_EXPORTS[name]}", __name__), name)
