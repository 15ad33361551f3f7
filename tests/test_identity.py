"""Identity is content: what weights are known again by, and what is told apart."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from unsee._errors import InputError
from unsee.erasers.uce import UCE
from unsee.pipelines import Erasure, load_pipeline, parts_of
from unsee.pipelines.identity import VALUES, alike, sample
from unsee.prompts import Concept

GOLDEN = Path(__file__).parent / "golden" / "erasures"
TYPES = [torch.float32, torch.float16, torch.bfloat16]
VAN_GOGH = [Concept("van gogh", "style")]


def weight(seed: int = 0, shape: tuple[int, ...] = (320, 768)) -> torch.Tensor:
    """Weights as Stable Diffusion's cross attention has them, by size and deviation."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.02


@pytest.fixture
def erasure(pipe: Any) -> Erasure:
    return UCE().fit(parts_of(pipe), VAN_GOGH)


@pytest.mark.parametrize("fitted", TYPES)
def test_one_model_in_any_precision_is_one_base(tiny_folder: Path, fitted: torch.dtype) -> None:
    pipe = load_pipeline(tiny_folder, device="cpu", dtype=fitted)
    erasure = UCE().fit(parts_of(pipe), VAN_GOGH)
    for found in TYPES:
        for halfway in (found, torch.float16):
            other = load_pipeline(tiny_folder, device="cpu", dtype=halfway).to(found)
            erasure.check_base(other)


@pytest.mark.parametrize("fitted", TYPES)
@pytest.mark.parametrize("found", TYPES)
def test_every_value_of_a_weight_survives_two_roundings(
    fitted: torch.dtype, found: torch.dtype
) -> None:
    # From what float16 cannot hold to what it can, every size of number and both signs
    sizes = 2.0 ** torch.arange(-30, 10)
    values = torch.cat([weight(seed, (64,)) * size for seed, size in enumerate(sizes)])
    for start in range(0, len(values), VALUES):
        part = values[start : start + VALUES]
        kept = sample({"it": part.to(fitted)})["it"]
        assert alike(kept, part.to(found)) and alike(kept, part.half().to(found))


def test_a_rounding_apart_is_the_same_and_two_are_not() -> None:
    values = torch.full((8,), 0.02)
    kept = sample({"it": values})["it"]
    step = 2.0**-13  # of a bfloat16 of that size
    assert alike(kept, values + step) and not alike(kept, values + 2 * step)
    assert alike(kept, values - step) and not alike(kept, values - 2 * step)


@pytest.mark.parametrize("dtype", TYPES)
def test_one_step_of_fine_tuning_at_1e_5_is_seen_in_every_layer(dtype: torch.dtype) -> None:
    for seed in range(20):
        before = weight(seed)
        sign = weight(seed + 1000).sign()
        kept = sample({"it": before})["it"]
        assert not alike(kept, (before + 1e-5 * sign).to(dtype))


def test_what_is_less_than_a_rounding_of_every_value_is_not_seen() -> None:
    before = weight()
    assert alike(sample({"it": before})["it"], before * (1 + 2**-10))


def test_any_changed_layer_and_any_exchanged_two_are_seen(pipe: Any, erasure: Erasure) -> None:
    erasure.check_base(pipe)
    layers = parts_of(pipe).text_layers()
    for name, layer in layers.items():
        before = layer.weight.detach().clone()
        layer.weight.data = before + 1e-3 * torch.randn_like(before)
        with pytest.raises(InputError, match=rf"other weights.*{name} is another \(1 of 8"):
            erasure.check_base(pipe)
        layer.weight.data = before
    one, two = (n for n in layers if n.startswith("mid_block"))
    first, second = (layers[n].weight.detach().clone() for n in (one, two))
    layers[one].weight.data, layers[two].weight.data = second, first
    with pytest.raises(InputError, match=r"\(2 of 8 layers are\)"):
        erasure.check_base(pipe)


def test_a_layer_of_which_a_lora_or_a_compiler_is_around_is_the_same(
    pipe: Any, erasure: Erasure
) -> None:
    with erasure.applied(pipe):
        erasure.check_base(pipe)
    pipe.unet = torch.compile(pipe.unet)
    erasure.check_base(pipe)


def test_a_quantised_base_is_taken_with_a_warning(pipe: Any, erasure: Erasure) -> None:
    for layer in parts_of(pipe).text_layers().values():
        codes = (layer.weight * 100).to(torch.int8).reshape(-1, 1)
        layer.weight = nn.Parameter(codes, requires_grad=False)
    with pytest.warns(UserWarning, match="and 7 more weights.*quantised.*see to it yourself"):
        erasure.check_base(pipe)


def test_a_file_of_format_1_knows_its_base_by_its_hashes(
    pipe: Any, another: Callable[..., Any]
) -> None:
    for name in ("lowrank", "dense", "transported"):
        old = Erasure.load(GOLDEN / "format-1" / f"{name}.safetensors")
        old.check_base(pipe)
        with pytest.raises(InputError, match="other weights.*wanted the hash .*found"):
            old.check_base(another(seed=1))


def test_the_sample_is_the_same_for_the_same_values_however_they_lie() -> None:
    conv = weight(shape=(32, 16, 3, 3))
    lying = conv.to(memory_format=torch.channels_last)
    assert not lying.is_contiguous()
    assert sample({"it": conv}) == sample({"it": lying})
