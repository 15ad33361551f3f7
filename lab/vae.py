"""The autoencoder: diffusers' AutoencoderKL, 64 x 64 pixels to 8 x 8 latents.

    python -m lab.vae

Trained on every object and style of prompts/emoji.yaml, those for later too, less the pairs held
out. The loss is on pixels alone: nothing that later judges has a say in it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from lab.data import World, icons, sheet, shift, to_pil, to_unit
from lab.fast import quicken
from lab.train import Run, arguments, load_ema

CHANNELS = (16, 48, 96, 112)
LATENTS = 8


def make(channels: tuple[int, ...] = CHANNELS, latents: int = LATENTS) -> AutoencoderKL:
    n = len(channels)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * n,
        up_block_types=("UpDecoderBlock2D",) * n,
        block_out_channels=channels,
        layers_per_block=1,
        latent_channels=latents,
        norm_num_groups=8,
        sample_size=64,
    )


class Coder(nn.Module):
    """Encode, sample, decode: what is trained, in one call."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, logvar = self.vae.quant_conv(self.vae.encoder(x)).chunk(2, 1)
        logvar = logvar.float().clamp(-30, 20)
        mean = mean.float()
        z = mean + (0.5 * logvar).exp() * noise
        return self.vae.decoder(self.vae.post_quant_conv(z)), mean, logvar


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Images in [-1, 1] through the autoencoder and back."""
    return torch.cat([
        vae.decode(vae.encode(part).latent_dist.mode()).sample.clamp(-1, 1)
        for part in images.split(64)
    ])  # fmt: skip


def psnr(images: Tensor, others: Tensor) -> float:
    """Mean over images of the peak signal-to-noise ratio, in dB."""
    error = ((images - others) / 2).square().flatten(1).mean(1)
    return float((-10 * error.clamp_min(1e-9).log10()).mean())


def trained(name: str = "vae") -> AutoencoderKL:
    """The averaged weights of a run, with the latents' mean and spread in the configuration."""
    coder = load_ema(name, Coder(make()))
    assert isinstance(coder, Coder)
    return coder.vae


def main() -> None:
    parser = arguments(__doc__ or "", images=78_000, batch=32, lr=1e-3)
    parser.add_argument("--kl", type=float, default=2e-6)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    train(args, World.read())


def train(args: argparse.Namespace, world: World) -> None:
    grid = to_unit(icons(world))
    images = torch.stack([grid[o, s] for o, s in world.pairs(later=True, held_out=False)])
    hidden = torch.stack([grid[o, s] for o, s in world.pairs(later=True, held_out=True)])
    shown = torch.cat([images[::53][:24], hidden[::8]]).to(args.device)

    @torch.no_grad()
    def sample(coder: nn.Module, path: Path) -> None:
        assert isinstance(coder, Coder)
        back = reconstruct(coder.vae, shown)
        pictures = to_pil(torch.stack([shown, back], 1).flatten(0, 1))
        sheet(pictures, 16, path)
        sheet(pictures, 16, path.with_name("latest.png"))
        print(f"\n{path.stem}: known {psnr(shown[:24], back[:24]):.2f} dB,"
              f" held out {psnr(shown[24:], back[24:]):.2f} dB")  # fmt: skip

    model = Coder(make()).to(memory_format=torch.channels_last)
    run = Run("vae", model, args, ema=0.998, sample=sample)
    forward = torch.compile(model) if args.compile else quicken(model)
    for rng, _ in run:
        which = torch.randint(0, len(images), (args.batch,), generator=rng)
        x = images[which]
        # A third of them moved, so that the decoder learns shapes and not places
        moved = torch.rand(args.batch, generator=rng) < 1 / 3
        x[moved] = shift(x[moved], 2, rng)
        x = x.to(args.device, memory_format=torch.channels_last)
        noise = torch.randn(args.batch, LATENTS, 8, 8, generator=rng).to(args.device)
        with run.autocast():
            back, mean, logvar = forward(x, noise)
        back = back.float()
        mse = F.mse_loss(back, x)
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum((1, 2, 3)).mean()
        loss = F.l1_loss(back, x) + 2 * mse + args.kl * kl
        run.update(loss, psnr=psnr(x, back.detach()), kl=kl.item())


if __name__ == "__main__":
    main()
