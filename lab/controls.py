"""The controls of the built-in model: icons that it never saw, and the detector that knows them.

    python -m lab.controls

Draws four objects in the eight sets as the training's icons were drawn (prompts/controls), checks
that no training of the model saw them, and writes the judge's features of these and of all known
icons (eval/emoji/nearest.safetensors), from which the detector ``emoji/nearest`` answers. At the
end it measures the detector: on each control's icons by the seven others, on disturbed icons, and
through the autoencoder.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from lab.data import ICONS, ROOT, World, disturb, draw_icon, icons, to_pil, to_unit
from unsee.eval.detectors import Detection
from unsee.eval.detectors.judge import Judge
from unsee.eval.detectors.nearest import FILE, Nearest, likeness
from unsee.pipelines import load_pipeline
from unsee.prompts.control import CONTROLS, FOLDER, find_control

DRAWN = {
    "wrench": "wrench",
    "flashlight": "flashlight",
    "microscope": "microscope",
    "magnifying glass": "magnifying-glass-tilted-left",
}
"""Phrase to the icon's name in every set."""


def draw(world: World, folder: Path = ICONS) -> None:
    """Writes prompts/controls.

    Raises:
        ValueError: The world has one of them, or a thing whose name has all its words, or a
            training icon is the same drawing.
    """
    assert (*DRAWN,) == CONTROLS
    learnt = [set(name.replace("-", " ").split()) for o in world.objects.items() for name in o]
    known = {image.numpy().tobytes() for image in icons(world, folder).flatten(0, 1)}
    for phrase, icon in DRAWN.items():
        if any(words >= set(phrase.split()) for words in learnt):
            raise ValueError(f"The model was trained on the {phrase}.")
        (out := FOLDER / phrase.replace(" ", "-")).mkdir(parents=True, exist_ok=True)
        for style, icon_set in world.styles.items():
            image = draw_icon(folder, icon_set, icon)
            if pixels(image).numpy().tobytes() in known:
                raise ValueError(f"{icon_set} draws a {phrase} as it draws a training icon.")
            image.save(out / f"{style}.png", optimize=True)


def pixels(image: Image.Image) -> Tensor:
    """uint8, shape (3, h, w)."""
    flat = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return flat.view(image.height, image.width, 3).permute(2, 0, 1)


def references(world: World) -> tuple[list[Image.Image], list[str]]:
    """All known icons and all of the controls, and the object of each."""
    grid = icons(world)
    images = [Image.fromarray(i.permute(1, 2, 0).numpy()) for i in grid.flatten(0, 1)]
    names = [name for name in world.objects for _ in world.styles]
    for name in CONTROLS:
        control = find_control(name, model="emoji")
        images += control.images
        names += [name] * len(control.images)
    return images, names


def export(images: list[Image.Image], names: list[str], path: Path = FILE) -> None:
    """One file: the features in fp16, and under "config" in the header what they are of."""
    judge = Judge.load()
    config = {"objects": names, "judge_sha256": judge.protocol["weights_sha256"]}
    # No "format" beside it: safetensors writes several keys in an order that changes by the run
    header = {"config": json.dumps(config)}
    save_file({"features": judge.features(images).half().contiguous()}, path, header)
    path.chmod(0o644)  # safetensors gives its files to their owner alone


def seen(nearest: Nearest, images: list[Image.Image]) -> list[str]:
    """What the detector says of each image."""
    answers = nearest(images)
    return [a.labels[0] if isinstance(a, Detection) else "" for a in answers]


@torch.no_grad()
def measure(images: list[Image.Image], names: list[str]) -> dict[str, str]:
    """How often the detector is right, of known icons and of the controls'."""
    nearest = Nearest()
    n = len(names) - sum(name in CONTROLS for name in names)
    units = to_unit(torch.stack([pixels(image) for image in images]))
    vae = load_pipeline("emoji", device="cpu").vae
    back = [vae.decode(vae.encode(x).latent_dist.mode()).sample for x in units.split(64)]
    shown = {"icons": images, "through the autoencoder": to_pil(torch.cat(back))}
    for strength in (0.4, 1.0):
        rng = torch.Generator().manual_seed(12345)
        shown[f"disturbed, {strength}"] = to_pil(disturb(units, rng, strength))

    def right(said: list[str]) -> str:
        hits = [a == b for a, b in zip(said, names, strict=True)]
        strange = sum(name in CONTROLS for name in said[:n])
        return (
            f"known {sum(hits[:n])} of {n}, controls {sum(hits[n:])} of {len(hits) - n}; "
            f"{strange} known ones are taken for a control"
        )

    found = {title: right(seen(nearest, some)) for title, some in shown.items()}
    features = Judge.load().features(images)
    others = likeness(features, features).fill_diagonal_(-1)
    found["icons by all others"] = right([names[i] for i in others.argmax(1).tolist()])
    return found


def main() -> None:
    world = World.read()
    draw(world)
    images, names = references(world)
    export(images, names)
    for title, line in measure(images, names).items():
        print(f"{title:24} {line}")
    for path in (FOLDER, FILE):
        size = sum(p.stat().st_size for p in (path.rglob("*.png") if path.is_dir() else [path]))
        print(f"{path.resolve().relative_to(ROOT)}: {size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
