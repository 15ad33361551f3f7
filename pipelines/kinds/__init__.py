"""The kinds of erasure, a file each: its tensors' shapes, and how it is put on and watched."""

from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol, cast

from torch import Tensor

from . import dense, guidance, lowrank

if TYPE_CHECKING:
    from ..erasure import Erasure
    from ..watch import Put

Shapes = dict[str, tuple[int, ...]]


class Kind(Protocol):
    """What the module of a kind has."""

    @staticmethod
    def shapes(layers: Shapes, tensors: Mapping[str, Tensor]) -> Shapes:
        """The tensors that a file must have, by name, for layers whose weights have these shapes.

        Args:
            layers: ``<prefix>.<module>`` to the shape of its weight (out, …).
            tensors: Those that it has, where they leave something open, such as the rank.
        """
        ...

    @staticmethod
    def put(pipe: Any, erasure: "Erasure", weight: float) -> "tuple[Put, ...]":
        """Puts an erasure whose base was checked into a pipeline, multiplied by a weight.

        Returns:
            One for each component.

        Raises:
            InputError: It cannot be put there; the pipeline is then as it was.
        """
        ...


_MODULES: dict[str, ModuleType] = {"lowrank": lowrank, "dense": dense, "guidance": guidance}
KINDS: Mapping[str, Kind] = {name: cast(Kind, module) for name, module in _MODULES.items()}

__all__ = ["KINDS", "Kind", "Shapes"]
