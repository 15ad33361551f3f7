"""Identity is content: what weights are known again by, and what is told apart."""

import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, PNDMScheduler
from torch import Tensor, nn
from transformers import CLIPTokenizer

from unsee import audit, erase, generate_gallery
from unsee._errors import InputError
from unsee.erasers.uce import UCE
from unsee.gallery import Gallery
from unsee.pipelines import Erasure, load_pipeline, parts_of
from unsee.pipelines.identity import VALUES, alike, model_of, sample
from unsee.prompts import Concept, Prompt, Suite
from unsee.records import Measured, Model, Transport

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
    layers = parts_of(pipe).readers()["sequence"].layers
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
    for layer in parts_of(pipe).readers()["sequence"].layers.values():
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


# The model that a gallery is of


SUITE = Suite("it", (Prompt("a", "a photo of a bomb", 0), Prompt("b", "a dog", 1)))


def drawn(model: Any, out: Path, *erasures: Erasure, **more: Any) -> Gallery:
    return generate_gallery(model, erasures, SUITE, out, steps=1, **more)


def change(part: str) -> Callable[[Any], object]:
    def one(pipe: Any) -> None:
        parameter = next(iter(getattr(pipe, part).parameters()))
        parameter.data = parameter * 1.001

    return one


def rescheduled(pipe: Any) -> None:
    config = dict(pipe.scheduler.config) | {"beta_end": 0.02}
    pipe.scheduler = DDIMScheduler.from_config(config)


def fused(pipe: Any, scale: float) -> None:
    pipe.load_lora_weights(str(GOLDEN / "format-1" / "lowrank.safetensors"), adapter_name="mine")
    pipe.set_adapters("mine", scale)


def exchanged(pipe: Any) -> None:
    """Two words of the tokenizer, each for the other."""
    words = pipe.tokenizer.get_vocab()
    words["cat</w>"], words["dog</w>"] = words["dog</w>"], words["cat</w>"]
    get_vocab = type(pipe.tokenizer).get_vocab
    pipe.tokenizer = CLIPTokenizer(vocab=words, merges=[], model_max_length=16)
    assert get_vocab(pipe.tokenizer) == words


CHANGES: dict[str, tuple[Callable[[Any], object], str]] = {
    "unet": (change("unet"), "another unet"),
    "vae": (change("vae"), "another vae"),
    "text encoder": (change("text_encoder"), "another text_encoder"),
    "scheduler": (rescheduled, r"another scheduler's beta_end .wanted 0.02, found 0.012"),
    "scheduler's class": (
        lambda pipe: setattr(
            pipe, "scheduler", PNDMScheduler.from_config(dict(pipe.scheduler.config))
        ),
        "scheduler's class .wanted PNDMScheduler, found DDIMScheduler",
    ),
    "tokenizer": (
        lambda pipe: pipe.tokenizer.add_tokens(["newword"]),
        "another tokenizer",
    ),
    "settings of a component": (
        lambda pipe: pipe.vae.register_to_config(scaling_factor=0.5),
        "another vae",
    ),
    "the tokenizer's room": (
        lambda pipe: setattr(pipe.tokenizer, "model_max_length", 12),
        "another tokenizer",
    ),
    "the tokenizer's words": (exchanged, "another tokenizer"),
    "settings of the pipeline": (
        lambda pipe: pipe.register_to_config(requires_safety_checker=True),
        "another pipeline's configuration",
    ),
    "dtype": (lambda pipe: pipe.to(torch.bfloat16), "dtype .wanted bfloat16, found float32"),
    "a LoRA": (lambda pipe: fused(pipe, 1.0), "another unet"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_changed_model_at_the_same_path_is_refused_by_name(
    pipe: Any, tmp_path: Path, what: str
) -> None:
    change, match = CHANGES[what]
    first = drawn(pipe, tmp_path)
    first.image_path(SUITE.prompts[0]).unlink()
    change(pipe)
    with pytest.raises(InputError, match=match):
        drawn(pipe, tmp_path)


def test_how_strongly_a_lora_acts_is_part_of_the_model(pipe: Any, tmp_path: Path) -> None:
    fused(pipe, 1.0)
    drawn(pipe, tmp_path)
    pipe.set_adapters("mine", 0.5)
    with pytest.raises(InputError, match="another unet"):
        drawn(pipe, tmp_path)


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
def test_which_of_two_loras_acts_is_part_of_the_model(pipe: Any, tmp_path: Path) -> None:
    for name in ("mine", "yours"):
        file = str(GOLDEN / "format-1" / "lowrank.safetensors")
        pipe.load_lora_weights(file, adapter_name=name)
    pipe.set_adapters("mine")
    drawn(pipe, tmp_path)
    pipe.set_adapters("yours")
    with pytest.raises(InputError, match="another unet"):
        drawn(pipe, tmp_path)


def test_the_first_and_the_last_value_of_every_tensor_are_part_of_the_model(pipe: Any) -> None:
    before = model_of(pipe, "it")
    for part in ("unet", "vae", "text_encoder"):
        module = getattr(pipe, part)
        # Every seventh, and with them buffers, biases and weights of every rank
        tensors = [*module.parameters(), *module.buffers()]
        for tensor in [*tensors[::7], tensors[-1]]:
            for place in {0, tensor.numel() - 1}:
                value = tensor.data.view(-1)[place].clone()
                tensor.data.view(-1)[place] += 1
                found = model_of(pipe, "it").components
                assert {k for k in found if found[k] != before.components[k]} == {part}
                tensor.data.view(-1)[place] = value
    assert model_of(pipe, "it") == before


def test_a_guide_that_is_on_is_part_of_the_model(pipe: Any, tmp_path: Path) -> None:
    drawn(pipe, tmp_path)
    with erase(pipe, "van gogh", method="negative").applied(pipe):
        with pytest.raises(InputError, match="another erasures that are on"):
            drawn(pipe, tmp_path)
    drawn(pipe, tmp_path)


def test_the_same_model_by_another_path_and_batch_size_goes_on(
    tiny_folder: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(tiny_folder, tmp_path / "elsewhere")
    first = drawn(str(tiny_folder), tmp_path / "it", batch_size=1)
    again = drawn(str(copy), tmp_path / "it", batch_size=2)
    assert again == first and again.made_by is not None and again.made_by.model is not None
    assert again.made_by.model.name == str(tiny_folder) and again.made_by.batch_size == 1


class State:
    """What bitsandbytes keeps of a 4-bit weight beside its codes: ``functional.QuantState``."""

    def __init__(self, absmax: Tensor, state2: "State | None" = None) -> None:
        self.absmax, self.blocksize, self.state2 = absmax, 64, state2


@pytest.mark.parametrize("at", ["scales", "scales of the scales", "a tensor of the weight's own"])
def test_the_scales_of_a_quantised_weight_are_part_of_the_model(pipe: Any, at: str) -> None:
    """The same codes with other scales are another model, and no tensor of the module says so."""

    def known(scale: float) -> Model:
        codes = nn.Parameter(torch.ones(8, 1, dtype=torch.uint8), requires_grad=False)
        scales = torch.full((4,), scale)
        if at == "scales":
            codes.quant_state = State(scales)  # type: ignore[attr-defined]
        elif at == "scales of the scales":
            codes.quant_state = State(torch.ones(4), State(scales))  # type: ignore[attr-defined]
        else:
            codes.SCB = scales  # type: ignore[attr-defined]
        pipe.unet.conv_in.weight = codes
        return model_of(pipe, "it")

    assert known(1.0) == known(1.0)
    assert known(1.0) != known(1.01)


def test_compiling_a_model_does_not_make_it_another(pipe: Any) -> None:
    before = model_of(pipe, "it")
    pipe.unet = torch.compile(pipe.unet)
    assert model_of(pipe, "it") == before


def test_an_erasure_made_again_is_the_same_for_a_gallery(pipe: Any, tmp_path: Path) -> None:
    one, two = (erase(pipe, "van gogh", keep=["knife"], check=False) for _ in range(2))
    two = replace(two, measured=replace(two.measured, seconds=99.0, peak_memory=1))
    assert one.sha256 == two.sha256 and one.record == two.record and one.bytes != two.bytes
    names = [replace(e, measured=Measured()).bytes for e in (one, two)]
    assert names[0] == names[1]
    drawn(pipe, tmp_path, one)
    drawn(pipe, tmp_path, two)
    with pytest.raises(InputError, match="another erasures .wanted uce of van gogh"):
        drawn(pipe, tmp_path, erase(pipe, "van gogh", keep=["dog"], check=False))


def test_an_erasure_is_known_by_its_tensors_and_what_made_them_alone(erasure: Erasure) -> None:
    record = erasure.record
    others: dict[str, Any] = {
        "kind": "dense",
        "method": "rece",
        "settings": {**record.settings, "ridge": 0.25},
        "concepts": (replace(record.concepts[0], keep=("cat",)),),
        "seed": 1,
        "transport": Transport("token", ("van gogh",)),
    }
    labels: dict[str, Any] = {"versions": {}, "base": replace(record.base, name="elsewhere")}
    assert {*others, *labels} == {field.name for field in fields(record)}
    found = {
        name: replace(erasure, record=replace(record, **{name: value})).sha256
        for name, value in (others | labels).items()
    }
    for name, tensor in erasure.tensors.items():
        changed = tensor.clone()
        changed.view(-1)[-1] += 1
        found[name] = replace(erasure, tensors={**erasure.tensors, name: changed}).sha256
    assert [name for name in found if found[name] == erasure.sha256] == [*labels]
    assert len({*found.values()}) == len(found) - len(labels) + 1


@pytest.mark.parametrize("side", ["base", "erased"])
def test_an_image_that_was_swapped_between_runs_is_in_the_report(
    side: str, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    erasure = erase("emoji", "bomb", check=False)
    given: dict[str, Any] = {"out": tmp_path, "size": 4, "steps": 1}
    audit("emoji", erasure, **given)
    images = sorted((tmp_path / side / "images").iterdir())
    images[0].write_bytes(images[1].read_bytes())
    with pytest.warns(UserWarning, match=f"1 images in .*{side}.* made again"):
        report = audit("emoji", erasure, **given)
    assert any(
        f"{side} images were changed or removed after they had been made, and were made again: "
        f"{images[0].stem}." in warning
        for warning in report.warnings
    )
