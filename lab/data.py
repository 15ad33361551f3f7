"""The world: icons, captions and augmentation.

python -m lab.data --sheet lab/runs/icons.png     # draw everything and look at it
"""

from __future__ import annotations

import argparse
import io
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from unsee.prompts.concept import read_yaml

ROOT = Path(__file__).resolve().parents[1]
RUNS = ROOT / "lab" / "runs"
ICONS = RUNS / "icons" / "node_modules"
SIZE = 64
MARGIN = 2  # white pixels on each side, so that a small shift cuts nothing


@dataclass(frozen=True)
class World:
    """What prompts/emoji.yaml says.

    Attributes:
        objects: phrase -> icon name; those of the world first, then those for later.
        groups: phrase -> group.
        styles: phrase -> icon set.
        first: How many of the objects the denoiser learns.
        held_out: (object, style) pairs, as indices, kept out of every training.
        templates: Caption templates; the first is the canonical one.
    """

    objects: dict[str, str]
    groups: dict[str, str]
    styles: dict[str, str]
    first: int
    held_out: frozenset[tuple[int, int]]
    templates: tuple[str, ...]
    generation: dict[str, Any]

    @classmethod
    def read(cls, path: Path = ROOT / "prompts" / "emoji.yaml") -> World:
        page = read_yaml(path)
        objects: dict[str, str] = {}
        groups: dict[str, str] = {}
        first = 0
        for part in ("objects", "later"):
            for group, entries in (page.get(part) or {}).items():
                for phrase, icon in entries.items():
                    if phrase in objects:
                        raise ValueError(f"{path}: {phrase!r} is listed twice.")
                    objects[phrase], groups[phrase] = icon, group
            first = first or len(objects)
        names, styles = list(objects), list(page["styles"])
        held_out = frozenset((names.index(o), styles.index(s)) for o, s in page["held_out"])
        return cls(
            objects,
            groups,
            page["styles"],
            first,
            held_out,
            tuple(page["templates"]),
            page.get("generation") or {},
        )

    def pairs(self, *, later: bool, held_out: bool) -> list[tuple[int, int]]:
        """The (object, style) pairs trained on, or those held out; all objects if `later`."""
        n = len(self.objects) if later else self.first
        grid = [(o, s) for o in range(n) for s in range(len(self.styles))]
        return [pair for pair in grid if (pair in self.held_out) == held_out]

    def caption(self, obj: int, style: int, template: str | None = None) -> str:
        return (template or self.templates[0]).format(
            object=list(self.objects)[obj], style=list(self.styles)[style]
        )

    def captions(self) -> list[str]:
        """Every caption there can be, each once."""
        said = {
            self.caption(o, s, t): None
            for t in self.templates
            for o in range(len(self.objects))
            for s in range(len(self.styles))
        }
        return list(said)

    def any_caption(self, obj: int, style: int, rng: random.Random) -> str:
        """A caption as training draws it: 10 % empty, some that name one thing alone."""
        both = [t for t in self.templates if "{object}" in t and "{style}" in t]
        only_object = [t for t in self.templates if "{style}" not in t]
        only_style = [t for t in self.templates if "{object}" not in t]
        draw = rng.random()
        if draw < 0.10:
            return ""
        if draw < 0.17:
            return self.caption(obj, style, rng.choice(only_object))
        if draw < 0.23:
            return self.caption(obj, style, rng.choice(only_style))
        # The canonical prompt is the one most asked for
        return self.caption(obj, style, both[0] if draw < 0.50 else rng.choice(both))


def draw_icon(folder: Path, icon_set: str, name: str, size: int = SIZE) -> Image.Image:
    """One icon on white, antialiased."""
    import resvg_py

    page = _icon_set(folder, icon_set)
    turn = {}
    entry = page["icons"].get(name)
    if entry is None:
        turn = page["aliases"][name]
        entry = page["icons"][turn["parent"]]
    if set(turn) - {"parent"}:
        raise ValueError(f"{icon_set}:{name} is a turned alias, which nothing here draws.")
    width, height = (entry.get(k, page.get(k, 16)) for k in ("width", "height"))
    side = max(width, height) * size / (size - 2 * MARGIN)
    x, y = (width - side) / 2, (height - side) / 2
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{x} {y} {side} {side}" width="{size}" height="{size}">{entry["body"]}</svg>'
    )
    for scale in (4, 3, 5, 2):
        try:
            png = resvg_py.svg_to_bytes(
                svg_string=svg,
                width=scale * size,
                height=scale * size,
                background="#ffffff",
                skip_system_fonts=True,
            )
        except BaseException as error:
            # resvg 0.48 panics on some filters at some sizes; its panic is no Exception
            if type(error).__name__ != "PanicException":
                raise
            continue
        large = Image.open(io.BytesIO(bytes(png))).convert("RGB")
        return large.resize((size, size), Image.Resampling.BOX)
    raise RuntimeError(f"resvg draws {icon_set}:{name} at no size that was tried.")


_PAGES: dict[tuple[Path, str], dict[str, Any]] = {}


def _icon_set(folder: Path, icon_set: str) -> dict[str, Any]:
    key = (folder, icon_set)
    if key not in _PAGES:
        path = folder / "@iconify-json" / icon_set / "icons.json"
        if not path.exists():
            raise FileNotFoundError(
                f"{path} is not there:"
                f" npm install --prefix {folder.parent} @iconify-json/{icon_set}"
            )
        _PAGES[key] = json.loads(path.read_text(encoding="utf-8"))
    return _PAGES[key]


def icons(world: World, folder: Path = ICONS) -> Tensor:
    """All icons, uint8, shape (objects, styles, 3, SIZE, SIZE); drawn once, then cached."""
    cache = RUNS / "icons.npz"
    names = [f"{s}:{o}" for o in world.objects.values() for s in world.styles.values()]
    known = {}
    if cache.exists():
        with np.load(cache) as saved:
            known = dict(zip(saved["names"].tolist(), saved["images"], strict=True))
    missing = [name for name in names if name not in known]
    for name in missing:
        icon_set, icon = name.split(":")
        known[name] = np.asarray(draw_icon(folder, icon_set, icon)).transpose(2, 0, 1)
    if missing:
        cache.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(
            cache, names=np.array(list(known)), images=np.stack(list(known.values()))
        )
    images = np.stack([known[name] for name in names])
    return torch.from_numpy(images).view(len(world.objects), len(world.styles), 3, SIZE, SIZE)


def extras(world: World, folder: Path, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """The other icons that are in all eight sets, for what needs style alone.

    Args:
        hidden: Float images not to be shown; icons that look the same are left out.

    Returns:
        uint8 images, shape (n, 3, SIZE, SIZE), and the style of each.
    """
    cache = RUNS / "extras.npz"
    sets = list(world.styles.values())
    if not cache.exists():
        shared = set.intersection(
            *(set(page["icons"]) for page in (_icon_set(folder, s) for s in sets))
        )
        # Skin tones and clock faces would be most of what is left
        many = ("skin-tone", "oclock", "thirty")
        shared -= set(world.objects.values())
        names = sorted(name for name in shared if not any(part in name for part in many))
        drawn = [np.asarray(draw_icon(folder, s, n)) for n in names for s in sets]
        np.savez_compressed(cache, images=np.stack(drawn).transpose(0, 3, 1, 2))
    with np.load(cache) as saved:
        images = torch.from_numpy(saved["images"])
    small = F.avg_pool2d(to_unit(images), 4).flatten(1)
    distance = torch.cdist(small, F.avg_pool2d(hidden, 4).flatten(1)).min(1).values
    keep = distance > 0.05 * small.shape[1] ** 0.5
    return images[keep], torch.arange(len(images)).remainder(len(sets))[keep]


def to_unit(images: Tensor) -> Tensor:
    """uint8 to float in [-1, 1]."""
    return images.float() / 127.5 - 1


def to_pil(images: Tensor) -> list[Image.Image]:
    """Float images in [-1, 1], shape (n, 3, h, w), to PIL."""
    pixels = ((images.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return [Image.fromarray(p.permute(1, 2, 0).numpy()) for p in pixels]


def sheet(pictures: Sequence[Image.Image], columns: int, path: Path, gap: int = 2) -> None:
    """Pictures of one size side by side, row by row; in 256 colours, to stay small."""
    w, h = pictures[0].size
    rows = -(-len(pictures) // columns)
    page = Image.new("RGB", (columns * (w + gap) + gap, rows * (h + gap) + gap), "white")
    for i, picture in enumerate(pictures):
        row, column = divmod(i, columns)
        page.paste(picture, (gap + column * (w + gap), gap + row * (h + gap)))
    path.parent.mkdir(parents=True, exist_ok=True)
    page.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def shift(images: Tensor, most: int, rng: torch.Generator) -> Tensor:
    """Each image moved by up to `most` pixels each way; what comes in is white."""
    n, _, h, w = images.shape
    padded = F.pad(images, [most] * 4, value=1.0)
    dy, dx = torch.randint(0, 2 * most + 1, (2, n), generator=rng)
    rows = dy[:, None] + torch.arange(h)
    columns = dx[:, None] + torch.arange(w)
    which = torch.arange(n)[:, None, None]
    moved = padded.permute(0, 2, 3, 1)[which, rows[:, :, None], columns[:, None, :]]
    return moved.permute(0, 3, 1, 2)


def disturb(images: Tensor, rng: torch.Generator, strength: float = 1.0) -> Tensor:
    """Images as a generator may give them: moved, soft, noisy, off-colour, blocky.

    Args:
        images: In [-1, 1], shape (n, 3, h, w).
        strength: 1 is what the judge trains on.
    """
    n, _, h, _ = images.shape

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(n, *shape, generator=rng)

    def some(share: float) -> Tensor:
        return (torch.rand(n, 1, 1, 1, generator=rng) < share).float()

    # Move, scale, turn and stretch a little
    angle = uniform(-0.17, 0.17) * strength
    scale_x, scale_y = 1 + uniform(-0.12, 0.12, 2).T * strength
    dx, dy = uniform(-0.12, 0.12, 2).T * strength
    theta = torch.stack(
        [
            torch.stack([scale_x * angle.cos(), -scale_y * angle.sin(), dx], 1),
            torch.stack([scale_x * angle.sin(), scale_y * angle.cos(), dy], 1),
        ],
        1,
    )
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    x = 1 - F.grid_sample(1 - images, grid, align_corners=False)

    # Warp gently, as an uncertain decoder does
    field = F.interpolate(
        torch.randn(n, 2, 5, 5, generator=rng), (h, h), mode="bicubic", align_corners=True
    )
    field = field * uniform(0, 0.02, 1, 1, 1) * strength
    x = 1 - F.grid_sample(1 - x, grid * 0 + _identity(x) + field.permute(0, 2, 3, 1),
                          align_corners=False)  # fmt: skip

    # Soften: mix with two blurs
    soft = F.interpolate(F.avg_pool2d(x, 2), (h, h), mode="bilinear")
    softer = F.interpolate(F.avg_pool2d(x, 4), (h, h), mode="bilinear")
    x = x + some(0.6) * uniform(0, 1, 1, 1, 1) * (soft - x)
    x = x + some(0.15) * uniform(0, 0.7, 1, 1, 1) * (softer - x)

    # Off-colour: brightness, contrast and a small mixing of the channels
    x = x * uniform(1 - 0.15 * strength, 1 + 0.1 * strength, 1, 1, 1)
    x = x + some(0.7) * uniform(-0.08, 0.08, 3, 1, 1) * strength
    mix = torch.eye(3) + 0.04 * strength * torch.randn(n, 3, 3, generator=rng)
    x = torch.einsum("nij,njhw->nihw", mix, x - 1) + 1

    # Blocky: quantise the 8 x 8 cosine transform, as JPEG does
    x = x + some(0.3) * (_quantise(x, uniform(0.05, 0.35, 1, 1)) - x)

    # Noise: fine, and blotchy at the latent's grain
    x = x + some(0.5) * uniform(0, 0.12, 1, 1, 1) * torch.randn(x.shape, generator=rng)
    blotch = F.interpolate(
        torch.randn(n, 3, h // 4, h // 4, generator=rng), (h, h), mode="bilinear"
    )
    x = x + some(0.4) * uniform(0, 0.2, 1, 1, 1) * blotch
    return x.clamp(-1, 1)


def _identity(x: Tensor) -> Tensor:
    theta = torch.eye(2, 3).expand(len(x), 2, 3)
    return F.affine_grid(theta, list(x.shape), align_corners=False)


def _quantise(x: Tensor, step: Tensor) -> Tensor:
    """Round the cosine transform of each 8 x 8 block to multiples of a step per image."""
    k = torch.arange(8.0)
    dct = torch.cos(torch.pi / 8 * (k + 0.5) * k[:, None]) / 2
    dct[0] /= 2**0.5
    n, c, h, w = x.shape
    blocks = x.view(n, c, h // 8, 8, w // 8, 8).permute(0, 1, 2, 4, 3, 5)
    coarse = (1 + k + k[:, None]) / 4 * step.view(n, 1, 1, 1, 1, 1)
    cosines = (dct @ blocks @ dct.T / coarse).round() * coarse
    return (dct.T @ cosines @ dct).permute(0, 1, 2, 4, 3, 5).reshape(n, c, h, w)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--icons", type=Path, default=ICONS, help="npm's node_modules folder")
    parser.add_argument("--sheet", type=Path, default=RUNS / "icons.png")
    args = parser.parse_args()
    world = World.read()
    images = to_unit(icons(world, args.icons).flatten(0, 1))
    sheet(to_pil(images), 4 * len(world.styles), args.sheet)
    rng = torch.Generator().manual_seed(0)
    sheet(to_pil(disturb(images[:256], rng)), 32, args.sheet.with_stem("disturbed"))
    print(f"{len(images)} icons of {len(world.objects)} objects: {args.sheet}")


if __name__ == "__main__":
    main()
