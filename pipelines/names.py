"""What other tools call the layers that a LoRA file or a checkpoint of theirs has.

Two tables by the pipeline's class say what kohya's format and ComfyUI call a layer; a layer that
is in neither is not known there, and a reader would drop it in silence. Who reads what was taken
from diffusers 0.42 (``loaders/lora_conversion_utils.py``, ``single_file_utils.py``) and ComfyUI of
2026 (https://github.com/Comfy-Org/ComfyUI, ``comfy/lora.py``, ``comfy/utils.py``).

The functions give the names of the original Stable Diffusion, which checkpoints of one file have.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._errors import InputError
from ..records import Record

SAME = r"\g<0>"


@dataclass(frozen=True)
class Names:
    """What a tool calls a denoiser's layers in a LoRA file.

    Attributes:
        prefix: What stands before each name.
        layers: Patterns of the names in diffusers, to what they are there (as ``re`` expands it).
        kohya: Whether it is kohya's format: underscores for dots, ``lora_down`` and ``lora_up``
            for ``lora_A`` and ``lora_B``, and an ``alpha``, by which B A is multiplied after it
            was divided by the rank.
        original: Whether the names are first those of the original UNet: see ``of_unet``.
    """

    prefix: str
    layers: Mapping[str, str]
    kohya: bool = False
    original: bool = False

    def of(self, layer: str, config: Mapping[str, Any]) -> str | None:
        """What the tool calls a layer; None if it does not know it.

        Args:
            config: The denoiser's, where the name depends on it.
        """
        for pattern, template in self.layers.items():
            if found := re.fullmatch(pattern, layer):
                name = of_unet(layer, config) if self.original else found.expand(template)
                return self.prefix + (name.replace(".", "_") if self.kohya else name)
        return None


_JOINT = r"attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)"
_EMBEDDERS = r"time_text_embed\.(text|timestep|guidance)_embedder\.linear_[12]"
_FEED = r"ff(_context)?\.net\.(0\.proj|2)"
_WAN = {
    r"condition_embedder\.text_embedder\.linear_1": "text_embedding.0",
    r"condition_embedder\.text_embedder\.linear_2": "text_embedding.2",
    r"blocks\.(\d+)\.attn1\.to_([qkv])": r"blocks.\1.self_attn.\2",
    r"blocks\.(\d+)\.attn1\.to_out\.0": r"blocks.\1.self_attn.o",
    r"blocks\.(\d+)\.attn2\.to_([qkv])": r"blocks.\1.cross_attn.\2",
    r"blocks\.(\d+)\.attn2\.to_out\.0": r"blocks.\1.cross_attn.o",
    r"blocks\.(\d+)\.ffn\.net\.0\.proj": r"blocks.\1.ffn.0",
    r"blocks\.(\d+)\.ffn\.net\.2": r"blocks.\1.ffn.2",
}

_UNET = Names("lora_unet_", {".+": SAME}, kohya=True)
_UNET_XL = Names("lora_unet_", {".+": SAME}, kohya=True, original=True)
_SD = (
    "StableDiffusionPipeline",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionInpaintPipeline",
)
_XL = (
    "StableDiffusionXLPipeline",
    "StableDiffusionXLImg2ImgPipeline",
    "StableDiffusionXLInpaintPipeline",
)

CHECKPOINTS = (*_SD, *_XL)
"""Pipelines whose checkpoint of one file can be written."""

KOHYA: Mapping[str, Names] = {
    **dict.fromkeys(_SD, _UNET),
    # diffusers drops lora_unet_add_embedding_linear_1 in silence, and reads …_label_emb_0_0
    **dict.fromkeys(_XL, _UNET_XL),
    # lora_unet_txt_in, as kohya's own trainer has it, is dropped by diffusers in silence; it reads
    # these, and so does ComfyUI
    "FluxPipeline": Names(
        "lora_transformer_",
        {
            rf"context_embedder|x_embedder|proj_out|norm_out\.linear|{_EMBEDDERS}"
            rf"|transformer_blocks\.\d+\.{_JOINT}"
            r"|single_transformer_blocks\.\d+\.attn\.to_[qkv]": SAME
        },
        kohya=True,
    ),
    "Flux2KleinPipeline": Names("lora_unet_", {"context_embedder": "txt_in"}, kohya=True),
    "Flux2Pipeline": Names("lora_unet_", {"context_embedder": "txt_in"}, kohya=True),
    "QwenImagePipeline": Names(
        "lora_unet_", {rf"txt_in|transformer_blocks\.\d+\.{_JOINT}": SAME}, kohya=True
    ),
    "ZImagePipeline": Names("lora_unet_", {r"cap_embedder\.1": SAME}, kohya=True),
}

COMFYUI: Mapping[str, Names] = {
    # Not unet.….attn2.to_k, which diffusers reads; it would be a line of the log.
    **dict.fromkeys(_SD, _UNET),
    **dict.fromkeys(_XL, _UNET_XL),
    **dict.fromkeys(
        ("FluxPipeline", "ChromaPipeline"),
        Names(
            "transformer.",
            {
                rf"context_embedder|x_embedder|proj_out|norm_out\.linear|{_EMBEDDERS}"
                rf"|transformer_blocks\.\d+\.({_JOINT}|{_FEED}|norm1(_context)?\.linear)"
                r"|single_transformer_blocks\.\d+\."
                r"(attn\.to_[qkv]|proj_mlp|proj_out|norm\.linear)": SAME
            },
        ),
    ),
    **dict.fromkeys(
        ("Flux2KleinPipeline", "Flux2Pipeline"),
        Names(
            "transformer.",
            {
                rf"context_embedder|x_embedder|proj_out|transformer_blocks\.\d+\.({_JOINT}"
                r"|ff(_context)?\.linear_(in|out))"
                r"|single_transformer_blocks\.\d+\.attn\.(to_qkv_mlp_proj|to_out)": SAME
            },
        ),
    ),
    "StableDiffusion3Pipeline": Names(
        "transformer.",
        {
            rf"context_embedder|proj_out|norm_out\.linear|pos_embed\.proj|{_EMBEDDERS}"
            rf"|transformer_blocks\.\d+\.({_JOINT}|attn2\.(to_[qkv]|to_out\.0)|{_FEED}"
            r"|norm1(_context)?\.linear)": SAME
        },
    ),
    "AuraFlowPipeline": Names(
        "transformer.",
        {
            rf"context_embedder|joint_transformer_blocks\.\d+\.{_JOINT}"
            r"|single_transformer_blocks\.\d+\.attn\.(to_[qkv]|to_out\.0)": SAME
        },
    ),
    "QwenImagePipeline": Names(
        "transformer.", {rf"txt_in|transformer_blocks\.\d+\.{_JOINT}": SAME}
    ),
    "PixArtSigmaPipeline": Names(
        "transformer.",
        {
            r"caption_projection\.linear_[12]"
            r"|transformer_blocks\.\d+\."
            r"(attn[12]\.(to_[qkv]|to_out\.0)|ff\.net\.(0\.proj|2))": SAME
        },
    ),
    "ZImagePipeline": Names(
        "transformer.",
        {
            r"cap_embedder\.1|t_embedder\.mlp\.[02]|all_x_embedder\.2-1"
            r"|all_final_layer\.2-1\.(linear|adaLN_modulation\.1)"
            r"|(layers|noise_refiner)\.\d+\.adaLN_modulation\.0"
            r"|(layers|context_refiner|noise_refiner)\.\d+\."
            r"(attention\.(to_[qkv]|to_out\.0)|feed_forward\.w[123])": SAME
        },
    ),
    # Its attention is fused there, with fewer keys than queries: no LoRA of ours fits.
    "Lumina2Pipeline": Names(
        "diffusion_model.",
        {r"time_caption_embed\.caption_embedder\.1": "cap_embedder.1"},
    ),
    "WanPipeline": Names("diffusion_model.", _WAN),
}

ENCODED = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
"""The layers of text encoders whose LoRA diffusers loads, by the ends of their names."""


def unread(record: Record) -> str | None:
    """Why ``load_lora_weights`` of diffusers does not read an erasure's file; None if it does.

    The beginning of a line. What it does not read it drops in silence, or breaks over.
    """
    import diffusers

    pipeline = record.base.pipeline
    cls: Any = getattr(diffusers, pipeline, None)
    if record.kind != "lowrank" or record.transport is not None:
        return "No LoRA holds this erasure"
    if not hasattr(cls, "load_lora_weights"):
        return f"diffusers loads no LoRA into a {pipeline}"
    for component, one in record.base.components.items():
        if component not in cls._lora_loadable_modules:
            return f"diffusers loads no LoRA into the {component} of a {pipeline}"
        for layer in one.layers:
            if component.startswith("text_encoder") and not layer.endswith(ENCODED):
                known = ", ".join(ENCODED)
                return f"diffusers reads {known} of a text encoder alone, and this edits {layer}"
    return None


PUBLISHED_XL: Mapping[str, Any] = {
    "layers_per_block": 2,
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
}
"""Of the UNet's configuration of Stable Diffusion XL, what names depend on."""


# The original Stable Diffusion's names

_ENDS = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def of_unet(layer: str, config: Mapping[str, Any]) -> str:
    """What the original Stable Diffusion, of any size, calls a layer of the UNet.

    There, the resnets, attentions and what makes rows fewer or more are counted through all
    blocks, ``layers_per_block`` + 1 to a block.

    >>> of_unet("up_blocks.0.attentions.1.transformer_blocks.0.attn2.to_k", PUBLISHED_XL)
    'output_blocks.1.1.transformer_blocks.0.attn2.to_k'

    Args:
        config: The UNet's: ``layers_per_block`` and ``up_block_types``.

    Raises:
        InputError: It has no such layer.
    """
    each = int(config["layers_per_block"]) + 1
    if layer in _ENDS:
        return _ENDS[layer]
    if found := re.fullmatch(r"mid_block\.(resnets|attentions)\.([01])\.(.+)", layer):
        what, n, rest = found[1], int(found[2]), found[3]
        if what == "attentions" and n == 0:
            return f"middle_block.1.{rest}"
        if what == "resnets" and rest in _RESNET:
            return f"middle_block.{2 * n}.{_RESNET[rest]}"
    if found := re.fullmatch(
        r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)",
        layer,
    ):
        side, block, what, n, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
        place = each * block + n
        at = f"input_blocks.{1 + place}" if side == "down" else f"output_blocks.{place}"
        if what == "resnets" and rest in _RESNET:
            return f"{at}.0.{_RESNET[rest]}"
        if what == "attentions":
            return f"{at}.1.{rest}"
        if (side, what, n, rest) == ("down", "downsamplers", 0, "conv"):
            return f"input_blocks.{each * (block + 1)}.0.op"
        if (side, what, n, rest) == ("up", "upsamplers", 0, "conv"):
            after = 2 if "CrossAttn" in config["up_block_types"][block] else 1
            return f"output_blocks.{each * (block + 1) - 1}.{after}.conv"
    raise InputError(f"The UNet has {layer}, for which the original Stable Diffusion has no name.")


def checkpoint_unet(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """A UNet's weights under the names of a checkpoint.

    Raises:
        InputError: It has one for which there is no name.
    """
    found = {}
    for name, tensor in state.items():
        layer, _, end = name.rpartition(".")
        found[f"model.diffusion_model.{of_unet(layer, config)}.{end}"] = tensor
    return found


_AUTOENCODER = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}


def checkpoint_vae(state: Mapping[str, Tensor], blocks: int) -> dict[str, Tensor]:
    """An autoencoder's weights under the names of a checkpoint, whose attention is by convolution.

    Args:
        blocks: How many it has on each side; those of the decoder are counted from the end.

    Raises:
        InputError: It has one for which there is no name.
    """
    found = {}
    for name, tensor in state.items():
        layer, _, end = name.rpartition(".")
        said = _of_vae(layer, blocks)
        if ".attn_1." in said and end == "weight" and tensor.ndim == 2:
            tensor = tensor[:, :, None, None]
        found[f"first_stage_model.{said}.{end}"] = tensor
    return found


def _of_vae(layer: str, blocks: int) -> str:
    if layer in ("quant_conv", "post_quant_conv"):
        return layer
    side, _, rest = layer.partition(".")
    if side in ("encoder", "decoder"):
        if rest in ("conv_in", "conv_out"):
            return layer
        if rest == "conv_norm_out":
            return f"{side}.norm_out"
        if found := re.fullmatch(r"mid_block\.attentions\.0\.(.+)", rest):
            if found[1] in _AUTOENCODER:
                return f"{side}.mid.attn_1.{_AUTOENCODER[found[1]]}"
        if found := re.fullmatch(r"mid_block\.resnets\.([01])\.(.+)", rest):
            return f"{side}.mid.block_{int(found[1]) + 1}.{_shortcut(found[2])}"
        if found := re.fullmatch(r"(down|up)_blocks\.(\d+)\.resnets\.(\d+)\.(.+)", rest):
            n = int(found[2]) if found[1] == "down" else blocks - 1 - int(found[2])
            return f"{side}.{found[1]}.{n}.block.{found[3]}.{_shortcut(found[4])}"
        if found := re.fullmatch(r"down_blocks\.(\d+)\.downsamplers\.0\.conv", rest):
            return f"{side}.down.{found[1]}.downsample.conv"
        if found := re.fullmatch(r"up_blocks\.(\d+)\.upsamplers\.0\.conv", rest):
            return f"{side}.up.{blocks - 1 - int(found[1])}.upsample.conv"
    raise InputError(
        f"The autoencoder has {layer}, for which the original Stable Diffusion has no name."
    )


def _shortcut(layer: str) -> str:
    return "nin_shortcut" if layer == "conv_shortcut" else layer


_OPEN_CLIP = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
_OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def checkpoint_clip(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """A CLIP text encoder's weights by the names that transformers 4 gave them, after a prefix."""
    return {
        f"{prefix}text_model.{name.removeprefix('text_model.')}": tensor
        for name, tensor in state.items()
        if not name.endswith("position_ids")
    }


def checkpoint_open_clip(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """A CLIP text encoder's weights by the names of OpenCLIP, after a prefix.

    Queries, keys and values are one matrix there, and the projection is multiplied from the right.

    Raises:
        InputError: It has one for which there is no name.
    """
    ours = {name.removeprefix("text_model."): tensor for name, tensor in state.items()}
    found: dict[str, Tensor] = {}
    for name, tensor in ours.items():
        if name == "text_projection.weight":
            found[f"{prefix}text_projection"] = tensor.T
        elif name in _OPEN_CLIP:
            found[prefix + _OPEN_CLIP[name]] = tensor
        elif part := re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name):
            at, layer, end = f"{prefix}transformer.resblocks.{part[1]}.", part[2], part[3]
            if layer in _OPEN_CLIP_LAYER:
                found[f"{at}{_OPEN_CLIP_LAYER[layer]}.{end}"] = tensor
            elif layer == "self_attn.q_proj":
                names = [name.replace("q_proj", which) for which in ("q_proj", "k_proj", "v_proj")]
                found[f"{at}attn.in_proj_{end}"] = torch.cat([ours[n] for n in names])
            elif layer not in ("self_attn.k_proj", "self_attn.v_proj"):
                raise InputError(f"The text encoder has {name}, for which OpenCLIP has no name.")
        elif not name.endswith("position_ids"):
            raise InputError(f"The text encoder has {name}, for which OpenCLIP has no name.")
    return found
