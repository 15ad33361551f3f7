"""The methods: one file each, read beside its paper."""

from collections.abc import Callable, Sequence
from dataclasses import Field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from .._registry import Registry
from ..pipelines import GUIDES

if TYPE_CHECKING:
    from ..pipelines.erasure import Erasure
    from ..pipelines.parts import Parts
    from ..prompts import Concept


class Eraser(Protocol):
    """A method: a frozen dataclass of settings with one verb.

    What it can do is said once, by these attributes of its class; who inherits has their defaults.

    Attributes:
        needs: What ``fit`` needs of the pipeline: the ``model``; or its ``text`` side alone, if it
            asks the denoiser for no prediction and reads of its weights those of
            ``Parts.text_layers`` alone, so that no more need be loaded.
        trains: Whether ``fit`` trains, and takes a ``checkpoint`` and a ``watch`` as well: see
            ``ESD.fit``.
        honours_keep: Whether it holds what concepts keep. If not, ``keep`` is refused.
        keep_setting: The setting that weighs what is kept; where it is 0, ``keep`` is refused too.
        honours_anchor: Whether concepts become their anchors. If not, ``anchor`` is refused.
        presets: Settings by name, such as an author's published ones.
    """

    # which makes it a dataclass for type checkers
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]
    needs: ClassVar[Literal["text", "model"]] = "model"
    trains: ClassVar[bool] = False
    honours_keep: ClassVar[bool] = True
    keep_setting: ClassVar[str | None] = None
    honours_anchor: ClassVar[bool] = True
    presets: ClassVar[dict[str, dict[str, Any]]] = {}

    def fit(
        self,
        parts: "Parts",
        concepts: "Sequence[Concept]",
        *,
        seed: int = 0,
        progress: Callable[[float], None] = lambda done: None,
    ) -> "Erasure":
        """Finds what takes the concepts away. The pipeline is left as it was.

        Args:
            parts: The base model.
            concepts: What goes.
            seed: Of every draw.
            progress: Called with the share that is done, in [0, 1].
        """
        ...


ERASERS: Registry[type[Eraser]] = Registry(
    "method",
    "unsee.erasers",
    {
        "ablation": "unsee.erasers.ablation:Ablation",
        "esd": "unsee.erasers.esd:ESD",
        "mace": "unsee.erasers.mace:MACE",
        "negative": "unsee.erasers.negative:Negative",
        "rece": "unsee.erasers.rece:RECE",
        "safree": "unsee.erasers.safree:SAFREE",
        "sld": "unsee.erasers.sld:SLD",
        "spm": "unsee.erasers.spm:SPM",
        "uce": "unsee.erasers.uce:UCE",
    },
)

GUIDES.add(
    {
        "negative": "unsee.erasers.negative:guide",
        "safree": "unsee.erasers.safree:guide",
        "sld": "unsee.erasers.sld:guide",
    }
)

__all__ = ["ERASERS", "Eraser"]
