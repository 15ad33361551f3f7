"""How long UCE takes from a model's folder to the erasure's file, beside reading what it needs.

    python -m lab.bench_load [--folder FOLDER]

Makes a folder of Stable Diffusion 1.5's shapes with random weights in float16, about 2 GB, or
takes one that is there. The measure is to read the text encoder and the cross-attention key and
value weights once, into float32. Beside it stands one concept with the settings of 2025, by way
of ``load_text_side``, which reads no more than that, and of ``load_pipeline``, which reads all of
the pipeline.

Prints a row for each: seconds to load, to encode the two prompts, to fit (encoding included), to
save, in all, and the ratios of all to the reading and to the loading. Files that were read before
lie in the system's memory, from where reading them is no more than a copy.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors import safe_open
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from lab.bench_uce import timed
from unsee.erasers.uce import UCE
from unsee.pipelines import load_pipeline, load_text_side, parts_of
from unsee.pipelines.load import EMOJI
from unsee.prompts import Concept

TEXT = "text_encoder/model.safetensors"
UNET = "unet/diffusion_pytorch_model.safetensors"
UNCHECKED: dict[str, Any] = {"safety_checker": None, "requires_safety_checker": False}
READ = ("attn2.to_k.weight", "attn2.to_v.weight")


def make(folder: Path) -> None:
    def filled(model: nn.Module) -> nn.Module:
        model = model.to_empty(device="cpu").half()
        for parameter in model.parameters():
            parameter.data.copy_(torch.empty(parameter.shape).uniform_(-0.03, 0.03))
        return model

    with init_empty_weights():
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
        )
    # The emoji model's words will do: what is timed is the length that they are padded to.
    tokenizer = CLIPTokenizer.from_pretrained(Path(EMOJI) / "tokenizer", model_max_length=77)
    text = CLIPTextModel(
        CLIPTextConfig(
            hidden_size=768,
            intermediate_size=3072,
            num_hidden_layers=12,
            num_attention_heads=12,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    StableDiffusionPipeline(
        vae=filled(vae),
        text_encoder=text.half(),
        tokenizer=tokenizer,
        unet=filled(unet),
        scheduler=DDIMScheduler(clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


def weights(file: Path, ends: tuple[str, ...] = ("",)) -> Iterator[tuple[str, Tensor]]:
    with safe_open(file, "pt") as opened:
        for name in opened.keys():
            if name.endswith(ends):
                yield name, opened.get_tensor(name).float()


def read(folder: Path) -> list[Tensor]:
    found = [*weights(folder / TEXT), *weights(folder / UNET, READ)]
    return [tensor for _, tensor in found]


def whole(folder: Path) -> Any:
    return load_pipeline(folder, device="cpu", **UNCHECKED)


def text_side(folder: Path) -> Any:
    return load_text_side(folder, **UNCHECKED)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args().folder
    with tempfile.TemporaryDirectory() as temporary:
        folder = given or Path(temporary) / "model"
        if not folder.exists():
            make(folder)
        once = min(timed(lambda: read(folder))[0] for _ in range(3))
        print(json.dumps({"way": "read", "seconds": round(once, 3)}), flush=True)
        eraser = UCE(**UCE.presets["2025"])
        for way, load in {"load_text_side": text_side, "load_pipeline": whole}.items():
            repeats = 2 if load is whole else 6
            rows = []
            for _ in range(repeats):
                start = time.perf_counter()
                loading, pipe = timed(partial(load, folder))
                parts = parts_of(pipe)
                fitting, erasure = timed(partial(eraser.fit, parts, [Concept("knife", "style")]))
                saving, _ = timed(partial(erasure.save, Path(temporary) / "it.safetensors"))
                total = time.perf_counter() - start
                encoding, _ = timed(partial(parts.encode, ["knife", "art"]))
                rows.append((total, loading, encoding, fitting, saving))
            total, loading, encoding, fitting, saving = min(rows)
            row = {
                "way": way,
                "load_s": round(loading, 2),
                "encode_s": round(encoding, 2),
                "fit_s": round(fitting, 2),
                "save_s": round(saving, 3),
                "seconds": round(total, 2),
                "to_reading": round(total / once, 1),
                "to_loading": round(total / loading, 2),
            }
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
