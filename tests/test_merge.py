"""Several erasures of one base in one file."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import unsee
from unsee import Concept, Erasure, InputError
from unsee.pipelines import load_pipeline

ESD: dict[str, Any] = {"iterations": 4, "batch_size": 2, "sampling_steps": 3, "lr": 1e-3}
VAN_GOGH = Concept("van gogh", "style", keep=("monet",))
BOMB = Concept("bomb", anchor="cat", keep=("dog",))


def images(pipe: Any) -> np.ndarray:
    draws = [torch.Generator().manual_seed(seed) for seed in range(2)]
    prompts = ["a bomb", "van gogh"]
    drawn = pipe(prompts, num_inference_steps=3, output_type="np", generator=draws).images
    return np.asarray(drawn)


@pytest.fixture(scope="module")
def erasures(tiny_folder: Path) -> dict[str, Erasure]:
    """Of two concepts by several methods, one of them of convolutions too."""
    pipe = load_pipeline(tiny_folder, device="cpu")
    return {
        "uce": unsee.erase(pipe, VAN_GOGH, check=False),
        "uce bomb": unsee.erase(pipe, BOMB, check=False),
        "esd": unsee.erase(pipe, BOMB, method="esd", variant="all", check=False, **ESD),
        "dense": unsee.erase(pipe, VAN_GOGH, method="esd", store="dense", check=False, **ESD),
        "dense bomb": unsee.erase(pipe, BOMB, method="esd", store="dense", check=False, **ESD),
        "spm": unsee.erase(pipe, BOMB, method="spm", check=False, **ESD),
        "sld": unsee.erase(pipe, BOMB, method="sld"),
    }


@pytest.mark.parametrize(
    "names", [("uce", "uce bomb"), ("uce", "esd"), ("esd", "uce"), ("dense", "dense bomb")]
)
def test_a_sum_does_what_both_do_one_after_the_other(
    pipe: Any, erasures: dict[str, Erasure], names: tuple[str, ...]
) -> None:
    one, other = (erasures[name] for name in names)
    base = images(pipe)
    with one.applied(pipe):
        alone = images(pipe)
        with other.applied(pipe):
            both = images(pipe)
    with unsee.merge([one, other], residual=0).applied(pipe):
        merged = images(pipe)
    np.testing.assert_allclose(merged, both, atol=2e-4)
    assert np.abs(both - alone).max() > 0.005 < np.abs(alone - base).max()


def test_plain_diffusers_reads_the_sum_from_one_file(
    pipe: Any, tiny_folder: Path, erasures: dict[str, Erasure], tmp_path: Path
) -> None:
    two = [erasures["uce"], erasures["esd"]]
    with two[0].applied(pipe), two[1].applied(pipe):
        both = images(pipe)
    unsee.merge(two, residual=0).save(tmp_path / "it.safetensors")
    plain = load_pipeline(tiny_folder, device="cpu")
    plain.load_lora_weights(tmp_path, weight_name="it.safetensors")
    np.testing.assert_allclose(images(plain), both, atol=2e-4)


def test_a_sum_is_thinned_to_its_residual(erasures: dict[str, Erasure]) -> None:
    two = [erasures["uce"], erasures["uce bomb"]]

    def sums(merged: Erasure) -> tuple[int, dict[str, torch.Tensor]]:
        pairs = {
            name: tuple(
                merged.tensors[f"{name}.lora_{side}.weight"].flatten(1).double() for side in "BA"
            )
            for name in merged.record.base.layers
        }
        ranks = {len(a) for _, a in pairs.values()}
        return ranks.pop(), {name: b @ a for name, (b, a) in pairs.items()}

    full, whole = sums(unsee.merge(two, residual=0))
    # 32 is the width of the text that these layers read
    assert full == min(32, sum(len(next(iter(e.tensors.values()))) for e in two))
    merged = unsee.merge(two, residual=0.3)
    rank, thin = sums(merged)
    left_out = sum((whole[n] - thin[n]).square().sum() for n in whole)
    relative = float((left_out / sum(w.square().sum() for w in whole.values())) ** 0.5)
    assert rank < full and 0 < relative <= 0.3
    assert merged.measured.residual == pytest.approx(relative, rel=1e-4)


def test_a_sums_record_says_what_it_was_made_of(
    erasures: dict[str, Erasure], tmp_path: Path
) -> None:
    two = [erasures["uce"], erasures["esd"]]
    merged = unsee.merge(two)
    merged.save(tmp_path / "it.safetensors")
    record = Erasure.load(tmp_path / "it.safetensors").record
    assert record == merged.record and merged.name == "van gogh+bomb"
    assert (record.method, record.settings["how"]) == ("merge", "sum")
    for said, erasure in zip(record.settings["of"], two, strict=True):
        assert said["sha256"] == erasure.sha256
        assert said["method"] == erasure.record.method
        assert said["settings"] == erasure.record.settings
        assert said["concepts"] == [concept.name for concept in erasure.record.concepts]
    assert set(record.base.layers) == {n for e in two for n in e.record.base.layers}


@pytest.mark.parametrize("method", ["uce", "rece", "mace"])
def test_joint_is_the_erasure_of_all_concepts_at_once(
    pipe: Any, tiny_folder: Path, method: str
) -> None:
    settings: dict[str, Any] = {"mace": {"prompts": 5}}.get(method, {})
    two = [
        unsee.erase(pipe, one, method=method, seed=3, check=False, **settings)
        for one in (VAN_GOGH, BOMB)
    ]
    at_once = unsee.erase(pipe, [VAN_GOGH, BOMB], method=method, seed=3, check=False, **settings)
    for model in (pipe, None):
        merged = unsee.merge(two, how="joint", model=model, check=False)
        assert merged.record.concepts == at_once.record.concepts
        assert merged.record == at_once.record
        for name, tensor in at_once.tensors.items():
            assert torch.equal(merged.tensors[name], tensor)


def test_what_cannot_be_merged_is_refused(
    pipe: Any,
    erasures: dict[str, Erasure],
    another: Callable[..., Any],
    tmp_path: Path,
) -> None:
    uce, bomb, esd, dense, spm, sld = (
        erasures[name] for name in ("uce", "uce bomb", "esd", "dense", "spm", "sld")
    )
    apart = another(1)
    other = unsee.erase(apart, BOMB, check=False)
    elsewhere = unsee.erase(
        pipe, BOMB, method="esd", variant="x", layers="mid_block.*to_q", check=False, **ESD
    )
    scaled = unsee.erase(pipe, BOMB, ridge=0.1, check=False)
    seeded = unsee.erase(pipe, BOMB, seed=1, check=False)
    clash = unsee.erase(pipe, Concept("cat", keep=("van gogh",)), check=False)
    old = dataclasses.replace(bomb.record.base.components["unet"], sample=None, hashes=("0" * 64,))
    base = dataclasses.replace(bomb.record.base, components={"unet": old})
    format_1 = dataclasses.replace(bomb, record=dataclasses.replace(bomb.record, base=base))
    for given, how, match in [
        ([uce], "sum", "at least two"),
        ([uce, other], "sum", "was made for .* which has another unet|only erasures of one base"),
        ([uce, other], "joint", "only erasures of one base"),
        ([uce, elsewhere], "sum", "no layer in common"),
        ([uce, format_1], "sum", "format 1"),
        ([uce, sld], "sum", "bomb is a guide"),
        ([sld, sld], "joint", "sld is a guide"),
        ([uce, spm], "sum", "transport"),
        ([dense, esd], "sum", "Some of these erasures are dense"),
        ([uce, esd], "joint", "one method together, and these are of uce and esd"),
        ([esd, esd], "joint", "esd trains"),
        ([uce, scaled], "joint", r"another ridge \(0.5, 0.1\)"),
        ([uce, seeded], "joint", "of the same seed, and these have 0 and 1"),
        ([uce, uce], "sum", "'van gogh' is erased by two"),
        ([uce, clash], "sum", "'cat' is erased so that 'van gogh' stays"),
        ([uce, bomb], "product", "how is 'product'; it must be one of joint, sum"),
    ]:
        with pytest.raises(InputError, match=match):
            unsee.merge(given, how=how)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="residual"):
        unsee.merge([uce, bomb], residual=float("nan"))
    # A loaded model is looked at before any work, and one that is named once it has been read
    with pytest.raises(InputError, match="the model given has other weights"):
        unsee.merge([uce, bomb], how="joint", model=apart)
    apart.save_pretrained(tmp_path / "apart")
    with pytest.raises(InputError, match="only erasures of one base can be merged"):
        unsee.merge([uce, bomb], how="joint", model=tmp_path / "apart", check=False)


def test_the_command_merges_files_and_replaces_nothing_else(
    run: Callable[..., tuple[int, str, str]], erasures: dict[str, Erasure], tmp_path: Path
) -> None:
    for name in ("uce", "uce bomb"):
        erasures[name].save(tmp_path / f"{name}.safetensors")
    files = ("uce.safetensors", "uce bomb.safetensors")
    for how in ("sum", "joint"):
        code, out, err = run("merge", *files, "-o", "both.safetensors", "--how", how)
        assert code == 0, err
        assert "Merged van gogh+bomb from 2 files: both.safetensors" in " ".join(out.split())
        code, out, _ = run("show", "both.safetensors")
        assert code == 0 and "bomb" in out and "van gogh" in out
    code, _, err = run("merge", *files, "-o", "uce.safetensors")
    assert code == 2 and "erases 'van gogh'" in err and "--force" in err
    code, _, err = run("merge", files[0], "-o", "one.safetensors")
    assert code == 2 and "at least two" in err and not (tmp_path / "one.safetensors").exists()
