"""What an erasure is, and, apart from that, what was measured when it was made.

The header of an erasure file holds a ``Record`` and a ``Measured`` as JSON. Both are checked when
they are read: every field, its type and its range; and what format 1 wrote is brought up to
``FORMAT``. The record is the erasure's identity together with its tensors; what was measured,
seconds and memory above all, is another each time and no part of it.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from ._errors import InputError
from ._reading import plain, read
from ._settings import NotNegative, Range, shown
from .prompts import Concept

FORMAT = 2
"""Of the record in an erasure file. A greater one is refused, a smaller one upgraded."""


Shape = tuple[Annotated[int, Range(least=1, most=2**31)], ...]


@dataclass(frozen=True)
class Component:
    """What an erasure edits in one component of a pipeline, and whose weights it is for.

    Attributes:
        layers: The edited layers' names in the component, to the shape of their weight (out, …).
        sample: Of each layer, values of its weight in bfloat16: see ``pipelines.identity``. None
            in files of format 1.
        hashes: In files of format 1: SHA-256 of all weights rounded to bfloat16, as they are and
            by way of float16. Empty in others.
    """

    layers: Mapping[str, Shape]
    sample: Mapping[str, bytes] | None
    hashes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if odd := [name for name in self.layers if not re.fullmatch(r"[\w.-]{1,300}", name)]:
            raise InputError(f"{shown(odd[0])} is no name of a layer.")
        if bare := [name for name, shape in self.layers.items() if not shape]:
            raise InputError(f"layer {bare[0]!r} has no shape.")
        if (self.sample is None) != bool(self.hashes):
            raise InputError("a base has a sample of its weights, or hashes by format 1.")
        if self.sample is not None:
            if self.sample.keys() != self.layers.keys():
                raise InputError("the base's sample is not of the layers that are edited.")
            if cut := [name for name, values in self.sample.items() if len(values) % 2]:
                raise InputError(f"the sample of {cut[0]!r} has half a value.")
            if none := [name for name, values in self.sample.items() if not values]:
                raise InputError(f"the sample of {none[0]!r} is empty.")

    @property
    def digest(self) -> str:
        """What stands for the sample in few letters."""
        if self.sample is None:
            return self.hashes[0]
        sha = hashlib.sha256()
        for name, values in sorted(self.sample.items()):
            sha.update(f"{name} {self.layers[name]}".encode() + values)
        return sha.hexdigest()


@dataclass(frozen=True)
class Base:
    """The model that an erasure was made for.

    Attributes:
        name: What it was called or where it lay: a label, and no part of its identity.
        pipeline: The pipeline's class.
        components: What is edited, by the component's name in the pipeline, ``unet`` or
            ``text_encoder``; that is also what the file puts before its layers' names. Empty
            where no weight is edited.
    """

    name: str
    pipeline: str
    components: Mapping[str, Component]

    def __post_init__(self) -> None:
        for component in self.components:
            if not re.fullmatch("[a-z][a-z0-9_]{0,99}", component):
                raise InputError(f"{shown(component)} is no name of a pipeline's component.")

    @property
    def layers(self) -> dict[str, Shape]:
        """All edited layers as the file names them, ``unet.<module>``, to their weight's shape."""
        return {
            f"{prefix}.{name}": shape
            for prefix, component in self.components.items()
            for name, shape in component.layers.items()
        }


@dataclass(frozen=True)
class Transport:
    """How strongly a low-rank erasure acts on each prompt: see ``pipelines.transport``.

    Attributes:
        similarity: What of prompt and phrases is compared.
        phrases: The erasure's, of which the nearest counts.
    """

    similarity: Literal["both", "sentence", "token"]
    phrases: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.phrases:
            raise InputError("A transport names no phrase: nothing would be erased.")


@dataclass(frozen=True)
class Record:
    """What an erasure is.

    Attributes:
        kind: A name in ``pipelines.kinds.KINDS``.
        method: A name in ``erasers.ERASERS``, or of another package's method.
        settings: The method's, as JSON has them.
        concepts: What goes, at least one.
        seed: Of every draw.
        base: The model that it was made for.
        versions: Of the packages that made it.
        transport: Where each prompt has a strength of its own.
    """

    kind: str
    method: str
    settings: Mapping[str, Any]
    concepts: tuple[Concept, ...]
    seed: int
    base: Base
    versions: Mapping[str, str]
    transport: Transport | None = None

    def __post_init__(self) -> None:
        if not self.concepts:
            raise InputError("A record names no concept: an erasure takes at least one away.")

    def to_json(self) -> dict[str, Any]:
        page: dict[str, Any] = plain(self)
        return {"format": FORMAT} | page


@dataclass(frozen=True)
class Model:
    """What made a gallery's images, beside erasures and settings: see ``pipelines.identity``.

    Attributes:
        name: What it was called or where it lay: a label, and no part of its identity.
        pipeline: The pipeline's class.
        dtype: Of its weights, ``float32``.
        components: A hash of each component but the scheduler, by name.
        scheduler: Its class and all its settings, by name.
    """

    name: str
    pipeline: str
    dtype: str
    components: Mapping[str, str]
    scheduler: Mapping[str, Any]


@dataclass(frozen=True)
class Effect:
    """How far an erasure moved the predictions: see ``erasers.effect``.

    Attributes:
        moved: On the concept, as a share of the way to its anchor's.
        kept_moved: On what is kept, relative; None where nothing is kept.
        anchor: How far the anchor is from the concept, relative; None where no words were named.
    """

    moved: float
    kept_moved: float | None
    anchor: float | None = None


@dataclass(frozen=True)
class Moved:
    """How far something moved under one erasure and under several at once, as ``Effect`` says.

    Attributes:
        alone: Under the erasure that is about it; of what is kept, the most under any one.
        together: Under all of them.
    """

    alone: float
    together: float


@dataclass(frozen=True)
class Interference:
    """What several erasures do together, against each alone: see ``erasers.effect``.

    Attributes:
        concepts: By concept, the share of the way to its anchor's.
        kept: By phrase that must stay, relative.
    """

    concepts: Mapping[str, Moved]
    kept: Mapping[str, Moved]


@dataclass(frozen=True)
class Loss:
    """A training's loss, the means of its first and its last tenth."""

    first: float
    last: float


@dataclass(frozen=True)
class Debiased:
    """What debiasing saw and did, by concept and attribute: see ``erasers.debias``.

    Attributes:
        desired: The share of its images that is to show each attribute.
        observed: The shares that were seen, a mapping a round; the base's first.
        pushes: α.
    """

    desired: Mapping[str, float]
    observed: tuple[Mapping[str, Mapping[str, float]], ...]
    pushes: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Measured:
    """What was measured when an erasure was made: no part of what it is.

    Attributes:
        seconds: That ``fit`` took.
        peak_memory: Bytes, of the GPU if it ran there, else of the process.
        effect: By concept; None where nobody looked.
        loss: Of a training.
        residual: How much of a dense edit its low rank leaves out, relative in Frobenius' norm.
        debias: Of debiasing.
    """

    seconds: NotNegative | None = None
    peak_memory: Annotated[int, Range(least=0)] | None = None
    effect: Mapping[str, Effect] | None = None
    loss: Loss | None = None
    residual: NotNegative | None = None
    debias: Debiased | None = None

    def to_json(self) -> dict[str, Any]:
        page: dict[str, Any] = plain(self)
        return page


def from_json(page: Any, where: str) -> tuple[Record, Measured]:
    """The record and the measurements of a header, brought up to ``FORMAT``.

    Args:
        page: A mapping with ``record`` and, since format 2, ``measured``.
        where: The file, for the message.

    Raises:
        InputError: Something in it is not right, or it was written in a newer format.
    """
    record = page.get("record") if isinstance(page, Mapping) else None
    if not isinstance(record, Mapping):
        raise InputError(f"{where} has a record that is no mapping: make the erasure again.")
    version = record.get("format")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise InputError(f"{where} has a record without its format: make the erasure again.")
    if version > FORMAT:
        raise InputError(
            f"{where} has format {min(version, 2**64)}, and this version reads up to {FORMAT}: "
            "upgrade unsee, or make the erasure again."
        )
    if version == 1:
        return _from_1(record, f"{where}: record")
    ours = {name: value for name, value in record.items() if name != "format"}
    return (
        read(Record, ours, f"{where}: record"),
        read(Measured, page.get("measured"), f"{where}: measured"),
    )


@dataclass(frozen=True)
class _Base1:
    name: str
    prefix: str
    fingerprint: tuple[str, ...]
    layers: Mapping[str, Shape]
    # "class" is a word of Python's own
    pipeline: str


@dataclass(frozen=True)
class _Record1:
    """What format 1 wrote, measurements among it."""

    format: int
    kind: str
    method: str
    settings: Mapping[str, Any]
    concepts: tuple[Concept, ...]
    seed: int
    base: _Base1
    versions: Mapping[str, str]
    transport: Transport | None = None
    seconds: NotNegative | None = None
    peak_memory: Annotated[int, Range(least=0)] | None = None
    effect: Mapping[str, Effect] | None = None
    loss: Loss | None = None
    residual: NotNegative | None = None
    debias: Debiased | None = None


def _from_1(page: Mapping[str, Any], where: str) -> tuple[Record, Measured]:
    base = page.get("base")
    if isinstance(base, Mapping) and "class" in base:
        named = {"pipeline" if key == "class" else key: value for key, value in base.items()}
        page = {**page, "base": named}
    old = read(_Record1, page, where, defaults=True)
    # A guide was bound to no base, and had the hash of nothing.
    edits = {old.base.prefix: Component(old.base.layers, None, old.base.fingerprint)}
    base = Base(old.base.name, old.base.pipeline, edits if old.base.layers else {})
    record = Record(
        old.kind,
        old.method,
        old.settings,
        old.concepts,
        old.seed,
        base,
        old.versions,
        old.transport,
    )
    measured = Measured(
        old.seconds, old.peak_memory, old.effect, old.loss, old.residual, old.debias
    )
    return record, measured
