"""The CLIP that scores images against prompts: open_clip's own model, made small.

    python -m lab.clip            # train, measure, write eval/emoji/clip
    python -m lab.clip --measure

Trained on every icon and caption of prompts/emoji.yaml, less the pairs held out, apart from the
denoiser's text encoder and from the judge. Loaded by open_clip's public API, offline:

    model, _, preprocess = open_clip.create_model_and_transforms("local-dir:eval/emoji/clip")
    tokenizer = open_clip.get_tokenizer("local-dir:eval/emoji/clip")
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTokenizer

from lab import tokens
from lab.data import ROOT, SIZE, World, disturb, icons, to_unit
from lab.train import Run, arguments, load_ema

FOLDER = ROOT / "eval" / "emoji" / "clip"
PAD = "<|pad|>"


def config(tokenizer: CLIPTokenizer) -> dict[str, Any]:
    """What open_clip_config.json says of the model."""
    return {
        "embed_dim": 128,
        "vision_cfg": {"image_size": SIZE, "layers": [1, 2, 2, 1], "width": 16, "head_width": 64},
        "text_cfg": {
            "context_length": tokens.LENGTH,
            "vocab_size": len(tokenizer),
            "hf_tokenizer_name": ".",
            "width": 128,
            "heads": 4,
            "layers": 2,
        },
    }


def make(world: World) -> tuple[open_clip.CLIP, CLIPTokenizer]:
    tokenizer = tokens.make(world.captions(), PAD)
    settings = config(tokenizer)
    return open_clip.CLIP(
        settings["embed_dim"], settings["vision_cfg"], settings["text_cfg"]
    ), tokenizer


def encode(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    ids = tokenizer(
        captions, padding="max_length", truncation=True, max_length=tokens.LENGTH,
        return_tensors="pt",
    ).input_ids  # fmt: skip
    assert isinstance(ids, Tensor)
    return ids


def agree(pairs: list[tuple[int, int]], said: list[tuple[bool, bool]]) -> Tensor:
    """Whether caption j, of pair j with object or style left out, is true of image i."""
    where = torch.tensor(pairs)
    names = torch.tensor(said)
    same = where[:, None, :] == where[None, :, :]
    return (same | ~names[None, :, :]).all(2)


def train(args: argparse.Namespace, world: World) -> None:
    grid = to_unit(icons(world))
    pairs = world.pairs(later=True, held_out=False)
    images = torch.stack([grid[o, s] for o, s in pairs])
    model, tokenizer = make(world)
    run = Run("clip", model, args, ema=0.998, weight_decay=0.1)
    forward = torch.compile(model) if args.compile else model
    for rng, words in run:
        which = torch.randperm(len(pairs), generator=rng)[: args.batch]
        chosen = [pairs[i] for i in which.tolist()]
        templates = [template(world, words) for _ in chosen]
        captions = [world.caption(o, s, t) for (o, s), t in zip(chosen, templates, strict=True)]
        true = agree(chosen, [("{object}" in t, "{style}" in t) for t in templates]).float()
        x = disturb(images[which], rng, 0.6).to(args.device)
        with run.autocast():
            a, b, scale = forward(x, encode(tokenizer, captions).to(args.device))
        logits = scale.float() * a.float() @ b.float().T
        true = true.to(args.device)
        loss = -(
            (logits.log_softmax(1) * true / true.sum(1, keepdim=True)).sum(1).mean()
            + (logits.log_softmax(0) * true / true.sum(0, keepdim=True)).sum(0).mean()
        )
        run.update(loss / 2, right=true.gather(1, logits.argmax(1)[:, None]).mean().item())
        with torch.no_grad():
            model.logit_scale.clamp_(max=4.6)


def template(world: World, words: random.Random) -> str:
    """Mostly those that name both object and style."""
    both = [t for t in world.templates if "{object}" in t and "{style}" in t]
    return words.choice(both if words.random() < 0.8 else list(world.templates))


@torch.no_grad()
def measure(model: nn.Module, tokenizer: Any, world: World) -> dict[str, Any]:
    """How far the score of the right caption is from that of wrong ones, on clean icons."""
    assert isinstance(model, open_clip.CLIP)
    grid = to_unit(icons(world))
    objects, styles = len(world.objects), len(world.styles)
    everything = [(o, s) for o in range(objects) for s in range(styles)]
    text = torch.cat([
        model.encode_text(encode(tokenizer, [world.caption(*pair) for pair in part]), True)
        for part in (everything[i : i + 256] for i in range(0, len(everything), 256))
    ])  # fmt: skip
    found: dict[str, Any] = {}
    for title, held_out in (("known", False), ("held-out", True)):
        pairs = world.pairs(later=True, held_out=held_out)
        images = torch.stack([grid[o, s] for o, s in pairs])
        seen = torch.cat([model.encode_image(part, True) for part in images.split(128)])
        scores = (seen @ text.T).view(-1, objects, styles)
        i = torch.arange(len(pairs))
        o, s = torch.tensor(pairs).T
        right = scores[i, o, s]
        other_objects = scores[i, :, s]
        other_styles = scores[i, o, :]
        found[title] = {
            "n": len(pairs),
            "right": round(right.mean().item(), 3),
            "object wrong": round(
                ((other_objects.sum(1) - right) / (objects - 1)).mean().item(), 3
            ),
            "style wrong": round(((other_styles.sum(1) - right) / (styles - 1)).mean().item(), 3),
            "object read": round((other_objects.argmax(1) == o).float().mean().item(), 4),
            "style read": round((other_styles.argmax(1) == s).float().mean().item(), 4),
            "pair read": round(
                (scores.flatten(1).argmax(1) == o * styles + s).float().mean().item(), 4
            ),
        }
    return found


def export(model: nn.Module, tokenizer: CLIPTokenizer, folder: Path = FOLDER) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        k: (v.half() if v.is_floating_point() else v).contiguous()
        for k, v in model.state_dict().items()
    }
    save_file(weights, folder / "open_clip_model.safetensors", {"format": "pt"})
    page = {
        "model_cfg": config(tokenizer),
        "preprocess_cfg": {
            "size": [SIZE, SIZE],
            "mode": "RGB",
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
            "interpolation": "bicubic",
            "resize_mode": "squash",
        },
    }
    (folder / "open_clip_config.json").write_text(
        json.dumps(page, indent=2) + "\n", encoding="utf-8"
    )
    tokenizer.save_pretrained(folder)
    for path in folder.iterdir():
        path.chmod(0o644)  # safetensors gives its files to their owner alone


def main() -> None:
    parser = arguments(__doc__ or "", images=120_000, batch=256, lr=1.5e-3)
    parser.add_argument("--measure", action="store_true")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    world = World.read()
    if not args.measure:
        train(args, world)
    model, tokenizer = make(world)
    load_ema(args.name or "clip", model)
    export(model, tokenizer)
    loaded = open_clip.create_model(f"local-dir:{FOLDER}").eval()
    for title, figures in measure(loaded, tokenizer, world).items():
        print(title, figures)
    size = sum(f.stat().st_size for f in FOLDER.iterdir())
    print(FOLDER.relative_to(ROOT), f"{size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
