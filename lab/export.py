"""Write what ships: pipelines/emoji, fp16, with its model card.

    python -m lab.export

The folder is made beside the old one and takes its place by a rename. The scheduler, the guidance
and the steps are those of `generation` in prompts/emoji.yaml.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import diffusers
import torch
from diffusers import StableDiffusionPipeline

from lab import card, pipeline, vae
from lab.data import ROOT, World

FOLDER = ROOT / "pipelines" / "emoji"


def scheduler(name: str) -> diffusers.SchedulerMixin:
    """diffusers' scheduler of that name, on the schedule trained on."""
    kind = getattr(diffusers, name)
    settings = dict(pipeline.BETAS)
    if name in ("DDIMScheduler", "PNDMScheduler"):
        settings |= {"set_alpha_to_one": False, "steps_offset": 1}
    if name == "DDIMScheduler":
        settings["clip_sample"] = False
    if name == "PNDMScheduler":
        settings["skip_prk_steps"] = True
    made = kind(**settings)
    assert isinstance(made, diffusers.SchedulerMixin)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vae", default="vae", help="the autoencoder's run")
    parser.add_argument("--pipeline", default="pipeline", help="the denoiser's run")
    args = parser.parse_args()
    world = World.read()
    coder = pipeline.scaled(vae.trained(args.vae), world)
    denoiser, tokenizer = pipeline.trained(args.pipeline)
    made = scheduler(world.generation.get("scheduler", "DPMSolverMultistepScheduler"))
    pipe = pipeline.assemble(denoiser, coder, tokenizer, made).to(torch.float16)
    fresh = FOLDER.with_name("emoji.part")
    shutil.rmtree(fresh, ignore_errors=True)
    pipe.save_pretrained(fresh)
    readable(fresh)
    swap(fresh, FOLDER)
    card.write()

    loaded = StableDiffusionPipeline.from_pretrained(FOLDER, dtype=torch.float32)
    for name, part in loaded.components.items():
        if isinstance(part, torch.nn.Module):
            for key, tensor in part.state_dict().items():
                if not tensor.isfinite().all():
                    raise ValueError(f"{name}.{key} does not fit into fp16.")
    size = sum(f.stat().st_size for f in FOLDER.rglob("*") if f.is_file())
    print(f"{FOLDER.relative_to(ROOT)}: {size / 1e6:.1f} MB")


def readable(folder: Path) -> None:
    """Files that anyone may read; some writers make them their owner's alone."""
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


def swap(fresh: Path, folder: Path) -> None:
    old = folder.with_name("emoji.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


if __name__ == "__main__":
    main()
