"""Guidance: no tensors; the record is all, and what it steers goes by its method's guide."""

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..guidance import Guided, guide_of
from ..parts import described

if TYPE_CHECKING:
    from ..erasure import Erasure
    from ..watch import Put
    from . import Shapes


def shapes(layers: "Shapes", tensors: Mapping[str, Tensor]) -> "Shapes":
    """As ``Kind.shapes``: none."""
    return {}


def put(pipe: Any, erasure: "Erasure", weight: float) -> "tuple[Put, ...]":
    """As ``Kind.put``; its weight is 1, as there is nothing to multiply."""
    return (Guided(described(pipe), partial(guide_of, erasure.record)),)
