"""An erasure acts, or says that it does not, whatever is done with the pipeline that it is in."""

import copy
import dataclasses
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DiffusionPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
)
from safetensors.torch import save_file
from torch import Tensor

import unsee
from unsee._errors import InputError
from unsee.erasers.sld import SLD
from unsee.erasers.uce import UCE
from unsee.pipelines import Erasure, load_pipeline, parts_of
from unsee.prompts import Concept
from unsee.records import Transport
from unsee.training.record import dense

CONCEPT = Concept("van gogh", "style", phrases=("van gogh", "bomb"), keep=("monet",))
KINDS = ("lowrank", "transport", "dense", "guidance")
every_kind = pytest.mark.parametrize("kind", KINDS)


def images(pipe: Any, steps: int = 3, **call: Any) -> Tensor:
    """Two images, shape (2, 3, 16, 16)."""
    made: Tensor = pipe(
        **{"prompt": ["a painting by van gogh", "a photo of a bomb"]} | call,
        generator=[torch.Generator().manual_seed(seed) for seed in (1, 2)],
        num_inference_steps=steps,
        output_type="pt",
    ).images
    return made


@pytest.fixture(scope="module")
def erasures(tiny_folder: Path) -> dict[str, Erasure]:
    """One of each kind, and two more of the first."""
    parts = parts_of(load_pipeline(tiny_folder, device="cpu"))
    uce = UCE().fit(parts, [CONCEPT])
    tensors = uce.tensors
    deltas = {
        f"{name}.weight": tensors[f"unet.{name}.lora_B.weight"]
        @ tensors[f"unet.{name}.lora_A.weight"]
        for name in parts.readers()["sequence"].layers
    }
    transported = dataclasses.replace(uce.record, transport=Transport("token", CONCEPT.phrases))
    return {
        "lowrank": uce,
        "transport": dataclasses.replace(uce, record=transported),
        "dense": dense(parts, "uce", UCE(), [CONCEPT], 0, deltas),
        "guidance": SLD(warmup=0, scale=5000.0, threshold=1.0).fit(parts, [CONCEPT]),
        "train": UCE().fit(parts, [Concept("train")]),
        "knife": UCE().fit(parts, [Concept("knife")]),
    }


@pytest.fixture(scope="module")
def files(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[float], str]:
    """A user's own LoRA of attention, which changes images by a factor."""
    unet = load_pipeline(tiny_folder, device="cpu").unet
    draw = torch.Generator().manual_seed(0)
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    for name, module in unet.named_modules():
        if name.endswith(("to_q", "to_k", "to_v")):
            out, inner = module.weight.shape
            pairs[name] = (
                torch.randn(2, inner, generator=draw),
                torch.randn(out, 2, generator=draw),
            )
    folder = tmp_path_factory.mktemp("loras")

    def file(factor: float) -> str:
        path = folder / f"mine-{factor}.safetensors"
        tensors = {}
        for name, (a, b) in pairs.items():
            tensors[f"unet.{name}.lora_A.weight"] = a.clone()
            tensors[f"unet.{name}.lora_B.weight"] = b * factor
        save_file(tensors, path)
        return str(path)

    return file


def load(pipe: Any, file: str) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")
        pipe.load_lora_weights(file, adapter_name="mine")


def adapter(pipe: Any) -> str:
    """The erasure's LoRA, or a user's where it has none."""
    return next((one.adapter for one in unsee.active(pipe) if one.adapter), "mine")


def layer(pipe: Any) -> Any:
    return pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_v


def other(seed: int = 1) -> Any:
    from tests.conftest import make_pipeline

    return make_pipeline(seed).unet


def overwritten(pipe: Any) -> None:
    state = other().state_dict()
    own = {name.replace(".base_layer.", "."): p for name, p in pipe.unet.named_parameters()}
    with torch.no_grad():
        for name, value in state.items():
            own[name].copy_(value)


def assigned(pipe: Any) -> None:
    found = layer(pipe)
    base = getattr(found, "base_layer", found)
    base.weight = torch.nn.Parameter(torch.randn_like(base.weight))


WEIGHTS = ("other weights", "another parameter", "another block")

# What somebody does with a pipeline that has an LoRA of no effect in it beside the erasure, to
# whether a LoRA erasure is there afterwards: else the next image must be an error.
WAYS: dict[str, tuple[Callable[[Any], Any], bool]] = {
    "nothing": (lambda pipe: None, True),
    "set_adapters to another": (lambda pipe: pipe.set_adapters("mine"), True),
    "set_adapters of the unet": (lambda pipe: pipe.unet.set_adapters(["mine"], [0.5]), True),
    "set_adapters with a weight": (
        lambda pipe: pipe.set_adapters([adapter(pipe)], [0.0]),
        True,
    ),
    "a weight a block": (
        lambda pipe: pipe.set_adapters([adapter(pipe)], [{"unet": {"down": 0.1, "up": 0.0}}]),
        True,
    ),
    "set_adapter to none": (lambda pipe: pipe.unet.set_adapter([]), True),
    "one layer to another": (lambda pipe: layer(pipe).set_adapter(["mine"]), True),
    "disable_lora": (lambda pipe: pipe.disable_lora(), True),
    "disable_lora of the unet": (lambda pipe: pipe.unet.disable_lora(), True),
    "disable_adapters": (lambda pipe: pipe.unet.disable_adapters(), True),
    "disable and enable": (lambda pipe: (pipe.disable_lora(), pipe.enable_lora()), True),
    "unload_lora_weights": (lambda pipe: pipe.unload_lora_weights(), False),
    "unload_lora": (lambda pipe: pipe.unet.unload_lora(), False),
    "delete_adapters": (lambda pipe: pipe.delete_adapters(adapter(pipe)), False),
    "delete_adapters of the other": (lambda pipe: pipe.delete_adapters("mine"), True),
    "fuse_lora": (lambda pipe: pipe.fuse_lora(), False),
    "fuse_lora of the other": (lambda pipe: pipe.fuse_lora(adapter_names=["mine"]), False),
    "fuse and unfuse": (lambda pipe: (pipe.fuse_lora(), pipe.unfuse_lora()), True),
    "fuse and unload": (lambda pipe: (pipe.fuse_lora(), pipe.unload_lora_weights()), False),
    "fuse_qkv_projections": (lambda pipe: pipe.fuse_qkv_projections(), False),
    "other weights": (overwritten, False),
    "another parameter": (assigned, False),
    "another block": (lambda pipe: setattr(pipe.unet, "mid_block", other().mid_block), False),
    "another unet": (lambda pipe: setattr(pipe, "unet", other()), False),
    "a copy of the unet": (lambda pipe: setattr(pipe, "unet", copy.deepcopy(pipe.unet)), True),
    "bfloat16 and back": (lambda pipe: pipe.to(torch.bfloat16).to(torch.float32), True),
    "hooks cleared": (lambda pipe: pipe.unet._forward_pre_hooks.clear(), False),
    "remove_all_hooks": (lambda pipe: pipe.remove_all_hooks(), True),
}


@every_kind
@pytest.mark.parametrize("way", WAYS)
def test_the_next_image_is_the_erased_one_or_an_error_and_never_the_bases(
    pipe: Any,
    erasures: dict[str, Erasure],
    files: Callable[[float], str],
    kind: str,
    way: str,
) -> None:
    disturb, there = WAYS[way]
    load(pipe, files(0.0))
    base = images(pipe)
    erasures[kind].add_to(pipe)
    erased = images(pipe)
    apart = float((erased - base).abs().max())
    assert apart > 0.05
    # peft says of a deletion that it chose another
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        disturb(pipe)
        try:
            found = images(pipe)
        except InputError as error:
            assert "\n" not in str(error) and "van gogh" in str(error)
            found = None
    if kind in ("lowrank", "transport"):
        assert (found is not None) is there
    if kind == "guidance" and found is not None and way in WEIGHTS:
        # It is the image of other weights, steered.
        unsee.remove(pipe)
        assert (found - images(pipe)).abs().max() > 0.05
        return
    # 0.2 is what bfloat16 leaves
    assert found is None or (found - erased).abs().max() < max(1e-4, 0.2 * apart)


@pytest.mark.parametrize(
    "way, words",
    {
        "disable_lora": "was switched off, and is switched on again",
        "set_adapters to another": "was switched off, and is switched on again",
        "set_adapters with a weight": "was given another weight, and is switched on again",
    }.items(),
)
def test_what_was_switched_off_is_switched_on_with_one_warning(
    pipe: Any, erasures: dict[str, Erasure], files: Callable[[float], str], way: str, words: str
) -> None:
    load(pipe, files(0.0))
    erasures["lowrank"].add_to(pipe)
    erased = images(pipe)
    WAYS[way][0](pipe)
    with pytest.warns(UserWarning, match=f"'van gogh' {words}.*unsee.remove") as told:
        assert torch.equal(images(pipe), erased)
    assert len(told) == 1
    WAYS[way][0](pipe)
    assert torch.equal(images(pipe), erased)


@pytest.mark.parametrize(
    "way, words",
    {
        "unload_lora_weights": "has been taken out of the pipeline: load the pipeline again",
        "fuse_lora": r"call pipe\.unfuse_lora\(\)",
        "fuse_lora of the other": r"call pipe\.unfuse_lora\(\)",
        "other weights": "was made for other weights",
        "another unet": "is not in the unet that the pipeline has now",
        "fuse_qkv_projections": "unfuse_qkv_projections",
    }.items(),
)
def test_the_error_says_how_to_put_it_right(
    pipe: Any, erasures: dict[str, Erasure], files: Callable[[float], str], way: str, words: str
) -> None:
    load(pipe, files(0.0))
    erasures["lowrank"].add_to(pipe)
    WAYS[way][0](pipe)
    with pytest.raises(InputError, match=f"The erasure 'van gogh' .*{words}"):
        images(pipe)


def test_a_lora_overwritten_in_place_is_an_error(pipe: Any, erasures: dict[str, Erasure]) -> None:
    erasures["lowrank"].add_to(pipe)
    again = dict(erasures["lowrank"].tensors)
    pipe.unet.load_lora_adapter(
        {name: torch.zeros_like(t) for name, t in again.items()},
        prefix="unet",
        adapter_name="van-gogh",
        hotswap=True,
    )
    with pytest.raises(InputError, match="'van gogh' has been overwritten"):
        images(pipe)


@pytest.mark.parametrize("kind", ["lowrank", "transport", "dense"])
def test_whichever_of_its_tensors_is_overwritten_the_next_image_is_an_error(
    pipe: Any, erasures: dict[str, Erasure], kind: str
) -> None:
    erasures[kind].add_to(pipe)
    pipe(["a bomb"], num_inference_steps=1, output_type="latent")
    parameters = dict(pipe.unet.named_parameters())
    for name in erasures[kind].tensors:
        inside = name.removeprefix("unet.").removesuffix("_delta")
        if kind != "dense":
            inside = inside.replace(".weight", ".van-gogh.weight")
        before = parameters[inside].detach().clone()
        with torch.no_grad():
            parameters[inside].mul_(1.5)
        with pytest.raises(InputError, match="'van gogh' has been overwritten"):
            pipe(["a bomb"], num_inference_steps=1)
        with torch.no_grad():
            parameters[inside].copy_(before)
    pipe(["a bomb"], num_inference_steps=1, output_type="latent")


def test_a_callback_that_switches_it_off_on_the_way_is_undone_at_the_next_step(
    pipe: Any, erasures: dict[str, Erasure]
) -> None:
    erasures["lowrank"].add_to(pipe)
    erased = images(pipe)

    def callback(pipe: Any, step: int, t: Any, given: dict[str, Any]) -> dict[str, Any]:
        pipe.disable_lora()
        return given

    with pytest.warns(UserWarning, match="was switched off"):
        assert torch.equal(images(pipe, callback_on_step_end=callback), erased)


@pytest.mark.parametrize("way", ["unload_lora_weights", "delete_adapters", "fuse_lora"])
def test_a_callback_that_takes_it_out_on_the_way_is_an_error_at_the_next_step(
    pipe: Any, erasures: dict[str, Erasure], files: Callable[[float], str], way: str
) -> None:
    load(pipe, files(0.0))
    erasures["lowrank"].add_to(pipe)

    def callback(pipe: Any, step: int, t: Any, given: dict[str, Any]) -> dict[str, Any]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            WAYS[way][0](pipe)
        return given

    with pytest.raises(InputError, match="The erasure 'van gogh'"):
        images(pipe, callback_on_step_end=callback)


def test_a_scale_for_all_loras_is_refused(pipe: Any, erasures: dict[str, Erasure]) -> None:
    erasures["lowrank"].add_to(pipe)
    with pytest.raises(InputError, match="would weaken the erasure 'van gogh'.*set_adapters"):
        images(pipe, cross_attention_kwargs={"scale": 0.5})


def test_a_lora_of_ones_own_acts_beside_the_erasure_at_its_weight(
    pipe: Any, erasures: dict[str, Erasure], files: Callable[[float], str]
) -> None:
    load(pipe, files(0.3))
    pipe.set_adapters("mine", 0.5)
    before = images(pipe)
    remove = erasures["lowrank"].add_to(pipe)
    both = images(pipe)
    remove()
    assert torch.equal(images(pipe), before)
    pipe.unload_lora_weights()
    erasures["lowrank"].add_to(pipe)
    alone = images(pipe)
    load(pipe, files(0.3))
    with pytest.warns(UserWarning, match="was switched off"):
        pipe.set_adapters("mine", 0.5)
        torch.testing.assert_close(images(pipe), both, rtol=0, atol=1e-4)
    assert (both - alone).abs().max() > 0.02 and (both - before).abs().max() > 0.02
    pipe.delete_adapters("mine")
    torch.testing.assert_close(images(pipe), alone, rtol=0, atol=1e-5)


# What is on


@every_kind
def test_active_says_what_is_on_and_remove_takes_it_off_bit_for_bit(
    pipe: Any, erasures: dict[str, Erasure], kind: str
) -> None:
    base, before = images(pipe), vars(pipe).copy()
    assert unsee.active(pipe) == []
    erasures[kind].add_to(pipe)
    erasures["knife"].add_to(pipe)
    one, two = unsee.active(pipe)
    method = "sld" if kind == "guidance" else "uce"
    of = "lowrank" if kind == "transport" else kind
    lora = "van-gogh" if of == "lowrank" else None
    assert one == unsee.Active("van gogh", of, method, lora, 1.0)
    assert two == unsee.Active("knife", "lowrank", "uce", "knife", 1.0)
    both = images(pipe)
    unsee.remove(pipe, "knife")
    alone = images(pipe)
    assert unsee.active(pipe) == [one] and not torch.equal(alone, base)
    assert not torch.equal(both, alone)
    unsee.remove(pipe)
    assert unsee.active(pipe) == [] and torch.equal(images(pipe), base)
    assert vars(pipe).keys() == before.keys()
    hooks = (pipe.unet._forward_pre_hooks, pipe.unet._forward_hooks)
    assert not any((*hooks, pipe.text_encoder._forward_hooks))
    assert "save_pretrained" not in vars(pipe.unet)


@every_kind
@pytest.mark.parametrize("way", ["unload_lora_weights", "another unet", "other weights"])
def test_what_was_taken_out_can_be_said_to_be_off(
    pipe: Any, erasures: dict[str, Erasure], files: Callable[[float], str], kind: str, way: str
) -> None:
    load(pipe, files(0.0))
    erasures[kind].add_to(pipe)
    WAYS[way][0](pipe)
    unsee.remove(pipe, "van gogh")
    found = images(pipe)
    fresh = StableDiffusionPipeline(**pipe.components, requires_safety_checker=False)
    fresh.set_progress_bar_config(disable=True)
    assert unsee.active(pipe) == [] and torch.equal(images(fresh), found)
    if way != "unload_lora_weights":
        want = load_pipeline(pipe.name_or_path, device="cpu")
        want.unet = other()
        torch.testing.assert_close(found, images(want), rtol=0, atol=1e-5)


def test_a_name_that_is_not_on_is_refused(pipe: Any, erasures: dict[str, Erasure]) -> None:
    with pytest.raises(InputError, match="No erasure is named 'van gogh': none is on"):
        unsee.remove(pipe, "van gogh")
    erasures["lowrank"].add_to(pipe)
    with pytest.raises(InputError, match="'vangogh'. Did you mean 'van gogh'"):
        unsee.remove(pipe, "vangogh")
    assert len(unsee.active(pipe)) == 1


def test_what_is_fused_is_taken_off_only_once_it_is_unfused(
    pipe: Any, erasures: dict[str, Erasure]
) -> None:
    base = images(pipe)
    erasures["lowrank"].add_to(pipe)
    pipe.fuse_lora()
    with pytest.raises(InputError, match=r"pipe\.unfuse_lora\(\)"):
        unsee.remove(pipe)
    pipe.unfuse_lora()
    unsee.remove(pipe)
    torch.testing.assert_close(images(pipe), base, rtol=0, atol=1e-4)


# Names


def test_a_free_name_is_sought_and_never_counted(
    pipe: Any, erasures: dict[str, Erasure], files: Callable[[float], str]
) -> None:
    a, b = erasures["lowrank"], erasures["knife"]
    pipe.load_lora_weights(files(0.0), adapter_name="van-gogh-3")
    a.add_to(pipe)
    off = b.add_to(pipe)
    a.add_to(pipe)
    off()
    a.add_to(pipe)
    names = [one.adapter for one in unsee.active(pipe)]
    assert names == ["van-gogh", "van-gogh-2", "van-gogh-4"]
    images(pipe)
    unsee.remove(pipe)
    assert list(pipe.unet.peft_config) == ["van-gogh-3"]


def test_a_concept_called_as_a_part_of_torch_is_erased_too(
    pipe: Any, erasures: dict[str, Erasure]
) -> None:
    with erasures["train"].applied(pipe):
        assert [one.adapter for one in unsee.active(pipe)] == ["train-2"]
        images(pipe)


# Saving


@pytest.mark.parametrize("kind", ["lowrank", "dense"])
def test_a_saved_pipeline_is_the_erased_one_and_says_so(
    pipe: Any, erasures: dict[str, Erasure], kind: str, tmp_path: Path, tiny_folder: Path
) -> None:
    erasures[kind].add_to(pipe)
    erasures["knife"].add_to(pipe)
    erased = images(pipe)
    pipe.save_pretrained(tmp_path / "erased")
    assert torch.equal(images(pipe), erased)
    plain = DiffusionPipeline.from_pretrained(tmp_path / "erased")
    plain.set_progress_bar_config(disable=True)
    torch.testing.assert_close(images(plain), erased, rtol=0, atol=1e-5)
    base = load_pipeline(tiny_folder, device="cpu")
    assert plain.unet.state_dict().keys() == base.unet.state_dict().keys()
    assert unsee.active(plain) == [
        unsee.Active("van gogh", "weights", "uce"),
        unsee.Active("knife", "weights", "uce"),
    ]
    with pytest.raises(InputError, match="'knife' is part of this model's weights"):
        unsee.remove(plain, "knife")
    plain.save_pretrained(tmp_path / "again")
    again = load_pipeline(tmp_path / "again", device="cpu")
    assert unsee.active(again) == unsee.active(plain)


@pytest.mark.parametrize("kind", ["transport", "guidance"])
def test_what_weights_cannot_hold_is_not_saved_and_nothing_is_written(
    pipe: Any, erasures: dict[str, Erasure], kind: str, tmp_path: Path
) -> None:
    erasures[kind].add_to(pipe)
    for save in (pipe.save_pretrained, pipe.unet.save_pretrained):
        with pytest.raises(InputError, match="'van gogh' .*weights cannot hold"):
            save(tmp_path / "it")
    assert not list(tmp_path.iterdir())
    unsee.remove(pipe)
    pipe.save_pretrained(tmp_path / "it")


def test_another_lora_is_not_saved_into_the_weights_in_silence(
    pipe: Any, erasures: dict[str, Erasure], files: Callable[[float], str], tmp_path: Path
) -> None:
    erasures["lowrank"].add_to(pipe)
    load(pipe, files(0.3))
    pipe.set_adapters([adapter(pipe), "mine"])
    with pytest.raises(InputError, match="carries the LoRA mine beside its erasures"):
        pipe.save_pretrained(tmp_path / "it")
    assert not list(tmp_path.iterdir())


# Other pipelines


def second(pipe: Any, kind: type = StableDiffusionPipeline) -> Any:
    made = kind(**pipe.components, requires_safety_checker=False)
    made.set_progress_bar_config(disable=True)
    return made


@every_kind
def test_a_second_pipeline_on_the_same_parts_is_erased_or_told_how(
    pipe: Any, erasures: dict[str, Erasure], kind: str
) -> None:
    erasures[kind].add_to(pipe)
    erased, also = images(pipe), second(pipe)
    if kind == "guidance":
        with pytest.raises(InputError, match="put it into another pipeline .*add_to"):
            images(also)
        assert unsee.active(also) == []
        erasures[kind].add_to(also)
    assert torch.equal(images(also), erased) and torch.equal(images(pipe), erased)
    assert [one.name for one in unsee.active(also)] == ["van gogh"]


@every_kind
def test_a_shallow_copy_is_erased_or_told_how(
    tiny_folder: Path, erasures: dict[str, Erasure], kind: str
) -> None:
    pipe = load_pipeline(tiny_folder, erasures[kind], device="cpu")
    also = copy.copy(pipe)
    if kind == "guidance":
        with pytest.raises(InputError, match="put it into another pipeline .*add_to"):
            images(also)
    else:
        assert torch.equal(images(also), images(pipe))


@every_kind
def test_a_deep_copy_is_erased_and_is_a_pipeline_of_its_own(
    pipe: Any, erasures: dict[str, Erasure], kind: str
) -> None:
    base = images(pipe)
    erasures[kind].add_to(pipe)
    erased, copied = images(pipe), copy.deepcopy(pipe)
    unsee.remove(pipe)
    assert torch.equal(images(pipe), base)
    assert torch.equal(images(copied), erased)
    if kind in ("lowrank", "transport"):
        copied.disable_lora()
        with pytest.warns(UserWarning, match="was switched off"):
            assert torch.equal(images(copied), erased)
    assert len(unsee.active(copied)) == 1
    unsee.remove(copied)
    assert torch.equal(images(copied), base)


@every_kind
@pytest.mark.parametrize(
    "kind_of_pipeline", [StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline]
)
def test_a_pipeline_that_starts_from_an_image_is_erased_and_can_be_erased_from(
    pipe: Any, erasures: dict[str, Erasure], kind: str, kind_of_pipeline: type
) -> None:
    made, picture = second(pipe, kind_of_pipeline), torch.rand(2, 3, 16, 16)
    call: dict[str, Any] = {"image": picture, "strength": 0.7, "steps": 10}
    if kind_of_pipeline is StableDiffusionInpaintPipeline:
        call |= {"mask_image": torch.ones(2, 1, 16, 16), "height": 16, "width": 16}
    base = images(made, **call)
    with erasures[kind].applied(made):
        assert (images(made, **call) - base).abs().max() > 0.05
    assert torch.equal(images(made, **call), base)
    found = UCE().fit(parts_of(made), [CONCEPT])
    assert all(torch.equal(t, erasures["lowrank"].tensors[n]) for n, t in found.tensors.items())


def test_a_pipeline_derived_from_a_described_one_is_taken_apart(pipe: Any) -> None:
    class Mine(StableDiffusionPipeline):  # type: ignore[misc]
        pass

    assert list(parts_of(second(pipe, Mine)).readers()["sequence"].layers) == list(
        parts_of(pipe).readers()["sequence"].layers
    )
    with pytest.raises(InputError, match="Cannot take a object apart"):
        parts_of(object())


def test_a_compiled_unet_has_the_names_of_the_uncompiled_one(
    pipe: Any, erasures: dict[str, Erasure]
) -> None:
    unet = pipe.unet
    pipe.unet = torch.compile(unet)
    found = UCE().fit(parts_of(pipe), [CONCEPT])
    assert found.record.base == erasures["lowrank"].record.base
    assert found.tensors.keys() == erasures["lowrank"].tensors.keys()
    for kind in KINDS:
        remove = erasures[kind].add_to(pipe)
        assert len(unsee.active(pipe)) == 1
        compiled, pipe.unet = pipe.unet, unet
        assert len(unsee.active(pipe)) == 1
        images(pipe)
        pipe.unet = compiled
        remove()


@pytest.mark.slow
@every_kind
def test_a_compiled_unet_is_erased(pipe: Any, erasures: dict[str, Erasure], kind: str) -> None:
    torch.compiler.reset()
    erasures[kind].add_to(pipe)
    erased = images(pipe)
    pipe.unet = torch.compile(pipe.unet, backend="eager")
    torch.testing.assert_close(images(pipe), erased, rtol=0, atol=1e-5)
    if kind == "lowrank":
        # pipe.unload_lora_weights() passes a compiled module by
        pipe.unet._orig_mod.unload_lora()
        with pytest.raises(InputError, match="has been taken out"):
            images(pipe)


@pytest.mark.slow
@every_kind
def test_what_was_compiled_before_is_erased_too(
    pipe: Any, erasures: dict[str, Erasure], kind: str
) -> None:
    with erasures[kind].applied(pipe):
        erased = images(pipe)
    torch.compiler.reset()
    pipe.unet = torch.compile(pipe.unet, backend="eager")
    images(pipe)
    erasures[kind].add_to(pipe)
    torch.testing.assert_close(images(pipe), erased, rtol=0, atol=1e-5)


def test_a_unet_that_runs_without_its_hooks_gives_no_image(
    pipe: Any, erasures: dict[str, Erasure], monkeypatch: pytest.MonkeyPatch
) -> None:
    erasures["lowrank"].add_to(pipe)
    monkeypatch.setattr(type(pipe.unet), "__call__", type(pipe.unet).forward)
    with pytest.raises(InputError, match="'van gogh' did not act"):
        images(pipe)


# Offloading, with accelerate's hooks on the CPU


@every_kind
def test_under_offloading_by_models_it_acts_and_comes_off(
    pipe: Any, erasures: dict[str, Erasure], kind: str
) -> None:
    from accelerate import cpu_offload_with_hook

    base = images(pipe)
    hook = None
    for model in (pipe.text_encoder, pipe.unet, pipe.vae):
        _, hook = cpu_offload_with_hook(model, "cpu", hook)
    with erasures[kind].applied(pipe):
        assert (images(pipe) - base).abs().max() > 0.05
    assert torch.equal(images(pipe), base)


@every_kind
def test_under_sequential_offloading_it_acts_if_it_was_there_before(
    pipe: Any, erasures: dict[str, Erasure], kind: str
) -> None:
    from accelerate import cpu_offload

    fresh = erasures[kind].add_to(pipe)
    erased = images(pipe)
    for model in (pipe.text_encoder, pipe.unet, pipe.vae):
        cpu_offload(model, torch.device("cpu"))
    assert pipe.unet.conv_in.weight.is_meta and pipe.device.type == "meta"
    torch.testing.assert_close(images(pipe), erased, rtol=0, atol=1e-6)
    if kind == "dense":
        with pytest.raises(InputError, match="offloaded, and an erasure in them cannot be taken"):
            fresh()
    else:
        fresh()
        with pytest.raises(InputError, match="not in memory.*before enable_sequential_cpu"):
            UCE().fit(parts_of(pipe), [CONCEPT])
    with pytest.raises(InputError, match="not in memory.*before enable_sequential_cpu"):
        erasures["lowrank"].add_to(pipe)


# Guides, and what two at once do


def broken_off(pipe: Any) -> None:
    def callback(*given: Any) -> dict[str, Any]:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        images(pipe, callback_on_step_end=callback)


@pytest.mark.parametrize(
    "left",
    {
        "a call that broke off": broken_off,
        "a prompt of one's own": lambda pipe: pipe.encode_prompt(["a dog"] * 2, "cpu", 1, True),
    }.items(),
    ids=lambda item: item[0],
)
def test_what_is_left_of_a_call_steers_nothing(
    pipe: Any, erasures: dict[str, Erasure], left: tuple[str, Callable[[Any], Any]]
) -> None:
    erasures["guidance"].add_to(pipe)
    erased, also = images(pipe), second(pipe)
    left[1](pipe)
    with pytest.raises(InputError, match="put it into another pipeline"):
        images(also)
    with pytest.raises(InputError, match="in a call of the pipeline"):
        pipe.unet(torch.zeros(4, 4, 8, 8), 1, torch.zeros(4, 16, 32))
    assert torch.equal(images(pipe), erased)


def test_a_callback_that_encodes_a_prompt_does_not_begin_anew(
    pipe: Any, erasures: dict[str, Erasure]
) -> None:
    erasures["guidance"].add_to(pipe)
    erased = images(pipe, 6)

    def callback(pipe: Any, step: int, t: Any, given: dict[str, Any]) -> dict[str, Any]:
        pipe.encode_prompt(["a painting by van gogh", "a photo of a bomb"], "cpu", 1, True)
        return given

    assert torch.equal(images(pipe, 6, callback_on_step_end=callback), erased)


def test_a_text_that_is_changed_between_two_steps_is_refused(
    pipe: Any, erasures: dict[str, Erasure]
) -> None:
    erasures["guidance"].add_to(pipe)

    def callback(pipe: Any, step: int, t: Any, given: dict[str, Any]) -> dict[str, Any]:
        return {"prompt_embeds": given["prompt_embeds"] * 1.5}

    with pytest.raises(InputError, match="changed between two steps"):
        images(
            pipe,
            callback_on_step_end=callback,
            callback_on_step_end_tensor_inputs=["prompt_embeds"],
        )


def test_embeddings_in_the_place_of_prompts_are_steered(
    pipe: Any, erasures: dict[str, Erasure]
) -> None:
    prompts = ["a painting by van gogh", "a photo of a bomb"]
    text, empty = pipe.encode_prompt(prompts, "cpu", 1, True)
    erasures["guidance"].add_to(pipe)
    erased = images(pipe)
    call = {"prompt": None, "prompt_embeds": text, "negative_prompt_embeds": empty}
    assert torch.equal(images(pipe, **call), erased)


@pytest.mark.parametrize("kind", ["guidance", "transport"])
def test_arguments_are_known_however_they_are_passed(
    pipe: Any, erasures: dict[str, Erasure], kind: str
) -> None:
    names = ("sample", "timestep", "encoder_hidden_states")

    class ByKeyword(torch.nn.Module):
        """A pipeline's UNet that passes on each argument by keyword, or as many by position."""

        def __init__(self, unet: Any, keyword: bool) -> None:
            super().__init__()
            self._orig_mod, self.keyword = unet, keyword
            self.config, self.dtype, self.device = unet.config, unet.dtype, unet.device

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            given = dict(zip(names, args, strict=False)) | kwargs
            if self.keyword:
                return self._orig_mod(**given)
            first = [given.pop(name) for name in names]
            return self._orig_mod(*first, **given)

    erasures[kind].add_to(pipe)
    erased, unet = images(pipe), pipe.unet
    for keyword in (True, False):
        vars(pipe)["unet"] = ByKeyword(unet, keyword)
        assert torch.equal(images(pipe), erased)


@every_kind
def test_two_threads_on_one_pipeline_are_refused(
    pipe: Any, erasures: dict[str, Erasure], kind: str
) -> None:
    erasures[kind].add_to(pipe)
    erased, errors = images(pipe), []

    def draw() -> None:
        try:
            images(pipe)
        except InputError as error:
            errors.append(str(error))

    def callback(pipe: Any, step: int, t: Any, given: dict[str, Any]) -> dict[str, Any]:
        thread = threading.Thread(target=draw)
        thread.start()
        thread.join()
        return given

    images(pipe, 1, callback_on_step_end=callback)
    assert len(errors) == 1 and errors[0].startswith("Two threads draw with one pipeline")
    assert torch.equal(images(pipe), erased)
    thread = threading.Thread(target=draw)
    thread.start()
    thread.join()
    assert len(errors) == 1


@pytest.mark.parametrize("kind", ["lowrank", "dense"])
def test_two_pipelines_on_one_unet_draw_in_two_threads(
    pipe: Any, erasures: dict[str, Erasure], kind: str
) -> None:
    """What keeps no count was said not to have acted, as one loop's look hid the other's."""
    erasures[kind].add_to(pipe)
    other = second(pipe)
    other.scheduler = copy.deepcopy(pipe.scheduler)
    erasures["knife"].add_to(other)
    erased, found = images(pipe), []

    def callback(pipe: Any, step: int, t: Any, given: dict[str, Any]) -> dict[str, Any]:
        thread = threading.Thread(target=lambda: found.append(images(other)))
        thread.start()
        thread.join()
        return given

    assert torch.equal(images(pipe, callback_on_step_end=callback), erased)
    assert found and all(torch.equal(one, erased) for one in found)


@every_kind
@pytest.mark.parametrize("more", ["lowrank", "dense", "guidance"])
def test_two_erasures_stacked_both_act_and_off_is_the_base_bit_for_bit(
    pipe: Any, erasures: dict[str, Erasure], kind: str, more: str
) -> None:
    base, alone = images(pipe), []
    for one in (kind, more):
        with erasures[one].applied(pipe):
            alone.append(images(pipe))
    removes = [erasures[one].add_to(pipe) for one in (kind, more)]
    both = images(pipe)
    assert all((both - image).abs().max() > 1e-3 for image in (base, *alone))
    for remove, left in zip(removes, (alone[1], base), strict=True):
        remove()
        assert torch.equal(images(pipe), left)


# Transport


def test_the_nearest_of_several_phrases_gives_the_strength(
    pipe: Any, erasures: dict[str, Erasure]
) -> None:
    made = erasures["transport"]

    def of(*phrases: str) -> Tensor:
        record = dataclasses.replace(made.record, transport=Transport("token", phrases))
        with dataclasses.replace(made, record=record).applied(pipe):
            return images(pipe, guidance_scale=1.0)

    base, whole = images(pipe, guidance_scale=1.0), of("van gogh", "bomb")
    # Each phrase alone reaches one of the two prompts, in either order both are reached.
    assert torch.equal(of("bomb", "van gogh"), whole)
    first, last = of("van gogh"), of("bomb")
    torch.testing.assert_close(torch.stack([first[0], last[1]]), whole, rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.stack([last[0], first[1]]), base, rtol=0, atol=1e-5)
    assert all((one - other).abs().max() > 0.01 for one, other in zip(base, whole, strict=True))


@pytest.mark.parametrize("kind", ["token", "sentence", "both"])
def test_a_prompt_that_is_one_of_the_phrases_gets_the_whole_strength(
    pipe: Any, erasures: dict[str, Erasure], kind: Any
) -> None:
    made, prompts = erasures["transport"], ["van gogh", "bomb"]

    def of(*phrases: str) -> Tensor:
        record = dataclasses.replace(made.record, transport=Transport(kind, phrases))
        with dataclasses.replace(made, record=record).applied(pipe):
            return images(pipe, prompt=prompts, guidance_scale=1.0)

    with erasures["lowrank"].applied(pipe):
        whole = images(pipe, prompt=prompts, guidance_scale=1.0)
    for phrases in (("van gogh", "bomb"), ("bomb", "van gogh"), ("cat", "bomb", "van gogh")):
        torch.testing.assert_close(of(*phrases), whole, rtol=0, atol=1e-4)
    # Of one phrase alone, the other prompt gets less
    assert (of("van gogh")[1] - whole[1]).abs().max() > 1e-3
    assert (of("bomb")[0] - whole[0]).abs().max() > 1e-3


def test_a_row_whose_embedding_was_changed_gets_the_whole_strength(
    pipe: Any, erasures: dict[str, Erasure]
) -> None:
    def drawn(text: Tensor) -> Tensor:
        return images(pipe, prompt=None, prompt_embeds=text, guidance_scale=1.0)

    with erasures["transport"].applied(pipe):
        text, _ = pipe.encode_prompt(["a dog", "a cat"], "cpu", 1, False)
        changed = text.clone()
        changed[1] *= 1.001
        plain, found = drawn(text), drawn(changed)
    with erasures["lowrank"].applied(pipe):
        whole = drawn(changed)
    base = drawn(changed)
    torch.testing.assert_close(found[0], plain[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(found[0], base[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(found[1], whole[1], rtol=0, atol=1e-5)
    assert (whole[1] - base[1]).abs().max() > 0.01
