"""Weaker erasures: all that is on acts at a share of its weight."""

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from ...pipelines.weaken import weighed
from .switch import prompt as prompt

if TYPE_CHECKING:
    from ..attacked import Attacked


def changes_model(attacked: "Attacked") -> bool:
    return attacked.record.strength is not None


def applied(attacked: "Attacked", pipe: Any) -> AbstractContextManager[None]:
    strength = attacked.record.strength
    return nullcontext() if strength is None else weighed(pipe, strength)
