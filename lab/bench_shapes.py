"""What erasing from the text side of SDXL and of FLUX.1 takes, at their real shapes.

    python -m lab.bench_shapes [--folder FOLDER]

Makes a folder of each with random weights in float16: the tokenizers, the text encoders at their
real sizes (of T5-XXL two layers of 24), and of the denoiser its real configuration with the
layers that read the text; its other weights, 2.2 and 11.9 billion, are never made. FOLDER keeps
them, about 3.5 GB.

Then, each in a process of its own: ``load_text_side`` in float32, UCE of one style with one
phrase kept, and the file put on what was loaded. Prints a row for each: seconds of the three, the
peak of the process's memory after each, what the text encoders' weights take of it, and the rest,
Python and its libraries among it. The bars: SDXL within 8 GiB and a minute on two cores; FLUX's
rest within 4 GiB.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from accelerate import init_empty_weights
from safetensors.torch import save_file
from torch import nn

from unsee.pipelines import load_text_side, parts_of
from unsee.pipelines.architectures import family_of
from unsee.pipelines.load import EMOJI, of_text
from unsee.prompts import Concept

GIB = 2**30
CLIP_L: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
}
CLIP_G: dict[str, Any] = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
    "hidden_act": "gelu",
}
T5_XXL: dict[str, Any] = {
    "d_model": 4096,
    "d_ff": 10240,
    "num_layers": 2,
    "num_heads": 64,
    "d_kv": 64,
    "feed_forward_proj": "gated-gelu",
}
SDXL_UNET: dict[str, Any] = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (5, 10, 20),
    "transformer_layers_per_block": (1, 2, 10),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
FLUX_DEV: dict[str, Any] = {"guidance_embeds": True}  # the rest is the class's default


def filled(model: Any) -> Any:
    """A model on meta with random weights in float16."""
    model = model.to_empty(device="cpu").half()
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            tensor.data.copy_(torch.empty(tensor.shape).uniform_(-0.03, 0.03))
    # On meta T5's one table of words became two.
    model.tie_weights()
    return model.eval()


def text_model(folder: Path, name: str, cls: Any, config: Any) -> list[str]:
    with init_empty_weights():
        model = cls(config)
    filled(model).save_pretrained(folder / name)
    return ["transformers", cls.__name__]


def words(folder: Path, name: str, length: int) -> list[str]:
    # The emoji model's words will do: what is timed is the length that they are padded to.
    found = transformers.CLIPTokenizer.from_pretrained(f"{EMOJI}/tokenizer")
    found.model_max_length = length
    found.save_pretrained(folder / name)
    return ["transformers", "CLIPTokenizer"]


def denoiser(folder: Path, pipeline: Any, cls: Any, settings: dict[str, Any]) -> list[str]:
    """Writes its configuration, and of its weights those that read the text."""
    family: Any = family_of(pipeline)
    with init_empty_weights():
        model: nn.Module = cls(**settings)
    place = folder / family.prefix
    model.save_config(place)  # type: ignore[operator]
    weights = {
        name: torch.empty(p.shape).uniform_(-0.03, 0.03).half()
        for name, p in model.named_parameters()
        if of_text(family, name)
    }
    save_file(weights, place / "diffusion_pytorch_model.safetensors")
    return ["diffusers", cls.__name__]


def make(name: str, folder: Path) -> None:
    clip = transformers.CLIPTextConfig
    index: dict[str, Any] = {"vae": [None, None]}
    if name == "SDXL":
        pipeline: Any = diffusers.StableDiffusionXLPipeline
        scheduler: Any = diffusers.EulerDiscreteScheduler()
        projected = transformers.CLIPTextModelWithProjection
        index |= {
            "text_encoder": text_model(
                folder, "text_encoder", transformers.CLIPTextModel, clip(**CLIP_L)
            ),
            "text_encoder_2": text_model(folder, "text_encoder_2", projected, clip(**CLIP_G)),
            "tokenizer": words(folder, "tokenizer", 77),
            "tokenizer_2": words(folder, "tokenizer_2", 77),
            "unet": denoiser(folder, pipeline, diffusers.UNet2DConditionModel, SDXL_UNET),
            "force_zeros_for_empty_prompt": True,
        }
    else:
        pipeline = diffusers.FluxPipeline
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
        t5 = transformers.T5Config(**T5_XXL)
        index |= {
            "text_encoder": text_model(
                folder, "text_encoder", transformers.CLIPTextModel, clip(**CLIP_L)
            ),
            "text_encoder_2": text_model(
                folder, "text_encoder_2", transformers.T5EncoderModel, t5
            ),
            "tokenizer": words(folder, "tokenizer", 77),
            "tokenizer_2": words(folder, "tokenizer_2", 512),
            "transformer": denoiser(folder, pipeline, diffusers.FluxTransformer2DModel, FLUX_DEV),
        }
    scheduler.save_pretrained(folder / "scheduler")
    index |= {
        "_class_name": pipeline.__name__,
        "_diffusers_version": diffusers.__version__,
        "scheduler": ["diffusers", type(scheduler).__name__],
    }
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB


def measure(name: str, folder: Path) -> dict[str, Any]:
    from unsee.erasers.uce import UCE

    row: dict[str, Any] = {"model": name, "python_gib": round(peak(), 2)}
    start = time.perf_counter()
    pipe = load_text_side(folder)
    row |= {"load_s": round(time.perf_counter() - start, 2), "loaded_gib": round(peak(), 2)}
    start = time.perf_counter()
    concept = Concept("knife", "style", keep=("hammer",))
    erasure = UCE().fit(parts_of(pipe), [concept], seed=0)
    row |= {"erase_s": round(time.perf_counter() - start, 2), "erased_gib": round(peak(), 2)}
    start = time.perf_counter()
    with erasure.applied(pipe):
        row["apply_s"] = round(time.perf_counter() - start, 2)
    encoders = sum(
        p.numel() * p.element_size()
        for part, module in pipe.components.items()
        if part.startswith("text_encoder")
        for p in module.parameters()
    )
    row |= {"peak_gib": round(peak(), 2), "encoders_gib": round(encoders / GIB, 2)}
    row["beyond_encoders_gib"] = round(peak() - encoders / GIB, 2)
    return row | {"layers": len(erasure.record.base.layers)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--make", help=argparse.SUPPRESS)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.make:
        make(given.make, given.folder / given.make)
        return
    if given.measure:
        print(json.dumps(measure(given.measure, given.folder / given.measure)), flush=True)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        for name in ("SDXL", "FLUX.1"):
            # A process each, so that what was made is no part of a peak
            for step in ("--make", "--measure"):
                if step == "--make" and (folder / name / "model_index.json").exists():
                    continue
                command = [sys.executable, "-m", "lab.bench_shapes", "--folder", str(folder)]
                subprocess.run([*command, step, name], check=True)


if __name__ == "__main__":
    main()
