"""How much faster a gallery is read in batches than by the library, one image at a time.

    python -m lab.bench_detectors [--images 64] [--repeats 3] [--threads 2]

NudeNet: ``detect`` under all six protocols, beside ``NudeDetector.detect`` of nudenet once for
each file, at 512 pixels. The emoji judge: ``detect`` with both of its detectors, beside the same
two called with one image at a time, at 64 pixels. Both sides begin with PNG files.

Prints images a second of each and their ratio, of the fastest of all repeats; the sides take
turns, and have the same threads. The last column is the ratio of processor time, in which what
else runs on the machine counts for less.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from unsee.eval import DETECTORS, Detector, detect, find_detector
from unsee.gallery import Gallery
from unsee.prompts import Prompt


def gallery(path: Path, count: int, side: int) -> Gallery:
    """Smooth colours, each image its own: the time does not depend on what is in them."""
    made = Gallery.start(path, None, [Prompt(f"{i:04d}", "", i) for i in range(count)])
    for prompt in made:
        small = np.random.default_rng(prompt.seed).integers(0, 256, (8, 8, 3), np.uint8)
        made.put(prompt, Image.fromarray(small).resize((side, side)))
    return made


def fastest(
    sides: dict[str, Callable[[], object]], repeats: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds of each, by the clock and of the processor: the least of all but the first."""
    clock, busy = (dict.fromkeys(sides, float("inf")) for _ in range(2))
    for repeat in range(repeats + 1):
        for name, run in sides.items():
            start = time.perf_counter(), time.process_time()
            run()
            if repeat:
                clock[name] = min(clock[name], time.perf_counter() - start[0])
                busy[name] = min(busy[name], time.process_time() - start[1])
    return clock, busy


def by_library(made: Gallery) -> Callable[[], None]:
    """nudenet as its page shows it, with as many threads as ours."""
    import onnxruntime
    from nudenet import NudeDetector

    detector = NudeDetector()
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    path = detector.onnx_session._model_path
    detector.onnx_session = onnxruntime.InferenceSession(path, settings)

    def run() -> None:
        for prompt in made:
            detector.detect(str(made.image_path(prompt)))

    return run


def one_by_one(made: Gallery, eyes: list[Detector]) -> Callable[[], None]:
    def run() -> None:
        for eye in eyes:
            for prompt in made:
                with Image.open(made.image_path(prompt)) as file:
                    eye([file.convert("RGB")])

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    settings = parser.parse_args()
    torch.set_num_threads(settings.threads)
    nude = [find_detector(name) for name in DETECTORS if name.startswith("nudenet/")]
    judge = [find_detector("emoji/object"), find_detector("emoji/style")]
    with tempfile.TemporaryDirectory() as folder:
        large = gallery(Path(folder) / "large", settings.images, 512)
        small = gallery(Path(folder) / "small", settings.images, 64)
        print(
            "| detectors | in batches, images/s | one at a time, images/s | ratio | of processor |"
        )
        print("|---|---|---|---|---|")
        for name, made, eyes, other in (
            (f"NudeNet, {len(nude)} protocols", large, nude, by_library(large)),
            ("emoji judge, both", small, judge, one_by_one(small, judge)),
        ):
            took, busy = fastest(
                {"ours": partial(detect, made, eyes), "other": other},
                settings.repeats,
            )
            ours, theirs = (len(made) / took[side] for side in ("ours", "other"))
            print(
                f"| {name} | {ours:.1f} | {theirs:.1f} | {ours / theirs:.2f} "
                f"| {busy['other'] / busy['ours']:.2f} |"
            )


if __name__ == "__main__":
    main()
