"""What an attack came to: a small file, as an erasure is.

One safetensors file. Its tensors are as its kind says (``unsee.attacks.kinds``); a learnt token's
file is an ordinary one of textual inversion, which ``load_textual_inversion`` of diffusers reads.
The header's one entry, ``unsee-attack``, is JSON of the ``record``, of the ``seconds`` that it
took, and of the ``sha256`` of the record and the tensors.
"""

import dataclasses
import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .._errors import InputError
from .._files import write_atomically
from .._reading import loads, plain, read
from .._settings import NotNegative, Range, checked, shown
from ..pipelines.erasure import checksum
from ..prompts import Concept, Suite
from ..training.record import versions
from . import Attack, Touch
from .kinds import KINDS

FORMAT = 1
"""Of an attack's file. A greater one is refused."""

ENTRY = "unsee-attack"
"""The header's entry."""

Number = Annotated[int, Range(least=0)]
Bits = Literal[16, 8, 4]


@dataclass(frozen=True)
class Spent:
    """What an attack has spent so far.

    Attributes:
        rows: Rows of the denoiser: one a row forward, and two more where it went back.
        steps: Of its search; or that the base made in the erased model's place.
        looks: Images that a detector looked at, which could stop it or choose.
        images: Images of the concept that it was given.
    """

    rows: Number = 0
    steps: Number = 0
    looks: Number = 0
    images: Number = 0


@dataclass(frozen=True)
class Record:
    """What an attack is, and what it came to at one rung.

    Attributes:
        attack: A name in ``attacks.ATTACKS``, or of another package's.
        kind: A name in ``attacks.kinds.KINDS``: how it is put on.
        touches: What it changes.
        settings: The attack's, as JSON has them.
        concept: What is to come back.
        seed: Of every draw.
        spent: Its budget so far.
        own_words: Whether the concept's own words were allowed; None where it made no words.
        text: What stands in the place of the concept's phrases in a prompt; None leaves them.
        prompts: Whole prompts, by the prompt in whose place they stand.
        left: Prompts that it could put nothing into, and left as they are.
        step: The denoising step, from 0, at which the erasure comes on; None is before the first.
        then: The text that stands in the place of the concept's phrases from that step on, and
            of a whole prompt that has none of them.
        strength: What the erasures' weights are multiplied by, or those of ``lora``.
        bits: That a weight of the denoiser has, the erasures merged into it: 16 are bfloat16's.
        lora: SHA-256 of the file of a LoRA that is put on top.
        lora_file: Where that was.
        images: SHA-256 of the images that it was given.
        fitted_on: What it was fitted on: a hash of the model by ``model``, of each erasure by its
            name.
        versions: Of the packages that made it.
    """

    attack: str
    kind: str
    touches: Touch
    settings: Mapping[str, Any]
    concept: Concept
    seed: int
    spent: Spent = Spent()
    own_words: bool | None = None
    text: str | None = None
    prompts: Mapping[str, str] = field(default_factory=dict)
    left: tuple[str, ...] = ()
    step: Number | None = None
    then: str | None = None
    strength: NotNegative | None = None
    bits: Bits | None = None
    lora: str | None = None
    lora_file: str | None = None
    images: tuple[str, ...] = ()
    fitted_on: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        page: dict[str, Any] = plain(self)
        return {"format": FORMAT} | page


def record_of(
    attack: Attack, name: str, kind: str, concept: Concept, seed: int, **found: Any
) -> Record:
    """The record of what an attack came to at one rung.

    Args:
        attack: Its settings, which say what it touches and whether own words were allowed.
        name, kind, concept, seed: As ``Record``.
        found: What else a ``Record`` has.
    """
    return Record(
        attack=name,
        kind=kind,
        touches=attack.touches,
        settings=plain(attack),
        concept=concept,
        seed=seed,
        own_words=attack.own_words,
        versions=versions(),
        **found,
    )


@dataclass(frozen=True)
class Attacked:
    """An attack that was fitted, at one rung of its budget.

    Attributes:
        record: What it is.
        tensors: As its kind has them.
        seconds: That it took so far, its own looks and drawing included; whoever runs ``fit``
            measures them, and they are no part of what it is.
    """

    record: Record
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def sha256(self) -> str:
        """By what it is known: all that images depend on, and nothing else of it."""
        names = ("kind", "concept", "text", "prompts", "step", "then", "strength", "bits", "lora")
        return checksum(self._tensors(), {n: plain(getattr(self.record, n)) for n in names})

    @property
    def changes_model(self) -> bool:
        """Whether it changes more than prompts, so that images are known by it."""
        return KINDS[self.record.kind].changes_model(self)

    def _tensors(self) -> dict[str, Tensor]:
        return {name: t.detach().cpu().clone() for name, t in self.tensors.items()}

    def suite(self, suite: Suite) -> Suite:
        """The attacked suite: the same rows, seeds and labels, with other prompts or inputs."""
        prompts = tuple(KINDS[self.record.kind].prompt(self, p) for p in suite.prompts)
        return dataclasses.replace(suite, prompts=prompts)

    def applied(self, pipe: Any) -> AbstractContextManager[None]:
        """The pipeline under the attack, inside a ``with``; afterwards it is as it was.

        Raises:
            InputError: It cannot be put on this pipeline.
        """
        return KINDS[self.record.kind].applied(self, pipe)

    @property
    def bytes(self) -> bytes:
        """The file."""
        tensors = self._tensors()
        page = {"record": self.record.to_json(), "seconds": self.seconds}
        ours = page | {"sha256": checksum(tensors, page)}
        return save(tensors, {ENTRY: json.dumps(ours, sort_keys=True)})

    def save(self, path: str | Path) -> None:
        """Writes the file, whole or not at all."""
        write_atomically(Path(path), self.bytes)

    @classmethod
    @checked
    def load(cls, path: str | Path) -> "Attacked":
        """Reads and checks a file.

        Raises:
            InputError: It is missing, truncated or changed, is no attack's, or was written in a
                newer format.
        """
        try:
            with safe_open(path, framework="pt") as file:
                header = dict(file.metadata() or {})
                tensors = {name: file.get_tensor(name) for name in file.keys()}
        except (SafetensorError, OSError, ValueError) as error:
            said = " ".join(str(error).split())[:200]
            raise InputError(f"{path} is truncated or no safetensors file: {said}.") from error
        if ENTRY not in header:
            raise InputError(f"{path} is no attack's file: its header has no record of ours.")
        ours = loads(header[ENTRY], f"{path}: its record")
        page = read(_Page, ours, str(path))
        version = page.record.get("format")
        if type(version) is not int or not 1 <= version <= FORMAT:
            raise InputError(
                f"{path} has format {shown(version)}; this version of unsee reads {FORMAT}."
            )
        given = {name: value for name, value in page.record.items() if name != "format"}
        record = read(Record, given, str(path))
        if record.kind not in KINDS:
            raise InputError(
                f"{path} is of the kind {shown(record.kind)}, which this version does not know: "
                "upgrade unsee."
            )
        found = checksum(tensors, {"record": page.record, "seconds": page.seconds})
        if page.sha256 != found:
            raise InputError(
                f"{path} has been changed since it was written: its sha256 is {found[:12]}…, and "
                "its record names another. Make it again, or get it from where it came from."
            )
        return cls(record, tensors, page.seconds)


def holds_attack(path: Path) -> bool:
    """Whether a file says that it is what an attack found."""
    try:
        with safe_open(path, framework="pt") as file:
            return ENTRY in (file.metadata() or {})
    except (SafetensorError, OSError, ValueError):
        return False


@dataclass(frozen=True)
class _Page:
    """The header's entry."""

    record: Mapping[str, Any]
    seconds: NotNegative
    sha256: str
