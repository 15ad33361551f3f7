"""The denoiser and its text encoder, learnt together on the autoencoder's latents.

    python -m lab.pipeline

Stable Diffusion 1.x made small: diffusers' UNet2DConditionModel with two cross-attention levels,
transformers' CLIPTextModel, noise prediction, the scaled-linear schedule. Trained on the objects
of prompts/emoji.yaml, less the pairs held out. To grow the world, add objects to the YAML and run
again with more `--images`.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    SchedulerMixin,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from lab import tokens, vae
from lab.data import RUNS, World, icons, sheet, shift, to_pil, to_unit
from lab.fast import quicken
from lab.train import Run, arguments, load_ema

STEPS = 1000
BETAS: dict[str, Any] = {"num_train_timesteps": STEPS, "beta_start": 0.00085, "beta_end": 0.012,
         "beta_schedule": "scaled_linear"}  # fmt: skip
WIDTH = 192


class Denoiser(nn.Module):
    """The noise in a latent, told by a caption's tokens."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.unet = UNet2DConditionModel(
            sample_size=8,
            in_channels=vae.LATENTS,
            out_channels=vae.LATENTS,
            block_out_channels=(96, 192),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D",) * 2,
            up_block_types=("CrossAttnUpBlock2D",) * 2,
            cross_attention_dim=WIDTH,
            attention_head_dim=(3, 6),  # diffusers means the number of heads
        )
        self.text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=WIDTH,
                intermediate_size=4 * WIDTH,
                num_hidden_layers=3,
                num_attention_heads=6,
                max_position_embeddings=tokens.LENGTH,
                projection_dim=WIDTH,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )

    def forward(self, z: Tensor, t: Tensor, ids: Tensor) -> Tensor:
        # Many captions of a batch are the same, the empty one first of all
        unique, where = torch.unique(ids, dim=0, return_inverse=True)
        states = self.text(unique).last_hidden_state[where]
        noise: Tensor = self.unet(z, t, states, return_dict=False)[0]
        return noise


def assemble(
    denoiser: Denoiser, coder: AutoencoderKL, tokenizer: CLIPTokenizer, scheduler: SchedulerMixin
) -> StableDiffusionPipeline:
    pipe = StableDiffusionPipeline(
        vae=coder,
        text_encoder=denoiser.text,
        tokenizer=tokenizer,
        unet=denoiser.unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def default_scheduler() -> DPMSolverMultistepScheduler:
    return DPMSolverMultistepScheduler(**BETAS, steps_offset=1, timestep_spacing="leading")


def signal(t: Tensor) -> Tensor:
    """ᾱ at each step, shape (n, 1, 1, 1)."""
    beta = torch.linspace(BETAS["beta_start"] ** 0.5, BETAS["beta_end"] ** 0.5, STEPS) ** 2
    return (1 - beta).cumprod(0).to(t.device)[t].view(-1, 1, 1, 1)


@torch.no_grad()
def latents(coder: AutoencoderKL, images: Tensor) -> Tensor:
    """The latents' means, before scaling; computed once for the same images and weights."""
    digest = hashlib.sha256(images.numpy().tobytes())
    for weight in coder.encoder.state_dict().values():
        digest.update(weight.float().cpu().numpy().tobytes())
    cache = RUNS / "latents" / f"{digest.hexdigest()[:16]}.pt"
    if cache.exists():
        found: Tensor = torch.load(cache, weights_only=True)
        return found
    parts = [coder.encode(part.to(coder.device)).latent_dist.mode() for part in images.split(128)]
    found = torch.cat(parts).cpu()
    cache.parent.mkdir(parents=True, exist_ok=True)
    torch.save(found, cache)
    return found


def scaled(coder: AutoencoderKL, world: World) -> AutoencoderKL:
    """The autoencoder with the `scaling_factor` that gives the latents unit variance."""
    grid = to_unit(icons(world))
    images = torch.stack([grid[o, s] for o, s in world.pairs(later=True, held_out=False)])
    coder.register_to_config(scaling_factor=round(1 / float(latents(coder, images).std()), 5))
    return coder


def draw(
    pipe: StableDiffusionPipeline,
    prompts: list[str],
    *,
    steps: int,
    guidance: float,
    seed: int = 0,
) -> Tensor:
    """One image a prompt, in [-1, 1]; image i starts from seed + i, whatever the batch."""
    images = []
    for start in range(0, len(prompts), 64):
        some = prompts[start : start + 64]
        noise = torch.cat([
            torch.randn(1, vae.LATENTS, 8, 8, generator=torch.Generator().manual_seed(seed + i))
            for i in range(start, start + len(some))
        ])  # fmt: skip
        out = pipe(
            some,
            num_inference_steps=steps,
            guidance_scale=guidance,
            latents=noise.to(pipe.device, pipe.dtype),
            output_type="pt",
        )
        images.append(out.images.float().cpu() * 2 - 1)
    return torch.cat(images)


def main() -> None:
    parser = arguments(__doc__ or "", images=520_000, batch=128, lr=8e-4)
    parser.add_argument("--shift", type=int, default=0, help="also learn icons moved so far")
    parser.add_argument(
        "--grown", type=float, default=0.3,
        help="share of a batch for objects that came after the run began, besides their own",
    )  # fmt: skip
    parser.add_argument("--world", type=Path, help="another YAML than prompts/emoji.yaml")
    parser.add_argument("--vae", default="vae", help="the autoencoder's run")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    train(args, World.read(args.world) if args.world else World.read())


def train(args: argparse.Namespace, world: World) -> None:
    coder = scaled(vae.trained(args.vae).to(args.device), world)
    pairs = world.pairs(later=False, held_out=False)
    grid = to_unit(icons(world))
    images = torch.stack([grid[o, s] for o, s in pairs])
    copies = [images]
    if args.shift:
        rng = torch.Generator().manual_seed(args.seed)
        copies += [shift(images, args.shift, rng) for _ in range(8)]
    # Shape (copies, pairs, channels, 8, 8)
    known = torch.stack([latents(coder, c) for c in copies]) * coder.config.scaling_factor
    tokenizer = tokens.make(world.captions())

    @functools.cache
    def encode(caption: str) -> Tensor:
        ids = tokenizer(
            caption, padding="max_length", truncation=True, max_length=tokens.LENGTH,
            return_tensors="pt",
        ).input_ids[0]  # fmt: skip
        assert isinstance(ids, Tensor)
        return ids

    chosen = [(o, s) for o in range(0, world.first, 4) for s in range(len(world.styles))][:128]

    @torch.no_grad()
    def sample(denoiser: nn.Module, path: Path) -> None:
        assert isinstance(denoiser, Denoiser)
        pipe = assemble(denoiser, coder, tokenizer, default_scheduler())
        pictures = to_pil(
            draw(pipe, [world.caption(o, s) for o, s in chosen], steps=20, guidance=3.0)
        )
        sheet(pictures, 16, path)
        sheet(pictures, 16, path.with_name("latest.png"))

    model = Denoiser(tokenizer).to(memory_format=torch.channels_last)
    count = {n: sum(p.numel() for p in m.parameters()) for n, m in model.named_children()}
    print(f"{len(pairs)} pairs, {len(tokenizer)} tokens, parameters {count},"
          f" scaling factor {coder.config.scaling_factor}")  # fmt: skip
    run = Run("pipeline", model, args, ema=0.999, sample=sample, sample_every=480)
    began = run.folder / "world.json"
    if not began.exists():
        began.write_text(json.dumps(list(world.objects)[: world.first]), encoding="utf-8")
    first = set(json.loads(began.read_text(encoding="utf-8")))
    names = list(world.objects)
    grown = torch.tensor([i for i, (o, _) in enumerate(pairs) if names[o] not in first])
    # Plain attention: PyTorch's fused one is slow on a CPU when there are few tokens
    model.unet.set_attn_processor(AttnProcessor())
    model.text.set_attn_implementation("eager")
    if args.compile:
        model.unet.compile()
    else:
        quicken(model)
    for rng, words in run:
        n = args.batch
        which = torch.randint(0, len(pairs), (n,), generator=rng)
        if len(grown):
            some = torch.randint(0, len(grown), (round(args.grown * n),), generator=rng)
            which[: len(some)] = grown[some]
        copy = torch.randint(0, len(known), (n,), generator=rng)
        drawn = [pairs[i] for i in which.tolist()]
        ids = torch.stack([encode(world.any_caption(o, s, words)) for o, s in drawn])
        # One step from each n-th of the schedule, for an even loss
        t = (torch.arange(n) + torch.rand(n, generator=rng)) * STEPS / n
        t = t.long()[torch.randperm(n, generator=rng)].to(args.device)
        noise = torch.randn(n, *known.shape[2:], generator=rng).to(args.device)
        a = signal(t)
        z = a.sqrt() * known[copy, which].to(args.device) + (1 - a).sqrt() * noise
        z = z.to(memory_format=torch.channels_last)
        with run.autocast():
            predicted = model(z, t, ids.to(args.device))
        error = (predicted.float() - noise).square().mean((1, 2, 3))
        # min-SNR (arXiv 2303.09556) with γ = 5, for noise prediction
        snr = (a / (1 - a)).flatten()
        run.update((error * snr.clamp(max=5) / snr).mean(), error=error.mean().item())


def trained(name: str = "pipeline") -> tuple[Denoiser, CLIPTokenizer]:
    """The averaged weights of a run, and the tokenizer they go with."""
    tokenizer = tokens.make(World.read().captions())
    denoiser = load_ema(name, Denoiser(tokenizer))
    assert isinstance(denoiser, Denoiser)
    return denoiser, tokenizer


if __name__ == "__main__":
    main()
