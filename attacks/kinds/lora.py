"""A LoRA of somebody else's on top of the erasures, at a weight of its own."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..._errors import InputError
from ..._files import sha256_of
from ...pipelines.load import lora_on
from .switch import prompt as prompt

if TYPE_CHECKING:
    from ..attacked import Attacked


def changes_model(attacked: "Attacked") -> bool:
    return attacked.record.lora is not None


def applied(attacked: "Attacked", pipe: Any) -> AbstractContextManager[None]:
    record = attacked.record
    if record.lora is None or record.lora_file is None:
        return nullcontext()
    path = Path(record.lora_file)
    if not path.is_file() or sha256_of(path) != record.lora:
        raise InputError(
            f"The LoRA {path} that this attack puts on top is not there any more, or another: "
            f"wanted the file whose SHA-256 is {record.lora[:12]}…"
        )
    return lora_on(pipe, str(path), 1.0 if record.strength is None else record.strength)
