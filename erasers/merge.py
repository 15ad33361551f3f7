"""One erasure from several of one base, which then load as one file.

Two files act together when both are loaded. Merged they are one LoRA: of erasures that add B₁A₁
and B₂A₂ to a layer, the sum is that of [B₁ B₂] and [A₁; A₂], whose rank is brought down to what
keeps the sum to a residual. The factors alone are needed, no model: with QR decompositions
B = Q R and Aᵀ = P S, the singular values of B A are those of the small R Sᵀ.

A sum erases each concept as if the others were still there. Closed forms need not be added up:
``flow.merge`` solves them again, all concepts together.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .._errors import InputError
from .._reading import plain
from .._settings import NotNegative, check
from ..pipelines.erasure import Erasure
from ..pipelines.identity import same_sample
from ..pipelines.kinds.lowrank import has_biases
from ..prompts import Concept
from ..records import Base, Component, Measured
from ..training.record import Svd, thinned, versions


@dataclass(frozen=True)
class Sum:
    """How erasures are added up.

    Attributes:
        residual: How much of a low-rank sum may be left out, relative in Frobenius' norm; 0 keeps
            all of it. Dense erasures are added as they are.
    """

    residual: NotNegative = 1e-3

    def __post_init__(self) -> None:
        check(self)

    def of(self, erasures: Sequence[Erasure]) -> Erasure:
        """The erasure that does what all of them do together, where they are one after another.

        Its record names each, with its hash, method, settings and concepts, as the setting ``of``.

        Raises:
            InputError: They cannot be added: see ``check_alike``; or they are guides, or of both
                kinds of weights, or one of them acts on each prompt by a strength of its own.
        """
        base = check_alike(erasures)
        kinds = {erasure.record.kind for erasure in erasures}
        for erasure in erasures:
            if erasure.record.kind == "guidance":
                raise InputError(
                    f"{erasure.name} is a guide ({erasure.record.method}) and has no weights that "
                    "could be added to others: load it beside them."
                )
            if erasure.record.transport is not None:
                raise InputError(
                    f"{erasure.name} has a strength of its own for each prompt (transport), which "
                    "one sum of weights cannot have: load it beside the others."
                )
        if len(kinds) > 1:
            raise InputError(
                "Some of these erasures are dense and some are low-rank, and one file holds one "
                "kind: load them beside each other."
            )
        measured = Measured()
        tensors: dict[str, Tensor] = {}
        if kinds == {"dense"}:
            for erasure in erasures:
                for name, delta in erasure.tensors.items():
                    tensors[name] = tensors[name] + delta if name in tensors else delta
        else:
            pairs, residual = thinned(
                {name: _svd(_factors(erasures, name)) for name in base.layers},
                base.layers,
                self.residual,
            )
            for name, (a, b) in pairs.items():
                tensors[f"{name}.lora_A.weight"] = a.float()
                tensors[f"{name}.lora_B.weight"] = b.float()
            if has_biases(key for erasure in erasures for key in erasure.tensors):
                tensors |= {f"{n}.lora_B.bias": _bias(erasures, n) for n in base.layers}
            measured = Measured(residual=residual)
        of = [
            {
                "sha256": erasure.sha256,
                "method": erasure.record.method,
                "settings": plain(erasure.record.settings),
                "concepts": [concept.name for concept in erasure.record.concepts],
                "seed": erasure.record.seed,
            }
            for erasure in erasures
        ]
        record = replace(
            erasures[0].record,
            method="merge",
            settings={**plain(self), "how": "sum", "of": of},
            concepts=concepts_of(erasures),
            seed=0,
            base=base,
            versions=versions(),
        )
        return Erasure(tensors, record, measured)


def concepts_of(erasures: Sequence[Erasure]) -> tuple[Concept, ...]:
    """All that goes.

    Raises:
        InputError: A concept goes twice, or one erasure keeps what another takes away.
    """
    concepts = [concept for erasure in erasures for concept in erasure.record.concepts]
    names = [concept.name for concept in concepts]
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"{twice[0]!r} is erased by two of these erasures: leave one out.")
    gone = {phrase: concept.name for concept in concepts for phrase in concept.phrases}
    for concept in concepts:
        if clash := [phrase for phrase in concept.keep if phrase in gone]:
            raise InputError(
                f"{concept.name!r} is erased so that {clash[0]!r} stays, and another of these "
                f"erasures takes {gone[clash[0]]!r} away: make it again without keeping it."
            )
    return tuple(concepts)


def check_alike(erasures: Sequence[Erasure]) -> Base:
    """The base that all are for, with all the layers that any of them edits.

    Raises:
        InputError: There are fewer than two, or they are for other bases, or edit no layer in
            common, so that nothing tells whether their base is one.
    """
    if len(erasures) < 2:
        raise InputError("Name at least two erasures to merge.")
    whole, first = erasures[0].record.base, erasures[0]
    for erasure in erasures[1:]:
        base = erasure.record.base
        components: dict[str, Component] = dict(whole.components)
        # A guide is bound to no base.
        shared = not base.components or not components
        for prefix, one in base.components.items():
            other = components.get(prefix, Component({}, {}))
            both = one.layers.keys() & other.layers.keys()
            if one.sample is None or other.sample is None:
                raise InputError(
                    "An erasure of format 1 does not say enough of its base to be merged: make "
                    "it again."
                )
            for name in both:
                alike = same_sample(one.sample[name], other.sample[name])
                if one.layers[name] != other.layers[name] or not alike:
                    raise InputError(
                        f"{first.name} was made for {whole.name!r} and {erasure.name} for "
                        f"{base.name!r}, which has another {name}: only erasures of one base can "
                        "be merged."
                    )
            shared = shared or bool(both)
            components[prefix] = Component(
                {**other.layers, **one.layers}, {**other.sample, **one.sample}
            )
        if not shared:
            raise InputError(
                f"{first.name} and {erasure.name} edit no layer in common, so that nothing tells "
                "whether they are of one base: load them beside each other."
            )
        whole = replace(whole, components=components)
    return whole


def _factors(erasures: Sequence[Erasure], name: str) -> tuple[Tensor, Tensor]:
    """A (ranks, in) and B (out, ranks) of the sum in a layer, float64."""
    a, b = (
        [
            erasure.tensors[key].double()
            for erasure in erasures
            if (key := f"{name}.lora_{side}.weight") in erasure.tensors
        ]
        for side in "AB"
    )
    return torch.cat([one.flatten(1) for one in a]), torch.cat([one.flatten(1) for one in b], 1)


def _bias(erasures: Sequence[Erasure], name: str) -> Tensor:
    """The sum of what is added to a layer's bias, (out,); zeros where nothing is."""
    key, side = f"{name}.lora_B.bias", f"{name}.lora_B.weight"
    found = [erasure.tensors[key].float() for erasure in erasures if key in erasure.tensors]
    out = next(len(erasure.tensors[side]) for erasure in erasures if side in erasure.tensors)
    return sum(found, torch.zeros(out))


def _svd(factors: tuple[Tensor, Tensor]) -> Svd:
    """The singular value decomposition of B A, by way of the factors."""
    a, b = factors
    q, r = torch.linalg.qr(b)
    p, s = torch.linalg.qr(a.T)
    u, values, vh = torch.linalg.svd(r @ s.T, full_matrices=False)
    return q @ u, values, vh @ p.T


def joint(erasures: Sequence[Erasure]) -> tuple[str, Mapping[str, Any], int]:
    """Method, settings and seed by which all concepts can be solved for together.

    Raises:
        InputError: They are not all made by one method with the same settings and seed.
    """
    check_alike(erasures)
    records = [erasure.record for erasure in erasures]
    method, settings, seed = records[0].method, records[0].settings, records[0].seed
    for record in records[1:]:
        if record.method != method:
            raise InputError(
                f"A joint merge solves erasures of one method together, and these are of {method} "
                f"and {record.method}: add them up (sum), or make one of them again."
            )
        if others := sorted(
            name
            for name in settings.keys() | record.settings.keys()
            if settings.get(name) != record.settings.get(name)
        ):
            raise InputError(
                f"A joint merge needs erasures of the same settings, and these have another "
                f"{others[0]} ({settings.get(others[0])!r}, {record.settings.get(others[0])!r}): "
                "add them up (sum), or make one of them again."
            )
        if record.seed != seed:
            raise InputError(
                f"A joint merge needs erasures of the same seed, and these have {seed} and "
                f"{record.seed}: add them up (sum), or make one of them again."
            )
    return method, settings, seed
