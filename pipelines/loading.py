"""How a model is loaded: what every command and function that loads one takes by the same names.

Nothing here imports torch, so that the command line can say what there is at once.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .._errors import InputError
from .._settings import Weight, check, fit, shown

Dtype = Literal["float32", "float16", "bfloat16"]
Offload = Literal["model", "sequential"]


def split_weight(text: str) -> tuple[str, float | None]:
    """A file and its weight, from ``FILE`` or ``FILE:WEIGHT``.

    Only a number after the last colon is a weight. A file that is called so is a file, and what
    follows a single letter is a path of Windows.

    >>> split_weight("van-gogh.safetensors:0.8")
    ('van-gogh.safetensors', 0.8)
    >>> split_weight("C:/erasures/a.safetensors"), split_weight("C:1")
    (('C:/erasures/a.safetensors', None), ('C:1', None))

    Raises:
        InputError: The weight is no number above 0 and at most 10.
    """
    file, colon, number = text.rpartition(":")
    if not colon or len(file) < 2 or os.path.exists(text):
        return text, None
    try:
        weight = float(number)
    except ValueError:
        return text, None
    return file, fit(f"the weight of {shown(file)}", weight, Weight)


@dataclass(frozen=True)
class Loading:
    """How a model is loaded.

    Attributes:
        variant: Of a folder or an id, which files: "fp16" reads
            ``diffusion_pytorch_model.fp16.safetensors``; None is those without a variant.
        config: Of a single checkpoint, the folder of a diffusers model of its architecture: its
            configurations, its tokenizers, and the components that the checkpoint lacks.
        dtype: Of the weights.
        device: Where to; None is the accelerator if there is one, else the CPU.
        offload: Whether components ("model") or their layers ("sequential") are on the
            accelerator only while they run. Erasures are put on before.
        lora: LoRAs of one's own as ``FILE`` or ``FILE:WEIGHT``, put on before the erasures. They
            are part of the model that is drawn with, and erasing starts without them.
    """

    variant: str | None = None
    config: str | Path | None = None
    dtype: Dtype = "float32"
    device: str | None = None
    offload: Offload | None = None
    lora: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check(self)
        for one in self.lora:
            split_weight(one)

    @property
    def reading(self) -> dict[str, Any]:
        """What says which files are read, and as what: all that a text side needs."""
        return {"variant": self.variant, "config": self.config, "dtype": self.dtype}

    @property
    def drawing(self) -> dict[str, Any]:
        """The same for a whole model, in memory: what moves it comes after its erasures."""
        device = "cpu" if self.offload else self.device
        return self.reading | {"device": device, "lora": self.lora}

    def check_exporting(self) -> None:
        """Makes sure that a model that is loaded in this way can be written with an erasure.

        Raises:
            InputError: It cannot.
        """
        if self.lora:
            raise InputError(
                "What is exported is the base model with the erasure alone, without LoRAs: leave "
                "lora out."
            )
        if self.offload:
            raise InputError(
                "Exporting reads the weights in memory, and offloading is for making images: "
                "leave offload out."
            )

    def check_erasing(self) -> None:
        """Makes sure that a model that is loaded in this way can be erased from.

        Raises:
            InputError: It cannot.
        """
        if self.lora:
            raise InputError(
                "Erasing starts from the base model, without LoRAs: leave lora out, and give it "
                "where images are made."
            )
        if self.offload:
            raise InputError(
                "Erasing reads the weights in memory, and offloading is for making images: leave "
                "offload out."
            )
