"""Guidance: no tensors; the record is all, and what it steers goes by its method's guide."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..guidance import add_guide

if TYPE_CHECKING:
    from ..erasure import Erasure
    from . import Shapes


def shapes(layers: "Shapes", tensors: Mapping[str, Tensor]) -> "Shapes":
    """As ``Kind.shapes``: none."""
    return {}


def put(pipe: Any, erasure: "Erasure") -> Callable[[], None]:
    """As ``Kind.put``."""
    return add_guide(pipe, erasure.record)
