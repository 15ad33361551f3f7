"""How long it takes to know a base and a model of SDXL's shapes, in memory.

    python -m lab.bench_identity [--hashes]

Makes a UNet, a VAE and two text encoders of SDXL's shapes, filled with numbers, in float16 (about
7 GB). Prints the seconds, the least of three, to sample the keys and values of cross attention
(``sample``), to compare them with a sample (``alike``), and to know all four components
(``model_of``'s part of a module); with ``--hashes``, of format 1's two hashes too, once.
"""

import argparse
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from lab.bench_uce import timed
from unsee.pipelines.architectures.stable_diffusion import StableDiffusion
from unsee.pipelines.erasure import hashes_of_format_1
from unsee.pipelines.identity import alike, known_module, sample

WIDE: dict[str, Any] = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
}
NARROW: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
}


def components() -> dict[str, nn.Module]:
    """SDXL's networks by their names in the pipeline, every value of theirs written once."""
    with init_empty_weights():
        made: dict[str, Any] = {
            "unet": UNet2DConditionModel(
                sample_size=128,
                block_out_channels=(320, 640, 1280),
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                transformer_layers_per_block=(1, 2, 10),
                attention_head_dim=(5, 10, 20),
                cross_attention_dim=2048,
                use_linear_projection=True,
                addition_embed_type="text_time",
                addition_time_embed_dim=256,
                projection_class_embeddings_input_dim=2816,
            ),
            "vae": AutoencoderKL(
                block_out_channels=(128, 256, 512, 512),
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                layers_per_block=2,
                latent_channels=4,
            ),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**NARROW)),
            "text_encoder_2": CLIPTextModelWithProjection(CLIPTextConfig(**WIDE)),
        }
    for module in made.values():
        module.half().to_empty(device="cpu")
        for number, tensor in enumerate([*module.parameters(), *module.buffers()]):
            tensor.data.fill_(number)
    return made


def least(work: Callable[[], object]) -> float:
    return min(timed(work)[0] for _ in range(3))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--hashes", action="store_true")
    arguments = parser.parse_args()
    made = components()
    parts = StableDiffusion(SimpleNamespace(unet=made["unet"]))
    layers = parts.readers()["sequence"].layers
    weights = {name: layer.weight.detach() for name, layer in layers.items()}
    kept = sample(weights)
    row = {
        "layers": len(weights),
        "bytes of the sample": sum(map(len, kept.values())),
        "sample": least(lambda: sample(weights)),
        "compare": least(lambda: [alike(kept[name], weight) for name, weight in weights.items()]),
        "tensors": sum(len(module.state_dict()) for module in made.values()),
        "model": least(lambda: [known_module(name, module) for name, module in made.items()]),
    }
    if arguments.hashes:
        row["format 1"] = timed(lambda: hashes_of_format_1(weights))[0]
    print(json.dumps(row))


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
