"""How much faster UCE is by one n × n solve than by the published loop, on real shapes.

    python -m lab.bench_uce [--model sd15|sdxl|flux] [--edits 1+0 10+100 100+1000]

Both do the arithmetic of the 2025 settings (one embedding a concept) on the cross-attention key
and value weights of Stable Diffusion 1.5's or SDXL's UNet, or on FLUX.1's two layers that read
text, one T5's and one CLIP's, each with its own solve: random weights, in one process. The
published loop is written out plainly from its description: for each layer, in float32, a d × d
matrix and an out × d matrix are summed up over the concepts by outer products, and the first is
inverted.
Encoding the prompts is the same work for both and is left out.

Prints a row for each number of concepts (edited + kept): seconds of each, and the ratio.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from unsee.erasers.uce import multiplier, thin

T = TypeVar("T")
Shapes = dict[str, tuple[int, int]]


def groups(model: str) -> list[Shapes]:
    """Out and in of the layers that read text, those that read the same together."""
    if model == "flux":
        return [
            {"context_embedder": (3072, 4096)},
            {"time_text_embed.text_embedder.linear_1": (3072, 768)},
        ]
    return [shapes(model)]


def shapes(model: str) -> Shapes:
    """Out and in of every cross-attention key and value layer."""
    from accelerate import init_empty_weights
    from diffusers import UNet2DConditionModel

    settings = {
        "sd15": {
            "sample_size": 64,
            "cross_attention_dim": 768,
            "attention_head_dim": 8,
            "block_out_channels": (320, 640, 1280, 1280),
        },
        "sdxl": {
            "sample_size": 128,
            "cross_attention_dim": 2048,
            "attention_head_dim": (5, 10, 20),
            "block_out_channels": (320, 640, 1280),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2, 10),
            "use_linear_projection": True,
        },
    }[model]
    with init_empty_weights():
        unet = UNet2DConditionModel(**settings)
    return {
        name: tuple(module.weight.shape)
        for name, module in unet.named_modules()
        if name.endswith(("attn2.to_k", "attn2.to_v"))
    }


def published(
    weights: list[Tensor], edited: Tensor, targets: Tensor, kept: Tensor, ridge: float
) -> list[Tensor]:
    """W′ layer by layer, concept by concept, in float32."""
    result = []
    for weight in weights:
        left = ridge * weight
        right = ridge * torch.eye(weight.shape[1])
        for c, g in zip(edited, targets, strict=True):
            left = left + torch.outer(weight @ g, c)
            right = right + torch.outer(c, c)
        for c in kept:
            left = left + torch.outer(weight @ c, c)
            right = right + torch.outer(c, c)
        result.append(left @ torch.inverse(right))
    return result


def ours(
    weights: list[Tensor], edited: Tensor, targets: Tensor, kept: Tensor, ridge: float
) -> list[tuple[Tensor, Tensor]]:
    """A and B of each layer's W′ − W, the solve in float64, as ``UCE.fit`` does it."""
    sources = torch.cat([edited, kept]).double()
    scales = sources.new_ones(len(sources))
    left, right = multiplier(sources, targets.double(), scales, len(edited), ridge)
    left, right = (factor.float() for factor in thin(left, right, 1e-6))
    return [(right, weight @ left) for weight in weights]


def timed(work: Callable[[], T]) -> tuple[float, T]:
    """Seconds, and what the work gave."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=("sd15", "sdxl", "flux"), default="sd15")
    parser.add_argument("--edits", nargs="+", default=["1+0", "10+100", "100+1000"])
    arguments = parser.parse_args()
    draw = torch.Generator().manual_seed(0)
    made = [
        [torch.randn(size, generator=draw) / size[1] ** 0.5 for size in sizes.values()]
        for sizes in groups(arguments.model)
    ]
    told = ", ".join(f"{len(weights)} layers of d = {weights[0].shape[1]}" for weights in made)
    print(f"{arguments.model}: {told}, {torch.get_num_threads()} threads")
    for weights in made:  # warm up
        once = torch.randn(1, weights[0].shape[1])
        ours(weights, once, once, once, 0.5)
    for numbers in arguments.edits:
        n_edited, n_kept = map(int, numbers.split("+"))
        fast, slow, apart = 0.0, 0.0, 0.0
        for weights in made:
            edited, targets, kept = (
                torch.randn(n, weights[0].shape[1], generator=draw)
                for n in (n_edited, n_edited, n_kept)
            )
            work = (weights, edited, targets, kept, 0.5)
            fast += min(timed(partial(ours, *work))[0] for _ in range(3))
            seconds, want = timed(partial(published, *work))
            slow += seconds
            for weight, w, (a, b) in zip(weights, want, ours(*work), strict=True):
                apart = max(apart, float((weight + b @ a - w).norm() / (w - weight).norm()))
        row = {
            "edited+kept": numbers,
            "published_s": round(slow, 3),
            "ours_s": round(fast, 4),
            "ratio": round(slow / fast, 1),
            "relative_difference": float(f"{apart:.1e}"),
        }
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
