"""The erasure file: an ordinary LoRA whose header tells its own story.

For each edited layer it holds ``unet.<module>.lora_A.weight`` (rank × in) and ``.lora_B.weight``
(out × rank), to be added to the weight as B A: what ``load_lora_weights`` of diffusers reads; and,
of all layers or of none, ``.lora_B.bias`` (out,). Layers of text encoders have ``text_encoder.``
in front and are named as in transformers 4. The header has one entry, ``unsee``: JSON of the
``record`` (what it is), of what was ``measured`` when it was made, and the ``sha256`` of both and
the tensors.

That is the kind ``lowrank``. The kind ``dense``, which only unsee reads, holds what is to be added
itself: ``unet.<module>.weight_delta`` for each edited layer, of its weight's shape, and, where the
bias is edited too, ``.bias_delta``. The kind ``guidance`` has no tensors: its record is all.
"""

import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .. import records
from .._errors import InputError
from .._files import write_atomically
from .._reading import loads, plain
from .._settings import Weight, checked, fit, shown
from ..records import Component, Measured, Record
from .architectures import family_of
from .hub import file_of
from .identity import alike, quantised
from .kinds import KINDS
from .kinds.dense import DenseErasures, deltas_of, parameters_of
from .loading import split_weight
from .modules import DENOISERS, ENCODERS, component_of, weights_of
from .parts import described
from .watch import put_on

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
"""What an erasure's tensors may be: others would be cut, or are read by no LoRA."""


@dataclass(frozen=True)
class Erasure:
    """What takes concepts away from one base model.

    Attributes:
        tensors: ``<prefix>.<module>.lora_A.weight`` (rank, in) and ``.lora_B.weight`` (out, rank),
            of a convolution (rank, in, height, width) and (out, rank, 1, 1), and of all or none
            ``.lora_B.bias`` (out,); or, if dense, ``.weight_delta`` and ``.bias_delta``.
        record: What it is.
        measured: What was measured when it was made.
    """

    tensors: Mapping[str, Tensor]
    record: Record
    measured: Measured = field(default_factory=Measured)

    @property
    def name(self) -> str:
        """The concepts' names, joined."""
        return "+".join(concept.name for concept in self.record.concepts)

    @property
    def sha256(self) -> str:
        """By what an erasure is known: its tensors and what made them.

        How long it took, what was measured, by which versions, and what its base is called or
        where it lay, are no part of it: the same erasure made twice has the same.
        """
        names = ("kind", "method", "settings", "concepts", "seed", "transport")
        return checksum(self._tensors(), {n: plain(getattr(self.record, n)) for n in names})

    def _tensors(self) -> dict[str, Tensor]:
        # Not contiguous(): a tensor of one row or column can be so and yet have other strides.
        return {
            name: t.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, t in self.tensors.items()
        }

    @property
    def bytes(self) -> bytes:
        """The file."""
        tensors = self._tensors()
        page = {"record": self.record.to_json(), "measured": self.measured.to_json()}
        ours = page | {"sha256": checksum(tensors, page)}
        # One entry: safetensors writes several in an order that changes from run to run.
        return save(tensors, {"unsee": json.dumps(ours, sort_keys=True)})

    def save(self, path: str | Path) -> None:
        """Writes the file, whole or not at all."""
        write_atomically(Path(path), self.bytes)

    @classmethod
    @checked
    def load(cls, path: str | Path) -> "Erasure":
        """Reads and checks a file.

        Args:
            path: A file; or, as a text, ``owner/name`` or ``owner/name/file.safetensors`` on the
                Hugging Face hub, where no such file is here.

        Raises:
            InputError: The file is missing, truncated or changed, is no erasure, was written in a
                newer format, or lacks a tensor, has one too many, of a wrong shape or not finite.
        """
        path = file_of(path)
        try:
            with safe_open(path, framework="pt") as file:
                header = dict(file.metadata() or {})
                tensors = {name: file.get_tensor(name) for name in file.keys()}
        except (SafetensorError, OSError, ValueError) as error:
            # It names the keys that are in the file, of any length.
            said = " ".join(str(error).split())[:200]
            raise InputError(f"{path} is truncated or no safetensors file: {said}.") from error
        if "unsee" not in header:
            raise InputError(f"{path} is no erasure file: its header has no record of ours.")
        ours = loads(header["unsee"], f"{path}: its record")
        record, measured = records.from_json(ours, str(path))
        try:
            _check_edits(record)
        except InputError as error:
            raise InputError(f"{path} {error}") from error
        _check_tensors(path, tensors, record)
        page = {name: value for name, value in ours.items() if name != "sha256"}
        # Format 1 had its measurements in the record.
        found = checksum(tensors, page if ours["record"]["format"] > 1 else ours["record"])
        if ours.get("sha256") != found:
            raise InputError(
                f"{path} has been changed since it was written: its sha256 is {found[:12]}…, and "
                "its record names another. Make it again, or get it from where it came from."
            )
        return cls(tensors, record, measured)

    def check_base(self, pipe: Any) -> None:
        """Makes sure that the pipeline holds the weights that this was made for.

        Weights are compared by a sample and within a rounding (``pipelines.identity``), so that
        the base may be loaded in another precision. That is no proof against forgery.

        Warns:
            UserWarning: Its weights are quantised, so that they cannot be compared.

        Raises:
            InputError: It does not; the message says which layer, what was wanted and found.
        """
        base = self.record.base
        try:
            _check_edits(self.record)
        except InputError as error:
            raise InputError(f"The erasure {self.name!r} {error}") from error
        made_for = f"This erasure ({self.name}) was made for {base.name!r}"
        coded: list[str] = []
        for prefix, component in base.components.items():
            denoiser = component_of(pipe, prefix)
            if denoiser is None:
                given = type(pipe).__name__
                raise InputError(f"{made_for}, a {base.pipeline}; {given} was given.")
            weights: dict[str, Tensor] = {}
            dense = getattr(denoiser, "dense_erasures", DenseErasures())
            for name, weight in weights_of(denoiser, component.layers).items():
                # What was there before any dense erasure is the base.
                weight = dense.originals.get(f"{name}.weight", weight)
                found = "no such layer" if weight is None else str(tuple(weight.shape))
                wanted = component.layers[name]
                if weight is not None and quantised(weight):
                    coded.append(f"{prefix}.{name}")
                    continue
                if weight is None or tuple(weight.shape) != wanted:
                    raise InputError(
                        f"{made_for}: it has {name}.weight {wanted}, the model given has {found}."
                    )
                weights[name] = weight
            if other := _other_weights(component, weights):
                raise InputError(
                    f"{made_for}, and the model given has other weights in the edited layers: "
                    f"{other}."
                )
            if self.record.kind == "dense":
                parameters = parameters_of(denoiser)
                for name, delta in deltas_of(self).items():
                    parameter = parameters.get(name)
                    if parameter is None or parameter.shape != delta.shape:
                        found = "none" if parameter is None else str(tuple(parameter.shape))
                        raise InputError(
                            f"{made_for}: it has {name} {tuple(delta.shape)}, the model given "
                            f"{found}."
                        )
        if coded:
            warnings.warn(
                f"{coded[0]} and {len(coded) - 1} more weights of the model given are quantised "
                "and cannot be compared with the base's: see to it yourself that it is "
                f"{base.name!r}.",
                stacklevel=3,
            )

    def add_to(self, pipe: Any, weight: float = 1.0) -> Callable[[], None]:
        """Puts it into a pipeline, beside what is there, and returns what takes it out again.

        From then on the pipeline draws without the concepts, or not at all: what takes the erasure
        out by other means than what is returned here and ``unsee.remove`` is an error at the next
        image, and what switches it off is undone with a warning. ``save_pretrained`` writes the
        erasure into the weights, under the base model's names, and says so in the denoiser's
        ``config.json``; a guide and facilitated transport, which weights cannot hold, it refuses.

        Args:
            weight: What its change of the weights is multiplied by, above 0 and at most 10.

        Raises:
            InputError: As ``check_base``, or it is a guide and has a weight; the pipeline is then
                as it was.
        """
        self.check_weight(weight)
        self.check_base(pipe)
        if family_of(type(pipe)) is not None:
            # Which refuses what only in part is a model that is described
            described(pipe)
        return put_on(pipe, self, KINDS[self.record.kind].put(pipe, self, weight), weight)

    def check_weight(self, weight: float) -> None:
        """Makes sure that this can be put on with a weight.

        Raises:
            InputError: It cannot.
        """
        if fit(f"the weight of {self.name!r}", weight, Weight) != 1 and not self.tensors:
            raise InputError(
                f"The erasure {self.name!r} is a guide ({self.record.method}), which has no "
                "weights to multiply: make it again with other settings, and leave its weight out."
            )

    @contextmanager
    def applied(self, pipe: Any, weight: float = 1.0) -> Iterator[None]:
        """The pipeline without the concepts, inside a ``with``; afterwards it is as it was."""
        remove = self.add_to(pipe, weight)
        try:
            yield
        finally:
            remove()


Given = Erasure | str | Path | tuple[Erasure | str | Path, float]
"""An erasure, its file or its id, alone or in a pair with its weight; or the text FILE:WEIGHT."""


def holds_erasure(path: Path) -> bool:
    """Whether a file says that it is an erasure of ours."""
    try:
        with safe_open(path, framework="pt") as file:
            return "unsee" in (file.metadata() or {})
    except (SafetensorError, OSError, ValueError):
        return False


def weighted(given: Given) -> tuple[Erasure, float]:
    """An erasure and its weight, read where it is a file.

    Raises:
        InputError: It cannot be read, or cannot have this weight.
    """
    weight: float | None = None
    if isinstance(given, tuple):
        if len(given) != 2:
            raise InputError(f"{shown(given)} is no pair of an erasure and its weight.")
        given, weight = given
    elif isinstance(given, str):
        given, weight = split_weight(given)
    erasure = given if isinstance(given, Erasure) else Erasure.load(given)
    weight = 1.0 if weight is None else fit(f"the weight of {erasure.name!r}", weight, Weight)
    erasure.check_weight(weight)
    return erasure, weight


def _other_weights(component: Component, weights: Mapping[str, Tensor]) -> str:
    """What tells weights from the base's, in words; empty where they are the base's."""
    if component.sample is None:
        if weights.keys() != component.layers.keys():  # of some of them the hashes say nothing
            return ""
        found = hashes_of_format_1(weights)
        if set(found) & set(component.hashes):
            return ""
        return f"wanted the hash {component.hashes[0][:12]}…, found {found[0][:12]}…"
    others = [
        name
        for name, values in component.sample.items()
        if name in weights and not alike(values, weights[name])
    ]
    if not others:
        return ""
    return f"{others[0]} is another ({len(others)} of {len(weights)} layers are)"


def hashes_of_format_1(weights: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Hashes by which format 1 knew a base's weights (out, in) again in another precision.

    The weights are rounded to bfloat16, as they are and by way of float16: one base loaded as
    float32 shares a hash with itself loaded as float16 or bfloat16.
    """
    hashes = (hashlib.sha256(), hashlib.sha256())
    for name in sorted(weights):
        weight = weights[name].detach().cpu()
        for sha, rounded in zip(hashes, (weight, weight.half()), strict=True):
            sha.update(f"{name} {tuple(weight.shape)}".encode())
            sha.update(rounded.bfloat16().contiguous().view(torch.int16).numpy().tobytes())
    return tuple(dict.fromkeys(sha.hexdigest() for sha in hashes))


def checksum(tensors: Mapping[str, Tensor], page: Any) -> str:
    sha = hashlib.sha256()
    sha.update(json.dumps(page, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        sha.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def _check_edits(record: Record) -> None:
    """Makes sure that this version can apply what a record says is edited.

    Raises:
        InputError: It cannot; the end of the one line, after the file's or the erasure's name.
    """
    if record.kind not in KINDS:
        raise InputError(
            f"is of the kind {shown(record.kind)}, which this version does not know: upgrade "
            "unsee."
        )
    edited = record.base.components
    if others := sorted(edited.keys() - {*DENOISERS, *ENCODERS}):
        raise InputError(
            f"edits the {others[0]}, and this version applies what edits a denoiser "
            f"({' or '.join(DENOISERS)}) or text encoders: upgrade unsee, or make it again."
        )
    if len(two := sorted(edited.keys() & set(DENOISERS))) > 1:
        raise InputError(
            f"edits {' and '.join(two)}, and this version applies what edits one denoiser: "
            "upgrade unsee, or make one erasure for each."
        )
    spoken = sorted(edited.keys() & set(ENCODERS))
    if spoken and (record.kind != "lowrank" or record.transport is not None):
        what = "acts on each prompt by a strength of its own"
        raise InputError(
            f"edits the {spoken[0]} and {what if record.transport else f'is {record.kind}'}, and "
            "this version applies to a text encoder what is lowrank and has one strength: make "
            "it again."
        )
    if record.kind != "guidance" and not record.base.layers:
        raise InputError(
            f"is of the kind {record.kind} and edits no layer, so that it would erase nothing: "
            "make it again."
        )


def _check_tensors(path: Path, tensors: Mapping[str, Tensor], record: Record) -> None:
    wanted = KINDS[record.kind].shapes(record.base.layers, tensors)
    if missing := sorted(set(wanted) - set(tensors)):
        raise InputError(f"{path} lacks {missing[0]} ({len(missing)} missing).")
    if extra := sorted(set(tensors) - set(wanted)):
        raise InputError(
            f"{path} has {shown(extra[0])}, which its record does not ({len(extra)} such)."
        )
    for key, shape in wanted.items():
        tensor = tensors[key]
        if tuple(tensor.shape) != shape or 0 in shape:
            raise InputError(f"{path}: {key} has shape {tuple(tensor.shape)}, wanted {shape}.")
        if tensor.dtype not in FLOATS:
            raise InputError(
                f"{path}: {key} is of {str(tensor.dtype).removeprefix('torch.')}, wanted one of "
                f"{', '.join(str(t).removeprefix('torch.') for t in FLOATS)}."
            )
        if not torch.isfinite(tensor).all():
            raise InputError(f"{path}: {key} has values that are not finite.")
