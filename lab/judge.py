"""The judge: a small classifier with an object head and a style head, trained on real icons.

    python -m lab.judge            # train, then measure on held-out augmentations and pairs
    python -m lab.judge --measure  # measure alone

It shares no weights and no training code path with the models it judges. The object head knows
every object of prompts/emoji.yaml, also those for later. The style head is trained on the other
icons that are in all eight sets, too. Pairs held out of the world, and icons that look the same,
are not shown to it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from lab.data import ICONS, ROOT, RUNS, SIZE, World, disturb, extras, icons, to_unit
from lab.train import Run, arguments, load_ema

MODEL = "resnet18"
SETTINGS: dict[str, Any] = {"channels": [40, 80, 160, 256]}
FILE = ROOT / "eval" / "emoji" / "judge.safetensors"


class Judge(nn.Module):
    """A timm backbone and two linear heads; images in [-1, 1], shape (n, 3, 64, 64)."""

    def __init__(self, model: str, settings: dict[str, Any], objects: int, styles: int) -> None:
        super().__init__()
        self.backbone = timm.create_model(model, num_classes=0, **settings)
        width = int(self.backbone.num_features)  # type: ignore[arg-type]
        self.object = nn.Linear(width, objects)
        self.style = nn.Linear(width, styles)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.backbone(images)
        return self.object(features), self.style(features)


def make(world: World) -> Judge:
    return Judge(MODEL, SETTINGS, len(world.objects), len(world.styles))


def arrange(judge: Judge, labels: list[str], world: World) -> Judge:
    """Put the object head's answers, in the order it learnt, into the order of the YAML."""
    rows = [labels.index(name) for name in world.objects]
    judge.object.weight.data = judge.object.weight.data[rows]
    judge.object.bias.data = judge.object.bias.data[rows]
    return judge


@torch.no_grad()
def read(judge: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """The object and the style that the judge sees in each image, as indices."""
    answers = [judge(part) for part in images.split(256)]
    objects, styles = (torch.cat(part) for part in zip(*answers, strict=True))
    return objects.argmax(1), styles.argmax(1)


def accuracy(judge: nn.Module, images: Tensor, pairs: list[tuple[int, int]]) -> dict[str, float]:
    """The share of images of which the judge reads the right object, and the right style."""
    seen = read(judge, images)
    truth = torch.tensor(pairs).T
    right = [(a == b).float().mean().item() for a, b in zip(seen, truth, strict=True)]
    return {"object": round(right[0], 4), "style": round(right[1], 4), "n": len(pairs)}


def measure(judge: nn.Module, world: World) -> dict[str, dict[str, float]]:
    """On clean and on newly disturbed icons, known and never seen; the world's, then all."""
    grid = to_unit(icons(world))
    rng = torch.Generator().manual_seed(12345)
    found = {}
    for title, later in (("world", False), ("all", True)):
        for held_out in (False, True):
            pairs = world.pairs(later=later, held_out=held_out)
            images = torch.stack([grid[o, s] for o, s in pairs])
            key = f"{title}, {'held-out' if held_out else 'known'} pairs"
            found[f"{key}, clean"] = accuracy(judge, images, pairs)
            copies = max(1, 1500 // len(pairs))
            found[f"{key}, disturbed"] = accuracy(
                judge, disturb(images.repeat(copies, 1, 1, 1), rng), pairs * copies
            )
            found[f"{key}, lightly disturbed"] = accuracy(
                judge, disturb(images.repeat(copies, 1, 1, 1), rng, 0.4), pairs * copies
            )
    return found


def export(judge: nn.Module, world: World, path: Path = FILE) -> None:
    """One file: fp16 weights, and how to use them under "config" in the header."""
    config = {
        "model": MODEL,
        "settings": SETTINGS,
        "objects": list(world.objects),
        "styles": list(world.styles),
        "size": SIZE,
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "resize": "bicubic, antialiased",
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = {
        k: (v.half() if v.is_floating_point() else v).contiguous()
        for k, v in judge.state_dict().items()
    }
    save_file(weights, path, {"format": "pt", "config": json.dumps(config)})
    path.chmod(0o644)  # safetensors gives its files to their owner alone


def main() -> None:
    parser = arguments(__doc__ or "", images=250_000, batch=128, lr=2e-3)
    parser.add_argument("--measure", action="store_true")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    world = World.read()
    if not args.measure:
        train(args, world)
    name = args.name or "judge"
    labels = json.loads((RUNS / name / "labels.json").read_text(encoding="utf-8"))
    learnt = load_ema(name, make(world))
    assert isinstance(learnt, Judge)
    judge = arrange(learnt, labels, world)
    for key, value in measure(judge, world).items():
        print(f"{key:40} {value}")
    export(judge, world)
    print(FILE.relative_to(ROOT), f"{FILE.stat().st_size / 1e6:.1f} MB")


def train(args: Any, world: World) -> None:
    grid = to_unit(icons(world))
    pairs = world.pairs(later=True, held_out=False)
    hidden = torch.stack([grid[o, s] for o, s in world.pairs(later=True, held_out=True)])
    others, other_styles = extras(world, ICONS, hidden)
    images = torch.cat([torch.stack([grid[o, s] for o, s in pairs]), to_unit(others)])
    objects = torch.tensor([o for o, _ in pairs] + [-1] * len(others))
    styles = torch.cat([torch.tensor([s for _, s in pairs]), other_styles])
    print(f"{len(pairs)} icons of {len(world.objects)} objects, {len(others)} for style alone")

    model = make(world)
    run = Run("judge", model, args, ema=0.998)
    (run.folder / "labels.json").write_text(json.dumps(list(world.objects)), encoding="utf-8")
    forward = torch.compile(model) if args.compile else model
    known = len(pairs)
    for rng, _ in run:
        # Three of four are of the world
        mine = torch.randint(0, known, (args.batch * 3 // 4,), generator=rng)
        rest = torch.randint(known, len(images), (args.batch - len(mine),), generator=rng)
        which = torch.cat([mine, rest])
        x = disturb(images[which], rng).to(args.device)
        with run.autocast():
            object_logits, style_logits = forward(x)
        y, z = objects[which].to(args.device), styles[which].to(args.device)
        object_loss = F.cross_entropy(
            object_logits.float(), y, ignore_index=-1, label_smoothing=0.05
        )
        style_loss = F.cross_entropy(style_logits.float(), z, label_smoothing=0.05)
        mine_right = (object_logits.argmax(1) == y)[: len(mine)].float().mean()
        style_right = (style_logits.argmax(1) == z).float().mean()
        run.update(object_loss + style_loss, object=mine_right.item(), style=style_right.item())


if __name__ == "__main__":
    main()
