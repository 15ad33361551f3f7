"""An erasure for other tools: each file is read back by a reader that is not ours."""

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import yaml
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_lumina2_to_diffusers,
    convert_wan_transformer_to_diffusers,
)
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

import unsee
from unsee import Concept, Erasure, InputError
from unsee.erasers import ERASERS
from unsee.pipelines.card import card
from unsee.pipelines.export import TARGETS, Target
from unsee.pipelines.names import COMFYUI, KOHYA, PUBLISHED_XL, of_unet
from unsee.pipelines.parts import described
from unsee.tests.families import PIPELINES, build
from unsee.training.record import lowrank

PROMPTS = ("a painting by van gogh", "a photo of a dog")
UNETS = ("stable-diffusion", "stable-diffusion-xl")
# Names of layers that end alike; the adapters are counted.
pytestmark = pytest.mark.filterwarnings("ignore:While injecting the PEFT adapters:RuntimeWarning")
each = pytest.mark.parametrize("name", list(PIPELINES))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny pipeline of that name."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp("models") / name
            build(name).save_pretrained(made[name])
        return made[name]

    return folder


@torch.no_grad()
def predicted(pipe: Any) -> Tensor:
    parts = described(pipe)
    x = torch.randn(2, *parts.latent_shape(), generator=torch.Generator().manual_seed(0))
    return parts.predict(x, torch.tensor(500.0), parts.encode(PROMPTS))


def apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


def everything(pipe: Any, known: Callable[[str], bool] = lambda layer: True) -> Erasure:
    """An erasure of rank 2 in every linear layer and convolution of the denoiser."""
    parts = described(pipe)
    draw = torch.Generator().manual_seed(0)
    updates = {}
    for layer, module in parts.denoiser.named_modules():
        # peft has no merge for grouped convolutions.
        grouped = getattr(module, "groups", 1) > 1
        if isinstance(module, (nn.Linear, nn.Conv2d)) and not grouped and known(layer):
            out, *rest = module.weight.shape
            a = torch.randn(2, *rest, generator=draw) * 0.05
            b = torch.randn(out, 2, *(1 for _ in rest[1:]), generator=draw)
            updates[layer] = (a, b)
    return lowrank(parts, "uce", ERASERS["uce"](), [Concept("van gogh", "style")], 0, updates)


def taken(pipe: Any, file: Path, erasure: Erasure) -> None:
    """diffusers reads all of a file, and predicts with it what the erasure does."""
    base = predicted(pipe)
    with erasure.applied(pipe):
        ours = predicted(pipe)
    assert apart(ours, base) > 1e-4
    pipe.load_lora_weights(file)
    try:
        denoiser = described(pipe).denoiser
        adapters = sum(hasattr(module, "lora_A") for module in denoiser.modules())
        assert adapters == len(erasure.tensors) // 2
        assert apart(predicted(pipe), ours) < 1e-5
    finally:
        pipe.unload_lora_weights()
    assert torch.equal(predicted(pipe), base)


@pytest.mark.parametrize("to", ["diffusers", "kohya"])
@each
def test_diffusers_reads_every_layer_of_the_lora(name: str, to: Target, tmp_path: Path) -> None:
    pipe, path = build(name), tmp_path / "it.safetensors"
    sized = pipe if to == "kohya" and name == "stable-diffusion-xl" else None
    erasure = unsee.erase(pipe, "van gogh", check=False)
    if to not in readable(pipe):
        with pytest.raises(
            InputError, match=f"are known for a {type(pipe).__name__}|no LoRA into"
        ):
            unsee.export(erasure, path, to=to, model=sized)
        assert not path.exists()
        return
    unsee.export(erasure, path, to=to, model=sized)
    taken(pipe, path, erasure)
    with safe_open(path, "pt") as file:
        assert not file.metadata()
    # and every layer that the table says is read
    names, config = KOHYA.get(type(pipe).__name__), getattr(pipe, described(pipe).prefix).config
    wide = everything(
        pipe,
        lambda layer: (
            to == "diffusers" or (names is not None and names.of(layer, config) is not None)
        ),
    )
    unsee.export(wide, path, to=to, model=sized, force=True)
    taken(pipe, path, wide)


def readable(pipe: Any) -> tuple[str, ...]:
    """The kinds of LoRA of ours for which there are names, and a loader of diffusers'."""
    if not hasattr(pipe, "load_lora_weights"):
        return ()
    return ("diffusers", "kohya") if type(pipe).__name__ in KOHYA else ("diffusers",)


# ComfyUI, by the rules of its key map


def unet_names(config: Mapping[str, Any]) -> dict[str, str]:
    """diffusers' beginnings of names to the original's, counted block by block as ComfyUI does."""
    found = {
        "conv_in": "input_blocks.0.0",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0",
        "add_embedding.linear_2": "label_emb.0.2",
        "mid_block.attentions.0": "middle_block.1",
        "mid_block.resnets.0": "middle_block.0",
        "mid_block.resnets.1": "middle_block.2",
    }
    place = 1
    for block, kind in enumerate(config["down_block_types"]):
        for layer in range(config["layers_per_block"]):
            found[f"down_blocks.{block}.resnets.{layer}"] = f"input_blocks.{place}.0"
            if kind.startswith("CrossAttn"):
                found[f"down_blocks.{block}.attentions.{layer}"] = f"input_blocks.{place}.1"
            place += 1
        found[f"down_blocks.{block}.downsamplers.0.conv"] = f"input_blocks.{place}.0.op"
        place += 1
    place = 0
    for block, kind in enumerate(config["up_block_types"]):
        for layer in range(config["layers_per_block"] + 1):
            found[f"up_blocks.{block}.resnets.{layer}"] = f"output_blocks.{place}.0"
            if kind.startswith("CrossAttn"):
                found[f"up_blocks.{block}.attentions.{layer}"] = f"output_blocks.{place}.1"
            place += 1
        after = 2 if kind.startswith("CrossAttn") else 1
        found[f"up_blocks.{block}.upsamplers.0.conv"] = f"output_blocks.{place - 1}.{after}.conv"
    return found


RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def comfyui_unet(layers: list[str], original: Mapping[str, Tensor], config: Any) -> dict[str, str]:
    """What ComfyUI takes a LoRA's names for in a UNet: its weight's name in the checkpoint.

    Of each weight: lora_unet_ and the original's name, or diffusers', with underscores; and with
    dots unet. and diffusers' name, in which to_ is processor.to_.
    """
    found = {}
    for weight in original:
        if weight.endswith(".weight"):
            name = weight.removeprefix("model.diffusion_model.").removesuffix(".weight")
            found["lora_unet_" + name.replace(".", "_")] = weight
    starts = unet_names(config)
    for layer in layers:
        start = max((s for s in starts if f"{layer}.".startswith(f"{s}.")), key=len)
        rest = layer.removeprefix(start).removeprefix(".")
        rest = RESNET.get(rest, rest) if ".resnets." in layer else rest
        weight = f"model.diffusion_model.{'.'.join(filter(None, (starts[start], rest)))}.weight"
        assert weight in original, (layer, weight)
        found["lora_unet_" + layer.replace(".", "_")] = weight
        dotted = f"unet.{layer.replace('.to_', '.processor.to_')}"
        found[re.sub(r"(\.to_out)\.0$", r"\1", dotted)] = weight
    return found


def attention(*names: str) -> list[str]:
    return [f"attn.{name}" for name in names]


_JOINT = attention(
    *("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
)
_FEED = [f"{ff}.net.{part}" for ff in ("ff", "ff_context") for part in ("0.proj", "2")]
_EMBEDDERS = [
    f"time_text_embed.{what}_embedder.linear_{n}"
    for what in ("timestep", "text", "guidance")
    for n in (1, 2)
]
_FLUX = [
    *("context_embedder", "x_embedder", "proj_out", "norm_out.linear", *_EMBEDDERS),
    *(f"transformer_blocks.*.{n}" for n in (*_JOINT, *_FEED)),
    *(f"transformer_blocks.*.{n}.linear" for n in ("norm1", "norm1_context")),
    *(f"single_transformer_blocks.*.attn.{n}" for n in ("to_q", "to_k", "to_v")),
    *(f"single_transformer_blocks.*.{n}" for n in ("proj_mlp", "proj_out", "norm.linear")),
]
COMFYUI_READS: dict[str, list[str]] = {
    "FluxPipeline": _FLUX,
    "ChromaPipeline": _FLUX,
    "StableDiffusion3Pipeline": [
        *("context_embedder", "proj_out", "norm_out.linear", "pos_embed.proj", *_EMBEDDERS[:4]),
        *(f"transformer_blocks.*.{n}" for n in (*_JOINT, *_FEED)),
        *(f"transformer_blocks.*.attn2.{n}" for n in ("to_q", "to_k", "to_v", "to_out.0")),
        *(f"transformer_blocks.*.{n}.linear" for n in ("norm1", "norm1_context")),
    ],
    "AuraFlowPipeline": [
        "context_embedder",
        *(f"joint_transformer_blocks.*.{n}" for n in _JOINT),
        *(f"single_transformer_blocks.*.{n}" for n in _JOINT[:4]),
    ],
    "QwenImagePipeline": ["txt_in", *(f"transformer_blocks.*.{n}" for n in _JOINT)],
    "PixArtSigmaPipeline": [
        *("caption_projection.linear_1", "caption_projection.linear_2"),
        *(
            f"transformer_blocks.*.{attn}.{n}"
            for attn in ("attn1", "attn2")
            for n in ("to_q", "to_k", "to_v", "to_out.0")
        ),
        *(f"transformer_blocks.*.{n}" for n in _FEED[:2]),
    ],
    "Flux2KleinPipeline": [
        *("context_embedder", "x_embedder", "proj_out"),
        *(f"transformer_blocks.*.{n}" for n in _JOINT),
        *(
            f"transformer_blocks.*.{ff}.linear_{end}"
            for ff in ("ff", "ff_context")
            for end in ("in", "out")
        ),
        *(f"single_transformer_blocks.*.attn.{n}" for n in ("to_qkv_mlp_proj", "to_out")),
    ],
    "ZImagePipeline": [
        *("cap_embedder.1", "t_embedder.mlp.0", "t_embedder.mlp.2", "all_x_embedder.2-1"),
        *("all_final_layer.2-1.linear", "all_final_layer.2-1.adaLN_modulation.1"),
        *(f"{blocks}.*.adaLN_modulation.0" for blocks in ("layers", "noise_refiner")),
        *(
            f"{blocks}.*.{n}"
            for blocks in ("layers", "context_refiner", "noise_refiner")
            for n in (
                *(f"attention.{n}" for n in ("to_q", "to_k", "to_v", "to_out.0")),
                *(f"feed_forward.w{n}" for n in (1, 2, 3)),
            )
        ),
    ],
}
"""Names behind ``transformer.`` that ComfyUI reads, a number for each star."""


_BLOCK = [f"{a}_attn.{n}" for a in ("self", "cross") for n in "qkvo"]
ORIGINAL: dict[str, tuple[Callable[..., dict[str, Tensor]], list[str]]] = {
    "WanPipeline": (
        convert_wan_transformer_to_diffusers,
        [
            *("text_embedding.0", "text_embedding.2", "time_embedding.0", "time_embedding.2"),
            *("time_projection.1", "head.head", "patch_embedding"),
            *(f"blocks.{i}.{n}" for i in (0, 1) for n in (*_BLOCK, "ffn.0", "ffn.2")),
        ],
    ),
    "Lumina2Pipeline": (
        convert_lumina2_to_diffusers,
        [
            *("cap_embedder.1", "x_embedder", "t_embedder.mlp.0", "t_embedder.mlp.2"),
            *(f"layers.{i}.feed_forward.w{n}" for i in (0, 1) for n in (1, 2, 3)),
        ],
    ),
}
"""Where ComfyUI reads ``diffusion_model.`` and the original model's names: layers that have these,
and by what diffusers finds its own."""


def comfyui_transformer(kind: str, layers: set[str]) -> dict[str, str]:
    """What ComfyUI reads of a LoRA for a transformer, to diffusers' name of the layer."""
    if kind in ORIGINAL:
        convert, names = ORIGINAL[kind]
        numbered = {f"{n}.weight": torch.tensor(i) for i, n in enumerate(names)}
        return {
            f"diffusion_model.{names[int(i)]}": layer.removesuffix(".weight")
            for layer, i in convert(numbered).items()
        }
    patterns = [re.escape(n).replace(r"\*", r"\d+") for n in COMFYUI_READS[kind]]
    return {f"transformer.{n}": n for n in layers if re.fullmatch("|".join(patterns), n)}


def merged(tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """What ComfyUI adds to each weight; nothing of the file may be left over."""
    left, found = dict(tensors), {}
    for name, weight in names.items():
        for up, down in (("lora_up", "lora_down"), ("lora_B", "lora_A")):
            if f"{name}.{up}.weight" in left:
                b, a = left.pop(f"{name}.{up}.weight"), left.pop(f"{name}.{down}.weight")
                alpha = left.pop(f"{name}.alpha", torch.tensor(float(len(a))))
                delta = b.flatten(1) @ a.flatten(1) * (float(alpha) / len(a))
                found[weight] = delta.reshape(len(b), *a.shape[1:])
    assert not left, sorted(left)[:3]
    return found


@pytest.mark.parametrize("name", UNETS)
def test_comfyui_reads_every_layer_of_a_unet(
    name: str, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    folder, path = folders(name), tmp_path / "it.safetensors"
    pipe = unsee.load_pipeline(folder, device="cpu")
    model = folder if name == "stable-diffusion-xl" else None
    for erasure in (unsee.erase(pipe, "van gogh", check=False), everything(pipe)):
        still = {n: torch.zeros_like(t) for n, t in erasure.tensors.items()}
        base = tmp_path / "base.safetensors"
        unsee.export(
            dataclasses.replace(erasure, tensors=still), base, to="checkpoint", force=True
        )
        unsee.export(erasure, path, to="comfyui", model=model, force=True)
        original = load_file(base)
        layers = [n for n, m in pipe.unet.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
        deltas = merged(load_file(path), comfyui_unet(layers, original, pipe.unet.config))
        assert len(deltas) == len(erasure.tensors) // 2
        for weight, delta in deltas.items():
            original[weight] = original[weight] + delta
        converted = convert_ldm_unet_checkpoint(original, dict(pipe.unet.config))
        read = diffusers.UNet2DConditionModel.from_config(pipe.unet.config)
        read.load_state_dict(converted)
        with erasure.applied(pipe):
            ours = predicted(pipe)
        own, pipe.unet = pipe.unet, read.eval()
        assert apart(predicted(pipe), ours) < 1e-5
        pipe.unet = own


@pytest.mark.parametrize("name", [name for name in PIPELINES if name not in UNETS])
def test_comfyui_reads_every_layer_of_a_transformer(name: str, tmp_path: Path) -> None:
    pipe, path = build(name), tmp_path / "it.safetensors"
    kind = type(pipe).__name__
    reader = unsee.erase(pipe, "van gogh", check=False)
    if kind not in COMFYUI:
        with pytest.raises(
            InputError, match=f"No names that comfyui reads are known for a {kind}"
        ):
            unsee.export(reader, path, to="comfyui")
        return
    layers = {n for n, _ in described(pipe).denoiser.named_modules()}
    read = comfyui_transformer(kind, layers)
    assert set(read.values()) <= layers
    for erasure in (reader, everything(pipe, lambda n: COMFYUI[kind].of(n, {}) is not None)):
        unsee.export(erasure, path, to="comfyui", force=True)
        deltas = merged(load_file(path), read)
        assert len(deltas) == len(erasure.tensors) // 2
        with erasure.applied(pipe):
            ours = predicted(pipe)
        one = build(name)
        with torch.no_grad():
            for layer, delta in deltas.items():
                one.transformer.get_submodule(layer).weight += delta
        assert apart(predicted(one), ours) < 1e-5


def test_comfyui_fuses_the_attention_of_lumina_so_that_no_lora_of_it_goes_there(
    tmp_path: Path,
) -> None:
    wide = everything(build("lumina-2"), lambda layer: ".attn." in layer)
    with pytest.raises(InputError, match="edits .*attn.*, which comfyui does not know by a name"):
        unsee.export(wide, tmp_path / "it.safetensors", to="comfyui")


SDXL: dict[str, Any] = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 2,
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


def test_names_of_the_published_sdxl_need_no_base() -> None:
    """Of each layer, on no memory; the counting is that of ComfyUI above."""
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(**SDXL)
    layers = [n for n, m in unet.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    starts = unet_names(unet.config)
    for layer in layers:
        start = max((s for s in starts if f"{layer}.".startswith(f"{s}.")), key=len)
        rest = layer.removeprefix(start)
        rest = f".{RESNET[rest[1:]]}" if ".resnets." in layer else rest
        assert of_unet(layer, PUBLISHED_XL) == starts[start] + rest
    readers = [n for n in layers if re.search(r"attn2\.to_[kv]|add_embedding.linear_1", n)]
    assert len(readers) == 141


def as_published(erasure: Erasure, up: int) -> Erasure:
    """An erasure with one layer, of that place in an up block."""
    (component,) = erasure.record.base.components.values()
    old = next(iter(component.layers))
    new = f"up_blocks.0.attentions.{up}.transformer_blocks.0.attn2.to_k"
    one = dataclasses.replace(
        component,
        layers={new: component.layers[old]},
        sample={new: (component.sample or {})[old]},
    )
    base = dataclasses.replace(erasure.record.base, components={"unet": one})
    tensors = {
        key.replace(old, new): tensor
        for key, tensor in erasure.tensors.items()
        if key.startswith(f"unet.{old}.")
    }
    return Erasure(tensors, dataclasses.replace(erasure.record, base=base))


def test_of_another_sdxl_the_base_must_be_named(tmp_path: Path) -> None:
    erasure = unsee.erase(build("stable-diffusion-xl"), "van gogh", check=False)
    path = tmp_path / "it.safetensors"
    with pytest.raises(InputError, match="name the base with --model"):
        unsee.export(as_published(erasure, 1), path, to="kohya")
    unsee.export(as_published(erasure, 2), path, to="kohya")
    start = "lora_unet_output_blocks_2_1_transformer_blocks_0_attn2_to_k"
    ends = ("alpha", "lora_down.weight", "lora_up.weight")
    assert sorted(load_file(path)) == [f"{start}.{end}" for end in ends]
    with pytest.raises(InputError, match="no UNet whose configuration"):
        unsee.export(erasure, tmp_path / "other.safetensors", to="kohya", model=str(tmp_path))
    assert not (tmp_path / "other.safetensors").exists()


# Into the weights


@torch.no_grad()
def drawn(pipe: Any) -> Tensor:
    """Two images, text encoders and autoencoder among it."""
    arguments = described(pipe).call(prompt=list(PROMPTS), steps=2)
    draws = [torch.Generator().manual_seed(i) for i in range(len(PROMPTS))]
    made: Tensor = pipe(**arguments, generator=draws, output_type="pt").images
    return made


@each
def test_a_pipeline_has_the_erasure_in_its_weights(name: str, tmp_path: Path) -> None:
    pipe, other, out = build(name), build(name), tmp_path / "erased"
    erasure = unsee.erase(pipe, "van gogh", check=False)
    base = predicted(pipe)
    unsee.export(erasure, out, to="pipeline", model=pipe)
    plain = diffusers.DiffusionPipeline.from_pretrained(out)
    with erasure.applied(pipe):
        ours = predicted(pipe)
    prefix = described(pipe).prefix
    setattr(other, prefix, getattr(plain, prefix))
    assert apart(predicted(other), ours) < 1e-5 < apart(ours, base)
    assert [one.name for one in unsee.active(plain)] == ["van gogh"]
    assert [path.name for path in tmp_path.iterdir()] == ["erased"]


def test_the_model_card_says_what_the_record_does(
    folders: Callable[[str], Path], tmp_path: Path
) -> None:
    pipe = unsee.load_pipeline(folders("stable-diffusion"), device="cpu")
    concept = Concept("van | *gogh*\n# <b>", "style", ("van gogh",), "monet", ("dog",))
    erasure = unsee.erase(pipe, concept, check=False, preset="2025")
    unsee.export(erasure, tmp_path / "a", to="pipeline", model=pipe, license="openrail++")
    text = (tmp_path / "a/README.md").read_text("utf-8")
    _, head, body = text.split("---\n", 2)
    assert yaml.safe_load(head) == {
        "license": "openrail++",
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "tags": ["unsee", "concept-erasure"],
    }
    settings = "".join(line for line in body.splitlines() if line.startswith("    "))
    assert json.loads(settings) == erasure.record.to_json()["settings"]
    assert "van \\| \\*gogh\\* \\# \\<b\\>" in body and "<b>" not in body
    said = ("uce", "monet", "dog", "van gogh", erasure.sha256, "StableDiffusionPipeline")
    assert all(word in body for word in (*said, "openrail++", "no promise"))
    unsee.export(erasure, tmp_path / "b", to="pipeline", model=pipe)
    assert "license: unknown" in (tmp_path / "b/README.md").read_text("utf-8")
    # The same writer as push has, but for what is said of a file.
    unsee.push(erasure, folder=tmp_path / "c", name="it.safetensors", license="openrail++")
    file = (tmp_path / "c/README.md").read_text("utf-8")
    tables = [[row for row in page.splitlines() if row.startswith("|")] for page in (text, file)]
    assert tables[0] == tables[1] and len(tables[0]) > 6 and "## Audit" in text
    # A name of the hub is a link there.
    named = dataclasses.replace(erasure.record.base, name="stabilityai/stable-diffusion-2")
    other = dataclasses.replace(erasure, record=dataclasses.replace(erasure.record, base=named))
    assert "\nbase_model: stabilityai/stable-diffusion-2\n" in card(other)


CHECKPOINTED = {
    # CLIP by OpenAI's names, by OpenCLIP's, and both
    "1.x": "tiny",
    "2.x": "stable-diffusion",
    "XL": "stable-diffusion-xl",
}


@pytest.mark.parametrize("version", CHECKPOINTED)
@pytest.mark.parametrize("method", ["uce", "dense"])
def test_a_checkpoint_is_read_whole_by_from_single_file_and_by_load_pipeline(
    version: str,
    method: str,
    folders: Callable[[str], Path],
    tiny_folder: Path,
    tmp_path: Path,
) -> None:
    name = CHECKPOINTED[version]
    folder, out = tiny_folder if name == "tiny" else folders(name), tmp_path / "it.safetensors"
    pipe = unsee.load_pipeline(folder, device="cpu")
    how: dict[str, Any] = {
        "method": "esd",
        "store": "dense",
        "iterations": 2,
        "sampling_steps": 2,
        "lr": 1e-3,
    }
    erasure = unsee.erase(pipe, "van gogh", check=False, **(how if method == "dense" else {}))
    unsee.export(erasure, out, to="checkpoint")
    keys = set(load_file(out))
    original = {"1.x": "transformer.text_model.", "2.x": "model.transformer.resblocks.0."}
    if version == "XL":
        assert any(k.startswith("conditioner.embedders.1.model.text_projection") for k in keys)
    else:
        assert any(k.startswith(f"cond_stage_model.{original[version]}") for k in keys)
    plain = type(pipe).from_single_file(str(out), config=str(folder))
    plain.set_progress_bar_config(disable=True)
    base = drawn(pipe)
    with erasure.applied(pipe):
        ours = drawn(pipe)
    assert apart(drawn(plain), ours) < 1e-4 < apart(ours, base)
    # and by our own, from the one file and the folder of the base
    read = unsee.load_pipeline(out, config=folder, device="cpu")
    assert type(read) is type(pipe) and not unsee.active(read)
    assert apart(drawn(read), ours) < 1e-4


def test_the_base_that_was_given_is_left_as_it_was(
    folders: Callable[[str], Path], tmp_path: Path
) -> None:
    pipe = unsee.load_pipeline(folders("stable-diffusion"), device="cpu")
    erasure, base = unsee.erase(pipe, "van gogh", check=False), predicted(pipe)
    unsee.export(erasure, tmp_path / "a.safetensors", to="checkpoint", model=pipe)
    unsee.export(erasure, tmp_path / "b", to="pipeline", model=pipe)
    assert torch.equal(predicted(pipe), base) and not unsee.active(pipe)
    with erasure.applied(pipe), pytest.raises(InputError, match="is on in this pipeline"):
        unsee.export(erasure, tmp_path / "c", to="pipeline", model=pipe)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "b"]


# What cannot go there


@pytest.fixture(scope="module")
def erasures(folders: Callable[[str], Path]) -> dict[str, Erasure]:
    pipe = unsee.load_pipeline(folders("stable-diffusion"), device="cpu")
    quick: dict[str, Any] = {
        "iterations": 2,
        "sampling_steps": 2,
        "batch_size": 1,
        "lr": 1e-3,
        "check": False,
    }
    lora = unsee.erase(pipe, "van gogh", check=False)
    (component,) = lora.record.base.components.values()
    layer, (out, _) = next(iter(component.layers.items()))
    bias = {f"unet.{layer}.lora_B.bias": torch.ones(out)}
    base = dataclasses.replace(lora.record.base, components={"text_encoder": component})
    return {
        "lora": lora,
        "guide": unsee.erase(pipe, "van gogh", method="sld"),
        "transport": unsee.erase(pipe, "van gogh", method="spm", **quick),
        "dense": unsee.erase(pipe, "van gogh", method="esd", store="dense", **quick),
        "bias": dataclasses.replace(lora, tensors={**lora.tensors, **bias}),
        "text encoder": dataclasses.replace(
            lora, record=dataclasses.replace(lora.record, base=base)
        ),
    }


CANNOT: list[tuple[str, tuple[str, ...], str]] = [
    ("guide", TARGETS, "is a guide .sld. without weights"),
    ("transport", TARGETS, "acts on each prompt as strongly as"),
    ("dense", ("diffusers", "kohya", "comfyui"), "whole weights and no LoRA"),
    ("bias", ("kohya", "comfyui"), "edits biases .*lora_B.bias"),
    ("text encoder", ("kohya", "comfyui"), "edits the text_encoder, whose names"),
]


@pytest.mark.parametrize("what, places, message", CANNOT)
def test_what_a_tool_cannot_hold_is_refused_before_anything_is_written(
    erasures: dict[str, Erasure],
    tmp_path: Path,
    what: str,
    places: tuple[Target, ...],
    message: str,
) -> None:
    for to in places:
        with pytest.raises(InputError, match=message) as error:
            unsee.export(erasures[what], tmp_path / "deep/it", to=to)
        assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_layer_that_a_tool_does_not_know_is_refused(tmp_path: Path) -> None:
    wide = everything(build("flux"))
    with pytest.raises(InputError, match="edits .*, which kohya does not know by a name"):
        unsee.export(wide, tmp_path / "it.safetensors", to="kohya")
    assert not list(tmp_path.iterdir())


def test_only_stable_diffusion_goes_into_a_checkpoint(tmp_path: Path) -> None:
    erasure = unsee.erase(build("flux"), "van gogh", check=False)
    with pytest.raises(InputError, match="Nothing here writes a FluxPipeline into one checkpoint"):
        unsee.export(erasure, tmp_path / "it.safetensors", to="checkpoint")


def test_what_is_there_already_is_let_be(erasures: dict[str, Erasure], tmp_path: Path) -> None:
    path, one = tmp_path / "it", erasures["lora"]
    path.write_text("mine")
    with pytest.raises(InputError, match="is there already"):
        unsee.export(one, path, to="kohya")
    with pytest.raises(InputError, match="is a file: name a folder"):
        unsee.export(one, path, to="pipeline", force=True)
    with pytest.raises(InputError, match="a folder with something in it"):
        unsee.export(one, tmp_path, to="pipeline", force=True)
    with pytest.raises(InputError, match="is a folder"):
        unsee.export(one, tmp_path, to="kohya", force=True)
    with pytest.raises(InputError, match="needs no base model"):
        unsee.export(one, tmp_path / "other", to="kohya", model="emoji")
    assert path.read_text() == "mine"
    unsee.export(one, path, to="kohya", force=True)
    assert load_file(path)


def test_another_base_is_refused_and_nothing_is_written(
    erasures: dict[str, Erasure], tiny_folder: Path, tmp_path: Path
) -> None:
    for to in ("pipeline", "checkpoint"):
        with pytest.raises(InputError, match="This erasure .* was made for"):
            unsee.export(erasures["lora"], tmp_path / "it", to=to, model=tiny_folder)
    assert not list(tmp_path.iterdir())


def test_the_command_writes_what_the_function_does(
    run: Callable[..., tuple[int, str, str]],
    erasures: dict[str, Erasure],
    tmp_path: Path,
) -> None:
    one = erasures["lora"]
    one.save(tmp_path / "it.safetensors")
    to: Any
    for to in TARGETS:
        code, out, err = run("export", "it.safetensors", "--to", to, "-o", f"out/{to}")
        assert code == 0 and f"Exported van gogh to {to}: out/{to} (" in out, err
        if to in ("diffusers", "kohya", "comfyui"):
            unsee.export(one, tmp_path / "same", to=to, force=True)
            assert (tmp_path / "same").read_bytes() == (tmp_path / "out" / to).read_bytes()
    assert (tmp_path / "out/pipeline/README.md").is_file()
    half = ("--to", "checkpoint", "--dtype", "float16", "-o", "half")
    assert run("export", "it.safetensors", *half)[0] == 0
    assert {tensor.dtype for tensor in load_file(tmp_path / "half").values()} == {torch.float16}
    code, _, err = run("export", "it.safetensors", "--to", "kohja", "-o", "x")
    assert code == 2 and "Did you mean 'kohya'?" in err
    code, _, err = run("export", "it.safetensors", "--to", "kohya", "-o", "out/kohya")
    assert code == 2 and "is there already" in err


def test_the_model_is_loaded_as_every_command_loads_one(
    run: Callable[..., tuple[int, str, str]],
    erasures: dict[str, Erasure],
    folders: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    one, folder = erasures["lora"], folders("stable-diffusion")
    one.save(tmp_path / "it.safetensors")
    pipe = unsee.load_pipeline(folder, device="cpu")
    with one.applied(pipe):
        ours = drawn(pipe)
    half = unsee.load_pipeline(folder, device="cpu", dtype="float16")
    half.save_pretrained(tmp_path / "half", variant="fp16")
    zero = {name: torch.zeros_like(t) for name, t in one.tensors.items()}
    single = tmp_path / "single.safetensors"
    unsee.export(dataclasses.replace(one, tensors=zero), single, to="checkpoint")
    ways = {
        "variant": ("--model", str(tmp_path / "half"), "--variant", "fp16"),
        "config": ("--model", str(single), "--config", str(folder)),
    }
    for out, words in ways.items():
        command = ("export", "it.safetensors", "--to", "pipeline", "-o", out)
        code, _, err = run(*command, *words)
        assert code == 0, err
        made = unsee.load_pipeline(tmp_path / out, device="cpu")
        for part in ("tokenizer", "scheduler"):
            setattr(made, part, getattr(pipe, part))
        assert apart(drawn(made), ours) < (1e-4 if out == "config" else 2e-2)
    refused: list[tuple[str, tuple[str, ...], str]] = [
        ("pipeline", ("--lora", "mine.safetensors"), "without LoRAs: leave lora out"),
        ("pipeline", ("--offload", "model"), "leave offload out"),
        ("kohya", ("--dtype", "float16"), "--to kohya loads no model"),
    ]
    for to, more, said in refused:
        code, _, err = run("export", "it.safetensors", "--to", to, "-o", "x", *more)
        assert code == 2 and said in err and len(err.splitlines()) == 1, err
    assert not (tmp_path / "x").exists()
