"""The erasure file: what it does in a pipeline, and what it does not forgive."""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

import unsee
from unsee._errors import InputError
from unsee.erasers.uce import UCE
from unsee.pipelines import Erasure, load_pipeline, parts_of
from unsee.prompts import Concept

Make = Callable[..., Any]


def images(pipe: Any, steps: int = 4) -> Tensor:
    """Two images, shape (2, 3, 16, 16)."""
    draws = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    made: Tensor = pipe(
        ["a photo of a bomb", "a painting by van gogh"],
        generator=draws,
        num_inference_steps=steps,
        output_type="pt",
    ).images
    return made


@pytest.fixture
def erasure(pipe: Any) -> Erasure:
    return UCE().fit(parts_of(pipe), [Concept("van gogh", "style", keep=("monet",))])


@pytest.fixture
def file(erasure: Erasure, tmp_path: Path) -> Path:
    erasure.save(tmp_path / "van-gogh.safetensors")
    return tmp_path / "van-gogh.safetensors"


def test_it_round_trips(erasure: Erasure, file: Path) -> None:
    loaded = Erasure.load(file)
    assert loaded == dataclasses.replace(erasure, tensors=loaded.tensors)
    assert loaded.tensors.keys() == erasure.tensors.keys()
    for name, tensor in loaded.tensors.items():
        assert torch.equal(tensor, erasure.tensors[name])


def test_saving_twice_gives_the_same_bytes(file: Path, tmp_path: Path) -> None:
    Erasure.load(file).save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == file.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "again.safetensors",
        "van-gogh.safetensors",
    ]


def test_plain_diffusers_makes_the_same_images(
    pipe: Any, erasure: Erasure, file: Path, tiny_folder: Path
) -> None:
    before = images(pipe)
    with erasure.applied(pipe):
        ours = images(pipe)
    plain = DiffusionPipeline.from_pretrained(tiny_folder)
    plain.set_progress_bar_config(disable=True)
    plain.load_lora_weights(str(file))
    assert (ours - before).abs().max() > 0.05
    torch.testing.assert_close(images(plain), ours, rtol=0, atol=1e-5)


def test_it_comes_off_again_bit_for_bit(pipe: Any, erasure: Erasure) -> None:
    before = images(pipe)
    names = [name for name, _ in pipe.unet.named_modules()]
    with pytest.raises(ZeroDivisionError), erasure.applied(pipe):
        1 / 0  # noqa: B018
    assert torch.equal(images(pipe), before)
    assert [name for name, _ in pipe.unet.named_modules()] == names


def test_two_add_up_and_come_off_one_by_one(pipe: Any, erasure: Erasure) -> None:
    other = UCE().fit(parts_of(pipe), [Concept("bomb", keep=("hammer",))])
    before = images(pipe)
    with erasure.applied(pipe):
        one = images(pipe)
        with other.applied(pipe):
            both = images(pipe)
        assert torch.equal(images(pipe), one)
    assert torch.equal(images(pipe), before)
    summed = {
        name: layer.weight.detach()
        + sum(
            e.tensors[f"unet.{name}.lora_B.weight"] @ e.tensors[f"unet.{name}.lora_A.weight"]
            for e in (erasure, other)
        )
        for name, layer in parts_of(pipe).readers()["sequence"].layers.items()
    }
    for name, layer in parts_of(pipe).readers()["sequence"].layers.items():
        layer.weight.data = summed[name]
    torch.testing.assert_close(images(pipe), both, rtol=0, atol=1e-4)


def test_a_lora_of_ones_own_keeps_its_scale(pipe: Any, erasure: Erasure, file: Path) -> None:
    pipe.load_lora_weights(str(file), adapter_name="mine")
    pipe.set_adapters("mine", 0.3)
    before = images(pipe)
    with erasure.applied(pipe):
        assert not torch.allclose(images(pipe), before, atol=1e-2)
        assert pipe.get_active_adapters() == ["mine", "van-gogh"]
    assert torch.equal(images(pipe), before)
    assert pipe.get_active_adapters() == ["mine"]


def test_load_pipeline_puts_it_in(pipe: Any, file: Path, tiny_folder: Path) -> None:
    before = images(pipe)
    erased = load_pipeline(tiny_folder, file, device="cpu")
    assert not torch.allclose(images(erased), before, atol=1e-2)
    unsee.remove(erased)
    assert torch.equal(images(erased), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_its_base_is_known_in_another_precision(
    file: Path, tiny_folder: Path, dtype: torch.dtype
) -> None:
    Erasure.load(file).check_base(load_pipeline(tiny_folder, device="cpu", dtype=dtype))


def test_fitting_needs_the_base_itself(pipe: Any, erasure: Erasure) -> None:
    with erasure.applied(pipe), pytest.raises(InputError, match="unsee.remove"):
        parts_of(pipe)


def refused(erasure: Erasure, pipe: Any, match: str) -> None:
    before = images(pipe)
    with pytest.raises(InputError, match=match):
        erasure.add_to(pipe)
    assert torch.equal(images(pipe), before)
    assert not getattr(pipe.unet, "peft_config", None)


def test_a_base_of_other_shapes_is_refused(erasure: Erasure, another: Make) -> None:
    refused(
        erasure,
        another(text_width=16),
        r"made for .*attn2\.to_k\.weight \(16, 32\).*has \(16, 16\)",
    )


def test_a_base_of_other_weights_is_refused(erasure: Erasure, another: Make) -> None:
    refused(erasure, another(seed=1), r"other weights.*to_k is another \(8 of 8")


def test_another_architecture_is_refused(erasure: Erasure) -> None:
    class NoUnet:
        pass

    with pytest.raises(InputError, match="StableDiffusionPipeline; NoUnet was given"):
        erasure.check_base(NoUnet())


KEY = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.lora_A.weight"


def changed(file: Path, change: Callable[[dict[str, Tensor], dict[str, str]], object]) -> None:
    """Rewrites the file with other tensors or another header."""
    with safe_open(file, framework="pt") as opened:
        header = dict(opened.metadata())
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}
    change(tensors, header)
    save_file(tensors, file, header)


def record(**values: Any) -> Callable[[dict[str, Tensor], dict[str, str]], object]:
    def change(tensors: dict[str, Tensor], header: dict[str, str]) -> None:
        ours = json.loads(header["unsee"])
        header["unsee"] = json.dumps(ours | {"record": ours["record"] | values})

    return change


CHANGES = {
    f"lacks {KEY}": lambda tensors, header: tensors.pop(KEY),
    "has 'unet.extra.lora_A.weight'": lambda tensors, header: tensors.update(
        {"unet.extra.lora_A.weight": torch.ones(1, 1)}
    ),
    f"{KEY} has values that are not finite": lambda tensors, header: (
        tensors[KEY].view(-1)[0].fill_(torch.nan)
    ),
    f"{KEY} has shape": lambda tensors, header: tensors.update({KEY: torch.ones(2, 3)}),
    "has format 3, and this version reads up to 2": record(format=3),
    "has been changed": record(seed=1),
    "its record is not JSON": lambda tensors, header: header.update(unsee="{"),
    "record: base lacks 'name'": record(base={}),
    "is no erasure file": lambda tensors, header: header.pop("unsee"),
}


@pytest.mark.parametrize(
    "dtype", [torch.int32, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.uint8]
)
def test_tensors_that_are_no_floats_are_refused(file: Path, dtype: torch.dtype) -> None:
    changed(file, lambda tensors, header: tensors.update({KEY: tensors[KEY].to(dtype)}))
    with pytest.raises(InputError, match=rf"{KEY} is of {str(dtype)[6:]}, wanted one of float32"):
        Erasure.load(file)


@pytest.mark.parametrize("message", CHANGES)
def test_a_file_that_is_not_right_is_refused(file: Path, message: str) -> None:
    changed(file, CHANGES[message])
    with pytest.raises(InputError) as error:
        Erasure.load(file)
    assert str(file) in str(error.value) and message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not there"):
        Erasure.load(tmp_path / "none.safetensors")


def test_a_truncated_file_is_refused(file: Path) -> None:
    data = file.read_bytes()
    for length in (0, 4, 100, len(data) // 2, len(data) - 1):
        file.write_bytes(data[:length])
        with pytest.raises(InputError, match="truncated or no safetensors"):
            Erasure.load(file)


def test_any_changed_byte_is_refused(file: Path) -> None:
    data = file.read_bytes()
    step = max(1, len(data) // 199)
    for place in range(0, len(data), step):
        file.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(InputError, match="van-gogh.safetensors"):
            Erasure.load(file)


EDITS: dict[str, tuple[tuple[str, ...], str]] = {
    "two denoisers": (("transformer", "unet"), "edits transformer and unet, .* one denoiser"),
    "what is neither": (("vae",), r"edits the vae.*\(unet or transformer\) or text encoders"),
    "nothing": ((), "edits no layer, so that it would erase nothing"),
}


@pytest.mark.parametrize("what", EDITS)
@pytest.mark.parametrize("kind", ["lowrank", "dense"])
def test_what_edits_a_component_that_none_is_applied_to_is_refused_when_it_is_read_and_put_on(
    pipe: Any, erasure: Erasure, tmp_path: Path, kind: str, what: str
) -> None:
    """Its tensors and its checksum are right, for as many components as it names."""
    components, message = EDITS[what]
    (edited,) = erasure.record.base.components.values()
    tensors: dict[str, Tensor] = {}
    for prefix in components:
        if kind == "lowrank":
            tensors |= {k.replace("unet.", f"{prefix}."): t for k, t in erasure.tensors.items()}
        for name, shape in edited.layers.items() if kind == "dense" else ():
            tensors[f"{prefix}.{name}.weight_delta"] = torch.ones(shape)
    base = replace(erasure.record.base, components=dict.fromkeys(components, edited))
    forged = Erasure(tensors, replace(erasure.record, kind=kind, base=base))
    refused(forged, pipe, message)
    forged.save(tmp_path / "it.safetensors")
    with pytest.raises(InputError, match=message) as error:
        Erasure.load(tmp_path / "it.safetensors")
    assert str(error.value).startswith(str(tmp_path)) and "\n" not in str(error.value)
