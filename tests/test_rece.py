"""RECE's d × d arithmetic, beside the published loop over the layers written out."""

from typing import Any

import pytest
import torch
from torch import Tensor

from unsee._errors import InputError
from unsee.erasers.rece import RECE, adversary
from unsee.erasers.uce import UCE
from unsee.pipelines import parts_of
from unsee.prompts import Concept

CONCEPTS = [Concept("van gogh", "style", keep=("monet",))]


def edited(weight: Tensor, goes: Tensor, becomes: Tensor, stays: Tensor) -> Tensor:
    """One edit with λ = s_p = 0.1 and s_e = 1, as the dense formula has it."""
    left = 0.1 * weight + (weight @ becomes.T) @ goes + 0.1 * (weight @ stays.T) @ stays
    right = 0.1 * torch.eye(weight.shape[1], dtype=weight.dtype)
    right = right + goes.T @ goes + 0.1 * stays.T @ stays
    return torch.matmul(left, torch.linalg.inv(right))


@pytest.mark.parametrize(("epochs", "hold"), [(0, False), (1, False), (3, False), (3, True)])
def test_it_is_the_loop_over_the_layers(pipe: Any, epochs: int, hold: bool) -> None:
    settings = RECE(epochs=epochs, hold=hold, residual=1e-9)
    parts = parts_of(pipe)
    rows = settings.first().rows(parts, CONCEPTS)["sequence"]
    whole, becomes = settings.first().whole(parts, CONCEPTS)["sequence"]
    old = {
        name: layer.weight.detach().double()
        for name, layer in parts.readers()["sequence"].layers.items()
    }
    new = {name: edited(w, rows.sources, rows.targets, rows.kept) for name, w in old.items()}
    eye = torch.eye(whole.shape[1], dtype=torch.float64)
    for _ in range(epochs):
        left = sum((w.T @ w for w in new.values()), 0.1 * eye)
        right = sum(new[name].T @ old[name] for name in old)
        found = (torch.linalg.inv(left) @ right @ whole.T).T
        goes, comes = (found, becomes)
        if hold:
            goes, comes = torch.cat([rows.sources, found]), torch.cat([rows.targets, becomes])
        new = {name: edited(w, goes, comes, rows.kept) for name, w in new.items()}
    m, erasure = settings.matrices(parts, CONCEPTS)["sequence"], settings.fit(parts, CONCEPTS)
    for name, w in old.items():
        torch.testing.assert_close(w @ m, new[name], rtol=0, atol=1e-9)
        a, b = (erasure.tensors[f"unet.{name}.lora_{side}.weight"].double() for side in "AB")
        torch.testing.assert_close(w + b @ a, new[name], rtol=0, atol=1e-5)


def test_the_adversary_brings_back_what_the_source_called_up() -> None:
    draw = torch.Generator().manual_seed(0)
    weight, m, source = (
        torch.randn(shape, generator=draw, dtype=torch.float64)
        for shape in ((40, 12), (12, 12), (3, 12))
    )
    found = adversary(source, m, weight.T @ weight, 1e-9)
    torch.testing.assert_close(found @ (weight @ m).T, source @ weight.T)


def test_no_epoch_is_uce(pipe: Any) -> None:
    uce = UCE(ridge=0.1, keep_scale=0.1, style_anchor="", residual=1e-6)
    one = uce.fit(parts_of(pipe), CONCEPTS).tensors
    two = RECE(epochs=0, residual=1e-6).fit(parts_of(pipe), CONCEPTS).tensors
    for name, layer in parts_of(pipe).readers()["sequence"].layers.items():
        products = [
            t[f"unet.{name}.lora_B.weight"] @ t[f"unet.{name}.lora_A.weight"] for t in (one, two)
        ]
        torch.testing.assert_close(
            *products, rtol=0, atol=1e-4 * float(layer.weight.detach().abs().max())
        )


@pytest.mark.parametrize("settings", [{"epochs": -1}, {"closeness": 0.0}, {"ridge": 0.0}])
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(settings))):
        RECE(**settings)
