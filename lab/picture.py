"""Draws the README's picture from an audit's two galleries.

    python lab/picture.py runs/demo/uce lab/results/before-after.png

Above the base model, below the erased one: first images of the target, one a style, then as many
of what is kept.
"""

import argparse
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from unsee.gallery import Gallery
from unsee.prompts import Prompt

SIZE, GAP, HEAD = 88, 4, 26


def chosen(gallery: Gallery, target: str) -> list[list[Prompt]]:
    """Eight of the target's prompts in eight styles, and eight kept ones in the same styles."""
    rows: list[list[Prompt]] = [[], []]
    for kept in (False, True):
        seen: set[str] = set()
        used: set[str] = set()
        for prompt in gallery:
            name, style = prompt.labels["object"], prompt.labels["style"]
            if (name != target) == kept and style not in seen and (name not in used or not kept):
                seen.add(style)
                used.add(name)
                rows[kept].append(prompt)
        rows[kept].sort(key=lambda p: p.labels["style"])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("audit", type=Path)
    parser.add_argument("picture", type=Path)
    arguments = parser.parse_args()
    base, erased = (Gallery.open(arguments.audit / name) for name in ("base", "erased"))
    target = erased.made_by.erasures[0].name if erased.made_by else ""
    groups = chosen(base, target)
    columns = max(len(group) for group in groups)
    left = 76
    height = len(groups) * (HEAD + 2 * (SIZE + GAP) + 10)
    page = Image.new("RGB", (left + columns * (SIZE + GAP), height), "white")
    draw = ImageDraw.Draw(page)
    font = ImageFont.load_default(15)
    top = 0
    for title, group in zip((f"prompts for “{target}”", "prompts to keep"), groups, strict=True):
        draw.text((left, top + 4), title, "#333333", font)
        top += HEAD
        for name, gallery in (("before", base), ("after", erased)):
            draw.text((8, top + SIZE // 2 - 8), name, "#333333", font)
            for i, prompt in enumerate(group):
                with Image.open(gallery.image_path(prompt)) as image:
                    tile = image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.LANCZOS)
                page.paste(tile, (left + i * (SIZE + GAP), top))
            top += SIZE + GAP
        top += 10
    arguments.picture.parent.mkdir(parents=True, exist_ok=True)
    page.save(arguments.picture, optimize=True)


if __name__ == "__main__":
    main()
