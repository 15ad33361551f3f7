"""What the warnings of ``erasers/effect.py`` stand on: the tables beside WIDE and NEAR.

    python -m lab.effect_thresholds    # 15 erasures and 44 anchors on the built-in model
    python -m lab.effect_thresholds --objects 1 --draws 1 --images 4 --anchors 1    # the least

WIDE: so many objects, drawn anew each time, are erased at once by UCE. Beside ``kept_moved``, the
mean over the concepts, stands how often the judge sees the label in images of objects that were
not erased, each another object in the styles by turns.

NEAR: of an anchor for an object, beside its distance (``Effect.anchor``) how often the judge sees
the object in the base model's images of the anchor, an image a style.

Prints both tables. Each row is kept in lab/runs/effect-thresholds.jsonl as soon as it is there, so
that a run that was interrupted goes on; remove the file to measure anew.
"""

import argparse
import json
import random
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from tqdm import tqdm

import unsee
from lab.data import RUNS
from unsee.erasers.effect import NEAR, WIDE
from unsee.eval import DETECTORS
from unsee.eval.detectors import Detection
from unsee.pipelines import Erasure, load_pipeline
from unsee.prompts.emoji import world

KEPT = RUNS / "effect-thresholds.jsonl"

ANCHORS = {
    "soccer ball": ("ball", "soccer", "basketball", "apple"),
    "kitchen knife": ("kitchen", "knife", "dagger", "hammer"),
    "wine glass": ("glass", "wine", "cocktail"),
    "birthday cake": ("birthday", "cake", "cookie", "gift"),
    "t-shirt": ("shirt", "t", "dress"),
    "mobile phone": ("phone", "mobile", "telephone"),
    "palm tree": ("palm", "tree", "evergreen tree"),
    "hot dog": ("hot", "dog", "hamburger"),
    "ice cream": ("ice", "cream", "cheese"),
    "four leaf clover": ("clover", "four leaf", "maple leaf"),
    "alarm clock": ("clock", "alarm", "watch", "bell"),
    "light bulb": ("bulb", "light", "lightning bolt"),
    "fire engine": ("fire", "engine", "ambulance", "bus"),
}


def row(key: dict[str, Any], measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A row as it was measured before, or measured now and kept."""
    lines = KEPT.read_text(encoding="utf-8").splitlines() if KEPT.exists() else []
    for line in lines:
        known: dict[str, Any] = json.loads(line)
        if key.items() <= known.items():
            return known
    found = key | measure()
    KEPT.parent.mkdir(parents=True, exist_ok=True)
    with KEPT.open("a", encoding="utf-8") as file:
        file.write(json.dumps(found) + "\n")
    return found


def seen(
    pipe: Any, labels: Sequence[str], prompts: Sequence[str], erasure: Erasure | None = None
) -> int:
    """How many images of the prompts show, to the judge, the label that belongs to each."""
    judge, hits = DETECTORS["emoji/object"](), 0
    with erasure.applied(pipe) if erasure else nullcontext():
        for start in range(0, len(prompts), 8):
            some = range(start, min(start + 8, len(prompts)))
            images = pipe(
                [prompts[i] for i in some],
                generator=[torch.Generator().manual_seed(i) for i in some],
                **world().generation,
            ).images
            for i, answer in zip(some, judge(images), strict=True):
                assert isinstance(answer, Detection), answer
                hits += labels[i] in answer.labels
    return hits


def prompt(thing: str, turn: int) -> str:
    """A thing in one of the styles, by turns."""
    here = world()
    return here.templates[0].format(object=thing, style=here.styles[turn % len(here.styles)])


def damage(pipe: Any, count: int, draw: int, images: int) -> dict[str, Any]:
    """So many objects erased at once, and what is still drawn of the others."""
    here = world()
    order = random.Random(f"{count} {draw}").sample(here.objects, len(here.objects))
    goes, stays = order[:count], order[count:]
    erasure = unsee.erase(pipe, goes)
    moved = [one.kept_moved for one in (erasure.measured.effect or {}).values()]
    known = [one for one in moved if one is not None]
    labels = [stays[i % len(stays)] for i in range(images)]
    prompts = [prompt(label, i) for i, label in enumerate(labels)]
    return {
        "kept_moved": round(sum(known) / len(known), 3),
        "still_seen": seen(pipe, labels, prompts, erasure),
    }


def nearness(pipe: Any, concept: str, anchor: str) -> dict[str, Any]:
    """An anchor's distance, and how often it draws the concept."""
    effect = (unsee.erase(pipe, concept, anchor=anchor).measured.effect or {})[concept]
    assert effect.anchor is not None
    styles = len(world().styles)
    prompts = [prompt(anchor, i) for i in range(styles)]
    drawn = seen(pipe, [concept] * styles, prompts)
    return {"distance": round(effect.anchor, 3), "drawn": drawn, "of": styles}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--objects", type=int, nargs="*", default=[1, 10, 30, 60, 100])
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--images", type=int, default=24, help="of what was not erased, a draw")
    parser.add_argument("--anchors", type=int, help="how many of the anchors [default: all]")
    args = parser.parse_args()
    # The warnings are what is measured here.
    warnings.simplefilter("ignore", UserWarning)
    pipe = load_pipeline("emoji")
    pipe.set_progress_bar_config(disable=True)
    damages = [
        row(
            {"objects": count, "draw": draw, "images": args.images},
            partial(damage, pipe, count, draw, args.images),
        )
        for count, draw in tqdm([(c, d) for c in args.objects for d in range(args.draws)])
    ]
    pairs = [(concept, anchor) for concept, some in ANCHORS.items() for anchor in some]
    anchors = [
        row(
            {"concept": concept, "anchor": anchor},
            partial(nearness, pipe, concept, anchor),
        )
        for concept, anchor in tqdm(pairs[: args.anchors])
    ]
    print(f"\n| objects | kept_moved (a warning above {WIDE}) | still seen |\n|---|---|---|")
    for count in args.objects:
        some = [one for one in damages if one["objects"] == count]
        moved = sorted(one["kept_moved"] for one in some)
        hits = sum(one["still_seen"] for one in some)
        of = sum(one["images"] for one in some)
        print(f"| {count} | {moved[0]:.2f} to {moved[-1]:.2f} | {hits} of {of} |")
    print(f"\n| anchor | of | distance (a warning below {NEAR}) | drawn |\n|---|---|---|---|")
    for one in sorted(anchors, key=lambda one: float(one["distance"])):
        print(
            f"| {one['anchor']} | {one['concept']} | {one['distance']:.2f} "
            f"| {one['drawn']} of {one['of']} |"
        )


if __name__ == "__main__":
    main()
