"""The models that people have: variants, single checkpoints, other precisions, with LoRAs."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

import unsee
from unsee import Erasure, InputError, load_pipeline
from unsee.pipelines.load import offloaded
from unsee.pipelines.loading import Loading, split_weight
from unsee.tests.families import build, drawn

Run = Callable[..., tuple[int, str, str]]


def refused(call: Callable[[], object], match: str) -> None:
    with pytest.raises(InputError, match=match) as error:
        call()
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


@pytest.fixture(scope="module")
def erasure(tiny_folder: Path) -> Erasure:
    return unsee.erase(str(tiny_folder), "van gogh", kind="style", check=False)


@pytest.fixture(scope="module")
def file(erasure: Erasure, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("files") / "it.safetensors"
    erasure.save(path)
    return path


@pytest.fixture(scope="module")
def lora(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA of one's own, as diffusers saves it."""
    pipe = load_pipeline(tiny_folder, device="cpu")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        pipe.unet.add_adapter(
            LoraConfig(r=2, target_modules=["to_q", "to_out.0"], init_lora_weights=False)
        )
    path = tmp_path_factory.mktemp("loras")
    type(pipe).save_lora_weights(path, get_peft_model_state_dict(pipe.unet))
    return (path / "pytorch_lora_weights.safetensors").rename(path / "mine.safetensors")


def test_a_folder_of_a_variant_alone_says_which_and_is_loaded_by_its_name(
    tiny_folder: Path, tmp_path: Path, run: Run, erasure: Erasure
) -> None:
    folder = tmp_path / "model"
    load_pipeline(tiny_folder, device="cpu").save_pretrained(folder, variant="fp16")
    line = r"in the variant fp16 alone: pass --variant fp16 \(variant='fp16' in Python\)"
    refused(lambda: load_pipeline(folder), line)
    code, _, err = run("erase", str(folder), "van gogh", "--kind", "style")
    assert code == 2 and "pass --variant fp16" in err
    refused(
        lambda: load_pipeline(folder, variant="bf16"), "no weights of the variant 'bf16'; it h"
    )
    refused(lambda: load_pipeline(tiny_folder, variant="fp16"), "has none: leave variant out")
    code, _, err = run(
        *("erase", str(folder), "van gogh", "--kind", "style", "--variant", "fp16"),
        *("-o", str(tmp_path / "it.safetensors")),
    )
    assert code == 0, err
    assert Erasure.load(tmp_path / "it.safetensors").sha256 == erasure.sha256


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_model_is_drawn_with_in_the_type_that_is_asked_for(
    run: Run, tiny_folder: Path, tmp_path: Path, file: Path, dtype: Any
) -> None:
    code, _, err = run(
        *("generate", str(tiny_folder), "-p", "a cat", "--steps", "2", "--dtype", dtype),
        *("-e", str(file), "-o", str(tmp_path / "out")),
    )
    assert code == 0, err
    made_by = unsee.Gallery.open(tmp_path / "out").made_by
    assert made_by and made_by.model and made_by.model.dtype == dtype
    assert load_pipeline(tiny_folder, device="cpu", dtype=dtype).unet.dtype == getattr(
        torch, dtype
    )


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flux") / "model"
    build("flux").save_pretrained(folder)
    return folder


def test_a_single_checkpoint_with_a_folder_that_is_built_alike_is_that_model(
    flux: Path, tmp_path: Path, run: Run
) -> None:
    """The folder's own transformer is another: what is loaded must be the checkpoint's."""
    weights = load_file(flux / "transformer" / "diffusion_pytorch_model.safetensors")
    single, folder = tmp_path / "mine.safetensors", tmp_path / "model"
    save_file(weights, single)
    shutil.copytree(flux, folder)
    (folder / "transformer" / "diffusion_pytorch_model.safetensors").unlink()

    refused(lambda: load_pipeline(single), "pass the folder of a diffusers model .* --config FOL")
    refused(lambda: load_pipeline(single, config=tmp_path), "it has no model_index.json")
    refused(lambda: load_pipeline(folder, config=flux), "config is for a single checkpoint")
    refused(lambda: load_pipeline(tmp_path / "no.safetensors", config=flux), "is not there")
    refused(lambda: load_pipeline("model.ckpt"), "is a pickle")
    pipe = load_pipeline(single, config=folder, device="cpu")
    for name, value in pipe.transformer.state_dict().items():
        assert torch.equal(value, weights[name]), name
    assert pipe.name_or_path == str(single)

    out = tmp_path / "it.safetensors"
    code, _, err = run(
        *("erase", str(single), "van gogh", "--kind", "style", "--config", str(folder)),
        *("--no-check", "-o", str(out)),
    )
    assert code == 0, err
    whole = unsee.erase(str(flux), "van gogh", kind="style", check=False)
    assert Erasure.load(out).sha256 == whole.sha256


def test_a_checkpoint_that_lacks_weights_or_is_a_lora_is_one_line(
    flux: Path, tmp_path: Path, file: Path
) -> None:
    refused(lambda: load_pipeline(file, config=flux), "is a LoRA or an erasure, and no model")
    weights = load_file(flux / "transformer" / "diffusion_pytorch_model.safetensors")
    for cut in (list(weights)[:3], []):
        save_file({name: weights[name] for name in cut}, tmp_path / "cut.safetensors")
        with pytest.raises(InputError) as error:
            load_pipeline(tmp_path / "cut.safetensors", config=flux)
        assert "\n" not in str(error.value)


def test_a_lora_of_ones_own_is_on_before_the_erasure_and_part_of_the_model(
    tiny_folder: Path, lora: Path, file: Path, tmp_path: Path, run: Run
) -> None:
    base = load_pipeline(tiny_folder, device="cpu")
    plain = drawn(base)
    base.load_lora_weights(str(lora), adapter_name="theirs")
    base.set_adapters("theirs", 0.5)
    with_lora = drawn(base)
    assert not torch.equal(plain, with_lora)
    pipe = load_pipeline(tiny_folder, file, device="cpu", lora=[f"{lora}:0.5"])
    assert [one.name for one in unsee.active(pipe)] == ["van gogh"]
    both = drawn(pipe)
    unsee.remove(pipe)
    assert torch.equal(drawn(pipe), with_lora) and not torch.equal(both, with_lora)
    # Two of them at their weights
    twice = load_pipeline(tiny_folder, device="cpu", lora=[f"{lora}:0.25", f"{lora}:0.25"])
    torch.testing.assert_close(drawn(twice), with_lora, rtol=0, atol=1e-4)

    command = ("generate", str(tiny_folder), "-p", "a cat", "--steps", "2", "-o", "out")
    code, _, err = run(*command, "--lora", f"{lora}:0.5")
    assert code == 0, err
    made_by = unsee.Gallery.open(tmp_path / "out").made_by
    assert made_by and made_by.model and made_by.model.name.endswith(f"{lora}:0.5")
    for other in ((), ("--lora", f"{lora}:0.6")):
        code, _, err = run(*command, *other)
        assert code == 2 and "images made with another unet" in err
    code, _, err = run("erase", str(tiny_folder), "van gogh", "--lora", str(lora))
    assert code == 2 and "Erasing starts from the base model" in err


def test_a_lora_that_does_not_act_is_no_lora(
    tiny_folder: Path, lora: Path, tmp_path: Path
) -> None:
    tensors, path = load_file(lora), tmp_path / "other.safetensors"
    refused(lambda: load_pipeline(tiny_folder, lora=["no.safetensors"]), "is not there")
    save_file({f"text_encoder.{name}": value for name, value in tensors.items()}, path)
    refused(lambda: load_pipeline(tiny_folder, device="cpu", lora=[str(path)]), "The LoRA .* ")
    refused(
        lambda: Loading(lora=(f"{lora}:-1",)), "weight .* is -1.0; it must be a number above 0"
    )


@pytest.mark.skipif(torch.accelerator.is_available(), reason="says that there is none")
@pytest.mark.parametrize("how", ["model", "sequential"])
def test_offloading_without_an_accelerator_is_one_true_line(
    run: Run, tiny_folder: Path, how: Any
) -> None:
    refused(lambda: load_pipeline(tiny_folder, offload=how), "this machine has no accelerator")
    refused(lambda: load_pipeline(tiny_folder, offload=how, device="cpu"), "and cpu is none")
    code, _, err = run("generate", str(tiny_folder), "-p", "a", "-o", "out", "--offload", how)
    assert code == 2 and "this machine has no accelerator" in err
    refused(lambda: load_pipeline(tiny_folder, offload="all"), "offload is 'all'")  # type: ignore[arg-type]


def test_what_is_put_on_before_offloading_acts_and_comes_off_after_it(
    pipe: Any, erasure: Erasure
) -> None:
    def offload(device: torch.device) -> None:
        for model in (pipe.text_encoder, pipe.unet, pipe.vae):
            cpu_offload(model, device)

    # diffusers' own wants an accelerator, and does this with it
    pipe.enable_sequential_cpu_offload = offload
    base = drawn(pipe)
    with erasure.applied(pipe):
        erased = drawn(pipe)
        with offloaded(pipe, "sequential", torch.device("cpu")):
            assert all(p.is_meta for p in pipe.unet.parameters())
            torch.testing.assert_close(drawn(pipe), erased, rtol=0, atol=1e-6)
    assert torch.equal(drawn(pipe), base) and not torch.equal(base, erased)


@pytest.mark.parametrize(
    "text, file, weight",
    [
        ("a.safetensors", "a.safetensors", None),
        ("a.safetensors:0.8", "a.safetensors", 0.8),
        ("owner/name:2", "owner/name", 2.0),
        (r"C:\erasures\a.safetensors", r"C:\erasures\a.safetensors", None),
        (r"C:\erasures\a.safetensors:.5", r"C:\erasures\a.safetensors", 0.5),
        ("C:5", "C:5", None),
        ("a:b", "a:b", None),
        ("named:1", "named:1", None),
    ],
)
def test_only_a_number_after_the_last_colon_is_a_weight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, file: str, weight: float | None
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "named:1").touch()
    assert split_weight(text) == (file, weight)


@pytest.mark.parametrize("number", ["0", "-1", "nan", "inf", "11"])
def test_a_weight_is_a_number_above_0_and_at_most_10(number: str) -> None:
    refused(lambda: split_weight(f"a.safetensors:{number}"), "the weight of 'a.safetensors' is")


@pytest.mark.extra("quantised")
@pytest.mark.parametrize("method", ["uce", "esd"])
def test_a_file_acts_on_a_base_of_torchao_and_erasing_from_it_is_refused(
    pipe: Any, erasure: Erasure, method: str
) -> None:
    torchao = pytest.importorskip("torchao.quantization")
    before = drawn(pipe)
    torchao.quantize_(pipe.unet, torchao.Int8WeightOnlyConfig())
    base = drawn(pipe)
    assert 0 < (base - before).norm() < 0.1 * before.norm()
    refused(lambda: unsee.erase(pipe, "van gogh", method=method), "are quantised")
    with pytest.warns(UserWarning, match="are quantised and cannot be compared"):
        remove = erasure.add_to(pipe)
    assert (drawn(pipe) - base).norm() > 0.01 * base.norm()
    remove()
    assert torch.equal(drawn(pipe), base)


def _gguf(flux: Path, path: Path) -> Path:
    """The transformer of a folder as GGUF, its linear layers in 8 bits."""
    gguf = pytest.importorskip("gguf")
    weights = load_file(flux / "transformer" / "diffusion_pytorch_model.safetensors")
    writer = gguf.GGUFWriter(path, "flux")
    for name, value in weights.items():
        array = value.numpy()
        if value.ndim == 2 and value.shape[1] % 32 == 0:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.extra("quantised")
def test_a_file_acts_on_a_gguf_checkpoint_and_erasing_from_it_is_refused(
    flux: Path, tmp_path: Path
) -> None:
    single = _gguf(flux, tmp_path / "mine.gguf")
    pipe = load_pipeline(single, config=flux, device="cpu")
    assert pipe.transformer.context_embedder.weight.dtype == torch.uint8
    refused(lambda: unsee.erase(pipe, "van gogh"), "are quantised")
    how = Loading(config=flux)
    refused(lambda: unsee.erase(str(single), "van gogh", loading=how), "are quantised")
    erasure = unsee.erase(str(flux), "van gogh", kind="style", check=False)

    def latents() -> torch.Tensor:
        return drawn(pipe, height=32, width=32)

    base = latents()
    with pytest.warns(UserWarning, match="are quantised and cannot be compared"):
        remove = erasure.add_to(pipe)
    assert (latents() - base).norm() > 1e-3 * base.norm()
    remove()
    assert torch.equal(latents(), base)
