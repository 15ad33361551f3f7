"""What a guide costs a step, beside the plain pipeline.

    python -m lab.bench_guidance [--models sd15 emoji] [--size 32] [--batch 1] [--steps 3]
        [--repeats 3] [--device cpu]

``sd15`` is Stable Diffusion 1.5's UNet and text encoder, random, at latents of ``--size`` squared
(64 is the model's own); ``emoji`` is the built-in model at its own size, with four times the
images and steps. The pipelines are diffusers' own, and the guides take turns.

Prints a row for each guide, of the fastest of all repeats: the milliseconds of a step, their ratio
to the plain pipeline's, the ratio of denoiser rows, and the milliseconds from the start of a call
to the end of its first step, which have the text encoder in them. On a CPU it is the time that
this process had the processor, so that what else runs there does not count.
"""

import argparse
import json
import time
from contextlib import nullcontext
from typing import Any

import torch

from unsee.erasers import ERASERS
from unsee.pipelines import load_pipeline, parts_of
from unsee.prompts import Concept

CONCEPT = Concept("kitchen knife", phrases=("kitchen knife", "dagger", "crossed swords"))
PROMPT = "a kitchen knife on a plate beside an apple, in the twemoji style"
ROWS = {"plain": 2, "negative": 2, "safree": 2, "sld": 3}


def sd15(size: int) -> Any:
    """Stable Diffusion 1.5 without its weights, its autoencoder and its words."""
    from accelerate import init_empty_weights
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    emoji = load_pipeline("emoji", device="cpu")
    tokenizer = emoji.tokenizer
    tokenizer.model_max_length = 77
    with init_empty_weights():
        unet = UNet2DConditionModel(
            sample_size=size,
            cross_attention_dim=768,
            attention_head_dim=8,
            block_out_channels=(320, 640, 1280, 1280),
        )
    unet.to_empty(device="cpu")
    draw = torch.Generator().manual_seed(0)
    for parameter in unet.parameters():
        parameter.data.uniform_(-0.02, 0.02, generator=draw)
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=768,
            intermediate_size=3072,
            num_hidden_layers=12,
            num_attention_heads=12,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    pipe = StableDiffusionPipeline(
        vae=AutoencoderKL(block_out_channels=(32,), norm_num_groups=8, latent_channels=4),
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer,
        unet=unet.eval(),
        scheduler=emoji.scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def timed(pipe: Any, batch: int, steps: int) -> list[float]:
    """The seconds to the end of the first step, and of each further step."""

    def clock() -> float:
        if pipe.device.type == "cpu":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    def tick(*step: Any) -> dict[str, Any]:
        ends.append(clock())
        return {}

    ends = [clock()]
    size = pipe.unet.config.sample_size * pipe.vae_scale_factor
    pipe(
        [PROMPT] * batch,
        height=size,
        width=size,
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
        callback_on_step_end=tick,
    )
    return [after - before for before, after in zip(ends, ends[1:], strict=False)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--models", nargs="+", choices=("sd15", "emoji"), default=["sd15", "emoji"]
    )
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    for name in arguments.models:
        pipe = load_pipeline("emoji", device="cpu") if name == "emoji" else sd15(arguments.size)
        pipe.to(arguments.device)
        more = 4 if name == "emoji" else 1
        batch, steps = more * arguments.batch, more * arguments.steps
        parts = parts_of(pipe)
        erasures = {n: ERASERS[n]().fit(parts, [CONCEPT]) for n in ROWS if n != "plain"}
        first, further = ({n: float("inf") for n in ROWS} for _ in range(2))
        timed(pipe, batch, 2)  # warm up
        for _ in range(arguments.repeats):
            for n in ROWS:
                with erasures[n].applied(pipe) if n in erasures else nullcontext():
                    start, *each = timed(pipe, batch, steps)
                first[n], further[n] = min(first[n], start), min(further[n], *each)
        for n, rows in ROWS.items():
            row = {
                "model": name,
                "latents": pipe.unet.config.sample_size,
                "images": batch,
                "guide": n,
                "step_ms": round(1000 * further[n], 1),
                "ratio": round(further[n] / further["plain"], 3),
                "rows_ratio": rows / ROWS["plain"],
                "start_ms": round(1000 * first[n], 1),
            }
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
