"""How what an attack found is put on, a file each: on a prompt, on the pipeline, or on both."""

from contextlib import AbstractContextManager
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol, cast

from . import lora, lowrank, rounded, strength, switch, text, token

if TYPE_CHECKING:
    from ...prompts import Prompt
    from ..attacked import Attacked


class Kind(Protocol):
    """What the module of a kind has."""

    @staticmethod
    def changes_model(attacked: "Attacked") -> bool:
        """Whether images depend on more of it than the prompts say."""
        ...

    @staticmethod
    def prompt(attacked: "Attacked", prompt: "Prompt") -> "Prompt":
        """A row of the suite, attacked: of the same id, seed and labels."""
        ...

    @staticmethod
    def applied(attacked: "Attacked", pipe: Any) -> AbstractContextManager[None]:
        """The pipeline under the attack, inside a ``with``; afterwards it is as it was."""
        ...


_MODULES: dict[str, ModuleType] = {
    "lora": lora,
    "lowrank": lowrank,
    "rounded": rounded,
    "strength": strength,
    "switch": switch,
    "text": text,
    "token": token,
}
KINDS: dict[str, Kind] = {name: cast(Kind, module) for name, module in _MODULES.items()}

__all__ = ["KINDS", "Kind"]
