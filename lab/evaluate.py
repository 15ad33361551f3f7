"""Measure the shipped model by the shipped judge and CLIP, and write it down.

    python -m lab.evaluate           # lab/results/quality.json, grid.png, the model card's table
    python -m lab.evaluate --search  # schedulers, steps and guidance on an eighth of the objects

The whole grid of objects × styles, one image a prompt, the canonical prompt, fixed seeds. Only
what ships is read: pipelines/emoji, eval/emoji and prompts/emoji.yaml (and the icons, to say how
the judge does on them).
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch
from diffusers import StableDiffusionPipeline
from safetensors import safe_open
from torch import Tensor

from lab import card, clip, export, judge, pipeline, vae
from lab.data import ROOT, World, icons, sheet, to_pil, to_unit

RESULTS = ROOT / "lab" / "results"
SEED = 20_000


def load_judge(world: World, path: Path = judge.FILE) -> judge.Judge:
    """The judge as the file itself describes it, answering in the order of the YAML."""
    with safe_open(path, "pt") as file:
        config = json.loads(file.metadata()["config"])
        weights = {k: file.get_tensor(k) for k in file.keys()}
    model = judge.Judge(
        config["model"], config["settings"], len(config["objects"]), len(config["styles"])
    )
    model.load_state_dict(weights)
    if config["styles"] != list(world.styles):
        raise ValueError(f"{path} knows the styles {config['styles']}, not {list(world.styles)}.")
    return judge.arrange(model.float().eval(), config["objects"], world)


def share(right: Sequence[bool]) -> dict[str, Any]:
    """A rate with Wilson's 95 % interval."""
    n, z = len(right), 1.96
    p = sum(right) / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return {
        "value": round(p, 4),
        "hits": int(sum(right)),
        "n": n,
        "interval": [round(max(0, middle - half), 4), round(min(1, middle + half), 4)],
    }


def rates(seen: tuple[Tensor, Tensor], pairs: list[tuple[int, int]], chosen: list[int]) -> Any:
    objects = [int(seen[0][i]) == pairs[i][0] for i in chosen]
    styles = [int(seen[1][i]) == pairs[i][1] for i in chosen]
    return {"object": share(objects), "style": share(styles)}


def clip_scores(images: Tensor, captions: list[str]) -> list[float]:
    """100 × the cosine of each image and its caption."""
    model = open_clip.create_model(f"local-dir:{clip.FOLDER}").eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{clip.FOLDER}")
    with torch.no_grad():
        seen = model.encode_image(images, True)
        told = model.encode_text(tokenizer(captions), True)
    return [round(100 * float(s), 2) for s in (seen * told).sum(1)]


def quality(world: World, pipe: StableDiffusionPipeline, device: str) -> dict[str, Any]:
    reader = load_judge(world)
    pairs = [(o, s) for o in range(world.first) for s in range(len(world.styles))]
    prompts = [world.caption(*pair) for pair in pairs]
    settings = {k: world.generation[k] for k in ("num_inference_steps", "guidance_scale")}
    start = time.monotonic()
    images = pipeline.draw(
        pipe,
        prompts,
        steps=settings["num_inference_steps"],
        guidance=settings["guidance_scale"],
        seed=SEED,
    )
    seconds = time.monotonic() - start
    # What a PNG keeps of them
    images = ((images.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1
    seen = judge.read(reader, images)
    names, styles = list(world.objects), list(world.styles)
    groups = [world.groups[names[o]] for o, _ in pairs]
    everything = list(range(len(pairs)))
    hidden = {i for i in everything if pairs[i] in world.held_out}
    scores = clip_scores(images, prompts)

    grid = to_unit(icons(world))
    real = torch.stack([grid[o, s] for o, s in pairs])
    back = vae.reconstruct(pipe.vae, real)
    wrong = [
        {
            "prompt": prompts[i],
            "object": names[int(seen[0][i])],
            "style": styles[int(seen[1][i])],
        }
        for i in everything
        if (int(seen[0][i]), int(seen[1][i])) != pairs[i]
    ]
    report = {
        "objects": world.first,
        "styles": len(world.styles),
        "settings": {"scheduler": type(pipe.scheduler).__name__, **settings, "seed": SEED},
        "device": device,
        "images per second": round(len(pairs) / seconds, 1),
        "all": rates(seen, pairs, everything),
        "known pairs": rates(seen, pairs, [i for i in everything if i not in hidden]),
        "held-out pairs": rates(seen, pairs, sorted(hidden)),
        "by style": {
            style: rates(seen, pairs, [i for i in everything if styles[pairs[i][1]] == style])
            for style in styles
        },
        "by group": {
            group: rates(seen, pairs, [i for i in everything if groups[i] == group])
            for group in dict.fromkeys(groups)
        },
        "clip score": {
            "generated": round(sum(scores) / len(scores), 2),
            "icons": round(sum(x := clip_scores(real, prompts)) / len(x), 2),
        },
        "reconstructions": {
            "psnr": round(vae.psnr(real, back), 2),
            **rates(judge.read(reader, back), pairs, everything),
        },
        "judge on icons": judge.measure(reader, world),
        "wrong": wrong,
    }
    sheet(to_pil(images), 2 * len(styles), RESULTS / "grid.png")
    return report


def search(world: World, pipe: StableDiffusionPipeline) -> list[dict[str, Any]]:
    """The judge's reading at several ways to sample, on an eighth of the objects."""
    reader = load_judge(world)
    pairs = [(o, s) for o in range(0, world.first, 8) for s in range(len(world.styles))]
    prompts = [world.caption(*pair) for pair in pairs]
    found = []
    for name, steps, guidance in (
        ("DPMSolverMultistepScheduler", 20, 2.0),
        ("DPMSolverMultistepScheduler", 20, 3.0),
        ("DPMSolverMultistepScheduler", 20, 5.0),
        ("DPMSolverMultistepScheduler", 12, 3.0),
        ("DDIMScheduler", 20, 3.0),
        ("PNDMScheduler", 20, 3.0),
    ):
        pipe.scheduler = export.scheduler(name)
        # Seeds apart from those of the quality table
        images = pipeline.draw(pipe, prompts, steps=steps, guidance=guidance, seed=90_000)
        seen = rates(judge.read(reader, images), pairs, list(range(len(pairs))))
        row = {"scheduler": name, "steps": steps, "guidance": guidance,
               "object": seen["object"]["value"], "style": seen["style"]["value"]}  # fmt: skip
        print(row, flush=True)
        found.append(row)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--search", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    world = World.read()
    RESULTS.mkdir(parents=True, exist_ok=True)
    pipe = StableDiffusionPipeline.from_pretrained(export.FOLDER, dtype=torch.float32)
    pipe = pipe.to(args.device)
    pipe.set_progress_bar_config(disable=True)
    if args.search:
        (RESULTS / "search.json").write_text(
            json.dumps(search(world, pipe), indent=1) + "\n", encoding="utf-8"
        )
        return
    report = quality(world, pipe, args.device)
    (RESULTS / "quality.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    card.write()
    for key in ("all", "known pairs", "held-out pairs"):
        print(key, {k: (v["value"], v["n"]) for k, v in report[key].items()})
    for key in ("by style", "by group"):
        for name, row in report[key].items():
            print(f"  {name:12}", {k: v["value"] for k, v in row.items()})
    print({k: report[k] for k in ("clip score", "reconstructions", "images per second")})


if __name__ == "__main__":
    main()
